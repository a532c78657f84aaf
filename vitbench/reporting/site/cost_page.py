"""What accuracy costs: score against parameters, and against whatever was measured."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd

from vitbench.records.costs import Cost
from vitbench.reporting.costs import GFLOPS, MEMORY, PARAMETERS, SPEED, cost_columns
from vitbench.reporting.labels import ROW_LABELS
from vitbench.reporting.pareto import front
from vitbench.reporting.site.content import Block, Cell, Column, Lines, Page, Section, Table
from vitbench.reporting.site.pages import Report
from vitbench.reporting.site.plots import cost_plot
from vitbench.reporting.site.tables import MISSING, measurement, model_page

MILLISECONDS = "ms/image"


def cost_page(report: Report, costs: Sequence[Cost]) -> Page:
    """Score against every cost that is known, each with its Pareto front.

    Args:
        report: Whose front page's first table gives the scores.
        costs: What `vitbench cost` measured; none where it was not asked.
    """
    if report.headline is None:
        return Page("cost.html", "Cost", [Section("", [Lines(["no record has a score"])])], area="Cost")
    board = report.headline.boards[0]
    column = board.ranked_by or str(board.cells.columns[-1])
    records = report.collection.records
    shown = records[records["cell"].isin(board.records["cell"])]
    scores = _scores(board.cells[column].iloc[:-1], board.records, shown)
    known, notes = cost_columns(shown, costs)
    table = known.loc[[labels for labels in scores.index if labels in known.index]].dropna(axis="columns", how="all")
    axes = [
        name
        for name in table.columns
        if name.startswith((PARAMETERS, GFLOPS, SPEED, MEMORY)) and table[name].notna().any()
    ]
    of_row = dict(_items(scores))
    blocks: list[Block] = []
    fronts: dict[str, set[tuple[str, ...]]] = {}
    for name in axes:
        axis = name.replace(SPEED, MILLISECONDS)
        cost = (1000 / table[name] if axis != name else table[name]).dropna()
        # A logarithmic axis has no place for raw pixels, which have no parameters.
        drawn = [(labels, value, of_row[labels]) for labels, value in _items(cost) if value > 0]
        if not drawn:
            continue
        drawn.sort(key=lambda row: row[1])
        on_front = front([value for _, value, _ in drawn], [score for _, _, score in drawn])
        places = [place for place, there in enumerate(on_front) if there]
        fronts[name] = {drawn[place][0] for place in places}
        what = f"{column} · {board.title}, against {axis}."
        caption = f"{what} On the line are the rows that no other one beats in score at the same cost or less."
        best = "; ".join(f"{' '.join(filter(None, drawn[place][0]))} {drawn[place][2]:.1f} %" for place in places)
        named = [(" · ".join(filter(None, labels)), value, score) for labels, value, score in drawn]
        blocks.append(cost_plot(named, places, axis, caption, f"{what} On the Pareto front: {best}"))
    blocks.append(_table(table, of_row, fronts, shown, f"Score and cost · {column} · {board.title}", notes))
    return Page("cost.html", "Cost", [Section("", blocks)], lead="What accuracy costs.", area="Cost")


def _items(values: pd.Series) -> list[tuple[tuple[str, ...], float]]:
    return list(zip(values.index.tolist(), values.tolist(), strict=True))


def _scores(cells: pd.Series, ranked: pd.DataFrame, shown: pd.DataFrame) -> pd.Series:
    """The scores of the rows of a table, by the labels that they have in the report."""
    of_row = ranked.drop_duplicates(ROW_LABELS).set_index(ROW_LABELS)["cell"]
    labels = shown.drop_duplicates("cell").set_index("cell")[ROW_LABELS]
    known = cells.dropna()
    places = [tuple(labels.loc[of_row[row]]) for row in known.index]
    return pd.Series(known.to_numpy(), index=pd.MultiIndex.from_tuples(places, names=ROW_LABELS), dtype=float)


def _table(
    costs: pd.DataFrame,
    scores: dict[tuple[str, ...], float],
    fronts: dict[str, set[tuple[str, ...]]],
    records: pd.DataFrame,
    caption: str,
    notes: Sequence[str],
) -> Table:
    firsts: dict[tuple[str, ...], dict[Hashable, Any]] = {
        tuple(row[name] for name in ROW_LABELS): row for row in records.drop_duplicates(ROW_LABELS).to_dict("records")
    }
    rows = []
    labels: tuple[str, ...]
    for labels, values in zip(costs.index.tolist(), costs.to_numpy(dtype=float).tolist(), strict=True):
        first = firsts[labels]
        cells = [
            Cell(labels[0], href=model_page(str(first["model"]))),
            Cell(f"{labels[1]} {labels[2]}".strip()),
            Cell(f"{scores[labels]:.1f}", href=measurement(first).partition("#")[0]),
        ]
        for name, value in zip(costs.columns, values, strict=True):
            best = labels in fronts.get(name, ())
            cells.append(Cell(MISSING) if pd.isna(value) else Cell(f"{value:,.4g}", value=float(value), strong=best))
        rows.append(cells)
    columns = [Column("backbone"), Column("representation", choices=True), Column("score %", numeric=True)]
    said = [*notes, "bold: on the Pareto front of that cost"]
    return Table(caption, [*columns, *(Column(str(name), numeric=True) for name in costs.columns)], rows, notes=said)
