"""Records that stand in one place of a table: copies count once, contradictions are shown and never averaged."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

Place = tuple[tuple[str, ...], str]
"""A row's labels, and a column."""


def settle(records: pd.DataFrame, rows: Sequence[str]) -> tuple[pd.DataFrame, dict[Place, str], list[str]]:
    """Leave one record for each row, column and seed.

    Args:
        records: Labelled records with `column`, `seed` and `value`.
        rows: The columns that label a row.

    Returns:
        The records without copies, and without any record of a cell in which two records of one seed have different scores; the
        text of each such cell, `50 ≠ 60`; and a line about each, with the files where the records have a `path`.
    """
    place = [*rows, "column", "seed"]
    if not records.duplicated(place).any():
        return records, {}, []
    conflicts: dict[Place, str] = {}
    lines = []
    for found, same in records.groupby(place, sort=False):
        if same["value"].nunique(dropna=False) == 1:
            continue
        *labels, column, seed = map(str, found)
        values = [f"{100 * value:.4g}" for value in sorted(same["value"].unique())]
        conflicts[tuple(labels), column] = " ≠ ".join(values)
        name = " ".join(label for label in labels if label)
        where = f": {' and '.join(map(str, same['path']))}" if "path" in same else ""
        lines.append(
            f"conflict: {len(same)} records of {name}, {column}, seed {seed}, give {' and '.join(values)} %: they are not "
            f"averaged; find out which is right and move the other away{where}"
        )
    kept = records.drop_duplicates(place)
    cells = pd.Series(list(_places(kept, rows)), index=kept.index, dtype=object)
    return kept[~cells.isin(set(conflicts))], conflicts, lines


def _places(records: pd.DataFrame, rows: Sequence[str]) -> list[Place]:
    labels = records[list(rows)].itertuples(index=False, name=None)
    return list(zip(labels, records["column"], strict=True))
