"""Pictures of test images with what a classifier said of them: single tiles for a page, and one sheet of all."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vitbench.errors import DataError
from vitbench.reporting.diagnostics import Diagnostics, Examples
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Split, Task

SIDE = 160
COLUMNS = 6

_GAP, _MARGIN = 14, 20
_INK, _FAINT, _PAPER, _BLANK = "#111111", "#666666", "#ffffff", "#eeeeee"
_RIGHT, _WRONG = "#0072b2", "#d55e00"  # blue and vermilion, told apart by everyone; the mark in the caption says it too
_TITLE, _HEADING, _TEXT = 20, 16, 13


@dataclass(frozen=True)
class Tile:
    """One test image with its caption.

    Attributes:
        row: Its row in the test split.
        label: Name of its class.
        prediction: Name of the class that it was taken for.
        confidence: The estimated probability that this is right; None where it is not known.
        right: Whether it is.
        picture: The image, RGB, at most `SIDE` pixels high and wide; None where it cannot be read.
    """

    row: int
    label: str
    prediction: str
    confidence: float | None
    right: bool
    picture: Image.Image | None

    @property
    def caption(self) -> str:
        """`cat → dog, 93 %`: true class, predicted class, confidence."""
        sure = "" if self.confidence is None else f", {100 * self.confidence:.0f} %"
        return f"{self.label} → {self.prediction}{sure}"

    @property
    def png(self) -> bytes | None:
        """The picture as a PNG file; None where it cannot be read."""
        if self.picture is None:
            return None
        buffer = io.BytesIO()
        self.picture.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def task_of(path: Path, out: Path, place: str = "") -> Task:
    """Load the task that a record was scored on, from where its run found it. Nothing is fetched.

    Args:
        path: The record's JSON file.
        out: The output folder, whose saved configurations say where a folder of images or a task file lies.
        place: What the user calls the task now: `imagefolder:PATH` or a task file's path; empty for what the run called it.

    Raises:
        VitbenchError: The record is damaged, or its task's data cannot be found or is not what the task file says.
    """
    from vitbench.execution.replay import find_record, record_config
    from vitbench.hub import offline

    config = record_config(find_record(str(path), out), {"tasks": [place]} if place else {})
    with offline():
        return load_task(config.tasks[0], config.task_options)


def tiles(examples: Examples, names: Sequence[str], split: Split | None, side: int = SIDE) -> list[Tile]:
    """The tiles of some examples.

    Args:
        examples: Which images.
        names: Of the classes, in order of label.
        split: The test split that the examples' rows are of; None where its images cannot be had.
        side: Greatest height and width of a picture; a smaller image is enlarged by a whole factor without smoothing.
    """
    return [
        Tile(
            row=int(row),
            label=names[label],
            prediction=names[prediction],
            confidence=None if examples.confidence is None else float(examples.confidence[place]),
            right=bool(label == prediction),
            picture=_picture(split, int(row), side),
        )
        for place, (row, label, prediction) in enumerate(
            zip(examples.row, examples.label, examples.prediction, strict=True)
        )
    ]


def _picture(split: Split | None, row: int, side: int) -> Image.Image | None:
    """The stored image, not what a preprocessing makes of it; None where it cannot be read."""
    if split is None:
        return None
    try:
        image = split.image(row)
    except DataError:
        return None
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def sheet(diagnostics: Diagnostics, split: Split) -> Image.Image:
    """All examples of a diagnosis in one picture: the surest of the wrong ones, other wrong ones, right ones.

    Args:
        diagnostics: Of the records.
        split: Their test split.
    """
    shown = (diagnostics.confident, diagnostics.wrong, diagnostics.right)
    sections = [(examples, tiles(examples, diagnostics.class_names, split)) for examples in shown if len(examples.row)]
    width = 2 * _MARGIN + COLUMNS * (SIDE + _GAP) - _GAP
    title = list(_wrapped(diagnostics.title, width - 2 * _MARGIN, _TITLE))
    under = f"seed {diagnostics.seeds[0]}; true class → predicted class, estimated probability that it is right"
    tile_height = SIDE + 3 * _line(_TEXT) + _GAP
    tops = [_MARGIN + len(title) * _line(_TITLE) + _line(_TEXT) + _GAP]
    for _, section in sections:
        tops.append(tops[-1] + _line(_HEADING) + 4 + -(-len(section) // COLUMNS) * tile_height + _GAP)
    picture = Image.new("RGB", (width, tops[-1]), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, text in enumerate(title):
        draw.text((_MARGIN, _MARGIN + number * _line(_TITLE)), text, font=_font(_TITLE, bold=True), fill=_INK)
    draw.text((_MARGIN, _MARGIN + len(title) * _line(_TITLE)), under, font=_font(_TEXT), fill=_FAINT)
    for (examples, section), top in zip(sections, tops, strict=False):
        draw.text((_MARGIN, top), examples.title, font=_font(_HEADING, bold=True), fill=_INK)
        for place, tile in enumerate(section):
            row, column = divmod(place, COLUMNS)
            corner = (_MARGIN + column * (SIDE + _GAP), top + _line(_HEADING) + 4 + row * tile_height)
            _draw(picture, draw, corner, tile)
    return picture


def _draw(picture: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: Tile) -> None:
    left, top = corner
    draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=_BLANK)
    if tile.picture is None:
        centre = (left + SIDE / 2, top + SIDE / 2)
        draw.multiline_text(
            centre, f"unreadable\nrow {tile.row}", font=_font(_TEXT), fill=_FAINT, anchor="mm", align="center"
        )
    else:
        inside = (left + (SIDE - tile.picture.width) // 2, top + (SIDE - tile.picture.height) // 2)
        picture.paste(tile.picture, inside)
    colour = _RIGHT if tile.right else _WRONG
    draw.rectangle((left, top + SIDE, left + SIDE - 1, top + SIDE + 2), fill=colour)
    sure = "" if tile.confidence is None else f", {100 * tile.confidence:.0f} %"
    # The second line ends with the confidence, whatever the class is called.
    mark = "✓" if tile.right else "✗"
    room = SIDE - _font(_TEXT).getlength(f"→ {sure} {mark}")
    lines = [_fitted(tile.label, SIDE, _TEXT), f"→ {_fitted(tile.prediction, room, _TEXT)}{sure} {mark}"]
    for number, text in enumerate(lines):
        draw.text((left, top + SIDE + 5 + number * _line(_TEXT)), text, font=_font(_TEXT), fill=colour)


def _wrapped(text: str, room: float, size: int) -> Iterator[str]:
    """`text` in lines that fit, broken between its parts."""
    font, line = _font(size, bold=True), ""
    for part in text.split(" · "):
        longer = f"{line} · {part}" if line else part
        if line and font.getlength(longer) > room:
            yield _fitted(line, room, size, bold=True)
            longer = part
        line = longer
    yield _fitted(line, room, size, bold=True)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Pillow's own font has Latin letters only."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _line(size: int) -> int:
    return round(size * 1.35)


def _fitted(text: str, room: float, size: int, bold: bool = False) -> str:
    """`text` on one line, with its end replaced by an ellipsis where it is wider than `room` pixels."""
    font, text = _font(size, bold), " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    # The first length that is too long, by bisection: a name may have thousands of letters.
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "…") <= room else (low, middle - 1)
    return text[:low] + "…"
