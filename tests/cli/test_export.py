from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

import vitbench
from vitbench.cli import export
from vitbench.errors import UsageError

app = typer.Typer(rich_markup_mode="markdown")
app.command("export", epilog=export.EXAMPLES)(export.export)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "out"
    vitbench.run("pixels", "digits", shots=[1, 5], seeds=2, out=folder)
    vitbench.run("pixels", "digits", shots=5, seeds=1, limit=10, out=folder)
    return folder


def test_a_table_of_all_records_or_of_some(out: Path, tmp_path: Path) -> None:
    done = invoke("--out-file", str(tmp_path / "all.parquet"), "-o", str(out))
    assert done.exit_code == 0, done.output
    assert "5 records written to" in done.stderr
    assert len(pd.read_parquet(tmp_path / "all.parquet")) == 5
    assert invoke("--out-file", str(tmp_path / "some.csv"), "-o", str(out), "--shots", "1").exit_code == 0
    assert pd.read_csv(tmp_path / "some.csv")["shot"].tolist() == [1, 1]


def test_a_card_is_printed_or_written_and_the_limited_record_is_left_out(out: Path, tmp_path: Path) -> None:
    done = invoke("--to-hub-card", "-b", "pixels", "-o", str(out), "--name", "floor")
    assert done.exit_code == 0, done.output
    (entry,) = yaml.safe_load(done.stdout)["model-index"]
    assert entry["name"] == "floor"
    assert [metric["args"]["shots"] for metric in entry["results"][0]["metrics"]] == [1, 5]
    assert "left out: 1 records of limited runs" in done.stderr
    file = tmp_path / "card.yaml"
    written = invoke("--to-hub-card", "-b", "pixels", "-o", str(out), "--name", "floor", "--out-file", str(file))
    assert written.stdout == ""
    assert file.read_text() == done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a file with --out-file"),
        (["--out-file", "x.xlsx"], "unknown format of x.xlsx"),
        (["--to-hub-card"], "name it with --backbone"),
        (["--to-hub-card", "-b", "pixel"], "did you mean 'pixels'?"),
        (["--to-hub-card", "-b", "pixels", "--out-file", "README.md"], "end README.md in .yaml"),
        (["--out-file", "x.csv", "-b", "pixels"], "belong to --to-hub-card"),
        (["--out-file", "x.csv", "--tasks", "digit"], "did you mean 'digits'"),
        (["--out-file", "x.csv", "--shots", ""], "--shots is empty"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments, "-o", str(out))
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example() -> None:
    assert "vitbench export --out-file results.parquet" in invoke("--help").stdout
