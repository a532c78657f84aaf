"""A Hugging Face image processor as a preprocessing string."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitbench.errors import UsageError

Triple = tuple[float, float, float]

# Processors whose steps are exactly resize, centre crop, rescale, normalise (ConvNeXt's resize has a rule of its own).
_KNOWN = {
    "BitImageProcessor",
    "CLIPImageProcessor",
    "ConvNextImageProcessor",
    "DeiTImageProcessor",
    "DINOv3ViTImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
}

_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers
_SIDES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
_CONVNEXT_SQUASH_FROM = 384


@dataclass(frozen=True)
class ImagePreprocessing:
    """What an image processor does.

    Attributes:
        text: The preprocessing string, `resize(256,bicubic)|central_crop(224)|normalize(0.5,0.5)`.
        size: Height and width in pixels of what comes out.
        mean: Per-channel mean that is subtracted, on pixels in [0, 1].
        std: Per-channel standard deviation that is divided by.
    """

    text: str
    size: tuple[int, int]
    mean: Triple
    std: Triple


def image_preprocessing(processor: Any, resolution: int | None = None) -> ImagePreprocessing:
    """The steps of `processor`, an image processor of transformers, as a string.

    transformers rounds the offset of a crop down, which is `central_crop`: `center_crop`, torchvision's, rounds half to even and
    would be off by a pixel for many images.

    Args:
        processor: What `AutoImageProcessor.from_pretrained` gives.
        resolution: Side in pixels of the square that should come out; the sizes of resize and crop change in proportion.

    Raises:
        UsageError: It has a step that the string cannot say; the message has no subject, the caller puts one before it.
    """
    name = type(processor).__name__
    kind = name.removesuffix("Fast").removesuffix("Pil")
    if kind not in _KNOWN:
        raise UsageError(f"the steps of image processor {name} are not known here")
    if not getattr(processor, "do_resize", False):
        raise UsageError(f"image processor {name} does not resize")
    if getattr(processor, "do_pad", False):
        raise UsageError(f"image processor {name} pads, which a preprocessing string cannot say")
    mean, std = _normalisation(processor, name)
    interpolation = _interpolation(processor, name)
    if kind == "ConvNextImageProcessor":
        steps, size = _convnext_geometry(processor, name, interpolation, resolution)
    else:
        steps, size = _geometry(processor, name, interpolation, resolution)
    return ImagePreprocessing("|".join([*steps, f"normalize({_numbers(mean)},{_numbers(std)})"]), size, mean, std)


def _geometry(
    processor: Any, name: str, interpolation: str, resolution: int | None
) -> tuple[list[str], tuple[int, int]]:
    size = _sides(processor.size)
    crop = _sides(processor.crop_size) if getattr(processor, "do_center_crop", False) else {}
    if set(size) not in ({"height", "width"}, {"shortest_edge"}) or (crop and set(crop) != {"height", "width"}):
        raise UsageError(
            f"image processor {name} resizes to {size} and crops to {crop or 'nothing'}, which is not known here"
        )
    if not crop and "shortest_edge" in size:
        raise UsageError(f"image processor {name} keeps the aspect and does not crop, so images differ in size")
    out = crop or size
    height, width = out["height"], out["width"]
    if resolution is not None:
        if height != width:
            raise UsageError(
                f"image processor {name} makes images of {height}x{width}, and resolution= is for square ones"
            )
        size = {side: round(pixels * resolution / height) for side, pixels in size.items()}
        height = width = resolution
    if min(size.get("height", height), size.get("shortest_edge", height)) < height or size.get("width", width) < width:
        raise UsageError(f"image processor {name} crops to more than it resizes to, which pads")
    squash = f"{size['height']}x{size['width']}" if "height" in size else str(size["shortest_edge"])
    steps = [f"resize({squash},{interpolation})"]
    if crop:
        steps.append(f"central_crop({height if height == width else f'{height}x{width}'})")
    return steps, (height, width)


def _convnext_geometry(
    processor: Any, name: str, interpolation: str, resolution: int | None
) -> tuple[list[str], tuple[int, int]]:
    # ConvNextImageProcessor.resize: below 384 the short side becomes int(S / crop_pct) and the centre S is cut out; from 384
    # on the image is squashed to S x S. The rule is applied to the resolution asked for, as the processor itself would.
    size = _sides(processor.size)
    if set(size) != {"shortest_edge"} or getattr(processor, "do_center_crop", False):
        raise UsageError(f"image processor {name} resizes to {size} or crops twice, which is not known here")
    side = resolution or size["shortest_edge"]
    if side >= _CONVNEXT_SQUASH_FROM:
        return [f"resize({side}x{side},{interpolation})"], (side, side)
    return [f"resize({int(side / processor.crop_pct)},{interpolation})", f"central_crop({side})"], (side, side)


def _normalisation(processor: Any, name: str) -> tuple[Triple, Triple]:
    if not getattr(processor, "do_rescale", False):
        raise UsageError(f"image processor {name} does not rescale pixels to [0, 1] (do_rescale is false)")
    # Some checkpoints round 1/255 to 0.003921569 or less.
    if not math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-3):
        raise UsageError(f"image processor {name} rescales pixels by {processor.rescale_factor}, not by 1/255")
    if not getattr(processor, "do_normalize", False):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return _triple(processor.image_mean, name), _triple(processor.image_std, name)


def _triple(values: float | Sequence[float], name: str) -> Triple:
    numbers = [float(values)] * 3 if isinstance(values, int | float) else [float(value) for value in values]
    if len(numbers) != 3:
        raise UsageError(f"image processor {name} normalises {len(numbers)} channels, not 3")
    return numbers[0], numbers[1], numbers[2]


def _interpolation(processor: Any, name: str) -> str:
    number = -1 if processor.resample is None else int(processor.resample)
    if number not in _INTERPOLATIONS:
        raise UsageError(f"image processor {name} resizes by resample={processor.resample}, which is not known here")
    return _INTERPOLATIONS[number]


def _sides(size: Any) -> dict[str, int]:
    """The sides that a size names; transformers keeps it as a dict or as a `SizeDict`, by version."""
    found = {side: size.get(side) if isinstance(size, dict) else getattr(size, side, None) for side in _SIDES}
    return {side: int(pixels) for side, pixels in found.items() if pixels is not None}


def _numbers(values: Triple) -> str:
    short = values[:1] if len(set(values)) == 1 else values
    return "/".join(f"{value:g}" if float(f"{value:g}") == value else repr(value) for value in short)
