"""`vitbench parity`: are these checkpoints one model?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.completion import complete_backbone, complete_task

EXAMPLES = """Examples:

`vitbench parity timm:vit_base_patch16_224.orig_in21k hf:google/vit-base-patch16-224-in21k jax:ViT-B_16.npz`

`vitbench parity timm:vit_tiny_patch16_224,checkpoint=mine.safetensors hf:./mine --images photographs --tasks cifar10`

Exit status: 0 if all are identical to the first, 1 if one is not, 2 for a mistake in the input.
"""


def parity(
    specs: Annotated[
        list[str],
        typer.Argument(
            help="Two backbones or more, the reference first: KIND:NAME[@REVISION][,key=value…]",
            autocompletion=complete_backbone,
        ),
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of images to run through the models.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Take the images from this task's test split.", autocompletion=complete_task)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many images at most.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="Activations part where they differ by more than this share of their scale.")
    ] = 1e-5,
    seed: Annotated[int, typer.Option(help="Seed of the noise that is used without images.")] = 0,
    device: Annotated[str, typer.Option(help="cpu (exact float32), cuda, cuda:1, mps, auto.")] = "cpu",
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", "-t", help="Score all models on these tasks, few-shot.", autocompletion=complete_task),
    ] = None,
    shots: Annotated[str, typer.Option(help="Images per class for the scores, such as 1,5,10.")] = "5",
    seeds: Annotated[int, typer.Option(min=1, help="Number of support sets for the scores.")] = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only this many test images.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep the scores' records and features here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Compare checkpoints with the first one: weights, configuration, activations block by block, scores, and a verdict.

    The verdict is `identical`, `same weights, different configuration (…)`, `different weights (n tensors)` or
    `different architectures (…)`. Without images a seeded batch of noise is run through the models.
    """
    from vitbench.analysis.base import images_of_folder, images_of_task
    from vitbench.analysis.parity import parity as compare
    from vitbench.analysis.parity_report import as_dict, sections
    from vitbench.analysis.parity_scores import Scoring
    from vitbench.cli.console import console, print_fields, print_rows
    from vitbench.errors import UsageError
    from vitbench.execution.config import split_list
    from vitbench.records.remote import output_folder

    if images is not None and task is not None:
        raise UsageError("--images and --task both say where the images are from: give one of them")
    chosen = images_of_folder(images, count) if images else images_of_task(task, count) if task else None
    wanted = split_list(shots)
    if not all(shot.isdigit() and int(shot) for shot in wanted):
        raise UsageError(f"--shots takes whole numbers from 1, got '{shots}'")
    out = None if out is None else output_folder(out)
    scoring = Scoring(tuple(split_list(tasks)), tuple(map(int, wanted)), seeds, limit, out) if tasks else None
    source = str(images or task or "")
    pairs = compare(specs, chosen, source=source, tolerance=tolerance, seed=seed, device=device, scoring=scoring)
    if as_json:
        print_fields(as_dict(pairs, tolerance), as_json=True)
    else:
        for section in (section for pair in pairs for section in sections(pair, tolerance)):
            console().print(section.heading, style="bold", markup=False, soft_wrap=True)
            if section.rows:
                print_rows(section.rows, as_json=False)
            for line in section.lines:
                console().print(f"  {line}", markup=False, soft_wrap=True)
    if any(pair.outcome != "identical" for pair in pairs):
        raise typer.Exit(1)
