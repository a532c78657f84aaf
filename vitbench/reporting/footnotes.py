"""The notes below a leaderboard: what a reader must know, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from vitbench.errors import listed
from vitbench.reporting.labels import DEVIATES, ROW_FIELDS, ROW_LABELS, SETTING, SYNTHETIC, in_episodes, splits_text

FLOOR_ARCHITECTURE = "pixels"


SPREADS = {
    "seeds": "mean over seeds ± standard deviation over seeds",
    "combined": "mean over seeds and its 95 % interval over seeds and test images",
    "none": "mean over seeds",
}
"""What a cell shows, by the kind of interval that is asked for."""


def of_tasks(records: pd.DataFrame, interval: str = "seeds", among: pd.DataFrame | None = None) -> list[str]:
    """The notes of a table whose columns are tasks.

    Args:
        records: Labelled records of the table.
        interval: What its cells show, one of `SPREADS`.
        among: The records among which the floor may be, where these are more than the table's.
    """
    notes = [_unit(records, interval)]
    notes += _letters(records)
    for column, same in records[records["column"].str.contains("#")].groupby("column"):
        first = same.iloc[0]
        notes.append(
            f"{column}: {first['n_test']:,} test images, {first['num_classes']} classes, first made by `{first['command']}`"
        )
    notes += _splits(records)
    floors = records if among is None else among
    missing = sorted(set(records["task"]) - set(floors[floors["architecture"] == FLOOR_ARCHITECTURE]["task"]))
    if missing:
        notes.append(f"no pixels floor for {listed(missing)}: vitbench run --backbone pixels --tasks … makes it")
    warnings = records[records["warnings"] != ""].groupby("column", sort=False)["warnings"].first()
    notes += [f"{listed(map(str, same.index))}: {text}" for text, same in warnings.groupby(warnings, sort=False)]
    return [*notes, *_signs(records), *_untrained(records)]


def of_means(records: pd.DataFrame, count: int, interval: str = "seeds") -> list[str]:
    """The notes of a suite's table of means, of `count` tasks in all."""
    notes = [
        _unit(records, interval),
        f"the mean of {count} is the mean of all tasks; the mean of groups gives every group the same weight",
    ]
    return [*notes, *_letters(records), *_splits(records), *_signs(records), *_untrained(records)]


def lacking(records: pd.DataFrame, tasks: Sequence[str], labels: Sequence[str] = ROW_LABELS) -> list[str]:
    """Why rows lack the mean of `tasks`: tasks without a record, or with two sets of data, or no seed that all tasks share."""
    several = records.groupby("task")["column"].nunique()
    twofold = [f"no mean: {task} stands for {count} sets of data" for task, count in several[several > 1].items()]
    reasons: dict[str, list[str]] = {}
    rows = 0
    for found, row in records.groupby(list(labels), sort=False):
        rows += 1
        missing = [task for task in tasks if task not in set(row["task"])]
        seeds = row.groupby("task")["seed"].agg(set)
        if missing:
            reason = f"{len(tasks) - len(missing)} of {len(tasks)} tasks, without {listed(missing)}"
        elif not set.intersection(*seeds):
            reason = "no seed that all tasks share"
        else:
            continue
        reasons.setdefault(reason, []).append(" ".join(str(label) for label in found if label))
    return twofold + [
        f"no mean: {reason}" + ("" if len(names) == rows else f" ({listed(names)})")
        for reason, names in reasons.items()
    ]


def _unit(records: pd.DataFrame, interval: str) -> str:
    apart = [SETTING] if SETTING in records else []
    seeds = records.groupby([*ROW_FIELDS, *apart, "column"])["seed"].agg(frozenset)
    groups = list(seeds)
    used = f"{len(groups[0])} seed{'s' if len(groups[0]) > 1 else ''}"
    if any(group != groups[0] for group in groups):
        used = "NOT the same seeds everywhere: such cells are not paired, and a mean is over the seeds that a row's tasks share"
        if apart and (seeds.groupby(level=SETTING).nunique() == 1).all():
            used = "each protocol its own seeds"
    over = "episodes" if in_episodes(records).all() else ""
    metrics = records.groupby("shown_metric")["column"].unique()
    if len(metrics) == 1:
        unit = str(metrics.index[0])
    else:
        each = "; ".join(f"{metric}: {listed(sorted(columns), most=8)}" for metric, columns in metrics.items())
        unit = f"each task's own metric ({each}; a mean is the mean of the tasks' own metrics)"
    if all(len(group) == 1 for group in groups) and groups.count(groups[0]) == len(groups):
        single = f", with its 95 % interval over {over or 'test images'}" if interval == "combined" else ""
        return f"{unit} in %{single} ({used})"
    spread = (
        f"mean over seeds and its 95 % interval over {over}" if over and interval == "combined" else SPREADS[interval]
    )
    return f"{unit} in %, {spread} ({used})"


def _letters(records: pd.DataFrame) -> list[str]:
    lettered = records[records["variant"].str.contains("preprocessing ")].groupby("letter")["preprocessing"].first()
    return [f"{letter}: {text}" for letter, text in lettered.items()]


def _splits(records: pd.DataFrame) -> Iterator[str]:
    """Which splits were used, where they are not simply train and test."""
    texts = splits_text(records)
    for text, columns in records["column"].groupby(texts).unique().items():
        if text != "train → test":
            where = "" if texts.nunique() == 1 else f" for {listed(sorted(columns))}"
            yield f"splits{where}: {text} (learned from → scored on)"


def _signs(records: pd.DataFrame) -> Iterator[str]:
    deviations = records[records["deviations"] != ""].groupby("column")["deviations"].first()
    for column, text in deviations.items():
        yield f"{DEVIATES} {column} is not as its task file says, taken by --accept-sizes: {text}"
    if synthetic := sorted(set(records[records["synthetic"].astype(bool)]["column"])):
        yield f"{SYNTHETIC} synthetic: rendered by a program ({listed(synthetic)})"


def _untrained(records: pd.DataFrame) -> Iterator[str]:
    if (records["representation_provenance"] == "untrained").any():
        yield "untrained: newly initialised weights, scored because --allow-untrained was given"
