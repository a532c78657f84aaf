"""`vitbench diagnose`: what a classifier got right and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitbench.cli.completion import complete_task

if TYPE_CHECKING:
    import pandas as pd

    from vitbench.reporting.diagnostics import Diagnostics
    from vitbench.tasks.task import Split, Task

EXAMPLES = """Examples:

`vitbench diagnose --task cifar10 --shot 10 --representation cls`

`vitbench diagnose 3f2a9c --to look`

`vitbench diagnose --backbone timm:vit_base_patch16_224.augreg_in21k --task imagefolder:./shoes`
"""

SHOWN = 5


def diagnose(
    record: Annotated[
        str | None, typer.Argument(help="A record: its JSON file, its key or the key's beginning; all if not given.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", "-b", help="Only this: a spec as it was run, or its short label.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            "--task",
            "-t",
            help="Only these tasks, suites or globs. imagefolder:PATH and a task file also say where the images lie.",
            autocompletion=complete_task,
        ),
    ] = None,
    shots: Annotated[
        list[str] | None, typer.Option("--shots", "--shot", help="Only these; 0 stands for all train images.")
    ] = None,
    representations: Annotated[
        list[str] | None, typer.Option("--representations", "--representation", "-r", help="Only these.")
    ] = None,
    seeds: Annotated[
        list[str] | None, typer.Option("--seeds", "--seed", help="Only these; several are pooled.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    limited: Annotated[bool, typer.Option("--limited", help="Limited runs in place of full ones.")] = False,
    no_gallery: Annotated[bool, typer.Option("--no-gallery", help="Draw no test images.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; results/runs if not given.")
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="Where the pictures and tables go.")] = Path("results/diagnostics"),
) -> None:
    """Look at stored predictions: confusion matrix, classes, confused pairs, calibration, a gallery of test images.

    Records that differ in nothing but their seed are pooled. Nothing is computed anew and nothing is fetched.

    Exit status: 0 done; 1 when some records could not be diagnosed; 2 when none could.
    """
    from vitbench.cli.console import console
    from vitbench.cli.run import refuse_empty
    from vitbench.errors import VitbenchError
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT
    from vitbench.reporting.diagnostics import cells

    refuse_empty(locals())
    folder = output_folder(out or DEFAULT_OUT)
    places = _places(tasks or [])
    chosen, problems = _chosen(folder, record, backbone, list(places), shots, representations, seeds, protocol, limited)
    done = 0
    for group in cells(chosen):
        try:
            _one(group, folder, to, places, pictures=not no_gallery)
            done += 1
        except VitbenchError as error:
            problems.append(str(error))
    for line in problems:
        console(stderr=True).print(f"error: {line}", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1 if done else 2)


def _places(tasks: list[str]) -> dict[str, str]:
    """What to look for among the records, and where the user says that it lies."""
    from vitbench.execution.config import split_list
    from vitbench.tasks.catalog import FOLDER_PREFIX

    found = {}
    for text in split_list(tasks):
        is_file = text.endswith((".yaml", ".yml"))
        name = f"imagefolder/{Path(text.removeprefix(FOLDER_PREFIX)).expanduser().resolve().name}"
        found[Path(text).stem if is_file else name if text.startswith(FOLDER_PREFIX) else text] = (
            text if is_file or text.startswith(FOLDER_PREFIX) else ""
        )
    return found


def _numbers(texts: list[str] | None, option: str) -> list[int]:
    from vitbench.errors import UsageError
    from vitbench.execution.config import split_list

    wanted = split_list(texts or [])
    if not all(text.isdecimal() for text in wanted):
        raise UsageError(f"{option} takes whole numbers from 0, got '{','.join(wanted)}'")
    return [int(text) for text in wanted]


def _chosen(
    out: Path,
    record: str | None,
    backbone: str | None,
    tasks: list[str],
    shots: list[str] | None,
    representations: list[str] | None,
    seeds: list[str] | None,
    protocol: str | None,
    limited: bool,
) -> tuple[pd.DataFrame, list[str]]:
    """The records that are meant, and what is broken among them."""
    import pandas as pd

    from vitbench.errors import UsageError
    from vitbench.execution.config import split_list
    from vitbench.records.store import as_frame
    from vitbench.reporting.leaderboard import match_tasks
    from vitbench.reporting.selection import chosen, match_backbone, read_measured

    if record is not None:
        from vitbench.execution.replay import find_record

        if backbone or shots or representations or seeds or protocol or limited:
            raise UsageError("a record is one measurement already: leave out the options that choose among records")
        found = find_record(record, out)
        records = as_frame([found.record])
        return records.assign(path=pd.Series([found.path], index=records.index, dtype=object)), []
    measured = read_measured(out)
    measured.check()
    records = measured.records
    if backbone:
        records, _ = match_backbone(backbone, records)
    records = chosen(
        records,
        tasks=match_tasks(tasks, records),
        shots=_numbers(shots, "--shots"),
        protocol=protocol,
        representations=split_list(representations or []),
        seeds=_numbers(seeds, "--seeds"),
        limited=limited,
    )
    return records, list(measured.problems)


def _one(group: pd.DataFrame, out: Path, to: Path, places: dict[str, str], pictures: bool) -> None:
    """Diagnose the seeds of one measurement, print what was found and write the files."""
    from vitbench.records.atomic import slug
    from vitbench.reporting.diagnostics import diagnose, is_of

    paths = group["path"].tolist()
    task, notes = _task(paths[0], out, places)
    found = diagnose(group, paths, task)
    split = task.test if task is not None and pictures and is_of(task, group.iloc[0]) else None
    first = group.iloc[0]
    measured = f"{first['representation']}-{first['protocol']}-{first['shot']}-shot-{first['key'][:8]}"
    folder = to / slug(str(first["backbone_name"])) / Path(*map(slug, str(first["task"]).split("/"))) / slug(measured)
    notes = [*found.notes, *notes]
    _write(found, folder, split, notes)
    _print(found, folder, notes)


def _task(path: Path, out: Path, places: dict[str, str]) -> tuple[Task | None, list[str]]:
    """The record's task, or a note that says why its names and pictures are missing."""
    from vitbench.errors import VitbenchError
    from vitbench.records.store import read_record
    from vitbench.reporting.gallery import task_of

    try:
        return task_of(path, out, places.get(read_record(path).task, "")), []
    except VitbenchError as error:
        return None, [f"no class names and no pictures, for the task's data is not at hand: {error}"]


def _write(found: Diagnostics, folder: Path, split: Split | None, notes: list[str]) -> None:
    import io
    import json

    import pandas as pd

    from vitbench.records.atomic import write_bytes, write_text
    from vitbench.reporting.diagnostics_plots import confusion_figure, reliability_figure
    from vitbench.reporting.gallery import sheet

    figures = {"confusion": confusion_figure(found)}
    tables = {
        "confusion": pd.DataFrame(found.confusion, index=found.class_names, columns=found.class_names).rename_axis(
            "true"
        ),
        "classes": found.per_class.set_index("label"),
        "pairs": found.pairs.set_index("one"),
    }
    if found.reliability is not None:
        figures["reliability"] = reliability_figure(found)
        bins = {"confidence": found.reliability.confidence, "accuracy": found.reliability.accuracy}
        low = pd.Series(found.reliability.edges[:-1], name="from")
        tables["reliability"] = pd.DataFrame({**bins, "predictions": found.reliability.counts}, index=low)
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        write_bytes(folder / f"{name}.png", buffer.getvalue())
    if split is not None:
        buffer = io.BytesIO()
        sheet(found, split).save(buffer, format="PNG")
        write_bytes(folder / "gallery.png", buffer.getvalue())
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv())
    summary = {
        "title": found.title,
        "seeds": found.seeds,
        "n_test": found.n_test,
        "metric": found.metric,
        "score": found.score,
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "ece": found.ece,
        "notes": notes,
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _print(found: Diagnostics, folder: Path, notes: list[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from vitbench.cli.console import console

    out = console()
    calibration = "" if found.ece is None else f", expected calibration error {100 * found.ece:.1f} %"
    out.print(Text(found.title, style="bold"), soft_wrap=True)
    out.print(
        f"accuracy {100 * found.accuracy:.2f} %, macro F1 {100 * found.macro_f1:.2f} %{calibration}, "
        f"{found.n_test:,} test images",
        markup=False,
        soft_wrap=True,
    )
    hardest = found.per_class[found.per_class["support"] > 0].nsmallest(SHOWN, "f1")
    table = Table(box=SIMPLE_HEAD)
    for name in ("hardest classes", "test images", "accuracy %", "F1 %"):
        table.add_column(name, justify="left" if name == "hardest classes" else "right", overflow="fold")
    for name, support, accuracy, f1 in hardest[["name", "support", "accuracy", "f1"]].itertuples(index=False):
        table.add_row(Text(name), f"{support:,}", f"{100 * accuracy:.1f}", f"{100 * f1:.1f}")
    out.print(table)
    table = Table(box=SIMPLE_HEAD)
    for name in ("taken for each other", "→", "←", "% of both"):
        table.add_column(name, justify="left" if name == "taken for each other" else "right", overflow="fold")
    for pair in found.pairs.head(SHOWN).to_dict("records"):
        both = Text(f"{pair['one_name']} ↔ {pair['other_name']}")
        table.add_row(both, f"{pair['one_as_other']:,}", f"{pair['other_as_one']:,}", f"{100 * pair['share']:.1f}")
    if len(found.pairs):
        out.print(table)
    for line in [*(f"note: {note}" for note in notes), str(folder), ""]:
        out.print(line, markup=False, soft_wrap=True)
