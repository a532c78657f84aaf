"""Right and wrong, image by image: what statistics of paired scores are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitbench.errors import StoreError, UsageError
from vitbench.records.predictions import Predictions, read_predictions
from vitbench.reporting.statistics import per_class_values
from vitbench.reporting.two_way import EPISODES, IMAGES, Unit

PAIRING_FIELDS = ["train_fingerprint", "test_fingerprint", "num_classes", "limit", "shot", "identity_version"]
"""Records that agree in these were measured on the same test images, and with equal seeds on the same support sets."""


@dataclass(frozen=True)
class Hits:
    """Seeds × test images of one row of a table on one task at one shot.

    Attributes:
        values: `[S, N]` float64: 1 where the prediction is right, 0 where it is wrong; for the metric `mean_per_class_accuracy`
            the values of `statistics.per_class_values`, whose mean is that metric.
        seeds: S seeds, increasing.
        unit: What the N are. Of a protocol that draws episodes they are `EPISODES`, and a value is the accuracy of one:
            images that come in several of them are not independent, and another seed's episodes are others.
    """

    values: npt.NDArray[np.float64]
    seeds: tuple[int, ...]
    unit: Unit = IMAGES


def hits(records: pd.DataFrame, paths: Sequence[Path]) -> Hits:
    """The hits of records that differ in nothing but their seed.

    Args:
        records: Rows of `load_results`, one per seed.
        paths: The JSON file of each, in their order.

    Raises:
        StoreError: Predictions are missing or damaged, or belong to other test images than the others'.
        UsageError: The task's metric is not a mean over test images of right and wrong.
    """
    metric = str(records["metric"].iloc[0])
    if metric not in ("accuracy", "mean_per_class_accuracy"):
        raise UsageError(
            f"the metric {metric} of task '{records['task'].iloc[0]}' cannot be told from stored predictions"
        )
    order = np.argsort(records["seed"].to_numpy(), kind="stable")
    tables = [read_predictions(paths[place]) for place in order]
    seeds = tuple(int(records["seed"].iloc[place]) for place in order)
    if all(table.episode is not None for table in tables):
        drawn = [_of_episodes(table, paths[place]) for place, table in zip(order, tables, strict=True)]
        if len({len(accuracies) for accuracies in drawn}) > 1:
            raise StoreError(
                f"the predictions beside {paths[order[0]]} have another number of episodes than its other seeds'"
            )
        return Hits(np.stack(drawn), seeds, EPISODES)
    for place, table in zip(order, tables, strict=True):
        if not np.array_equal(table.row, tables[0].row) or not np.array_equal(table.label, tables[0].label):
            raise StoreError(
                f"the predictions beside {paths[place]} are of other test images than those of its other seeds"
            )
    values = np.stack([table.hits.astype(np.float64) for table in tables])
    if metric == "mean_per_class_accuracy":
        values = per_class_values(values, tables[0].label)
    return Hits(values, seeds)


def _of_episodes(table: Predictions, path: Path) -> npt.NDArray[np.float64]:
    """The accuracy of each episode, `[E]`.

    Raises:
        StoreError: The episodes are not 0 to E - 1, each with as many queries.
    """
    assert table.episode is not None
    counts = np.bincount(table.episode, minlength=1)
    if not counts[0] or (counts != counts[0]).any():
        raise StoreError(
            f"the predictions beside {path} are damaged: their episodes have not the same number of queries"
        )
    return np.bincount(table.episode, weights=table.hits) / counts


def shared_seeds(one: Hits, other: Hits) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[int, ...]]:
    """The rows of both for the seeds that both have, and these seeds: the same support sets on both sides."""
    seeds = tuple(sorted(set(one.seeds) & set(other.seeds)))
    return one.values[[one.seeds.index(s) for s in seeds]], other.values[[other.seeds.index(s) for s in seeds]], seeds
