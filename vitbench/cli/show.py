"""`vitbench show`: everything about one task, one backbone or one recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from vitbench.cli.completion import complete_backbone, complete_task

app = typer.Typer(
    help="Show everything about one task, one backbone or one recipe.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: `vitbench show task cifar10`")
def task(
    name: Annotated[str, typer.Argument(help="A task's name or file.", autocompletion=complete_task)],
    as_json: Json = False,
) -> None:
    """What a task is: source, splits, expected sizes, licence, citation, known traps. Nothing is downloaded."""
    from vitbench.cli.console import print_fields
    from vitbench.reporting.listing import task_fields

    print_fields(task_fields(name), as_json)


@app.command(epilog="Example: `vitbench show backbone timm:vit_tiny_patch16_224.augreg_in21k`")
def backbone(
    spec: Annotated[str, typer.Argument(help="KIND:NAME[@REVISION][,key=value…]", autocompletion=complete_backbone)],
    as_json: Json = False,
) -> None:
    """What a backbone is: preprocessing, representations with provenance, layers, parameters. Its weights are loaded."""
    from vitbench.cli.console import print_fields
    from vitbench.reporting.listing import backbone_fields

    print_fields(backbone_fields(spec), as_json)


@app.command(epilog="Example: `vitbench show recipe paper --task cifar10`")
def recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name or file.")],
    task: Annotated[str, typer.Option(help="Show the recipe as it is for this task.")] = "",
    as_json: Json = False,
) -> None:
    """What a recipe says: every field that decides a number. Nothing is trained."""
    from vitbench.cli.console import print_fields
    from vitbench.reporting.listing import recipe_fields

    print_fields(recipe_fields(name, task), as_json)
