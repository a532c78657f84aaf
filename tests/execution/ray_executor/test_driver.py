"""Drivers of a real cluster: one that is asked to end, one that is killed, and two at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.conftest import ImageFolderMaker
from tests.execution.ray_executor.conftest import with_faulty
from tests.execution.ray_executor.running import (
    assert_same_records,
    carried_out,
    records,
    the_journal,
    undisturbed,
    wait_until,
    worker_at,
)

ClusterMaker = Callable[..., AbstractContextManager[Any]]


def a_driver(address: str, out: Path, embedding: Path, scoring: Path, tasks: str) -> subprocess.Popen[str]:
    """A process that runs what the two folders make go wrong, on a cluster."""
    command = [sys.executable, "-m", "vitbench", "run", "-b", f"faulty:{embedding}", "-t", tasks, "-o", str(out)]
    command += ["--protocol", "faulty", "--k", "1,3", "--set", f"faults={scoring}", "--batch-size", "4"]
    command += ["--device", "cpu", "--executor", "ray", "--address", address, "--cpus-per-job", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def the_same(embedding: Path, scoring: Path, tasks: str) -> dict[str, Any]:
    """What `a_driver` runs, for `carried_out`."""
    options = {"k": (1, 3), "faults": str(scoring)}
    return {
        "backbones": f"faulty:{embedding}",
        "tasks": tasks,
        "protocol": "faulty",
        "options": options,
        "batch_size": 4,
    }


def shards(out: Path) -> set[Path]:
    """The shards of features that a run has written."""
    return {path.with_suffix("") for path in (out / "features").rglob("shard-*.json")}


def left_by_driver(out: Path, kept: set[Path]) -> dict[Path, int]:
    """The records that a driver made before it ended, and when; some of six, and the shards that there were are there."""
    made = {path: path.stat().st_mtime_ns for path in records(out).values()}
    assert 0 < len(made) < 6
    assert kept <= shards(out)
    return made


def nothing_goes_wrong(*places: Path) -> None:
    """Empty the folders that say what goes wrong, and who has been at work."""
    for place in places:
        for file in place.iterdir():
            file.unlink()


def test_a_driver_that_is_asked_to_end_says_so_in_one_line_and_goes_on_where_it_was(
    nodes: Any, folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    embedding, scoring, out = folder("embedding", slow=0.4), folder("scoring"), tmp_path / "ray"
    tasks = ",".join(
        f"imagefolder:{image_folder(name, train=8, test=count)}" for name, count in zip("abc", (4, 5, 6), strict=True)
    )

    first = a_driver(nodes.address, out, embedding, scoring, tasks)
    wait_until(lambda: first.poll() is not None or shards(out), "features")
    first.send_signal(signal.SIGINT)
    told = first.communicate(timeout=60)
    assert (first.returncode, *told) == (130, "", "interrupted: run the same command again to go on from here\n")
    kept = shards(out)
    assert kept
    assert not records(out)
    assert the_journal(out)["state"] == "stopped"
    (embedding / "slow").unlink()
    (scoring / "slow").write_text("2")
    second = a_driver(nodes.address, out, embedding, scoring, tasks)
    wait_until(lambda: second.poll() is not None or records(out), "a record")
    second.send_signal(signal.SIGTERM)
    told = second.communicate(timeout=60)
    line = "stopped by SIGTERM: run the same command again to go on from here"
    assert second.returncode == 128 + signal.SIGTERM, told
    assert told[1].splitlines()[-1] == line
    assert "SIGTERM received" not in told[1], "Ray prints its stack"
    assert (the_journal(out)["state"], the_journal(out)["reason"]) == ("stopped", line)
    made = left_by_driver(out, kept)
    nothing_goes_wrong(embedding, scoring)
    fields = the_same(embedding, scoring, tasks)
    result, _ = carried_out(out, executor="ray", address=nodes.address, **fields)
    assert result.written == 6 - len(made)
    assert worker_at(embedding) is None, "every image had been embedded before"
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished record was made again"
    assert_same_records(out, undisturbed(tmp_path / "local", [embedding, scoring], **fields))


def test_a_driver_whose_node_is_lost_says_so_and_goes_on_elsewhere(
    make_cluster: ClusterMaker, folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    embedding, scoring, out = folder("embedding", slow=0.4), folder("scoring"), tmp_path / "out"
    tasks = f"imagefolder:{image_folder(train=8, test=6)}"
    with with_faulty(tmp_path), make_cluster() as cluster:
        address = cluster.address
        driver = a_driver(address, out, embedding, scoring, tasks)
        wait_until(lambda: driver.poll() is not None or shards(out), "features")
        cluster.head_node.kill_raylet()
        told = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert told[1].splitlines()[-1].startswith("error: ")
    assert f"the Ray cluster of --address {address}" in told[1]
    assert told[1].endswith("was stored is kept; run the same command again to go on from here\n")
    assert "Traceback" not in told[1]
    kept = shards(out)
    assert kept
    nothing_goes_wrong(embedding, scoring)
    with with_faulty(folder("again")):
        result, _ = carried_out(out, executor="local", **the_same(embedding, scoring, tasks))
    assert not result.failures
    assert kept <= shards(out)


def test_two_drivers_on_one_cluster_fill_one_folder(
    nodes: Any, folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    embedding, scoring, out = folder("embedding", slow=0.2), folder("scoring"), tmp_path / "ray"
    tasks = f"imagefolder:{image_folder(train=12, test=8)}"
    beside = a_driver(nodes.address, out, embedding, scoring, tasks)
    try:
        wait_until(lambda: beside.poll() is not None or worker_at(embedding), "the other driver's workers")
        fields = the_same(embedding, scoring, tasks)
        result, _ = carried_out(out, executor="ray", address=nodes.address, **fields)
        _, problems = beside.communicate(timeout=200)
    finally:
        beside.kill()
    assert beside.returncode == 0, problems
    assert not result.failures
    runs = list((out / "runs").glob("*.json"))
    assert len(runs) == 2
    assert_same_records(out, undisturbed(tmp_path / "local", [embedding, scoring], **fields))


def test_a_killed_driver_goes_on_where_it_was(
    nodes: Any, folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    embedding, scoring = folder("embedding", slow=1), folder("scoring")
    tasks = [f"imagefolder:{image_folder(name, train=8, test=count)}" for name, count in (("a", 4), ("b", 5), ("c", 6))]
    out = tmp_path / "ray"

    def start() -> subprocess.Popen[str]:
        return a_driver(nodes.address, out, embedding, scoring, ",".join(tasks))

    first = start()
    wait_until(lambda: first.poll() is not None or shards(out), "features")
    first.kill()
    assert first.communicate()[0] is not None
    assert not records(out)
    kept = shards(out)
    assert kept
    (embedding / "slow").unlink()
    (scoring / "slow").write_text("2")
    second = start()
    wait_until(lambda: second.poll() is not None or records(out), "a record")
    second.kill()
    second.communicate()
    made = left_by_driver(out, kept)
    nothing_goes_wrong(embedding, scoring)
    third = start()
    _, problems = third.communicate(timeout=250)
    assert third.returncode == 0, problems
    assert worker_at(embedding) is None, "every image had been embedded before"
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished record was made again"
    fields = the_same(embedding, scoring, ",".join(tasks))
    assert_same_records(out, undisturbed(tmp_path / "local", [embedding, scoring], **fields))
    assert len(list((out / "runs").glob("*.json"))) == 3
