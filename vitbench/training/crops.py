"""Random crops of a training image, as the reference implementations draw them.

A box is `(top, left, height, width)` in pixels and always lies inside the image. Every draw comes from the generator that is
passed in, so a box is a function of the generator's seed.

TensorFlow's and torchvision's "inception" crops are not the same distribution, although both are asked for 5 to 100 % of the
area and aspects of 3/4 to 4/3. TensorFlow draws the *height* uniformly, hence the side of the crop; torchvision draws the *area*
uniformly. On an image of 300 x 400 the mean share of the area is 0.343 there and 0.420 here.
"""

from __future__ import annotations

import math

import numpy as np

Box = tuple[int, int, int, int]
Range = tuple[float, float]

TENSORFLOW_ATTEMPTS = 100
TORCHVISION_ATTEMPTS = 10


def inception_box(
    height: int, width: int, rng: np.random.Generator, area: Range = (0.05, 1.0), aspect: Range = (3 / 4, 4 / 3)
) -> Box:
    """A box as TensorFlow's `sample_distorted_bounding_box` draws it when no object must be covered.

    Of up to 100 attempts the first that meets the limits is taken; if none does, the whole image is.

    Args:
        height: Of the image, in pixels.
        width: The same.
        rng: Where the draws come from.
        area: Least and greatest share of the image's area.
        aspect: Least and greatest width / height of the box.
    """
    least, most = area[0] * height * width, area[1] * height * width
    for _ in range(TENSORFLOW_ATTEMPTS):
        size = _inception_size(height, width, rng, least, most, rng.uniform(*aspect))
        if size is not None:
            # TensorFlow leaves the last position out: of H - h + 1 places for a box of height h, it draws among the first H - h.
            top, left = (int(rng.integers(gap)) if gap else 0 for gap in (height - size[0], width - size[1]))
            return top, left, *size
    return 0, 0, height, width


def _inception_size(
    height: int, width: int, rng: np.random.Generator, least: float, most: float, aspect: float
) -> tuple[int, int] | None:
    """Height and width of a box of one aspect, its area from `least` to `most` pixels; None where this aspect has none.

    A box of height h is round(h a) wide and so has the area a h^2: the heights for an area A are round(sqrt(A / a)), and h is
    uniform over the whole numbers between those of the least and the greatest area. `round` takes halves to the even number,
    as C's `lrintf` does.
    """
    lowest, highest = round(math.sqrt(least / aspect)), round(math.sqrt(most / aspect))
    if round(highest * aspect) > width:
        # The greatest h with round(h a) <= W: h a < W + 1/2.
        highest = int((width + 0.5 - 1e-7) / aspect)
        if round(highest * aspect) > width:
            highest -= 1
    highest = min(highest, height)
    lowest = min(lowest, highest)
    tall = lowest + int(rng.integers(highest - lowest + 1))
    wide = round(tall * aspect)
    # Rounding may have taken the area out of its limits: one row more, or one less, may bring it back.
    if tall * wide < least:
        tall += 1
        wide = round(tall * aspect)
    if tall * wide > most:
        tall -= 1
        wide = round(tall * aspect)
    fits = 0 < tall <= height and 0 < wide <= width and least <= tall * wide <= most
    return (tall, wide) if fits else None


def random_resized_box(
    height: int, width: int, rng: np.random.Generator, area: Range = (0.08, 1.0), aspect: Range = (3 / 4, 4 / 3)
) -> Box:
    """A box as torchvision's `RandomResizedCrop` draws it: the area uniform, the logarithm of the aspect uniform.

    Of up to 10 attempts the first that fits into the image is taken; if none does, the largest central box whose aspect is
    within the limits.

    Args:
        height: Of the image, in pixels.
        width: The same.
        rng: Where the draws come from.
        area: Least and greatest share of the image's area.
        aspect: Least and greatest width / height of the box.
    """
    lowest, highest = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(TORCHVISION_ATTEMPTS):
        target, ratio = height * width * rng.uniform(*area), math.exp(rng.uniform(lowest, highest))
        wide, tall = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return *crop_offset((height, width), (tall, wide), rng), tall, wide
    tall, wide = height, width
    if width / height < aspect[0]:
        tall = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        wide = max(1, round(height * aspect[1]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def crop_offset(size: tuple[int, int], wanted: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a crop of size `wanted`, uniform over all places in an image of size `size` (height, width)."""
    return int(rng.integers(size[0] - wanted[0] + 1)), int(rng.integers(size[1] - wanted[1] + 1))
