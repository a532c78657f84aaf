"""`vitbench leaderboard` on records of VTAB's 19 tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.records.test_store import PREDICTIONS, make_record
from vitbench.cli.main import app, main
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
    assert row.split()[-5:] == ["73.46", "82.49", "52.10", "66.37", "69.35"]
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
