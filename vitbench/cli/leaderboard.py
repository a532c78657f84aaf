"""`vitbench leaderboard`: tables from records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.completion import complete_format, complete_task

EXAMPLES = """Examples:

`vitbench leaderboard --shots 10`

`vitbench leaderboard --shots 5,10 --tasks paper --format markdown`
"""


def leaderboard(
    shots: Annotated[list[str] | None, typer.Option(help="Only these shots, such as 10 or 5,10.")] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", "--task", "-t", help="Only these tasks, suites or globs.", autocompletion=complete_task
        ),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    limited: Annotated[bool, typer.Option("--limited", help="Show limited runs in place of full ones.")] = False,
    form: Annotated[
        str, typer.Option("--format", "-f", help="table, markdown, csv, json or latex.", autocompletion=complete_format)
    ] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; results/runs if not given.")
    ] = None,
) -> None:
    """Rows are backbone × representation, columns are tasks; accuracy in percent, mean ± standard deviation over seeds."""
    from vitbench.cli.console import console
    from vitbench.cli.run import refuse_empty
    from vitbench.errors import UsageError, unknown
    from vitbench.execution.config import split_list
    from vitbench.records.store import DEFAULT_OUT, read_results
    from vitbench.reporting.formats import FORMATS, render, rich_tables
    from vitbench.reporting.leaderboard import leaderboards, match_tasks

    refuse_empty(locals())
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    wanted = split_list(shots or [])
    if not all(shot.isdigit() and int(shot) > 0 for shot in wanted):
        raise UsageError(f"--shots takes whole numbers from 1, got '{','.join(wanted)}'")
    frame, damaged = read_results(out or DEFAULT_OUT)
    for line in damaged:
        console(stderr=True).print(f"left out: {line}", markup=False, soft_wrap=True)
    boards = leaderboards(
        frame,
        shots=[int(shot) for shot in wanted],
        tasks=match_tasks(split_list(tasks or []), frame),
        protocol=protocol,
        limited=limited,
    )
    if form == "table":
        console().print(rich_tables(boards))
    else:
        typer.echo(render(boards, form))
