"""`vitbench leaderboard`: tables from records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.completion import complete_format, complete_task

EXAMPLES = """Examples:

`vitbench leaderboard --shots 10`

`vitbench leaderboard --shots 5,10 --tasks paper --format markdown`

`vitbench leaderboard --tasks vtab --protocol ridge --published`
"""


def leaderboard(
    shots: Annotated[
        list[str] | None, typer.Option(help="Only these shots, such as 10 or 5,10; 0 stands for all train images.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", "--task", "-t", help="Only these tasks, suites or globs.", autocompletion=complete_task
        ),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="The score to show, such as top5_accuracy; each task's own if not given.")
    ] = None,
    limited: Annotated[bool, typer.Option("--limited", help="Show limited runs in place of full ones.")] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Show published numbers of these tasks below, with their sources.")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", "-f", help="table, markdown, csv, json or latex.", autocompletion=complete_format)
    ] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; results/runs if not given.")
    ] = None,
) -> None:
    """Rows are backbone × representation, columns are tasks; scores in percent, mean ± standard deviation over seeds.

    A suite with groups of tasks, such as vtab, has a table of its means and a table for each group.
    """
    from vitbench.cli.console import console
    from vitbench.cli.run import refuse_empty
    from vitbench.errors import UsageError, unknown
    from vitbench.execution.config import split_list
    from vitbench.records.store import DEFAULT_OUT, read_results
    from vitbench.reporting.formats import FORMATS, render, rich_tables
    from vitbench.reporting.leaderboard import leaderboards, match_tasks
    from vitbench.reporting.published import read_published
    from vitbench.tasks.catalog import suites

    refuse_empty(locals())
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if published and form in ("csv", "json"):
        raise UsageError(f"--published is for tables that are read: {form} holds only what was measured")
    wanted = split_list(shots or [])
    if not all(shot.isdecimal() for shot in wanted):
        raise UsageError(f"--shots takes whole numbers from 0, got '{','.join(wanted)}'")
    frame, damaged = read_results(out or DEFAULT_OUT)
    for line in damaged:
        console(stderr=True).print(f"left out: {line}", markup=False, soft_wrap=True)
    boards = leaderboards(
        frame,
        shots=[int(shot) for shot in wanted],
        tasks=match_tasks(split_list(tasks or []), frame),
        protocol=protocol,
        limited=limited,
        metric=metric,
        suites=suites(),
        published=read_published() if published else None,
    )
    if form == "table":
        console().print(rich_tables(boards))
    else:
        typer.echo(render(boards, form))
