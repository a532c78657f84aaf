"""Runs by Ray on this machine make the records that runs in this process make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ImageFolderMaker
from tests.execution.ray_executor.running import (
    Told,
    assert_same_records,
    carried_out,
    records,
    the_journal,
    wait_until,
)
from vitbench.backbones.classifier import Classifier
from vitbench.execution.ray import cluster
from vitbench.execution.ray.joining import own
from vitbench.features import remembered
from vitbench.features.load import load_backbone


@pytest.fixture
def workers() -> Iterator[None]:
    """Two workers of one core, which the runs of a test share: a run takes the Ray that its process has."""
    with own(2):
        yield


def both(tmp_path: Path, **fields: Any) -> tuple[list[str], list[str], Told]:
    """Failures of the local run and of the one by Ray, whose records are equal, and what Ray's told."""
    here, _ = carried_out(tmp_path / "local", executor="local", **fields)
    there, told = carried_out(tmp_path / "ray", executor="ray", **fields)
    assert_same_records(tmp_path / "local", tmp_path / "ray")
    assert set(here.keys) == set(there.keys)
    assert here.written == there.written
    planned = [sorted(repr(replace(job, estimate=None)) for job in result.planned) for result in (here, there)]
    assert planned[0] == planned[1]
    return here.failures, there.failures, told


def test_every_protocol_makes_the_same_records(
    workers: None, image_folder: ImageFolderMaker, tmp_path: Path, tiny_vit: str
) -> None:
    tasks = [f"imagefolder:{image_folder('shoes', train=7, test=5)}", f"imagefolder:{image_folder('hats', test=9)}"]
    common: dict[str, Any] = {"backbones": [tiny_vit, "pixels"], "tasks": tasks, "batch_size": 4}
    _, failures, told = both(tmp_path, protocol="knn", options={"k": (1, 3)}, writer="driver", **common)
    assert not failures
    assert told.tracked["extract 4 jobs"] == (2 * 3 * (7 + 5 + 6 + 9), 2 * 3 * (7 + 5 + 6 + 9))
    made = len(list((tmp_path / "ray" / "records").glob("*/**/*.json")))
    assert told.tracked["score"] == (made, made), "some were scored beside the extraction"
    journal = the_journal(tmp_path / "ray")
    assert journal["executor"] == "ray"
    assert [job["state"] for job in journal["jobs"]] == ["done"] * 4
    assert sum(job["embedded"] for job in journal["jobs"]) == 2 * 3 * (7 + 5 + 6 + 9)
    for protocol, options in (
        ("ridge", {}),
        ("episodes", {"way": 3, "shots": (1,), "queries": 3, "episodes": 5}),
        ("fewshot", {"shots": (1, 2), "seeds": (0, 1)}),
    ):
        _, failures, told = both(tmp_path, protocol=protocol, options=options, **common)
        assert not failures
        assert not any(label.startswith("extract") for label in told.tracked), "the features were there"


def test_the_checkpoints_own_head_makes_the_same_records(
    workers: None, image_folder: ImageFolderMaker, tmp_path: Path, tiny_vit: str
) -> None:
    weight = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    head = Classifier("gap", weight, torch.zeros(4), ("Loafer", "car", "CLOG", "boot"))
    saved = load_backbone(tiny_vit, device="cpu").save(tmp_path / "model", head)
    _, failures, told = both(
        tmp_path, backbones=[saved], tasks=[f"imagefolder:{image_folder()}"], protocol="head", batch_size=4
    )
    assert not failures
    assert list(told.tracked.values()) == [(12, 12), (1, 1)], "the test images alone are embedded"


def test_workers_write_splits_of_splits_in_float16_of_few_images(
    workers: None, image_folder: ImageFolderMaker, tmp_path: Path, tiny_vit: str
) -> None:
    _, failures, _ = both(
        tmp_path,
        backbones=[tiny_vit],
        tasks=[f"imagefolder:{image_folder('shoes', train=12, test=5)}"],
        train_split="train[:60%]",
        test_split="train[60%:]+test",
        limit=7,
        features_dtype="float16",
        representations=["cls", "gap@1", "cls+gap", "nonsense"],
        options={"shots": (1, 2), "seeds": (0, 1)},
        batch_size=4,
        writer="workers",
    )
    assert len(failures) == 1
    assert "unknown representation 'nonsense'" in failures[0]
    shards = list((tmp_path / "ray" / "features").rglob("shard-*.safetensors"))
    assert {path.parents[1].name for path in shards} == {"train", "test"}


def test_what_fails_fails_alone_and_as_it_does_here(
    workers: None, image_folder: ImageFolderMaker, tmp_path: Path, tiny_vit: str
) -> None:
    whole, broken = image_folder("shoes"), image_folder("hats")
    (broken / "test" / "clog" / "003.png").write_bytes(b"no image")
    again = tmp_path / "again" / "boots"
    shutil.copytree(whole, again)
    # A backbone of the same label with other weights.
    checkpoint = Path(tiny_vit.split("checkpoint=")[1].split(",")[0])
    other = tmp_path / "other.safetensors"
    save_file({name: value + torch.ones(()) * 0.01 for name, value in load_file(checkpoint).items()}, other)
    here, there, told = both(
        tmp_path,
        backbones=[tiny_vit, tiny_vit.replace(str(checkpoint), str(other)), "pixels", "timm:no_such_model"],
        tasks=[f"imagefolder:{folder}" for folder in (whole, broken, again)],
        options={"shots": (1,), "seeds": (0,)},
        batch_size=4,
    )
    assert sorted(here) == sorted(there)
    assert len([line for line in there if "003.png" in line]) == 2, "two backbones have one label, and one line"
    assert len([line for line in there if "no_such_model" in line]) == 1
    assert len([line for line in told.lines if "is the same data as" in line]) == 3
    states = {(job["backbone"], job["task"]): job["state"] for job in the_journal(tmp_path / "ray")["jobs"]}
    assert {state for (_, task), state in states.items() if "hats" in task} == {"failed"}
    assert {state for (spec, task), state in states.items() if "hats" not in task and "no_such" not in spec} == {"done"}


def test_what_is_there_is_left_made_anew_or_refused(
    workers: None, image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fields: dict[str, Any] = {
        "backbones": ["pixels"],
        "tasks": [f"imagefolder:{image_folder()}"],
        "options": {"shots": (1,), "seeds": (0,)},
    }
    result, _ = carried_out(out, dry_run=True, executor="ray", **fields)
    assert [(job.records, job.present, job.images) for job in result.planned] == [(1, 0, 3 + 12)]
    assert not out.exists(), "a dry run writes nothing"
    carried_out(out, executor="ray", **fields)
    [path] = records(out).values()
    written = path.stat().st_mtime_ns
    result, _ = carried_out(out, executor="ray", **fields)
    assert (result.written, len(result.keys), path.stat().st_mtime_ns) == (0, 1, written)
    result, _ = carried_out(out, executor="ray", on_existing="error", **fields)
    assert "exist in" in result.failures[0]
    assert path.stat().st_mtime_ns == written
    result, _ = carried_out(out, executor="ray", on_existing="rerun", **fields)
    assert result.written == 1
    assert path.stat().st_mtime_ns > written


def test_a_backbone_that_is_not_loaded_in_time_is_named(
    workers: None, image_folder: ImageFolderMaker, tmp_path: Path, tiny_vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / "cache"))  # where no test has made it known
    fields: dict[str, Any] = {"backbones": [tiny_vit], "tasks": [f"imagefolder:{image_folder()}"]}
    result, _ = carried_out(tmp_path, executor="ray", timeout_per_job=0.001, max_failures=0, **fields)
    assert len(result.failures) == 1
    assert f"loading {tiny_vit}: given up: it took longer than --timeout-per-job 0.001 s, once" in result.failures[0]


def test_where_everything_is_there_ray_is_not_started(
    image_folder: ImageFolderMaker, tmp_path: Path, tiny_vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0)
    fields: dict[str, Any] = {
        "backbones": [tiny_vit, "pixels"],
        "tasks": [f"imagefolder:{image_folder()}"],
        "options": {"seeds": 1},
    }
    carried_out(tmp_path, executor="local", **fields)
    monkeypatch.setattr(cluster, "connected", refuse)
    result, _ = carried_out(tmp_path, executor="ray", **fields)
    assert result.written == 0
    assert len(result.keys) == len(records(tmp_path))


def test_a_worker_imports_what_it_needs_and_no_garbage_is_looked_for_meanwhile() -> None:
    code = """
import gc, sys
passes = []
gc.callbacks.append(lambda phase, info: passes.append(phase))
import vitbench.execution.ray.worker
assert not {"vitbench.execution.estimate", "torch.utils.flop_counter", "triton"} & set(sys.modules)
assert gc.isenabled()
print(len(passes))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 100, "hundreds otherwise"


def test_two_runs_into_one_folder_at_once(workers: None, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    tasks = f"imagefolder:{image_folder('shoes', train=20)}"
    out, options = tmp_path / "ray", {"shots": (1, 2), "seeds": (0, 1)}
    command = [sys.executable, "-m", "vitbench", "run", "-b", "pixels", "-t", tasks, "--shots", "1,2", "--seeds", "0,1"]
    beside = subprocess.Popen(
        [*command, "--device", "cpu", "-o", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    )
    try:
        wait_until(lambda: beside.poll() is not None or list((out / "runs").glob("*.json")), "the other run")
        result, _ = carried_out(out, executor="ray", backbones="pixels", tasks=tasks, options=options)
        _, problems = beside.communicate(timeout=200)
    finally:
        beside.kill()
    assert beside.returncode == 0, problems.decode()
    assert not result.failures
    carried_out(tmp_path / "local", executor="local", backbones="pixels", tasks=tasks, options=options)
    assert_same_records(out, tmp_path / "local")
