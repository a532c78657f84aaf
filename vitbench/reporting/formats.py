"""A leaderboard as text: a table for the terminal, markdown, csv, json, LaTeX."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from vitbench.reporting.boards import Leaderboard
from vitbench.reporting.labels import ROW_LABELS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderableType
    from rich.table import Table

FORMATS = ("table", "markdown", "csv", "json", "latex")
MISSING = "—"


def cell_texts(board: Leaderboard) -> pd.DataFrame:
    """The cells as text: `93.1 ± 0.4`, `93.1` where there is one seed, — where a record is missing; published numbers last."""
    texts = {}
    for column in board.cells.columns:
        spread = board.spread[column].reindex(board.cells.index)
        texts[column] = [
            MISSING if pd.isna(value) else f"{value:.1f}" if pd.isna(width) else f"{value:.1f} ± {width:.1f}"
            for value, width in zip(board.cells[column], spread, strict=True)
        ]
    own = pd.DataFrame(texts, index=board.cells.index)
    if not len(board.published):
        return own
    published = board.published.map(lambda value: MISSING if pd.isna(value) else f"{value:.2f}")
    return pd.concat([own, published])


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
    """All boards for the terminal; the best of each column is bold. A table that is too wide goes on below itself."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for board in boards:
        notes = [Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in board.notes]
        parts += [_Fitted(board), *notes, Text("")]
    return Group(*parts)


@dataclass(frozen=True)
class _Fitted:
    """A board in as many tables, one below the other, as the console's width asks for."""

    board: Leaderboard

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        columns = list(self.board.cells.columns)

        def fits(chunk: list[str], narrow: bool) -> bool:
            table = self._table(chunk, titled=False, narrow=narrow)
            return console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width

        narrow = not fits(columns, narrow=False)
        for parts in range(1, len(columns) + 1):
            size = -(-len(columns) // parts)
            chunks = [columns[start : start + size] for start in range(0, len(columns), size)]
            if size == 1 or all(fits(chunk, narrow) for chunk in chunks):
                break
        for number, chunk in enumerate(chunks):
            yield self._table(chunk, titled=number == 0, narrow=narrow)

    def _table(self, columns: list[str], titled: bool, narrow: bool) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        board = self.board
        title = escape(board.title) if titled else None
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        flat, labels = _flat(board)
        for name in flat.columns[:labels]:
            table.add_column(escape(str(name)), overflow="fold")
        for name in columns:
            header = _header(board, name)
            table.add_column(escape(_in_lines(header) if narrow else header), justify="right", overflow="fold")
        models = board.cells.iloc[:-1]
        best = models.max()
        for number, (_, row) in enumerate(flat.iterrows()):
            texts = [Text(str(text)) for text in row.iloc[:labels]]
            for name in columns:
                bold = number < len(models) and models[name].iloc[number] == best[name]
                texts.append(Text(row[name], style="bold" if bold else ""))
            own = number < len(board.cells)
            table.add_row(*texts, style=None if own else "dim", end_section=number == len(board.cells) - 1)
        return table


def _in_lines(header: str, width: int = 10) -> str:
    """A header broken after spaces, underscores and slashes, so that its lines are about as wide as a cell."""
    lines = [""]
    for piece in re.findall(r"[^ _/]*[ _/]?", header):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _flat(board: Leaderboard) -> tuple[pd.DataFrame, int]:
    """The rows as text with their labels in front, and the number of label columns."""
    flat = cell_texts(board).reset_index()
    flat = flat if (flat["variant"] != "").any() else flat.drop(columns="variant")
    return flat, len(flat.columns) - len(board.cells.columns)


def _headed(board: Leaderboard) -> tuple[pd.DataFrame, int]:
    flat, labels = _flat(board)
    return flat.rename(columns={name: _header(board, name) for name in board.cells.columns}), labels


def _header(board: Leaderboard, column: str) -> str:
    return f"{column} {board.signs.get(column, '')}".rstrip()


def _markdown(board: Leaderboard) -> str:
    flat, labels = _headed(board)
    aligned = ["left"] * labels + ["right"] * len(board.cells.columns)
    table = flat.to_markdown(index=False, colalign=aligned, disable_numparse=True)
    return "\n".join([f"**{board.title}**", "", table, "", *(f"- {note}" for note in board.notes)])


def _latex(board: Leaderboard) -> str:
    flat, labels = _headed(board)
    body = flat.to_latex(index=False, escape=True, column_format="l" * labels + "r" * len(board.cells.columns))
    for text, command in {"±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "→": r"$\to$", MISSING: "--"}.items():
        body = body.replace(text, command)
    notes = "".join(f"% {note}\n" for note in [board.title, *board.notes])
    return notes + body.rstrip("\n")


def _long(boards: Sequence[Leaderboard]) -> pd.DataFrame:
    """One row per cell that was measured, with numbers: for other programs. `level` tells tasks from means."""
    frames = [_long_means(board) if board.means else _long_tasks(board) for board in boards]
    types = {**dict.fromkeys(["seeds", "n_support", "n_test"], "Int64"), "synthetic": "boolean"}
    return pd.concat([frame.reindex(columns=_COLUMNS).astype(types) for frame in frames], ignore_index=True)


_ROW = ["representation", "alias_of", "representation_provenance"]
_SETTING = ["preprocessing", "dtype", "protocol", "parameters", "shot", "limit"]
_SCORES = ["metric", "score", "score_std", "accuracy", "accuracy_std", "seeds", "n_support", "n_test", "chance"]
_DATA = ["train_split", "test_split", "deviations", "synthetic"]
_COLUMNS = ["backbone", *_ROW, "variant", "task", "level", *_SETTING, *_SCORES, *_DATA]


def _long_tasks(board: Leaderboard) -> pd.DataFrame:
    keys = ["backbone", *_ROW, "variant", "task", "column", *_SETTING]
    records = board.records.assign(accuracy=board.records.get("accuracy", float("nan")))
    frame = records.groupby(keys, dropna=False, sort=False).agg(
        metric=("shown_metric", "first"),
        score=("value", "mean"),
        score_std=("value", "std"),
        accuracy=("accuracy", "mean"),
        accuracy_std=("accuracy", "std"),
        seeds=("seed", "nunique"),
        n_support=("n_support", "max"),
        n_test=("n_test", "max"),
        chance=("chance", "first"),
        **{name: (name, "first") for name in _DATA},
    )
    return frame.reset_index().assign(level="task")


def _long_means(board: Leaderboard) -> pd.DataFrame:
    """A suite's means where they exist; `task` is the group or the suite."""
    metrics = set(board.records["shown_metric"])
    rows = board.records.drop_duplicates(ROW_LABELS).set_index(ROW_LABELS)[[*_ROW, *_SETTING]]
    frames = []
    for column, (subject, level) in board.means.items():
        scores = pd.DataFrame({"score": board.cells[column].iloc[:-1], "score_std": board.spread[column]}) / 100
        found = rows.join(scores.rename_axis(index=ROW_LABELS)).dropna(subset="score")
        frames.append(found.assign(task=subject, level=level, chance=board.cells[column].iloc[-1] / 100))
    metric = metrics.pop() if len(metrics) == 1 else "each task's own"
    return pd.concat(frames).reset_index().assign(metric=metric)
