"""Load a backbone by its spec."""

from __future__ import annotations

import torch

from vitbench.backbones import BACKBONES
from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError


def load_backbone(spec: str, *, device: str = "auto", allow_untrained: bool = False) -> Backbone:
    """Load the backbone that `spec` names; see `vitbench.features.load.load_backbone`, which also minds `preprocess=`."""
    if not isinstance(spec, str):
        raise UsageError(f"a backbone's spec is a text such as timm:vit_base_patch16_224.augreg_in21k, got {spec!r}")
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
