"""`vitbench audit`: whether a task's data is what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitbench.cli.completion import complete_backbone, complete_task

if TYPE_CHECKING:
    from rich.table import Table

    from vitbench.analysis.audit import Audit
    from vitbench.analysis.audit_images import ImageFacts, Spread

EXAMPLES = """Examples:

`vitbench audit --tasks cifar10`

`vitbench audit --tasks imagefolder:./shoes --backbone timm:vit_base_patch16_224.augreg_in21k`

`vitbench audit --tasks vtab/natural --limit 500 --offline --json`
"""

_BETWEEN = " · "


def audit(
    tasks: Annotated[
        list[str],
        typer.Option(
            "--tasks",
            "--task",
            "-t",
            help="Names, suites, globs, task files, imagefolder:PATH; commas or repeats.",
            autocompletion=complete_task,
        ),
    ],
    splits: Annotated[
        list[str] | None,
        typer.Option(help="Splits, such as train,validation; those that are learned from and scored if not given."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Look at this many images of each split, evenly spread.")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(help="How the sheet's images are prepared: a preset, task, or a preprocessing string.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", "-b", help="Whose preprocessing the sheet shows.", autocompletion=complete_backbone),
    ] = None,
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Draw no contact sheet.")] = False,
    task_data: Annotated[
        list[str] | None, typer.Option("--task-data", help="Read a task's data from elsewhere, NAME=PATH; repeatable.")
    ] = None,
    accept_sizes: Annotated[
        bool, typer.Option("--accept-sizes", help="Go on where a split has another size than expected.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode images.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what has been fetched; ask the hub nothing.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("results/audits"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at every image of a task: sizes, labels, broken images, copies within and across splits, and a contact sheet.

    Exit status: 0 when nothing makes numbers untrustworthy; 1 for unreadable images, sizes that are off, images that are
    pixel for pixel in two splits, or a task that could not be audited; 2 when none could.
    """
    import json

    from vitbench.analysis.audit_run import AuditOptions, audit_tasks
    from vitbench.cli.console import ConsoleReporter, console
    from vitbench.cli.run import key_value, refuse_empty
    from vitbench.execution.config import split_list
    from vitbench.records.remote import refuse_url

    refuse_empty(locals())
    refuse_url(out, "--out")
    options = AuditOptions(
        splits=tuple(split_list(splits) if splits else ()),
        limit=limit,
        preprocess=preprocess or "",
        backbone=backbone or "",
        sheet=not no_sheet,
        task_data=dict(key_value(text, "--task-data") for text in task_data or []),
        accept_sizes=accept_sizes,
        workers=workers,
        offline=offline,
    )
    found, failures = [], 0
    for outcome in audit_tasks(split_list(tasks), out, options, ConsoleReporter()):
        if outcome.audit is None:
            failures += 1
            console(stderr=True).print(f"error: {outcome.error}", markup=False, soft_wrap=True)
            continue
        found.append(outcome.audit)
        if not as_json:
            _print_audit(outcome.audit, outcome.files)
    if as_json:
        print(json.dumps([audit.as_dict() for audit in found], indent=2, ensure_ascii=False))  # noqa: T201
    if failures or not all(audit.trusted for audit in found):
        raise typer.Exit(1 if found else 2)


def _print_audit(audit: Audit, files: tuple[Path, ...]) -> None:
    from rich.markup import escape

    from vitbench.cli.console import console

    out = console()
    for table in (_split_table(audit), _copy_table(audit)):
        out.print(table)
    styles = {"problem": "bold red", "warning": "yellow", "note": "dim"}
    for finding in audit.findings:
        out.print(f"[{styles[finding.level]}]{finding.level}[/]: {escape(finding.text)}", soft_wrap=True)
    if not audit.findings:
        out.print("nothing to report")
    for path in files:
        out.print(str(path), markup=False, soft_wrap=True)
    out.print()


def _split_table(audit: Audit) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    columns = []
    for split in audit.splits:
        labels, images = split.labels, split.images
        columns.append(
            {
                "images": f"{split.found:,}",
                "expected": "" if split.expected is None else f"{split.expected:,}",
                "looked at": f"{images.looked_at:,}" if images.looked_at < split.found else "",
                "unreadable": f"{images.unreadable:,}",
                "classes": f"{labels.classes - labels.missing:,} of {labels.classes:,}",
                "labels": f"{labels.lowest:,} to {labels.highest:,}",
                "images per class": _three(f"{labels.min:,}", f"{labels.median:,g}", f"{labels.max:,}"),
                "largest class": f"{labels.majority_class}, {100 * labels.majority_share:.1f} %",
                "histogram": labels.checksum[:12],
                "formats": ", ".join(f"{name} {count:,}" for name, count in images.formats.items()),
                "width": _spread(images.width),
                "height": _spread(images.height),
                "width / height": _spread(images.aspect, digits=2),
                "different sizes": f"{images.sizes:,}",
                **_kinds(images),
            }
        )
    title = escape(f"{audit.task} · {audit.title}" + (" · synthetic" if audit.synthetic else ""))
    if any(_BETWEEN in text for column in columns for text in column.values()):
        title += f"\n[not bold dim]a{_BETWEEN}b{_BETWEEN}c: least, median, greatest[/]"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for split in audit.splits:
        table.add_column(escape(split.name), justify="right", overflow="fold")
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column.get(name, "0") for column in columns]
        if any(values):
            table.add_row(name, *map(escape, values))
    return table


def _kinds(images: ImageFacts) -> dict[str, str]:
    return {kind.replace("_", " "): f"{count:,}" for kind, count in images.kinds.items() if count}


def _spread(spread: Spread | None, digits: int = 0) -> str:
    return "" if spread is None else _three(*(f"{x:,.{digits}f}" for x in (spread.min, spread.median, spread.max)))


def _three(*values: str) -> str:
    """Least, median, greatest; one number when they read the same."""
    return values[0] if len(set(values)) == 1 else _BETWEEN.join(values)


def _copy_table(audit: Audit) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("copies", overflow="fold")
    for name in ("images", "exact", "other label", "near", "other label"):
        table.add_column(name, justify="right")
    compared = {split.name: split.images.compared > 0 for split in audit.splits}
    for pair in audit.overlaps:
        place = f"of {pair.other} in {pair.one}" if pair.one != pair.other else f"within {pair.one}"
        counted = audit.near_counted and compared[pair.one] and compared[pair.other]
        near = (f"{pair.near:,}", f"{pair.near_other_label:,}") if counted else ("–", "–")
        table.add_row(escape(place), f"{pair.images:,}", f"{pair.exact:,}", f"{pair.exact_other_label:,}", *near)
    return table
