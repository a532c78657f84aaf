"""`vitbench leaderboard` on records of VTAB's 19 tasks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import ImageFolderMaker
from tests.records.test_costs import make_cost
from tests.records.test_store import PREDICTIONS, make_record
from vitbench.cli.main import app, main
from vitbench.records.costs import write_cost
from vitbench.records.store import ResultStore
from vitbench.tasks.catalog import suites


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    store = ResultStore(folder)
    for number, task in enumerate(suites()["vtab"]):
        record = make_record(
            task=task,
            protocol="ridge",
            shot=0,
            splits={"train": "train800val200", "test": "test"},
            scores={"accuracy": number / 100, "top5_accuracy": 0.5 + number / 100},
        )
        store.write(record, PREDICTIONS)
    return folder


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["leaderboard", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_vtab_is_shown_by_group_beside_the_published_numbers(out: Path) -> None:
    text = shown("-o", str(out), "--published")
    titles = [line for line in text.splitlines() if line.startswith("ridge · l2 = 1024 · all train images · ")]
    assert [title.split(" · ")[-1].strip() for title in titles] == [
        "vtab",
        "vtab/natural",
        "vtab/specialized",
        "vtab/structured",
    ]
    (header,) = [line.split() for line in text.splitlines() if "mean of 19" in line and "natural" in line]
    assert " ".join(header[2:]) == "natural (7) specialized (4) structured (8) mean of 19 mean of 3 groups"
    (row,) = [line for line in text.splitlines() if "Sup-100%" in line and "66.37" in line]
    assert re.sub(r"\([^)]*\)", "", row).split()[-5:] == ["73.46", "82.49", "52.10", "66.37", "69.35"]
    (own,) = [line for line in text.splitlines() if line.strip().startswith("timm:") and line.split()[-2] == "9.0"]
    assert own.split()[-5:] == ["3.0", "8.5", "14.5", "9.0", "8.7"], "mean of 0 … 18 is 9"


def test_another_metric_and_all_train_images_can_be_asked_for(out: Path) -> None:
    rows = json.loads(shown("-o", str(out), "--shots", "0", "--metric", "top5_accuracy", "--format", "json"))
    assert {row["metric"] for row in rows} == {"top5_accuracy"}
    assert [row["score"] for row in rows if row["level"] == "mean"] == [pytest.approx(0.59)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "top5"], "did you mean 'top5_accuracy'?"),
        (["--shots", "5"], "there are shots 0 (all train images)"),
        (["--shots=-1"], "--shots takes whole numbers from 0"),
        (["--published", "--format", "csv"], "csv holds only what was measured"),
    ],
)
def test_mistakes_are_told_in_one_line(
    out: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["vitbench", "leaderboard", "-o", str(out), *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in told
    assert told.count("\n") == 1


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows, one task, two shots, two seeds, with predictions that fit their scores; and the cost of one row."""
    folder = tmp_path_factory.mktemp("small")
    store = ResultStore(folder)
    for name, right in (("cls", 3), ("gap", 2)):
        for shot in (1, 5):
            for seed in (0, 1):
                record = make_record(
                    representation=name, shot=shot, seed=seed, scores={"accuracy": (right + seed) / 4}, n_test=4
                )
                predictions = {
                    "row": np.arange(4),
                    "label": np.zeros(4, int),
                    "prediction": np.arange(4) >= right + seed,
                }
                store.write(record, {key: value.astype(np.int64) for key, value in predictions.items()})
    write_cost(folder, make_cost())
    return folder


def test_pivot_interval_costs_and_efficiency_from_the_command_line(small: Path) -> None:
    text = shown("-o", str(small), "--rows", "representation", "--columns", "shot", "--interval", "combined")
    assert re.search(r"cls +87\.5 \[\d+\.\d, \d+\.\d\] +87\.5 \[", text)
    text = shown("-o", str(small), "--costs", "--shots", "5", "--normalised", "--mean-rank")
    assert re.search(r"cls +87\.5 ± 17\.7 +86\.1 +1\.00 +5\.50 +2\.50 +192 +20\.0 +150", text)
    assert "label efficiency" in shown("-o", str(small), "--label-efficiency")


def test_runs_of_two_protocols_stand_side_by_side(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    run = ["run", "-o", str(tmp_path / "out"), "--backbone", "pixels", "--tasks", f"imagefolder:{image_folder()}"]
    for protocol in (["ridge"], ["ridge", "--l2", "4"], ["fewshot", "--shots", "2", "--seeds", "2"]):
        done = CliRunner().invoke(app, [*run, "--protocol", *protocol])
        assert done.exit_code == 0, done.output
    text = shown("-o", str(tmp_path / "out"), "--side-by-side", "--format", "markdown")
    rows = [line.split("|")[3].strip() for line in text.splitlines() if line.startswith("| pixels")]
    assert sorted(rows) == [
        "fewshot · l2 = 1024 · 2-shot",
        "ridge · l2 = 1024 · all train images",
        "ridge · l2 = 4 · all train images",
    ]
    assert text.count("**protocols side by side**") == 1
    assert "- learned from: fewshot 6 images, 2 seeds; ridge 18 images, 1 seed" in text
    assert "- rows of ridge differ in l2 (4, 1024)" in text
    found = json.loads(shown("-o", str(tmp_path / "out"), "--side-by-side", "--metric", "macro_f1", "--format", "json"))
    assert {(row["metric"], row["setting"]) for row in found} == {("macro_f1", setting) for setting in rows}


def test_html_is_saved_with_links_from_where_it_lies(small: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "board.html"
    assert shown("-o", str(small), "--format", "html", "--save", str(page)).strip() == str(page)
    links = re.findall(r'href="([^"]+)"', page.read_text())
    assert len(links) == 8
    assert all((page.parent / link).resolve().is_file() for link in links)


def test_a_pareto_plot_is_drawn_from_the_command_line(small: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    shown("-o", str(small), "--shots", "5", "--pareto", "gflops", "--plot", str(plot))
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "shots"], "unknown field 'shots'; did you mean 'shot'"),
        (["--interval", "seed"], "unknown interval 'seed'; did you mean 'seeds'"),
        (["--format", "htm"], "did you mean 'html'"),
        (["--pareto", "gflops"], "--pareto COST and --plot FILE.png go together"),
        (["--save", "x.md"], "--save writes markdown, csv, json, latex or html"),
        (["--rows", "shot", "--label-efficiency"], "leave --rows and --columns out"),
        (["--side-by-side", "--rows", "shot"], "--side-by-side has rows and columns of its own"),
        (["--side-by-side", "--label-efficiency"], "leave --rows, --columns and --label-efficiency out"),
        (["--costs", "--device", "tpu"], "no cost was measured on 'tpu'"),
        (["--rows", ""], "--rows is empty"),
    ],
)
def test_mistakes_with_the_new_options_are_told(
    small: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    test_mistakes_are_told_in_one_line(small, arguments, message, capsys, monkeypatch)


def test_a_damaged_cost_and_a_conflict_are_told_beside_csv(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged"
    shutil.copytree(small, out)
    other = ResultStore(tmp_path / "other")
    path = other.write(make_record(shot=1, seed=0, scores={"accuracy": 0.1}), PREDICTIONS)
    shutil.copytree(path.parent, out / "records" / "again" / "x")
    next((out / "costs").glob("*.json")).write_text("{")
    monkeypatch.setattr("sys.argv", ["vitbench", "leaderboard", "-o", str(out), "--costs", "--format", "csv"])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr()
    assert stop.value.code == 0
    assert "left out: conflict: 2 records" in told.err
    assert "give 10 and 75 %" in told.err
    assert "left out: the measurement" in told.err
    assert len(told.out.splitlines()) == 1 + 3
