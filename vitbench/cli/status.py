"""`vitbench status`: what runs are doing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vitbench.reporting.status import JobStatus, RunStatus, Status

EXAMPLES = """Examples:

`vitbench status`

`vitbench status results/shoes --watch`

`vitbench status results/shoes --all --json`
"""

WATCH_SECONDS = 2.0
_BESIDE_THE_JOBS = 18
"""Lines of the terminal that are kept for what stands above and below the jobs of a run that is watched."""
_WATCHED_LINES = 3
"""Lines on what failed and what was retried that are shown of a run that is watched."""
_BUSY = {"extract": "extracting", "score": "scoring", "train": "training"}
_STYLES = {"done": "green", "failed": "bold red", "stopped": "red", "running": "cyan"}
_FIRST = ("running", "failed", "stopped", "waiting", "not begun", "done")
"""Which jobs are shown where there is no room for all."""


def status(
    out: Annotated[Path | None, typer.Argument(help="Folder of the run; results/runs if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Earlier runs too; else the newest, and all that go on.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look again every few seconds until no run goes on; Ctrl-C ends it.")
    ] = False,
) -> None:
    """Show how far runs are, from the files of the output folder alone: done, running, waiting, failed, and the time left.

    It works while a run goes on, on this machine or another one, and after it was killed. A run has stopped when its process is
    gone, or when it has not been heard of for a minute; the same command goes on from there.
    """
    from vitbench.cli.console import print_fields
    from vitbench.errors import UsageError
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT
    from vitbench.reporting.status import read_status

    if watch and as_json:
        raise UsageError("--watch draws, and --json is read by programs: leave one of them out")

    def look() -> Status:
        return read_status(output_folder(out or DEFAULT_OUT), every=every)

    if watch:
        _watch(look)
        return
    found = look()
    if as_json:
        print_fields(_fields(found), as_json=True)
        return
    _print(found)


def _watch(look: Callable[[], Status]) -> None:
    """Look until no run goes on: draw anew on a terminal, elsewhere print a line for each run now and then."""
    import time
    from contextlib import suppress

    from rich.console import Group
    from rich.live import Live

    from vitbench.cli.console import PLAIN_SECONDS, console

    screen = console()
    with suppress(KeyboardInterrupt):
        said = -PLAIN_SECONDS
        found, took = look(), 0.0
        with Live(console=screen, auto_refresh=False, transient=True) as live:
            while any(run.state == "running" for run in found.runs):
                if screen.is_terminal:
                    room = max(3, screen.height // len(found.runs) - _BESIDE_THE_JOBS)
                    live.update(Group(*_parts(found, room)), refresh=True)
                elif time.monotonic() - said >= PLAIN_SECONDS:
                    said = time.monotonic()
                    for run in found.runs:
                        screen.print(f"{run.name}: {_totals(run)}", markup=False, soft_wrap=True)
                # A folder of many records takes its time to read: most of the time should not go into that.
                time.sleep(max(WATCH_SECONDS, 10 * took))
                began = time.monotonic()
                found = look()
                took = time.monotonic() - began
    _print(found)


def _print(found: Status) -> None:
    from vitbench.cli.console import console

    for part in _parts(found, None):
        console().print(part, soft_wrap=isinstance(part, Text))


def _parts(found: Status, most: int | None) -> list[RenderableType]:
    """What is printed, one thing below the other.

    Args:
        found: What there is.
        most: Number of lines that there is room for in the table of a run; None for all.
    """
    parts: list[RenderableType] = []
    for run in found.runs:
        parts += [*_heading(run), _table(run, most), *_below(run, most), Text()]
    if not found.runs:
        parts.append(
            Text(
                f"{found.out}: {found.records:,} records, and no file of a run: an earlier vitbench made them, or the files of "
                f"the runs were left behind"
            )
        )
    if found.earlier:
        runs = "1 earlier run" if found.earlier == 1 else f"{found.earlier} earlier runs"
        parts.append(Text(f"{runs} in {found.out}: --all shows them too", "dim"))
    parts += [Text(f"left out: {line}", "yellow") for line in found.problems]
    return parts


def _heading(run: RunStatus) -> list[RenderableType]:
    from vitbench.reporting.status import duration

    heard = "its clock is ahead of this one's" if run.heard is None else f"heard of {duration(run.heard)} ago"
    told = {"running": f" · {heard}", "finished": ""}.get(run.state, f": {run.reason}" if run.reason else "")
    state = Text(run.state + told, _STYLES.get(run.state, "green" if run.state == "finished" else "bold red"))
    lasts = f"{duration(run.elapsed)} {'so far' if run.state == 'running' else 'in all'}"
    where = f"started {run.started:%Y-%m-%d %H:%M:%S} UTC on {run.host} · executor {run.executor} · {lasts}"
    return [Text(f"run {run.name} · ", "bold") + state, Text(where, "dim"), Text(run.command)]


def _table(run: RunStatus, most: int | None) -> RenderableType:
    """The jobs of a run, those of a backbone below its spec."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("backbone and task", overflow="fold", min_width=20)
    table.add_column("state", no_wrap=True)
    table.add_column("records", justify="right", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    jobs = _fitting(run.jobs, most)
    above = None
    for job in jobs:
        if job.backbone != above:
            above = job.backbone
            table.add_row(Text(job.backbone, "bold"))
        state = _BUSY.get(job.stage, job.state) if job.state == "running" else job.state
        if job.state == "stopped" and job.stage in _BUSY:
            state += f" ({_BUSY[job.stage]})"
        records = _of(job.records, job.records_total)
        embedded = None if job.stage == "train" else job.images  # a training does not embed: its images are only many
        images = _of(embedded, job.images_total)
        table.add_row(f" {job.task}", Text(state, _STYLES.get(job.state, "dim")), records, images)
    if len(jobs) < len(run.jobs):
        table.add_row(Text(f" … and {len(run.jobs) - len(jobs):,} more", "dim"))
    return table


def _fitting(jobs: Sequence[JobStatus], most: int | None) -> list[JobStatus]:
    """The jobs that there is room for, in their order: first those that something happens to, last those that are done.

    Args:
        jobs: All of them.
        most: Number of lines: one for each job, and two for the spec of each backbone; None for all.
    """
    if most is None:
        return list(jobs)
    chosen = sorted(range(len(jobs)), key=lambda number: _FIRST.index(jobs[number].state))[:most]
    while len(chosen) > 1 and len(chosen) + 2 * len({jobs[number].backbone for number in chosen}) > most:
        chosen.pop()
    return [jobs[number] for number in sorted(chosen)]


def _of(done: int | None, total: int | None) -> str:
    """`3 / 12`; ? for what is not known, – for nothing to do."""
    if total is None:
        return "?"
    if total == 0:
        return "–"
    return f"{total:,}" if done is None else f"{done:,} / {total:,}"


def _totals(run: RunStatus) -> str:
    """All jobs of a run in one line."""
    from vitbench.reporting.status import duration

    states = run.states
    jobs = [f"{states['done']:,} of {len(run.jobs):,} jobs done"]
    jobs += [f"{states[state]:,} {state}" for state in _FIRST if states[state] and state != "done"]
    images, images_total = run.images
    told = [", ".join(jobs)]
    if run.records_total:
        told.append(f"{run.records:,} of {run.records_total:,} records")
    if images_total and images:
        told.append(f"{images:,} of {images_total:,} images")
    if run.unprepared:
        told.append(f"jobs not looked at yet: {run.unprepared:,}")
    if run.state == "running":
        left = "?" if run.seconds_left is None else duration(run.seconds_left)
        # Of jobs that are not prepared nobody knows how long they take.
        told.append(f"time left: {'at least ' if run.unprepared and left != '?' else ''}{left}")
    return " · ".join(told)


def _below(run: RunStatus, most: int | None) -> list[RenderableType]:
    """What stands below the jobs of a run: all of them in one line, what failed, and what was tried again."""
    lines: list[Text] = []
    errors: dict[str, list[JobStatus]] = {}
    for job in run.jobs:
        for line in job.errors:
            errors.setdefault(line, []).append(job)
    for line, jobs in errors.items():
        named = all(job.task in line or job.backbone in line for job in jobs)
        where = f"{len(jobs)} jobs" if len(jobs) > 1 else f"{jobs[0].backbone} on {jobs[0].task}"
        lines.append(Text(f"failed: {line if named else f'{where}: {line}'}", "red"))
    lines += [Text(f"failed: {line}", "red") for line in run.failures]
    lines += [Text(f"retried: {line}", "yellow") for line in run.retried]
    lines += [Text(f"note: {line}") for line in run.notes]
    if run.state == "stopped":
        lines.append(Text("the same command goes on from there"))
    if most is not None and len(lines) > _WATCHED_LINES:
        lines = [Text(f"… {len(lines) - _WATCHED_LINES} more lines", "dim"), *lines[-_WATCHED_LINES:]]
    return [Text(_totals(run), "bold"), *lines]


def _fields(found: Status) -> dict[str, Any]:
    """All of it, for programs."""
    from dataclasses import asdict

    fields = asdict(found)
    for run, told in zip(found.runs, fields["runs"], strict=True):
        images, images_total = run.images
        told |= {"started": run.started.isoformat(), "states": dict(run.states)}
        told |= {"images": images, "images_total": images_total}
    return fields
