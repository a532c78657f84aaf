"""Tables whose rows and columns are fields of records: `--rows dtype --columns task`.

A cell is the mean over seeds of records that differ in nothing else. What would differ within a cell and is named neither as a
row nor as a column makes tables of its own: `--rows representation --columns shot` gives one for each task and backbone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from vitbench.errors import UsageError, unknown
from vitbench.protocols.metrics import NEEDS
from vitbench.reporting import footnotes
from vitbench.reporting.boards import Leaderboard, Show, assemble
from vitbench.reporting.labels import ROW_LABELS, shot_label, signs
from vitbench.reporting.summaries import Extra

SCORES = ("score", "chance", *NEEDS)
"""What is measured; everything else is a field that can be asked for."""

_UNITS = ["protocol", "parameters", "limit", "column", "shot", *ROW_LABELS]
"""What tells any two records apart, with the seed."""

_SAID = {
    "protocol": "protocol",
    "protocol_label": "parameters",
    "backbone": "backbone",
    "shown": "representation",
    "column": "task",
    "shot": "shot",
}
"""Column of the records that a title may show to the field whose value it is."""


def pivot_boards(
    records: pd.DataFrame,
    fields: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    told: Sequence[str],
    show: Show,
) -> Iterator[Leaderboard]:
    """Make the tables of a pivot.

    Args:
        records: Labelled records.
        fields: The fields that records have, which may be asked for.
        rows: Fields whose values make the rows; backbone and representation if empty.
        columns: Fields whose values make the columns; the task if empty, or the shot where the task makes rows.
        told: Notes that do not come from the records.
        show: What to show beside the scores.

    Raises:
        UsageError: A field does not exist (the nearest are offered) or is named twice; published numbers or costs are asked for
            where they have no place.
    """
    rows = list(rows) or [field for field in ("backbone", "representation") if field not in columns] or ["task"]
    columns = list(columns) or ["task" if "task" not in rows else "shot"]
    _check(records, fields, [*rows, *columns], show, rows)
    records = records.assign(**{f"label {field}": _labels(records, field) for field in [*rows, *columns]})
    named = [f"label {field}" for field in [*rows, *columns]]
    mixing = [unit for unit in _UNITS if (records.groupby(named)[unit].nunique(dropna=False) > 1).any()]
    parts = records.groupby(mixing, dropna=False, sort=True) if mixing else [((), records)]
    for _, part in parts:
        yield _board(part, rows, columns, [*told, *footnotes.of_tasks(part, show.interval, records)], show)
        told = []


def _board(
    records: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], notes: Sequence[str], show: Show
) -> Leaderboard:
    ordered = records.loc[_in_order(records, [*columns, *rows])]
    data = ordered.assign(column=ordered[[f"label {field}" for field in columns]].agg(" · ".join, axis=1))
    names = list(dict.fromkeys(data["column"]))
    by_rows = data.loc[_in_order(data, rows)]
    labels = [f"label {field}" for field in rows]
    board = assemble(
        by_rows,
        _title(records, [*rows, *columns]),
        lambda scores, partial: scores.reindex(columns=names),
        notes,
        show,
        averaged=names if list(columns) == ["task"] else [],
        shown_signs={},
        rows=labels,
        names=list(rows),
        ranked="backbone" in rows,
    )
    guesses = by_rows.groupby(labels)["chance"].agg(["first", "nunique"])
    if board.cells.iloc[-1].notna().any() or not (guesses["nunique"] == 1).all():
        return board
    # Where chance differs within the columns and not within the rows, it stands beside the rows.
    chance = guesses["first"] * 100
    if not isinstance(chance.index, pd.MultiIndex):
        chance.index = pd.MultiIndex.from_arrays([chance.index])
    return replace(board, extras={"chance": Extra(chance.reindex(board.spread.index), 1), **board.extras})


def _check(records: pd.DataFrame, fields: Sequence[str], asked: Sequence[str], show: Show, rows: Sequence[str]) -> None:
    allowed = sorted(set(fields) - set(SCORES) - {"path"})
    for field in asked:
        if field not in allowed:
            raise unknown("field", field, allowed, hint="a field of the records, such as backbone, task, shot or dtype")
    if len(set(asked)) < len(asked):
        raise UsageError(f"a field makes rows or columns once: {', '.join(asked)}")
    if show.published is not None:
        raise UsageError("--published belongs to the table of tasks: leave --rows and --columns out")
    if show.costs is not None and not {"backbone", "representation"} <= set(rows):
        raise UsageError("costs belong to backbones: put backbone,representation into --rows, or leave --costs out")


def _labels(records: pd.DataFrame, field: str) -> pd.Series:
    """The texts of a field, which never read alike where records differ: a backbone with its variant, a task with its signs."""
    if field == "backbone":
        return (records["backbone"] + " " + records["variant"]).str.strip()
    if field == "representation":
        return records["shown"]
    if field == "task":
        marks = signs(records)
        return records["column"].map(lambda name: f"{name} {marks[name]}".strip())
    if field == "shot":
        return records["shot"].map(shot_label)
    return records[field].map(_text)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _in_order(records: pd.DataFrame, fields: Sequence[str]) -> pd.Index:
    """The records' index in the natural order of some fields: numbers by size, all train images last, what is missing last."""
    keys = pd.DataFrame(index=records.index)
    for number, field in enumerate(fields):
        label = records[f"label {field}"]
        value = records[field].where(records[field] > 0, math.inf) if field == "shot" else records[field]
        keys[f"{number} value"] = value if pd.api.types.is_numeric_dtype(value) else label
        keys[f"{number} label"] = label
    return keys.sort_values(list(keys.columns), kind="stable", na_position="last").index


def _title(records: pd.DataFrame, named: Sequence[str]) -> str:
    """What all records of a table have in common and no row or column says."""
    parts = [
        shot_label(int(records[column].iloc[0])) if column == "shot" else str(records[column].iloc[0])
        for column, field in _SAID.items()
        if field not in named and records[column].nunique(dropna=False) == 1
    ]
    if "backbone" not in named and records["variant"].nunique() == 1:
        parts.append(records["variant"].iloc[0])
    metrics = set(records["shown_metric"])
    parts += [metrics.pop()] if len(metrics) == 1 and metrics != {"accuracy"} else []
    limits = records["limit"].dropna().unique()
    parts += [f"LIMITED to {int(limits[0])} test images"] if len(limits) == 1 else []
    return " · ".join(part for part in parts if part)
