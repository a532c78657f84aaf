"""A leaderboard as text: a table for the terminal, markdown, csv, json, LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from vitbench.reporting.leaderboard import Leaderboard

if TYPE_CHECKING:
    from rich.console import Group

FORMATS = ("table", "markdown", "csv", "json", "latex")


def cell_texts(board: Leaderboard) -> pd.DataFrame:
    """The cells as text: `93.1 ± 0.4`, `93.1` where there is one seed, empty where a record is missing."""
    texts = {}
    for column in board.cells.columns:
        spread = board.spread[column].reindex(board.cells.index)
        texts[column] = [
            "" if pd.isna(value) else f"{value:.1f}" if pd.isna(width) else f"{value:.1f} ± {width:.1f}"
            for value, width in zip(board.cells[column], spread, strict=True)
        ]
    return pd.DataFrame(texts, index=board.cells.index)


def render(boards: Sequence[Leaderboard], form: str) -> str:
    """All boards in one of the text formats (every one but `table`)."""
    writers: dict[str, Callable[[Sequence[Leaderboard]], str]] = {
        "markdown": lambda boards: "\n\n".join(map(_markdown, boards)),
        "latex": lambda boards: "\n\n".join(map(_latex, boards)),
        "csv": lambda boards: _long(boards).to_csv(index=False).rstrip("\n"),
        "json": lambda boards: json.dumps(
            json.loads(_long(boards).to_json(orient="records")), indent=2, ensure_ascii=False
        ),
    }
    return writers[form](boards)


def rich_tables(boards: Sequence[Leaderboard]) -> Group:
    """All boards for the terminal; the best of each column is bold."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    parts: list[Table | Text] = []
    for board in boards:
        flat = _flat(board)
        table = Table(title=escape(board.title), title_justify="left", box=SIMPLE_HEAD)
        labels = len(flat.columns) - len(board.cells.columns)
        for number, column in enumerate(flat.columns):
            table.add_column(escape(str(column)), justify="left" if number < labels else "right", overflow="fold")
        models = board.cells.drop(index="chance", level=0)
        best = {column: models[column].max() for column in board.cells.columns}
        for row, values in zip(flat.itertuples(index=False), board.cells.itertuples(index=False), strict=True):
            bold = [not pd.isna(value) and value == best[column] for column, value in zip(best, values, strict=True)]
            texts = [Text(str(text)) for text in row[:labels]]
            texts += [Text(text, style="bold" if mark else "") for text, mark in zip(row[labels:], bold, strict=True)]
            table.add_row(*texts)
        parts += [table, *(Text(f"  {note}", style="dim") for note in board.notes), Text("")]
    return Group(*parts)


def _flat(board: Leaderboard) -> pd.DataFrame:
    flat = cell_texts(board).reset_index()
    return flat if (flat["variant"] != "").any() else flat.drop(columns="variant")


def _markdown(board: Leaderboard) -> str:
    flat = _flat(board)
    labels = len(flat.columns) - len(board.cells.columns)
    aligned = ["left"] * labels + ["right"] * len(board.cells.columns)
    table = flat.to_markdown(index=False, colalign=aligned, disable_numparse=True)
    return "\n".join([f"**{board.title}**", "", table, "", *(f"- {note}" for note in board.notes)])


def _latex(board: Leaderboard) -> str:
    flat = _flat(board)
    labels = len(flat.columns) - len(board.cells.columns)
    body = flat.to_latex(index=False, escape=True, column_format="l" * labels + "r" * len(board.cells.columns))
    notes = "".join(f"% {note}\n" for note in [board.title, *board.notes])
    return notes + body.replace("±", r"$\pm$").rstrip("\n")


def _long(boards: Sequence[Leaderboard]) -> pd.DataFrame:
    """One row per cell, with numbers: for other programs."""
    frames = []
    for board in boards:
        keys = ["backbone", "representation", "alias_of", "representation_provenance", "variant", "task", "column"]
        keys += ["preprocessing", "dtype", "protocol", "parameters", "shot", "limit"]
        grouped = board.records.groupby(keys, dropna=False, sort=False)
        frame = grouped.agg(
            accuracy=("accuracy", "mean"),
            accuracy_std=("accuracy", "std"),
            seeds=("seed", "nunique"),
            n_support=("n_support", "max"),
            n_test=("n_test", "max"),
            chance=("chance", "first"),
        )
        frames.append(frame.reset_index().drop(columns="column"))
    return pd.concat(frames, ignore_index=True)
