"""What `vitbench run` prints when it is done: the plan, the leaderboard, the profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitbench.cli.console import console, print_rows
from vitbench.registry import uncollected

if TYPE_CHECKING:
    from vitbench.execution.plan import RunResult
    from vitbench.features.profile import Profile


def print_plan(result: RunResult) -> None:
    """The table of a dry run, and what it comes to."""
    from vitbench.execution.plan import duration_text, plan_rows

    print_rows(plan_rows(result.planned), as_json=False)
    images = sum(job.images for job in result.planned)
    shared = f" with {result.slots} jobs at a time" if result.slots > 1 else ""
    console().print(f"{images:,} images would go through a backbone, in about {duration_text(result.seconds)}{shared}")


def print_leaderboard(out: Path, keys: list[str]) -> None:
    """The tables of this run's records: those of full test splits, then those of limited ones."""
    with uncollected():
        from vitbench.records.store import ResultStore, as_frame
        from vitbench.reporting.formats import rich_tables
        from vitbench.reporting.leaderboard import leaderboards
        from vitbench.tasks.catalog import suites

    results = ResultStore(out)
    frame = as_frame(results.read(key) for key in keys)
    for part in (frame[frame["limit"].isna()], frame[frame["limit"].notna()]):
        if len(part):
            console().print(rich_tables(leaderboards(part, limited=bool(part["limit"].notna().all()), suites=suites())))


def print_profile(profile: Profile, trace: Path | None) -> None:
    """The table by stage, and where the trace is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("stage", box=SIMPLE_HEAD)
    for name in ("calls", "seconds", "share", "images/s"):
        table.add_column(name, justify="right")
    for row in profile.rows():
        rate = "" if row.images_per_second is None else f"{row.images_per_second:,.1f}"
        table.add_row(
            row.stage, f"{row.calls:,}" if row.calls else "", f"{row.seconds:,.3f}", f"{100 * row.share:.1f} %", rate
        )
    console().print(table)
    console().print(
        f"of {profile.seconds:,.2f} s; read, decode and transform run in threads of their own, beside the rest. "
        f"The trace is in {trace}: open it in Perfetto, or a browser's tracing page",
        soft_wrap=True,
    )
