"""Load a backbone by its spec."""

from __future__ import annotations

import torch

from vitbench.backbones import BACKBONES
from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError


def load_backbone(spec: str, *, device: str = "auto", allow_untrained: bool = False) -> Backbone:
    """Load the backbone that `spec` names, ready to encode.

    Args:
        spec: `KIND:NAME[@REVISION][,key=value…]`, for example `timm:vit_base_patch16_224.augreg_in21k`,
            `hf:google/vit-base-patch16-224-in21k@main`, `jax:B_16.npz,resolution=384`, `pixels`.
        device: `auto` (CUDA, else Apple's GPU, else the CPU) or a torch device.
        allow_untrained: Let representations with newly initialised weights be encoded.

    Raises:
        UsageError: The spec cannot be read, or names something that does not exist (the nearest names are offered).
        WeightsError: The weights are missing, damaged, or do not fit the model.
    """
    parsed = parse_backbone_spec(spec)
    backbone: Backbone = BACKBONES.load(parsed.kind)(parsed)
    backbone.allow_untrained = allow_untrained
    return backbone.to(_device(device), parsed.dtype)


def _device(name: str) -> str:
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
