"""Scenes of coloured shapes, rendered on the fly: `count`, `x_position`, `orientation` and `size`, in 16 classes each.

A task is rows of an endless stream. Row i of a seed is the same image everywhere and always: its numbers are taken from the raw
words of PCG64, which NumPy promises never to change (it does not promise so of `Generator.uniform` and its like), its shapes are
polygons whose corners are rounded to 1/64 pixel, and every pixel is decided in whole numbers after that.

As in dSprites the factor takes more values than there are classes, and label = floor(value / by): 32 positions and 32 sizes by 2,
40 orientations by 2.5. Labels are balanced: of the rows 16 b to 16 b + 15 each has another label, in an order of its own; the
value is drawn from those of its label. Everything else in a scene is drawn from other words than the label, and so tells nothing
of it but what geometry compels (more shapes cover more).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitbench.errors import DataError
from vitbench.tasks.source_spec import SyntheticSource
from vitbench.tasks.sources.rows import IntArray, Rows, text_digest
from vitbench.tasks.spec import TaskSpec

RENDERER = 1
"""Part of every fingerprint: another number whenever a pixel or a label of any scene changes."""

NUM_CLASSES = 16
MOST_ROWS = 1_000_000

FloatArray = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

# Lengths are in pixels of an image of side 64; other sides are scaled.
CANVAS = 64.0
MARGIN = 4.0  # free of shapes on every side: the central crop to 7/8 that many backbones ask for cuts none
GRID = 5  # cells along each side within the margin; each holds at most one shape of a counted scene
CELL = (CANVAS - 2 * MARGIN) / GRID
CELL_GAP = 0.4  # between a shape and the edge of its cell

_UNIT = 64  # corners are rounded to 1/64 pixel
_SAMPLES = 4  # along each side of a pixel: 16 samples, 17 levels of cover
_STEP = _UNIT // _SAMPLES


@dataclass(frozen=True)
class Factor:
    """What one kind of scene varies.

    Attributes:
        number: Separates the random words of this kind from those of the others.
        values: How many values the factor takes, 0 to `values` - 1.
        by: Label = floor(value / by).
        outlines: The shapes that it draws from.
        sizes: Range of the shapes' sizes (square root of the area), in pixels of 64.
        places: Range of their centres' coordinates, in pixels of 64; not used by `count`, which has cells.
    """

    number: int
    values: int
    by: float
    outlines: tuple[str, ...]
    sizes: tuple[float, float]
    places: tuple[float, float] = (0.0, 0.0)

    def label(self, value: IntArray) -> IntArray:
        """The labels of values, as dSprites' are made."""
        return np.floor(value / self.by).astype(np.int64)


_PLAIN = ("ellipse", "square", "triangle", "heart")
_POINTED = ("heart", "drop", "arrow")  # one axis of symmetry, no rotation: each has a tip that says where it points

# A shape of size s reaches at most 0.88 s from its centre, a pointed one 0.91 s (`reach`): the margin stays free.
FACTORS: dict[str, Factor] = {
    "count": Factor(0, 16, 1, _PLAIN, (3.4, 5.2)),
    "x_position": Factor(1, 32, 2, _PLAIN, (7.0, 11.0), (14.0, 50.0)),
    "orientation": Factor(2, 40, 2.5, _POINTED, (14.0, 20.0), (24.0, 40.0)),
    "size": Factor(3, 32, 2, _PLAIN, (6.0, 26.0), (27.0, 37.0)),
}


@dataclass(frozen=True)
class Shape:
    """One shape of a scene; lengths in pixels of 64.

    Attributes:
        outline: Its name.
        x: Centre of area, from the left border.
        y: Centre of area, from the top.
        size: Square root of the area, so that all outlines of one size cover as much.
        angle: In radians, counter-clockwise from the right: where the tip points.
        colour: Red, green, blue, 0 to 255.
    """

    outline: str
    x: float
    y: float
    size: float
    angle: float
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """What there is to see in one row.

    Attributes:
        shapes: They never overlap.
        ground: Colour of the background in the middle of the image.
        slope: By how many levels the background brightens from left to right and from top to bottom.
        noise: Each channel of each pixel is off by -noise to noise levels.
    """

    shapes: tuple[Shape, ...]
    ground: tuple[int, int, int]
    slope: tuple[int, int]
    noise: int


def read_synthetic(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read a range of rows of a stream of rendered scenes. Labels are known without rendering; an image is rendered when read.

    Raises:
        DataError: The split has no rows, or too many.
    """
    source = spec.source
    assert isinstance(source, SyntheticSource)
    rows = spec.splits[split].rows
    if rows is None:
        raise DataError(
            f"split '{split}': rows are missing: a synthetic stream has no end, so say which rows, such as rows: [0, 4000]"
        )
    start, stop = rows
    if not 0 <= start < stop:
        raise DataError(f"split '{split}': rows {start} to {stop} are none: write first row and row after the last")
    if stop - start > MOST_ROWS:
        raise DataError(f"split '{split}': {stop - start:,} rows are more than the {MOST_ROWS:,} that a split may have")
    factor, seed, side = source.factor, source.seed, source.side
    labels = FACTORS[factor].label(factor_values(factor, seed, start, stop))
    identity = f"{factor} seed={seed} side={side} rows={start}:{stop} renderer={RENDERER}"
    return Rows(
        labels=labels,
        class_names=class_names(factor, side),
        fingerprint=text_digest(["synthetic", identity, hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()]),
        raw=lambda row: render(factor, seed, start + row, side),
        where=lambda row: f"row {row} (scene {start + row} of synthetic {factor}, seed {seed})",
    )


def factor_values(factor: str, seed: int, start: int, stop: int) -> IntArray:
    """The values of the factor in rows `start` to `stop` - 1.

    Returns:
        `[stop - start]` int64, 0 to `FACTORS[factor].values` - 1.
    """
    kind = FACTORS[factor]
    every = np.arange(kind.values)
    members = [every[kind.label(every) == label] for label in range(NUM_CLASSES)]
    first, last = start // NUM_CLASSES, (stop - 1) // NUM_CLASSES
    values = []
    for block in range(first, last + 1):
        words = _words(kind, seed, 0, block, 2 * NUM_CLASSES)
        order = np.argsort(words[:NUM_CLASSES], kind="stable")
        picks = _fractions(words[NUM_CLASSES:])
        values += [members[label][int(pick * len(members[label]))] for label, pick in zip(order, picks, strict=True)]
    offset = start - first * NUM_CLASSES
    return np.array(values[offset : offset + stop - start], dtype=np.int64)


def class_names(factor: str, side: int = 64) -> tuple[str, ...]:
    """The names of the classes, in order of label: what range of the factor each covers, in pixels of the image or degrees."""
    kind = FACTORS[factor]
    every = np.arange(kind.values)
    ends = [every[kind.label(every) == label][[0, -1]].tolist() for label in range(NUM_CLASSES)]
    if factor == "count":
        return tuple(f"{low + 1} shape{'s' if low else ''}" for low, _ in ends)
    if factor == "orientation":
        return tuple(f"{low * 360 // kind.values} to {high * 360 // kind.values} degrees" for low, high in ends)
    at, name = (_position, "x") if factor == "x_position" else (_size, "size")
    scale = side / CANVAS
    return tuple(f"{name} {at(low) * scale:.2f} to {at(high) * scale:.2f} px" for low, high in ends)


def scene(factor: str, seed: int, row: int) -> Scene:
    """What there is to see in one row: a function of its arguments alone."""
    kind = FACTORS[factor]
    value = int(factor_values(factor, seed, row, row + 1)[0])
    words = _words(kind, seed, 1, row, 7 + GRID * GRID + 9 * NUM_CLASSES)
    setting = _fractions(words[:7])
    details = _fractions(words[7 + GRID * GRID :]).reshape(NUM_CLASSES, 9)
    if factor == "count":
        cells = np.argsort(words[7 : 7 + GRID * GRID], kind="stable")[: value + 1]
        # Sizes that were independent would average out, and the area alone would tell the count.
        details[:, 3] = 0.75 * setting[6] + 0.25 * details[:, 3]
        shapes = [_shape_in_cell(kind, int(cell), detail) for cell, detail in zip(cells, details, strict=False)]
    else:
        shapes = [_single_shape(factor, value, details[0])]
    return Scene(
        shapes=tuple(shapes),
        ground=_levels(setting[:3], 15, 70),
        slope=(_between(setting[3], -30, 30), _between(setting[4], -30, 30)),
        noise=_between(setting[5], 0, 8),
    )


def render(factor: str, seed: int, row: int, side: int = 64) -> Pixels:
    """Render one row. May be called from several threads.

    Args:
        factor: `count`, `x_position`, `orientation` or `size`.
        seed: Seed of the stream.
        row: Row of the stream, 0 or more.
        side: Height and width of the image, in pixels.

    Returns:
        `[side, side, 3]` uint8.
    """
    content = scene(factor, seed, row)
    # Twice the distance from the middle, so that it is whole: -(side - 1), ..., side - 1.
    ramp = 2 * np.arange(side) - (side - 1)
    across, down = content.slope
    slope = (across * ramp[None, :] + down * ramp[:, None]) // (2 * (side - 1))
    canvas = slope[:, :, None] + np.array(content.ground)
    for shape in content.shapes:
        top, left, cover = _cover(_corners(shape, side), side)
        part = canvas[top : top + cover.shape[0], left : left + cover.shape[1]]
        full = _SAMPLES * _SAMPLES
        part[...] = (part * (full - cover[:, :, None]) + np.array(shape.colour) * cover[:, :, None]) // full
    words = _words(FACTORS[factor], seed, 2, row, -(-side * side * 3 // 8))
    octets = words.astype("<u8").view(np.uint8)[: side * side * 3].reshape(canvas.shape).astype(np.int64)
    # floor(octet (2 n + 1) / 256) runs over 0 to 2 n.
    noise = (octets * (2 * content.noise + 1) >> 8) - content.noise
    return np.asarray(np.clip(canvas + noise, 0, 255), dtype=np.uint8)


def _words(kind: Factor, seed: int, purpose: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    """Random words that belong to one row (or block of rows) and one purpose: 0 labels, 1 scene, 2 noise."""
    sequence = np.random.SeedSequence(seed, spawn_key=(kind.number, purpose, index))
    return np.asarray(np.random.PCG64(sequence).random_raw(count), dtype=np.uint64)


def _fractions(words: npt.NDArray[np.uint64]) -> FloatArray:
    """Words as numbers of [0, 1): their upper 53 bits, which a float64 holds exactly."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _between(fraction: float, low: int, high: int) -> int:
    """A fraction of [0, 1) as one of the whole numbers `low` to `high`."""
    return low + int(fraction * (high - low + 1))


def _levels(fractions: FloatArray, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = (_between(fraction, low, high) for fraction in fractions.tolist())
    return red, green, blue


def _position(value: int) -> float:
    """The centre of x position `value`: 32 of them, evenly spaced."""
    low, high = FACTORS["x_position"].places
    return low + (high - low) * value / (FACTORS["x_position"].values - 1)


def _size(value: int) -> float:
    """The size of step `value`: 32 of them, each larger than the one before by the same factor."""
    low, high = FACTORS["size"].sizes
    return float(low * (high / low) ** (value / (FACTORS["size"].values - 1)))


def _single_shape(factor: str, value: int, detail: FloatArray) -> Shape:
    """The shape of a scene that has one: `value` decides the factor, `detail` all the rest."""
    kind = FACTORS[factor]
    (low, high), (smallest, largest) = kind.places, kind.sizes
    return Shape(
        outline=_outline(kind, detail),
        x=_position(value) if factor == "x_position" else low + (high - low) * float(detail[1]),
        y=low + (high - low) * float(detail[2]),
        size=_size(value) if factor == "size" else smallest + (largest - smallest) * float(detail[3]),
        angle=math.tau * (value / kind.values if factor == "orientation" else float(detail[4])),
        colour=_colour(detail),
    )


def _shape_in_cell(kind: Factor, cell: int, detail: FloatArray) -> Shape:
    """One of many shapes: anywhere in its cell where it leaves the gap to the cell's edge, so that no two can touch."""
    smallest, largest = kind.sizes
    outline = _outline(kind, detail)
    size = smallest + (largest - smallest) * float(detail[3])
    free = CELL / 2 - CELL_GAP - size * reach(outline)
    row, column = divmod(cell, GRID)
    return Shape(
        outline=outline,
        x=MARGIN + (column + 0.5) * CELL + free * (2 * float(detail[1]) - 1),
        y=MARGIN + (row + 0.5) * CELL + free * (2 * float(detail[2]) - 1),
        size=size,
        angle=math.tau * float(detail[4]),
        colour=_colour(detail),
    )


def _outline(kind: Factor, detail: FloatArray) -> str:
    return kind.outlines[_between(float(detail[0]), 0, len(kind.outlines) - 1)]


def _colour(detail: FloatArray) -> tuple[int, int, int]:
    """A colour that is brighter than every background in each channel, and bright in one of them."""
    levels = list(_levels(detail[6:9], 110, 255))
    levels[_between(float(detail[5]), 0, 2)] = 255
    return levels[0], levels[1], levels[2]


def reach(outline: str) -> float:
    """How far an outline of size 1 reaches from its centre."""
    return float(np.hypot(*_outlines()[outline].T).max())


@cache
def _outlines() -> dict[str, FloatArray]:
    """Each outline's corners, `[E, 2]`, x to the right, y up: area 1, centre of area at 0, tip (if any) to the right."""
    turn = np.arange(48) * (math.tau / 48)
    # The usual heart curve, x = 16 sin^3 t and y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, turned until its tip is on the right.
    heart = np.stack(
        [-(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)), 16 * np.sin(turn) ** 3],
        axis=1,
    )
    # The tangents from (2, 0) touch the unit circle at 60 degrees, since cos 60 = 1 / 2.
    arc = np.linspace(math.pi / 3, 2 * math.pi - math.pi / 3, 33)
    corners = {
        "ellipse": np.stack([1.5 * np.cos(turn), np.sin(turn)], axis=1),
        "square": np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]),
        "triangle": np.array([[2, 0], [-1, math.sqrt(3)], [-1, -math.sqrt(3)]]),
        "heart": heart,
        "drop": np.concatenate([[[2.0, 0.0]], np.stack([np.cos(arc), np.sin(arc)], axis=1)]),
        "arrow": np.array([[3, 0], [0.5, 2.2], [0.5, 0.9], [-2.5, 0.9], [-2.5, -0.9], [0.5, -0.9], [0.5, -2.2]]),
    }
    return {name: _normalised(points.astype(np.float64)) for name, points in corners.items()}


def _normalised(points: FloatArray) -> FloatArray:
    """A polygon moved and scaled to centre of area 0 and area 1.

    With c_i = x_i y_{i+1} - x_{i+1} y_i (the shoelace formula), area = sum c_i / 2 and
    centre = sum (p_i + p_{i+1}) c_i / (6 area).
    """
    after = np.roll(points, -1, axis=0)
    cross = points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]
    area = cross.sum() / 2
    centre = ((points + after) * cross[:, None]).sum(axis=0) / (6 * area)
    return np.asarray((points - centre) / math.sqrt(abs(area)), dtype=np.float64)


def _corners(shape: Shape, side: int) -> IntArray:
    """The corners of a shape in an image, `[E, 2]` int64: x and y in 1/64 pixel, y down."""
    cosine, sine = math.cos(shape.angle), math.sin(shape.angle)
    # Counter-clockwise for the eye, whose y points up, while rows are counted downwards.
    turned = _outlines()[shape.outline] @ np.array([[cosine, -sine], [sine, cosine]])
    placed = (turned * shape.size + [shape.x, shape.y]) * (side / CANVAS)
    return np.asarray(np.rint(placed * _UNIT), dtype=np.int64)


def _cover(corners: IntArray, side: int) -> tuple[int, int, IntArray]:
    """How much of each pixel a polygon covers, by 4 x 4 samples, in whole numbers.

    A sample is inside when an odd number of edges crosses its line to the left of it. An edge from (x0, y0) to (x1, y1), y0 < y1,
    crosses the line y for y0 <= y < y1 at x = x0 + (y - y0)(x1 - x0)/(y1 - y0); the first sample at or right of it has the column
    ceil((x - step/2) / step). Flipping there, and summing along the line, leaves the parity in every sample.

    Args:
        corners: `[E, 2]` int64, x and y in 1/64 pixel.
        side: Height and width of the image, in pixels.

    Returns:
        Top row and left column of the part of the image that it touches, and `[h, w]` int64, 0 to 16.
    """
    left, top = np.clip(corners.min(axis=0) // _UNIT, 0, side)
    right, bottom = np.clip(-(-corners.max(axis=0) // _UNIT), 0, side)
    height, width = int(bottom - top) * _SAMPLES, int(right - left) * _SAMPLES
    start = corners - np.array([left, top]) * _UNIT
    end = np.roll(start, -1, axis=0)
    upwards = (start[:, 1] > end[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(upwards, end, start).T[:, :, None], np.where(upwards, start, end).T[:, :, None]
    line = np.arange(height)[None, :] * _STEP + _STEP // 2
    rise = np.maximum(y1 - y0, 1)  # an edge along a line crosses none; 1 only keeps the division defined
    crossing = (line - y0) * (x1 - x0) + (x0 - _STEP // 2) * rise
    column = np.clip(-(-crossing // (rise * _STEP)), 0, width)
    edge, row = np.nonzero((y0 <= line) & (line < y1))
    flips = np.bincount(row * (width + 1) + column[edge, row], minlength=height * (width + 1))
    inside = np.cumsum(flips.reshape(height, width + 1), axis=1)[:, :width] & 1
    blocks = inside.reshape(height // _SAMPLES, _SAMPLES, width // _SAMPLES, _SAMPLES)
    return int(top), int(left), blocks.sum(axis=(1, 3)).astype(np.int64)
