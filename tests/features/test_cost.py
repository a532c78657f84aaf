"""What a backbone costs: counts against a count by hand, and numbers that are what they say they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import Atom
from vitbench.errors import UsageError
from vitbench.features import cost as module
from vitbench.features.cost import count_flops, device_name, measure_cost
from vitbench.features.cost_memory import cpu_peak_memory, weight_bytes
from vitbench.features.extract import TOKENS, default_batch
from vitbench.features.load import load_backbone


def vit_flops(side: int, patch: int, width: int, depth: int, ratio: int = 4) -> int:
    """A plain ViT by hand, 2 for each multiply-add: patches; per block qkv, two products of attention, output, MLP."""
    patches = (side // patch) ** 2
    tokens = patches + 1
    block = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width
    block += 2 * tokens * width * ratio * width
    return 2 * (patches * width * 3 * patch * patch + depth * block)


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Memory is measured in a process of its own, which takes seconds to start: only where it is what is tested."""
    if "memory" not in request.node.name:
        monkeypatch.setattr(module, "cpu_peak_memory", lambda *_: (None, "not asked for"))


def test_flops_of_a_vit_are_those_counted_by_hand(tiny_vit: str) -> None:
    assert count_flops(load_backbone(tiny_vit, device="cpu")) == vit_flops(32, 16, 24, 2) == 290_496


def test_the_count_does_not_depend_on_dtype_or_on_the_kernel_of_attention(tiny_vit: str) -> None:
    backbone = load_backbone(f"{tiny_vit},dtype=bfloat16", device="cpu")
    assert count_flops(backbone) == vit_flops(32, 16, 24, 2)
    assert backbone.dtype == "bfloat16", "put back"
    for block in next(iter(backbone.modules)).blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = not block.attn.fused_attn
    assert count_flops(backbone) == vit_flops(32, 16, 24, 2)


def test_a_resolution_counts(tiny_vit: str) -> None:
    spec = tiny_vit.replace("model.img_size=32", "resolution=64")
    assert count_flops(load_backbone(spec, device="cpu")) == vit_flops(64, 16, 24, 2)


def test_a_convolution_is_counted_too(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3)
    save_file(model.state_dict(), tmp_path / "r.safetensors")
    spec = f"timm:resnet10t,checkpoint={tmp_path / 'r.safetensors'},resolution=64"
    backbone = load_backbone(spec, device="cpu")
    by_hand = 0

    def add(layer: torch.nn.Module, _: Any, out: Tensor) -> None:
        nonlocal by_hand
        assert isinstance(layer, torch.nn.Conv2d)
        by_hand += 2 * out[0].numel() * layer.weight[0].numel()

    for layer in next(iter(backbone.modules)).modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(add)
    assert count_flops(backbone) == by_hand > 0


def test_pixels_cost_nothing_and_what_torch_does_not_compute_is_unknown() -> None:
    pixels = load_backbone("pixels", device="cpu")
    assert count_flops(pixels) == 0

    class Foreign(type(pixels)):  # type: ignore[misc]
        is_floor = False

    foreign = Foreign(pixels.spec)
    assert count_flops(foreign) is None


def test_a_measurement_says_what_was_measured(tiny_vit: str) -> None:
    cost = measure_cost(tiny_vit, device="cpu", batch_size=4, images=30, command="a test")
    assert (cost.backbone, cost.architecture) == (tiny_vit, load_backbone(tiny_vit, device="cpu").architecture)
    assert (cost.input_size, cost.dtype, cost.batch_size) == ((32, 32), "float32", 4)
    assert cost.representations == {"cls": 24, "gap": 24, "pooler": 24}
    assert len(cost.batch_seconds) == 8, "30 images in batches of 4"
    ordered = sorted(cost.batch_seconds)
    assert cost.images_per_second == pytest.approx(4 / ((ordered[3] + ordered[4]) / 2))
    assert cost.provenance.versions["torch"] == torch.__version__.split("+")[0]
    assert cost.device == device_name(torch.device("cpu"))
    assert f"{torch.get_num_threads()} thread" in cost.device


def test_every_trained_representation_is_computed_in_the_timed_pass(
    tiny_vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[str]]] = []
    original = Backbone.encode_atoms

    def watching(self: Backbone, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        seen.append((len(pixels), {str(atom) for atom in atoms}))
        return original(self, pixels, atoms)

    monkeypatch.setattr(Backbone, "encode_atoms", watching)
    measure_cost(tiny_vit, device="cpu", batch_size=2, images=4)
    assert all(names == {"cls", "gap", "pooler"} for _, names in seen)
    assert [size for size, _ in seen] == [1, *[2] * (module.WARM_UP + module.LEAST_REPEATS)]


def test_the_spec_s_own_dtype_goes_before_the_option(tiny_vit: str) -> None:
    assert measure_cost(tiny_vit, device="cpu", dtype="bfloat16", images=2).dtype == "bfloat16"
    assert measure_cost(f"{tiny_vit},dtype=float32", device="cpu", dtype="bfloat16", images=2).dtype == "float32"


def test_the_batch_halves_when_memory_runs_out_unless_it_was_asked_for(
    tiny_vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Backbone.encode_atoms

    def small(self: Backbone, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        if len(pixels) > 5:
            raise torch.OutOfMemoryError("no")
        return original(self, pixels, atoms)

    monkeypatch.setattr(Backbone, "encode_atoms", small)
    assert default_batch(torch.device("cpu")) in (16, 20, 24, 28, 32)
    assert measure_cost(tiny_vit, device="cpu", images=64).batch_size in (3, 4, 5), "halved from what a run takes"
    with pytest.raises(UsageError, match="out of memory with 16 images at once on cpu: use --batch-size auto"):
        measure_cost(tiny_vit, device="cpu", batch_size=16)


def test_the_timed_pass_is_that_of_a_run(tiny_vit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, int]] = []

    @contextmanager
    def packing(modules: Any, device: torch.device, dtype: str, rows: int) -> Iterator[int]:
        assert list(modules)
        asked.append((device.type, dtype, rows))
        yield 0

    monkeypatch.setattr(module, "packed_linears", packing)
    size = measure_cost(tiny_vit, device="cpu", dtype="bfloat16", images=64).batch_size
    assert size == default_batch(torch.device("cpu"))
    assert asked == [("cpu", "bfloat16", size * TOKENS)]


@pytest.mark.parametrize("given", [{"images": 0}, {"batch_size": 0}, {"dtype": "float23"}])
def test_values_that_cannot_be_meant(tiny_vit: str, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"from 1|did you mean 'float32'"):
        measure_cost(tiny_vit, device="cpu", **given)


def test_memory_on_the_cpu_is_the_batch_where_nothing_else_is_made() -> None:
    pixels = 64 * 3 * 256 * 256 * 4
    found, method = cpu_peak_memory("pixels,resolution=256", "float32", 64)
    if found is None:
        pytest.skip(f"this system does not tell a process's peak memory: {method}")
    # Flattened pixels are a view, so that the batch itself is all there is: 50 MB.
    assert pixels <= found < 1.2 * pixels
    assert "fresh process" in method


def test_memory_holds_the_weights_once(tiny_vit: str) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    assert weight_bytes(backbone) == sum(4 * p.numel() for m in backbone.modules for p in m.parameters())
    assert cpu_peak_memory("timm:nope", "float32", 1)[1].startswith("not measured: the process that should do it ended")
