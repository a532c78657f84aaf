"""Leaderboards: rows are backbone × representation, columns are tasks, cells are scores in percent over seeds.

Records that do not measure the same thing never share a column: one table is one protocol with one set of parameters, over full
test splits or over equally limited ones, at one shot; where there is a single task, its shots are the columns. Side by side, the
protocol with its parameters and shot is one more label of a row. A suite whose tasks lie in groups has a table of its means, then
a table per group.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

import pandas as pd

from vitbench.errors import UsageError, listed, unknown
from vitbench.protocols.metrics import NEEDS
from vitbench.reporting.boards import Groups, Leaderboard, Show, means_board, tasks_board
from vitbench.reporting.labels import ROW_LABELS, labelled, shot_label, splits_text
from vitbench.reporting.pivot import pivot_boards
from vitbench.reporting.side_by_side import SUBJECT, differences, with_settings
from vitbench.reporting.suites import grouped_suites
from vitbench.reporting.summaries import EFFICIENCY, efficiency_records


def leaderboards(
    frame: pd.DataFrame,
    *,
    shots: Sequence[int] = (),
    tasks: Sequence[str] = (),
    protocol: str | None = None,
    limited: bool = False,
    metric: str | None = None,
    suites: Mapping[str, Sequence[str]] | None = None,
    published: pd.DataFrame | None = None,
    show: Show | None = None,
    efficiency: bool = False,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> list[Leaderboard]:
    """Make every leaderboard that the records allow, in order of protocol, parameters and shot.

    Args:
        frame: What `vitbench.load_results` gives; with a column `path` (the record's file) for intervals over test images.
        shots: Only these; all if empty. 0 stands for all train images.
        tasks: Only these (full names); all if empty.
        protocol: Only this; all if None.
        limited: Show records of limited runs in place of full ones.
        metric: The score to show; each task's own metric if None.
        suites: Every folder of tasks and the tasks in it (`vitbench.tasks.catalog.suites()`); those with subfolders are shown
            by group.
        published: Published numbers (`read_published()`) to show below one's own.
        show: What else to show, and whether protocols stand side by side.
        efficiency: Add tables of label efficiency over the shots that there are.
        rows: Fields of records whose values make the rows, in place of backbone and representation.
        columns: Fields whose values make the columns, in place of the task.

    Raises:
        UsageError: No record is left, or none has such a score; what there is is named. A field does not exist. Side by side, a
            pivot or label efficiency is asked for.
    """
    show = replace(show or Show(), published=published)
    if show.side_by_side and (rows or columns or efficiency):
        raise UsageError(
            "--side-by-side has rows and columns of its own: leave --rows, --columns and --label-efficiency out"
        )
    chosen = frame
    if len(frame):
        chosen = frame[frame["limit"].notna() if limited else frame["limit"].isna()]
        for column, wanted in (
            ("shot", list(shots)),
            ("task", list(tasks)),
            ("protocol", [protocol] if protocol else []),
        ):
            chosen = chosen[chosen[column].isin(wanted)] if wanted else chosen
    if not len(chosen):
        raise UsageError(_nothing_left(frame, shots, tasks, protocol, limited))
    hidden = int((frame["limit"].isna() if limited else frame["limit"].notna()).sum())
    told = [f"{hidden} {'full' if limited else 'limited'} records are left out: they are never mixed"] if hidden else []
    if limited and published is not None:
        told.append("published numbers are of whole test splits: they are not shown beside limited runs")
        show = replace(show, published=None)
    measured, without = _measured(chosen, metric)
    records, told = labelled(measured), [*told, *without]
    if rows or columns:
        return list(pivot_boards(records, list(frame.columns), rows, columns, told, show))
    if show.side_by_side:
        return list(_side_by_side(with_settings(records), told, grouped_suites(suites or {}), show))
    return list(_boards(records, told, grouped_suites(suites or {}), show, efficiency))


def _boards(
    records: pd.DataFrame, told: Sequence[str], suites: Mapping[str, Groups], show: Show, efficiency: bool
) -> Iterator[Leaderboard]:
    alike = records.groupby(["protocol", "parameters", "limit"], dropna=False, sort=True)
    for _, group in sorted(alike, key=lambda one: _natural(one[0])):
        if group["column"].nunique() == 1 and group["shot"].nunique() > 1:
            ordered = group.assign(whole=group["shot"] == 0).sort_values(["whole", "shot"], kind="stable")
            ordered = ordered.assign(column=ordered["shot"].map(shot_label))
            yield tasks_board(ordered, group["column"].iloc[0], told, summed=False, show=show)
        else:
            for _, part in group.groupby("shot", sort=True):
                yield from _of_one_shot(
                    part, shot_label(part["shot"].iloc[0], part["n_support"].max()), told, suites, show
                )
        if efficiency:
            yield from _efficiency(group, told, suites, show)


def _side_by_side(
    records: pd.DataFrame, told: Sequence[str], suites: Mapping[str, Groups], show: Show
) -> Iterator[Leaderboard]:
    """The tables of all protocols, parameters and shots, over full test splits or over equally limited ones."""
    for _, group in records.groupby("limit", dropna=False, sort=True):
        yield from _of_one_shot(group, SUBJECT, [*told, *differences(group)], suites, show)


def _natural(labels: Sequence[object]) -> list[list[str | int]]:
    """What texts are in order by when the numbers in them are in order of size: k=5 before k=20."""
    return [[int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", str(text))] for text in labels]


def _of_one_shot(
    records: pd.DataFrame, subject: str, told: Sequence[str], suites: Mapping[str, Groups], show: Show
) -> Iterator[Leaderboard]:
    rest = records
    for suite, groups in suites.items():
        members = records[records["task"].isin([task for tasks in groups.values() for task in tasks])]
        if members["task"].nunique() > 1:
            yield from _suite_boards(members, subject, suite, groups, told, show)
            rest = rest.drop(members.index)
    if len(rest):
        yield tasks_board(rest.sort_values("column", kind="stable"), subject, told, mean=True, show=show)


def _efficiency(
    records: pd.DataFrame, told: Sequence[str], suites: Mapping[str, Groups], show: Show
) -> Iterator[Leaderboard]:
    """The tables of label efficiency, where there are shots to make it of."""
    areas, shots = efficiency_records(records)
    if not len(areas):
        return
    method = (
        f"area under the score against log(shots), {shots}, divided by the range of log(shots); rows with all of these"
    )
    kept = replace(show, published=None, interval="seeds" if show.interval == "combined" else show.interval)
    places = [*ROW_LABELS, "column"]
    for board in _of_one_shot(areas, EFFICIENCY, [*told, f"{EFFICIENCY}: {method}"], suites, kept):
        shown = board.records.set_index(places).index
        drawn = records[records["shot"] > 0]
        # A group's table has short names of tasks as columns.
        behind = drawn[drawn["key"].notna()].merge(
            board.records[[*ROW_LABELS, "task", "train_fingerprint", "test_fingerprint", "column"]].drop_duplicates(),
            on=[*ROW_LABELS, "task", "train_fingerprint", "test_fingerprint"],
            suffixes=("_long", ""),
        )
        yield replace(board, level=EFFICIENCY, behind=behind[behind.set_index(places).index.isin(shown)])


def _suite_boards(
    records: pd.DataFrame, subject: str, suite: str, groups: Groups, told: Sequence[str], show: Show
) -> Iterator[Leaderboard]:
    """A suite's table of means, where there is one, and its groups; by pair of splits where these tell sets of data apart."""
    marks = " [" + splits_text(records) + "]"
    several = any(mark in column for mark, column in zip(marks, records["column"], strict=True))
    for mark, part in records.groupby(marks if several else marks.str[:0]):
        edition = part.assign(column=part["column"].str.replace(str(mark), "", regex=False))
        members = {group: edition[edition["task"].isin(tasks)] for group, tasks in groups.items()}
        there, first = [group for group in groups if len(members[group])], list(told)
        whole = any(set(tasks) <= set(edition["task"]) for tasks in groups.values())
        if len(there) > 1 and (whole or show.rank_incomplete):
            yield means_board(edition, f"{subject} · {suite}{mark}", suite, groups, first, show)
            first = []
        for group in there:
            folder = suite if group == suite else f"{suite}/{group}"
            short = members[group]["column"].str.removeprefix(f"{folder}/")
            own = members[group].assign(column=short).sort_values("column", kind="stable")
            yield tasks_board(own, f"{subject} · {folder}{mark}", first, group=groups[group], show=show)


def _measured(records: pd.DataFrame, metric: str | None) -> tuple[pd.DataFrame, list[str]]:
    """Add `value`, `shown_metric` and the chance of that metric; leave out, with a note, records that do not have it."""
    there = [name for name in NEEDS if name in records and records[name].notna().any()]
    if metric is not None and metric not in there:
        raise unknown("metric", metric, there, hint=f"the records have {', '.join(there) or 'none'}")
    shown = records["metric"] if metric is None else pd.Series(metric, index=records.index)
    value = records["score"] if metric is None else records[metric]
    # Chance is recorded for a task's own metric; a guess that is uniform over K classes has 1 / K, and 5 / K in the top 5.
    uniform = {"accuracy": 1.0, "mean_per_class_accuracy": 1.0, "top5_accuracy": 5.0}
    choices = records["way"].fillna(records["num_classes"]) if "way" in records else records["num_classes"]
    guess = (shown.map(uniform) / choices).clip(upper=1.0)
    chance = records["chance"].where(shown == records["metric"], guess)
    missing = value.isna()
    if missing.all():
        raise UsageError(
            f"no record has a score of its task's own metric: name another with --metric ({', '.join(there)})"
        )
    notes = []
    if missing.any():
        which = listed(sorted(set(records["task"][missing])))
        notes = [f"{int(missing.sum())} records have no {metric or 'score'} and are left out: {which}"]
    return records.assign(value=value.astype(float), shown_metric=shown, chance=chance)[~missing], notes


def _nothing_left(
    frame: pd.DataFrame, shots: Sequence[int], tasks: Sequence[str], protocol: str | None, limited: bool
) -> str:
    if not len(frame):
        return "there are no records yet: make some with `vitbench run`"
    full, part = int(frame["limit"].isna().sum()), int(frame["limit"].notna().sum())
    if (limited and not part) or (not limited and not full):
        return f"all {full + part} records are {'full' if limited else 'limited; show them with --limited'}"
    there = (
        f"shots {', '.join(map(_shot_text, sorted(frame['shot'].unique())))}; tasks {', '.join(sorted(frame['task'].unique()))}; "
        f"protocols {', '.join(sorted(frame['protocol'].unique()))}"
    )
    asked = [
        f"shots {', '.join(map(_shot_text, shots))}" if shots else "",
        f"tasks {', '.join(tasks)}" if tasks else "",
    ]
    asked.append(f"protocol {protocol}" if protocol else "")
    return f"no record has {' and '.join(part for part in asked if part)}; there are {there}"


def _shot_text(shot: int) -> str:
    return str(shot) if shot else f"0 ({shot_label(0)})"


def match_tasks(patterns: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """The tasks among the records that a name, a suite or a glob means; also tasks that are no longer installed.

    Raises:
        UsageError: A pattern means none of them; the nearest is offered.
    """
    there = sorted(frame["task"].unique()) if len(frame) else []
    found: list[str] = []
    for asked in patterns:
        # A folder of images is recorded by its name, and may be asked for as it was run: imagefolder:PATH.
        kind, _, path = asked.partition(":")
        pattern = f"imagefolder/{PurePath(path).name}" if kind == "imagefolder" and path else asked
        matches = [
            name
            for name in there
            if pattern in (name, name.split("/")[-1])
            or name.startswith(f"{pattern}/")
            or fnmatch.fnmatchcase(name, pattern)
        ]
        if not matches:
            raise unknown("task among the records:", pattern, [*there, *(name.split("/")[-1] for name in there)])
        found += matches
    return list(dict.fromkeys(found))
