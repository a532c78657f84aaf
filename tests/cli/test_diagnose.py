"""`vitbench diagnose`: files, notes, and what is told when something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.cli import diagnose
from vitbench.errors import VitbenchError

app = typer.Typer()
app.command("diagnose", epilog=diagnose.EXAMPLES)(diagnose.diagnose)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def out(image_folder: ImageFolderMaker, tmp_path: Path) -> Path:
    folder = image_folder(classes=("<b>boot&amp;", 'a "clog"', "$loafer$"))
    vitbench.run("pixels", f"imagefolder:{folder}", out=tmp_path / "out", shots=[1, 2], seeds=2)
    return tmp_path / "out"


def test_tables_pictures_and_a_summary_are_written(out: Path, tmp_path: Path) -> None:
    result = invoke("-o", str(out), "--to", str(tmp_path / "look"), "--shot", "2")
    assert result.exit_code == 0, result.exception
    (folder,) = {path.parent for path in (tmp_path / "look").rglob("*.json")}
    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.csv",
        "confusion.csv",
        "confusion.png",
        "gallery.png",
        "pairs.csv",
        "reliability.csv",
        "reliability.png",
        "summary.json",
    ]
    frame = vitbench.load_results(out).query("shot == 2")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy"] == pytest.approx(frame["accuracy"].mean())
    assert summary["seeds"] == [0, 1]
    confusion = pd.read_csv(folder / "confusion.csv", index_col="true")
    assert sorted(confusion.columns) == sorted(["<b>boot&amp;", 'a "clog"', "$loafer$"])
    assert confusion.to_numpy().sum() == 2 * 12
    assert {'a "clog"', "<b>boot&amp;", "$loafer$"} == set(pd.read_csv(folder / "classes.csv")["name"])
    for name in ("confusion", "gallery", "reliability"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 500
    assert 'a "clog"' in result.stdout
    assert "pooled over 2 seeds" in result.stdout
    assert str(folder) in result.stdout.replace("\n", "")


def test_one_record_by_its_key_and_all_by_default(out: Path, tmp_path: Path) -> None:
    key = vitbench.load_results(out)["key"].iloc[0]
    assert invoke(key[:8], "-o", str(out), "--to", str(tmp_path / "one")).exit_code == 0
    assert len(list((tmp_path / "one").rglob("summary.json"))) == 1
    assert invoke("-o", str(out), "--to", str(tmp_path / "all"), "--no-gallery").exit_code == 0
    assert len(list((tmp_path / "all").rglob("summary.json"))) == 2
    assert not list((tmp_path / "all").rglob("gallery.png"))
    error = invoke(key[:8], "--shot", "2", "-o", str(out)).exception
    assert isinstance(error, VitbenchError)
    assert "a record is one measurement already" in str(error)


def test_without_the_images_all_else_comes_with_a_note(out: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "shoes", tmp_path / "moved" / "shoes")
    result = invoke("-o", str(out), "--to", str(tmp_path / "look"), "--shot", "1")
    assert result.exit_code == 0, result.exception
    assert "note: no class names and no pictures" in result.stdout
    assert not list((tmp_path / "look").rglob("gallery.png"))
    assert len(list((tmp_path / "look").rglob("confusion.png"))) == 1
    place = f"imagefolder:{tmp_path / 'moved' / 'shoes'}"
    result = invoke("-o", str(out), "--to", str(tmp_path / "again"), "--shot", "1", "--task", place)
    assert result.exit_code == 0, result.exception
    assert len(list((tmp_path / "again").rglob("gallery.png"))) == 1


def test_a_damaged_record_leaves_the_others(out: Path, tmp_path: Path) -> None:
    frame = vitbench.load_results(out)
    key = frame[frame["shot"] == 1]["key"].iloc[0]
    next(out.rglob(f"{key}.parquet")).unlink()
    result = invoke("-o", str(out), "--to", str(tmp_path / "look"), "--no-gallery")
    assert result.exit_code == 1
    assert "are missing" in result.stderr
    assert len(list((tmp_path / "look").rglob("summary.json"))) == 1
    assert invoke("-o", str(out), "--to", str(tmp_path / "look"), "--shot", "1", "--no-gallery").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shot", "9"], "no record has shot 9; there are 1, 2"),
        (["--seed", "x"], "--seeds takes whole numbers from 0"),
        (["--backbone", "pixel"], "did you mean 'pixels'"),
        (["--task", "boots"], "unknown task among the records"),
        (["--limited"], "all 4 records are full"),
        (["zzzz"], "no record in"),
    ],
)
def test_mistakes_are_one_line(out: Path, arguments: list[str], message: str) -> None:
    error = invoke(*arguments, "-o", str(out)).exception
    assert isinstance(error, VitbenchError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_no_records_are_told(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    error = invoke("-o", str(tmp_path)).exception
    assert isinstance(error, VitbenchError)
    assert "there are no records to use at" in str(error)
