"""`vitbench compare`: whether B is better or worse than A."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench.cli.completion import complete_task

if TYPE_CHECKING:
    from rich.table import Table

    from vitbench.reporting.comparison import Compared, Mean, Pair
    from vitbench.reporting.selection import Filters

EXAMPLES = """Examples:

`vitbench compare timm:vit_base_patch16_224.augreg_in21k hf:facebook/dinov2-base --shots 10`

`vitbench compare timm:vit_base_patch16_224.augreg_in21k/cls timm:vit_base_patch16_224.augreg_in21k/gap`

`vitbench compare results/before results/after --tolerance 0.5`
"""

FORMATS = ("table", "markdown", "json")
MOST_LINES = 12

_VERDICTS = {"worse": "B worse", "tie": "tie", "identical": "identical", "better": "B better"}
_HEADER = ["task", "shot", "A %", "B %", "B − A, 95 % interval", "p", "p bootstrap", "p McNemar", ""]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A backbone among the records, or a result folder: before.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one: after.")],
    tolerance: Annotated[float, typer.Option(min=0, help="Points that B may lose before the exit status is 1.")] = 0.2,
    strict: Annotated[
        bool, typer.Option("--strict", help="Count a loss that is not significant after correction, too.")
    ] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", "--task", "-t", help="Only these tasks, suites or globs.", autocompletion=complete_task
        ),
    ] = None,
    shots: Annotated[
        list[str] | None, typer.Option(help="Only these shots, such as 10 or 5,10; 0 stands for all train images.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    representations: Annotated[
        list[str] | None, typer.Option("--representations", "-r", help="Only these, such as cls,gap.")
    ] = None,
    limited: Annotated[bool, typer.Option("--limited", help="Compare limited runs in place of full ones.")] = False,
    form: Annotated[str, typer.Option("--format", "-f", help="table, markdown or json.")] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the two backbones' run; results/runs if not given.")
    ] = None,
) -> None:
    """Compare two backbones, or two result folders, on the same support sets and the same test images.

    A backbone is a spec as it was run, or its short label; `SPEC/REPRESENTATION` takes one representation of it.

    Exit status: 0 when B may take A's place; 1 when B is worse: the difference of a task, or the mean difference over several
    tasks, is below -tolerance and significant after Holm's correction (`--strict`: significant or not); 2 for bad input.
    """
    import math

    from vitbench.cli.console import console
    from vitbench.cli.run import refuse_empty
    from vitbench.errors import UsageError, unknown
    from vitbench.execution.config import split_list
    from vitbench.reporting.comparison import drops
    from vitbench.reporting.selection import Filters

    refuse_empty(locals())
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if not math.isfinite(tolerance):
        raise UsageError(f"--tolerance takes points, a number from 0, not {tolerance}")
    wanted = split_list(shots or [])
    if not all(shot.isdecimal() for shot in wanted):
        raise UsageError(f"--shots takes whole numbers from 0, got '{','.join(wanted)}'")
    filters = Filters(
        tasks=split_list(tasks or []),
        shots=[int(shot) for shot in wanted],
        protocol=protocol,
        representations=split_list(representations or []),
        limited=limited,
    )
    compared = _compared(a, b, out, filters)
    worse = drops(compared, tolerance, strict)
    if form == "json":
        typer.echo(_json(compared, worse, tolerance, strict))
    elif form == "markdown":
        typer.echo("\n".join(_markdown(compared, worse, tolerance, strict)))
    else:
        for table in _tables(compared):
            console().print(table)
        for line in [*_notes(compared), *_verdict(compared, worse, tolerance, strict)]:
            console().print(line, markup=False, soft_wrap=True)
    for line in compared.problems:
        console(stderr=True).print(f"error: {line}", markup=False, soft_wrap=True)
    if worse or compared.problems:
        raise typer.Exit(1 if worse else 2)


def _compared(a: str, b: str, out: Path | None, filters: Filters) -> Compared:
    from vitbench.errors import UsageError
    from vitbench.records.filesystem import url_in
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT
    from vitbench.reporting.comparison import compare_backbones, compare_folders
    from vitbench.reporting.selection import read_measured

    folders = [output_folder(text) if url_in(text) else Path(text).expanduser() for text in (a, b)]
    if all(folder.is_dir() for folder in folders):
        if out is not None:
            raise UsageError("--out is the folder of two backbones; A and B are folders themselves: leave it out")
        return compare_folders(folders[0], folders[1], filters)
    try:
        return compare_backbones(read_measured(output_folder(out or DEFAULT_OUT)), a, b, filters)
    except UsageError as error:
        if any(folder.is_dir() for folder in folders):
            which, other = (a, b) if folders[0].is_dir() else (b, a)
            raise UsageError(
                f"'{which}' is a folder and '{other}' is none: give two result folders or two backbones ({error})"
            ) from error
        raise


def _groups(compared: Compared) -> Iterator[tuple[list[Pair], Mean | None]]:
    """The pairs of each subject, setting and shot, ties together, and their mean."""
    means = {(mean.subject, mean.setting, mean.shot): mean for mean in compared.means}
    groups: dict[tuple[str, str, int], list[Pair]] = {}
    for pair in compared.pairs:
        groups.setdefault((pair.subject, pair.setting, pair.shot), []).append(pair)
    order = list(_VERDICTS)
    for key, pairs in groups.items():
        yield sorted(pairs, key=lambda pair: (order.index(pair.verdict), pair.points)), means.get(key)


def _cells(pairs: Sequence[Pair], mean: Mean | None) -> Iterator[list[str]]:
    from vitbench.reporting.comparison import p_text, points_text
    from vitbench.reporting.labels import shot_label

    for pair in pairs:
        metric = "" if pair.metric == "accuracy" else f" ({pair.metric})"
        yield [
            pair.task + metric,
            shot_label(pair.shot),
            f"{100 * pair.a:.2f}",
            f"{100 * pair.b:.2f}",
            points_text(pair.difference.interval),
            *map(p_text, (pair.adjusted.difference, pair.adjusted.bootstrap, pair.adjusted.mcnemar)),
            _VERDICTS[pair.verdict],
        ]
    if mean is not None:
        ties = mean.count("tie", "identical")
        yield [
            f"mean of {len(pairs)}",
            shot_label(mean.shot),
            *(f"{100 * sum(scores) / len(pairs):.2f}" for scores in ([p.a for p in pairs], [p.b for p in pairs])),
            points_text(mean.difference.interval),
            p_text(mean.p_value),
            "",
            "",
            f"{mean.count('better')} better, {ties} tie{'' if ties == 1 else 's'}, {mean.count('worse')} worse",
        ]


def _boards(compared: Compared) -> Iterator[tuple[str, list[tuple[list[Pair], Mean | None]]]]:
    """Title to groups: one table for each protocol and subject."""
    settings: dict[str, list[tuple[list[Pair], Mean | None]]] = {}
    for pairs, mean in _groups(compared):
        settings.setdefault(f"{pairs[0].subject} · {pairs[0].setting}", []).append((pairs, mean))
    yield from settings.items()


def _tables(compared: Compared) -> Iterator[Table]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for title, groups in _boards(compared):
        table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
        for name in _HEADER:
            table.add_column(name, justify="right" if name not in ("", "task") else "left", overflow="fold")
        for pairs, mean in groups:
            lines = list(_cells(pairs, mean))
            styles = {"B worse": "red", "B better": "green"}
            for number, line in enumerate(lines):
                bold = mean is not None and number == len(lines) - 1
                style = "bold" if bold else styles.get(line[-1], "")
                texts = [*map(Text, line[:-1]), Text(line[-1], style=style)]
                table.add_row(*texts, style="bold" if bold else None, end_section=number == len(lines) - 1)
        yield table


def _notes(compared: Compared) -> Iterator[str]:
    yield f"A: {compared.a}"
    yield f"B: {compared.b}"
    counts = sorted({len(pair.seeds) for pair in compared.pairs})
    seeds = (
        f"{counts[0]} seed{'s' if counts[0] > 1 else ''}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    )
    yield (
        f"scores are means over the {seeds} that both have; the interval of B − A is paired, over support sets and test images "
        "at once (two-way random effects); a tie is where it holds 0"
    )
    if counts[0] == 1:
        yield "where there is one seed, intervals and p-values are over test images alone: other support sets are not covered"
    count = len(compared.pairs)
    yield (
        f"p-values are two-sided and Holm-adjusted for {count} comparison{'s' if count > 1 else ''}: of B − A, of the paired "
        "bootstrap over seeds and test images, and of McNemar's test (of several seeds twice the median p); "
        "intervals are not adjusted"
    )
    if compared.means:
        yield "a mean is over these very tasks, whose errors are independent; tasks that were not measured are no part of it"
    yield from _capped("other in B than in A", _differing(compared))
    yield from _capped("note", compared.notes)
    yield from _capped("not compared", [entry.text for entry in compared.unmatched])


def _differing(compared: Compared) -> list[str]:
    """What changed between the two sides besides what was asked, and in how many pairs."""
    counts: dict[str, int] = {}
    for pair in compared.pairs:
        if pair.differs:
            name = ", ".join(pair.differs)
            counts[name] = counts.get(name, 0) + 1
    return [f"{name} ({count} of {len(compared.pairs)} pairs)" for name, count in counts.items()]


def _capped(name: str, lines: Iterable[str]) -> Iterator[str]:
    lines = list(lines)
    yield from (f"{name}: {line}" for line in lines[:MOST_LINES])
    if len(lines) > MOST_LINES:
        yield f"{name}: … and {len(lines) - MOST_LINES} more (--format json lists all)"


def _verdict(compared: Compared, worse: Sequence[str], tolerance: float, strict: bool) -> Iterator[str]:
    if compared.identical:
        yield f"identical: A and B agree in every prediction ({len(compared.pairs)} compared)"
        return
    rule = "" if strict else ", significant at 0.05 after correction"
    if worse:
        yield f"B is worse than A by more than {tolerance:g} points{rule}:"
        yield from (f"  {line}" for line in worse)
        return
    yield f"B is nowhere worse than A by more than {tolerance:g} points{rule}"
    open_ = sum(100 * pair.difference.interval.low < -tolerance for pair in compared.pairs)
    if open_:
        yield (
            f"but {open_} of {len(compared.pairs)} intervals reach below -{tolerance:g} points: with so few seeds and images "
            "such a loss cannot be ruled out"
        )


def _markdown(compared: Compared, worse: Sequence[str], tolerance: float, strict: bool) -> Iterator[str]:
    from tabulate import tabulate

    for title, groups in _boards(compared):
        rows = [line for pairs, mean in groups for line in _cells(pairs, mean)]
        texts = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        aligned = ["left", *["right"] * 7, "left"]
        yield f"**{title}**\n"
        yield tabulate(texts, headers=_HEADER, tablefmt="pipe", disable_numparse=True, colalign=aligned) + "\n"
    yield from (f"- {line}" for line in _notes(compared))
    yield ""
    yield from _verdict(compared, worse, tolerance, strict)


def _json(compared: Compared, worse: Sequence[str], tolerance: float, strict: bool) -> str:
    import json

    def numbers(entry: Pair | Mean) -> dict[str, Any]:
        found = entry.difference
        interval = {"low": found.interval.low, "high": found.interval.high, "level": found.interval.level}
        return {"difference": found.difference, "interval": interval, "p_value": found.p_value, "method": found.method}

    pairs = [
        {
            "subject": pair.subject,
            "task": pair.task,
            "setting": pair.setting,
            "shot": pair.shot,
            "metric": pair.metric,
            "a": pair.a,
            "b": pair.b,
            **numbers(pair),
            "p_bootstrap": pair.bootstrap,
            "p_mcnemar": pair.mcnemar,
            "holm": vars(pair.adjusted),
            "seeds": pair.seeds,
            "n_test": pair.difference.n_images,
            "differs": pair.differs,
            "verdict": pair.verdict,
        }
        for pair in compared.pairs
    ]
    means = [
        {
            "subject": mean.subject,
            "setting": mean.setting,
            "shot": mean.shot,
            "tasks": [pair.task for pair in mean.pairs],
            **numbers(mean),
            "holm": mean.p_value,
            **{name: mean.count(name) for name in _VERDICTS},
        }
        for mean in compared.means
    ]
    content = {
        "a": compared.a,
        "b": compared.b,
        "tolerance_points": tolerance,
        "strict": strict,
        "worse": list(worse),
        "identical": compared.identical,
        "pairs": pairs,
        "means": means,
        "not_compared": [vars(entry) for entry in compared.unmatched],
        "problems": compared.problems,
        "notes": compared.notes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False)
