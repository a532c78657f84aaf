"""A leaderboard as text: a table for the terminal, markdown, csv, json, LaTeX, HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vitbench.reporting.boards import PARTIAL, Leaderboard
from vitbench.reporting.html_table import html_page
from vitbench.reporting.long_table import long_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderableType
    from rich.table import Table

FORMATS = ("table", "markdown", "csv", "json", "latex", "html")
MISSING = "—"
LEAST_LABEL = 28
"""Columns of a terminal that a label may take however narrow that is."""


def cell_texts(board: Leaderboard) -> pd.DataFrame:
    """The cells as text; below them chance and published numbers, beside them what else is shown.

    A cell is `93.1 ± 0.4`, `93.1` where there is one seed, `93.1 [92.5, 93.7]` with the combined interval, `50 ≠ 60` where
    records contradict each other, — where a record is missing; `71.2*` is a mean of some of its tasks. The row of chance is left
    out where no column has one chance.
    """
    shown = board.cells if board.cells.iloc[-1].notna().any() else board.cells.iloc[:-1]
    own = pd.DataFrame({column: _texts(board, column)[: len(shown)] for column in shown.columns}, index=shown.index)
    if len(board.published):
        own = pd.concat([own, _published(board)])
    for name, extra in board.extras.items():
        values = extra.values.reindex(own.index)
        own[name] = [
            MISSING if pd.isna(value) else f"{value:,.{extra.digits if abs(value) < 1000 else 0}f}" for value in values
        ]
    return own


def _texts(board: Leaderboard, column: str) -> list[str]:
    """The texts of a column of scores, chance included."""
    index = board.cells.index
    nothing = pd.Series(float("nan"), index=index)
    combined = board.interval == "combined" and len(board.low) > 0
    low, high = ((ends[column].reindex(index) if combined else nothing) for ends in (board.low, board.high))
    spread = board.spread[column].reindex(index) if board.interval == "seeds" else nothing
    texts = []
    for labels, value, width, start, end in zip(index, board.cells[column], spread, low, high, strict=True):
        text = f"{value:.1f}" + (PARTIAL if (labels, column) in board.partial else "")
        if (labels, column) in board.conflicts:
            text = board.conflicts[labels, column]
        elif pd.isna(value):
            text = MISSING
        elif not pd.isna(start):
            text += f" [{start:.1f}, {end:.1f}]"
        elif not pd.isna(width):
            text += f" ± {width:.1f}"
        texts.append(text)
    return texts


def _published(board: Leaderboard) -> pd.DataFrame:
    """`98.95 (−5.3)`: the number, and the gap of one's own best to it."""
    texts = {
        column: [
            MISSING if pd.isna(value) else f"{value:.2f}" if pd.isna(gap) else f"{value:.2f} ({signed(gap)})"
            for value, gap in zip(board.published[column], board.gaps[column], strict=True)
        ]
        for column in board.published.columns
    }
    return pd.DataFrame(texts, index=board.published.index)


def signed(value: float) -> str:
    """A difference with its sign; zero has none."""
    return "0.0" if round(value, 1) == 0 else f"{value:+.1f}".replace("-", "−")


def render(boards: Sequence[Leaderboard], form: str, base: Path | None = None) -> str:
    """All boards in one of the text formats (every one but `table`).

    Args:
        boards: The tables.
        form: One of `FORMATS`.
        base: The folder that the text will lie in: links of HTML lead from there; the current folder if None.
    """
    writers: dict[str, Callable[[Sequence[Leaderboard]], str]] = {
        "markdown": lambda boards: "\n\n".join(map(_markdown, boards)),
        "latex": lambda boards: "\n\n".join(map(_latex, boards)),
        "html": lambda boards: html_page([flat_board(board) for board in boards], base or Path()),
        "csv": lambda boards: long_table(boards).to_csv(index=False).rstrip("\n"),
        "json": lambda boards: json.dumps(
            json.loads(long_table(boards).to_json(orient="records")), indent=2, ensure_ascii=False
        ),
    }
    return writers[form](boards)


def rich_tables(boards: Sequence[Leaderboard]) -> Group:
    """All boards for the terminal; the best of each column is bold. A table that is too wide goes on below itself."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for board in boards:
        notes = [Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in board.notes]
        parts += [_Fitted(flat_board(board)), *notes, Text("")]
    return Group(*parts)


@dataclass(frozen=True)
class FlatBoard:
    """A board as texts.

    Attributes:
        board: The board.
        labels: Names of the label columns.
        headers: Column to its name with its signs.
        rows: A row each: its texts by column, the labels first.
        best: For each row, the columns in which it is the best of one's own.
        own: Number of rows that were measured; chance and published numbers follow.
        ruled: Number of rows after which a rule is drawn: those that were measured, and chance.
    """

    board: Leaderboard
    labels: list[str]
    headers: dict[str, str]
    rows: list[dict[str, str]]
    best: list[set[str]]
    own: int
    ruled: int


def flat_board(board: Leaderboard) -> FlatBoard:
    """A board's texts, its labels as columns, without a variant where no row has one."""
    texts = cell_texts(board)
    names = [str(name) for name in board.cells.index.names]
    flat = texts.set_axis(pd.RangeIndex(len(texts)))
    labels = pd.DataFrame([list(labels) for labels in texts.index], columns=names)
    if "variant" in names and not (labels["variant"] != "").any():
        labels = labels.drop(columns="variant")
    models = board.cells.iloc[:-1]
    top = models.max()
    best = [{str(name) for name in models.columns if row[name] == top[name]} for _, row in models.iterrows()]
    return FlatBoard(
        board=board,
        labels=list(labels.columns),
        headers={name: f"{name} {board.signs.get(name, '')}".rstrip() for name in texts.columns},
        rows=[{**one, **other} for one, other in zip(_rows(labels), _rows(flat), strict=True)],
        best=best,
        own=len(models),
        ruled=len(texts) - len(board.published),
    )


def _rows(frame: pd.DataFrame) -> list[dict[str, str]]:
    return [{str(name): str(value) for name, value in row.items()} for row in frame.to_dict(orient="records")]


@dataclass(frozen=True)
class _Fitted:
    """A board in as many tables, one below the other, as the console's width asks for."""

    flat: FlatBoard

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        columns = list(self.flat.headers)
        # A third of the width for the first label: long names fold, rather than leave room for one column at a time.
        narrowed = max(LEAST_LABEL, options.max_width // 3)

        def fits(chunk: list[str], narrow: int | None) -> bool:
            table = self._table(chunk, narrow)
            return console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width

        narrow = None if fits(columns, narrow=None) else narrowed
        for parts in range(1, len(columns) + 1):
            size = -(-len(columns) // parts)
            chunks = [columns[start : start + size] for start in range(0, len(columns), size)]
            if size == 1 or all(fits(chunk, narrow) for chunk in chunks):
                break
        # Not the table's own title, which would be folded to the width of a narrow table.
        yield Text(self.flat.board.title, style="italic")
        yield from (self._table(chunk, narrow) for chunk in chunks)

    def _table(self, columns: list[str], narrow: int | None) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        flat = self.flat
        table = Table(box=SIMPLE_HEAD)
        for name in flat.labels:
            table.add_column(escape(name), overflow="fold", max_width=narrow)
        for name in columns:
            header = flat.headers[name]
            table.add_column(escape(_in_lines(header) if narrow else header), justify="right", overflow="fold")
        for number, row in enumerate(flat.rows):
            if number == flat.own < flat.ruled and all(row[name] == MISSING for name in columns):
                # What stands beside the scores has no chance.
                continue
            best = flat.best[number] if number < flat.own else set()
            texts = [Text(row[name]) for name in flat.labels]
            texts += [Text(row[name], style="bold" if name in best else "") for name in columns]
            style = None if number < flat.ruled else "dim"
            table.add_row(*texts, style=style, end_section=number == flat.ruled - 1)
        return table


def _in_lines(header: str, width: int = 10) -> str:
    """A header broken after spaces, underscores, slashes and commas, so that its lines are about as wide as a cell."""
    lines = [""]
    for piece in re.findall(r"[^ _/,]*[ _/,]?", header):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _table_of(flat: FlatBoard, escape: Callable[[str], str]) -> pd.DataFrame:
    """The texts with headers, escaped."""
    names = [*flat.labels, *flat.headers]
    headers = [*flat.labels, *flat.headers.values()]
    return pd.DataFrame(
        [[escape(row[name]) for name in names] for row in flat.rows], columns=list(map(escape, headers))
    )


def _markdown(board: Leaderboard) -> str:
    flat = flat_board(board)
    aligned = ["left"] * len(flat.labels) + ["right"] * len(flat.headers)
    table = _table_of(flat, markdown_text).to_markdown(index=False, colalign=aligned, disable_numparse=True)
    notes = [f"- {markdown_text(note, cell=False)}" for note in board.notes]
    return "\n".join([f"**{markdown_text(board.title, cell=False)}**", "", table, "", *notes])


def markdown_text(text: str, *, cell: bool = True) -> str:
    """A text on one line that markdown takes neither for HTML nor, in a cell, for the end of the cell."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "&#92;")
    plain = plain.replace(PARTIAL, rf"\{PARTIAL}")
    return plain.replace("|", r"\|") if cell else plain


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    # Behind \\ or \midrule, LaTeX takes a bracket for an option.
    "[": "{[}",
    "]": "{]}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "→": r"$\to$",
    "≠": r"$\neq$",
    "−": "$-$",
    MISSING: "--",
    "·": r"$\cdot$",
    "…": r"\dots{}",
}


def latex_text(text: str) -> str:
    """A text on one line, every character that LaTeX would act on, or has no glyph for, written out."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _latex(board: Leaderboard) -> str:
    flat = flat_board(board)
    aligned = "l" * len(flat.labels) + "r" * len(flat.headers)
    body = _table_of(flat, latex_text).to_latex(index=False, escape=False, column_format=aligned)
    # A line break would end the comment.
    notes = "".join(f"% {' '.join(note.split())}\n" for note in [board.title, *board.notes])
    return notes + body.rstrip("\n")
