"""`vitbench leaderboard`: tables from records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitbench.cli.completion import complete_format, complete_task

if TYPE_CHECKING:
    from vitbench.reporting.boards import Leaderboard

EXAMPLES = """Examples:

`vitbench leaderboard --shots 10`

`vitbench leaderboard --shots 5,10 --tasks paper --format markdown`

`vitbench leaderboard --tasks vtab --protocol ridge --published`

`vitbench leaderboard --side-by-side --tasks cifar10`

`vitbench leaderboard --rows backbone,representation --columns shot --interval combined`

`vitbench leaderboard --shots 5 --costs --pareto gflops --plot pareto.png`

`vitbench leaderboard --format html --save leaderboard.html`
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
    side_by_side: Annotated[
        bool,
        typer.Option(
            "--side-by-side", help="One table for all protocols, parameters and shots, each a row of its own."
        ),
    ] = False,
    rows: Annotated[
        str | None, typer.Option(help="Fields of records that make the rows, such as representation,dtype.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Fields of records that make the columns, such as shot.")] = None,
    interval: Annotated[
        str,
        typer.Option(
            help="seeds: ± standard deviation over seeds; combined: 95 % interval over seeds and test images; none."
        ),
    ] = "seeds",
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Add the mean normalised score: chance is 0, all right is 100.")
    ] = False,
    mean_rank: Annotated[bool, typer.Option("--mean-rank", help="Add the mean rank over tasks.")] = False,
    label_efficiency: Annotated[
        bool, typer.Option("--label-efficiency", help="Add tables of the area under the score against log shots.")
    ] = False,
    rank_incomplete: Annotated[
        bool, typer.Option("--rank-incomplete", help="Rank rows that lack tasks by the mean of the others, marked *.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Show published numbers of these tasks below, with gap and source.")
    ] = False,
    costs: Annotated[bool, typer.Option("--costs", help="Add what `vitbench cost` measured.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Costs of devices with this in their name, such as cuda; all if not given.")
    ] = None,
    pareto: Annotated[
        str | None,
        typer.Option(help="Draw the score against params, gflops, images_per_second or memory, into --plot."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="The PNG of --pareto.")] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="table, markdown, csv, json, latex or html.", autocompletion=complete_format
        ),
    ] = "table",
    save: Annotated[
        Path | None, typer.Option("--save", help="Write the text here; html links to records lead from there.")
    ] = None,
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
    from vitbench.records.atomic import write_text
    from vitbench.records.costs import read_costs
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT
    from vitbench.reporting.boards import Show
    from vitbench.reporting.formats import FORMATS, render, rich_tables
    from vitbench.reporting.intervals import INTERVALS
    from vitbench.reporting.leaderboard import leaderboards, match_tasks
    from vitbench.reporting.published import read_published
    from vitbench.reporting.recorded import read_with_paths
    from vitbench.tasks.catalog import suites

    refuse_empty(locals())
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if interval not in INTERVALS:
        raise unknown("interval", interval, INTERVALS)
    if published and form in ("csv", "json"):
        raise UsageError(f"--published is for tables that are read: {form} holds only what was measured")
    if save is not None and form == "table":
        raise UsageError("--save writes markdown, csv, json, latex or html: name one with --format")
    if (pareto is None) != (plot is None):
        raise UsageError("--pareto COST and --plot FILE.png go together")
    if label_efficiency and (rows or columns):
        raise UsageError("--label-efficiency has tables of its own: leave --rows and --columns out")
    wanted = split_list(shots or [])
    if not all(shot.isdecimal() for shot in wanted):
        raise UsageError(f"--shots takes whole numbers from 0, got '{','.join(wanted)}'")
    folder = output_folder(out or DEFAULT_OUT)
    frame, told = read_with_paths(folder)
    measured, unreadable = read_costs(folder) if costs or pareto else (None, [])
    boards = leaderboards(
        frame,
        shots=[int(shot) for shot in wanted],
        tasks=match_tasks(split_list(tasks or []), frame),
        protocol=protocol,
        limited=limited,
        metric=metric,
        suites=suites(),
        published=read_published() if published else None,
        show=Show(interval, normalised, mean_rank, rank_incomplete, measured, device or "", side_by_side=side_by_side),
        efficiency=label_efficiency,
        rows=split_list(rows or ""),
        columns=split_list(columns or ""),
    )
    if form in ("csv", "json"):
        told += dict.fromkeys(note for board in boards for note in board.notes if note.startswith("conflict:"))
    for line in [*told, *unreadable]:
        console(stderr=True).print(f"left out: {line}", markup=False, soft_wrap=True)
    if pareto and plot:
        _draw(boards, pareto, plot)
    if form == "table":
        console().print(rich_tables(boards))
    elif save is None:
        typer.echo(render(boards, form))
    else:
        write_text(save, render(boards, form, save.parent) + "\n")
        typer.echo(save)


def _draw(boards: list[Leaderboard], cost: str, path: Path) -> None:
    """The Pareto plot of the one table that there is, or of a suite's means."""
    from vitbench.cli.console import console
    from vitbench.errors import UsageError, listed
    from vitbench.reporting.pareto import save_pareto

    chosen = [board for board in boards if board.means] or boards
    if len(chosen) > 1:
        titles = listed((f"'{board.title}'" for board in chosen), most=3)
        raise UsageError(
            f"a Pareto plot shows one table, and there are {len(chosen)} ({titles}): choose with --shots, --tasks or --protocol"
        )
    shown = save_pareto(chosen[0], cost, path)
    best = shown.table[shown.table["front"]].sort_values("cost")["label"]
    console(stderr=True).print(f"{path}: on the front are {', '.join(best)}", markup=False, soft_wrap=True)
