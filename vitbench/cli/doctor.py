"""`vitbench doctor`: is this backbone what I think it is, and does it run here?"""

from __future__ import annotations

from typing import Annotated

import typer

from vitbench.cli.completion import complete_backbone

EXAMPLES = """Example:

`vitbench doctor --backbone timm:vit_tiny_patch16_224.augreg_in21k`
"""


def doctor(
    backbone: Annotated[
        str,
        typer.Option("--backbone", "-b", help="KIND:NAME[@REVISION][,key=value…]", autocompletion=complete_backbone),
    ],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in the timed batch.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Load a backbone; print its preprocessing, representations with provenance and parameters; time one batch."""
    from vitbench.cli.console import print_fields
    from vitbench.reporting.doctor import examine

    print_fields(examine(backbone, device, batch_size), as_json)
