"""The `vitbench` command: the verbs put together, and errors turned into one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

import vitbench
from vitbench.cli import (
    ablate,
    analyze,
    audit,
    cache,
    compare,
    convert,
    cost,
    diagnose,
    doctor,
    export,
    fetch,
    leaderboard,
    ls,
    parity,
    replay,
    report,
    run,
    show,
    status,
    why,
)
from vitbench.errors import StoppedError, VitbenchError, first_line

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
app.command("status", epilog=status.EXAMPLES)(status.status)
app.command("leaderboard", epilog=leaderboard.EXAMPLES)(leaderboard.leaderboard)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("ablate", epilog=ablate.EXAMPLES)(ablate.ablate)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("diagnose", epilog=diagnose.EXAMPLES)(diagnose.diagnose)
app.command("cost", epilog=cost.EXAMPLES)(cost.cost)
app.command("fetch", epilog=fetch.EXAMPLES)(fetch.fetch)
app.command("audit", epilog=audit.EXAMPLES)(audit.audit)
app.command("analyze", epilog=analyze.EXAMPLES)(analyze.analyze)
app.command("ls", epilog=ls.EXAMPLES)(ls.ls)
app.add_typer(show.app, name="show")
app.command("parity", epilog=parity.EXAMPLES)(parity.parity)
app.command("convert", epilog=convert.EXAMPLES)(convert.convert)
app.command("why", epilog=why.EXAMPLES)(why.why)
app.command("replay", epilog=replay.EXAMPLES)(replay.replay)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.add_typer(cache.app, name="cache")
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


_CLICK_ERROR: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The parser's errors; typer brings the parser along under a name that differs by its version."""


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 some job failed, 2 a mistake in the input."""
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status if isinstance(status, int) else 0)
    except StoppedError as stopped:
        _stop(str(stopped), stopped.status)
    except VitbenchError as error:
        _stop(str(error), 2)
    except typer.Abort:
        _stop("stopped", 130)
    except BrokenPipeError:
        # The reader of our output went away (`vitbench ls tasks | head`).
        _discard_output()
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        _stop("the output cannot be written: the disk is full", 1)
    except _CLICK_ERROR as error:
        told: Any = error
        if type(error).__name__ == "NoArgsIsHelpError":
            told.show()
            sys.exit(2)
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else "vitbench"
        _stop(f"{first_line(told.format_message())} (see `{verb} --help`)", 2)


def _stop(line: str, status: int) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(status)


def _discard_output() -> None:
    """What is still buffered for standard output cannot be written; keep Python from trying again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
