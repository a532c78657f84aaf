"""Tables of the report: leaderboards whose numbers lead to their records, and lists of what there is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from vitbench.reporting.boards import Leaderboard
from vitbench.reporting.labels import ROW_LABELS, in_episodes
from vitbench.reporting.site.collection import Collection
from vitbench.reporting.site.content import Cell, Column, Table
from vitbench.reporting.statistics import Interval

MISSING = "—"
NO_PUBLISHED = "there are no published numbers for this table"
"""A note that says nothing where nobody asked."""


def model_page(name: str) -> str:
    """The page of a backbone."""
    return f"backbones/{name}.html"


def task_page(name: str) -> str:
    """The page of a task."""
    return f"tasks/{name}.html"


def record_page(record: Mapping[Hashable, Any] | pd.Series, place: str = "") -> str:
    """The page of a backbone's records on a task, or a place on it."""
    return f"records/{record['model']}/{record['task_page']}.html" + (f"#{place}" if place else "")


def measurement(record: Mapping[Hashable, Any] | pd.Series) -> str:
    """The place of a record's measurement (all of its seeds) on the page of its records."""
    return record_page(record, f"m{record['cell']}")


def protocol_text(record: Mapping[Hashable, Any] | pd.Series) -> str:
    """A record's protocol with its parameters and limit: `fewshot · l2 = 1024`."""
    limit = "" if pd.isna(record["limit"]) else f" · limited to {int(record['limit'])} test images"
    return f"{record['protocol']} · {record['protocol_label']}{limit}"


def percent(value: float, digits: int = 1) -> str:
    """A fraction in percent: `93.1`; a dash where there is none."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def span(interval: Interval | None) -> str:
    """An interval in percent: `92.4 – 93.8`."""
    return "" if interval is None else f"{percent(interval.low)} – {percent(interval.high)}"


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign: `+1.2`."""
    if math.isnan(value):
        return MISSING
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def p_text(value: float) -> str:
    """A p-value: `0.03`, `< 0.001`."""
    return (
        MISSING
        if math.isnan(value)
        else "< 0.001"
        if value < 0.001
        else f"{value:.3f}"
        if value < 0.1
        else f"{value:.2f}"
    )


def number(value: float, text: str = "") -> Cell:
    """A whole number with thousands separated, sorted by its value."""
    return Cell(text or f"{int(value):,}", value=float(value))


def board_table(board: Leaderboard, collection: Collection) -> Table:
    """A leaderboard as a table: rows lead to backbones, columns to tasks, numbers to records; published numbers are below."""
    records = board.records
    firsts = records.drop_duplicates([*ROW_LABELS, "column"])
    places = firsts[[*ROW_LABELS, "column"]].itertuples(index=False, name=None)
    pages = dict(zip(places, (measurement(row) for _, row in firsts.iterrows()), strict=True))
    models = dict(zip(records[ROW_LABELS].itertuples(index=False, name=None), records["model"], strict=True))
    variants = bool((board.cells.reset_index()["variant"] != "").any())
    columns = [Column("backbone"), Column("representation", choices=True), *([Column("variant")] if variants else [])]
    columns += [
        Column(f"{name} {board.signs.get(name, '')}".strip(), numeric=True, href=_column_page(name, board, collection))
        for name in board.cells.columns
    ]
    own, best = board.cells.iloc[:-1], board.cells.iloc[:-1].max()
    rows = []
    labels: Any
    for place, labels in enumerate(own.index.tolist()):
        model = models.get(labels, "")
        shown = (collection.models.get(model, labels[0]), *labels[1:])
        href = model_page(model) if model in collection.models else ""
        rows.append([*_labels(shown, href, variants), *_scores(place, board, best, labels, pages, href)])
    chance = [*_labels(("chance", "", ""), "", variants), *(Cell(_score(value)) for value in board.cells.iloc[-1])]
    return Table(
        caption=board.title,
        columns=columns,
        rows=rows,
        below=[chance, *_published(board, variants)],
        notes=[note for note in board.notes if note != NO_PUBLISHED],
    )


def _labels(labels: tuple[str, str, str], href: str, variants: bool) -> list[Cell]:
    backbone, representation, variant = labels
    return [Cell(backbone, href=href), Cell(representation), *([Cell(variant)] if variants else [])]


def _scores(
    place: int,
    board: Leaderboard,
    best: pd.Series,
    labels: tuple[str, str, str],
    pages: Mapping[tuple[str, ...], str],
    page: str,
) -> Iterator[Cell]:
    values, spreads = board.cells.iloc[place].tolist(), board.spread.iloc[place].tolist()
    for name, value, spread, top in zip(board.cells.columns, values, spreads, best.tolist(), strict=True):
        if conflict := board.conflicts.get((labels, name), ""):
            yield Cell(conflict, href="index.html#problems", aside="conflict")
        elif math.isnan(value):
            yield Cell(MISSING)
        else:
            # A mean has no record of its own: the backbone's page holds those that it is made of.
            href = pages.get((*labels, name), f"{page}#scores")
            yield Cell(_score(value), href, "" if math.isnan(spread) else f"± {spread:.1f}", strong=value == top)


def _published(board: Leaderboard, variants: bool) -> Iterator[list[Cell]]:
    if not len(board.published):
        return
    numbers, gaps = board.published.to_numpy(dtype=float), board.gaps[board.published.columns].to_numpy(dtype=float)
    labels: Any
    for labels, row, beside in zip(board.published.index.tolist(), numbers, gaps, strict=True):
        cells = (
            Cell(MISSING) if math.isnan(value) else Cell(f"{value:.2f}", aside=_gap(gap))
            for value, gap in zip(row, beside, strict=True)
        )
        yield [*_labels(labels, "", variants), *cells]


def _gap(points: float) -> str:
    return "" if math.isnan(points) else f"({points:+.1f})".replace("-", "−")


def _column_page(name: str, board: Leaderboard, collection: Collection) -> str:
    records = board.records
    tasks = records[records["column"] == name]["task"].unique()
    several = records["column"].nunique() > 1
    return task_page(collection.tasks[tasks[0]]) if len(tasks) == 1 and several and tasks[0] in collection.tasks else ""


def _score(value: float) -> str:
    return MISSING if pd.isna(value) else f"{value:.1f}"


def tasks_table(collection: Collection, titles: Mapping[str, str], best: Mapping[str, tuple[Cell, Cell]]) -> Table:
    """Every task that has records.

    Args:
        collection: The records.
        titles: Full name to title, where a task file is at hand.
        best: Full name to the best score and to whose it is.
    """
    rows = []
    for task, page in collection.tasks.items():
        own = collection.records[collection.records["task"] == task]
        first = own.iloc[0]
        rows.append(
            [
                Cell(task, href=task_page(page)),
                Cell(titles.get(task, "")),
                Cell("rendered" if bool(own["synthetic"].any()) else ""),
                number(first["num_classes"]),
                Cell(MISSING) if in_episodes(own).all() else number(own["n_test"][~in_episodes(own)].max()),
                Cell(percent(float(first["chance"]))),
                number(own["model"].nunique()),
                number(len(own)),
                *best.get(task, (Cell(MISSING), Cell(""))),
            ]
        )
    columns = [Column("task"), Column("title"), Column("images", choices=True)]
    names = ("classes", "test images", "chance %", "backbones", "records", "best score %")
    return Table("Tasks", [*columns, *(Column(name, numeric=True) for name in names), Column("whose")], rows)


def models_table(collection: Collection, scores: Mapping[str, Cell], score_name: str) -> Table:
    """Every backbone that has records, with a score where it has one.

    Args:
        collection: The records.
        scores: Page of a backbone to its score.
        score_name: What that is.
    """
    rows = []
    for model, label in collection.models.items():
        own = collection.records[collection.records["model"] == model]
        first = own.iloc[0]
        rows.append(
            [
                Cell(label, href=model_page(model)),
                Cell(str(first["architecture"])),
                number(first["num_parameters"], millions(first["num_parameters"])),
                Cell(", ".join(own["representation"].unique())),
                Cell(", ".join(own["dtype"].unique())),
                number(own["task"].nunique()),
                number(len(own)),
                scores.get(model, Cell(MISSING)),
            ]
        )
    columns = [
        *[Column("backbone"), Column("architecture"), Column("parameters", numeric=True), Column("representations")],
        *[Column("dtype", choices=True), Column("tasks", numeric=True), Column("records", numeric=True)],
    ]
    return Table("Backbones", [*columns, Column(score_name, numeric=True)], rows)


def millions(count: float) -> str:
    """A number of parameters: `85.8 M`, `12.4 k`, `0`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{int(count)}"


def shortened(text: str, most: int = 160) -> str:
    """`text`, its end cut off where it is longer than `most` letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def unique(values: Sequence[object]) -> list[Cell]:
    """Different values as cells, in their order."""
    return [Cell(str(value)) for value in dict.fromkeys(values)]
