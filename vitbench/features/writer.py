"""Features that come a batch at a time, written several batches to a shard."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from vitbench.features import profile
from vitbench.features.featureset import IntArray
from vitbench.features.store import FeatureStore

FLUSH_BYTES = 64 * 2**20
FLUSH_SECONDS = 20.0


class ShardWriter:
    """Writes to one store. What waits lies in memory that was asked for at once.

    Each batch by itself, small as they are, they would lie between the large pieces that forward passes ask for and give back,
    and the C library could not use these again: memory then grows by as much as a forward pass takes, batch after batch.

    Attributes:
        store: The store.
        atoms: What is written; empty before the first batch.
    """

    def __init__(self, store: FeatureStore, most: int = sys.maxsize) -> None:
        """Nothing waits as yet, and never more than `most` rows."""
        self.store = store
        self._most, self._count = most, 0
        self._batches: list[IntArray] = []
        self._values: dict[str, Tensor] = {}
        self._since = time.monotonic()

    @property
    def atoms(self) -> frozenset[str]:
        """The atoms of its batches."""
        return frozenset(self._values)

    def add(self, rows: IntArray, values: Mapping[str, Tensor]) -> None:
        """Take up a batch, and write a shard where enough waits, or the last one was long ago.

        Args:
            rows: `[n]` int64, beyond those of the batches before.
            values: Atom to `[n, D]` float32 on the CPU; always the same atoms.

        Raises:
            StoreError: The shard cannot be written.
        """
        row_bytes = sum(value[:1].nbytes for value in values.values())
        if self._count + len(rows) > self._room:
            self.flush()
        if len(rows) > self._room:
            room = min(self._most, FLUSH_BYTES // row_bytes + 1 + len(rows))
            self._values = {atom: value.new_empty(room, value.shape[1]) for atom, value in values.items()}
        for atom, value in values.items():
            self._values[atom][self._count : self._count + len(rows)] = value
        self._count += len(rows)
        self._batches.append(rows)
        if self._count * row_bytes > FLUSH_BYTES or time.monotonic() - self._since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits; what cannot be written is let go, and is missing.

        Raises:
            StoreError: It cannot be written.
        """
        batches, count = self._batches, self._count
        self._batches, self._count, self._since = [], 0, time.monotonic()
        if batches:
            with profile.stage("write"):
                self.store.append(
                    np.concatenate(batches), {atom: value[:count] for atom, value in self._values.items()}
                )

    @property
    def _room(self) -> int:
        return min((len(value) for value in self._values.values()), default=0)
