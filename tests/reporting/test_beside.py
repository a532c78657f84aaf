"""What stands beside the scores: intervals, normalised score, mean rank, label efficiency, incomplete rows, conflicts."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.records.test_store import PREDICTIONS, make_record
from tests.reporting.test_leaderboard import SUITES, VIT, frame_of, seeds, suite_seeds
from vitbench.records.store import ResultStore
from vitbench.reporting.boards import Leaderboard, Show
from vitbench.reporting.formats import render
from vitbench.reporting.leaderboard import leaderboards
from vitbench.reporting.recorded import read_with_paths
from vitbench.reporting.statistics import combined_interval

GAP = ("timm:vit_tiny_patch16_224", "gap", "")


def predicted(out: Path, hits: np.ndarray[Any, Any], **fields: Any) -> None:
    """Records of one row and task whose predictions are right where `hits` `[S, N]` says so."""
    store = ResultStore(out)
    labels = np.zeros(hits.shape[1], dtype=np.int64)
    for seed, row in enumerate(hits):
        record = make_record(seed=seed, scores={"accuracy": float(row.mean())}, n_test=len(row), **fields)
        store.write(record, {"row": np.arange(len(row)), "label": labels, "prediction": np.where(row, 0, 1)})


def drawn(seed: int, accuracy: float) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random((3, 80)) < accuracy


def boards_of(out: Path, show: Show | None = None, **given: Any) -> list[Leaderboard]:
    frame, damaged = read_with_paths(out)
    assert not damaged
    return leaderboards(frame, show=show, **given)


def test_the_combined_interval_is_that_of_the_stored_predictions(tmp_path: Path) -> None:
    hits = drawn(0, 0.6)
    predicted(tmp_path, hits)
    (board,) = boards_of(tmp_path, Show("combined"))
    expected = combined_interval(hits)
    assert board.low.loc[VIT, "paper/cifar10"] == pytest.approx(100 * expected.low)
    assert board.high.loc[VIT, "paper/cifar10"] == pytest.approx(100 * expected.high)
    assert f"{100 * hits.mean():.1f} [{100 * expected.low:.1f}, {100 * expected.high:.1f}]" in render(
        [board], "markdown"
    )
    assert f"[low, high]: {expected.method}" in board.notes
    assert "95 % interval over seeds and test images" in board.notes[0]
    table = pd.read_csv(io.StringIO(render([board], "csv")))
    assert table["interval_low"].tolist() == pytest.approx([expected.low])


def test_the_interval_of_a_mean_is_that_of_independent_tasks(tmp_path: Path) -> None:
    one, other = drawn(1, 0.6), drawn(2, 0.9)
    predicted(tmp_path, one)
    predicted(tmp_path, other, task="paper/cifar100")
    (board,) = boards_of(tmp_path, Show("combined"))
    first, second = combined_interval(one), combined_interval(other)
    below = np.hypot(first.estimate - first.low, second.estimate - second.low) / 2
    above = np.hypot(first.high - first.estimate, second.high - second.estimate) / 2
    mean = (one.mean() + other.mean()) / 2
    assert board.low.loc[VIT, "mean"] == pytest.approx(100 * (mean - below))
    assert board.high.loc[VIT, "mean"] == pytest.approx(100 * (mean + above))
    assert any(note.startswith("[low, high] of a mean:") for note in board.notes)


def test_a_suites_means_have_intervals_by_their_weights(tmp_path: Path) -> None:
    tasks = {task: drawn(number, 0.7) for number, task in enumerate(SUITES["vtab"])}
    for task, hits in tasks.items():
        predicted(tmp_path, hits, task=task)
    summary = boards_of(tmp_path, Show("combined"), suites=SUITES)[0]
    found = [combined_interval(hits) for hits in tasks.values()]
    below = np.array([one.estimate - one.low for one in found])
    for column, weights in {
        "structured (1)": [0, 0, 1],
        "mean of 3": [1 / 3] * 3,
        "mean of 2 groups": [0.25, 0.25, 0.5],
    }.items():
        expected = sum(w * one.estimate for w, one in zip(weights, found, strict=True))
        distance = float(np.sqrt(((np.array(weights) * below) ** 2).sum()))
        assert summary.low.loc[VIT, column] == pytest.approx(100 * (expected - distance))


def test_cells_without_whole_predictions_have_no_interval_and_it_is_said(tmp_path: Path) -> None:
    predicted(tmp_path, drawn(0, 0.6))
    predicted(tmp_path, drawn(1, 0.6), representation="gap")
    predicted(tmp_path, drawn(1, 0.6), representation="pooler")
    frame, _ = read_with_paths(tmp_path)
    frame.loc[frame["representation"] == "gap", "path"].map(lambda path: path.with_suffix(".parquet").unlink())
    frame.loc[frame["representation"] == "pooler", "score"] += 0.1
    (board,) = leaderboards(frame, show=Show("combined"))
    assert pd.notna(board.low.loc[VIT, "paper/cifar10"])
    assert pd.isna(board.low.loc[GAP, "paper/cifar10"])
    assert any(
        "no interval for timm:vit_tiny_patch16_224 gap paper/cifar10" in n and "are missing" in n for n in board.notes
    )
    assert any("pooler" in note and "its stored predictions give" in note for note in board.notes)
    text = render([board], "markdown")
    assert f"{board.cells.loc[GAP, 'paper/cifar10']:.1f} |" in text


def test_no_interval_can_be_asked_for(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5, 0.7)), show=Show("none"))
    assert "±" not in render([board], "markdown")
    assert "mean over seeds (2 seeds)" in board.notes[0]


def test_normalised_and_mean_rank_by_hand(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.55),
        *seeds(0.505, task="paper/cifar100", num_classes=100, chance=0.01),
        *seeds(0.1, representation="gap"),
        *seeds(0.9, representation="gap", task="paper/cifar100", num_classes=100, chance=0.01),
        *seeds(0.99, representation="pooler"),
    )
    (board,) = leaderboards(frame, show=Show(normalised=True, mean_rank=True))
    values = board.extras["normalised"].values
    assert values[VIT] == pytest.approx(100 * (0.5 + 0.5) / 2)
    assert values[GAP] == pytest.approx(100 * (0 + 89 / 99) / 2)
    ranks = board.extras["mean rank"].values
    assert (ranks[VIT], ranks[GAP]) == (1.5, 1.5)
    assert values.isna().sum() == ranks.isna().sum() == 1, "the row that lacks a task"
    assert any("among the 2 complete rows" in note for note in board.notes)
    text = render([board], "markdown")
    assert re.search(r"\| +1\.50 \|", text)
    assert {row["normalised"] for row in json.loads(render([board], "json")) if row["representation"] == "cls"} == {
        50.0
    }


def test_shots_as_columns_have_no_normalised_mean(tmp_path: Path) -> None:
    (board,) = leaderboards(
        frame_of(tmp_path, *seeds(0.5), *seeds(0.6, shot=25)), show=Show(normalised=True, mean_rank=True)
    )
    assert not board.extras
    assert any(note.startswith("no normalised score and no mean rank here") for note in board.notes)


def test_label_efficiency_is_the_area_over_log_shots(tmp_path: Path) -> None:
    records = [*seeds(0.2, shot=1), *seeds(0.4, shot=10), *seeds(0.8, shot=100), *seeds(0.9, shot=0)]
    frame = frame_of(tmp_path, *records, *seeds(0.9, shot=1, representation="gap"))
    shots, board = leaderboards(frame, efficiency=True)
    assert list(shots.cells.columns) == ["1-shot", "10-shot", "100-shot", "all train images"]
    assert board.title == "fewshot · l2 = 1024 · label efficiency"
    assert board.cells.loc[VIT, "paper/cifar10"] == pytest.approx(100 * (0.3 + 0.6) / 2)
    assert GAP not in board.cells.index, "it lacks two of the shots"
    assert any("log(shots), 1, 10, 100," in note for note in board.notes)
    table = pd.read_csv(io.StringIO(render([shots, board], "csv")))
    (row,) = table[table["level"] == "label efficiency"].to_dict(orient="records")
    assert row["score"] == pytest.approx(0.45)
    assert pd.isna(row["accuracy"])
    assert pd.isna(row["shot"])


def test_label_efficiency_of_several_tasks_has_their_mean_over_seeds(tmp_path: Path) -> None:
    records = [
        record
        for task, scores in (("paper/cifar10", (0.2, 0.4)), ("paper/cifar100", (0.6, 0.8)))
        for shot, score in zip((1, 5), scores, strict=True)
        for record in seeds(score, score + 0.1, task=task, shot=shot)
    ]
    *_, board = leaderboards(frame_of(tmp_path, *records), efficiency=True)
    assert board.cells.loc[VIT].to_dict() == pytest.approx({"paper/cifar10": 35, "paper/cifar100": 75, "mean": 55})
    assert board.spread.loc[VIT, "mean"] == pytest.approx(10 / np.sqrt(2))
    assert sorted(board.behind["shot"]) == [1] * 4 + [5] * 4, "it leads to every record"


def test_one_shot_has_no_label_efficiency(tmp_path: Path) -> None:
    assert len(leaderboards(frame_of(tmp_path, *seeds(0.5), *seeds(0.9, shot=0)), efficiency=True)) == 1


def test_incomplete_rows_rank_only_when_asked_and_are_marked(tmp_path: Path) -> None:
    whole, part = suite_seeds([0.2], [0.4], [0.9]), suite_seeds([0.99], [], [0.9], representation="gap")
    frame = frame_of(tmp_path, *whole, *part)
    summary, natural, _ = leaderboards(frame, suites=SUITES, show=Show(rank_incomplete=True))
    assert [label[1] for label in summary.cells.index] == ["gap", "cls", ""]
    assert summary.cells.loc[GAP, "mean of 3"] == pytest.approx((99 + 90) / 2)
    assert summary.cells.loc[GAP, "mean of 2 groups"] == pytest.approx((99 + 90) / 2)
    assert (GAP, "mean of 3") in summary.partial
    assert (GAP, "structured (1)") not in summary.partial
    text = render([summary, natural], "markdown")
    assert r"| 94.5\* |" in text.replace("  ", "")
    assert any(note.startswith("* a mean of the tasks that the row has") for note in summary.notes)
    assert natural.cells.loc[GAP, "mean of 2"] == pytest.approx(99.0)
    (plain,) = leaderboards(frame, show=Show(rank_incomplete=True))
    assert plain.cells.loc[GAP, "mean"] == pytest.approx(94.5)
    strict, *_ = leaderboards(frame, suites=SUITES)
    assert [label[1] for label in strict.cells.index] == ["cls", "gap", ""]


def merged(tmp_path: Path, *scores: float) -> Path:
    """Two folders put together: the same record, measured with these scores."""
    for number, score in enumerate(scores):
        out = tmp_path / str(number)
        ResultStore(out).write(make_record(scores={"accuracy": score}), PREDICTIONS)
        shutil.copytree(out / "records", tmp_path / "all" / "records" / f"from {number}")
    ResultStore(tmp_path / "all").write(make_record(representation="gap", scores={"accuracy": 0.3}), PREDICTIONS)
    return tmp_path / "all"


@pytest.mark.parametrize("form", ["markdown", "html", "latex", "csv"])
def test_two_records_of_one_identity_are_a_conflict_and_not_averaged(tmp_path: Path, form: str) -> None:
    (board,) = boards_of(merged(tmp_path, 0.5, 0.6))
    assert pd.isna(board.cells.loc[VIT, "paper/cifar10"])
    assert board.conflicts == {(VIT, "paper/cifar10"): "50 ≠ 60"}
    (note,) = [line for line in board.notes if line.startswith("conflict:")]
    assert "seed 0, give 50 and 60 %: they are not averaged" in note
    assert "from 0" in note
    assert "from 1" in note
    assert [label[1] for label in board.cells.index] == ["gap", "cls", ""], "it does not rank"
    text = render([board], form, tmp_path)
    assert "55.0" not in text
    assert {"latex": r"50 $\neq$ 60", "csv": "gap"}.get(form, "50 ≠ 60") in text
    if form == "csv":
        assert "cls" not in text
    if form == "html":
        assert "seed 0: 50.00" in text
        assert "seed 0: 60.00" in text


def test_copies_with_equal_scores_count_once(tmp_path: Path) -> None:
    (board,) = boards_of(merged(tmp_path, 0.5, 0.5))
    assert board.cells.loc[VIT, "paper/cifar10"] == pytest.approx(50.0)
    assert not board.conflicts
    assert len(board.records) == 2


def test_a_table_of_nothing_but_conflicts_can_be_shown(tmp_path: Path) -> None:
    out = merged(tmp_path, 0.5, 0.6)
    frame, _ = read_with_paths(out)
    show = Show("combined", normalised=True, mean_rank=True, costs=[])
    (board,) = leaderboards(frame[frame["representation"] == "cls"], show=show)
    for form in ("markdown", "latex", "html", "json"):
        assert render([board], form)
    assert "50 ≠ 60" in render([board], "markdown")


def test_a_conflict_in_one_task_takes_the_mean_away(tmp_path: Path) -> None:
    out = merged(tmp_path, 0.5, 0.6)
    store = ResultStore(out)
    for representation in ("cls", "gap"):
        store.write(make_record(task="paper/cifar100", representation=representation), PREDICTIONS)
    (board,) = boards_of(out)
    assert pd.isna(board.cells.loc[VIT, "mean"])
    assert board.cells.loc[VIT, "paper/cifar100"] == pytest.approx(50.0)
    assert board.cells.loc[GAP, "mean"] == pytest.approx(40.0)
