"""Load a backbone with the preprocessing that its spec asks for."""

from __future__ import annotations

from vitbench.backbones import load
from vitbench.backbones.base import Backbone
from vitbench.records.atomic import slug
from vitbench.tasks import transforms

AUTO = "auto"


def load_backbone(
    spec: str,
    *,
    device: str = "auto",
    allow_untrained: bool = False,
    from_scratch: bool = False,
    resolution: int | None = None,
    positions: str | None = None,
) -> Backbone:
    """Load the backbone that `spec` names, ready to encode.

    Args:
        spec: `KIND:NAME[@REVISION][,key=value…]`, for example `timm:vit_base_patch16_224.augreg_in21k`,
            `hf:google/vit-base-patch16-224-in21k@main`, `jax:B_16.npz,resolution=384`, `pixels`.
        device: `auto` (CUDA, else Apple's GPU, else the CPU) or a torch device.
        allow_untrained: Let representations with newly initialised weights be encoded.
        from_scratch: Build the model without reading weights, which need not exist, to train it: every representation counts as
            trained, and `Backbone.initialise` draws the weights by a seed.
        resolution: Side of the square input in pixels, as the spec's option; None for what the spec says.
        positions: How position embeddings are resized, `library` or `jax`, as the spec's option; None for what the spec says.

    Returns:
        The backbone. Its `preprocessing` is the model's own, or what `preprocess=` in the spec asks for, as a full string.

    Raises:
        UsageError: The spec cannot be read, or names something that does not exist (the nearest names are offered).
        WeightsError: The weights are missing, damaged, or do not fit the model.
    """
    backbone = load.load_backbone(
        spec,
        device=device,
        allow_untrained=allow_untrained,
        from_scratch=from_scratch,
        resolution=resolution,
        positions=positions,
    )
    if backbone.spec.preprocess != AUTO:
        backbone.preprocessing = str(preprocessing_of(backbone))
    return backbone


def preprocessing_of(backbone: Backbone, default: str = AUTO) -> transforms.Preprocessing:
    """How a backbone's images are prepared: as its spec asks, else as `default` asks, which by default is the model's own way.

    Raises:
        UsageError: What is asked for cannot be read, or gives pixels of another size than the backbone takes.
    """
    asked = backbone.spec.preprocess if backbone.spec.preprocess != AUTO else default
    return transforms.resolve(asked, backbone.preprocessing, backbone.input_size, backbone.mean, backbone.std)


def backbone_name(backbone: Backbone) -> str:
    """Short name of a backbone and its weights, good for a folder: `timm-vit_tiny_patch16_224-1f2e3d4c`."""
    return f"{slug(backbone.spec.label, 60)}-{backbone.weights_digest[:8]}"
