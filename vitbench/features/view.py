"""The features of a split, put together from those of the stored splits that its rows are taken from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vitbench.features.featureset import FeatureSet, IntArray
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
    assert first is not None
    if split.is_stored and np.array_equal(first.rows, rows):
        return first
    base, row = split.base[rows], split.row[rows]
    representations: dict[str, Tensor] = {}
    for name, values in first.representations.items():
        features = torch.empty((len(rows), values.shape[1]), dtype=values.dtype)
        for number, part in enumerate(split.bases):
            if (mine := base == number).any():
                features[torch.from_numpy(np.flatnonzero(mine))] = sets[part.name].select(name, row[mine])
        representations[name] = features
    return FeatureSet(split.labels, rows, representations)
