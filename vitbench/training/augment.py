"""What happens to a training image: crop and resize, flip, RandAugment; and to a batch: random erasing, mixup, cutmix.

Every draw is made from a generator or a seed that is passed in. timm's augmentations draw from Python's and NumPy's global
generators (random erasing from PyTorch's as well); those are seeded for the call and put back after it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn.functional import pad

from vitbench.errors import DataError, UsageError, unknown
from vitbench.tasks.area_resize import resize_small, small_size
from vitbench.tasks.images import to_rgb
from vitbench.tasks.ops import INTERPOLATIONS, Normalize, Resize, Uint8, to_tensor
from vitbench.tasks.tf_resize import tf_resize
from vitbench.tasks.transforms import Preprocessing
from vitbench.training.crops import crop_offset, inception_box, random_resized_box
from vitbench.training.recipe import Recipe

Geometry = Callable[[Image.Image, np.random.Generator, str], Tensor]
"""An RGB image, the sample's generator and what the image is to the user, to `[3, H, W]` uint8, or float32 in 0..255."""

EXAMPLE = "rand-m9-n2-mstd0.5"
_SECTION = re.compile(r"(m|n|mmax)[0-9]{1,3}|inc[01]|(p|mstd)[0-9]{1,3}(\.[0-9]+)?|t(weights|3a|3aw)")
_LARGER = 448 / 384


def training_geometry(recipe: Recipe, preprocessing: Preprocessing) -> Geometry:
    """What turns an image into training pixels of the size that the backbone takes.

    Args:
        recipe: How to crop, whether to flip, and RandAugment's string.
        preprocessing: That of the run: its size, for some crops its geometry, and its normalisation, which is done to the batch
            later.

    Returns:
        A function of image, generator and place that gives `[3, H, W]`, contiguous: uint8, or float32 in 0..255 where the crop
        ends in a TensorFlow resize that does not truncate. It raises `DataError` for an image that cannot be used.

    Raises:
        UsageError: The crop has no such name, is larger than the image it is taken from, or RandAugment's string cannot be read.
    """
    if recipe.crop not in CROPS:
        raise unknown("crop", recipe.crop, CROPS)
    crop = CROPS[recipe.crop](recipe, preprocessing)
    augment = None if recipe.randaugment is None else _rand_augment(recipe.randaugment, preprocessing)
    flip = recipe.flip

    def geometry(image: Image.Image, rng: np.random.Generator, where: str) -> Tensor:
        pixels = crop(to_rgb(image, where), rng, where)
        if flip and rng.random() < 0.5:
            pixels = pixels.flip(2)
        if augment is not None:
            pixels = augment(pixels, rng)
        return pixels.contiguous()

    return geometry


def _inception(recipe: Recipe, preprocessing: Preprocessing) -> Geometry:
    """TensorFlow's crop and its bilinear resize without antialiasing, truncated to uint8 where the preprocessing is.

    vision_transformer keeps the resized values as they are, big_vision truncates them; each does so in evaluation, too.
    """
    size = preprocessing.output_size
    truncate = any(isinstance(op, Uint8) for op in preprocessing.geometry_ops)

    def crop(image: Image.Image, rng: np.random.Generator, where: str) -> Tensor:
        top, left, height, width = inception_box(image.height, image.width, rng, recipe.crop_area, recipe.crop_aspect)
        pixels = to_tensor(image.crop((left, top, left + width, top + height)))
        resized = tf_resize(pixels, size, half_pixel_centers=True)
        return _truncated(resized) if truncate else resized

    return crop


def _random_resized(recipe: Recipe, preprocessing: Preprocessing) -> Geometry:
    """The crop of torchvision and Pillow's antialiased resize, by the interpolation of the preprocessing, else bilinear."""
    height, width = preprocessing.output_size
    resizes = [op for op in preprocessing.geometry_ops if isinstance(op, Resize)]
    interpolation = INTERPOLATIONS[resizes[-1].interpolation if resizes else "bilinear"]

    def crop(image: Image.Image, rng: np.random.Generator, where: str) -> Tensor:
        top, left, tall, wide = random_resized_box(image.height, image.width, rng, recipe.crop_area, recipe.crop_aspect)
        return to_tensor(image.crop((left, top, left + wide, top + tall)).resize((width, height), interpolation))

    return crop


def _resmall(recipe: Recipe, preprocessing: Preprocessing) -> Geometry:
    """big_vision's `resize_small` and a random crop out of that."""
    size = preprocessing.output_size
    short = recipe.resize or round(max(size) * _LARGER)
    _check_larger((short, short), size)

    def crop(image: Image.Image, rng: np.random.Generator, where: str) -> Tensor:
        tall, wide = small_size(image.height, image.width, short)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and tall * wide > limit:
            raise DataError(
                f"{where}: {image.width}x{image.height} pixels is too long and thin: with a short side of {short} it would "
                f"be {wide}x{tall}, more than Pillow's limit of {limit} pixels"
            )
        return _random_crop(resize_small(to_tensor(image), short), size, rng)

    return crop


def _resize(recipe: Recipe, preprocessing: Preprocessing) -> Geometry:
    """big_vision's `resize` to a larger square, and a random crop out of that."""
    size = preprocessing.output_size
    side = recipe.resize
    larger = (side, side) if side else (round(size[0] * _LARGER), round(size[1] * _LARGER))
    _check_larger(larger, size)

    def crop(image: Image.Image, rng: np.random.Generator, where: str) -> Tensor:
        resized = tf_resize(to_tensor(image), larger, half_pixel_centers=True)
        return _random_crop(_truncated(resized), size, rng)

    return crop


def _pad(recipe: Recipe, preprocessing: Preprocessing) -> Geometry:
    """The evaluation's geometry, a black border on every side (an eighth of the height by default), and a random crop."""
    size = preprocessing.output_size
    border = size[0] // 8 if recipe.pad is None else recipe.pad

    def crop(image: Image.Image, rng: np.random.Generator, where: str) -> Tensor:
        return _random_crop(pad(preprocessing.geometry(image, where), (border, border, border, border)), size, rng)

    return crop


def _none(recipe: Recipe, preprocessing: Preprocessing) -> Geometry:
    """The evaluation's geometry."""
    return lambda image, rng, where: preprocessing.geometry(image, where)


CROPS: dict[str, Callable[[Recipe, Preprocessing], Geometry]] = {
    "inception": _inception,
    "random_resized": _random_resized,
    "resmall": _resmall,
    "resize": _resize,
    "pad": _pad,
    "none": _none,
}


def _check_larger(larger: tuple[int, int], size: tuple[int, int]) -> None:
    if larger[0] < size[0] or larger[1] < size[1]:
        raise UsageError(
            f"the recipe's resize={larger[0]} is smaller than the {size[0]}x{size[1]} pixels that are cropped out of it: "
            f"give at least {max(size)}, or a smaller resolution"
        )


def _random_crop(pixels: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    top, left = crop_offset((pixels.shape[1], pixels.shape[2]), size, rng)
    return pixels[:, top : top + size[0], left : left + size[1]]


def _truncated(pixels: Tensor) -> Tensor:
    """float32 in 0..255 as uint8, as TensorFlow's cast does it; uint8 as it is."""
    return pixels if pixels.dtype == torch.uint8 else pixels.clamp(0, 255).to(torch.uint8)


def _rand_augment(text: str, preprocessing: Preprocessing) -> Callable[[Tensor, np.random.Generator], Tensor]:
    """RandAugment of timm on `[3, H, W]`; what moves into the image is filled with the mean of the normalisation.

    Raises:
        UsageError: timm cannot read the string, or would pass over a part of it.
    """
    kind, *sections = text.split("-")
    wrong = [section for section in sections if not _SECTION.fullmatch(section)]
    if kind != "rand" or wrong:
        part = f"its part '{wrong[0]}' is unknown" if wrong and kind == "rand" else "it does not begin with 'rand'"
        raise UsageError(f"randaugment '{text}': {part}; write timm's form, such as {EXAMPLE}")
    finish = preprocessing.finish_op
    mean = finish.mean if isinstance(finish, Normalize) else (0.5, 0.5, 0.5)
    fill = tuple(min(255, max(0, round(255 * value))) for value in mean)
    try:
        transform = rand_augment_transform(
            text, {"translate_const": int(min(preprocessing.output_size) * 0.45), "img_mean": fill}
        )
        with _seeded_globals(0):
            transform(Image.new("RGB", (8, 8)))  # more layers than a weighted choice has would fail only here
    except (AssertionError, KeyError, ValueError) as error:
        raise UsageError(f"randaugment '{text}' cannot be read by timm: write its form, such as {EXAMPLE}") from error

    def augment(pixels: Tensor, rng: np.random.Generator) -> Tensor:
        image = Image.fromarray(_truncated(pixels).permute(1, 2, 0).numpy())
        with _seeded_globals(int(rng.integers(1 << 32))):
            return to_tensor(transform(image))

    return augment


def batch_mixing(recipe: Recipe, num_classes: int) -> Mixup | None:
    """Mixup and cutmix of timm, for `mix`; None where the recipe has neither. Both: each half of the batches.

    Its targets hold the recipe's label smoothing already.
    """
    if not recipe.mixup and not recipe.cutmix:
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )


def mix(mixing: Mixup, pixels: Tensor, labels: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in reverse order; the draws are a function of `seed` and `step` alone.

    Args:
        mixing: Of `batch_mixing`.
        pixels: `[B, 3, H, W]` float32, normalised. They are overwritten.
        labels: `[B]` int64.
        seed: The run's.
        step: The batch's number.

    Returns:
        The pixels, and `[B, K]` float32 targets.

    Raises:
        UsageError: B is odd.
    """
    if len(pixels) % 2:
        raise UsageError(f"mixup and cutmix mix pairs, and a batch of {len(pixels)} is odd: use an even batch size")
    with _seeded_globals(_key(seed, 2, step)):
        mixed, targets = mixing(pixels, labels)
    return mixed, targets


def erase(probability: float, pixels: Tensor, *, seed: int, step: int) -> Tensor:
    """Random erasing of timm, by noise of mean 0 and deviation 1; the draws are a function of `seed` and `step` alone.

    Args:
        probability: That an image loses a rectangle, of 2 to 33 % of its area.
        pixels: `[B, 3, H, W]` float32, normalised, on any device. They are overwritten.
        seed: The run's.
        step: The batch's number.

    Returns:
        The pixels.
    """
    erasing = RandomErasing(probability, mode="pixel", device=pixels.device)  # type: ignore[no-untyped-call]
    devices = [pixels.device] if pixels.device.type == "cuda" else []
    key = _key(seed, 3, step)
    with _seeded_globals(key), torch.random.fork_rng(devices):
        torch.manual_seed(key)
        result: Tensor = erasing(pixels)
    return result


def _key(*words: int) -> int:
    """A seed of 32 bits that is a function of some whole numbers."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@contextmanager
def _seeded_globals(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators, seeded for a block and as they were after it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the generators that timm draws from
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
