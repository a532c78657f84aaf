"""Leaderboards as one HTML page: no script, nothing fetched, every number a link to its records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import pandas as pd

    from vitbench.reporting.formats import FlatBoard

TEMPLATE = Path(__file__).parent / "leaderboard.html.j2"


@dataclass(frozen=True)
class _Link:
    text: str
    href: str


@dataclass(frozen=True)
class _Cell:
    text: str
    links: Sequence[_Link] = ()
    strong: bool = False


def html_page(flats: Sequence[FlatBoard], base: Path) -> str:
    """One page with every board.

    A number of one record is a link to its JSON file; a number of several opens to one link for each seed; means and what stands
    beside the scores have no record of their own. Every text is escaped.

    Args:
        flats: The boards as texts; their records have a column `path` where links are wanted.
        base: The folder that the page will lie in.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    tables = [{"board": flat.board, "flat": flat, "rows": list(_rows(flat, base))} for flat in flats]
    return template.render(tables=tables).rstrip("\n")


def _rows(flat: FlatBoard, base: Path) -> Iterator[dict[str, Any]]:
    board = flat.board
    several = len(board.behind) and board.behind.groupby([*board.rows, "column", "seed"])["shot"].nunique().max() > 1
    places: dict[tuple[tuple[str, ...], str], list[_Link]] = {}
    if "path" in board.behind:
        for _, record in board.behind.sort_values(["shot", "seed"], kind="stable").iterrows():
            place = (tuple(record[list(board.rows)]), str(record["column"]))
            places.setdefault(place, []).append(_link(record, base, several=bool(several)))
    indices = [*board.cells.index[: flat.own], *[()] * (len(flat.rows) - flat.own)]
    for number, (row, labels) in enumerate(zip(flat.rows, indices, strict=True)):
        best = flat.best[number] if number < flat.own else set()
        yield {
            "kind": "own" if number < flat.own else "chance" if number < flat.ruled else "published",
            "labels": [row[name] for name in flat.labels],
            "cells": [_Cell(row[name], places.get((labels, name), ()), name in best) for name in flat.headers],
        }


def _link(record: pd.Series, base: Path, *, several: bool) -> _Link:
    shot = f"{record['shot']}-shot, " if several else ""
    return _Link(
        f"{shot}seed {record['seed']}: {100 * record['value']:.2f}", relative_address(Path(record["path"]), base)
    )


def relative_address(path: Path, base: Path) -> str:
    """The address of a file for a page in folder `base`, every special character in it written as %XX."""
    return quote(Path(os.path.relpath(path.resolve(), base.resolve())).as_posix())
