"""One table, of tasks or of a suite's means, from records that may share a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from vitbench.records.costs import Cost
from vitbench.reporting import footnotes
from vitbench.reporting.beside import beside
from vitbench.reporting.conflicts import Place, settle
from vitbench.reporting.intervals import ends
from vitbench.reporting.labels import ROW_LABELS, SETTING, setting_title, signs
from vitbench.reporting.published import published_rows
from vitbench.reporting.suites import MEAN as SUITE_MEAN
from vitbench.reporting.suites import MEAN_OF_GROUPS, aggregate
from vitbench.reporting.summaries import Extra

MEAN = "mean"
MIXED_MEAN = "mean of the tasks' own metrics"
PARTIAL = "*"
"""Stands behind a mean of some of its tasks."""

Groups = Mapping[str, Sequence[str]]
Arrange = Callable[[pd.DataFrame, bool], pd.DataFrame]
"""Makes a table's columns from one column per set of data; if the second argument is true, means are over what is there."""


@dataclass(frozen=True)
class Show:
    """What a table shows beside scores, and how.

    Attributes:
        interval: `seeds`, `combined` or `none` (see `vitbench.reporting.intervals`).
        normalised: Add the mean normalised score.
        mean_rank: Add the mean rank over tasks.
        rank_incomplete: Give rows that lack tasks a mean of the others, marked, and rank them by it.
        costs: Measurements to show beside the rows; None for no such columns.
        device: Show only costs of devices whose name has this in it.
        published: Published numbers to show below; None for none.
        side_by_side: Records have a `setting`, which makes rows too: the table may hold several protocols.
    """

    interval: str = "seeds"
    normalised: bool = False
    mean_rank: bool = False
    rank_incomplete: bool = False
    costs: Sequence[Cost] | None = None
    device: str = ""
    published: pd.DataFrame | None = None
    side_by_side: bool = False

    @property
    def rows(self) -> list[str]:
        """The columns of records that label a row."""
        return [*ROW_LABELS, SETTING] if self.side_by_side else list(ROW_LABELS)

    @property
    def names(self) -> list[str]:
        """What the table calls them."""
        return ["backbone", "representation", "variant", *(["protocol"] if self.side_by_side else [])]


@dataclass(frozen=True)
class Leaderboard:
    """One table.

    Attributes:
        title: Protocol, parameters, shot, limit, and the metric where it is not accuracy.
        cells: Index (backbone, representation, variant), or the fields of a pivot; columns tasks and means; scores in percent,
            mean over seeds; NaN where a record is missing. The last row is chance, NaN where a column has more than one.
        spread: The same columns, without chance: standard deviation over seeds (n - 1) in percentage points, NaN for a single
            seed.
        notes: What a reader must know, a line each.
        records: The records that the cells are means of.
        signs: Column to the signs that stand behind its name and that a note explains.
        means: Of a suite's table of means: column to what is averaged (`vtab/natural`) and how (`group mean`); else empty.
        published: Rows of published numbers in the same columns, in percent; none unless they were asked for.
        gaps: The best score of each column minus each published number, percentage points.
        interval: Which interval a cell shows.
        low: Lower ends of the combined intervals, percent, NaN where there is none; empty unless they were asked for.
        high: Upper ends.
        conflicts: Row and column to the text of a cell whose records contradict each other.
        partial: Row and column of each mean that is over some of its tasks.
        extras: Columns beside the scores: normalised score, mean rank, costs.
        ranked_by: The column by which the rows are in order.
        rows: The columns of `records` that label a row.
        behind: The records that the cells lead to: those in conflict too, and every shot of a label efficiency.
        level: What a cell is in the long form: `task`, or `label efficiency`.
    """

    title: str
    cells: pd.DataFrame
    spread: pd.DataFrame
    notes: Sequence[str]
    records: pd.DataFrame
    signs: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    published: pd.DataFrame = field(default_factory=pd.DataFrame)
    gaps: pd.DataFrame = field(default_factory=pd.DataFrame)
    interval: str = "seeds"
    low: pd.DataFrame = field(default_factory=pd.DataFrame)
    high: pd.DataFrame = field(default_factory=pd.DataFrame)
    conflicts: Mapping[Place, str] = field(default_factory=dict)
    partial: frozenset[Place] = frozenset()
    extras: Mapping[str, Extra] = field(default_factory=dict)
    ranked_by: str = ""
    rows: Sequence[str] = tuple(ROW_LABELS)
    behind: pd.DataFrame = field(default_factory=pd.DataFrame)
    level: str = "task"


def tasks_board(
    records: pd.DataFrame,
    subject: str,
    told: Sequence[str] = (),
    *,
    mean: bool = False,
    group: Sequence[str] = (),
    summed: bool = True,
    show: Show | None = None,
) -> Leaderboard:
    """A table of tasks.

    Args:
        records: Labelled records; the columns in their order of appearance.
        subject: What the table is about, for its title.
        told: Notes that do not come from the records.
        mean: Add the mean of the columns.
        group: Full names of the tasks of a suite's group, whose mean is added where all of them are there.
        summed: Whether the columns are tasks, over which a row can be summed up; shots are not.
        show: What to show beside the scores.
    """
    show = show or Show()
    columns, single = list(dict.fromkeys(records["column"])), _single(records)
    name, averaged = "", columns if summed else []
    if group:
        there = [task for task in group if task in single]
        averaged = [single[task] for task in there] if len(there) == len(group) or show.rank_incomplete else []
        name = f"{MEAN} of {len(group)}" if len(group) > 1 and averaged else ""
    elif mean and len(columns) > 1:
        name = MEAN if records["shown_metric"].nunique() == 1 else MIXED_MEAN

    def arrange(scores: pd.DataFrame, partial: bool) -> pd.DataFrame:
        members = by_task(scores, records).reindex(columns=list(group)) if group else scores[columns]
        means = members.mean(axis=1, skipna=partial)
        return scores[columns].assign(**({name: means} if name else {}))

    lines = footnotes.lacking(records, group, show.rows) if group else []
    complete = records.groupby([*show.rows, "seed"])["column"].nunique() == len(columns)
    if name and not group and not complete.groupby(level=show.rows).any().all() and not show.rank_incomplete:
        lines = ["rows without a mean lack a task, or have no seed that all their tasks share"]
    notes = [*told, *footnotes.of_tasks(records, show.interval), *lines]
    return assemble(
        records,
        _title(records, subject, show),
        arrange,
        notes,
        show,
        averaged=averaged,
        rows=show.rows,
        names=show.names,
    )


def means_board(
    records: pd.DataFrame, subject: str, suite: str, groups: Groups, told: Sequence[str] = (), show: Show | None = None
) -> Leaderboard:
    """The table of a suite's means: of each group, of all tasks, of the group means.

    Args:
        records: Labelled records of the suite's tasks.
        subject: What the table is about, for its title.
        suite: The suite's name.
        groups: Its groups and the full names of their tasks.
        told: Notes that do not come from the records.
        show: What to show beside the scores.
    """
    show = show or Show()
    every = [task for tasks in groups.values() for task in tasks]
    names = {group: f"{group} ({len(tasks)})" for group, tasks in groups.items()}
    names |= {SUITE_MEAN: f"{MEAN} of {len(every)}", MEAN_OF_GROUPS: f"{MEAN} of {len(groups)} groups"}
    means = {names[group]: (group if group == suite else f"{suite}/{group}", "group mean") for group in groups}
    means |= {names[SUITE_MEAN]: (suite, "mean"), names[MEAN_OF_GROUPS]: (suite, "mean of groups")}
    single = _single(records)
    task_signs = {task: sign for task, column in single.items() if (sign := signs(records)[column])}
    members = {names[group]: tasks for group, tasks in groups.items()}
    members |= {names[SUITE_MEAN]: every, names[MEAN_OF_GROUPS]: every}
    there = [task for task in every if task in single]
    notes = [*told, *footnotes.of_means(records, len(every), show.interval)]
    notes += footnotes.lacking(records, every, show.rows)
    return assemble(
        records,
        _title(records, subject, show),
        lambda scores, partial: aggregate(by_task(scores, records), groups, partial=partial).rename(columns=names),
        notes,
        show,
        averaged=[single[task] for task in there] if len(there) == len(every) or show.rank_incomplete else [],
        by=names[SUITE_MEAN],
        means=means,
        shown_signs={
            name: "".join(sorted({sign for task in tasks for sign in task_signs.get(task, "")}))
            for name, tasks in members.items()
        },
        rows=show.rows,
        names=show.names,
    )


def assemble(
    records: pd.DataFrame,
    title: str,
    arrange: Arrange,
    notes: Sequence[str],
    show: Show,
    *,
    averaged: Sequence[str] = (),
    by: str = "",
    means: Mapping[str, tuple[str, str]] | None = None,
    shown_signs: Mapping[str, str] | None = None,
    rows: Sequence[str] = tuple(ROW_LABELS),
    names: Sequence[str] = ("backbone", "representation", "variant"),
    ranked: bool = True,
) -> Leaderboard:
    """Put a table together.

    Args:
        records: Labelled records.
        title: The table's title.
        arrange: Makes the table's columns from one column per set of data, of scores, chance and published numbers.
        notes: The notes so far.
        show: What to show beside the scores.
        averaged: The sets of data over which a row is summed up; none where that means nothing.
        by: The column by which rows are in order; the last one if empty.
        means: See `Leaderboard`.
        shown_signs: Signs of the columns, where they are not those of the records.
        rows: The columns that label a row.
        names: Their names in the table.
        ranked: Whether rows are in order of score; else they are in order of appearance.
    """
    settled, conflicts, lines = settle(records, rows)
    index = pd.MultiIndex.from_frame(records[list(rows)].drop_duplicates())
    data = list(dict.fromkeys(records["column"]))
    by_seed = settled.pivot(index=[*rows, "seed"], columns="column", values="value").reindex(columns=data) * 100
    # A mean is made within each seed first: it is over the seeds that every task of the row has, and so is its spread.
    grouped = arrange(by_seed, False).groupby(level=list(rows), sort=False)
    cells, spread = _on(grouped.mean(), index), _on(grouped.std(ddof=1), index)
    scores = _on(by_seed.groupby(level=list(rows), sort=False).mean(), index)
    partial: frozenset[Place] = frozenset()
    if show.rank_incomplete:
        cells, partial = _filled(cells, arrange(scores, True))
    starred = [f"{PARTIAL} a mean of the tasks that the row has: it compares with no mean of all"] if partial else []
    ranked_by = by or str(cells.columns[-1])
    # Side by side, a row may be of one task alone: rows without a mean are in order within each task.
    keys = [ranked_by, *([name for name in cells.columns if name != ranked_by] if show.side_by_side else [])]
    order = cells.sort_values(keys, ascending=False, na_position="last", kind="stable").index if ranked else index
    chance = _chance(records, data)
    chance_row = arrange(chance.to_frame().T, False)[cells.columns]
    chance_row.index = pd.MultiIndex.from_tuples([("chance", *[""] * (len(rows) - 1))], names=list(rows))
    low, high, intervals = (
        ends(settled, rows, arrange, data, cells) if show.interval == "combined" else (None, None, [])
    )
    extras, beside_notes = beside(records, rows, scores[list(averaged)], chance, show)
    below, gaps, sources = published_rows(records, show.published, arrange, ranked_by, cells, means or {})
    below, gaps = (_widened(table, len(rows)) for table in (below, gaps))
    shown = pd.concat([cells.loc[order], chance_row])
    spread = spread.loc[order]
    shown.columns.name = spread.columns.name = None
    return Leaderboard(
        title=title,
        cells=shown.rename_axis(index=list(names)),
        spread=spread.rename_axis(index=list(names)),
        notes=[*notes, *starred, *lines, *intervals, *beside_notes, *sources],
        records=settled,
        signs=signs(records) if shown_signs is None else shown_signs,
        means=means or {},
        published=below,
        gaps=gaps,
        interval=show.interval,
        low=pd.DataFrame() if low is None else low,
        high=pd.DataFrame() if high is None else high,
        conflicts=conflicts,
        partial=partial,
        extras={name: Extra(extra.values.reindex(order), extra.digits) for name, extra in extras.items()},
        ranked_by=ranked_by,
        rows=tuple(rows),
        behind=records,
    )


def _on(table: pd.DataFrame, index: pd.MultiIndex) -> pd.DataFrame:
    """The table with every row of the index, which has levels even where there is one."""
    if not isinstance(table.index, pd.MultiIndex):
        table = table.set_axis(pd.MultiIndex.from_arrays([table.index], names=[table.index.name]))
    return table.reindex(index)


def _widened(published: pd.DataFrame, labels: int) -> pd.DataFrame:
    """Published rows with as many labels as one's own; those that they lack are empty."""
    if not len(published):
        return published
    wider = [(*found, *[""] * (labels - len(found))) for found in published.index]
    return published.set_axis(pd.MultiIndex.from_tuples(wider))


def _filled(cells: pd.DataFrame, part: pd.DataFrame) -> tuple[pd.DataFrame, frozenset[Place]]:
    """The cells with means over what is there in place of those that are missing, and which these are."""
    new = cells.isna() & part[cells.columns].notna()
    found = [(labels, str(column)) for column in new.columns for labels in new.index[new[column]]]
    return cells.where(~new, part), frozenset(found)


def _chance(records: pd.DataFrame, data: Sequence[str]) -> pd.Series:
    """The chance of each set of data in percent; NaN where a pivot's column has several."""
    guesses = records.groupby("column")["chance"].agg(["first", "nunique"])
    return (guesses["first"].where(guesses["nunique"] == 1) * 100).reindex(list(data))


def by_task(scores: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """A column per task from a column per set of data; a task that stands for several of them is left out."""
    single = _single(records)
    return scores[list(single.values())].set_axis(list(single), axis=1)


def _single(records: pd.DataFrame) -> dict[str, str]:
    """Task to its column, of the tasks that stand for one set of data."""
    columns = records.groupby("task")["column"].unique()
    return {str(task): found[0] for task, found in columns.items() if len(found) == 1}


def _title(records: pd.DataFrame, subject: str, show: Show) -> str:
    first = records.iloc[0]
    limit = "" if pd.isna(first["limit"]) else f" · LIMITED to {int(first['limit'])} test images"
    metrics = set(records["shown_metric"])
    metric = f" · {metrics.pop()}" if len(metrics) == 1 and metrics != {"accuracy"} else ""
    if show.side_by_side:
        return f"{subject}{metric}{limit}"
    return f"{first['protocol']} · {setting_title(first['protocol_label'], subject)}{metric}{limit}"
