from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeClassifier

from vitbench.errors import DataError, UsageError
from vitbench.features.featureset import FeatureSet
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Cell, Outcome, Tuning
from vitbench.protocols.closed_form import GRID
from vitbench.protocols.fewshot import FewShot
from vitbench.protocols.ridge import Ridge

SOLVER = {"bias": 100.0, "epsilon": 1e-5, "solver": 1}
SHAPES = [(300, 16, 5), (60, 80, 4), (41, 40, 6), (90, 7, 30), (50, 12, 2)]
SPLITS = ("train", "test", "tune_train", "tune_validation")
Data = dict[str, tuple[np.ndarray, np.ndarray]]


def draw(rows: int, features: int, num_classes: int, seed: int = 0, tests: int = 80, validation: int = 40) -> Data:
    """Class means plus noise, hard enough for errors; the tuning splits are other draws, or parts of the train split."""
    rng = np.random.default_rng(seed)
    means, scales = rng.normal(size=(num_classes, features)), np.geomspace(3, 0.1, features)
    data = {}
    for split, size in zip(SPLITS, (rows, tests, (rows * 4) // 5, validation), strict=True):
        labels = np.concatenate([np.arange(2), rng.integers(num_classes, size=size - 2)])
        noise = 2.5 * rng.normal(size=(size, features))
        data[split] = (((means[labels] + noise) * scales + 1).astype(np.float32), labels)
    return data


def part(data: Data, split: str) -> FeatureSet:
    x, y = data[split]
    return FeatureSet(labels=y, rows=np.arange(len(y)), representations={"cls": torch.from_numpy(x)})


def outcome_of(protocol: Ridge, data: Data, num_classes: int) -> Outcome:
    tuning = Tuning(part(data, "tune_train"), part(data, "tune_validation")) if protocol.tunes else None
    sets = part(data, "train"), part(data, "test")
    (found,) = protocol.evaluate(*sets, "cls", num_classes, protocol.cells(), tuning)
    return found


def standardised(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    by = by.astype(np.float64)
    return np.c_[(x - by.mean(axis=0)) / (by.std(axis=0) + 1e-5), np.full(len(x), 100.0)]


def peer_scores(data: Data, num_classes: int, l2: float, train: str = "train", test: str = "test") -> np.ndarray:
    """scikit-learn's Ridge on targets ±1, with the bias as a feature, so that it is penalised as ours is."""
    (x, y), (queries, _) = data[train], data[test]
    model = SklearnRidge(alpha=l2, fit_intercept=False, solver="cholesky")
    return model.fit(standardised(x, x), 2 * np.eye(num_classes)[y] - 1).predict(standardised(queries, x))


def chosen_by_brute_force(data: Data, num_classes: int, grid: tuple[float, ...]) -> tuple[float, float]:
    """The largest penalty of the highest accuracy on the validation split, one fit each, and that accuracy."""
    labels = data["tune_validation"][1]
    found = {
        l2: np.mean(peer_scores(data, num_classes, l2, "tune_train", "tune_validation").argmax(axis=1) == labels)
        for l2 in grid
    }
    best = max(found.values())
    return max(l2 for l2 in grid if found[l2] == best), best


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", [0.25, 64.0, 1024.0])
def test_a_given_penalty_is_scikit_learns_ridge(shape: tuple[int, int, int], l2: float) -> None:
    data = draw(*shape)
    found = outcome_of(Ridge(l2=l2), data, shape[2])
    expected = np.argsort(-peer_scores(data, shape[2], l2), axis=1, kind="stable")[:, :5]
    assert found.ranking.tolist() == expected.tolist()
    assert found.ranking.dtype == np.int64
    assert found.details["l2"] == l2


def test_it_is_scikit_learns_ridge_classifier() -> None:
    for shape in ((300, 16, 5), (50, 12, 2)):
        data = draw(*shape)
        (x, y), (queries, _) = data["train"], data["test"]
        peer = RidgeClassifier(alpha=1024.0, fit_intercept=False).fit(standardised(x, x), y)
        assert (
            outcome_of(Ridge(), data, shape[2]).predictions.tolist() == peer.predict(standardised(queries, x)).tolist()
        )


@pytest.mark.parametrize("l2", ["paper", "loo", 3.0])
def test_it_is_few_shot_with_every_image_as_support(l2: Any) -> None:
    """The same solver: as many shots as the largest class has make the train split the support set."""
    data = draw(120, 20, 4)
    few = FewShot(l2=l2, shots=(120,), seeds=(0,))
    (expected,) = few.evaluate(part(data, "train"), part(data, "test"), "cls", 4, few.cells())
    found = outcome_of(Ridge(l2=l2), data, 4)
    assert found.ranking.tolist() == expected.ranking.tolist()
    assert found.details == pytest.approx(expected.details, rel=1e-9)
    assert (found.n_support, found.n_test, found.cell) == (120, 80, Cell(0, 0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.integers(2, 60))
def test_the_choice_on_validation_is_that_of_brute_force(
    seed: int, shape: tuple[int, int, int], validation: int
) -> None:
    """Also with fewer validation images than classes."""
    data = draw(*shape, seed=seed, validation=validation)
    grid = tuple(4.0**power for power in range(-3, 9))
    found = outcome_of(Ridge(l2="validation", grid=grid), data, shape[2])
    l2, best = chosen_by_brute_force(data, shape[2], grid)
    assert (found.details["l2"], found.details["validation_accuracy"]) == (l2, best)
    assert found.predictions.tolist() == peer_scores(data, shape[2], l2).argmax(axis=1).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_generalised_cross_validation_chooses_the_least_of_its_formula(shape: tuple[int, int, int]) -> None:
    data = draw(*shape)
    (x, y), _ = data["train"], data["test"]
    z, targets = standardised(x, x), 2 * np.eye(shape[2])[y] - 1
    errors = {}
    for l2 in GRID:
        hat = z @ np.linalg.solve(z.T @ z + l2 * np.eye(z.shape[1]), z.T)
        errors[l2] = np.mean((targets - hat @ targets) ** 2) / (1 - np.trace(hat) / len(z)) ** 2
    found = outcome_of(Ridge(l2="gcv"), data, shape[2])
    best = min(errors, key=lambda l2: errors[l2])
    assert errors[found.details["l2"]] == pytest.approx(errors[best], rel=1e-6)
    assert found.details["gcv_error"] == pytest.approx(errors[best], rel=1e-6)
    assert found.details["l2_on_edge"] is (found.details["l2"] in (GRID[0], GRID[-1]))
    assert found.predictions.tolist() == peer_scores(data, shape[2], found.details["l2"]).argmax(axis=1).tolist()
    assert json.loads(json.dumps(found.details)) == found.details


def test_a_train_split_of_which_some_rows_have_no_features_is_refused() -> None:
    data = draw(100, 12, 5)
    x, y = data["train"]
    few = FeatureSet(y, np.arange(90), {"cls": torch.from_numpy(x[:90])})
    with pytest.raises(UsageError, match="10 of the 100 train rows have no features"):
        list(Ridge().evaluate(few, part(data, "test"), "cls", 5, Ridge().cells()))


def test_tuning_is_recorded() -> None:
    found = outcome_of(Ridge(l2="validation"), draw(300, 16, 5), 5)
    assert list(found.details) == [
        *("l2", "validation_accuracy", "n_validation", "l2_on_edge", "n_per_class_min", "n_per_class_max")
    ]
    assert found.details["l2"] in GRID
    assert found.details["n_validation"] == 40
    assert found.n_support == 300, "the last fit is to the whole train split"
    assert json.loads(json.dumps(found.details)) == found.details, "JSON values only"


@pytest.mark.parametrize("l2", ["paper", "loo", "gcv", "validation"])
def test_no_test_label_chooses_anything(l2: Any) -> None:
    data = draw(200, 16, 5)
    honest = outcome_of(Ridge(l2=l2), data, 5)
    x, y = data["test"]
    shuffled = outcome_of(Ridge(l2=l2), data | {"test": (x, np.random.default_rng(1).permutation(y))}, 5)
    assert (y != np.random.default_rng(1).permutation(y)).any()
    assert shuffled.details == honest.details
    assert shuffled.ranking.tolist() == honest.ranking.tolist()


def test_validation_labels_do_choose() -> None:
    """The counterpart: with the validation labels moved, another penalty is taken."""
    data = draw(200, 16, 5)
    x, y = data["tune_validation"]
    honest = outcome_of(Ridge(l2="validation"), data, 5).details
    moved = outcome_of(Ridge(l2="validation"), data | {"tune_validation": (x, (y + 1) % 5)}, 5).details
    assert moved["validation_accuracy"] < honest["validation_accuracy"]
    assert moved["l2"] != honest["l2"]


def test_of_equal_penalties_the_largest_is_taken_and_the_edge_is_warned_of() -> None:
    labels = np.repeat(np.arange(3), 8)
    x = np.repeat(np.eye(3, dtype=np.float32) * 100, 8, axis=0)
    x += np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    data = dict.fromkeys(SPLITS, (x, labels))
    found = outcome_of(Ridge(l2="validation", grid=(4, 1, 2)), data, 3)
    assert (found.details["l2"], found.details["validation_accuracy"]) == (4, 1)
    assert found.details["l2_on_edge"] is True
    assert found.warnings == (
        "the validation split chose the largest l2 of the grid, 4: a value beyond it may be better",
    )
    single = outcome_of(Ridge(l2="validation", grid=(4,)), data, 3)
    assert (single.details["l2_on_edge"], single.warnings) == (False, ())


def test_classes_without_a_train_image_are_warned_of_and_never_predicted() -> None:
    data = draw(100, 12, 5)
    x, y = data["train"]
    few = data | {"train": (x[y < 3], y[y < 3])}
    line = "2 of 5 classes have no train image (the first is class 3): their test images cannot be recognised"
    found = outcome_of(Ridge(), few, 5)
    assert found.warnings == (line,)
    assert Ridge().check(few["train"][1], 5) == [line]
    assert Ridge().check(y, 5) == []
    assert found.predictions.max() < 3
    assert (found.details["n_per_class_min"], found.n_support) == (0, int((y < 3).sum()))
    assert found.details["n_per_class_max"] == np.bincount(y[y < 3]).max()
    assert found.predictions.tolist() == peer_scores(few, 5, 1024.0).argmax(axis=1).tolist()


def test_a_tuning_split_may_lack_classes() -> None:
    data = draw(100, 12, 5)
    x, y = data["tune_train"]
    found = outcome_of(Ridge(l2="validation", grid=(1, 64, 4096)), data | {"tune_train": (x[y < 2], y[y < 2])}, 5)
    assert found.details["l2"] in (1, 64, 4096)
    assert found.warnings == () or "of the grid" in found.warnings[0]


@pytest.mark.parametrize("split", ["tune_train", "tune_validation"])
def test_a_tuning_split_of_one_class_is_an_error(split: str) -> None:
    data = draw(100, 12, 5)
    x, y = data[split]
    with pytest.raises(
        DataError, match=f"the {split} split has images of class 3 alone, so it cannot choose l2; --l2 loo"
    ):
        outcome_of(Ridge(l2="validation"), data | {split: (x[y == 3], y[y == 3])}, 5)


def test_a_tuning_split_that_is_missing_is_an_error() -> None:
    data, protocol = draw(100, 12, 5), Ridge(l2="validation")
    with pytest.raises(UsageError, match=r"the task names none .*--l2 loo chooses without them") as caught:
        list(protocol.evaluate(part(data, "train"), part(data, "test"), "cls", 5, protocol.cells()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", SPLITS)
def test_broken_features_and_labels_are_named_with_their_split(split: str) -> None:
    data = draw(100, 12, 5)
    x, y = data[split]
    broken = x.copy()
    broken[3, 2] = np.nan
    with pytest.raises(DataError, match=f"1 of {len(x)} {split} rows have NaN or infinite features"):
        outcome_of(Ridge(l2="validation"), data | {split: (broken, y)}, 5)
    with pytest.raises(DataError, match=f"the {split} split has label 4, which is none of the 4 classes"):
        outcome_of(Ridge(l2="validation"), label_4_only_in(split, data), 4)
    with pytest.raises(DataError, match=f"the {split} split has no image"):
        outcome_of(Ridge(l2="validation"), data | {split: (x[:0], y[:0])}, 5)


def label_4_only_in(split: str, data: Data) -> Data:
    return {name: (x, y if name == split else np.where(y == 4, 0, y)) for name, (x, y) in data.items()}


def test_only_the_rows_that_have_features_are_read() -> None:
    """Test and tuning rows may be a part of their split; the train split may not."""
    data, protocol = draw(100, 12, 5), Ridge(l2="validation")
    rows = np.array([0, 1, 5, 9, 33])

    def some(split: str) -> FeatureSet:
        x, y = data[split]
        return FeatureSet(labels=y, rows=rows, representations={"cls": torch.from_numpy(x[rows])})

    less = {split: (x[rows], y[rows]) for split, (x, y) in data.items() if split != "train"}
    tuning = Tuning(some("tune_train"), some("tune_validation"))
    (found,) = protocol.evaluate(part(data, "train"), some("test"), "cls", 5, protocol.cells(), tuning)
    expected = outcome_of(protocol, data | less, 5)
    assert found.details == expected.details
    assert found.ranking.tolist() == expected.ranking.tolist()
    with pytest.raises(UsageError, match="have no features"):
        list(protocol.evaluate(some("train"), some("test"), "cls", 5, protocol.cells(), tuning))


def test_labels_may_be_read_only_and_constant_features_are_a_guess() -> None:
    data = draw(60, 6, 3)
    for x, y in data.values():
        x[:] = 1
        y.flags.writeable = False
    found = outcome_of(Ridge(l2="validation"), data, 3)
    assert "every feature is constant over the train split: the score is a guess" in found.warnings
    assert len(set(found.predictions.tolist())) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from(["paper", "validation"]))
def test_the_order_of_train_and_validation_rows_does_not_matter(
    seed: int, shape: tuple[int, int, int], l2: Any
) -> None:
    data, rng = draw(*shape, seed=seed), np.random.default_rng(seed)
    moved = {}
    for split, (x, y) in data.items():
        order = np.arange(len(y)) if split == "test" else rng.permutation(len(y))
        moved[split] = (x[order], y[order])
    expected, found = (outcome_of(Ridge(l2=l2), part, shape[2]) for part in (data, moved))
    assert found.details == expected.details
    assert found.ranking.tolist() == expected.ranking.tolist()


def test_it_has_one_cell_and_takes_every_row() -> None:
    protocol = Ridge()
    assert protocol.cells() == [Cell(shot=0, seed=0)]
    labels = np.array([0, 1, 1, 2])
    assert protocol.train_rows(labels, 3, protocol.cells()).tolist() == [0, 1, 2, 3]
    assert protocol.train_rows(labels, 3, []).tolist() == []
    data = draw(60, 6, 3)
    assert list(protocol.evaluate(part(data, "train"), part(data, "test"), "cls", 3, [])) == []
    with pytest.raises(DataError, match="label 3, which is none of the 3 classes"):
        protocol.check(np.array([0, 3]), 3)


def test_the_registry_finds_it() -> None:
    assert PROTOCOLS.load("ridge") is Ridge
    assert Ridge.name == "ridge"
    assert "--tune" in Ridge.summary


def test_parameters_are_the_identity() -> None:
    assert Ridge().parameters() == {"l2": 1024.0, **SOLVER}
    assert Ridge(l2=1024).parameters() == Ridge(grid=(1, 2), criterion="accuracy").parameters() == Ridge().parameters()
    grid = list(GRID)
    expected = {
        Ridge(l2="loo"): {"l2": "loo", "criterion": "squared_error", "grid": grid, **SOLVER},
        Ridge(l2="loo", criterion="accuracy"): {"l2": "loo", "criterion": "accuracy", "grid": grid, **SOLVER},
        Ridge(l2="validation"): {"l2": "validation", "criterion": "accuracy", "grid": grid, **SOLVER},
        Ridge(l2="validation", grid=(4, 2)): {
            "l2": "validation",
            "criterion": "accuracy",
            "grid": [2.0, 4.0],
            **SOLVER,
        },
        Ridge(l2="gcv"): {"l2": "gcv", "grid": grid, **SOLVER},
        Ridge(l2=7): {"l2": 7.0, **SOLVER},
    }
    for protocol, parameters in expected.items():
        assert protocol.parameters() == parameters
        assert json.loads(json.dumps(parameters)) == parameters
    assert len({json.dumps(parameters) for parameters in expected.values()}) == len(expected)


@pytest.mark.parametrize(
    ("protocol", "label"),
    [
        (Ridge(), "l2 = 1024"),
        (Ridge(l2="loo"), "l2 by leave-one-out error"),
        (Ridge(l2="loo", criterion="accuracy"), "l2 by leave-one-out accuracy"),
        (Ridge(l2="gcv", criterion="accuracy"), "l2 by generalised cross-validation"),
        (Ridge(l2="gcv", grid=(1, 9)), "l2 by generalised cross-validation from 2 values, 1 to 9"),
        (Ridge(l2="validation"), "l2 chosen on validation"),
        (Ridge(l2="validation", grid=(1, 9)), "l2 chosen on validation from 2 values, 1 to 9"),
    ],
)
def test_labels_for_the_title_of_a_table(protocol: Ridge, label: str) -> None:
    assert protocol.label() == label


@pytest.mark.parametrize(
    ("options", "expected", "tunes"),
    [
        ({}, Ridge(), False),
        ({"tune": False, "l2": "3"}, Ridge(l2=3.0), False),
        ({"tune": True}, Ridge(l2="validation"), True),
        ({"tune": " True "}, Ridge(l2="validation"), True),
        ({"tune": "yes", "l2": "validation", "grid": "8,2"}, Ridge(l2="validation", grid=(2.0, 8.0)), True),
        ({"tune": "0", "l2": "loo"}, Ridge(l2="loo"), False),
        ({"l2": "validation"}, Ridge(l2="validation"), True),
    ],
)
def test_options_from_a_command_line_or_a_file(options: dict[str, Any], expected: Ridge, tunes: bool) -> None:
    given = dict(options)
    found = Ridge.from_options(options)
    assert (found, hash(found), found.tunes) == (expected, hash(expected), tunes)
    assert options == given, "the caller's options are left alone"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": True, "l2": "loo"}, "--tune and l2 = loo both say how l2 is found: give one of them"),
        ({"tune": True, "l2": 1024}, "--tune and l2 = 1024 both say"),
        ({"tune": True, "l2": "paper"}, "--tune and l2 = paper both say"),
        ({"tune": "maybe"}, "tune must be true or false, got 'maybe'"),
        ({"tune": None}, "tune must be true or false, got None"),
        ({"l2": "validaton"}, "l2 must be 'paper', 'loo', 'gcv', 'validation' or a number above 0"),
        ({"l2": 0}, "got 0"),
        ({"l2": None}, "got None"),
        ({"l2": np.array([1.0, 2.0])}, "l2 must be"),
        ({"grid": "1,1.0"}, "grid has a value twice: 1.0, 1.0"),
        ({"grid": ""}, "grid is empty"),
        ({"criterion": "eror"}, "unknown criterion of protocol 'ridge': 'eror'"),
        (
            {"shots": 5},
            "unknown option of protocol 'ridge': 'shots'; choose from criterion, grid, l2, tune (it learns from",
        ),
        ({"tuned": True}, "did you mean 'tune'?"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ridge.from_options(options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("l2", ["paper", "loo", "gcv", "validation"])
def test_a_gpu_gives_the_answer_of_the_cpu(l2: Any) -> None:
    data, protocol = draw(300, 16, 5), Ridge(l2=l2)
    expected = outcome_of(protocol, data, 5)
    train, test, one, other = (
        FeatureSet(
            part(data, split).labels, part(data, split).rows, {"cls": part(data, split).representations["cls"].cuda()}
        )
        for split in SPLITS
    )
    (found,) = protocol.evaluate(train, test, "cls", 5, protocol.cells(), Tuning(one, other))
    assert found.details["l2"] == expected.details["l2"]
    assert found.ranking.tolist() == expected.ranking.tolist()
