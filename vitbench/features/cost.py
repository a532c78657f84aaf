"""What a backbone costs: parameters, floating point operations, images per second, peak memory. Measured, never quoted."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import DTYPES, Atom
from vitbench.errors import UsageError, unknown
from vitbench.features import heap
from vitbench.features.cost_memory import cpu_peak_memory
from vitbench.features.extract import TOKENS, default_batch, is_out_of_memory
from vitbench.features.load import AUTO, backbone_name, load_backbone
from vitbench.features.precision import image_layout, packed_linears
from vitbench.records.costs import Cost
from vitbench.records.provenance import provenance

IMAGES = 256
WARM_UP = 2
LEAST_REPEATS = 5


def measure_cost(
    spec: str,
    *,
    device: str = AUTO,
    dtype: str = AUTO,
    batch_size: int | None = None,
    images: int = IMAGES,
    command: str = "vitbench.features.cost.measure_cost",
) -> Cost:
    """Measure a backbone with every trained representation asked for, on noise of its input size.

    The pass is the one of a run: the same number of images at once, and weights laid out for the CPU where a run does that.

    Args:
        spec: The backbone's spec.
        device: As for `load_backbone`.
        dtype: Of the computation, where the spec does not say it.
        batch_size: Images per forward pass; None takes as many as a run (`vitbench.features.extract.default_batch`), fewer when
            `images` are or memory runs out.
        images: At least this many are timed, in at least five batches.
        command: What asked for the measurement.

    Raises:
        UsageError: A value cannot be meant, or memory does not suffice.
        VitbenchError: The backbone cannot be loaded.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if images < 1 or (batch_size is not None and batch_size < 1):
        raise UsageError("the number of images and the batch size are whole numbers from 1")
    backbone = load_backbone(spec, device=device)
    if backbone.spec.dtype == AUTO:
        backbone.to(backbone.device, dtype)
    atoms = all_atoms(backbone)
    flops = count_flops(backbone)
    size, seconds = _timed(backbone, atoms, batch_size, images)
    memory, method = _peak_memory(backbone, atoms, size)
    where = device_name(backbone.device)
    return Cost(
        backbone=backbone.spec.text,
        backbone_name=backbone_name(backbone),
        architecture=backbone.architecture,
        input_size=backbone.input_size,
        dtype=backbone.dtype,
        device=where,
        num_parameters=backbone.num_parameters,
        representations={name: backbone.dim(name) for name in backbone.available()},
        flops=flops,
        images_per_second=size / statistics.median(seconds),
        batch_size=size,
        batch_seconds=seconds,
        memory_bytes=memory,
        memory_method=method,
        provenance=provenance(command, where, backbone.provenance_notes),
    )


def all_atoms(backbone: Backbone) -> frozenset[Atom]:
    """The atoms of every trained representation of a backbone."""
    return frozenset(atom for name in backbone.available() for atom in backbone.resolve(name))


def count_flops(backbone: Backbone) -> int | None:
    """Floating point operations of one image through `encode_atoms`, with every trained representation asked for.

    Counted from the tensors of a real pass: matrix products, convolutions and attention, a multiply-add as two operations, so
    that the number is twice the "GMACs" of many papers. Norms, activations, softmax and means are not counted; in a ViT they are
    about one percent. The count is made in float32 on the CPU and does not depend on device or dtype.

    Returns:
        The number; 0 for pixels; None where the computation is not done by torch (an exported program).
    """
    if not backbone.modules:
        return 0 if backbone.is_floor else None
    device, dtype = backbone.device, backbone.dtype
    # The plain kernel of attention is made of products that every version of torch can count.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        try:
            backbone.to("cpu", "float32").encode_atoms(torch.zeros(1, 3, *backbone.input_size), all_atoms(backbone))
        finally:
            backbone.to(device, dtype)
    return int(counter.get_total_flops()) or None


def device_name(device: torch.device) -> str:
    """A device in words, with all that decides its speed: `cuda (NVIDIA H200)`, `cpu (AMD EPYC 9654, 2 threads)`."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu":
        return f"{device.type} ({platform.machine()})"
    threads = torch.get_num_threads()
    return f"cpu ({_processor()}, {threads} thread{'s' if threads > 1 else ''})"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _timed(backbone: Backbone, atoms: frozenset[Atom], batch_size: int | None, images: int) -> tuple[int, list[float]]:
    """The batch size, and the seconds of each batch after those to warm up."""
    size = batch_size or min(images, default_batch(backbone.device))
    while True:
        try:
            return size, _seconds(backbone, atoms, size, max(LEAST_REPEATS, -(-images // size)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if batch_size is not None or size == 1:
                remedy = "--batch-size auto or a smaller one" if size > 1 else "a smaller resolution or model"
                raise UsageError(
                    f"out of memory with {size} images at once on {backbone.device}: use {remedy}"
                ) from error
        # Outside the except clause, where the exception no longer holds the failed pass's tensors.
        gc.collect()
        if backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        size = (size + 1) // 2


def _seconds(backbone: Backbone, atoms: frozenset[Atom], size: int, repeats: int) -> list[float]:
    layout = image_layout(backbone.modules, backbone.device, backbone.dtype)
    pixels = _noise(backbone, size).contiguous(memory_format=layout)
    seconds = []
    packed = packed_linears(backbone.modules, backbone.device, backbone.dtype, size * TOKENS)
    with heap.kept(backbone.device), packed:
        for number in range(WARM_UP + repeats):
            _synchronise(backbone.device)
            started = time.perf_counter()
            backbone.encode_atoms(pixels, atoms)
            _synchronise(backbone.device)
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - started)
    return seconds


def _noise(backbone: Backbone, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, *backbone.input_size, generator=generator).to(backbone.device)


def _synchronise(device: torch.device) -> None:
    """Wait for a device that computes while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _peak_memory(backbone: Backbone, atoms: frozenset[Atom], size: int) -> tuple[int | None, str]:
    if backbone.device.type == "cpu":
        return cpu_peak_memory(backbone.spec.text, backbone.dtype, size)
    if backbone.device.type != "cuda" or (not backbone.modules and not backbone.is_floor):
        return None, f"not measured: nothing tells the peak on {backbone.device.type} for this backbone"
    gc.collect()
    torch.cuda.reset_peak_memory_stats(backbone.device)
    backbone.encode_atoms(_noise(backbone, size), atoms)
    torch.cuda.synchronize(backbone.device)
    return torch.cuda.max_memory_allocated(backbone.device), "torch.cuda.max_memory_allocated over one batch"
