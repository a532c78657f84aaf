"""`vitbench report`: a static site of all records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """Examples:

`vitbench report`

`vitbench report --results results/shoes --out report-shoes --task-data imagefolder/shoes=./shoes`

`vitbench report --serve`
"""


def report(
    results: Annotated[
        Path | None, typer.Option("--results", "-r", help="Folder of the run; results/runs if not given.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to make; a report that is there is replaced, nothing else is.")
    ] = Path("report"),
    task_data: Annotated[
        list[str] | None,
        typer.Option("--task-data", help="TASK=PATH: where a task's test images or its task file lie; repeatable."),
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Show no test images.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Then serve it on 127.0.0.1 until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where --serve listens; 0 for any free port.")] = 8000,
) -> None:
    """Make a site of all records: leaderboards, tasks, backbones, ablations, costs, and the records behind every number.

    It opens from disk (report/index.html) and asks no network for anything; the folder can be sent as it is.
    """
    import time

    from vitbench.cli.console import console
    from vitbench.cli.run import key_value, refuse_empty
    from vitbench.records.remote import output_folder, refuse_url
    from vitbench.records.store import DEFAULT_OUT
    from vitbench.reporting.site.build import build_report
    from vitbench.reporting.site.serve import HOST, make_server

    refuse_empty(locals())
    refuse_url(out, "--out")
    error = console(stderr=True)
    # The port is taken first: a report that takes a minute should not be made for a server that cannot start.
    server = make_server(out, port) if serve else None
    start = time.monotonic()
    try:
        built = build_report(
            output_folder(results or DEFAULT_OUT),
            out,
            task_data=dict(key_value(text, "--task-data") for text in task_data or []),
            images=not no_images,
            say=lambda line: error.print(line, markup=False, soft_wrap=True),
        )
        for line in built.problems:
            error.print(f"left out: {line}", markup=False, soft_wrap=True)
        console().print(
            f"{built.folder / 'index.html'}: {built.pages:,} pages, {built.size / 1e6:.1f} MB, {time.monotonic() - start:.1f} s",
            markup=False,
            soft_wrap=True,
        )
        if server is not None:
            console().print(f"http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", markup=False, soft_wrap=True)
            server.serve_forever()
    except KeyboardInterrupt:
        if server is None:
            raise
    finally:
        if server is not None:
            server.server_close()
