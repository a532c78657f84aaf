from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vitbench.cli.cost import cost
from vitbench.errors import UsageError
from vitbench.features import cost as module
from vitbench.records.costs import read_costs

app = typer.Typer()
app.command()(cost)


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_peak_memory", lambda *_: (12_000_000, "a stand-in"))


def test_measurements_are_printed_and_kept(tmp_path: Path, tiny_vit: str) -> None:
    given = ["-b", tiny_vit, "-b", "pixels", "--device", "cpu", "--images", "4", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "cls 24, gap 24, pooler 24" in result.stdout
    assert "12" in result.stdout
    assert "a multiply-add as two" in result.stdout
    assert "batches of 4" in result.stdout
    found, _ = read_costs(tmp_path)
    assert sorted(one.flops or 0 for one in found) == [0, 290_496]
    again = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert [row["flops"] for row in again] == [290_496, 0]
    assert len(read_costs(tmp_path)[0]) == 2


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["-b", "timm:nope", "-b", "pixels", "--images", "2", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "failed: unknown timm model 'nope'" in result.output
    assert len(read_costs(tmp_path)[0]) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-b", "timm:nope"], "unknown timm model 'nope'"),
        (["-b", "pixels", "--batch-size", "many"], "--batch-size takes a whole number from 1, or auto; got 'many'"),
        (["-b", "pixels", "--batch-size", "0"], "--batch-size takes"),
        (["-b", "pixels", "--dtype", "float23"], "did you mean 'float32'"),
        (["-b", "pixels", "--device", "toaster"], "device 'toaster' cannot be used here"),
        (["-b", ""], "--backbone is empty"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, given: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*given, "-o", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert not read_costs(tmp_path)[0]
