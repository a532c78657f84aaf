"""Load a backbone by its spec."""

from __future__ import annotations

from dataclasses import replace

import torch

from vitbench.backbones import BACKBONES
from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import POSITIONS, BackboneSpec, parse_backbone_spec
from vitbench.errors import UsageError, unknown


def load_backbone(
    spec: str,
    *,
    device: str = "auto",
    allow_untrained: bool = False,
    from_scratch: bool = False,
    resolution: int | None = None,
    positions: str | None = None,
) -> Backbone:
    """Load the backbone that `spec` names; see `vitbench.features.load.load_backbone`, which also minds `preprocess=`."""
    if not isinstance(spec, str):
        raise UsageError(f"a backbone's spec is a text such as timm:vit_base_patch16_224.augreg_in21k, got {spec!r}")
    written = parse_backbone_spec(spec)
    parsed = _with_options(written, from_scratch, resolution, positions)
    backbone: Backbone = BACKBONES.load(parsed.kind)(parsed)
    if from_scratch and type(backbone).initialise is Backbone.initialise:
        raise UsageError(
            f"backbone '{spec}' cannot be trained from scratch: it has no weights that could be drawn anew"
        )
    if not backbone.modules and (written.positions or positions == "jax"):
        raise UsageError(f"backbone '{spec}' has no position embeddings that could be resized: drop positions=")
    backbone.allow_untrained = allow_untrained
    return backbone.to(device_name(device), parsed.dtype)


def _with_options(
    spec: BackboneSpec, from_scratch: bool, resolution: int | None, positions: str | None
) -> BackboneSpec:
    """The spec with what the caller asks for besides; an option that the spec gives too must agree.

    Raises:
        UsageError: The two disagree, or a value cannot be meant.
    """
    if positions is not None and positions not in POSITIONS:
        raise unknown(f"positions for backbone '{spec.text}':", positions, POSITIONS)
    if resolution is not None and resolution < 1:
        raise UsageError(f"backbone '{spec.text}': resolution {resolution} is no number of pixels above 0")
    for name, given, asked in (
        ("resolution", spec.resolution, resolution),
        ("positions", spec.positions, positions),
    ):
        if given and asked and given != asked:
            raise UsageError(
                f"backbone '{spec.text}' has {name}={given}, and {name}={asked} is asked for besides: drop one"
            )
    return replace(
        spec,
        initialise=from_scratch,
        resolution=resolution or spec.resolution,
        positions=positions or spec.positions,
    )


def device_name(name: str) -> str:
    """The device that is meant: `auto` is CUDA, else Apple's GPU, else the CPU.

    Raises:
        UsageError: It cannot be used here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return name
