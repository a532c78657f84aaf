"""Intervals of a table's cells: over support sets and test images together, from stored predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vitbench.errors import UsageError, VitbenchError, listed
from vitbench.reporting.hits import hits
from vitbench.reporting.statistics import Interval, combined_interval

INTERVALS = ("seeds", "combined", "none")
"""Standard deviation over seeds; 95 % interval over seeds and test images; neither."""

OF_A_MEAN = (
    "[low, high] of a mean: from its tasks', whose errors are independent: distances √(Σ wₜ² hₜ²), low and high apart"
)


def cell_intervals(records: pd.DataFrame, rows: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The combined interval of each cell.

    Args:
        records: Labelled records, one for each row, column and seed, with `path`, the record's JSON file.
        rows: The columns that label a row.

    Returns:
        Distances from the score to the lower and to the upper end, each rows × columns in percentage points, NaN where there is
        none; and notes: how the intervals were made, and why some are missing.

    Raises:
        UsageError: The records have no `path`.
    """
    if "path" not in records:
        raise UsageError(
            "intervals over test images are made of stored predictions: the records must come with their files"
        )
    below: dict[tuple[str, ...], float] = {}
    above: dict[tuple[str, ...], float] = {}
    methods: dict[str, None] = {}
    missing: dict[str, list[str]] = {}
    for place, same in records.groupby([*rows, "column"], sort=False):
        try:
            found = _interval(same)
        except VitbenchError as error:
            missing.setdefault(str(error), []).append(" ".join(str(label) for label in place if label))
            continue
        key = tuple(map(str, place))
        below[key], above[key] = 100 * (found.estimate - found.low), 100 * (found.high - found.estimate)
        methods[found.method] = None
    notes = [f"[low, high]: {'; '.join(methods)}"] if methods else []
    notes += [f"no interval for {listed(cells)}: {reason}" for reason, cells in missing.items()]
    return _table(below, records, rows), _table(above, records, rows), notes


def _interval(records: pd.DataFrame) -> Interval:
    """The interval of one cell's records.

    Raises:
        VitbenchError: Its predictions are missing, or are not those of its score.
    """
    found = hits(records.assign(metric=records["shown_metric"]), [Path(path) for path in records["path"]])
    interval = combined_interval(found.values, unit=found.unit)
    score = float(records["value"].mean())
    if not np.isclose(interval.estimate, score, atol=1e-6):
        raise UsageError(
            f"its stored predictions give {100 * interval.estimate:.4g} %, its records {100 * score:.4g} %: "
            "make them again with --on-existing rerun"
        )
    return interval


def of_means(distances: pd.DataFrame, weights: pd.DataFrame) -> pd.DataFrame:
    """Distances of the ends of weighted sums of scores whose errors are independent.

    Tasks share no image and no support set, so variances add: with weights w_t and distances h_t the sum's end lies
    √(Σ w_t² h_t²) away (the method of variance estimates recovery; Zou and Donner 2008, used for low and high ends apart). A
    column that is a single score keeps its own.

    Args:
        distances: Rows × scores.
        weights: Scores × columns of the table; NaN for a column that cannot be made.

    Returns:
        Rows × columns of the table, NaN where a score with a weight has none.
    """
    made = {}
    for column in weights.columns:
        weight = weights[column]
        parts = weight[weight != 0]
        squares = (distances[parts.index] ** 2) * parts**2
        made[column] = squares.sum(axis=1, skipna=False, min_count=1) ** 0.5
    return pd.DataFrame(made, index=distances.index)


def ends(
    records: pd.DataFrame,
    rows: Sequence[str],
    arrange: Callable[[pd.DataFrame, bool], pd.DataFrame],
    data: Sequence[str],
    cells: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Both ends of the interval of every cell of a table, means included.

    Args:
        records: As for `cell_intervals`.
        rows: The columns that label a row.
        arrange: Makes the table's columns from one column per set of data, all of them weighted sums.
        data: The sets of data, those of which no record is left included.
        cells: The table's scores, percent.

    Returns:
        Lower and upper ends, shaped as `cells`, percent; and notes.
    """
    below, above, notes = cell_intervals(records, rows)
    # The rows of an identity matrix, arranged, are the weights of which the table's columns are sums.
    weights = arrange(pd.DataFrame(np.eye(len(data)), index=list(data), columns=list(data)), False)[cells.columns]
    low = cells - of_means(below.reindex(index=cells.index, columns=list(data)), weights)
    high = cells + of_means(above.reindex(index=cells.index, columns=list(data)), weights)
    averages = [column for column in weights.columns if (weights[column] != 0).sum() > 1]
    return low, high, [*notes, *([OF_A_MEAN] if averages and notes else [])]


def _table(values: dict[tuple[str, ...], float], records: pd.DataFrame, rows: Sequence[str]) -> pd.DataFrame:
    index = pd.MultiIndex.from_frame(records[list(rows)].drop_duplicates())
    columns = list(dict.fromkeys(records["column"]))
    table = pd.DataFrame(float("nan"), index=index, columns=columns)
    for (*labels, column), value in values.items():
        table.loc[tuple(labels), column] = value
    return table
