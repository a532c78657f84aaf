"""`vitbench convert`: a ViT in another library's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.completion import complete_backbone

EXAMPLES = """Examples:

`vitbench convert timm:vit_base_patch16_224.augreg_in21k ./vit_base_hf`

`vitbench convert hf:google/vit-base-patch16-224-in21k vit_base.safetensors --keep-pooler`

`vitbench convert jax:ViT-B_16.npz vit_base.npz --to npz-bigvision`
"""


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A backbone spec: timm:…, hf:… or jax:….npz.", autocompletion=complete_backbone
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="DST", help="A folder (Hugging Face), or a file ending in .safetensors (timm) or .npz."),
    ],
    to: Annotated[
        str, typer.Option("--to", help="hf, timm, npz (the paper's layout) or npz-bigvision; by DST if not given.")
    ] = "",
    keep_pooler: Annotated[
        bool,
        typer.Option("--keep-pooler", help="For timm, which has no pooler: store it where vitbench finds it again."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a plain ViT as a Hugging Face folder, a timm checkpoint or a JAX .npz; weights are exact to the bit.

    The result is read back and compared before it gets its name. What the other format has no place for is refused, or said.
    The last line is the spec that loads the result: as the same model, unless a note says that the computation differs.
    """
    from vitbench.backbones.vit_convert import convert as convert_backbone
    from vitbench.backbones.vit_export import FORMATS
    from vitbench.cli.console import console

    done = convert_backbone(source, target, to, keep_pooler=keep_pooler, overwrite=overwrite)
    error = console(stderr=True)
    error.print(
        f"{done.path}: {FORMATS[done.form]}, {done.tensors} tensors read back and equal bit for bit",
        markup=False,
        soft_wrap=True,
    )
    for note in done.notes:
        error.print(f"note: {note}", markup=False, soft_wrap=True)
    typer.echo(done.spec)
