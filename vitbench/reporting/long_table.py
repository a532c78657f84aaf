"""Leaderboards as one long table, a row per cell: for other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from vitbench.reporting.boards import Leaderboard
from vitbench.reporting.labels import ROW_LABELS

_ROW = ["representation", "alias_of", "representation_provenance"]
_SETTING = ["preprocessing", "dtype", "protocol", "parameters", "shot", "limit"]
_SCORES = ["metric", "score", "score_std", "accuracy", "accuracy_std", "seeds", "n_support", "n_test", "chance"]
_DATA = ["train_split", "test_split", "deviations", "synthetic"]
_INTERVAL = ["interval_low", "interval_high"]
_COLUMNS = ["backbone", *_ROW, "variant", "task", "level", *_SETTING, *_SCORES, *_DATA]


def long_table(boards: Sequence[Leaderboard]) -> pd.DataFrame:
    """One row per cell that was measured, scores as fractions; `level` tells tasks from means.

    The ends of combined intervals and what stands beside the scores are columns where a board has them. A cell whose records
    contradict each other has no row: it has no score.
    """
    frames = [_long_means(board) if board.means else _long_tasks(board) for board in boards]
    known = set(_COLUMNS)
    more = list(
        dict.fromkeys(name for frame in frames for name in frame.columns if name in _INTERVAL or name not in known)
    )
    types = {**dict.fromkeys(["seeds", "n_support", "n_test", "shot"], "Int64"), "synthetic": "boolean"}
    wide = [frame.reindex(columns=[*_COLUMNS, *more]).astype(types) for frame in frames]
    return pd.concat(wide, ignore_index=True)


def _long_tasks(board: Leaderboard) -> pd.DataFrame:
    pivoted = [name for name in board.rows if name not in ROW_LABELS]
    keys = ["backbone", *_ROW, "variant", "task", "column", *_SETTING]
    own = board.records.assign(accuracy=board.records.get("accuracy", float("nan")))
    fields = [name.removeprefix("label ") for name in pivoted]
    keys += [name for name in fields if name in own and name not in [*keys, *_DATA, "seed", "metric"]]
    keys += ["seed"] if "seed" in fields else []
    own["row labels"] = pd.Series(list(own[list(board.rows)].itertuples(index=False, name=None)), index=own.index)
    frame = own.groupby(keys, dropna=False, sort=False).agg(
        metric=("shown_metric", "first"),
        score=("value", "mean"),
        score_std=("value", "std"),
        accuracy=("accuracy", "mean"),
        accuracy_std=("accuracy", "std"),
        seeds=("seed", "nunique"),
        n_support=("n_support", "max"),
        n_test=("n_test", "max"),
        chance=("chance", "first"),
        **{name: (name, "first") for name in _DATA},
        labels=("row labels", "first"),
    )
    found = frame.reset_index().assign(level=board.level)
    if board.level != "task":
        # The accuracies are those of one shot, and none of them is the score.
        found[["accuracy", "accuracy_std", "shot", "n_support"]] = float("nan")
    places = list(zip(found["labels"], found["column"], strict=True))
    return _with_more(board, found, places).drop(columns=["labels", "column"])


def _long_means(board: Leaderboard) -> pd.DataFrame:
    """A suite's means where they exist; `task` is the group or the suite."""
    metrics = set(board.records["shown_metric"])
    labels = list(board.rows)
    rows = board.records.drop_duplicates(labels).set_index(labels)[[*_ROW, *_SETTING]]
    frames = []
    for column, (subject, level) in board.means.items():
        scores = pd.DataFrame({"score": board.cells[column].iloc[:-1], "score_std": board.spread[column]}) / 100
        found = rows.join(scores.rename_axis(index=labels)).dropna(subset="score").reset_index()
        places = [(row, column) for row in found[labels].itertuples(index=False, name=None)]
        partial = [place in board.partial for place in places]
        found = found.assign(task=subject, level=level, chance=board.cells[column].iloc[-1] / 100)
        frames.append(_with_more(board, found.assign(partial=partial) if board.partial else found, places))
    metric = metrics.pop() if len(metrics) == 1 else "each task's own"
    found = pd.concat(frames).assign(metric=metric)
    return found if board.level == "task" else found.assign(shot=float("nan"))


def _with_more(board: Leaderboard, frame: pd.DataFrame, places: Sequence[tuple[tuple[str, ...], str]]) -> pd.DataFrame:
    """The frame with the ends of intervals and what stands beside the scores."""
    if len(board.low):
        for name, ends in zip(_INTERVAL, (board.low, board.high), strict=True):
            values = ends.stack().to_dict()
            frame[name] = (
                pd.Series([values.get((*labels, column)) for labels, column in places], dtype=float).to_numpy() / 100
            )
    for name, extra in board.extras.items():
        frame[re.sub(r"\W+", "_", name).strip("_")] = [extra.values.get(labels) for labels, _ in places]
    return frame
