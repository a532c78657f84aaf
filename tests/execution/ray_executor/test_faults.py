"""What is lost on a real cluster of several nodes is done again, and only that; the records are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.conftest import ImageFolderMaker
from tests.execution.ray_executor.conftest import node_arguments, running_cluster
from tests.execution.ray_executor.running import (
    assert_same_records,
    carried_out,
    install_faulty,
    records,
    the_journal,
    wait_until,
)
from vitbench.backbones import BACKBONES
from vitbench.execution.ray import course
from vitbench.protocols import PROTOCOLS


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two nodes, whose workers know the package `faulty`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in install_faulty(tmp_path_factory.mktemp("faulty")).items():
            patch.setenv(name, value)
        patch.setitem(BACKBONES._builtin, "faulty", "faulty:FaultyBackbone")
        patch.setitem(PROTOCOLS._builtin, "faulty", "faulty:FaultyNeighbours")
        with running_cluster({}) as made:
            yield made


@pytest.fixture
def joined(nodes: Any) -> Any:
    """The cluster, of which this process is a driver."""
    ray.init(address=nodes.address, log_to_driver=False, logging_level="CRITICAL")
    return nodes


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make the folder that says what goes wrong: a file per argument, with its text."""

    def make(name: str, **files: object) -> Path:
        made = tmp_path / name
        made.mkdir()
        for file, text in files.items():
            (made / file.replace("_", "-")).write_text(str(text))
        return made

    return make


def worker_at(folder: Path) -> int | None:
    """The process that was last seen to work by what `folder` says."""
    seen = sorted(folder.glob("pid-*"), key=lambda path: path.stat().st_mtime_ns)
    return int(seen[-1].name.removeprefix("pid-")) if seen else None


@contextlib.contextmanager
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


def test_a_worker_killed_at_a_unit_and_one_killed_at_scoring_are_replaced(
    joined: Any, folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    embedding, scoring = folder("embedding", slow=0.5), folder("scoring", slow=600)
    fields: dict[str, Any] = {
        "backbones": f"faulty:{embedding}",
        "tasks": f"imagefolder:{image_folder(train=12)}",
        "protocol": "faulty",
        "options": {"k": (1, 3), "faults": str(scoring)},
        "batch_size": 4,
    }

    def kill() -> None:
        for place in (embedding, scoring):
            wait_until(lambda place=place: worker_at(place), f"a worker at {place.name}")
            (place / "slow").unlink(missing_ok=True)
            os.kill(worker_at(place) or 0, signal.SIGKILL)

    with meanwhile(kill):
        result, told = carried_out(tmp_path / "ray", executor="ray", **fields)
    assert not result.failures
    again = [line for line in told.warned if "tried again" in line]
    assert [line.split()[0] for line in again] == ["extract", "score"]
    assert "its worker was lost; tried again on" in again[0]
    assert "(attempt 2 of 3)" in again[0]
    assert "its worker was lost" in again[1]
    assert [line.split(" ", 1)[1] for line in the_journal(tmp_path / "ray")["retried"]] == again
    assert told.tracked[f"extract faulty:embedding · {result.planned[0].task}"] == (48, 48)
    assert_same_records(tmp_path / "ray", undisturbed(tmp_path / "local", [embedding, scoring], **fields))


def test_a_lost_node_is_done_without(
    joined: Any,
    folder: Callable[..., Path],
    image_folder: ImageFolderMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(course, "CHECK_SECONDS", 1.0)
    embedding = folder("embedding", slow=0.4)
    fields: dict[str, Any] = {
        "backbones": f"faulty:{embedding}",
        "tasks": f"imagefolder:{image_folder(train=12, test=12)}",
        "protocol": "knn",
        "options": {"k": (1, 3)},
        "batch_size": 4,
    }
    added = joined.add_node(**node_arguments(num_cpus=1))

    def remove() -> None:
        wait_until(lambda: len(list(embedding.glob("pid-*"))) == 3, "three workers")
        joined.remove_node(added, allow_graceful=False)

    with meanwhile(remove):
        result, told = carried_out(tmp_path / "ray", executor="ray", writer="driver", **fields)
    assert not result.failures
    assert any("its worker was lost; tried again on" in line for line in told.warned)
    assert_same_records(tmp_path / "ray", undisturbed(tmp_path / "local", [embedding], **fields))


def test_what_hangs_or_dies_every_time_is_reported_and_the_rest_is_done(
    joined: Any, folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    bad = {"hangs": folder("hangs", hang=""), "dies": folder("dies", exit="")}
    good = {"crashed": folder("crashed", crash_once=""), "died": folder("died", exit_once="")}
    fields: dict[str, Any] = {
        "tasks": f"imagefolder:{image_folder()}",
        "protocol": "knn",
        "options": {"k": (1, 3)},
        "batch_size": 64,
    }
    specs = [f"faulty:{place}" for place in (*bad.values(), *good.values())]
    result, told = carried_out(
        tmp_path / "ray", executor="ray", backbones=[*specs, "pixels"], max_failures=1, timeout_per_job=6, **fields
    )
    lines = {name: [line for line in result.failures if f"faulty:{name} " in line] for name in (*bad, *good)}
    assert {name: len(found) for name, found in lines.items()} == {"hangs": 1, "dies": 1, "crashed": 1, "died": 0}
    assert "it took longer than --timeout-per-job 6 s, twice; allow more, or look at what hangs" in lines["hangs"][0]
    assert "its worker was lost twice" in lines["dies"][0]
    assert "--max-failures" in lines["dies"][0]
    assert "RuntimeError: a bug (unexpected; traceback in " in lines["crashed"][0]
    assert sum("it took longer than --timeout-per-job; tried again" in line for line in told.warned) >= 1
    states = {job["backbone"]: job["state"] for job in the_journal(tmp_path / "ray")["jobs"]}
    assert states == dict(zip([*specs, "pixels"], ["failed", "failed", "failed", "done", "done"], strict=True))
    kept = [f"faulty:{good['died']}", "pixels"]
    assert_same_records(
        tmp_path / "ray", undisturbed(tmp_path / "local", [*bad.values(), *good.values()], backbones=kept, **fields)
    )


def test_a_killed_driver_goes_on_where_it_was(
    nodes: Any, folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    embedding, scoring = folder("embedding", slow=1), folder("scoring")
    tasks = [f"imagefolder:{image_folder(name, train=8, test=count)}" for name, count in (("a", 4), ("b", 5), ("c", 6))]
    out = tmp_path / "ray"
    command = [
        sys.executable,
        "-m",
        "vitbench",
        "run",
        "-b",
        f"faulty:{embedding}",
        "-t",
        ",".join(tasks),
        "-o",
        str(out),
    ]
    command += [
        "--protocol",
        "faulty",
        "--k",
        "1,3",
        "--set",
        f"faults={scoring}",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    command += ["--executor", "ray", "--address", nodes.address, "--cpus-per-job", "1"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def shards() -> set[Path]:
        return {path.with_suffix("") for path in (out / "features").rglob("shard-*.json")}

    first = start()
    wait_until(lambda: first.poll() is not None or shards(), "features")
    first.kill()
    assert first.communicate()[0] is not None
    assert not records(out)
    kept = shards()
    assert kept
    (embedding / "slow").unlink()
    (scoring / "slow").write_text("2")
    second = start()
    wait_until(lambda: second.poll() is not None or records(out), "a record")
    second.kill()
    second.communicate()
    made = {path: path.stat().st_mtime_ns for path in records(out).values()}
    assert 0 < len(made) < 6
    assert kept <= shards()
    for place in (embedding, scoring):
        for file in place.iterdir():
            file.unlink()
    third = start()
    text, _ = third.communicate(timeout=250)
    assert third.returncode == 0, text
    assert worker_at(embedding) is None, "every image had been embedded before"
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished record was made again"
    fields = {
        "backbones": f"faulty:{embedding}",
        "protocol": "faulty",
        "options": {"k": (1, 3), "faults": str(scoring)},
    }
    assert_same_records(out, undisturbed(tmp_path / "local", [embedding, scoring], tasks=tasks, batch_size=4, **fields))
    assert len(list((out / "runs").glob("*.json"))) == 3
