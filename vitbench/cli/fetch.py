"""`vitbench fetch`: get what tasks need from the hub, before they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench.cli.completion import complete_task

if TYPE_CHECKING:
    from vitbench.tasks.fetch import Fetched, FetchItem, FetchPlan, TaskPlan

EXAMPLES = """Examples:

`vitbench fetch --tasks vtab --dry-run`

`vitbench fetch --tasks cifar10,oxford_pets`

`vitbench fetch --tasks vtab/natural --splits train,test`
"""
MEGABYTE = 1_000_000


def fetch(
    tasks: Annotated[
        list[str],
        typer.Option("--tasks", "--task", "-t", help="Names, suites, globs, task files.", autocompletion=complete_task),
    ],
    splits: Annotated[
        list[str] | None,
        typer.Option(help="Splits to fetch; those that the tasks' evaluation reads if not given."),
    ] = None,
    accept_sizes: Annotated[
        bool, typer.Option("--accept-sizes", help="Accept data of another size than the task file expects.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be fetched, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch exactly the files that tasks need from the hub, and prove that each task loads.

    One split does not pull the others. An interrupted fetch goes on where it stopped; after it `--offline` works. A task whose
    data lies on this machine, or is pointed elsewhere by `--task-data` of `vitbench run`, needs no fetch.

    Exit status: 0 when every task can be used, 1 when some cannot, 2 when none can.
    """
    from vitbench.cli.console import console
    from vitbench.cli.run import refuse_empty
    from vitbench.execution.config import split_list
    from vitbench.tasks.catalog import expand_tasks
    from vitbench.tasks.fetch import Fetched, check_space, plan
    from vitbench.tasks.fetch import fetch as fetch_files
    from vitbench.tasks.task import TaskOptions

    refuse_empty({"tasks": tasks, "splits": splits})
    names, wanted = expand_tasks(split_list(tasks)), split_list(splits) if splits else []
    planned = plan(names, wanted, TaskOptions(accept_sizes=accept_sizes))
    if not as_json:
        _print_plan(planned)
    results: list[Fetched] = [Fetched(task.task, error=task.error) for task in planned.tasks]
    if not dry_run:
        check_space(planned)
        try:
            with _bar(planned.to_fetch) as progress:
                results = fetch_files(planned, progress)
        except KeyboardInterrupt:
            console(stderr=True).print("interrupted: run the same command again to go on from here")
            raise typer.Exit(130) from None
    if as_json:
        _print_json(planned, results, dry_run)
    else:
        _print_results(results, dry_run)
    failed = [result for result in results if result.error]
    if failed:
        raise typer.Exit(1 if len(failed) < len(results) else 2)


@contextmanager
def _bar(size: int) -> Iterator[Callable[[FetchItem, int], None]]:
    """A progress bar in megabytes: bytes are too many digits to read."""
    from vitbench.cli.console import ConsoleReporter

    total, done, shown = -(-size // MEGABYTE), 0, 0
    with ConsoleReporter().track("fetch", total, "MB") as advance:

        def progress(item: FetchItem, count: int) -> None:
            nonlocal done, shown
            done += count
            now = done // MEGABYTE if done < size else total
            advance(now - shown)
            shown = now

        yield progress


def _row(task: TaskPlan, planned: FetchPlan) -> dict[str, Any]:
    items, known = planned.of(task.task), not task.error
    return {
        "task": task.task,
        "splits": list(task.stored),
        "files": len(items) if known else None,
        "bytes": sum(item.bytes for item in items) if known else None,
        "bytes_estimated": task.estimate,
        "bytes_there": sum(item.there for item in items) if known else None,
    }


def _state(task: TaskPlan, row: dict[str, Any]) -> str:
    if task.error:
        return "cannot be fetched"
    if task.local:
        return "nothing to fetch"
    return "there" if row["bytes_there"] == row["bytes"] else "to fetch"


def _print_plan(planned: FetchPlan) -> None:
    from rich.filesize import decimal

    from vitbench.cli.console import console, print_rows
    from vitbench.tasks.fetch import free_bytes

    rows = []
    for task in planned.tasks:
        row = _row(task, planned)
        size = f"{decimal(task.estimate)} (task file)" if task.estimate is not None else "?"
        rows.append(
            {
                "task": task.task,
                "splits": ", ".join(task.stored),
                "files": "?" if task.error else row["files"],
                "size": size if task.error else decimal(row["bytes"]),
                "there": "?" if task.error else decimal(row["bytes_there"]),
                "state": _state(task, row),
            }
        )
    print_rows(rows, as_json=False)
    estimated = f"; {decimal(planned.estimated)} more by the task files" if planned.estimated else ""
    console().print(
        f"{len(planned.items):,} files, {decimal(planned.bytes)}; {decimal(planned.to_fetch)} to fetch{estimated}, "
        f"{decimal(free_bytes())} free on the disk",
        soft_wrap=True,
    )
    for task in planned.tasks:
        if task.pinned and task.repository:
            console().print(
                f"{task.task}: pinned to commit {task.repository.commit} of {task.repository.repo}", soft_wrap=True
            )


def _print_results(results: list[Fetched], dry_run: bool) -> None:
    from vitbench.cli.console import console

    out, error = console(), console(stderr=True)
    for result in results:
        if not result.error and not dry_run:
            parts = [f"{name} {count:,}" for name, count in result.images.items()]
            loaded = f"loads: {', '.join(parts)} images, {result.classes} classes" if parts else ""
            out.print(
                f"{result.task}: {'; '.join([loaded, *result.notes] if loaded else result.notes)}",
                markup=False,
                soft_wrap=True,
            )
    failures = [result for result in results if result.error]
    if failures:
        error.print(f"[bold red]{len(failures)} failed:[/bold red]")
        for result in failures:
            error.print(f"  {result.task}: {result.error}", markup=False, soft_wrap=True)


def _print_json(planned: FetchPlan, results: list[Fetched], dry_run: bool) -> None:
    import json

    from vitbench.tasks.fetch import free_bytes

    rows = []
    for task, result in zip(planned.tasks, results, strict=True):
        row = _row(task, planned) | {"repository": task.repository.repo if task.repository else None}
        row |= {"commit": task.repository.commit if task.repository else None, "error": result.error or None}
        if not dry_run:
            row |= {"images": result.images, "classes": result.classes or None, "notes": list(result.notes)}
        rows.append(row)
    totals = {"files": len(planned.items), "bytes": planned.bytes, "bytes_to_fetch": planned.to_fetch}
    totals |= {"bytes_estimated": planned.estimated}
    content = {"tasks": rows, **totals, "bytes_free": free_bytes()}
    print(json.dumps(content, indent=2, ensure_ascii=False))  # noqa: T201
