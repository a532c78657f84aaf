"""The features of a split, put together from those of the stored splits that its rows are taken from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vitbench.features.featureset import FeatureSet, IntArray, LazyRepresentations
from vitbench.tasks.task import Split


def rows_of_bases(split: Split, rows: IntArray) -> dict[str, IntArray]:
    """Which rows of which stored split some rows of a split are, increasing; without those of which there are none.

    Args:
        split: The split.
        rows: `[M]` int64, rows of it.
    """
    found = {}
    for number, base in enumerate(split.bases):
        taken = np.unique(split.row[rows[split.base[rows] == number]])
        if len(taken):
            found[base.name] = taken
    return found


def split_features(split: Split, rows: IntArray, sets: Mapping[str, FeatureSet]) -> FeatureSet:
    """Features of some rows of a split.

    Args:
        split: The split.
        rows: `[M]` int64, increasing.
        sets: Name of a stored split to features of at least the rows that are asked for of it.

    Returns:
        Labels and features by the split's own row numbers.
    """
    first = next(iter(sets[base.name] for base in split.bases if base.name in sets), None)
    if first is None:  # no row is asked for
        return FeatureSet(split.labels, rows, {})
    if split.is_stored and np.array_equal(first.rows, rows):
        return first
    base, row = split.base[rows], split.row[rows]
    parts = [sets.get(part.name) for part in split.bases]

    def read(name: str, wanted: IntArray) -> Tensor:
        found: Tensor | None = None
        for number, part in enumerate(parts):
            if part is None or not (mine := split.base[wanted] == number).any():
                continue
            stored, places = np.unique(split.row[wanted[mine]], return_inverse=True)
            values = part.part(name, stored)
            if found is None:
                found = torch.empty((len(wanted), values.shape[1]), dtype=values.dtype)
            found[torch.from_numpy(np.flatnonzero(mine))] = values[torch.from_numpy(places.reshape(-1))]
        assert found is not None
        return found

    order = rows[np.lexsort((row, base))]  # as they are stored, so that a part is read from few shards
    return FeatureSet(split.labels, rows, LazyRepresentations(list(first.representations), rows, read, order))
