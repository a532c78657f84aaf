"""`vitbench analyze`: look inside a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.completion import complete_backbone, complete_task

EXAMPLES = """Examples:

`vitbench analyze filters --backbone timm:vit_tiny_patch16_224.augreg_in21k --out look`

`vitbench analyze rollout --backbone hf:facebook/dinov2-small --images ./photos --out look`

`vitbench analyze similarity --backbone timm:vit_tiny_patch16_224.augreg_in21k --backbone timm:resnet18.a1_in1k
--task cifar10 --limit 500 --out look --set estimator=unbiased`
"""


def _complete_kind(incomplete: str) -> list[str]:
    from vitbench.analysis import ANALYSES

    return [kind for kind in ANALYSES.names() if kind.startswith(incomplete)]


def analyze(
    kind: Annotated[
        str, typer.Argument(help="What to look at: one of the kinds above.", autocompletion=_complete_kind)
    ],
    backbone: Annotated[
        list[str],
        typer.Option(
            "--backbone", "-b", help="KIND:NAME[@REVISION][,key=value…]; repeatable.", autocompletion=complete_backbone
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder: figures, arrays, tables, index.html.")],
    images: Annotated[Path | None, typer.Option(help="A folder of images, or one image.")] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="A task: its test images are taken.", autocompletion=complete_task),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the kind, KEY=VALUE; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many images, evenly spread over all.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Look inside backbones: figures (PNG, SVG), arrays (npz), tables (CSV), and a page that shows them all.

    The kinds:

    - **attention-distance**: how far each head looks, in pixels, by layer

    - **rollout**: where the attention of all layers together goes, over the image

    - **heatmap**: where the class token's attention goes, per head, over the image

    - **faithfulness**: deletion and insertion AUC of rollout, raw attention and random

    - **filters**: the first layer's filters on RGB, and their principal components; no images needed

    - **posembed**: how alike the position embeddings are; no images needed

    - **similarity**: linear CKA between layers, and between backbones; spectrum and effective rank by layer
    """
    from vitbench.analysis.run import PartlyFailedError, analyze
    from vitbench.cli.console import ConsoleReporter, console
    from vitbench.cli.run import key_value
    from vitbench.records.remote import refuse_url

    refuse_url(out, "--out")
    given = dict(key_value(text) for text in option or [])
    try:
        page = analyze(
            kind,
            backbone,
            out=out,
            folder=images,
            task=task,
            options=given,
            limit=limit,
            device=device,
            reporter=ConsoleReporter(),
        )
    except PartlyFailedError as error:
        console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    typer.echo(page)
