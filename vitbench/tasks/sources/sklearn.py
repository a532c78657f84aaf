"""Data sets that ship with scikit-learn."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from vitbench.errors import DataError
from vitbench.tasks.sources.rows import Rows, text_digest
from vitbench.tasks.spec import TaskSpec


def read_sklearn(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read a range of rows of scikit-learn's `digits`: 1,797 handwritten digits of 8×8 pixels with 17 gray levels.

    Gray level g of 16 becomes `round(g * 255 / 16)`.

    Raises:
        DataError: The split's rows lie outside the data.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    part = spec.splits[split]
    start, stop = part.rows or (0, len(data.target))
    if not 0 <= start < stop <= len(data.target):
        raise DataError(f"split '{split}': rows {start} to {stop} lie outside the {len(data.target)} rows of digits")
    images = np.round(data.images[start:stop] * (255 / 16)).astype(np.uint8)
    labels = data.target[start:stop].astype(np.int64)
    pixels = hashlib.sha256(images.tobytes()).hexdigest()

    def where(row: int) -> str:
        return f"row {row} (image {start + row} of scikit-learn's digits)"

    return Rows(
        labels=labels,
        class_names=tuple(str(name) for name in data.target_names),
        fingerprint=text_digest(["sklearn:digits", pixels, hashlib.sha256(labels.tobytes()).hexdigest()]),
        raw=lambda row: images[row],
        where=where,
    )
