"""What every source gives: the labels of one stored split at once, its images one by one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from vitbench.errors import DataError
from vitbench.tasks.images import array_to_rgb, decode_rgb, open_image, scale_pixels

IntArray = npt.NDArray[np.int64]

LABEL_LIMIT = 1_000_000
"""A label is below this: what is above is an id, a time or damage, and arrays over the classes would be as long."""


@dataclass(frozen=True)
class LabelSets:
    """Every right label of each of N images; an image may have none.

    Attributes:
        values: `[M]` int64, the labels of image 0, then those of image 1, and so on.
        starts: `[N + 1]` int64, where each image's labels begin in `values`, and M.
    """

    values: IntArray
    starts: IntArray

    @classmethod
    def of(cls, sets: Iterable[npt.ArrayLike]) -> LabelSets:
        """Make them of one sequence of labels per image."""
        lists = [np.asarray(labels, dtype=np.int64) for labels in sets]
        starts = np.concatenate([[0], np.cumsum([len(labels) for labels in lists])]).astype(np.int64)
        return cls(np.concatenate(lists) if lists else np.empty(0, np.int64), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def counts(self) -> IntArray:
        """`[N]` int64, the number of right labels of each image."""
        return np.diff(self.starts)

    def take(self, rows: IntArray) -> LabelSets:
        """Those of some images, in their order."""
        return LabelSets.of([self.values[self.starts[row] : self.starts[row + 1]] for row in rows.tolist()])


@dataclass(frozen=True)
class Rows:
    """One split as its source gives it.

    Attributes:
        labels: `[N]` int64.
        class_names: In order of label; empty when the source has none.
        fingerprint: sha256 of what decides the images, the labels and their order.
        raw: Row to its image as it is stored: the bytes of an image file, its path, or a uint8 array `[H, W]`, `[H, W, 1]` or
            `[H, W, 3]`. May be called from several threads. Raises `DataError` naming the row.
        where: Row to where its image is, for messages (`row 17 (train/cat/003.jpg)`).
        name: Row to the file name that the image has in its source (`ILSVRC2012_val_00000001.JPEG`); "" when it has none.
        pixel_scale: What pixel values are multiplied by (255 for masks stored as 0 and 1).
        hits: Every right label of each image, for multi-label hit; None when the source has only one each.
        files: Gives what the split was read from, by which splits that share images are told: absolute paths, links followed,
            of whole files or of every image; a path and an array's name for arrays; nothing for what is no local file.
    """

    labels: IntArray
    class_names: tuple[str, ...]
    fingerprint: str
    raw: Callable[[int], bytes | Path | npt.NDArray[Any]]
    where: Callable[[int], str]
    name: Callable[[int], str] = lambda row: ""
    pixel_scale: int = 1
    hits: LabelSets | None = None
    files: Callable[[], Iterable[str]] = tuple

    @cached_property
    def file_keys(self) -> npt.NDArray[np.uint64]:
        """`[M]` uint64, eight bytes of a digest of each of `files`: the names themselves take much memory."""
        keys = (int.from_bytes(hashlib.blake2b(os.fsencode(file), digest_size=8).digest()) for file in self.files())
        return np.fromiter(keys, dtype=np.uint64)

    def shared_files(self, other: Rows) -> list[str]:
        """The files that both were read from, in order."""
        if not len(np.intersect1d(self.file_keys, other.file_keys)):
            return []
        return sorted(set(self.files()) & set(other.files()))

    def image(self, row: int) -> Image:
        """The image of one row, RGB. May be called from several threads.

        Raises:
            DataError: The image is broken; its row and file are named.
        """
        content, where = self.raw(row), self.where(row)
        image = array_to_rgb(content, where) if isinstance(content, np.ndarray) else decode_rgb(content, where)
        return scale_pixels(image, self.pixel_scale, where)

    def stored_image(self, row: int) -> Image:
        """The image of one row in the mode in which it is stored, its pixels perhaps not read yet.

        Raises:
            DataError: The image cannot be opened.
        """
        content, where = self.raw(row), self.where(row)
        return array_to_rgb(content, where) if isinstance(content, np.ndarray) else open_image(content, where)


def no_label(value: object, where: str) -> DataError:
    """The error for a number that is too large for a label."""
    text = str(value)
    shown = text if len(text) <= 24 else f"{text[:12]}… ({len(text):,} digits)"
    return DataError(f"label {shown} at {where}: labels are class numbers from 0, below {LABEL_LIMIT:,}")


def scale_setting(pixel_scale: int) -> list[str]:
    """What a fingerprint says of `pixel_scale`: nothing where pixels stay as they are, so that such tasks keep their records."""
    return [] if pixel_scale == 1 else [f"pixel_scale={pixel_scale}"]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def text_digest(parts: Iterable[str]) -> str:
    """sha256 of some lines of text, none of which holds a line break; file names among them need not be UTF-8."""
    digest = hashlib.sha256()
    for number, part in enumerate(parts):
        digest.update((f"\n{part}" if number else part).encode(errors="surrogateescape"))
    return digest.hexdigest()
