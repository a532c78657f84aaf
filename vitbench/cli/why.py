"""`vitbench why`: why something would run again."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench.cli.completion import complete_backbone, complete_task

if TYPE_CHECKING:
    from vitbench.execution.config import RunConfig
    from vitbench.execution.replay import Difference
    from vitbench.execution.why import CommandAnswer, RecordAnswer

EXAMPLES = """Examples:

`vitbench why 1f2e3d4c`

`vitbench why results/runs/records/…/1f2e3d4c5b6a79880716.json --json`

`vitbench why -- run --backbone timm:vit_base_patch16_224.augreg_in21k --tasks cifar10 --shots 10`
"""

Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone", "-b", help="The record's backbone as it is named now.", autocompletion=complete_backbone
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help="Where the record's task is now: a name, a file, imagefolder:PATH.",
        autocompletion=complete_task,
    ),
]
TaskData = Annotated[
    list[str] | None, typer.Option("--task-data", help="TASK=PATH: where the record's data lies now; repeatable.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Offline = Annotated[bool | None, typer.Option("--offline", help="Use only what has been fetched; ask the hub nothing.")]


def why(
    what: Annotated[
        list[str], typer.Argument(help="A record (its JSON file, its key, or a beginning of it), or: -- run OPTION…")
    ],
    backbone: Backbone = None,
    task: Task = None,
    task_data: TaskData = None,
    device: Device = None,
    offline: Offline = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where a key is looked for; results/runs if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say why something would run again: the fields of its identity that differ. Nothing is embedded, nothing is written.

    A record is held against what the run that made it would ask for today. A command of `vitbench run` is held against the
    records that are there: for each that it needs and lacks, the nearest one.
    """
    from vitbench.errors import UsageError
    from vitbench.execution.replay import find_record
    from vitbench.execution.why import why_command, why_record
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT

    changes = record_changes(backbone, task, task_data, device=device, offline=offline, out=out)
    arguments = _command(what)
    if arguments is None:
        changes.pop("out", None)
        _print_record(why_record(find_record(what[0], output_folder(out or DEFAULT_OUT)), changes), as_json)
        return
    if changes:
        raise UsageError("options of the command belong to it: write them behind `run`")
    config = parse_run(arguments)
    answer = why_command(config)
    _print_command(answer, config.out, as_json)
    if answer.failures:
        raise typer.Exit(1)


def record_changes(
    backbone: str | None, task: str | None, task_data: Sequence[str] | None, **fields: Any
) -> dict[str, Any]:
    """What the user says anew of a record's run, as fields of a `RunConfig`; what is not given is left out.

    Raises:
        UsageError: A value is empty, or not of the form KEY=VALUE.
    """
    from vitbench.cli.run import places, refuse_empty

    refuse_empty({"backbone": backbone, "task": task, "task_data": task_data, **fields})
    named = {"backbones": backbone and [backbone], "tasks": task and [task], "task_data": places(task_data) or None}
    return {name: value for name, value in (named | fields).items() if value is not None}


def _command(what: Sequence[str]) -> list[str] | None:
    """The options behind `run`, when a command was given, as words or as one quoted text; None when it is a record.

    Raises:
        UsageError: It is neither.
    """
    from vitbench.errors import UsageError

    words = list(what)
    if len(words) == 1 and not words[0].endswith(".json"):
        try:
            words = shlex.split(words[0])
        except ValueError as error:
            raise UsageError(f"the command cannot be read: {error}") from error
    starts = [number for number, word in enumerate(words) if word == "run"]
    program = [Path(word).name for word in words[: starts[0]]] if starts else words
    if starts and all(name in ("vitbench", "-m", "__main__.py") or name.startswith("python") for name in program):
        return words[starts[0] + 1 :]
    if len(what) == 1 == len(words) and words[0] != "vitbench":
        return None
    raise UsageError(
        f"'{' '.join(what)}' is neither one record nor a command: write `vitbench why -- run --backbone …`"
    )


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """The configuration that `vitbench run` would make of these options, read by its own parser; nothing runs.

    Raises:
        VitbenchError: An option or a value cannot be meant.
    """
    from vitbench.cli.run import configuration, run

    @functools.wraps(run)
    def given(**parameters: Any) -> dict[str, Any]:
        return parameters

    parser = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    parser.command()(given)
    found = parser(args=list(arguments), standalone_mode=False, prog_name="vitbench run")
    if not isinstance(found, dict):  # it asked for help, which has been printed
        raise typer.Exit
    return configuration(found)


def _print_record(answer: RecordAnswer, as_json: bool) -> None:
    from vitbench.cli.console import console, print_fields

    record = answer.found.record
    if as_json:
        fields = {
            "key": record.key,
            "identity": record.identity,
            "used_again": not answer.differences,
            "differences": [vars(difference) for difference in answer.differences],
            "asked_by": str(answer.asked_by) if answer.asked_by else None,
            "notes": list(answer.notes),
        }
        print_fields(fields, as_json=True)
        return
    line = functools.partial(console().print, markup=False, soft_wrap=True)
    line(answer.found.title, style="bold")
    print_fields({"file": str(answer.found.path), "made by": record.provenance.command, **record.identity}, as_json)
    asked = (
        f"as {answer.asked_by} asks" if answer.asked_by else "as the record itself says: no configuration asks for it"
    )
    line(f"{answer.verdict}; {asked}", style="bold")
    print_differences(answer.differences)
    for note in answer.notes:
        line(f"  {note}")


def print_differences(differences: Sequence[Difference], then: str = "then", now: str = "now") -> None:
    """Each field that differs: what it means, and both values, one below the other."""
    from vitbench.cli.console import console

    width = max(len(then), len(now))
    for difference in differences:
        lines = [f"  {difference.field}: {difference.meaning}"]
        lines += [f"    {then:<{width}}  {difference.then}", f"    {now:<{width}}  {difference.now}"]
        for text in lines:
            console().print(text, markup=False, soft_wrap=True)


def _print_command(answer: CommandAnswer, out: Path, as_json: bool) -> None:
    from vitbench.cli.console import console, print_fields
    from vitbench.records.remote import told

    groups = answer.groups()
    if as_json:
        rows = [
            {
                "backbone": missing.backbone,
                "task": missing.task,
                "representation": missing.representation,
                "shot": missing.cell.shot,
                "seed": missing.cell.seed,
                "nearest": missing.nearest.record.key if missing.nearest else None,
                "differences": [vars(difference) for difference in missing.differences],
                "damaged": str(missing.damaged) if missing.damaged else None,
            }
            for missing in answer.missing
        ]
        print_fields({"present": answer.present, "missing": rows, "failures": answer.failures}, as_json=True)
        return
    line = functools.partial(console().print, markup=False, soft_wrap=True)
    line(f"{answer.verdict} ({told(out)})", style="bold")
    shown = ""
    for group in groups:
        first = group[0]
        if first.backbone != shown:
            shown = first.backbone
            line(shown)
        kinds = ", ".join(dict.fromkeys(missing.representation for missing in group))
        cells = ", ".join(dict.fromkeys(f"{missing.cell.shot}-shot" for missing in group if missing.cell.shot))
        seeds = ", ".join(dict.fromkeys(str(missing.cell.seed) for missing in group))
        where = " · ".join(part for part in (first.task, kinds, cells, f"seed {seeds}") if part)
        line(f"{len(group)} × {where}")
        if first.damaged:
            line(f"  damaged: {first.damaged} cannot be read, so it is made again")
        elif first.nearest is None:
            line("  there is no record at all in this folder")
        else:
            line(f"  nearest{' to the first' if len(group) > 1 else ''}: {first.nearest.path}")
            print_differences(first.differences, "there", "needed")
    for failure in answer.failures:
        console(stderr=True).print(f"failed: {failure}", markup=False, soft_wrap=True)
