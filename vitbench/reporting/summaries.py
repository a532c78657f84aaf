"""Numbers beside the scores of a row: normalised score, mean rank; and label efficiency as a score of its own."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from vitbench.errors import DataError, listed
from vitbench.reporting.conflicts import settle
from vitbench.reporting.labels import ROW_LABELS
from vitbench.reporting.statistics import label_efficiency, mean_rank, normalised

NORMALISED, MEAN_RANK, EFFICIENCY = "normalised", "mean rank", "label efficiency"


@dataclass(frozen=True)
class Extra:
    """A column beside the scores.

    Attributes:
        values: One per row, NaN where there is none.
        digits: How many to show behind the point.
    """

    values: pd.Series
    digits: int


def normalised_column(scores: pd.DataFrame, chance: pd.Series, partial: bool) -> tuple[Extra, str]:
    """The mean over tasks of (score − chance) / (1 − chance), in percent.

    Args:
        scores: Rows × the tasks that are averaged, percent.
        chance: The chance of each, percent.
        partial: Take it over the tasks that a row has.

    Returns:
        The column, and the note that says what it is.
    """
    try:
        values = pd.DataFrame(
            normalised(scores / 100, chance[scores.columns].to_numpy() / 100),
            index=scores.index,
            columns=scores.columns,
        )
    except DataError as error:
        return Extra(pd.Series(float("nan"), index=scores.index), 1), f"{NORMALISED}: none, {error}"
    mean = values.mean(axis=1, skipna=partial) * 100
    return Extra(mean, 1), f"{NORMALISED}: (score − chance) / (1 − chance) in %, mean over {_tasks(scores)}"


def mean_rank_column(scores: pd.DataFrame) -> tuple[Extra, str]:
    """The rank of each row within each task, averaged; 1 is best. Rows that lack a task have none."""
    values = pd.Series(mean_rank(scores.to_numpy()), index=scores.index)
    ranked = int(values.notna().sum())
    return Extra(
        values, 2
    ), f"{MEAN_RANK}: over {_tasks(scores)}, among the {ranked} complete rows of this table; 1 is best"


def efficiency_records(records: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Label efficiency in place of the score: a record for each row, task and seed that has every shot.

    It is the area under the score against log(shots), divided by the range of log(shots).

    Args:
        records: Labelled records of one protocol and limit.

    Returns:
        The records, of which those of the lowest shot stand for all, and the shots in words. None where there are not two shots
        above 0, or nothing has all of them.
    """
    places = [*ROW_LABELS, "column", "seed"]
    drawn = records[records["shot"] > 0]
    shots = sorted(int(shot) for shot in drawn["shot"].unique())
    if len(shots) < 2:
        return drawn.head(0), ""
    # A cell in conflict has no area; which records contradict each other is told by the table of their shot.
    once, _, _ = settle(drawn, [*ROW_LABELS, "shot"])
    table = once.pivot(index=places, columns="shot", values="value").reindex(columns=shots).dropna()
    areas = pd.Series(label_efficiency(shots, table.to_numpy()), index=table.index, dtype=float)
    firsts = once[once["shot"] == shots[0]].set_index(places, drop=False)
    firsts = firsts.loc[firsts.index.isin(areas.index)]
    return firsts.assign(value=areas.reindex(firsts.index)).reset_index(drop=True), listed(map(str, shots), most=12)


def _tasks(scores: pd.DataFrame) -> str:
    return f"{scores.shape[1]} tasks" if scores.shape[1] > 1 else str(scores.columns[0])
