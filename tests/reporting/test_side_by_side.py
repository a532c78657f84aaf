from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records.test_costs import make_cost
from tests.records.test_store import PREDICTIONS, make_record
from tests.reporting.test_leaderboard import SUITES, frame_of, seeds, suite_seeds, text_of
from vitbench.errors import UsageError
from vitbench.records.store import ResultStore
from vitbench.reporting.boards import Leaderboard, Show
from vitbench.reporting.formats import render
from vitbench.reporting.leaderboard import leaderboards
from vitbench.reporting.published import read_published
from vitbench.reporting.recorded import read_with_paths
from vitbench.reporting.side_by_side import differences, with_settings

SIDE = Show(side_by_side=True)
VIT = "timm:vit_tiny_patch16_224"
FEWSHOT, RIDGE = "fewshot · l2 = 1024 · 5-shot", "ridge · l2 = 1024 · all train images"
SLOW = "finetune · paper · lr 0.003 · 500 steps · all train images"
FAST = "finetune · paper · lr 0.01 · 500 steps · all train images"


def finetune(*accuracies: float, rate: float = 0.01, **changes: Any) -> list[dict[str, Any]]:
    recipe = {"learning_rate": rate, "steps": 500, "crop_area": [0.05, 1.0], "mixup": 0.0} | changes.pop("recipe", {})
    fields = {
        "protocol": "finetune",
        "protocol_label": f"paper · lr {rate:g} · 500 steps",
        "parameters": {"head": "cls", "recipe": recipe},
        "shot": 0,
        "n_support": 50_000,
        "details": {},
    }
    return seeds(*accuracies, **(fields | changes))


def ridge(*accuracies: float, **changes: Any) -> list[dict[str, Any]]:
    return seeds(*accuracies, **({"protocol": "ridge", "shot": 0, "n_support": 50_000} | changes))


def settings(board: Leaderboard) -> list[str]:
    assert board.cells.index.names[-1] == "protocol"
    return [labels[-1] for labels in board.cells.index[:-1]]


def scores(board: Leaderboard, column: str = "paper/cifar10") -> dict[str, float]:
    return dict(zip(settings(board), board.cells[column].iloc[:-1], strict=True))


TWO_AND_A_FEWSHOT = [*seeds(0.5, 0.6, 0.7), *finetune(0.9, rate=0.003), *finetune(0.95)]


def test_two_fine_tunes_and_a_few_shot_run_stand_in_one_table_told_apart_by_protocol(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *TWO_AND_A_FEWSHOT), show=SIDE)
    assert board.title == "protocols side by side"
    assert settings(board) == [FAST, SLOW, FEWSHOT], "the best first"
    assert scores(board) == pytest.approx({FAST: 95.0, SLOW: 90.0, FEWSHOT: 60.0})
    assert board.spread["paper/cifar10"].tolist()[2] == pytest.approx(10.0)
    assert board.spread["paper/cifar10"].isna().tolist() == [True, True, False]
    assert board.cells.iloc[-1, 0] == pytest.approx(10.0), "one chance for all"
    assert board.notes[:4] == [
        "each row is one protocol with one set of parameters at one shot: no number is a mean over two of them",
        "learned from: fewshot 50 images, 3 seeds; finetune 50,000 images, 1 seed",
        "rows of finetune differ in learning_rate (0.003, 0.01)",
        "accuracy in %, mean over seeds ± standard deviation over seeds (each protocol its own seeds)",
    ]


def test_without_it_they_are_tables_of_their_own(tmp_path: Path) -> None:
    assert len(leaderboards(frame_of(tmp_path, *TWO_AND_A_FEWSHOT))) == 3


@pytest.mark.parametrize("form", ["markdown", "latex", "html", "csv", "json"])
def test_every_format_tells_them_apart(tmp_path: Path, form: str) -> None:
    store = ResultStore(tmp_path)
    for record in TWO_AND_A_FEWSHOT:
        store.write(make_record(**record), PREDICTIONS)
    text = render(leaderboards(read_with_paths(tmp_path)[0], show=SIDE), form, tmp_path)
    if form in ("csv", "json"):
        table = pd.read_csv(io.StringIO(text)) if form == "csv" else pd.DataFrame(json.loads(text))
        assert dict(zip(table["setting"], table["score"], strict=True)) == pytest.approx(
            {FEWSHOT: 0.6, SLOW: 0.9, FAST: 0.95}
        )
        assert dict(zip(table["protocol"], table["seeds"], strict=True)) == {"fewshot": 3, "finetune": 1}
        assert set(table["shot"]) == {0, 5}
    else:
        for setting, number in ((FEWSHOT, "60.0"), (SLOW, "90.0"), (FAST, "95.0")):
            shown = setting.replace("·", r"$\cdot$") if form == "latex" else setting
            assert re.search(rf"{re.escape(shown)}\W.*?{number}", text, re.DOTALL)
    if form == "html":
        assert len(re.findall(r'href="records/', text)) == 5, "each number leads to the records of its own row"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_terminal_table_is_not_cut(tmp_path: Path, width: int) -> None:
    frame = frame_of(tmp_path, *TWO_AND_A_FEWSHOT, *finetune(0.8, task="paper/cifar100"))
    text = text_of(leaderboards(frame, show=SIDE), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace("--tasks …", "")
    for number in ("60.0 ± 10.0", "90.0", "95.0", "80.0"):
        assert number in text


def test_a_mean_is_of_one_row_and_rows_without_one_are_in_order_within_their_task(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5),
        *seeds(0.7, task="paper/cifar100"),
        *ridge(0.6),
        *ridge(0.4, task="paper/cifar100"),
        *finetune(0.9),
        *finetune(0.8, rate=0.003),
        *finetune(0.97, rate=0.1),
        *finetune(0.2, rate=0.3, task="paper/cifar100"),
        *finetune(0.3, rate=1.0, task="paper/cifar100"),
    )
    (board,) = leaderboards(frame, show=SIDE)
    assert [text.removesuffix(" · 500 steps · all train images") for text in settings(board)] == [
        FEWSHOT,
        RIDGE,
        "finetune · paper · lr 0.1",
        "finetune · paper · lr 0.01",
        "finetune · paper · lr 0.003",
        "finetune · paper · lr 1",
        "finetune · paper · lr 0.3",
    ]
    assert scores(board, "mean")[FEWSHOT] == pytest.approx(60.0)
    assert scores(board, "mean")[RIDGE] == pytest.approx(50.0)
    assert board.cells["mean"].iloc[2:-1].isna().all()
    assert "rows without a mean lack a task, or have no seed that all their tasks share" in board.notes


def test_one_label_with_two_sets_of_parameters_says_what_they_differ_in(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *finetune(0.9),
        *finetune(0.8, recipe={"mixup": 0.2}),
        *finetune(0.7, recipe={"crop_area": [0.5, 1.0]}),
        *ridge(0.5),
        *ridge(0.6, parameters={"l2": 1024, "solver": 2}),
    )
    (board,) = leaderboards(frame, show=SIDE)
    start = "finetune · paper · lr 0.01 · 500 steps"
    assert scores(board) == pytest.approx(
        {
            f"{start} · crop_area [0.05, 1.0], mixup 0 · all train images": 90.0,
            f"{start} · crop_area [0.05, 1.0], mixup 0.2 · all train images": 80.0,
            f"{start} · crop_area [0.5, 1.0], mixup 0 · all train images": 70.0,
            "ridge · l2 = 1024 · l2 1024, solver 2 · all train images": 60.0,
            "ridge · l2 = 1024 · l2 paper, solver — · all train images": 50.0,
        }
    )
    assert "rows of finetune differ in crop_area ([0.05, 1.0], [0.5, 1.0]), mixup (0, 0.2)" in board.notes
    assert "rows of ridge differ in l2 (1024, paper), solver (2, —)" in board.notes


def test_what_cannot_be_said_in_a_few_characters_has_a_hash(tmp_path: Path) -> None:
    grids = [[float(value) for value in range(100)], [float(value) for value in range(101)]]
    frame = frame_of(
        tmp_path, *[record for grid in grids for record in ridge(0.5, parameters={"l2": "loo", "grid": grid})]
    )
    (board,) = leaderboards(frame, show=SIDE)
    one, other = settings(board)
    assert one != other
    assert all(re.search(r" · grid \[0\.0, 1\.0, .*… #[0-9a-f]{6} · all train images$", text) for text in (one, other))
    assert all(len(text) < 100 for text in (one, other))


def test_the_same_parameters_are_one_row_whatever_their_label_was_called(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, {"seed": 0}, {"seed": 1, "protocol_label": "λ = 1024"})
    (board,) = leaderboards(frame, show=SIDE)
    assert settings(board) == [FEWSHOT]


def test_what_learns_from_no_image_says_so(tmp_path: Path) -> None:
    head = {"protocol": "head", "protocol_label": "its own classifier", "shot": 0, "n_support": 0}
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.7, **head), *ridge(0.5)), show=SIDE)
    assert settings(board) == ["head · its own classifier · no training", RIDGE]
    assert "learned from: head no image, 1 seed; ridge 50,000 images, 1 seed" in board.notes


def test_way_and_shot_are_read_in_one_breath(tmp_path: Path) -> None:
    label = {"protocol": "episodes", "protocol_label": "5-way, 600 episodes, ridge", "chance": 0.2}
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.9, **label), *seeds(0.5)), show=SIDE)
    assert settings(board) == ["episodes · 5-way 5-shot, 600 episodes, ridge", FEWSHOT]
    assert pd.isna(board.cells.iloc[-1, 0]), "a guess among 5 classes and one among 10 are not one chance"
    assert "chance" not in render([board], "markdown")


def test_seeds_that_differ_within_a_protocol_are_told(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5, 0.6), *seeds(0.5, representation="gap"), *ridge(0.5))
    (board,) = leaderboards(frame, show=SIDE)
    assert "learned from: fewshot 50 images, 1 to 2 seeds; ridge 50,000 images, 1 seed" in board.notes
    assert any("NOT the same seeds everywhere" in note for note in board.notes)
    (board,) = leaderboards(frame_of(tmp_path / "b", *seeds(0.5), *ridge(0.5)), show=SIDE)
    assert "accuracy in % (1 seed)" in board.notes


def test_limited_runs_stay_apart(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path, *seeds(0.5), *ridge(0.6), *seeds(0.1, limit=10), *ridge(0.2, limit=10), *ridge(0.3, limit=20)
    )
    (board,) = leaderboards(frame, show=SIDE)
    assert scores(board) == pytest.approx({RIDGE: 60.0, FEWSHOT: 50.0})
    assert "3 limited records are left out: they are never mixed" in board.notes
    boards = leaderboards(frame, limited=True, show=SIDE)
    assert [board.title for board in boards] == [
        "protocols side by side · LIMITED to 10 test images",
        "protocols side by side · LIMITED to 20 test images",
    ]
    assert scores(boards[0]) == pytest.approx({RIDGE: 20.0, FEWSHOT: 10.0})


def test_filters_choose_the_protocols_that_stand_side_by_side(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *TWO_AND_A_FEWSHOT, *seeds(0.3, shot=1), *ridge(0.5))
    (board,) = leaderboards(frame, protocol="finetune", show=SIDE)
    assert settings(board) == [FAST, SLOW]
    (board,) = leaderboards(frame, shots=[0, 5], show=SIDE)
    assert settings(board) == [FAST, SLOW, FEWSHOT, RIDGE]


def test_macro_f1_can_be_shown_where_records_carry_it(tmp_path: Path) -> None:
    both = {"accuracy": 0.9, "macro_f1": 0.85}
    records = [*finetune(0.0, recipe={}), *seeds(0.5)]
    records[0]["scores"] = both
    (board,) = leaderboards(frame_of(tmp_path, *records), metric="macro_f1", show=SIDE)
    assert board.title == "protocols side by side · macro_f1"
    assert scores(board) == pytest.approx({FAST: 85.0})
    assert "1 records have no macro_f1 and are left out: paper/cifar10" in board.notes
    assert pd.isna(board.cells.iloc[-1, 0]), "the macro F1 of a guess depends on the sizes of the classes"
    (board,) = leaderboards(frame_of(tmp_path, *records), metric="macro_f1", show=Show(normalised=True))
    assert board.extras["normalised"].values.isna().all()


def test_a_suite_has_its_means_and_groups_with_a_row_for_each_protocol(tmp_path: Path) -> None:
    shared = {"protocol": "ridge", "shot": 0}
    frame = frame_of(
        tmp_path,
        *suite_seeds([0.2, 0.4], [0.4, 0.2], [0.9, 0.9]),
        *suite_seeds([0.5], [0.7], [0.3], **shared),
        *finetune(0.99, task="vtab/natural/dtd"),
    )
    summary, natural, structured = boards = leaderboards(frame, suites=SUITES, show=SIDE)
    assert [board.title for board in boards] == [
        "protocols side by side · vtab",
        "protocols side by side · vtab/natural",
        "protocols side by side · vtab/structured",
    ]
    assert scores(summary, "mean of 3") == pytest.approx({FEWSHOT: 50.0, RIDGE: 50.0, FAST: float("nan")}, nan_ok=True)
    assert scores(summary, "natural (2)") == pytest.approx(
        {FEWSHOT: 30.0, RIDGE: 60.0, FAST: float("nan")}, nan_ok=True
    )
    assert settings(natural) == [RIDGE, FEWSHOT, FAST]
    assert scores(natural, "dtd")[FAST] == pytest.approx(99.0)
    assert settings(structured) == [FEWSHOT, RIDGE]
    lacking = f"no mean: 1 of 3 tasks, without vtab/natural/svhn, vtab/structured/dmlab ({VIT} cls {FAST})"
    assert lacking in summary.notes
    table = pd.read_csv(io.StringIO(render(boards, "csv")))
    means = table[table["level"] == "mean"].set_index("setting")
    assert means["score"].to_dict() == pytest.approx({FEWSHOT: 0.5, RIDGE: 0.5})
    assert means["protocol"].to_dict() == {FEWSHOT: "fewshot", RIDGE: "ridge"}
    assert means["shot"].to_dict() == {FEWSHOT: 5, RIDGE: 0}


def test_published_numbers_stand_below(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *TWO_AND_A_FEWSHOT)
    (board,) = leaderboards(frame, published=read_published(), show=SIDE)
    assert board.gaps.iloc[:, 0].min() == pytest.approx(95.0 - 99.5)
    text = render([board], "markdown")
    assert "99.50 (−4.5)" in text
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}) == 1


def test_costs_ranks_and_intervals_are_those_of_the_row(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for record in [{"n_test": 4}, {"n_test": 4, "protocol": "ridge", "shot": 0, "scores": {"accuracy": 1.0}}]:
        right = {"row": PREDICTIONS["row"], "label": PREDICTIONS["label"], "prediction": PREDICTIONS["label"].copy()}
        if "protocol" not in record:
            right["prediction"][:2] = 3
        store.write(make_record(**record), right)
    show = Show("combined", mean_rank=True, normalised=True, costs=[make_cost()], side_by_side=True)
    (board,) = leaderboards(read_with_paths(tmp_path)[0], show=show)
    assert board.extras["mean rank"].values.tolist() == [1.0, 2.0]
    assert board.extras["params (M)"].values.nunique() == 1, "one backbone"
    assert board.extras["normalised"].values.tolist() == pytest.approx([100.0, 100 * (0.5 - 0.1) / 0.9])
    assert board.low.iloc[:, 0].notna().all()


def test_contradictions_are_shown_in_their_row_only(tmp_path: Path) -> None:
    frame = pd.concat([frame_of(tmp_path / "a", *seeds(0.5), *ridge(0.6)), frame_of(tmp_path / "b", *seeds(0.4))])
    (board,) = leaderboards(frame.reset_index(drop=True), show=SIDE)
    assert list(board.conflicts) == [((VIT, "cls", "", FEWSHOT), "paper/cifar10")]
    assert scores(board)[RIDGE] == pytest.approx(60.0)


@pytest.mark.parametrize("asked", [{"rows": ["dtype"]}, {"columns": ["shot"]}, {"efficiency": True}])
def test_what_has_tables_of_its_own_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="leave --rows, --columns and --label-efficiency out"):
        leaderboards(frame_of(tmp_path, *seeds(0.5)), show=SIDE, **asked)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from([0.1, 0.5, "a", "b", "rand-m9"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)),
    max_leaves=6,
)
PARAMETERS = st.dictionaries(st.sampled_from(["l2", "recipe", "steps", "x"]), VALUES, max_size=3)


@given(st.lists(PARAMETERS, min_size=1, max_size=4))
def test_settings_are_as_many_as_sets_of_parameters(found: list[dict[str, Any]]) -> None:
    texts = [", ".join(f"{name}={value}" for name, value in parameters.items()) for parameters in found]
    frame = pd.DataFrame(
        {"protocol": "finetune", "protocol_label": "paper", "parameters": texts, "shot": 0, "seed": 0, "n_support": 9}
    )
    records = with_settings(frame).assign(column="a", backbone="", shown="", variant="")
    assert records["setting"].nunique() == len(set(texts))
    assert (records.groupby("parameters")["setting"].nunique() == 1).all()
    assert all("\n" not in line for line in differences(records))
