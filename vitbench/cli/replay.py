"""`vitbench replay`: run one record again and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.cli.why import Backbone, Device, Offline, Task, TaskData

EXAMPLES = """Examples:

`vitbench replay 1f2e3d4c`

`vitbench replay 1f2e3d4c --tolerance 0.2 --device cuda`

Exit status: 0 if the score and every prediction are the same (or the scores are within --tolerance), 1 if not, 2 for a mistake in
the input.
"""


def replay(
    record: Annotated[str, typer.Argument(help="A record: its JSON file, its key, or a beginning of it.")],
    tolerance: Annotated[
        float, typer.Option(min=0, help="By how many points the score may differ; 0 asks for the same predictions too.")
    ] = 0.0,
    reuse_features: Annotated[
        bool, typer.Option("--reuse-features", help="Read the features that are there; embed again if not given.")
    ] = False,
    backbone: Backbone = None,
    task: Task = None,
    task_data: TaskData = None,
    device: Device = None,
    batch_size: Annotated[str | None, typer.Option(help="Images per forward pass, or auto.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode images.")] = None,
    offline: Offline = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where a key is looked for; results/runs if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run one record again, exactly as it was made, and compare: identity, score, every prediction, versions.

    Images are embedded again, into a temporary folder; the record and its folder are only read.
    """
    from vitbench.cli.console import ConsoleReporter, console, print_fields
    from vitbench.cli.why import print_differences, record_changes
    from vitbench.execution.replay import find_record
    from vitbench.execution.replay import replay as run_again
    from vitbench.execution.reporter import Reporter
    from vitbench.records.provenance import command_line
    from vitbench.records.remote import output_folder
    from vitbench.records.store import DEFAULT_OUT

    fields = {"device": device, "batch_size": batch_size, "workers": workers, "offline": offline}
    changes = record_changes(backbone, task, task_data, **fields)
    found = find_record(record, output_folder(out or DEFAULT_OUT))
    result = run_again(
        found,
        changes=changes,
        tolerance=tolerance,
        reuse_features=reuse_features,
        reporter=Reporter() if quiet else ConsoleReporter(),
        command=command_line(),
    )
    if as_json:
        told = {
            "key": found.record.key,
            "agrees": result.agrees,
            "verdict": result.verdict,
            "metric": found.record.metric,
            "score": {"then": found.record.score, "now": result.again.score},
            "predictions": {"scored": result.again.n_test, "differ": result.changed},
            "differences": [vars(difference) for difference in result.differences],
            "versions": list(result.versions),
        }
        print_fields(told, as_json=True)
    else:
        console().print(found.title, style="bold", markup=False, soft_wrap=True)
        console().print("identity: " + ("differs" if result.differences else "equal"))
        print_differences(result.differences)
        if result.versions:
            console().print("versions that differ: " + "; ".join(result.versions), markup=False, soft_wrap=True)
        console().print(result.verdict, style="bold", markup=False, soft_wrap=True)
    if not result.agrees:
        raise typer.Exit(1)
