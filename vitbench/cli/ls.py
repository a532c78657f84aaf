"""`vitbench ls`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """Examples:

`vitbench ls tasks`

`vitbench ls protocols --json`
"""


def _complete_kind(incomplete: str) -> list[str]:
    from vitbench.reporting.listing import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def ls(
    kind: Annotated[
        str,
        typer.Argument(
            help="tasks, suites, backbones, protocols, recipes or representations", autocompletion=_complete_kind
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List tasks, suites, backbones, protocols, recipes or representations."""
    from vitbench.cli.console import print_rows
    from vitbench.reporting.listing import listing

    print_rows(listing(kind), as_json)
