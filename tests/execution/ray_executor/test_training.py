"""Trainings on a cluster: their records are the local executor's, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.conftest import ImageFolderMaker
from vitbench.errors import StoppedError, StoreError
from vitbench.execution.config import make_config
from vitbench.execution.execute import execute
from vitbench.execution.plan import RunResult
from vitbench.execution.ray import training
from vitbench.execution.ray.training_task import Training, files_below, place_of, write_files
from vitbench.execution.ray.worker import Problem
from vitbench.execution.reporter import Advance, Reporter
from vitbench.training import history
from vitbench.training.loop import DivergedError

SHORT = {"steps": 6, "warmup_steps": 2, "batch_size": 6, "learning_rate": 0.1, "ema_decay": 0.5, "crop": "none"}
LONG = {**SHORT, "steps": 1000}
WILD = {"learning_rate": 1e6, "weight_decay": 1e6}


class Recorder(Reporter):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warned: list[str] = []
        self.steps: dict[str, tuple[int, int]] = {}
        self.begun: Callable[[], None] = lambda: None

    def line(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        done = [0]

        def advance(steps: int, text: str = "") -> None:
            done[0] += steps
            if done[0] > 0:
                begun, self.begun = self.begun, lambda: None
                begun()

        yield advance
        self.steps[label] = (done[0], total)


class Runs:
    """Runs of one small training."""

    def __init__(self, folder: Path, spec: str, task: str, address: str) -> None:
        self.folder, self.spec, self.task, self.address = folder, spec, task, address
        self.told = Recorder()
        self.begun: Callable[[], None] = lambda: None

    def on_ray(self, out: str, options: Mapping[str, Any] = SHORT, **values: Any) -> RunResult:
        return self.run(out, options, executor="ray", address=self.address, **{"cpus_per_job": 1, **values})

    def run(self, out: str, options: Mapping[str, Any] = SHORT, **values: Any) -> RunResult:
        given = {
            "backbones": self.spec,
            "tasks": self.task,
            "representations": "gap",
            "protocol": "finetune",
            "device": "cpu",
            "trackers": "none",
            "executor": "local",
            "out": self.folder / out,
            "options": dict(options),
        }
        self.told = Recorder()
        self.told.begun, self.begun = self.begun, lambda: None
        return execute(make_config({**given, **values}), self.told, "a test")

    def records(self, out: str) -> list[dict[str, Any]]:
        """The records, without what may differ."""
        found = [json.loads(path.read_text()) for path in sorted((self.folder / out / "records").rglob("*.json"))]
        for record in found:
            del record["seconds"], record["provenance"]["created"], record["provenance"]["host"]
        return found

    def files(self, out: str) -> dict[str, Any]:
        """All that is left of the trainings: names, and the content of what tells no time."""
        root, found = self.folder / out, dict[str, Any]()
        for path in (path for folder in ("records", "models", "training") for path in (root / folder).rglob("*.*")):
            if path.suffix == ".safetensors":
                content: Any = {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
            else:
                content = path.read_bytes() if path.suffix in (".parquet", ".csv") else None
            found[str(path.relative_to(root))] = content
        return found


@pytest.fixture
def runs(cluster: Any, tmp_path: Path, tiny_vit: str, image_folder: ImageFolderMaker) -> Runs:
    return Runs(tmp_path, tiny_vit, f"imagefolder:{image_folder()}", cluster.address)


def trainers(name: str = "ray::train_alone") -> list[psutil.Process]:
    """The workers that are training."""
    found = {each.pid: each for each in psutil.Process().children(recursive=True) if title(each).startswith(name)}
    return [process for process in found.values() if process.ppid() not in found]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize("writer", ["workers", "driver"])
def test_records_are_those_of_the_local_executor(runs: Runs, writer: str) -> None:
    options = {**SHORT, "seeds": [0, 1]}
    runs.run("local", options)
    said = [line for line in runs.told.lines if "accuracy" in line]
    result = runs.on_ray("ray", options, writer=writer)
    assert (result.written, len(result.keys), result.failures, len(result.planned)) == (2, 2, [], 1)
    assert runs.records("ray") == runs.records("local")
    assert runs.files("ray") == runs.files("local")
    assert not (runs.folder / "ray" / "training").exists()
    assert sorted(line for line in runs.told.lines if "accuracy" in line) == sorted(said)
    models = [line for line in runs.told.lines if line.startswith("the trained model: ")]
    assert len(models) == 2
    assert all(str(runs.folder / "ray" / "models") in line for line in models)
    assert runs.told.steps == {"train   2 trainings": (12, 12)}
    again = runs.on_ray("ray", options, writer=writer)
    assert (again.written, len(again.keys)) == (0, 2)


@pytest.mark.parametrize("writer", ["workers", "driver"])
def test_a_killed_worker_changes_no_number(runs: Runs, writer: str) -> None:
    runs.run("local", LONG)
    killed: list[int] = []

    def kill() -> None:
        for process in trainers():
            killed.append(process.pid)
            process.kill()

    runs.begun = kill
    result = runs.on_ray("ray", LONG, writer=writer, checkpoint_steps=1)
    assert len(killed) == 1
    assert (result.written, result.failures) == (1, [])
    assert runs.records("ray") == runs.records("local")
    assert runs.files("ray") == runs.files("local")
    (retried,) = [line for line in runs.told.warned if "tried again" in line]
    assert retried.endswith("tried again (attempt 2 of 3)")
    assert "its worker was lost" in retried
    resumed = [line for line in runs.told.lines if line.startswith("going on from the checkpoint of step ")]
    assert len(resumed) == (1 if writer == "workers" else 0)
    assert list(runs.told.steps.values()) == [(1000, 1000)]


def test_what_diverges_is_one_line_and_the_others_finish(runs: Runs, image_folder: ImageFolderMaker) -> None:
    wild = image_folder("wild")
    recipe = {"name": "own", **SHORT, "clip_norm": None, "tasks": {"*wild*": WILD}}
    tasks = [f"imagefolder:{wild}", runs.task]
    local = runs.run("local", {"recipe": recipe}, tasks=tasks)
    result = runs.on_ray("ray", {"recipe": recipe}, tasks=tasks)
    (line,) = local.failures
    assert "training diverged at step" in line
    assert result.failures == [line]
    assert (result.written, len(result.planned)) == (1, len(local.planned))
    assert runs.records("ray") == runs.records("local")


def test_one_that_hangs_is_ended_and_given_up(runs: Runs) -> None:
    result = runs.on_ray(
        "ray", {**SHORT, "steps": 10**7}, timeout_per_job=6, max_failures=1, checkpoint_steps=100, cpus_per_job=1
    )
    assert result.written == 0
    (line,) = result.failures
    assert "given up: it took longer than --timeout-per-job 6 s, twice" in line
    (retried,) = [line for line in runs.told.warned if "tried again" in line]
    assert "it took longer than --timeout-per-job 6 s; tried again (attempt 2 of 2)" in retried


@pytest.mark.parametrize("writer", ["workers", "driver"])
def test_a_stopped_run_saves_its_state_and_goes_on(runs: Runs, writer: str) -> None:
    runs.run("local", LONG)

    runs.begun = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(
        StoppedError, match=r"stopped with 1 training unfinished; .*run the same command again"
    ) as caught:
        runs.on_ray("ray", LONG, writer=writer)
    assert caught.value.status == 128 + signal.SIGTERM
    assert not list((runs.folder / "ray").rglob("records/**/*.json"))
    assert list((runs.folder / "ray" / "training").glob("*/checkpoints/step-*.safetensors"))
    result = runs.on_ray("ray", LONG, writer=writer)
    assert result.written == 1
    assert any(line.startswith("going on from the checkpoint of step ") for line in runs.told.lines)
    assert runs.records("ray") == runs.records("local")
    assert runs.files("ray") == runs.files("local")


@pytest.mark.parametrize("writer", ["workers", "driver"])
def test_two_processes_of_ray_train_come_to_what_one_comes_to(
    runs: Runs,
    make_cluster: Callable[..., AbstractContextManager[Any]],
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
) -> None:
    options = {**SHORT, "mixup": 0.3}
    runs.run("one", options)
    monkeypatch.setattr(training, "processes_of", lambda per_job: 2)
    with make_cluster(head={"num_cpus": 2}) as cluster:
        runs.address = cluster.address
        result = runs.on_ray("two", options, cpus_per_job=2, writer=writer)
    assert (result.written, result.failures) == (1, [])
    (one,), (two,) = runs.records("one"), runs.records("two")
    assert one["identity"] == two["identity"]
    assert one["scores"]["accuracy"] == pytest.approx(two["scores"]["accuracy"], abs=1 / 12 + 1e-9)
    found = []
    for out in ("one", "two"):
        (path,) = (runs.folder / out / "models").rglob("model.safetensors")
        (told,) = (runs.folder / out / "records").rglob("*.history.jsonl")
        found.append((load_file(path), history.read_history(told)))
    (weights, curve), (shared, other) = found
    for name, value in weights.items():
        assert_close(shared[name], value, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose([entry.loss for entry in other], [entry.loss for entry in curve], rtol=1e-4)
    assert [entry.accuracy for entry in other] == [entry.accuracy for entry in curve]


def test_one_of_two_processes_is_killed_and_both_go_on(
    runs: Runs, make_cluster: Callable[..., AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "processes_of", lambda per_job: 2)
    killed: list[int] = []

    def kill() -> None:
        process = trainers("ray::RayTrainWorker")[-1]
        killed.append(process.pid)
        process.kill()

    runs.begun = kill
    with make_cluster(head={"num_cpus": 2}) as cluster:
        runs.address = cluster.address
        result = runs.on_ray("two", LONG, cpus_per_job=2, checkpoint_steps=1)
    assert len(killed) == 1
    assert (result.written, result.failures) == (1, [])
    (retried,) = [line for line in runs.told.warned if "tried again" in line]
    assert re.search(r"(process \d of 2 was lost|a process failed \(.*\)); tried again \(attempt 2 of 3\)", retried)
    assert any(line.startswith("going on from the checkpoint of step ") for line in runs.told.lines)


def test_processes_that_cannot_go_on_say_why_in_one_line(
    runs: Runs, make_cluster: Callable[..., AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "processes_of", lambda per_job: 2)
    with make_cluster(head={"num_cpus": 2}) as cluster:
        runs.address = cluster.address
        result = runs.on_ray("two", {**SHORT, "clip_norm": None, **WILD}, cpus_per_job=2)
    (line,) = result.failures
    assert "gap, seed 0: training diverged at step" in line
    assert not [line for line in runs.told.warned if "tried again" in line]


def test_other_data_or_weights_on_a_worker_are_refused(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for field, told in (
        ("train_fingerprint", "reads other data for task 'imagefolder:"),
        ("weights", "has other weights on"),
        ("dtype", r"otherwise than planned \(dtype differ\)"),
    ):

        def other(*given: Any, field: str = field) -> Training:
            *before, identity, key = given
            return Training(*before, {**identity, field: "another"}, key)

        monkeypatch.setattr(training, "Training", other)
        result = runs.on_ray(f"ray-{field}")
        (line,) = result.failures
        assert re.search(told, line)
        assert result.written == 0


def test_files_come_back_whole_and_stay_inside(tmp_path: Path) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    for name, content in {"records/b/t/k.json": b"{}", "records/b/t/k.parquet": b"x" * 5, "empty": b""}.items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_bytes(content)
    for name in (".lock", ".tmp-1"):
        (scratch / name).write_bytes(b"not this")
    files = files_below(scratch)
    assert sorted(files) == ["empty", "records/b/t/k.json", "records/b/t/k.parquet"]
    write_files(files, out)
    assert files_below(out).keys() == files.keys()
    assert (out / "records/b/t/k.parquet").read_bytes() == b"x" * 5
    (out / "link").symlink_to(tmp_path)
    for name in ("../evil", "/etc/evil", "a/../../evil", "", "link/evil"):
        with pytest.raises(StoreError, match="which would lie outside"):
            place_of(name, out)


def test_a_problem_is_told_as_its_nearest_known_kind() -> None:
    error = Problem.of(DivergedError("too far")).error()
    assert (type(error).__name__, str(error)) == ("VitbenchError", "too far")
