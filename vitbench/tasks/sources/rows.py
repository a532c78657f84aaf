"""What every source gives: the labels of one split at once, its images one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """One split as its source gives it.

    Attributes:
        labels: `[N]` int64.
        class_names: In order of label; empty when the source has none.
        fingerprint: sha256 of what decides the images, the labels and their order.
        image: Row to RGB image; may be called from several threads. Raises `DataError` naming the row for a broken image.
        where: Row to where its image is, for messages (`row 17 (train/cat/003.jpg)`).
    """

    labels: IntArray
    class_names: tuple[str, ...]
    fingerprint: str
    image: Callable[[int], Image]
    where: Callable[[int], str]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def text_digest(parts: Iterable[str]) -> str:
    """sha256 of some lines of text, none of which holds a line break."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
