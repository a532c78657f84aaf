"""TensorFlow's resize by area, and big_vision's `resize_small`, which is made of it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def small_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width of an image whose short side becomes `short` pixels, as big_vision's `resize_small` rounds them.

    The factor and the products are float32 and halves go to the even number, as in TensorFlow.
    """
    factor = np.float32(short) / np.float32(min(height, width))
    return int(np.round(np.float32(height) * factor)), int(np.round(np.float32(width) * factor))


def resize_small(pixels: Tensor, short: int) -> Tensor:
    """Resize the short side to `short` by TensorFlow's area method and truncate, as big_vision's `resize_small` does.

    Args:
        pixels: `[3, H, W]` uint8.
        short: Length of the short side of the result, in pixels.

    Returns:
        `[3, h, w]` uint8, its memory layout channels last.
    """
    size = small_size(int(pixels.shape[1]), int(pixels.shape[2]), short)
    return area_resize(pixels, size).clamp_(0, 255).to(torch.uint8)


def area_resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean over the part of the image that each output pixel covers, border pixels by the share that is covered.

    This is TensorFlow's `tf.image.resize(method="area")`, in its order of operations and in float32 (`resize_area_op.cc`).
    `F.interpolate(mode="area")` is another method: it takes border pixels in whole, which at ratios that are no whole number
    differs by as much as 168 of 255 levels on noise.

    Args:
        pixels: `[C, H, W]` uint8 or float32, in any memory layout; channels last is fastest.
        size: Height and width to make, in pixels.

    Returns:
        `[C, *size]` float32, in the range of `pixels`; its memory layout is channels last.
    """
    channels, height, width = pixels.shape
    # The covered part is a rectangle, so its weights are a product of one along y and one along x: first each row's sum along
    # x, then the sum of rows, then once the division by the area, all as two sparse matrices with few entries in a row.
    columns = pixels.permute(2, 1, 0).to(torch.float32).numpy().reshape(width, height * channels)
    across = (_coverage(width, size[1]) @ columns).reshape(size[1], height, channels)
    rows = np.ascontiguousarray(across.transpose(1, 0, 2)).reshape(height, size[1] * channels)
    scale = np.float32(height) / np.float32(size[0]) * (np.float32(width) / np.float32(size[1]))
    result = (_coverage(height, size[0]) @ rows) * np.float32(1 / float(scale))
    return torch.from_numpy(result.reshape(*size, channels)).permute(2, 0, 1)


@lru_cache(maxsize=64)
def _coverage(old: int, new: int) -> Any:
    """`[new, old]` sparse float32: how much of input pixel j lies within output pixel i, in input pixels.

    With s = old / new, output pixel i covers [i s, (i + 1) s), and so max(0, min(j + 1, (i + 1) s) - max(j, i s)) of input
    pixel j. Ends and shares are float32, as in TensorFlow; where rounding takes an end beyond the last pixel, that pixel counts.
    """
    from scipy import sparse  # a tenth of a second, which a run that embeds nothing need not wait for

    scale = np.float32(old) / np.float32(new)
    index = np.arange(new, dtype=np.float32)
    begin, end = index * scale, (index + np.float32(1)) * scale
    first, stop = np.floor(begin).astype(np.int64), np.ceil(end).astype(np.int64)
    counts = stop - first
    starts = np.concatenate([[0], np.cumsum(counts)])
    column = np.arange(starts[-1]) - np.repeat(starts[:-1] - first, counts)
    left, right = np.repeat(begin, counts), np.repeat(end, counts)
    left_edge = column.astype(np.float32)
    right_edge = left_edge + np.float32(1)
    inside = np.where(right_edge > right, scale, right_edge - left)
    share = np.where(left_edge < left, inside, np.where(right_edge > right, right - left_edge, np.float32(1)))
    return sparse.csr_matrix((share.astype(np.float32), np.clip(column, 0, old - 1), starts), shape=(new, old))
