"""The columns beside the scores of a table: normalised score, mean rank, costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from vitbench.reporting.costs import DIGITS, cost_columns
from vitbench.reporting.labels import ROW_LABELS
from vitbench.reporting.summaries import MEAN_RANK, NORMALISED, Extra, mean_rank_column, normalised_column

if TYPE_CHECKING:
    from vitbench.reporting.boards import Show

NOT_HERE = "no normalised score and no mean rank here: they are over tasks, all of which must be there, at one shot"


def beside(
    records: pd.DataFrame, rows: Sequence[str], scores: pd.DataFrame, chance: pd.Series, show: Show
) -> tuple[dict[str, Extra], list[str]]:
    """The columns that are asked for, and the notes that say what they are.

    Args:
        records: Labelled records, one for each row, column and seed.
        rows: The columns that label a row; each row has one backbone and representation where costs are shown.
        scores: Rows × the sets of data over which a row is summed up, percent; no column where that means nothing.
        chance: The chance of each set of data, percent.
        show: What is asked for.
    """
    found: dict[str, Extra] = {}
    notes: list[str] = []
    if (show.normalised or show.mean_rank) and not scores.shape[1]:
        notes.append(NOT_HERE)
    if show.normalised and scores.shape[1]:
        found[NORMALISED], note = normalised_column(scores, chance, show.rank_incomplete)
        notes.append(note)
    if show.mean_rank and scores.shape[1]:
        found[MEAN_RANK], note = mean_rank_column(scores)
        notes.append(note)
    if show.costs is not None:
        frame, told = cost_columns(records, show.costs, show.device)
        firsts = records.drop_duplicates(list(rows))
        costs = frame.reindex(pd.MultiIndex.from_frame(firsts[ROW_LABELS]))
        costs.index = pd.MultiIndex.from_frame(firsts[list(rows)])
        found |= {name: Extra(costs[name], DIGITS[name.split(" [")[0]]) for name in costs.columns}
        notes += told
    return found, notes
