"""Runs for the tests of this folder: what they tell, whether their records are equal, and what goes wrong on purpose in them."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from vitbench.execution.config import make_config
from vitbench.execution.execute import execute
from vitbench.execution.plan import RunResult
from vitbench.execution.reporter import Advance, Reporter

ANOTHER_EACH_TIME = {"seconds", "provenance"}
ENTRY_POINTS = """
[vitbench.backbones]
faulty = faulty:FaultyBackbone
[vitbench.protocols]
faulty = faulty:FaultyNeighbours
"""


class Told(Reporter):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warned: list[str] = []
        self.tracked: dict[str, tuple[int, int]] = {}

    def line(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        done = 0

        def advance(units: int, text: str = "") -> None:
            nonlocal done
            done += units

        yield advance
        self.tracked[label] = (done, total)


def carried_out(out: Path, dry_run: bool = False, **fields: Any) -> tuple[RunResult, Told]:
    """A run and what it told. Under Ray a job has one core."""
    told = Told()
    fields = {"device": "cpu", "cpus_per_job": 1, **fields}
    return execute(make_config({"out": out, **fields}), told, "a test", dry_run=dry_run), told


def records(out: Path) -> dict[str, Path]:
    """Key to file of every record below an output folder; each is whole, and its predictions are there."""
    found = {path.stem: path for path in (out / "records").glob("*/**/*.json")}
    for path in found.values():
        json.loads(path.read_text())
        assert path.with_suffix(".parquet").exists()
    return found


def assert_same_records(out: Path, other: Path) -> None:
    """Two output folders have the same records, but for what is another each time, and the same predictions."""
    mine, others = records(out), records(other)
    assert mine.keys() == others.keys()
    assert mine
    for key, path in mine.items():
        one, two = json.loads(path.read_text()), json.loads(others[key].read_text())
        assert {name for name in one if one[name] != two[name]} <= ANOTHER_EACH_TIME, key
        assert {name for name, value in one["provenance"].items() if value != two["provenance"][name]} <= {
            "created",
            "command",
            "host",
        }
        pd.testing.assert_frame_equal(
            pd.read_parquet(path.with_suffix(".parquet")),
            pd.read_parquet(others[key].with_suffix(".parquet")),
            check_exact=True,
        )


def the_journal(out: Path) -> dict[str, Any]:
    """The file of the newest run below an output folder."""
    newest: dict[str, Any] = json.loads(max((out / "runs").glob("*.json")).read_text())
    return newest


def wait_until(happened: Callable[[], Any], what: str, seconds: float = 200) -> None:
    """Wait for something that another process does."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, f"in {seconds} s there was no sign of {what}"
        time.sleep(0.05)


def install_faulty(folder: Path) -> dict[str, str]:
    """Make the package `faulty` in `folder` an installed one, for this process; the environment that makes it so for others."""
    metadata = folder / "faulty-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "faulty.py").symlink_to(Path(__file__).with_name("faulty.py"))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


def worker_at(folder: Path) -> int | None:
    """The process that was last seen to work by what `folder` says."""
    seen = sorted(folder.glob("pid-*"), key=lambda path: path.stat().st_mtime_ns)
    return int(seen[-1].name.removeprefix("pid-")) if seen else None


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread during what is inside; what goes wrong there comes out at the end."""
    problems: list[BaseException] = []

    def watched() -> None:
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=watched)
    thread.start()
    yield
    thread.join(60)
    if problems:
        raise problems[0]


def undisturbed(out: Path, folders: list[Path], **fields: Any) -> Path:
    """The records of the same run in this process, when nothing goes wrong."""
    for folder in folders:
        for file in folder.iterdir():
            file.unlink()
    result, _ = carried_out(out, executor="local", **fields)
    assert not result.failures
    return out
