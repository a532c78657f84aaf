"""One look at every image of a task: whether it can be read, how it is stored, its size, and what it is recognised by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitbench.analysis.duplicates import BoolArray, IntArray, Prints
from vitbench.errors import DataError
from vitbench.tasks.images import array_to_rgb, open_image, scale_pixels, to_rgb
from vitbench.tasks.sources.rows import Rows

KINDS = (
    "gray",
    "gray_in_colour",
    "palette",
    "alpha",
    "cmyk",
    "sixteen_bit",
    "one_bit",
    "many_frames",
    "exif_rotated",
)
"""What an image may be; it may be several of them. `gray_in_colour` is stored in colour and gray in every pixel."""

ARRAY_FORMAT = "array"
_ORIENTATION = 0x0112
_GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
_NAMED = 5
_BLOCK = 2048


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest of some numbers."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Spread | None:
        """That of some values; None when there are none."""
        numbers = np.asarray(values)
        if not numbers.size:
            return None
        return cls(*(round(float(value), 4) for value in (numbers.min(), np.median(numbers), numbers.max())))


@dataclass(frozen=True)
class ImageFacts:
    """The images of one split.

    Attributes:
        looked_at: How many were looked at.
        unreadable: How many of them cannot be read; the other fields leave these out.
        unreadable_examples: What is wrong with the first few.
        kinds: Each of `KINDS` to the number of images that are so.
        formats: File format, or `array`, to the number of images.
        width: In pixels, as stored.
        height: In pixels, as stored.
        aspect: Width / height.
        sizes: Number of different sizes.
        without_detail: How many are too small or too plain to be compared for near duplicates.
    """

    looked_at: int
    unreadable: int
    unreadable_examples: tuple[str, ...]
    kinds: Mapping[str, int]
    formats: Mapping[str, int]
    width: Spread | None
    height: Spread | None
    aspect: Spread | None
    sizes: int
    without_detail: int

    @property
    def compared(self) -> int:
        """How many were compared for near duplicates."""
        return self.looked_at - self.unreadable - self.without_detail


@dataclass(frozen=True)
class ImageTable:
    """What was seen of N images.

    Attributes:
        prints: What they are recognised by, and whether they can be read.
        kinds: `[N, len(KINDS)]` bool.
        sizes: `[N, 2]` int64: width and height as stored.
        formats: File format of each; "" where it cannot be read.
        problems: Number of an unreadable image to why it is.
    """

    prints: Prints
    kinds: BoolArray
    sizes: IntArray
    formats: list[str]
    problems: dict[int, str]

    def facts(self, images: IntArray) -> ImageFacts:
        """What there is to say of some of the images, by their numbers."""
        read = images[self.prints.readable[images]]
        unread = [int(image) for image in images if int(image) in self.problems]
        widths, heights = self.sizes[read].T
        return ImageFacts(
            looked_at=len(images),
            unreadable=len(unread),
            unreadable_examples=tuple(self.problems[image] for image in unread[:_NAMED]),
            kinds=dict(zip(KINDS, self.kinds[read].sum(axis=0).tolist(), strict=True)),
            formats=dict(Counter(self.formats[image] for image in read.tolist()).most_common()),
            width=Spread.of(widths),
            height=Spread.of(heights),
            aspect=Spread.of(widths / np.maximum(heights, 1)),
            sizes=len(np.unique(self.sizes[read], axis=0)),
            without_detail=int((~self.prints.detailed[read]).sum()),
        )


def look_at(
    images: Sequence[tuple[Rows, int]], workers: int | None = None, progress: Callable[[int], None] = lambda done: None
) -> ImageTable:
    """Decode every image once, in threads.

    Args:
        images: The source of each and its row there.
        workers: Threads; None takes a few more than there are cores, at most 32.
        progress: Called with the number of images done since.
    """
    count = len(images)
    table = ImageTable(
        prints=Prints.empty(count),
        kinds=np.zeros((count, len(KINDS)), np.bool_),
        sizes=np.zeros((count, 2), np.int64),
        formats=[""] * count,
        problems={},
    )

    def look(number: int) -> None:
        try:
            _look(table, number, *images[number])
        except DataError as error:
            table.problems[number] = str(error)

    with ThreadPoolExecutor(workers, thread_name_prefix="audit") as pool:
        for start in range(0, count, _BLOCK):
            block = range(start, min(start + _BLOCK, count))
            for _ in pool.map(look, block):
                progress(1)
    return table


def _look(table: ImageTable, number: int, source: Rows, row: int) -> None:
    content, where = source.raw(row), source.where(row)
    if isinstance(content, np.ndarray):
        image, form = array_to_rgb(content, where), ARRAY_FORMAT
        kinds = {"gray"} if content.ndim == 2 or content.shape[2] == 1 else set[str]()
        size = image.size
    else:
        stored = open_image(content, where)
        form, size, kinds = stored.format or "unknown", stored.size, _stored_kinds(stored)
        image = to_rgb(stored, where)
    image = scale_pixels(image, source.pixel_scale, where)
    if "gray" not in kinds and _is_gray(image):
        kinds.add("gray_in_colour")
    table.sizes[number] = size
    table.formats[number] = form
    table.kinds[number] = [kind in kinds for kind in KINDS]
    table.prints.take(number, image)


def _stored_kinds(image: Image.Image) -> set[str]:
    """What an opened file says of itself, before its pixels are read."""
    mode, kinds = image.mode, set[str]()
    if mode in _GRAY_MODES or mode.startswith("I;16"):
        kinds.add("gray")
    if mode.startswith("I"):
        kinds.add("sixteen_bit")
    if mode == "1":
        kinds.add("one_bit")
    if mode in ("P", "PA"):
        kinds.add("palette")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        kinds.add("alpha")
    if mode == "CMYK":
        kinds.add("cmyk")
    with suppress(Exception):  # damaged metadata can raise anything; the pixels beside it may be sound
        if getattr(image, "is_animated", False):
            kinds.add("many_frames")
    with suppress(Exception):
        # Pillow itself turns a TIFF as it is opened, and nothing else.
        if image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in range(2, 9):
            kinds.add("exif_rotated")
    return kinds


def _is_gray(image: Image.Image) -> bool:
    """Whether every pixel of an RGB image is gray; a few pixels are asked first."""
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return all(
        bool((part[..., 0] == part[..., 1]).all() and (part[..., 1] == part[..., 2]).all())
        for part in (pixels[::16, ::16], pixels)
    )
