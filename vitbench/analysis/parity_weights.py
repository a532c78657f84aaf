"""Which tensors of two models differ, by how much, and which parts one of them lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

POSITIONS = "pos_embed"
_RESIZE_TOLERANCE = 1e-5

# How the libraries resize a table of position embeddings: arguments of `interpolate`, on a grid as [1, D, G, G] float64.
_RESIZES: dict[str, dict[str, str | bool]] = {
    "bicubic, antialiased, as timm": {"mode": "bicubic", "antialias": True},
    "bicubic, as transformers": {"mode": "bicubic"},
    "bilinear with corners aligned, as the JAX code": {"mode": "bilinear", "align_corners": True},
    "bilinear, antialiased": {"mode": "bilinear", "antialias": True},
    "bilinear": {"mode": "bilinear"},
}


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that differs.

    Attributes:
        name: Its canonical name (see `vitbench.backbones.vit_names`), or its name in the state dict.
        largest: Largest absolute difference of an element; infinite where one of them is no number.
        relative: That over the largest absolute element of A's tensor.
        note: What the difference is, where that is plain: A rounded to half precision.
    """

    name: str
    largest: float
    relative: float
    note: str = ""


@dataclass(frozen=True)
class ShapeDifference:
    """A tensor of two shapes, A's and B's."""

    name: str
    a: tuple[int, ...]
    b: tuple[int, ...]


@dataclass(frozen=True)
class ResizedPositions:
    """A position embedding that is the other one's, resized.

    Attributes:
        a: Grid of A's table, patches per side.
        b: Grid of B's table.
        how: The resize that explains it.
        largest: Largest absolute difference that is left after it.
    """

    a: int
    b: int
    how: str
    largest: float

    def __str__(self) -> str:
        return (
            f"resized position embedding ({self.a}x{self.a} in A, {self.b}x{self.b} in B: {self.how}, "
            f"which leaves {self.largest:.1e})"
        )


@dataclass(frozen=True)
class Weights:
    """The weights of a pair of models.

    Attributes:
        compared: Number of tensors that both have.
        equal: Number of those that are equal in every element.
        different: Those of one shape that differ, the largest relative difference first.
        first: Name of the first tensor, in the order of the model, that differs in values or in shape; empty where none does.
        shapes: Those of two shapes that nothing explains.
        resized: The position embedding, where it is the other's, resized.
        only_a: Parts that only A has, with their numbers of tensors (`pooler`, `MAP head`, `blocks.12`).
        only_b: Parts that only B has.
    """

    compared: int
    equal: int
    first: str
    different: Sequence[TensorDifference]
    shapes: Sequence[ShapeDifference]
    resized: ResizedPositions | None
    only_a: Mapping[str, int]
    only_b: Mapping[str, int]

    @property
    def changed(self) -> list[str]:
        """The names of all tensors that differ in values or in shape."""
        return [*(item.name for item in self.different), *(item.name for item in self.shapes)]


def compare_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Weights:
    """Compare tensors of the same name.

    Args:
        a: Name to tensor, on the CPU; floating ones in float32.
        b: The same of the other model.
    """
    shared = [name for name in a if name in b]
    different: list[TensorDifference] = []
    shapes: list[ShapeDifference] = []
    resized: ResizedPositions | None = None
    for name in shared:
        one, other = a[name], b[name]
        if one.shape != other.shape:
            resized = resized or (find_resize(one, other) if name == POSITIONS else None)
            if name != POSITIONS or resized is None:
                shapes.append(ShapeDifference(name, tuple(one.shape), tuple(other.shape)))
        elif not torch.equal(one, other):
            different.append(_difference(name, one, other))
    changed = {item.name for item in different} | {item.name for item in shapes}
    different.sort(key=lambda item: (-item.relative, item.name))
    return Weights(
        compared=len(shared),
        equal=len(shared) - len(different) - len(shapes) - (resized is not None),
        first=next((name for name in shared if name in changed), ""),
        different=different,
        shapes=shapes,
        resized=resized,
        only_a=count_parts(name for name in a if name not in b),
        only_b=count_parts(name for name in b if name not in a),
    )


def _difference(name: str, a: Tensor, b: Tensor) -> TensorDifference:
    one, other = a.double(), b.double()
    largest, scale = float((one - other).abs().max()), float(one.abs().max())
    if largest != largest:
        return TensorDifference(name, float("inf"), float("inf"), "not all elements are numbers")
    return TensorDifference(name, largest, largest / scale if scale else float("inf"), _rounding(a, b))


def _rounding(a: Tensor, b: Tensor) -> str:
    """Whether one tensor is the other, stored in half precision: a copy of the model, and not another training."""
    if not a.is_floating_point():
        return ""
    for dtype in (torch.float16, torch.bfloat16):
        label = str(dtype).removeprefix("torch.")
        if torch.equal(a.to(dtype).float(), b):
            return f"B is A rounded to {label}"
        if torch.equal(b.to(dtype).float(), a):
            return f"A is B rounded to {label}"
    return ""


def count_parts(names: Iterator[str]) -> dict[str, int]:
    """Number of tensors per part of the model: `blocks.3`, `pooler`, `cls_token`."""
    parts: dict[str, int] = {}
    for name in names:
        match = re.match(r"blocks\.\d+", name)
        part = match[0] if match else name.split(".")[0]
        parts[part] = parts.get(part, 0) + 1
    return parts


def find_resize(a: Tensor, b: Tensor) -> ResizedPositions | None:
    """The resize of a table of position embeddings that turns one into the other, or None.

    Both directions are tried, the smaller table to the larger one first: a model is fine-tuned at a higher resolution more often
    than at a lower one.

    Args:
        a: `[1, G², D]`: a square grid row by row, without rows of prefix tokens, which are never interpolated.
        b: `[1, H², D]`.
    """
    if (
        a.ndim != 3
        or b.ndim != 3
        or a.shape[-1] != b.shape[-1]
        or not (_is_square(a.shape[1]) and _is_square(b.shape[1]))
    ):
        return None
    of_a, of_b = isqrt(a.shape[1]), isqrt(b.shape[1])
    small, large = (a, b) if of_a < of_b else (b, a)
    for old, new in ((small, large), (large, small)):
        scale = float(new.abs().max())
        for how, options in _RESIZES.items():
            left = float((_resize(old, isqrt(new.shape[1]), options) - new.double()).abs().max())
            if left <= _RESIZE_TOLERANCE * scale:
                return ResizedPositions(of_a, of_b, how, left)
    return None


def stored_grids(notes: Sequence[str]) -> list[int]:
    """The grids, patches per side, of the tables in the file, where a backbone's notes say that they were resized at load."""
    grids: list[int] = []
    for note in notes:
        if match := re.search(r"(\d+)x\1 (?:patches )?to \d+x\d+|from (\d+)x\2 to", note):
            grids.append(int(match[1] or match[2]))
        elif match := re.search(r"pos_embed \[\d+, (\d+), \d+\] resized", note):
            # Up to eight rows belong to prefix tokens (class, distillation, registers) and not to the grid.
            grids += [
                isqrt(rows) for rows in range(int(match[1]), int(match[1]) - 9, -1) if rows > 0 and _is_square(rows)
            ]
    return list(dict.fromkeys(grids))


def find_round_trip(a: Tensor, b: Tensor, grid: int) -> tuple[str, float] | None:
    """Whether B's table is A's, resized to another grid in the file and back at load; how, and the largest difference left.

    Args:
        a: `[1, G², D]`, without rows of prefix tokens.
        b: The same shape.
        grid: Patches per side of the table in B's file.
    """
    if a.shape != b.shape or not _is_square(a.shape[1]):
        return None
    own, scale = isqrt(a.shape[1]), float(b.abs().max())
    for first, there in _RESIZES.items():
        stored = _resize(a, grid, there).float()
        for second, back in _RESIZES.items():
            left = float((_resize(stored, own, back) - b.double()).abs().max())
            if left <= _RESIZE_TOLERANCE * scale:
                return f"stored at {grid}x{grid} ({first}), and resized back at load ({second})", left
    return None


def _is_square(number: int) -> bool:
    return isqrt(number) ** 2 == number


def _resize(table: Tensor, grid: int, options: Mapping[str, str | bool]) -> Tensor:
    """`[1, G², D]` to `[1, grid², D]` float64."""
    side = isqrt(table.shape[1])
    old = table.double().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    new = functional.interpolate(old, size=(grid, grid), **options)  # type: ignore[arg-type]
    return new.permute(0, 2, 3, 1).flatten(1, 2)
