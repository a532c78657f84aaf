"""`vitbench ablate` as a user runs it."""

from __future__ import annotations

import csv
import gc
import io
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.cli import ablate
from vitbench.errors import VitbenchError

app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
app.command("ablate", epilog=ablate.EXAMPLES)(ablate.ablate)


@app.callback()
def _root() -> None:
    pass


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ablate", *arguments])


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run collects garbage after each backbone, 0.2 s every time: the tiny ones of these tests may stay."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


@pytest.fixture
def shoes(image_folder: ImageFolderMaker) -> str:
    return f"imagefolder:{image_folder()}"


def test_it_runs_prints_and_draws_and_a_second_call_does_nothing(
    tiny_vit: str, shoes: str, tmp_path: Path, encoded: list[int]
) -> None:
    line = ["-b", tiny_vit, "-t", shoes, "-o", str(tmp_path / "out"), "--seeds", "2", "--shots", "1,2"]
    first = invoke(*line, "--over", "representation=cls,gap,pooler")
    assert first.exit_code == 0, first.output
    assert "representation against cls" in first.stdout
    assert "pooler (= cls)" in first.stdout
    assert "p (Holm)" in first.stdout
    assert "12 records written, 0 there already" in first.stderr
    pictures = sorted((tmp_path / "out" / "ablations").glob("*.png"))
    assert [path.name.rsplit("-", 1)[1] for path in pictures] == ["forest.png", "shots.png"]
    encoded.clear()
    again = invoke(*line, "--over", "representation=cls,gap,pooler", "--format", "json", "--plots", str(tmp_path / "p"))
    assert encoded == []
    assert "0 records written, 12 there already" in again.stderr
    assert len(json.loads(again.stdout)["rows"]) == 2 * 3
    assert len(list((tmp_path / "p").glob("*.png"))) == 2
    frame = vitbench.load_results(tmp_path / "out")
    assert len(frame) == 12


def test_axes_are_crossed_and_a_reference_is_chosen(shoes: str, tmp_path: Path) -> None:
    over = ["--over", "dtype", "--over", "l2=1,paper", "--reference", "1024"]
    done = invoke("-t", shoes, "-o", str(tmp_path), "--seeds", "1", "--shots", "1", *over, "-f", "csv", "-q")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {(row["dtype"], row["level"], row["reference"]) for row in rows} == {
        (dtype, level, "1024") for dtype in ("float32", "bfloat16") for level in ("1", "1024", "loo")
    }
    assert "records written" not in done.stderr


def test_a_dry_run_prints_the_plan(shoes: str, tmp_path: Path) -> None:
    done = invoke(
        "-b",
        "pixels",
        "-t",
        shoes,
        "-o",
        str(tmp_path / "out"),
        "--over",
        "l2",
        "--shots",
        "1",
        "--seeds",
        "1",
        "--dry-run",
    )
    assert done.exit_code == 0, done.output
    assert "15 images would go through a backbone" in done.stdout
    assert not (tmp_path / "out").exists()


def test_what_fails_is_listed_at_the_end(tiny_vit: str, shoes: str, tmp_path: Path) -> None:
    line = ["-b", tiny_vit, "-t", shoes, "-o", str(tmp_path), "--shots", "1", "--seeds", "1", "-r", "cls"]
    done = invoke(*line, "--over", "resolution=32,33")
    assert done.exit_code == 1
    assert "33 of timm:vit_tiny_patch16_224" in done.stdout
    assert "not scored" in done.stdout
    assert "1 failed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--over", "layers"], "unknown --over 'layers'; did you mean 'layer'"),
        (["--over", "dtype=int8"], "unknown dtype 'int8'"),
        (["--over", "l2", "--l2", "5"], "--over l2 varies what --l2 5 fixes: write --over l2=5"),
        (["--over", "layer", "-r", "cls"], "--over layer varies what --representations cls fixes"),
        (["--over", "shots", "--shots", "1,5"], "--over shots varies what --shots 1,5 fixes: write --over shots=1,5"),
        (["--over", "l2", "--format", "html"], "unknown format 'html'"),
        (["--over", "l2", "--correction", "holms"], "unknown correction 'holms'; did you mean 'holm'?"),
        (["--over", "l2", "--reference", ""], "--reference is empty"),
        (["--over", "l2", "--reference", "7"], "unknown --reference '7'"),
        (["--over", "l2", "-t", "cifar11"], "did you mean 'cifar10'"),
        (["--over", "l2", "-b", "timn:vit"], "did you mean 'timm'?"),
        (["--over", "shots=1", "--protocol", "ridge"], "'shots'"),
        (["--over", "layer", "-b", "pixels"], "has no layers to vary"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert isinstance(result.exception, VitbenchError), result.output
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "results" / "runs" / "records").exists()


def test_it_has_the_options_of_run_with_an_example() -> None:
    text = CliRunner().invoke(app, ["ablate", "--help"], env={"COLUMNS": "200"}).stdout
    for option in (
        "--over",
        "--reference",
        "--backbone",
        "--tasks",
        "--shots",
        "--limit",
        "--device",
        "--set",
        "--config",
    ):
        assert option in text
    assert "--on-existing" not in text
    assert "vitbench ablate --backbone" in text
