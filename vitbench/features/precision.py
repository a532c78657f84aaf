"""Faster matrix products on a CPU, within a stated bound of the plain ones.

torch multiplies float32 matrices on x86 with MKL, which takes a generic path on processors of other makers than its own: measured
on an AMD processor with AVX-512, a ViT takes almost twice as long as with oneDNN, the library that torch brings along for
convolutions and bfloat16. And where oneDNN is used already, in bfloat16, every call lays out the weights anew.
`packed_linears` gives every `nn.Linear` of a model, for as long as it lasts, weights that oneDNN has laid out once. Convolutions
go to oneDNN anyway, which wants the channels of an image last (`image_layout`): where they are not, it lays out every image
anew, twice in every layer.

The bound: a product of float32 differs from the plain one by at most `FLOAT32_BOUND` of its largest value, which is what another
processor or number of threads does too (both sum the same terms, in another order); in bfloat16 it is equal bit for bit. Each
kind of layer is tried on random numbers first, and one that is beyond the bound, or that oneDNN refuses, stays as it is.
With the channels last, which is not tried beforehand, pooled features of convolutional models in float32 were measured to differ
by 2.3e-6 of the largest at most; in bfloat16 they would by as much as bfloat16 itself makes, and images stay as they are. So they
do for models with a GroupNorm (BiT): torch takes its variance there as the difference of two sums, which cancel, and pooled
features were 5e-5 to 9e-5 off.
The choice follows from the processor and the model alone, never from a timing, so that a run and its repetition agree.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

FLOAT32_BOUND = 1e-5
TRIAL_ROWS = 197
"""Rows of a trial: the tokens of one image."""


@contextmanager
def packed_linears(modules: Sequence[nn.Module], device: torch.device, dtype: str, rows: int) -> Iterator[int]:
    """Let the linear layers of a model multiply with weights that are laid out once; as they were afterwards.

    Only inference: gradients do not flow through, and what is done to the weights inside has no effect. Takes the memory of the
    weights once more.

    Args:
        modules: The model's.
        device: Where it is; nothing is done but on a CPU.
        dtype: `float32`, or `bfloat16` by autocast.
        rows: Rows that a layer is expected to see at once (images times tokens); any number is right, one is fastest.

    Yields:
        How many layers are packed.
    """
    layers = list(dict.fromkeys(layer for module in modules for layer in module.modules() if _is_plain(layer)))
    packed: list[nn.Linear] = []
    if device.type == "cpu" and _repays(dtype):
        agreed: dict[tuple[int, int, bool], bool] = {}
        with torch.inference_mode():
            for layer in layers:
                forward = _packed(layer, dtype, rows)
                kind = (layer.in_features, layer.out_features, layer.bias is not None)
                if kind not in agreed:
                    agreed[kind] = forward is not None and _agrees(layer, forward, dtype)
                if forward is not None and agreed[kind]:
                    layer.forward = forward  # type: ignore[method-assign, assignment]
                    packed.append(layer)
    try:
        yield len(packed)
    finally:
        for layer in packed:
            del layer.forward  # the class's own is behind it


def image_layout(modules: Sequence[nn.Module], device: torch.device, dtype: str) -> torch.memory_format:
    """The layout in which a model is given its images: the channels last for a convolutional one, in float32 on a CPU.

    A model is convolutional when it has more convolutions than linear layers: a ResNet or a MobileNet is; a ViT or a ConvNeXt
    with linear layers in its blocks, which gain nothing, are not. Nor is one with a GroupNorm, which is less exact so.

    Args:
        modules: The model's.
        device: Where it is.
        dtype: `float32`, or `bfloat16` by autocast.
    """
    layers = [layer for module in modules for layer in module.modules()]
    exact = not any(isinstance(layer, nn.GroupNorm) for layer in layers)
    convolutions, linears = (sum(isinstance(layer, kind) for layer in layers) for kind in (nn.Conv2d, nn.Linear))
    repays = exact and device.type == "cpu" and dtype == "float32" and _is_wide()
    return torch.channels_last if repays and convolutions > linears else torch.contiguous_format


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer and nothing else: a subclass may do more, and so may parametrised or changed ones."""
    return type(module) is nn.Linear and "forward" not in vars(module) and module.weight.dtype == torch.float32


def _packed(layer: nn.Linear, dtype: str, rows: int) -> Callable[[Tensor], Tensor] | None:
    """The forward pass of a layer with weights in oneDNN's layout; None where oneDNN refuses."""
    kind = getattr(torch, dtype)
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(kind), rows)
    except (AttributeError, RuntimeError):
        return None
    bias = None if layer.bias is None else layer.bias.detach().to(kind)

    def forward(values: Tensor) -> Tensor:
        if values.dtype != kind and not torch.is_autocast_enabled("cpu"):
            # Somewhere a model may switch autocast off, and then a plain layer would not round.
            return functional.linear(values, layer.weight, layer.bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(values.to(kind), weight, bias, "none", [], "")
        return result

    return forward


def _agrees(layer: nn.Linear, forward: Callable[[Tensor], Tensor], dtype: str) -> bool:
    """Whether a packed layer gives what the plain one gives, to the bound; tried on as many rows as an image has, and on one."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(TRIAL_ROWS, layer.in_features, generator=generator)
    for trial in (values, values[:1]):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            expected = functional.linear(trial, layer.weight, layer.bias)
            try:
                found = forward(trial)
            except RuntimeError:
                return False
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return False
        if dtype == "bfloat16" and not torch.equal(found, expected):
            return False
        if not float((found - expected).abs().max()) <= FLOAT32_BOUND * float(expected.abs().max()):
            return False
    return True


def _repays(dtype: str) -> bool:
    """Whether packed weights are faster on this processor, going by what was measured (`docs/performance.md`)."""
    if not _is_wide():
        return False
    if dtype == "float32":
        return bool(torch.backends.mkl.is_available()) and not made_by_intel()  # type: ignore[no-untyped-call]
    return dtype == "bfloat16" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_wide() -> bool:
    """Whether oneDNN computes, with AVX-512."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:  # type: ignore[no-untyped-call]
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@cache
def made_by_intel() -> bool:
    """Whether the processor is Intel's, or cannot be told."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = platform.processor()
    return not any(maker in text for maker in ("AuthenticAMD", "HygonGenuine"))
