"""One table, of tasks or of a suite's means, from records that may share a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from vitbench.reporting import footnotes
from vitbench.reporting.labels import ROW_LABELS, signs
from vitbench.reporting.published import published_scores
from vitbench.reporting.suites import MEAN as SUITE_MEAN
from vitbench.reporting.suites import MEAN_OF_GROUPS, aggregate

MEAN = "mean"
MIXED_MEAN = "mean of the tasks' own metrics"

Groups = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Leaderboard:
    """One table.

    Attributes:
        title: Protocol, parameters, shot, limit, and the metric where it is not accuracy.
        cells: Index (backbone, representation, variant), columns tasks and means; scores in percent, mean over seeds; NaN
            where a record is missing. The last row is chance.
        spread: The same columns, without chance: standard deviation over seeds (n - 1) in percentage points, NaN for a single
            seed.
        notes: What a reader must know, a line each.
        records: The records behind the cells.
        signs: Column to the signs that stand behind its name and that a note explains.
        means: Of a suite's table of means: column to what is averaged (`vtab/natural`) and how (`group mean`); else empty.
        published: Rows of published numbers in the same columns, in percent; none unless they were asked for.
    """

    title: str
    cells: pd.DataFrame
    spread: pd.DataFrame
    notes: Sequence[str]
    records: pd.DataFrame
    signs: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    published: pd.DataFrame = field(default_factory=pd.DataFrame)


def tasks_board(
    records: pd.DataFrame,
    subject: str,
    told: Sequence[str] = (),
    *,
    mean: bool = False,
    group: Sequence[str] = (),
    published: pd.DataFrame | None = None,
) -> Leaderboard:
    """A table of tasks.

    Args:
        records: Labelled records, one for each row, column and seed at most; the columns in their order of appearance.
        subject: What the table is about, for its title.
        told: Notes that do not come from the records.
        mean: Add the mean of the columns.
        group: Full names of the tasks of a suite's group, whose mean is added where all of them are there.
        published: Published numbers to show below, or None.
    """
    columns = list(dict.fromkeys(records["column"]))
    name = ""
    if group:
        whole = len(group) > 1 and set(group) <= set(_single(records))
        name = f"{MEAN} of {len(group)}" if whole else ""
    elif mean and len(columns) > 1:
        name = MEAN if records["shown_metric"].nunique() == 1 else MIXED_MEAN

    def arrange(scores: pd.DataFrame) -> pd.DataFrame:
        averaged = by_task(scores, records).reindex(columns=list(group)) if group else scores
        means = averaged.mean(axis=1, skipna=False)
        return scores[columns].assign(**({name: means} if name else {}))

    lines = footnotes.lacking(records, group) if group else []
    complete = records.groupby([*ROW_LABELS, "seed"])["column"].nunique() == len(columns)
    if name and not group and not complete.groupby(level=ROW_LABELS).any().all():
        lines = ["rows without a mean lack a task, or have no seed that all their tasks share"]
    return _board(records, subject, arrange, [*told, *footnotes.of_tasks(records), *lines], published)


def means_board(
    records: pd.DataFrame,
    subject: str,
    suite: str,
    groups: Groups,
    told: Sequence[str] = (),
    published: pd.DataFrame | None = None,
) -> Leaderboard:
    """The table of a suite's means: of each group, of all tasks, of the group means.

    Args:
        records: Labelled records of the suite's tasks.
        subject: What the table is about, for its title.
        suite: The suite's name.
        groups: Its groups and the full names of their tasks.
        told: Notes that do not come from the records.
        published: Published numbers to show below, or None.
    """
    every = [task for tasks in groups.values() for task in tasks]
    names = {group: f"{group} ({len(tasks)})" for group, tasks in groups.items()}
    names |= {SUITE_MEAN: f"{MEAN} of {len(every)}", MEAN_OF_GROUPS: f"{MEAN} of {len(groups)} groups"}
    means = {names[group]: (group if group == suite else f"{suite}/{group}", "group mean") for group in groups}
    means |= {names[SUITE_MEAN]: (suite, "mean"), names[MEAN_OF_GROUPS]: (suite, "mean of groups")}
    task_signs = {task: sign for task, column in _single(records).items() if (sign := signs(records)[column])}
    averaged = {names[group]: tasks for group, tasks in groups.items()}
    averaged |= {names[SUITE_MEAN]: every, names[MEAN_OF_GROUPS]: every}
    return _board(
        records,
        subject,
        lambda scores: aggregate(by_task(scores, records), groups).rename(columns=names),
        [*told, *footnotes.of_means(records, len(every)), *footnotes.lacking(records, every)],
        published,
        by=names[SUITE_MEAN],
        means=means,
        shown_signs={
            name: "".join(sorted({sign for task in tasks for sign in task_signs.get(task, "")}))
            for name, tasks in averaged.items()
        },
    )


def _board(
    records: pd.DataFrame,
    subject: str,
    arrange: Callable[[pd.DataFrame], pd.DataFrame],
    notes: Sequence[str],
    published: pd.DataFrame | None,
    *,
    by: str = "",
    means: Mapping[str, tuple[str, str]] | None = None,
    shown_signs: Mapping[str, str] | None = None,
) -> Leaderboard:
    """Put a table together; `arrange` makes its columns from one column per task, of scores, chance and published numbers."""
    # `pivot` refuses two records in one place, where a mean would hide them.
    by_seed = records.pivot(index=[*ROW_LABELS, "seed"], columns="column", values="value") * 100
    # A mean is made within each seed first: it is over the seeds that every task of the row has, and so is its spread.
    grouped = arrange(by_seed).groupby(level=ROW_LABELS, sort=False)
    cells, spread = grouped.mean(), grouped.std(ddof=1)
    order = cells[by or cells.columns[-1]].sort_values(ascending=False, na_position="last", kind="stable").index
    chance = arrange(records.groupby("column")["chance"].first().to_frame().T * 100)
    chance.index = pd.MultiIndex.from_tuples([("chance", "", "")])
    cells, spread = pd.concat([cells.loc[order], chance[cells.columns]]), spread.loc[order]
    below, sources = _published_rows(records, published, arrange, by)
    names = ["backbone", "representation", "variant"]
    cells.columns.name = spread.columns.name = None
    return Leaderboard(
        title=_title(records, subject),
        cells=cells.rename_axis(index=names),
        spread=spread.rename_axis(index=names),
        notes=[*notes, *sources],
        records=records,
        signs=signs(records) if shown_signs is None else shown_signs,
        means=means or {},
        published=below,
    )


def _published_rows(
    records: pd.DataFrame, published: pd.DataFrame | None, arrange: Callable[[pd.DataFrame], pd.DataFrame], by: str
) -> tuple[pd.DataFrame, list[str]]:
    if published is None:
        return pd.DataFrame(), []
    columns = records[records["shown_metric"] == "accuracy"].drop_duplicates("column").set_index("column")["task"]
    scores, sources = published_scores(published, columns.unique().tolist())
    scores = scores.reindex(columns=columns.to_list()).set_axis(columns.index, axis=1)
    rows = arrange(scores.reindex(columns=records["column"].unique())).dropna(how="all")
    if not len(rows):
        return pd.DataFrame(), ["there are no published numbers for this table"]
    return rows.sort_values(by or rows.columns[-1], ascending=False, na_position="last", kind="stable"), sources


def by_task(scores: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """A column per task from a column per set of data; a task that stands for several of them is left out."""
    single = _single(records)
    return scores[list(single.values())].set_axis(list(single), axis=1)


def _single(records: pd.DataFrame) -> dict[str, str]:
    """Task to its column, of the tasks that stand for one set of data."""
    columns = records.groupby("task")["column"].unique()
    return {str(task): found[0] for task, found in columns.items() if len(found) == 1}


def _title(records: pd.DataFrame, subject: str) -> str:
    first = records.iloc[0]
    limit = "" if pd.isna(first["limit"]) else f" · LIMITED to {int(first['limit'])} test images"
    metrics = set(records["shown_metric"])
    metric = f" · {metrics.pop()}" if len(metrics) == 1 and metrics != {"accuracy"} else ""
    return f"{first['protocol']} · {first['protocol_label']} · {subject}{metric}{limit}"
