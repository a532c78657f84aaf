"""Position embeddings resized as JAX does: `positions=jax` in a backbone spec."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from vitbench.errors import WeightsError

Grid = tuple[int, int]
"""Rows and columns of patches."""


def resize_positions(table: Tensor, grid: int | Grid, prefix: int) -> Tensor:
    """Resize a position embedding to another grid as `vit_jax` and big_vision do.

    They call `scipy.ndimage.zoom` with order 1, which maps the corners of one grid onto those of the other: bilinear
    interpolation with `align_corners=True`, computed in float64. The rows of class tokens are kept as they are.

    Args:
        table: `[1, rows, D]`, rows of a square grid row by row, after those of class tokens where there are any.
        grid: Patches of the result: its rows and columns, or one number for both.
        prefix: Number of rows for tokens that are not patches, at the front.

    Returns:
        `[1, prefix + rows * columns of grid, D]`, dtype of `table`.

    Raises:
        WeightsError: The rows are no square grid.
    """
    special, patches = table[:, :prefix], table[:, prefix:]
    side = isqrt(patches.shape[1])
    if side**2 != patches.shape[1]:
        raise WeightsError(f"a table of {patches.shape[1]} position embeddings is no square grid: it cannot be resized")
    size = (grid, grid) if isinstance(grid, int) else grid
    old = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).double()
    new = functional.interpolate(old, size=size, mode="bilinear", align_corners=True)
    return torch.cat([special, new.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def resize_note(old: Grid, new: Grid) -> str:
    """What `resize_positions` did, as a line for `Backbone.provenance_notes`."""
    note = (
        f"position embeddings resized from {old[0]}x{old[1]} to {new[0]}x{new[1]} "
        "(bilinear, corners aligned, as scipy.ndimage.zoom)"
    )
    if any(scipy_zeroes_the_edge(*sides) for sides in zip(old, new, strict=True)):
        note += "; scipy itself would set the last row and column to 0 here, by a rounding fault that is not copied"
    return note


def scipy_zeroes_the_edge(old: int, new: int) -> bool:
    """Whether `scipy.ndimage.zoom` sets the last row and column to 0 when it resizes `old` cells to `new`.

    It samples at k * (old - 1) / (new - 1). Where the product for the last k rounds to more than old - 1, scipy takes the sample
    to lie outside and fills in 0: a fault (for 24 to 42, or 32 to 16) that is not reproduced here.
    """
    return new > 1 and (new - 1) * ((old - 1) / (new - 1)) > old - 1


def named_architecture(architecture: str) -> str:
    """The name of an architecture whose position embeddings were resized so; the library's way, the default, is not named."""
    return f"{architecture},positions=jax"
