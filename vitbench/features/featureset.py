"""A `FeatureSet`: one split of one task as one backbone sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitbench.errors import UsageError

IntArray = npt.NDArray[np.int64]


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
        positions = np.searchsorted(self.rows, rows)
        inside = positions < len(self.rows)
        if not inside.all() or not np.array_equal(self.rows[positions], rows):
            raise UsageError(f"{int((~inside).sum()) or 'some'} of the {len(rows)} rows asked for have no features")
        if len(rows) == len(self.rows) and np.array_equal(rows, self.rows):
            return self.representations[name]
        return self.representations[name][torch.from_numpy(positions)]
