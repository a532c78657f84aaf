"""A `FeatureSet`: one split of one task as one backbone sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitbench.errors import UsageError

IntArray = npt.NDArray[np.int64]

CHUNK_ROWS = 4096
"""Rows of a part of `FeatureSet.chunks`: 16 MiB of 1,024 features."""
COPIED_ROWS = 256
"""Rows that are copied at a time, where they do not follow each other."""


class LazyRepresentations(Mapping[str, Tensor]):
    """Representations that are read when they are asked for; the one that was asked for last is kept.

    Attributes:
        order: `[M]` int64, the rows in an order in which they are cheap to read a part at a time.
    """

    def __init__(
        self,
        names: Sequence[str],
        rows: IntArray,
        read: Callable[[str, IntArray], Tensor],
        order: IntArray | None = None,
    ) -> None:
        """Nothing is read as yet.

        Args:
            names: Canonical names.
            rows: `[M]` int64, increasing: the rows of the split that have features.
            read: Name, and some of the rows, increasing, to their features `[m, D]` float32.
            order: Another order of `rows` in which they are cheap to read; None for their own.
        """
        self._names, self._rows, self._read = tuple(names), rows, read
        self.order = rows if order is None else order
        self._held: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._held is None or self._held[0] != name:
            self._held = None  # let go before the next is read
            self._held = name, self._read(name, self._rows)
        return self._held[1]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def part(self, name: str, rows: IntArray) -> Tensor:
        """Features of some of the rows, in any order, which are not kept."""
        if (np.diff(rows) > 0).all():
            return self._read(name, rows)
        increasing, places = np.unique(rows, return_inverse=True)
        return self._read(name, increasing)[torch.from_numpy(places.reshape(-1))]


@dataclass(frozen=True)
class FeatureSet:
    """Features of some rows of a split, in one or more representations.

    Attributes:
        labels: `[N]` int64, the label of every row of the split, also of rows without features.
        rows: `[M]` int64, increasing: the rows of the split that have features.
        representations: Name to `[M, D]` float32, in the order of `rows`.
        identity: What the features are features of (see `vitbench.records.identity`); empty for features made elsewhere.
    """

    labels: IntArray
    rows: IntArray
    representations: Mapping[str, Tensor]
    identity: Mapping[str, Any] = field(default_factory=dict)

    def select(self, name: str, rows: IntArray) -> Tensor:
        """Features of representation `name` at the given rows of the split, `[len(rows), D]` float32, in their order.

        Raises:
            UsageError: A row has no features here.
        """
        positions = self._positions(rows)
        if len(rows) == len(self.rows) and np.array_equal(rows, self.rows):
            return self.representations[name]
        return self.representations[name][torch.from_numpy(positions)]

    def part(self, name: str, rows: IntArray) -> Tensor:
        """As `select`, but where features are read when they are asked for no others are read, and these are not kept."""
        if isinstance(self.representations, LazyRepresentations):
            self._positions(rows)
            return self.representations.part(name, rows)
        return self.select(name, rows)

    def chunks(self, name: str, size: int = CHUNK_ROWS) -> Iterator[tuple[IntArray, Tensor]]:
        """All features of representation `name` a part at a time, so that memory does not grow with the number of rows.

        Args:
            name: Canonical name.
            size: Rows of a part; the last may have fewer.

        Yields:
            Rows of the split `[m]`, in an order that is cheap to read, the same every time and each row once, and their
            features `[m, D]` float32; of features in memory a view.
        """
        lazy = self.representations
        order = lazy.order if isinstance(lazy, LazyRepresentations) else self.rows
        for start in range(0, len(order), size):
            part = slice(start, start + size)
            rows = order[part]
            yield rows, lazy.part(name, rows) if isinstance(lazy, LazyRepresentations) else lazy[name][part]

    def dimension(self, name: str) -> int:
        """D of representation `name`; there must be a row."""
        return self.part(name, self.rows[:1]).shape[1]

    def _positions(self, rows: IntArray) -> IntArray:
        """Where rows of the split are among those with features."""
        positions = np.searchsorted(self.rows, rows)
        inside = positions < len(self.rows)
        if not inside.all() or not np.array_equal(self.rows[positions], rows):
            raise UsageError(f"{int((~inside).sum()) or 'some'} of the {len(rows)} rows asked for have no features")
        return positions.astype(np.int64, copy=False)


def copy_rows(source: npt.NDArray[Any], rows: IntArray, target: npt.NDArray[np.float32], places: IntArray) -> None:
    """Copy rows to places, with little memory besides.

    Copies of megabytes that are made and let go again and again lie between what is kept meanwhile: the C library then asks for
    ever more memory.

    Args:
        source: `[n, D]`, float32 or float16.
        rows: `[m]` int64, at least one.
        target: `[N, D]`, is written to.
        places: `[m]` int64.
    """
    if _follow_each_other(rows) and _follow_each_other(places):
        target[places[0] : places[-1] + 1] = source[rows[0] : rows[-1] + 1]
        return
    for start in range(0, len(rows), COPIED_ROWS):
        block = slice(start, start + COPIED_ROWS)
        target[places[block]] = source[rows[block]]


def _follow_each_other(rows: IntArray) -> bool:
    return bool((np.diff(rows) == 1).all())
