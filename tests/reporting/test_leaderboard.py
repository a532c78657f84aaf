from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import vitbench
from tests.records.test_store import PREDICTIONS, make_record
from vitbench.errors import UsageError
from vitbench.records.store import ResultStore
from vitbench.reporting.formats import render, rich_tables
from vitbench.reporting.leaderboard import leaderboards, match_tasks


def frame_of(tmp_path: Path, *records: dict[str, Any]) -> pd.DataFrame:
    store = ResultStore(tmp_path)
    for record in records:
        store.write(make_record(**record), PREDICTIONS)
    return vitbench.load_results(tmp_path)


def seeds(*accuracies: float, **fields: Any) -> list[dict[str, Any]]:
    return [{"seed": seed, "scores": {"accuracy": value}, **fields} for seed, value in enumerate(accuracies)]


def test_cells_are_means_over_seeds_in_percent_and_the_spread_is_over_seeds(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5, 0.6, 0.7)))
    row = ("timm:vit_tiny_patch16_224", "cls", "")
    assert board.cells.loc[row, "paper/cifar10"] == pytest.approx(60.0)
    assert board.spread.loc[row, "paper/cifar10"] == pytest.approx(10.0)
    assert board.cells.loc[("chance", "", ""), "paper/cifar10"] == pytest.approx(10.0)
    assert "3 seeds" in board.notes[0]


def test_the_mean_over_tasks_is_spread_over_seeds_and_wants_every_task(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5, 0.7),
        *seeds(0.9, 0.7, task="paper/cifar100", num_classes=100, chance=0.01),
        *seeds(0.99, 0.99, representation="gap"),
    )
    (board,) = leaderboards(frame)
    assert board.cells["mean"].tolist()[0] == pytest.approx(70.0)
    assert board.spread["mean"].tolist()[0] == pytest.approx(0.0, abs=1e-9), "both seeds have a mean of 0.7"
    assert [label[1] for label in board.cells.index] == ["cls", "gap", ""]
    assert pd.isna(board.cells.loc[("timm:vit_tiny_patch16_224", "gap", ""), "mean"])
    assert any(note.startswith("rows without a mean lack a task") for note in board.notes)
    assert board.cells.loc[("chance", "", ""), "mean"] == pytest.approx(5.5)


def test_seeds_that_differ_are_told_and_a_mean_is_over_the_seeds_that_the_tasks_share(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5, 0.6, 0.7),
        *seeds(0.9, task="paper/cifar100", chance=0.01),
        {"seed": 7, "representation": "gap"},
        {"seed": 7, "representation": "gap", "task": "paper/cifar100"},
    )
    (board,) = leaderboards(frame)
    row = ("timm:vit_tiny_patch16_224", "cls", "")
    assert board.cells.loc[row, "paper/cifar10"] == pytest.approx(60.0)
    assert board.cells.loc[row, "mean"] == pytest.approx(70.0), "seed 0 alone: (50 + 90) / 2"
    assert "NOT the same seeds everywhere" in board.notes[0]


def test_another_number_of_classes_is_another_column(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5), *seeds(0.6, num_classes=20, chance=0.05)))
    assert len(board.cells.columns) == 3
    assert sorted(board.cells.iloc[0][:2]) == [pytest.approx(50.0), pytest.approx(60.0)]


def test_protocol_parameters_and_limits_never_share_a_table(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5),
        *seeds(0.6, parameters={"l2": "loo"}, protocol_label="l2 by leave-one-out"),
        *seeds(0.9, limit=10),
    )
    boards = leaderboards(frame)
    assert [board.title for board in boards] == [
        "fewshot · l2 by leave-one-out · 5-shot",
        "fewshot · l2 = 1024 · 5-shot",
    ]
    assert all("1 limited records are left out: they are never mixed" in board.notes for board in boards)
    (limited,) = leaderboards(frame, limited=True)
    assert limited.title.endswith("LIMITED to 10 test images")
    assert limited.cells.iloc[0, 0] == pytest.approx(90.0)


def test_one_task_has_its_shots_as_columns_and_several_tasks_a_table_per_shot(tmp_path: Path) -> None:
    several = [*seeds(0.5), *seeds(0.6, shot=25), *seeds(0.1, shot=1)]
    (board,) = leaderboards(frame_of(tmp_path / "one", *several))
    assert list(board.cells.columns) == ["1-shot", "5-shot", "25-shot"]
    frame = frame_of(tmp_path / "two", *several, *[record | {"task": "paper/cifar100"} for record in several])
    assert [list(board.cells.columns) for board in leaderboards(frame)] == [
        ["paper/cifar10", "paper/cifar100", "mean"]
    ] * 3


def test_rows_that_differ_never_read_alike(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5),
        *seeds(0.6, dtype="bfloat16"),
        *seeds(0.65, preprocessing="resize(8x8,bilinear)|normalize(0.5,0.5)"),
        *seeds(0.7, weights="ef01", backbone="timm:vit_tiny_patch16_224,checkpoint=/a/b/mine.pt"),
        *seeds(0.8, alias_of="cls", representation="pooler"),
        *seeds(0.9, representation_provenance="untrained", representation="cls+gap"),
    )
    (board,) = leaderboards(frame)
    labels = list(board.cells.index)
    assert len(set(labels)) == len(labels) == 7
    assert ("timm:vit_tiny_patch16_224", "cls", "preprocessing B float32") in labels
    assert "preprocessing B: resize(8x8,bilinear)|normalize(0.5,0.5)" in board.notes
    assert ("timm:vit_tiny_patch16_224,checkpoint=mine.pt", "cls", "") in labels
    assert ("timm:vit_tiny_patch16_224", "cls", "preprocessing A bfloat16") in labels
    assert any(label[1] == "pooler (= cls)" for label in labels)
    assert any(label[1] == "cls+gap (untrained)" for label in labels)
    assert any("--allow-untrained" in note for note in board.notes)


def test_two_data_sets_of_one_name_are_two_columns(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5), *seeds(0.6, test_fingerprint="99ff"))
    (board,) = leaderboards(frame)
    assert len(board.cells.columns) == 3
    assert board.cells.columns[0].startswith("paper/cifar10#")
    assert len([note for note in board.notes if "test images, 10 classes, first made by" in note]) == 2


def test_the_pixels_floor_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5)))
    assert any("no pixels floor for paper/cifar10: vitbench run --backbone pixels" in note for note in board.notes)
    with_floor = frame_of(tmp_path, *seeds(0.2, backbone="pixels", architecture="pixels", representation="pixels"))
    (board,) = leaderboards(with_floor)
    assert not any("floor" in note for note in board.notes)


def test_warnings_of_records_are_told_below_the_table(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5, warnings=["2 of 10 classes have fewer than 5 images"])))
    assert "paper/cifar10: 2 of 10 classes have fewer than 5 images" in board.notes


def test_nothing_left_says_what_there_is(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5))
    with pytest.raises(
        UsageError, match=r"no record has shots 7; there are shots 5; tasks paper/cifar10; protocols fewshot"
    ):
        leaderboards(frame, shots=[7])
    with pytest.raises(UsageError, match="all 1 records are full"):
        leaderboards(frame, limited=True)
    with pytest.raises(UsageError, match="there are no records yet"):
        leaderboards(vitbench.load_results(tmp_path / "records" / "timm-vit_tiny_patch16_224-abcd" / "paper").head(0))


def test_match_tasks(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5), *seeds(0.5, task="vtab/natural/dtd"))
    assert match_tasks(["cifar10"], frame) == match_tasks(["paper"], frame) == ["paper/cifar10"]
    assert match_tasks(["vtab", "paper/*"], frame) == ["vtab/natural/dtd", "paper/cifar10"]
    with pytest.raises(UsageError, match=r"did you mean .*cifar10"):
        match_tasks(["cifar"], frame)


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "latex"])
def test_every_format_carries_the_number(tmp_path: Path, form: str) -> None:
    boards = leaderboards(frame_of(tmp_path, *seeds(0.5, 0.6, 0.7), *seeds(0.1, representation="gap")))
    text = render(boards, form)
    if form == "csv":
        table = pd.read_csv(io.StringIO(text))
        assert table.set_index("representation")["accuracy"]["cls"] == pytest.approx(0.6)
        assert table.set_index("representation")["accuracy_std"]["cls"] == pytest.approx(0.1)
    elif form == "json":
        assert {row["representation"]: row["seeds"] for row in json.loads(text)} == {"cls": 3, "gap": 1}
    elif form == "latex":
        assert r"60.0 $\pm$ 10.0" in text
        assert r"vit\_tiny" in text
        assert r"\toprule" in text
    else:
        assert re.search(r"\| cls +\| +60\.0 ± 10\.0 \|", text)
        assert re.search(r"\| chance +\| +\| +10\.0 \|", text)


def test_the_terminal_table_is_not_cut(tmp_path: Path) -> None:
    boards = leaderboards(frame_of(tmp_path, *seeds(0.5, 0.6, 0.7)))
    console = Console(file=io.StringIO(), width=200)
    console.print(rich_tables(boards))
    assert "60.0 ± 10.0" in console.file.getvalue()  # type: ignore[attr-defined]
