"""What each Hugging Face vision family's outputs mean: where the CLS token is, what is normed, what the pooler is.

One row per `model_type`; every row was read in the source of transformers 5.23 and is checked by test against the model itself.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vitbench.backbones.base import Representation
from vitbench.errors import UsageError, nearest


@dataclass(frozen=True)
class Family:
    """How to read one family of models.

    Attributes:
        model_class: The class in transformers that is loaded.
        pooler: What `pooler_output` is: `dense` is a linear layer and an activation on the CLS token, newly initialised where
            the checkpoint was saved from a classifier; `head` an attention pooling head; `cls` and `gap` equal those exactly.
        positions: How the model knows places. `learned`: a table that is resized only when asked; `resized`: a table that the
            model resizes by itself; `rotary`: computed for any grid; `windows`: relative, in windows; `none`: convolutional.
        prefix: Tokens before the patch tokens, registers not counted. Where there are any, the CLS token is the first.
        final_norm: The attribute that holds the final norm of a plain stack of blocks; empty for a pyramid of stages, whose
            stages differ in width.
        output_normed: `last_hidden_state` has been through the final norm.
        stem_width: For a pyramid, the config field with the width of the input of its first stage.
    """

    model_class: str
    pooler: Literal["dense", "head", "cls", "gap"]
    positions: Literal["learned", "resized", "rotary", "windows", "none"]
    prefix: int = 0
    final_norm: str = ""
    output_normed: bool = True
    stem_width: str = ""

    @property
    def staged(self) -> bool:
        """A pyramid of stages, whose one vector is `pooler_output`, and not a plain stack of blocks."""
        return not self.final_norm


_CLIP = Family("CLIPVisionModel", "cls", "learned", 1, "post_layernorm", output_normed=False)
_SIGLIP = Family("SiglipVisionModel", "head", "learned", 0, "post_layernorm")

FAMILIES: dict[str, Family] = {
    "vit": Family("ViTModel", "dense", "learned", 1, "layernorm"),
    "deit": Family("DeiTModel", "dense", "learned", 2, "layernorm"),
    "dinov2": Family("Dinov2Model", "cls", "resized", 1, "layernorm"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "cls", "resized", 1, "layernorm"),
    "dinov3_vit": Family("DINOv3ViTModel", "cls", "rotary", 1, "norm"),
    "clip": _CLIP,  # both towers: transformers picks the vision model's config and weights
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "swin": Family("SwinModel", "gap", "windows", stem_width="embed_dim"),
    "swinv2": Family("Swinv2Model", "gap", "windows", stem_width="embed_dim"),
    "convnext": Family("ConvNextModel", "gap", "none", stem_width="hidden_sizes"),
    "convnextv2": Family("ConvNextV2Model", "gap", "none", stem_width="hidden_sizes"),
    "dinov3_convnext": Family("DINOv3ConvNextModel", "gap", "none", stem_width="num_channels"),
    "resnet": Family("ResNetModel", "gap", "none", stem_width="embedding_size"),
    "bit": Family("BitModel", "gap", "none", stem_width="embedding_size"),
}

# Fields of a config that name things, or say how it was stored or is to be run, and cannot change a feature.
_NOT_ARCHITECTURE = {
    "architectures",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "num_labels",
    "out_features",
    "out_indices",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "projection_dim",
    "return_dict",
    "stage_names",
    "torch_dtype",
    "transformers_version",
}


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family of a checkpoint by the `model_type` of its `config.json`.

    Raises:
        UsageError: There is no `model_type`, or none that is supported; the supported ones are listed.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        close = nearest(str(model_type), FAMILIES) if model_type else []
        hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
        raise UsageError(
            f"{where}: model_type '{model_type}' in config.json is not supported{hint} (supported: {', '.join(FAMILIES)})"
        )
    return FAMILIES[model_type]


def prefix_tokens(family: Family, config: Any) -> int:
    """Number of tokens that are not patches: CLS, distillation and register tokens."""
    # DINOv3's class default is 0 registers while its checkpoints have 4, so the number is always the config's.
    return family.prefix + int(getattr(config, "num_register_tokens", 0))


def layer_dims(family: Family, config: Any) -> list[int]:
    """Width of the input of the first block (or stage), then of the output of each."""
    if not family.staged:
        return [config.hidden_size] * (config.num_hidden_layers + 1)
    stem = getattr(config, family.stem_width)
    if family.stem_width == "embed_dim":  # Swin doubles its width at each merging of patches
        return [stem, *(stem * 2**stage for stage in range(len(config.depths)))]
    return [stem[0] if isinstance(stem, list | tuple) else stem, *config.hidden_sizes]


def representations(family: Family, config: Any, untrained_pooler: bool) -> dict[str, Representation]:
    """`cls`, `gap` and `pooler` of a model, absent ones included, with their provenance."""
    width = layer_dims(family, config)[-1]
    gap = Representation("gap", width)
    if family.prefix:
        cls = Representation("cls", width)
    else:
        cls = Representation("cls", 0, "absent", reason=f"{family.model_class} has no CLS token")
    if family.pooler in ("cls", "gap"):
        pooler = Representation("pooler", width, alias_of=family.pooler)
    elif family.pooler == "head":
        pooler = Representation("pooler", width)
        if not config.vision_use_head:
            pooler = Representation(
                "pooler", 0, "absent", reason="the checkpoint has no pooling head (vision_use_head)"
            )
    elif untrained_pooler:
        reason = "its weights are not in the checkpoint, which was saved without its pooling layer"
        pooler = Representation("pooler", config.pooler_output_size, "untrained", reason=reason)
    else:
        pooler = Representation("pooler", config.pooler_output_size)
    return {"cls": cls, "gap": gap, "pooler": pooler}


def architecture(config: Any) -> str:
    """`hf:<model_type>#<hash>`, the hash over every config field that can change a feature (eps, activation, sizes)."""
    fields = {
        key: value
        for key, value in config.to_dict().items()
        if key not in _NOT_ARCHITECTURE and not key.startswith("_")
    }
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=str)
    return f"hf:{config.model_type}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def square_config(config: Any) -> Any:
    """Write `image_size` and `patch_size` as one number where they are a pair of equal ones, in place.

    transformers takes pairs, but cannot resize position embeddings with them.
    """
    for name in ("image_size", "patch_size"):
        value = getattr(config, name, None)
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            setattr(config, name, value[0])
    return config


def sized_config(config: Any, size: tuple[int, int]) -> Any:
    """A copy of a config, for a model built for square images of `size` (height and width in pixels).

    It is unchanged where images are not square, which not every family can be built for, or the config has no size.
    """
    config = copy.deepcopy(config)
    if native_size(config) is not None and size[0] == size[1]:
        config.image_size = size[0]
    return config


def native_size(config: Any) -> tuple[int, int] | None:
    """Height and width in pixels of the config, or None where it does not say (ResNet, BiT)."""
    size = getattr(config, "image_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check_size(family: Family, config: Any, size: tuple[int, int], where: str) -> None:
    """Check that the model can be run on images of `size` (height and width in pixels).

    Raises:
        UsageError: It cannot; the nearest sizes that it can are given.
    """
    if family.positions == "none":
        _check_convolutional(family, config, size, where)
        return
    patch = config.patch_size
    if not isinstance(patch, int) or not isinstance(config.image_size, int):
        if size != native_size(config):
            raise UsageError(f"{where}: its images or patches are not square, so it runs at its own size only")
        return
    if any(side % patch for side in size):
        side = next(side for side in size if side % patch)
        below, above = side // patch * patch, (side // patch + 1) * patch
        choices = f"{below} or {above}" if below else str(above)
        raise UsageError(f"{where}: resolution {side} is not a multiple of the patch size {patch}; nearest: {choices}")
    if family.model_class == "SwinModel":
        _check_windows(config, size, where)


def _check_convolutional(family: Family, config: Any, size: tuple[int, int], where: str) -> None:
    if "ConvNext" not in family.model_class:
        return  # ResNet and BiT pad, and run at any size
    # ConvNeXt's stem and its downsampling have no padding: the stem divides by patch_size, each later stage by 2.
    stride = getattr(config, "patch_size", 4) * 2 ** (len(config.hidden_sizes) - 1)
    if min(size) < stride:
        raise UsageError(f"{where}: resolution {min(size)} is less than the model's stride; the smallest is {stride}")


def _check_windows(config: Any, size: tuple[int, int], where: str) -> None:
    def last_grid(side: int) -> int:
        grid: int = side // config.patch_size
        for _ in range(len(config.depths) - 1):
            grid = (grid + 1) // 2  # merging pads an odd grid
        return grid

    # transformers shrinks a window to the grid, but not the table of relative positions: such a forward pass fails.
    if last_grid(min(size)) < config.window_size:
        smallest = config.patch_size
        while last_grid(smallest) < config.window_size:
            smallest += config.patch_size
        raise UsageError(
            f"{where}: at resolution {min(size)} the last stage is smaller than the window of {config.window_size}; "
            f"the smallest that works is {smallest}"
        )


def resize_note(family: Family, config: Any, size: tuple[int, int]) -> str:
    """What an input of `size` means for a model built for another, in a line; empty where it is the same."""
    native = native_size(config)
    if native is None or size == native or family.positions == "none":
        return ""
    if family.positions in ("learned", "resized"):
        # Of the four families that resize, only DINOv2 with registers antialiases (and it matters only when shrinking).
        antialias = ", antialiased" if "Registers" in family.model_class else ""
        old, new = native[0] // config.patch_size, size[0] // config.patch_size
        return f"position embeddings resized from {old}x{old} to {new}x{new} patches (bicubic{antialias})"
    how = "rotary position embeddings" if family.positions == "rotary" else "windows of the size it was built with"
    return f"run at {size[0]}x{size[1]} pixels, built for {native[0]}x{native[1]} ({how})"


def forward_flags(family: Family, resized: str) -> dict[str, bool]:
    """Arguments of the forward pass when `resize_note` says `resized`."""
    # Swin needs the flag only where it has absolute position embeddings, and does not mind it elsewhere.
    needed = bool(resized) and family.positions in ("learned", "windows")
    return {"interpolate_pos_encoding": True} if needed else {}
