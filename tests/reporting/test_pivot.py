from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from tests.reporting.test_leaderboard import frame_of, seeds
from vitbench.errors import UsageError
from vitbench.reporting.boards import Show
from vitbench.reporting.formats import render
from vitbench.reporting.leaderboard import leaderboards
from vitbench.reporting.published import read_published


def test_shots_as_columns_make_a_table_for_each_task(tmp_path: Path) -> None:
    records = [
        record
        for task, shift in (("paper/cifar10", 0.0), ("paper/cifar100", 0.1))
        for shot, score in ((10, 0.4), (1, 0.2), (5, 0.3))
        for name, more in (("cls", 0.0), ("gap", 0.05))
        for record in seeds(score + shift + more, score + shift + more, task=task, shot=shot, representation=name)
    ]
    first, second = leaderboards(frame_of(tmp_path, *records), rows=["representation"], columns=["shot"])
    assert first.title == "fewshot · l2 = 1024 · timm:vit_tiny_patch16_224 · paper/cifar10"
    assert second.title.endswith("paper/cifar100")
    assert list(first.cells.columns) == ["1-shot", "5-shot", "10-shot"], "by size, not by letter"
    assert first.cells.index.names == ["representation"]
    assert first.cells.loc[("gap",)].tolist() == pytest.approx([25, 35, 45])
    assert second.cells.loc[("cls",)].tolist() == pytest.approx([30, 40, 50])
    assert first.cells.loc[("chance",)].tolist() == pytest.approx([10, 10, 10])
    assert "| gap" in render([first], "markdown")


def test_backbones_as_rows_are_ranked_and_keep_what_tells_them_apart(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5), *seeds(0.6, dtype="bfloat16"))
    (board,) = leaderboards(frame, columns=["shot"])
    assert list(board.cells.index) == [
        ("timm:vit_tiny_patch16_224 bfloat16", "cls"),
        ("timm:vit_tiny_patch16_224 float32", "cls"),
        ("chance", ""),
    ]
    (board,) = leaderboards(frame, rows=["dtype"])
    assert list(board.cells.index) == [("bfloat16",), ("float32",), ("chance",)]
    assert list(board.cells.columns) == ["paper/cifar10"]


def test_what_would_mix_makes_tables_of_its_own(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5),
        *seeds(0.6, architecture="other", backbone="timm:other"),
        *seeds(0.7, protocol="ridge", protocol_label="l2 = 1"),
    )
    boards = leaderboards(frame, rows=["task"], columns=["shot"])
    assert sorted(board.cells.iloc[0, 0] for board in boards) == pytest.approx([50, 60, 70]), "nothing was averaged"
    assert len({board.title for board in boards}) == 3
    (board,) = leaderboards(frame, rows=["task"], columns=["protocol", "backbone"])
    assert list(board.cells.columns) == [
        "fewshot · timm:other",
        "fewshot · timm:vit_tiny_patch16_224",
        "ridge · timm:vit_tiny_patch16_224",
    ]


def test_tasks_as_rows_have_their_chance_beside_them(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5), *seeds(0.5, task="paper/cifar100", chance=0.01))
    (board,) = leaderboards(frame, rows=["task"], columns=["backbone", "representation"])
    assert board.cells.iloc[-1].isna().all()
    assert board.extras["chance"].values.to_dict() == pytest.approx(
        {("paper/cifar10",): 10.0, ("paper/cifar100",): 1.0}
    )
    assert "chance |" in render([board], "markdown").splitlines()[2]
    assert not any(line.startswith("| chance") for line in render([board], "markdown").splitlines())


def test_the_floor_is_looked_for_in_all_tables(tmp_path: Path) -> None:
    floor = seeds(0.2, backbone="pixels", architecture="pixels", representation="pixels")
    for number, records in enumerate((seeds(0.5), seeds(0.5) + floor)):
        boards = leaderboards(frame_of(tmp_path / str(number), *records), rows=["task"], columns=["representation"])
        told = [note for board in boards for note in board.notes if note.startswith("no pixels floor")]
        assert len(told) == 1 - number


def test_seeds_can_be_columns_and_numbers_are_in_order(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *[{"seed": seed, "scores": {"accuracy": seed / 100}} for seed in (0, 2, 10)])
    (board,) = leaderboards(frame, rows=["backbone"], columns=["seed"])
    assert list(board.cells.columns) == ["0", "2", "10"]
    assert board.cells.iloc[0].tolist() == pytest.approx([0, 2, 10])
    assert board.spread.isna().all(axis=None)


def test_missing_values_and_the_long_form(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5, details={}), *seeds(0.6, details={"l2": 4.0}, representation="gap"))
    (board,) = leaderboards(frame, rows=["l2", "representation"])
    assert list(board.cells.index)[:2] == [("4", "gap"), ("—", "cls")]
    table = pd.read_csv(io.StringIO(render([board], "csv")))
    assert table["score"].tolist() == [0.6, 0.5]
    assert table["l2"].tolist()[0] == 4.0


def test_normalised_scores_are_over_tasks_only(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.55), *seeds(0.1, representation="gap"))
    (board,) = leaderboards(frame, rows=["representation"], show=Show(normalised=True))
    assert board.extras["normalised"].values.to_dict() == pytest.approx({("cls",): 50.0, ("gap",): 0.0})


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (["reprsentation"], [], "unknown field 'reprsentation'; did you mean 'representation'"),
        (["accuracy"], [], "unknown field 'accuracy'"),
        (["task"], ["task"], "a field makes rows or columns once: task, task"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, rows: list[str], columns: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        leaderboards(frame_of(tmp_path, *seeds(0.5)), rows=rows, columns=columns)


def test_published_numbers_have_no_place_in_a_pivot(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --rows and --columns out"):
        leaderboards(frame_of(tmp_path, *seeds(0.5)), rows=["dtype"], published=read_published())
