"""What is lost on a real cluster of several nodes is done again, and only that; the records are those of an undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tests.conftest import ImageFolderMaker
from tests.execution.ray_executor.conftest import node_arguments, running_cluster, with_faulty
from tests.execution.ray_executor.running import (
    assert_same_records,
    carried_out,
    meanwhile,
    the_journal,
    undisturbed,
    wait_until,
    worker_at,
)
from vitbench.execution.ray import course


def neighbours(embedding: Path, images: Path) -> dict[str, Any]:
    """A run whose faults are those of embedding."""
    return {
        "backbones": f"faulty:{embedding}",
        "tasks": f"imagefolder:{images}",
        "protocol": "knn",
        "options": {"k": (1, 3)},
        "batch_size": 4,
    }


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
    assert {seen.read_text() for seen in embedding.glob("pid-*")} - {""} == {"True"}, "only there a heap can be kept"
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
    fields = neighbours(embedding, image_folder(train=12, test=12))
    added = joined.add_node(**node_arguments(num_cpus=1))

    def remove() -> None:
        wait_until(lambda: len(list(embedding.glob("pid-*"))) == 3, "three workers")
        joined.remove_node(added, allow_graceful=False)

    with meanwhile(remove):
        result, told = carried_out(tmp_path / "ray", executor="ray", writer="driver", **fields)
    assert not result.failures
    assert any("its worker was lost; tried again on" in line for line in told.warned)
    assert_same_records(tmp_path / "ray", undisturbed(tmp_path / "local", [embedding], **fields))


def test_extraction_that_stands_still_after_a_node_was_lost_is_begun_anew(
    joined: Any,
    folder: Callable[..., Path],
    image_folder: ImageFolderMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(course, "CHECK_SECONDS", 1.0)
    monkeypatch.setattr(course, "STALLED_SECONDS", 5.0)
    embedding = folder("embedding", slow=0.5)
    out = tmp_path / "ray"
    fields = neighbours(embedding, image_folder(train=8, test=4))
    added = joined.add_node(**node_arguments(num_cpus=1))

    go = tmp_path / "go"

    def hold(until: str) -> None:
        while not os.path.exists(until):  # noqa: PTH110
            time.sleep(0.1)

    def remove() -> None:
        wait_until(lambda: len(list(embedding.glob("pid-*"))) == 3, "three workers")
        # Another driver's work waits for the cores, and gets them before the actor that is to be started anew.
        held = [
            ray.remote(hold)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False))
            .remote(str(go))
            for node in joined.list_all_nodes()
            if node is not added
        ]
        joined.remove_node(added, allow_graceful=False)
        try:
            wait_until(lambda: "extraction stood still" in str(the_journal(out)["retried"]), "the standstill", 50)
        finally:
            go.touch()
        ray.get(held)

    with meanwhile(remove):
        result, told = carried_out(out, executor="ray", **fields)
    assert not result.failures
    assert "extraction stood still after a node was lost; what is missing is tried again" in told.warned
    assert_same_records(out, undisturbed(tmp_path / "local", [embedding], **fields))


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


def test_a_run_whose_only_job_is_given_up_has_failed_and_is_no_mistake_in_the_input(
    joined: Any, folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    result, told = carried_out(
        tmp_path / "ray",
        executor="ray",
        backbones=f"faulty:{folder('dies', exit='')}",
        tasks=f"imagefolder:{image_folder(train=12)}",
        protocol="knn",
        options={"k": 1},
        batch_size=4,
        max_failures=0,
    )
    (line,) = result.failures
    assert "its worker was lost once" in line
    assert result.status == 1
    (done,) = {done for label, (done, _) in told.tracked.items() if label.startswith("extract")}
    assert done == 0
    assert not any("tried again" in warned for warned in told.warned), "no unit is of use once the job is given up"


@pytest.mark.skipif(psutil.virtual_memory().available < 9 * 2**30, reason="needs memory to waste")
def test_a_worker_that_takes_all_memory_is_replaced_and_given_up_and_the_rest_is_done(
    folder: Callable[..., Path], image_folder: ImageFolderMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setenv("RAY_memory_usage_threshold", str(1 - (memory.available - 3 * 2**30) / memory.total))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    embedding, scoring = folder("embedding", eat=""), folder("scoring", eat_once="")
    fields: dict[str, Any] = {
        "tasks": f"imagefolder:{image_folder()}",
        "protocol": "faulty",
        "options": {"k": (1, 3), "faults": str(scoring)},
        "batch_size": 64,
    }
    with with_faulty(tmp_path), running_cluster() as made:
        reached = {"address": made.address, "max_failures": 1}
        result, told = carried_out(
            tmp_path / "ray", backbones=[f"faulty:{embedding}", "pixels"], executor="ray", **reached, **fields
        )
    again = [line for line in told.warned if "tried again" in line]
    assert any(line.startswith("extract faulty:embedding") for line in again)
    [scored] = [line for line in again if line.startswith("score   pixels")]
    assert "its worker was ended because the node ran out of memory; tried again (attempt 2 of 2)" in scored
    [failure] = result.failures
    assert "its worker was lost twice (killed, out of memory, or its node was lost)" in failure
    assert_same_records(
        tmp_path / "ray", undisturbed(tmp_path / "local", [embedding, scoring], backbones="pixels", **fields)
    )
