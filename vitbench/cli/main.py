"""The `vitbench` command: the verbs put together, and errors turned into one line and an exit status."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import vitbench
from vitbench.cli import doctor, leaderboard, ls, run, show
from vitbench.errors import VitbenchError

app = typer.Typer(
    name="vitbench",
    help="Few-shot evaluation of frozen vision backbones: exact protocols, honest numbers, resumable runs.",
    epilog="Start with: `vitbench run` and then `vitbench leaderboard`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", epilog=run.EXAMPLES)(run.run)
app.command("leaderboard", epilog=leaderboard.EXAMPLES)(leaderboard.leaderboard)
app.command("ls", epilog=ls.EXAMPLES)(ls.ls)
app.add_typer(show.app, name="show")
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vitbench {vitbench.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 some job failed, 2 a mistake in the input."""
    try:
        app()
    except VitbenchError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output went away (`vitbench ls tasks | head`); what is still buffered has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
