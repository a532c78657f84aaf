from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from tests.conftest import ImageFolderMaker
from tests.hub_server import serve_hub, use_hub
from tests.tasks.test_hub import task_file, write_shoes
from vitbench.analysis import audit_run
from vitbench.analysis.audit_images import Spread
from vitbench.cli import audit
from vitbench.errors import VitbenchError
from vitbench.hub import is_offline
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Task, TaskOptions

app = typer.Typer()
app.command("audit", epilog=audit.EXAMPLES)(audit.audit)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_it_prints_tables_and_writes_json_and_a_sheet(tmp_path: Path) -> None:
    result = invoke("--tasks", "digits", "--out", str(tmp_path))
    assert result.exit_code == 0, result.exception
    for text in ("builtin/digits", "1,000", "797", "10 of 10", "within train", "of test in train", "note: "):
        assert text in result.stdout
    folder = tmp_path / "builtin-digits"
    assert sorted(path.name for path in folder.iterdir()) == ["audit.json", "sheet.png"]
    assert str(folder / "sheet.png") in result.stdout
    assert json.loads((folder / "audit.json").read_text())["task"] == "builtin/digits"
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_json_alone_is_on_standard_output(tmp_path: Path) -> None:
    result = invoke("--tasks", "digits,synthetic_count", "--limit", "20", "--no-sheet", "--json", "-o", str(tmp_path))
    assert result.exit_code == 0, result.exception
    first, second = json.loads(result.stdout)
    assert (first["limit"], first["splits"][0]["images"]["looked_at"]) == (20, 20)
    assert second["synthetic"] is True
    assert not list(tmp_path.glob("*/sheet.png"))


def test_near_duplicates_that_were_not_looked_for_are_no_zero(tmp_path: Path) -> None:
    lines = invoke("--tasks", "digits", "--no-sheet", "--out", str(tmp_path)).stdout.splitlines()
    assert next(line for line in lines if "of test in train" in line).split()[-5:] == ["797", "0", "0", "–", "–"]


def test_a_problem_is_status_1(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    (folder / "test" / "boot" / "001.png").write_bytes(b"no image")
    result = invoke("--tasks", f"imagefolder:{folder}", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "problem: 1 of 12 images of test cannot be read" in result.stdout
    assert (tmp_path / "out" / "imagefolder-shoes" / "sheet.png").is_file()


def test_a_task_that_fails_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    result = invoke("--tasks", "imagefolder:nowhere,digits", "--no-sheet", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "builtin/digits" in result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "nowhere" in errors[0]
    alone = invoke("--tasks", "imagefolder:nowhere", "--json", "--out", str(tmp_path))
    assert alone.exit_code == 2
    assert json.loads(alone.stdout) == []


def test_splits_and_preprocessing_are_taken(tmp_path: Path) -> None:
    arguments = ["--tasks", "digits", "--splits", "train[:50],test", "--preprocess", "vit_jax", "--json"]
    result = invoke(*arguments, "--out", str(tmp_path))
    assert result.exit_code == 0, result.exception
    assert [split["name"] for split in json.loads(result.stdout)[0]["splits"]] == ["train[:50]", "test"]


def test_the_sheet_shows_a_backbones_preprocessing(tiny_vit: str, tmp_path: Path) -> None:
    sheets = []
    for number, extra in enumerate(([], ["--backbone", tiny_vit])):
        out = tmp_path / str(number)
        result = invoke("--tasks", "digits", "--out", str(out), *extra)
        assert result.exit_code == 0, result.exception
        sheets.append((out / "builtin-digits" / "sheet.png").read_bytes())
    assert sheets[0] != sheets[1]


def test_data_elsewhere_and_other_sizes(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    task = tmp_path / "shoes.yaml"
    task.write_text(
        "title: Shoes\nsource: {kind: imagefolder, path: gone}\n"
        "splits:\n  train: {folder: train, size: 20}\n  test: {folder: test, size: 12}\n"
    )
    arguments = ["--tasks", str(task), "--task-data", f"{task}={folder}", "--no-sheet", "--out", str(tmp_path / "out")]
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "18 images where the task file expects 20" in refused.stderr
    accepted = invoke(*arguments, "--accept-sizes")
    assert accepted.exit_code == 1
    assert "problem: split 'train' has 18 images" in accepted.stdout


def test_a_class_name_that_looks_like_markup_is_printed_as_it_is(
    image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    folder = image_folder(classes=("[red]boot", "clog"))
    result = invoke("--tasks", f"imagefolder:{folder}", "--no-sheet", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.exception
    assert "[red]boot" in result.stdout


def test_the_legend_is_above_the_table_where_there_is_something_to_read(
    image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    legend = "a · b · c: least, median, greatest"
    lines = invoke("--tasks", "digits", "--no-sheet", "--out", str(tmp_path)).stdout.splitlines()
    places = [next(place for place, line in enumerate(lines) if text in line) for text in (legend, "images per class")]
    assert places[0] < places[1]
    even = invoke("--tasks", f"imagefolder:{image_folder()}", "--no-sheet", "--out", str(tmp_path)).stdout
    (row,) = [line for line in even.splitlines() if "images per class" in line]
    assert " · " not in row
    assert legend not in even


@pytest.mark.parametrize(
    ("values", "digits", "expected"),
    [
        ((32, 32, 32), 0, "32"),
        ((1.3316, 1.3321, 1.3333), 2, "1.33"),
        ((1.3316, 1.3321, 1.3433), 2, "1.33 · 1.33 · 1.34"),
    ],
)
def test_what_reads_the_same_is_shown_once(values: tuple[float, float, float], digits: int, expected: str) -> None:
    assert audit._spread(Spread(*values), digits) == expected


def test_offline_asks_the_hub_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shoes(tmp_path / "hub" / "datasets" / "someone" / "shoes")
    task = task_file(tmp_path)
    arguments = ["--tasks", f"{task},digits", "--no-sheet", "--limit", "5", "--out", str(tmp_path / "out")]
    with serve_hub(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "home")
        refused = invoke(*arguments, "--offline")
        assert refused.exit_code == 1
        assert "offline was asked for" in refused.stderr
        assert not hub.log
        assert not is_offline(), "as before"
        online = invoke(*arguments)
        assert "problem" not in online.stderr
        before = len(hub.log)
        assert "shoes · Shoes" in invoke(*arguments, "--offline").stdout
        assert len(hub.log) == before


def test_what_nobody_expected_is_one_line_and_its_traceback_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, options: TaskOptions) -> Task:
        if "count" in name:
            raise KeyError("id\nof two lines")
        return load_task(name, options)

    monkeypatch.setattr(audit_run, "load_task", load)
    result = invoke("--tasks", "synthetic_count,digits", "--no-sheet", "--out", str(tmp_path))
    assert result.exit_code == 1, result.exception
    assert "builtin/digits" in result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    (kept,) = (tmp_path / "failures").iterdir()
    assert line.startswith("error: builtin/synthetic_count: KeyError: ")
    assert line.endswith(f"(unexpected; traceback in {kept})")
    assert "Traceback (most recent call last)" in kept.read_text()


BAD = [
    (["--tasks", "digit"], "did you mean"),
    (["--tasks", "digits", "--preprocess", "vtabb"], "vtab"),
    (["--tasks", "digits", "--task-data", "digits"], "--task-data 'digits' is not of the form"),
    (["--tasks", "digits", "--task-data", "cifar10=x"], "not among the tasks of this audit"),
    (["--tasks", "digits", "--splits", ""], "--splits is empty"),
    (["--tasks", "digits", "-o", "/dev/null/x"], "cannot be written to"),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert isinstance(result.exception, VitbenchError), result.exception
    assert expected in str(result.exception)
    assert "\n" not in str(result.exception)


FAILING = [
    (["--splits", "tran"], "did you mean 'train'?"),
    (["--splits", "train,train"], "named twice"),
    (["--backbone", "pixel"], "did you mean 'pixels'?"),
]


@pytest.mark.parametrize(("arguments", "expected"), FAILING, ids=[" ".join(arguments) for arguments, _ in FAILING])
def test_what_does_not_suit_a_task_is_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = invoke("--tasks", "digits", "--out", str(tmp_path), *arguments)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert expected in line


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "matplotlib", "pandas", "imagehash", "PIL"}
    code = (
        "import sys, typer\nfrom vitbench.cli import audit\napp = typer.Typer()\napp.command('audit')(audit.audit)\n"
        "sys.argv = ['vitbench', '--help']\n"
        "try:\n    app()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('HEAVY', sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout[-200:] + done.stderr
