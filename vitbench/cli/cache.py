"""`vitbench cache`: the features that are kept, whether they are whole, and what can go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vitbench.features.cache import Stored

app = typer.Typer(
    help="The features that a run keeps: list them, verify them, remove what nothing refers to.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; results/runs if not given.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@app.command(epilog="Example: `vitbench cache ls --out results/shoes`")
def ls(out: Out = None, as_json: Json = False) -> None:
    """List the feature stores: backbone, task, split, representations, rows, size, age."""
    from vitbench.cli.console import console, print_rows
    from vitbench.features.cache import stores
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT

    found = stores(output_folder(out or DEFAULT_OUT))
    sizes = [store.size for store in found]
    rows = [
        {
            "backbone": store.backbone,
            "task": store.task,
            "split": store.split,
            "representations": store.representations if as_json else ", ".join(store.representations),
            "rows": store.rows,
            "dtype": store.dtype,
            "size": size if as_json else _size(size),
            "age": round(store.age) if as_json else _age(store.age),
            **({"folder": str(store.folder)} if as_json else {}),
        }
        for store, size in zip(found, sizes, strict=True)
    ]
    print_rows(rows, as_json)
    if not as_json:
        console().print(f"{len(found)} stores, {_size(sum(sizes))}")


@app.command(epilog="Example: `vitbench cache verify`")
def verify(out: Out = None) -> None:
    """Read every byte: checksum, shape and rows of each shard. Damaged shards are named, and the exit status is 1.

    A damaged shard does no harm: it does not count, and the next run that needs its images embeds them again.
    """
    from vitbench.cli.console import console
    from vitbench.features.cache import leftovers, problems, stores
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT

    folder = output_folder(out or DEFAULT_OUT)
    found = stores(folder)
    damaged = [line for store in found for line in problems(store)]
    for line in damaged:
        console().print(f"damaged: {line}", markup=False, soft_wrap=True)
    left = leftovers(folder)
    if left:
        console().print(
            f"{len(left)} files of killed processes count for nothing; `vitbench cache gc` removes them", soft_wrap=True
        )
    shards = sum(len(store.sidecars) for store in found)
    console().print(f"{shards} shards in {len(found)} stores, {len(damaged)} damaged")
    if damaged:
        raise typer.Exit(1)


@app.command(
    epilog="""Examples:

`vitbench cache gc --unused --dry-run`

`vitbench cache gc --unused --older-than 30d --yes`
"""
)
def gc(
    out: Out = None,
    unused: Annotated[bool, typer.Option("--unused", help="Features that no record was computed from.")] = False,
    older_than: Annotated[
        str | None, typer.Option(help="Features not written to for so long: 12h, 30d, 8w; with --unused, both.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what killed processes left, and the features that are asked for. Records are never removed.

    Features can be made again by the command that made them; that takes the time it took.
    """
    from vitbench.cli.console import console
    from vitbench.errors import UsageError
    from vitbench.features.cache import file_size, leftovers, remove, stores
    from vitbench.records import remote
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT

    folder = output_folder(out or DEFAULT_OUT)
    chosen = _chosen(folder, stores(folder), unused, None if older_than is None else _seconds(older_than))
    left = leftovers(folder)
    size = sum(store.size for store in chosen) + sum(map(file_size, left))
    for store in chosen:
        told = (
            f"{store.backbone} · {store.task} {store.split} · {', '.join(store.representations)} · {store.rows:,} rows"
        )
        console().print(f"{told} · {_size(store.size)} · {_age(store.age)} old", markup=False, soft_wrap=True)
    if left:
        console().print(f"{len(left)} files of killed processes")
    if not chosen and not left:
        console().print("nothing to remove")
        return
    total = f"{len(chosen)} stores and {len(left)} leftover files, {_size(size)}"
    if dry_run:
        console().print(f"would be removed: {total}")
        return
    if not yes:
        if not asked_in_a_terminal():
            raise UsageError(f"nobody can be asked whether {total} may go: add --yes to remove, or --dry-run to look")
        typer.confirm(f"Remove {total}?", abort=True)
    held = [store for store in chosen if not remove(store)]
    for path in left:
        remote.remove(path)
    for store in held:
        console(stderr=True).print(f"kept: {store.folder} is in use", markup=False, soft_wrap=True)
    console().print(f"removed: {len(chosen) - len(held)} stores and {len(left)} leftover files")


def asked_in_a_terminal() -> bool:
    """Whether there is somebody to answer a question."""
    return sys.stdin.isatty()


def _chosen(out: Path, found: list[Stored], unused: bool, seconds: float | None) -> list[Stored]:
    """The stores that are asked for; none where nothing is asked."""
    from vitbench.features.cache import unused as without_record

    if not unused and seconds is None:
        return []
    kept = without_record(found, out) if unused else found
    return [store for store in kept if seconds is None or store.age > seconds]


def _seconds(text: str) -> float:
    """`30d` in seconds.

    Raises:
        UsageError: It is no length of time.
    """
    from vitbench.errors import UsageError

    number, unit = text.strip()[:-1], text.strip()[-1:]
    if unit not in _UNITS or not number.isdecimal():
        raise UsageError(
            f"--older-than takes a number of {', '.join(_UNITS)} (minutes to weeks), such as 30d, got '{text}'"
        )
    return int(number) * _UNITS[unit]


def _age(seconds: float) -> str:
    for unit, length in reversed(_UNITS.items()):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
