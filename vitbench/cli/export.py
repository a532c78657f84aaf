"""`vitbench export`: records as one table, or as results for a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.completion import complete_backbone, complete_task

EXAMPLES = """Examples:

`vitbench export --out-file results.parquet`

`vitbench export --to-hub-card --backbone timm:vit_base_patch16_224.augreg_in21k --tasks paper --shots 10`
"""


def export(
    out_file: Annotated[
        Path | None,
        typer.Option(help="Write here: .parquet, .csv or .json; for a card .yaml, printed if not given."),
    ] = None,
    to_hub_card: Annotated[
        bool, typer.Option("--to-hub-card", help="The model-index of a Hugging Face model card, as YAML.")
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", "-b", help="The card's backbone, as in the records.", autocompletion=complete_backbone
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name on the card; the backbone's if not given.")] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", "--task", "-t", help="Only these tasks, suites or globs.", autocompletion=complete_task
        ),
    ] = None,
    representations: Annotated[
        list[str] | None, typer.Option("--representations", "-r", help="Only these representations.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    shots: Annotated[
        list[str] | None, typer.Option(help="Only these shots, such as 10 or 5,10; 0 stands for all train images.")
    ] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Put tasks of rendered images on the card too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; results/runs if not given.")
    ] = None,
) -> None:
    """Write all records as one table, a row each with its whole identity; or one backbone's results for its model card."""
    from vitbench.cli.console import console
    from vitbench.cli.run import refuse_empty
    from vitbench.errors import UsageError
    from vitbench.execution.config import split_list
    from vitbench.records.atomic import write_text
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT
    from vitbench.reporting.export import check_file, chosen, export_frame, read_all, write_table

    refuse_empty(locals())
    if not to_hub_card and (backbone or name or synthetic):
        raise UsageError("--backbone, --name and --synthetic belong to --to-hub-card")
    if to_hub_card and not backbone:
        raise UsageError("--to-hub-card is of one backbone: name it with --backbone")
    if to_hub_card and out_file and out_file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--to-hub-card writes YAML: end {out_file.name} in .yaml, and put it at the head of the card")
    if not to_hub_card:
        if out_file is None:
            raise UsageError("name a file with --out-file results.parquet (or .csv, .json), or ask for --to-hub-card")
        check_file(out_file)
    found, notes = read_all(output_folder(out or DEFAULT_OUT))
    found = chosen(
        found,
        tasks=split_list(tasks or []),
        representations=split_list(representations or []),
        protocol=protocol,
        shots=split_list(shots or []),
    )
    error = console(stderr=True)
    if to_hub_card:
        from vitbench.reporting.hub_card import card_yaml, model_index, of_backbone

        own = of_backbone([record for _, record in found], backbone or "")
        index, more = model_index(own, name=name or "", synthetic=synthetic)
        text = card_yaml(index)
        notes += more
        if out_file is None:
            typer.echo(text, nl=False)
        else:
            write_text(out_file, text)
            metrics = sum(len(entry["metrics"]) for entry in index[0]["results"])
            error.print(f"{metrics} results written to {out_file}", markup=False, soft_wrap=True)
    elif out_file is not None:
        frame = export_frame(found)
        write_table(frame, out_file)
        error.print(f"{len(frame)} records written to {out_file}", markup=False, soft_wrap=True)
    for note in notes:
        error.print(note, markup=False, soft_wrap=True)
