from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitbench
from vitbench.errors import DataError, UsageError, VitbenchError
from vitbench.features.featureset import FeatureSet
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Cell, Outcome
from vitbench.protocols.fewshot import GRID, FewShot, fewshot

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def draw(rows: int, features: int, num_classes: int, tests: int = 200, seed: int = 0) -> Arrays:
    """Train and test features and labels: class means plus noise, hard enough for a few errors."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(num_classes, features))
    scales = np.geomspace(3, 0.1, features)
    train_y, test_y = rng.integers(num_classes, size=rows), rng.integers(num_classes, size=tests)
    train_x, test_x = (
        ((means[y] + 1.5 * rng.normal(size=(len(y), features))) * scales + 1).astype(np.float32)
        for y in (train_y, test_y)
    )
    return train_x, train_y, test_x, test_y


def reference(data: Arrays, num_classes: int, shot: int, seed: int, l2: float = 1024.0) -> np.ndarray:
    """big_vision's few-shot evaluator, line for line, in numpy and float64: the predictions."""
    train_x, train_y, test_x, _ = data
    rng = np.random.default_rng(seed)
    permutations = [rng.permutation(np.where(train_y == c)[0]) for c in range(num_classes)]
    rows = np.concatenate([permutation[:shot] for permutation in permutations])
    x = train_x[rows].astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    z = np.c_[(x - mean) / std, np.full(len(x), 100.0)]
    y = 2.0 * np.eye(num_classes)[train_y[rows]] - 1
    if len(z) >= z.shape[1]:
        weights = np.linalg.solve(z.T @ z + l2 * np.eye(z.shape[1]), z.T @ y)
    else:
        weights = z.T @ np.linalg.solve(z @ z.T + l2 * np.eye(len(z)), y)
    tests = np.c_[(test_x.astype(np.float64) - mean) / std, np.full(len(test_x), 100.0)]
    return np.argmax(tests @ weights, axis=1)


def feature_sets(data: Arrays) -> tuple[FeatureSet, FeatureSet]:
    train_x, train_y, test_x, test_y = data
    return tuple(
        FeatureSet(labels=y, rows=np.arange(len(y)), representations={"cls": torch.from_numpy(x)})
        for x, y in ((train_x, train_y), (test_x, test_y))
    )


def outcomes(protocol: FewShot, data: Arrays, num_classes: int) -> list[Outcome]:
    return list(protocol.evaluate(*feature_sets(data), "cls", num_classes, protocol.cells()))


@pytest.mark.parametrize(
    ("rows", "features", "num_classes"), [(400, 16, 5), (400, 192, 10), (90, 40, 3), (60, 12, 2), (150, 7, 30)]
)
def test_the_paper_protocol_equals_the_reference(rows: int, features: int, num_classes: int) -> None:
    data = draw(rows, features, num_classes)
    for outcome in outcomes(FewShot(), data, num_classes):
        expected = reference(data, num_classes, outcome.cell.shot, outcome.cell.seed)
        assert outcome.predictions.tolist() == expected.tolist()
        assert outcome.ranking.dtype == np.int64
        assert outcome.ranking.shape == (200, min(5, num_classes))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 40), st.sampled_from([1.0, 1024.0]))
def test_any_penalty_equals_the_reference(seed: int, num_classes: int, features: int, l2: float) -> None:
    data = draw(120, features, num_classes, tests=50, seed=seed)
    for outcome in outcomes(FewShot(l2=l2, shots=(1, 3, 20), seeds=(seed,)), data, num_classes):
        expected = reference(data, num_classes, outcome.cell.shot, seed, l2)
        assert outcome.predictions.tolist() == expected.tolist()


def test_an_outcome_says_what_it_was_made_of() -> None:
    data = draw(100, 8, 4)
    outcome = outcomes(FewShot(shots=(5,), seeds=(2,)), data, 4)[0]
    assert outcome.cell == Cell(5, 2)
    assert (outcome.n_support, outcome.n_test) == (20, 200)
    assert outcome.details == {"l2": 1024.0, "n_per_class_min": 5, "n_per_class_max": 5}
    assert outcome.warnings == ()


def test_leave_one_out_is_recorded_and_beats_a_bad_penalty() -> None:
    data = draw(400, 32, 8)
    protocol = FewShot(l2="loo", shots=(10,), seeds=(0,))
    outcome = outcomes(protocol, data, 8)[0]
    assert outcome.details["l2"] in GRID
    assert set(outcome.details) == {
        *("l2", "loo_error", "loo_accuracy", "l2_on_edge", "n_per_class_min", "n_per_class_max")
    }
    assert outcome.details["l2_on_edge"] is False
    assert outcome.warnings == ()
    assert outcome.predictions.tolist() == reference(data, 8, 10, 0, outcome.details["l2"]).tolist()
    assert json.loads(json.dumps(outcome.details)) == outcome.details, "JSON values only"


def test_leave_one_out_never_sees_a_test_label() -> None:
    train_x, train_y, test_x, test_y = draw(400, 32, 8)
    protocol = FewShot(l2="loo")
    honest = outcomes(protocol, (train_x, train_y, test_x, test_y), 8)
    shuffled = outcomes(protocol, (train_x, train_y, test_x, (test_y + 1) % 8), 8)
    assert [item.details for item in honest] == [item.details for item in shuffled]
    assert all((a.predictions == b.predictions).all() for a, b in zip(honest, shuffled, strict=True))


def test_a_choice_on_the_edge_of_the_grid_is_warned_of() -> None:
    data = draw(100, 8, 4)
    for grid, end in (((1e8, 1e9), "smallest"), ((1e-9, 1e-8), "largest")):
        outcome = outcomes(FewShot(l2="loo", shots=(10,), seeds=(0,), grid=grid), data, 4)[0]
        assert outcome.details["l2_on_edge"] is True
        assert len(outcome.warnings) == 1
        assert f"the {end} l2 of the grid" in outcome.warnings[0]
    single = outcomes(FewShot(l2="loo", shots=(10,), seeds=(0,), grid=(1.0,)), data, 4)[0]
    assert single.warnings == ()


def test_accuracy_as_criterion_takes_the_largest_of_equals() -> None:
    far_apart = np.repeat(np.eye(3, dtype=np.float32) * 100, 8, axis=0)
    far_apart += np.random.default_rng(0).normal(size=far_apart.shape).astype(np.float32)
    labels = np.repeat(np.arange(3), 8)
    data = (far_apart, labels, far_apart, labels)
    outcome = outcomes(FewShot(l2="loo", criterion="accuracy", shots=(8,), seeds=(0,), grid=(1, 2, 4)), data, 3)[0]
    assert outcome.details["loo_accuracy"] == 1
    assert outcome.details["l2"] == 4


def test_leave_one_out_from_one_image_per_class_is_warned_of() -> None:
    outcome = outcomes(FewShot(l2="loo", shots=(1,), seeds=(0,)), draw(100, 8, 4), 4)[0]
    assert any("one image per class" in line for line in outcome.warnings)
    assert np.isfinite(outcome.details["loo_error"])


def test_short_and_missing_classes_give_all_they_have_and_are_warned_of() -> None:
    train_x, _, test_x, test_y = draw(20, 8, 4)
    train_y = np.array([0] * 10 + [1] * 7 + [3] * 3)
    data = (train_x, train_y, test_x, test_y)
    protocol = FewShot(shots=(3, 5, 25), seeds=(0,))
    found = {item.cell.shot: item for item in outcomes(protocol, data, 4)}
    assert [found[shot].n_support for shot in (3, 5, 25)] == [9, 13, 20]
    assert [found[shot].details["n_per_class_min"] for shot in (3, 5, 25)] == [0, 0, 0]
    assert [found[shot].details["n_per_class_max"] for shot in (3, 5, 25)] == [3, 5, 10]
    missing = "1 of 4 classes have no train image (the first is class 2): their test images cannot be recognised"
    assert found[3].warnings == (missing,)
    five = "5-shot: 1 of 4 classes have fewer than 5 train images (the fewest: 3); each of them gives all it has"
    assert found[5].warnings == (missing, five)
    assert found[25].warnings[1].startswith("25-shot: 3 of 4 classes have fewer than 25 train images (the fewest: 3)")
    assert protocol.check(train_y, 4) == [missing, five, found[25].warnings[1]]
    for shot, item in found.items():
        assert item.predictions.tolist() == reference(data, 4, shot, 0).tolist()


def test_enough_images_need_no_line() -> None:
    assert FewShot(shots=(1, 5)).check(np.repeat(np.arange(3), 5), 3) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "the train split has no image of any class"),
        ([0, 1, 3], "label 3, which is none of the 3 classes 0 to 2"),
        ([0, -1, 2], "label -1, which is none of the 3 classes"),
    ],
)
def test_impossible_labels_are_an_error(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FewShot().check(np.array(labels, dtype=np.int64), 3)


def test_train_rows_are_the_union_of_the_support_sets() -> None:
    data = draw(300, 6, 5)
    train, test = feature_sets(data)
    protocol = FewShot(shots=(1, 4), seeds=(0, 3))
    rows = protocol.train_rows(train.labels, 5, protocol.cells())
    assert (np.diff(rows) > 0).all()
    assert len(rows) <= 2 * 4 * 5
    few = FeatureSet(labels=train.labels, rows=rows, representations={"cls": train.representations["cls"][rows]})
    expected = [item.predictions.tolist() for item in outcomes(protocol, data, 5)]
    found = list(protocol.evaluate(few, test, "cls", 5, protocol.cells()))
    assert [item.predictions.tolist() for item in found] == expected
    one = protocol.train_rows(train.labels, 5, [Cell(1, 3)])
    assert len(one) == 5
    assert set(one) <= set(rows)
    assert protocol.train_rows(train.labels, 5, []).tolist() == []


def test_test_rows_may_be_a_part_of_the_split() -> None:
    data = draw(100, 6, 3)
    train, test = feature_sets(data)
    rows = np.array([3, 7, 50, 120])
    part = FeatureSet(labels=test.labels, rows=rows, representations={"cls": test.representations["cls"][rows]})
    (outcome,) = FewShot(shots=(5,), seeds=(0,)).evaluate(train, part, "cls", 3, [Cell(5, 0)])
    expected = reference(data, 3, 5, 0)[rows]
    assert outcome.predictions.tolist() == expected.tolist()
    assert (outcome.n_test, outcome.ranking.shape) == (4, (4, 3))


def test_cells_are_evaluated_in_the_order_asked_and_one_by_one() -> None:
    data = draw(100, 6, 3)
    protocol = FewShot()
    assert protocol.cells() == [Cell(shot, seed) for shot in (1, 5, 10, 25) for seed in (0, 1, 2)]
    wanted = [Cell(10, 1), Cell(1, 0), Cell(5, 1)]
    running = protocol.evaluate(*feature_sets(data), "cls", 3, wanted)
    assert next(running).cell == wanted[0]
    assert [item.cell for item in running] == wanted[1:]


@pytest.mark.parametrize("l2", ["paper", "loo"])
@pytest.mark.parametrize(
    "cells",
    [
        [Cell(shot, seed) for shot in (1, 3, 7, 20) for seed in (0, 1)],
        [Cell(20, 0), Cell(7, 0), Cell(3, 0), Cell(7, 0), Cell(20, 0)],
        [Cell(7, 1), Cell(20, 0), Cell(20, 1)],
    ],
)
def test_cells_that_share_give_what_each_gives_by_itself(l2: Any, cells: list[Cell]) -> None:
    """Scatter matrices grow with the shots of a seed; classes of unequal size, one of them short and one empty."""
    train_x, train_y, test_x, test_y = draw(150, 6, 5)
    train_y[train_y == 3] = 2
    train_y[train_y == 4] = np.where(np.cumsum(train_y == 4)[train_y == 4] > 4, 0, 4)
    data = (train_x, train_y, test_x, test_y)
    protocol = FewShot(l2=l2, shots=(1, 3, 7, 20), seeds=(0, 1))
    found = list(protocol.evaluate(*feature_sets(data), "cls", 5, cells))
    for cell, together in zip(cells, found, strict=True):
        (alone,) = protocol.evaluate(*feature_sets(data), "cls", 5, [cell])
        assert together.cell == cell
        assert together.ranking.tolist() == alone.ranking.tolist()
        assert together.details == pytest.approx(alone.details, rel=1e-9)
        assert (
            together.predictions.tolist() == reference(data, 5, *(cell.shot, cell.seed), alone.details["l2"]).tolist()
        )


def test_no_more_is_kept_for_larger_sets_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(150, 6, 5)
    expected = [item.ranking.tolist() for item in outcomes(FewShot(), data, 5)]
    monkeypatch.setattr("vitbench.protocols.fewshot._SHARED", 40)
    assert [item.ranking.tolist() for item in outcomes(FewShot(), data, 5)] == expected


def test_parameters_are_the_identity() -> None:
    solver = {"bias": 100.0, "epsilon": 1e-5, "solver": 1}
    assert FewShot().parameters() == {"l2": 1024.0, **solver}
    assert FewShot(l2=1024).parameters() == FewShot().parameters(), "how it was spelled is no part of it"
    assert FewShot(shots=(3,), seeds=(7,), criterion="accuracy").parameters() == FewShot().parameters()
    found = FewShot(l2="loo", grid=(4, 2)).parameters()
    assert found == {"l2": "loo", "criterion": "squared_error", "grid": [2.0, 4.0], **solver}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("protocol", "label"),
    [
        (FewShot(), "l2 = 1024"),
        (FewShot(l2=0.5), "l2 = 0.5"),
        (FewShot(l2="loo"), "l2 by leave-one-out error"),
        (FewShot(l2="loo", criterion="accuracy"), "l2 by leave-one-out accuracy"),
        (FewShot(l2="loo", grid=(1, 9)), "l2 by leave-one-out error from 2 values, 1 to 9"),
    ],
)
def test_labels_for_the_title_of_a_table(protocol: FewShot, label: str) -> None:
    assert protocol.label() == label


def test_the_default_grid_has_the_papers_penalty() -> None:
    assert len(GRID) == 30
    assert (GRID[0], GRID[-1]) == (2.0**-9, 2.0**20)
    assert 1024.0 in GRID


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, FewShot()),
        ({"shots": "1,5", "seeds": "3"}, FewShot(shots=(1, 5))),
        ({"shots": 5, "seeds": 2}, FewShot(shots=(5,), seeds=(0, 1))),
        ({"shots": [1, 2], "seeds": [4]}, FewShot(shots=(1, 2), seeds=(4,))),
        ({"seeds": "4,"}, FewShot(seeds=(4,))),
        ({"seeds": "0, 5"}, FewShot(seeds=(0, 5))),
        ({"shots": iter((1, 2)), "seeds": range(4, 6)}, FewShot(shots=(1, 2), seeds=(4, 5))),
        ({"seeds": np.int64(2), "shots": np.array([1, 3])}, FewShot(seeds=(0, 1), shots=(1, 3))),
        ({"l2": "10"}, FewShot(l2=10.0)),
        ({"l2": 1}, FewShot(l2=1.0)),
        ({"l2": "loo", "criterion": "accuracy"}, FewShot(l2="loo", criterion="accuracy")),
        ({"l2": "loo", "grid": "8,0.5"}, FewShot(l2="loo", grid=(0.5, 8.0))),
        ({"tune": False}, FewShot()),
    ],
)
def test_options_from_a_command_line_or_a_file(options: dict[str, Any], expected: FewShot) -> None:
    found = FewShot.from_options(options)
    assert found == expected
    assert hash(found) == hash(expected)
    assert [type(item) for item in (*found.shots, *found.seeds)] == [int] * (len(found.shots) + len(found.seeds))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots must be whole numbers from 1, got 0"),
        ({"shots": "0"}, "shots must be whole numbers from 1, got '0'"),
        ({"shots": "1,x"}, "got 'x'"),
        ({"shots": 2.5}, "got 2.5"),
        ({"shots": True}, "got True"),
        ({"shots": None}, "got None"),
        ({"shots": ""}, "shots is empty"),
        ({"shots": [5, 1, 5]}, "shots has a value twice: 5, 1, 5"),
        ({"shots": "5,05"}, "shots has a value twice"),
        ({"seeds": 0}, "the number of seeds must be whole numbers from 1, got 0"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [-1]}, "seeds must be whole numbers from 0, got -1"),
        ({"seeds": -1}, "got -1"),
        ({"l2": 0}, "l2 must be 'paper', 'loo' or a number above 0"),
        ({"l2": -1.0}, "got -1.0"),
        ({"l2": "inf"}, "got 'inf'"),
        ({"l2": float("nan")}, "got nan"),
        ({"l2": "papper"}, "got 'papper'"),
        ({"l2": True}, "got True"),
        ({"grid": [1, 0]}, "grid must be a number above 0"),
        ({"grid": []}, "grid is empty"),
        ({"criterion": "acuracy"}, "unknown criterion of protocol 'fewshot': 'acuracy'; did you mean 'accuracy'"),
        ({"shot": 5}, "unknown option of protocol 'fewshot': 'shot'; did you mean 'shots'"),
        ({"l2": "validation"}, "l2 must be 'paper', 'loo' or a number above 0"),
        (
            {"tune": True},
            "'fewshot' reads no tuning splits: --l2 loo chooses l2 on each support set, and --protocol ridge",
        ),
        ({"tune": "true", "shots": 5}, "reads no tuning splits"),
        ({"tune": "maybe"}, "tune must be true or false, got 'maybe'"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        FewShot.from_options(options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_registry_finds_it() -> None:
    assert PROTOCOLS.load("fewshot") is FewShot
    assert FewShot.name == "fewshot"
    assert not FewShot(l2="loo").tunes


def test_the_function_gives_one_row_per_shot_and_seed() -> None:
    data = draw(300, 16, 5)
    table = vitbench.fewshot(*data)
    assert list(table.columns) == [
        *("shot", "seed", "l2", "accuracy", "n_support", "n_test", "n_per_class_min", "n_per_class_max", "warnings")
    ]
    assert list(zip(table["shot"], table["seed"], strict=True)) == [(k, s) for k in (1, 5, 10, 25) for s in range(3)]
    for row in table.itertuples():
        assert row.accuracy == np.mean(reference(data, 5, row.shot, row.seed) == data[3])
        assert row.n_support == 5 * row.shot
        assert (row.l2, row.n_test) == (1024, 200)


def test_the_function_with_leave_one_out() -> None:
    table = fewshot(*draw(300, 16, 5), l2="loo", criterion="accuracy", grid=[1, 10, 100], shots=5, seeds=[7])
    assert len(table) == 1
    assert table["l2"][0] in (1, 10, 100)
    assert {"loo_error", "loo_accuracy", "l2_on_edge"} <= set(table.columns)


def as_lists(data: Arrays) -> Any:
    return [array.tolist() for array in data]


def as_tensors(data: Arrays) -> Any:
    return [torch.from_numpy(array).requires_grad_(array.dtype.kind == "f") for array in data]


def as_read_only(data: Arrays) -> Any:
    arrays = [array[::-1].copy()[::-1] for array in data]
    for array in arrays:
        array.flags.writeable = False
    return arrays


@pytest.mark.parametrize("convert", [as_lists, as_tensors, as_read_only])
def test_the_function_takes_arrays_of_any_kind(convert: Any) -> None:
    data = draw(60, 8, 3)
    expected = fewshot(*data)
    assert fewshot(*convert(data)).equals(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_the_function_takes_features_of_any_dtype(dtype: torch.dtype) -> None:
    train_x, train_y, test_x, test_y = draw(60, 8, 3)
    halves = [torch.from_numpy(x * 4).to(dtype) for x in (train_x, test_x)]
    found = fewshot(halves[0], train_y, halves[1], test_y)
    exact = fewshot(halves[0].double(), train_y, halves[1].double(), test_y)
    assert found.equals(exact)
    if dtype != torch.bfloat16:
        assert fewshot(halves[0].numpy(), train_y, halves[1].numpy(), test_y).equals(exact)


@pytest.mark.parametrize(("dtype", "size"), [(np.float16, 6e4), (np.float32, 3e38)])
def test_large_features_are_not_taken_for_infinite_ones(dtype: type, size: float) -> None:
    """Their sum overflows, they do not."""
    train_x, train_y, test_x, test_y = draw(60, 8, 3)
    train_x, test_x = (np.tanh(x).astype(np.float64) * size for x in (train_x, test_x))
    found = fewshot(train_x.astype(dtype), train_y, test_x.astype(dtype), test_y)
    assert found["accuracy"].mean() > 0.45
    test_x[4, 0] = -np.inf
    with pytest.raises(DataError, match="1 of 200 test rows"):
        fewshot(train_x.astype(dtype), train_y, test_x.astype(dtype), test_y)


def test_the_number_of_classes_comes_from_both_label_arrays() -> None:
    train_x, train_y, test_x, test_y = draw(60, 8, 3)
    test_y[0] = 4
    table = fewshot(train_x, train_y, test_x, test_y, shots=5)
    assert table["warnings"].str.contains("2 of 5 classes have no train image").all()
    wide = fewshot(train_x, train_y, test_x, test_y, shots=5, num_classes=9)
    assert wide["warnings"].str.contains("6 of 9 classes").all()


def broken(**changes: Any) -> dict[str, Any]:
    train_x, train_y, test_x, test_y = draw(60, 8, 3)
    test_x = test_x.copy()
    arguments = {"train_features": train_x, "train_labels": train_y, "test_features": test_x, "test_labels": test_y}
    return {**arguments, **changes}


def with_nan(x: np.ndarray, rows: int, value: float = np.nan) -> np.ndarray:
    x = x.copy()
    x[:rows, 2] = value
    return x


DATA = draw(60, 8, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": DATA[1][:-1]}, "train_features has 60 rows, but train_labels has 59"),
        ({"test_features": DATA[2][:10]}, "test_features has 10 rows, but test_labels has 200"),
        ({"test_features": DATA[2][:, :5]}, "train_features has 8 columns, but test_features has 5"),
        ({"train_features": DATA[0][0]}, r"train_features must be a \[rows, columns\] array"),
        ({"train_features": [[1, 2], [3]]}, "train_features must be"),
        ({"train_features": [["a"]]}, "train_features must be"),
        ({"train_features": DATA[0] * 1j}, "train_features must be"),
        ({"test_features": DATA[2][:0], "test_labels": DATA[3][:0]}, "test_features must be .* at least one of each"),
        ({"train_labels": DATA[1].astype(float)}, "train_labels must be a flat array .* got float64"),
        ({"test_labels": DATA[3][:, None]}, r"test_labels must be a flat array .* \[200, 1\]"),
        ({"test_labels": []}, "test_labels must be a flat array of at least one"),
        ({"train_labels": DATA[1] - 1}, "the train split has label -1"),
        ({"train_labels": DATA[1] * 0 - 1, "test_labels": DATA[3] * 0 - 1}, "the train split has label -1"),
        ({"test_labels": DATA[3] + 10**12}, "number the classes 0, 1, 2"),
        ({"num_classes": 2}, "the train split has label 2, which is none of the 2 classes"),
        ({"num_classes": 0}, "num_classes must be whole numbers from 1, got 0"),
        ({"test_features": with_nan(DATA[2], 3)}, "3 of 200 test rows have NaN or infinite features"),
        ({"train_features": with_nan(DATA[0], 60, np.inf)}, "3 of 3 train rows have NaN or infinite features"),
        ({"shots": 0}, "shots must be whole numbers from 1"),
        ({"l2": "lo"}, "l2 must be 'paper', 'loo' or"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
    ],
)
def test_arguments_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(VitbenchError, match=message) as caught:
        fewshot(**broken(**changes))
    assert "\n" not in str(caught.value)


def test_the_module_imports_without_pandas() -> None:
    code = "import sys; import vitbench.protocols.fewshot; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("l2", ["paper", "loo"])
def test_a_gpu_gives_the_answer_of_the_cpu(l2: Any) -> None:
    data = draw(300, 16, 5)
    expected, found = fewshot(*data, l2=l2), fewshot(*data, l2=l2, device="cuda")
    assert found["accuracy"].tolist() == expected["accuracy"].tolist()
    assert found["l2"].tolist() == expected["l2"].tolist()
