"""`vitbench cost`: what backbones cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.completion import complete_backbone

EXAMPLES = """Examples:

`vitbench cost --backbone timm:vit_base_patch16_224.augreg_in21k --backbone timm:resnet50.a1_in1k`

`vitbench cost --backbone hf:facebook/dinov2-small --device cuda --dtype bfloat16 --batch-size 64`

and then `vitbench leaderboard --costs`, or `vitbench leaderboard --pareto gflops --plot pareto.png`
"""


def cost(
    backbone: Annotated[
        list[str],
        typer.Option(
            "--backbone", "-b", help="KIND:NAME[@REVISION][,key=value…]; repeatable.", autocompletion=complete_backbone
        ),
    ],
    batch_size: Annotated[str, typer.Option(help="Images per forward pass, or auto: as many as a run takes.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16; a spec's own goes first.")] = "auto",
    images: Annotated[int, typer.Option(min=1, help="Time at least this many images.")] = 256,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output folder; results/runs if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurements as JSON.")] = False,
) -> None:
    """Measure parameters, FLOPs (counted), images per second, peak memory and feature dimensions on this machine.

    Measurements are kept in the output folder, from where `vitbench leaderboard --costs` takes them.
    """
    from vitbench.cli.console import console, print_rows
    from vitbench.cli.run import refuse_empty
    from vitbench.errors import UsageError, VitbenchError
    from vitbench.execution.config import join_specs
    from vitbench.features.cost import measure_cost
    from vitbench.records.atomic import check_writable
    from vitbench.records.costs import write_cost
    from vitbench.records.provenance import command_line
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT
    from vitbench.reporting.costs import cost_notes, cost_rows

    refuse_empty(locals())
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise UsageError(f"--batch-size takes a whole number from 1, or auto; got '{batch_size}'")
    size = None if batch_size == "auto" else int(batch_size)
    folder = output_folder(out or DEFAULT_OUT)
    check_writable(folder)
    measured, failures = [], []
    for spec in join_specs(backbone):
        try:
            found = measure_cost(
                spec, device=device, dtype=dtype, batch_size=size, images=images, command=command_line()
            )
        except VitbenchError as error:
            failures.append(error)
            continue
        write_cost(folder, found)
        measured.append(found)
    if not measured:
        raise failures[0]
    if as_json:
        print_rows([found.model_dump(mode="json") for found in measured], as_json=True)
    else:
        print_rows(cost_rows(measured), as_json=False)
        for note in cost_notes(measured):
            console().print(f"  {note}", style="dim", markup=False, soft_wrap=True)
    for failure in failures:
        console(stderr=True).print(f"failed: {failure}", markup=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)
