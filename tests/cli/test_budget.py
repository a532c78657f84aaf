"""The plan with its estimates, the budget, and the choice of an executor, as a user sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.conftest import ImageFolderMaker
from vitbench.cli.main import app
from vitbench.errors import UsageError
from vitbench.execution import execute as executing
from vitbench.execution.config import make_config
from vitbench.execution.estimate import Rate
from vitbench.execution.journal import read_run, run_files


def run(folder: Path, out: Path, *arguments: str) -> Result:
    command = ["run", "-b", "pixels", "-t", f"imagefolder:{folder}", "-o", str(out), "--shots", "1,5", "--seeds", "3"]
    return CliRunner().invoke(app, [*command, *arguments])


def test_a_dry_run_estimates_every_job_and_writes_nothing(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run(image_folder(), out, "--dry-run").stdout
    assert "estimate" in text
    assert "images would go through a backbone, in about " in text
    assert not out.exists()


def test_a_budget_that_suffices_leaves_nothing_out(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    done = run(image_folder(), tmp_path / "out", "--budget", "2h")
    assert done.exit_code == 0
    assert "of a budget of 2 h: nothing is left out" in " ".join(done.output.split())
    assert "6 records written" in done.output


def test_what_does_not_fit_is_left_out_and_named(
    image_folder: ImageFolderMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Rate(flops={"float32": 1e12}, score_flops=1e12, decoders=1, apart=True, measured={})
    monkeypatch.setattr("vitbench.execution.estimate.speed", lambda *_, **__: slow)
    monkeypatch.setattr("vitbench.execution.estimate.RECORD_SECONDS", 10.0)
    out = tmp_path / "out"
    done = run(image_folder(), out, "--budget", "45s")
    assert done.exit_code == 0
    told = " ".join(done.output.split())
    assert "left out: seed" in told
    assert "4 records written" in told
    (file,) = run_files(out)
    assert any("left out" in note for note in read_run(file).notes)


def test_a_budget_below_the_least_is_refused_with_what_that_takes(
    image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    command = ["run", "-b", "pixels", "-t", f"imagefolder:{image_folder()}", "-o", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="budget"):
        CliRunner().invoke(app, [*command, "--budget", "0.001s"], catch_exceptions=False)


@pytest.mark.parametrize("text", ["soon", "-3m", "0", "30 parsecs"])
def test_a_duration_that_cannot_be_meant_is_refused(text: str) -> None:
    for field in ("budget", "timeout_per_job"):
        with pytest.raises(
            UsageError, match=f"{field.replace('_', '-')} is a duration .*such as 90s, 30m or 2h, not '{text}'"
        ):
            make_config({field: text})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), ("0.5", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert make_config({"budget": text}).budget == seconds


def test_the_executor_is_this_process_unless_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert executing.executor(make_config({})) == "local"
    assert executing.executor(make_config({"address": "auto"})) == "ray"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert executing.executor(make_config({})) == "ray"
    assert executing.executor(make_config({"device": "cpu"})) == "local"
    assert executing.executor(make_config({"device": "cuda:1"})) == "local"
    assert executing.executor(make_config({"executor": "local"})) == "local"
    monkeypatch.setattr(executing, "find_spec", lambda name: None)
    assert executing.executor(make_config({})) == "local"


def test_an_address_without_ray_is_refused(tmp_path: Path) -> None:
    config = make_config({"executor": "local", "address": "auto", "backbones": "pixels", "out": tmp_path})
    with pytest.raises(UsageError, match="--executor ray"):
        executing.execute(config, executing.Reporter(), "test")


def test_the_local_executor_imports_no_ray(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    code = (
        "import sys, vitbench\n"
        f"vitbench.run('pixels', 'imagefolder:{image_folder()}', shots=1, seeds=1, out='{tmp_path / 'out'}')\n"
        "assert not {name for name in sys.modules if name.partition('.')[0] == 'ray'}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_ray_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    config = make_config({"executor": "ray", "backbones": "pixels", "tasks": "digits", "out": tmp_path})
    with pytest.raises(UsageError, match="vitbench\\[ray\\]"):
        executing.execute(config, executing.Reporter(), "test")


def test_options_of_a_cluster_are_told_to_be_of_no_use_here(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    done = run(image_folder(), tmp_path / "out", "--cpus-per-job", "2", "--timeout-per-job", "1h")
    assert done.exit_code == 0
    assert "--cpus-per-job, --timeout-per-job: for --executor ray, and of no use here" in " ".join(done.output.split())
