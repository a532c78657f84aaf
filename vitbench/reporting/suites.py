"""Suites whose tasks lie in groups, such as VTAB's natural, specialized and structured: their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

MEAN = "Mean"
MEAN_OF_GROUPS = "Mean of groups"


def aggregate(
    scores: pd.DataFrame | pd.Series, groups: Mapping[str, Sequence[str]], *, partial: bool = False
) -> pd.DataFrame:
    """The means of a suite, of every row by itself.

    A mean exists only where every one of its tasks is there: a mean of some of them would not be the number that others
    report under its name. The mean of all tasks is not the mean of the group means, unless the groups are of one size.

    Args:
        scores: One row per thing that was scored (`[R, T]`, any index), one column per task; other columns are not read. A
            series of one score per task is one row.
        groups: Name of each group and the tasks in it.
        partial: Take means over the tasks and groups that are there all the same: to be marked wherever they are shown.

    Returns:
        The same rows; one column per group (the plain mean of its tasks), `Mean` (the plain mean of all tasks) and
        `Mean of groups` (the unweighted mean of the group means), in the unit of `scores`; NaN where a task is missing.

    Raises:
        ValueError: A group is empty or called as a mean is, or a task is in two groups.
    """
    table = scores.to_frame().T if isinstance(scores, pd.Series) else scores
    tasks = [task for members in groups.values() for task in members]
    if len(set(tasks)) < len(tasks) or not all(groups.values()) or {MEAN, MEAN_OF_GROUPS} & set(groups):
        raise ValueError(f"groups that cannot be averaged: {dict(groups)}")
    whole = table.reindex(columns=tasks).astype(float)
    means = pd.DataFrame(
        {group: whole[list(members)].mean(axis=1, skipna=partial) for group, members in groups.items()},
        index=table.index,
    )
    overall, of_groups = whole.mean(axis=1, skipna=partial), means.mean(axis=1, skipna=partial)
    return means.assign(**{MEAN: overall, MEAN_OF_GROUPS: of_groups})


def grouped_suites(suites: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """The suites that have subfolders, and the tasks of each subfolder.

    Args:
        suites: Every folder of tasks and the full names of the tasks in it, subfolders included.

    Returns:
        Suite (a folder that lies in no other) to group (the rest of the task's folder; the suite's own name for tasks that
        lie directly in it) to full names of tasks.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for suite, tasks in suites.items():
        if "/" in suite or all(task.count("/") == 1 for task in tasks):
            continue
        groups = found.setdefault(suite, {})
        for task in tasks:
            folder = task.rpartition("/")[0]
            groups.setdefault(folder.removeprefix(f"{suite}/"), []).append(task)
    return found
