"""What the verbs print with: one console, tables, and the progress of a run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitbench.execution.reporter import Advance, Reporter

PLAIN_SECONDS = 30.0
"""Between two lines on work that lasts, where there is no terminal to draw a bar on."""

PIPED_WIDTH = 240
"""Columns when the output is no terminal: a table in a file must not be cut to 80."""


def console(stderr: bool = False) -> Console:
    """The console for results (standard output) or for progress and warnings (standard error)."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPED_WIDTH, highlight=False, soft_wrap=False)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows as a table or as JSON."""
    if as_json:
        print(json.dumps(list(rows), indent=2, ensure_ascii=False))  # noqa: T201
        return
    table = Table(box=SIMPLE_HEAD)
    for name in rows[0] if rows else ():
        number = isinstance(rows[0][name], int | float) and not isinstance(rows[0][name], bool)
        table.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_text(value)) for value in row.values()))
    console().print(table)


def print_fields(fields: Mapping[str, Any], as_json: bool) -> None:
    """Print one thing's fields, a line each, or as JSON."""
    if as_json:
        print(json.dumps(fields, indent=2, ensure_ascii=False))  # noqa: T201
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value not in (None, "", [], {}):
            table.add_row(name.replace("_", " "), escape(_text(value)))
    console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(map(_text, value))
    return "" if value is None else str(value)


class ConsoleReporter(Reporter):
    """Shows a run's progress on standard error: bars on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = console(stderr=True)

    def line(self, text: str) -> None:
        """Print a line."""
        self._console.print(escape(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line that stands out."""
        self._console.print(f"[yellow]{escape(text)}[/yellow]", soft_wrap=True)

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """A progress bar with rate and time left; without a terminal a line every half minute or so, and one at the end."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        if not total:
            yield lambda done, text="": None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            task = progress.add_task(escape(label), total=total, rate="")

            said = time.monotonic()

            def advance(done: int, text: str = "") -> None:
                nonlocal said
                progress.advance(task, done)
                speed = progress.tasks[0].speed
                progress.update(task, rate=text or (f"{speed:,.1f}/s" if speed else ""))
                now = time.monotonic()
                if not self._console.is_terminal and now - said > PLAIN_SECONDS:
                    said, state = now, progress.tasks[0]
                    left = state.time_remaining
                    told = [
                        f"{int(state.completed):,} of {total:,} {unit}",
                        text,
                        f"{left / 60:,.0f} min left" if left and left >= 60 else "",
                    ]
                    self.line(f"{label}: {' · '.join(filter(None, told))}")

            yield advance
            state = progress.tasks[0]
            done, elapsed = int(state.completed), state.elapsed or 0.0
        if not self._console.is_terminal:
            told = f"{done:,}" if done == total else f"{done:,} of {total:,}"
            self.line(f"{label}: {told} {unit} in {elapsed:.1f} s ({done / max(elapsed, 1e-9):,.1f}/s)")
