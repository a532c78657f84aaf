"""`vitbench run --protocol finetune` as a user has it, from the images to the leaderboard and the saved model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from vitbench.cli.main import app
from vitbench.records.predictions import read_predictions
from vitbench.training import history

SHORT = ["--set", "steps=6", "--set", "warmup_steps=2", "--set", "batch_size=6", "--device", "cpu"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def run(spec: str, folder: Path, out: Path, *arguments: str) -> Result:
    return invoke("run", "-b", spec, "-t", f"imagefolder:{folder}", "-o", str(out), *arguments)


def records(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) | {"path": path} for path in sorted((out / "records").rglob("*.json"))]
    return sorted(found, key=lambda record: (record["protocol"], record["protocol_label"]))


def said(result: Result) -> str:
    return " ".join((result.stdout + result.stderr).split())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    """Of 3 classes, 6 train and 4 test images each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for label, name in enumerate(("boot", "clog", "loafer")):
            target = shared / "shoes" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                pixels = np.eye(3)[label] * 150 + generator.uniform(0, 105, (24, 20, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index:03d}.png")
    return shared / "shoes"


@pytest.fixture(scope="module")
def out(shared: Path, folder: Path, tiny_vit: str) -> Path:
    """Two recipes and a few-shot run of one backbone on one task."""
    for arguments in (
        ["--recipe", "light", "--set", "preprocess=vit_jax", *SHORT],
        ["--protocol", "finetune", "--recipe", "linear_probe", "--tracker", "none", "--no-save-models", *SHORT],
        ["--shots", "1", "--seeds", "1", "-r", "cls"],
    ):
        done = run(tiny_vit, folder, shared / "out", *arguments)
        assert done.exit_code == 0, said(done)
    return shared / "out"


def test_side_by_side_in_one_leaderboard(out: Path) -> None:
    table = invoke("leaderboard", "-o", str(out)).stdout
    assert "light · lr 0.01 · 6 steps" in table
    assert "linear_probe · lr 0.1 · 6 steps" in table
    assert "1-shot" in table or "fewshot" in table


def test_what_lies_beside_the_record(out: Path) -> None:
    one, other = records(out)[1:]
    assert (one["protocol_label"], other["protocol_label"]) == (
        "light · lr 0.01 · 6 steps",
        "linear_probe · lr 0.1 · 6 steps",
    )
    for record in (one, other):
        path: Path = record["path"]
        beside = {file.name.removeprefix(path.stem) for file in path.parent.glob(f"{path.stem}*")}
        assert beside == {
            ".json",
            ".parquet",
            ".history.jsonl",
            ".curve.png",
            ".confusion.png",
            ".confusion.csv",
        }
        entries = history.read_history(path.with_suffix(".history.jsonl"))
        assert [entry.step for entry in entries] == [1, 2, 3, 4, 5, 6]
        assert entries[0].learning_rate == 0.0
        assert record["n_support"] == 18
        assert "macro_f1" in record["scores"]
        assert record["details"]["accuracy_before"] == pytest.approx(1 / 3), "a head of zeros names the first class"
        assert record["parameters"]["steps"] == 6
    assert other["parameters"]["head_only"] is True
    assert not (out / "training").exists(), "checkpoints are of no use any more"
    assert [path.name for path in (out / "models").iterdir()] == [one["key"]]
    assert list((out / "trackers" / one["key"]).rglob("events.out.tfevents*"))
    assert not (out / "trackers" / other["key"]).exists()


def test_the_saved_model_scores_the_same(out: Path, folder: Path, tmp_path: Path) -> None:
    record = records(out)[1]
    spec = f"timm:local-dir:{out / record['details']['model']},preprocess={record['preprocessing']}"
    shown = json.loads(invoke("show", "backbone", spec, "--json").stdout)
    assert "cls" in shown["representations"]
    done = run(spec, folder, tmp_path, "--protocol", "head", "--device", "cpu", "-q")
    assert done.exit_code == 0, said(done)
    (scored,) = records(tmp_path)
    assert scored["scores"] == record["scores"]
    assert scored["preprocessing"] == record["preprocessing"]
    assert np.array_equal(read_predictions(scored["path"]).prediction, read_predictions(record["path"]).prediction)


def test_what_is_there_is_not_trained_again(out: Path, folder: Path, tiny_vit: str) -> None:
    done = run(tiny_vit, folder, out, "--recipe", "light", "--set", "preprocess=vit_jax", *SHORT, "--batch-size", "4")
    assert "0 records written, 1 there already" in said(done)
    assert "steps in" not in said(done)


def test_dry_run_counts_images_and_writes_nothing(folder: Path, tiny_vit: str, tmp_path: Path) -> None:
    done = run(tiny_vit, folder, tmp_path / "out", "--recipe", "light", *SHORT, "--dry-run")
    assert done.exit_code == 0, said(done)
    assert f"{6 * 6 + 2 * 12} images would go through a backbone" in said(done)
    assert not (tmp_path / "out").exists()


def test_why_and_replay(out: Path) -> None:
    for record in records(out)[1:]:
        why = invoke("why", record["key"], "-o", str(out))
        assert why.exit_code == 0, said(why)
        assert "would be used again" in said(why)
        again = invoke("replay", record["key"], "-o", str(out))
        assert again.exit_code == 0, said(again)
        assert "all 12 predictions" in said(again)
    assert [path.name for path in (out / "models").iterdir()] == [records(out)[1]["key"]]


def test_why_another_recipe_would_be_trained(out: Path, folder: Path, tiny_vit: str) -> None:
    asked = ["--", "run", "-b", tiny_vit, "-t", f"imagefolder:{folder}", "-o", str(out), "--recipe", "light", *SHORT]
    told = said(invoke("why", *asked, "--set", "learning_rate=0.02", "--set", "preprocess=vit_jax"))
    assert "1 to be made" in told
    assert "learning_rate" in told


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recipe", "papper"], "unknown recipe 'papper'; did you mean 'paper'"),
        (["--set", "steps=0"], "steps must be at least 1, got 0"),
        (["--set", "learnin_rate=1"], "a recipe has no field 'learnin_rate'; did you mean learning_rate?"),
        (["--set", "batch_size=64"], "batch_size 64 is larger than split 'train'"),
        (["--set", "resolution=40"], "40"),
        (["-r", "gap@7", *SHORT], "has no layer 7"),
        (["-r", "poler", *SHORT], "unknown representation 'poler'"),
        (["--tracker", "tensorbord", *SHORT], "got 'tensorbord'; did you mean tensorboard?"),
        (
            ["--tracker", "wandb", *SHORT],
            "--tracker wandb needs the package wandb: pip install wandb, or --tracker none",
        ),
        (["--set", "learning_rate=1e6", "--set", "clip_norm=null", *SHORT], "training diverged at step"),
        (["--shots", "1", *SHORT], "has no shots"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], expected: str, folder: Path, tiny_vit: str, tmp_path: Path
) -> None:
    import importlib.util

    if "wandb" in arguments and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    command = [sys.executable, "-m", "vitbench", "run", "-b", tiny_vit, "-t", f"imagefolder:{folder}"]
    result = invoke(*command[3:], "-o", str(tmp_path), "--protocol", "finetune", *arguments)
    told = said(result) or str(result.exception)
    assert result.exit_code
    assert expected in told or expected in str(result.exception)
    assert "Traceback" not in told
    assert "(unexpected" not in told
    assert not list((tmp_path / "failures").glob("*")) if (tmp_path / "failures").exists() else True
    assert not records(tmp_path)


def test_nothing_to_train(folder: Path, tmp_path: Path) -> None:
    told = said(run("pixels", folder, tmp_path, "--recipe", "light", *SHORT))
    assert "backbone 'pixels' has no weights to train; --protocol ridge scores it" in told
    assert "(unexpected" not in told


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_state_and_the_same_command_goes_on(
    number: signal.Signals, status: int, folder: Path, tiny_vit: str, tmp_path: Path
) -> None:
    steps = ["--set", "steps=2000", "--set", "warmup_steps=2", "--set", "batch_size=2", "--device", "cpu"]
    command = [sys.executable, "-m", "vitbench", "run", "-b", tiny_vit, "-t", f"imagefolder:{folder}", "-o", "out"]
    command += ["--recipe", "light", "--tracker", "none", "--checkpoint-steps", "5", *steps]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "out" / "training").glob("*/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=100)
    assert process.returncode == status, told
    (line,) = [line for line in told.splitlines() if "stopped" in line]
    assert line.startswith("stopped after ")
    assert "the state is saved in out/training/" in line
    assert line.endswith("run the same command again to go on from there")
    assert "Traceback" not in told
    checkpoint = max((tmp_path / "out" / "training").glob("*/checkpoints/step-*"))
    done = int(checkpoint.stem.removeprefix("step-"))
    assert f"stopped after {done:,} of 2,000 steps" in line
    assert load_file(checkpoint)
    if number == signal.SIGINT:
        return
    again = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (later := [path for path in checkpoint.parent.glob("step-*") if path > checkpoint]):
        assert again.poll() is None, again.communicate()
        assert time.monotonic() < deadline + 200
        time.sleep(0.05)
    assert later
    again.terminate()
    _, told = again.communicate(timeout=100)
    assert f"going on from the checkpoint of step {done:,} of 2,000" in told
