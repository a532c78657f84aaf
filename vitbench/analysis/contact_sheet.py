"""A picture of a task: the first images of each class, as a backbone will see them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitbench.errors import DataError, UsageError
from vitbench.records.atomic import write_bytes
from vitbench.tasks import transforms
from vitbench.tasks.task import Split, Task
from vitbench.tasks.transforms import Preprocessing

DEFAULT = "resize(256,bicubic)|center_crop(224)|value_range(0,1)"
SIDE = 224
MOST_CLASSES = 50
TASK = "task"

_GAP, _MARGIN, _BLOCK_GAP, _SPLIT_GAP = 4, 20, 28, 16
_INK, _FAINT, _PAPER, _BLANK, _BROKEN = "#111111", "#666666", "#ffffff", "#eeeeee", "#b00020"
_TITLE, _TEXT, _SMALL = 24, 15, 12


@dataclass(frozen=True)
class Layout:
    """How a sheet is laid out, in pixels.

    Attributes:
        classes: Number of classes shown, the first ones.
        blocks: Columns of classes.
        tile: Height and width of the square that an image is drawn in.
        shares: Images of each class, split by split.
        label: Width of the column of class names.
    """

    classes: int
    blocks: int
    tile: int
    shares: tuple[int, ...]
    label: int

    @classmethod
    def of(cls, num_classes: int, splits: int) -> Layout:
        """Large tiles for few classes, small ones in two columns for many."""
        many = num_classes > 16
        both = (3, 2) if many else (5, 3)
        shares = both if splits > 1 else (sum(both),)
        return cls(min(num_classes, MOST_CLASSES), 2 if many else 1, 96 if many else 128, shares, 130 if many else 160)

    @property
    def rows(self) -> int:
        """Classes one below the other."""
        return -(-self.classes // self.blocks)

    def split_x(self, place: int) -> int:
        """Where the images of a split begin, from the left of their block."""
        before = sum(self.shares[:place])
        return self.label + before * (self.tile + _GAP) + place * _SPLIT_GAP

    @property
    def block_width(self) -> int:
        """Width of a column of classes."""
        return self.split_x(len(self.shares)) - _SPLIT_GAP - _GAP


def sheet_preprocessing(task: Task, preprocess: str = "", backbone: str = "", device: str = "cpu") -> Preprocessing:
    """How the images of a sheet are prepared.

    Args:
        task: The task, whose own preset is the default.
        preprocess: A preset, a preprocessing string, or `task` for the task's preset.
        backbone: Spec of a backbone: its own preprocessing unless `preprocess` says otherwise, at its own size.
        device: Where the backbone is loaded.

    Raises:
        UsageError: The preprocessing or the spec cannot be read, or the task names no preset.
        WeightsError: The backbone's weights are missing or damaged.
    """
    if preprocess == TASK and not task.spec.preprocess:
        raise UsageError(f"task '{task.name}' names no preprocessing: leave out --preprocess, or give a preset")
    asked = task.spec.preprocess if preprocess == TASK else preprocess
    if backbone:
        from vitbench.features.load import load_backbone, preprocessing_of

        return preprocessing_of(load_backbone(backbone, device=device), asked or "auto")
    asked = asked or task.spec.preprocess or "auto"
    if "|" in asked or "(" in asked:
        return transforms.parse(asked)
    half = (0.5, 0.5, 0.5)
    return transforms.resolve(asked, DEFAULT, (SIDE, SIDE), half, half)


def write_sheet(task: Task, splits: Sequence[str], preprocessing: Preprocessing, path: Path) -> None:
    """Draw the sheet of a task and write it as PNG, whole or not at all.

    Raises:
        StoreError: It cannot be written.
    """
    buffer = io.BytesIO()
    contact_sheet(task, [task.split(name) for name in splits], preprocessing).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def contact_sheet(task: Task, splits: Sequence[Split], preprocessing: Preprocessing) -> Image.Image:
    """Draw the first images of each class, those of the first split on the left, those of the second on the right.

    What is drawn is the result of the preprocessing's geometry, which is what a backbone sees but for the normalisation. Results
    that are smaller than a tile are enlarged by a whole factor without smoothing.

    Args:
        task: The task.
        splits: Its splits; the first two are drawn.
        preprocessing: How an image becomes pixels.
    """
    splits = splits[:2]
    layout = Layout.of(task.num_classes, len(splits))
    header = _header(task, splits, preprocessing, layout)
    width = max(
        _MARGIN * 2 + layout.blocks * layout.block_width + (layout.blocks - 1) * _BLOCK_GAP,
        _MARGIN * 2 + max(int(font.getlength(text)) for text, font, _ in header),
    )
    top = _MARGIN + sum(_line_height(font) for _, font, _ in header) + 10
    body = top + _line_height(_font(_TEXT)) + 4
    height = body + layout.rows * (layout.tile + _GAP) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for text, font, colour in header:
        draw.text((_MARGIN, y), text, font=font, fill=colour)
        y += _line_height(font)
    for block in range(layout.blocks):
        left = _MARGIN + block * (layout.block_width + _BLOCK_GAP)
        for place, split in enumerate(splits):
            room = layout.shares[place] * (layout.tile + _GAP) - _GAP
            draw.text(
                (left + layout.split_x(place), top), _fitted(split.name, room, _TEXT), font=_font(_TEXT), fill=_FAINT
            )
    for label in range(layout.classes):
        block, row = divmod(label, layout.rows)
        corner = (_MARGIN + block * (layout.block_width + _BLOCK_GAP), body + row * (layout.tile + _GAP))
        _draw_class(sheet, draw, corner, label, task, splits, preprocessing, layout)
    return sheet


def _header(
    task: Task, splits: Sequence[Split], preprocessing: Preprocessing, layout: Layout
) -> list[tuple[str, ImageFont.FreeTypeFont, str]]:
    title = task.spec.title
    name = task.name if task.name.endswith(f"/{title}") else f"{task.name} · {title}"
    name += " (synthetic)" if task.spec.synthetic and "synthetic" not in title.lower() else ""
    shown = (
        f"all {layout.classes}"
        if layout.classes == task.num_classes
        else f"the first {layout.classes} of {task.num_classes:,}"
    )
    height, width = preprocessing.output_size
    sizes = ", ".join(f"{split.name} {len(split):,}" for split in splits)
    return [
        (name, _font(_TITLE, bold=True), _INK),
        (
            f"the first images of {shown} classes, {width}×{height} pixels after preprocessing; {sizes} images",
            _font(_TEXT),
            _INK,
        ),
        (str(preprocessing), _font(_TEXT), _FAINT),
    ]


def _draw_class(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    label: int,
    task: Task,
    splits: Sequence[Split],
    preprocessing: Preprocessing,
    layout: Layout,
) -> None:
    left, top = corner
    name = task.class_names[label] if label < len(task.class_names) else str(label)
    y = top
    for line in _wrapped(name, layout.label - 12, _TEXT, most=3):
        draw.text((left, y), line, font=_font(_TEXT), fill=_INK)
        y += _line_height(_font(_TEXT))
    if name != str(label):
        draw.text((left, y), f"class {label}", font=_font(_SMALL), fill=_FAINT)
    for place, split in enumerate(splits):
        rows = np.flatnonzero(split.labels == label)[: layout.shares[place]]
        x = left + layout.split_x(place)
        if not len(rows):
            draw.text((x, top), "no image", font=_font(_SMALL), fill=_BROKEN)
        for row in rows.tolist():
            sheet.paste(_tile(split, row, preprocessing, layout.tile), (x, top))
            x += layout.tile + _GAP


def _tile(split: Split, row: int, preprocessing: Preprocessing, side: int) -> Image.Image:
    """An image as it will be seen, in a square; a crossed one for an image that cannot be read."""
    tile = Image.new("RGB", (side, side), _BLANK)
    try:
        pixels = preprocessing.geometry(split.image(row), split.where(row))
    except DataError:
        draw = ImageDraw.Draw(tile)
        draw.rectangle((0, 0, side - 1, side - 1), outline=_BROKEN, width=2)
        draw.line((0, 0, side, side), fill=_BROKEN)
        draw.line((0, side, side, 0), fill=_BROKEN)
        text, centre, font = f"unreadable\nrow {row}", (side / 2, side / 2), _font(_SMALL)
        left, top, right, bottom = draw.multiline_textbbox(centre, text, font=font, anchor="mm", align="center")
        draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=_BLANK)
        draw.multiline_text(centre, text, fill=_BROKEN, font=font, anchor="mm", align="center")
        return tile
    array = pixels.float().clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    tile.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return tile


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Pillow's own font has Latin letters only."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.35)


def _fitted(text: str, room: float, size: int) -> str:
    """`text`, with its end replaced by an ellipsis where it is wider than `room` pixels."""
    font = _font(size)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, room: float, size: int, most: int) -> list[str]:
    """`text` in at most `most` lines that fit, broken at spaces, dashes and underscores."""
    font = _font(size)
    words = [word for word in text.replace("_", "_ ").replace("-", "- ").split(" ") if word]
    lines = [""]
    for word in words:
        space = " " if lines[-1] and not lines[-1].endswith(("_", "-")) else ""
        if not lines[-1] or font.getlength(lines[-1] + space + word) <= room:
            lines[-1] += space + word
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_fitted(line, room, size) for line in lines]
