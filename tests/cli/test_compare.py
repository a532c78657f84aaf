"""`vitbench compare` as a gate: its tables, its exit status, its mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from tests.reporting.test_comparison import LABELS, A, B, put, write
from vitbench.cli import compare
from vitbench.errors import VitbenchError

app = typer.Typer()
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for task, noise, rate in (("t/one", 1, 0.6), ("t/two", 2, 0.8), ("t/three", 3, 0.95)):
        write(folder, 0.8, task=task, **A)
        write(folder, rate, task=task, noise=noise, **B)
    write(folder, 0.8, task="t/lonely", **A)
    return folder


def test_a_table_with_ties_together_the_reasons_and_status_1(out: Path) -> None:
    result = invoke("timm:vit_a", "timm:vit_b", "-o", str(out))
    assert result.exit_code == 1
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith(("t/", "mean"))]
    assert [row[0] for row in rows] == ["t/one", "t/two", "t/three", "mean"]
    assert [" ".join(row[-2:]) for row in rows[::2]] == ["B worse", "B better"]
    assert rows[1][-1] == "tie"
    assert "1 better, 1 tie, 1 worse" in result.stdout
    assert "not compared: cls · t/lonely · 5-shot: only in A" in result.stdout
    assert "B is worse than A by more than 0.2 points, significant at 0.05 after correction:" in result.stdout
    assert "Holm-adjusted for 3 comparisons" in result.stdout


def test_nothing_worse_is_status_0(out: Path) -> None:
    result = invoke("timm:vit_a", "timm:vit_b", "-o", str(out), "--tasks", "three")
    assert result.exit_code == 0
    assert "B is nowhere worse than A by more than 0.2 points" in result.stdout
    assert invoke("timm:vit_a", "timm:vit_b", "-o", str(out), "--tolerance", "50").exit_code == 0


def test_markdown_and_json_hold_the_same_numbers(out: Path) -> None:
    arguments = ["timm:vit_a/cls", "timm:vit_b/cls", "-o", str(out), "--format"]
    content = json.loads(invoke(*arguments, "json").stdout)
    assert [pair["task"] for pair in content["pairs"]] == ["t/one", "t/three", "t/two"]
    assert [pair["verdict"] for pair in content["pairs"]] == ["worse", "better", "tie"]
    assert content["not_compared"] == [
        {"subject": "cls", "task": "t/lonely", "shot": 5, "reason": "only in A"},
    ]
    assert (content["means"][0]["better"], content["means"][0]["worse"], len(content["worse"])) == (1, 1, 1)
    assert content["pairs"][0]["interval"]["high"] < 0
    text = invoke(*arguments, "markdown").stdout
    first = content["pairs"][0]
    assert (
        f"| t/one     | 5-shot | {100 * first['a']:.2f} | {100 * first['b']:.2f} | {100 * first['difference']:+.2f} ["
        in text
    )


def test_two_folders_and_strict(tmp_path: Path) -> None:
    before, after, changed = (tmp_path / name for name in ("before", "after", "changed"))
    for seed in range(3):
        put(before, LABELS, seed=seed, **A)
        put(after, LABELS, seed=seed, **A)
        one_wrong = np.where(np.arange(len(LABELS)) == seed, 9, LABELS)
        put(changed, one_wrong, seed=seed, **A | {"weights": "new"})
    result = invoke(str(before), str(after))
    assert result.exit_code == 0
    assert "identical: A and B agree in every prediction (1 compared)" in result.stdout
    lax = invoke(str(before), str(changed))
    strict = invoke(str(before), str(changed), "--strict", "--tolerance", "0")
    assert "other in B than in A: weights (1 of 1 pairs)" in lax.stdout
    assert (lax.exit_code, strict.exit_code) == (0, 1)
    assert "cannot be ruled out" in lax.stdout


def test_damage_is_status_2_and_told_on_standard_error(tmp_path: Path) -> None:
    for task in ("t/one", "t/two"):
        for fields in (A, B):
            write(tmp_path, 0.8, task=task, **fields)
    next(tmp_path.glob("records/b/t/two/*.parquet")).unlink()
    result = invoke("timm:vit_a", "timm:vit_b", "-o", str(tmp_path))
    assert result.exit_code == 2
    assert "are missing" in result.stderr
    assert "t/one" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["timm:vit_aa", "timm:vit_b"], "did you mean 'timm:vit_a'"),
        (["timm:vit_a", "timm:vit_b", "--format", "html"], "unknown format 'html'"),
        (["timm:vit_a", "timm:vit_b", "--shots", "x"], "--shots takes whole numbers from 0"),
        (["timm:vit_a", "timm:vit_b", "--shots", "7"], "A: no record has shot 7; there are 5"),
        (["timm:vit_a", "timm:vit_b", "--tasks", "fou"], "unknown task among the records"),
        (["timm:vit_a", "timm:vit_b", "--tasks", "lonely"], "B: unknown task among the records: 't/lonely'"),
        (["timm:vit_a", "timm:vit_b", "--tolerance", "inf"], "--tolerance takes points"),
        (["timm:vit_a", "timm:vit_b", "-r", "gap"], "unknown representation among the records: 'gap'"),
        (["timm:vit_a", "timm:vit_b", "--protocol", "rigde"], "unknown protocol among the records: 'rigde'"),
        (["timm:vit_a", ""], "is empty"),
    ],
)
def test_mistakes_are_one_line(out: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments, "-o", str(out))
    assert isinstance(result.exception, VitbenchError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_folders_and_backbones_are_not_mixed(out: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {
        "is a folder and 'timm:vit_a' is none": [str(out), "timm:vit_a", "-o", str(out)],
        "--out is the folder of two backbones": [str(out), str(out), "-o", str(out)],
        "there are no results at": [str(out), str(tmp_path)],
    }
    for message, arguments in told.items():
        error = invoke(*arguments).exception
        assert isinstance(error, VitbenchError)
        assert message in str(error)


def test_no_records_are_told(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    error = invoke("a", "b", "-o", str(tmp_path)).exception
    assert isinstance(error, VitbenchError)
    assert "there are no records to use at" in str(error)
