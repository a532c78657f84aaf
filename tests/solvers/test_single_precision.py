from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor

from vitbench.solvers import leave_one_out as exact
from vitbench.solvers import ridge, single_precision
from vitbench.solvers.single_precision import by_elimination, select

GRID = tuple(2.0**power for power in range(-9, 21))


def draw(rows: int, features: int, num_classes: int, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % num_classes
    means = torch.randn(num_classes, features, generator=rng)
    x = (means[labels] + noise * torch.randn(rows, features, generator=rng)) * torch.logspace(0.5, -1, features) + 1
    return x, labels


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(300, 40, 6), (100, 64, 10), (90, 80, 3), (500, 20, 30)]),
    st.sampled_from([0.5, 2.0, 6.0]),
    st.sampled_from([GRID, tuple(1.1**power for power in range(-60, 100, 4)), tuple(10.0**p for p in range(-20, 9))]),
)
def test_a_choice_by_elimination_is_that_of_float64(
    seed: int, shape: tuple[int, int, int], noise: float, grid: tuple[float, ...]
) -> None:
    """Or none: then the curve is flat, or the penalties are below what float32 sees."""
    x, labels = draw(*shape, seed=seed, noise=noise)
    problem = ridge.prepare(x, labels, shape[2])
    found = by_elimination(problem, grid)
    expected = exact.choose(ridge.decompose(problem), grid)
    if found is not None:
        choice, model = found
        assert choice.l2 == expected.l2
        assert choice.squared_error == pytest.approx(expected.squared_error, rel=1e-4)
        assert choice.accuracy == pytest.approx(expected.accuracy, abs=3 / len(x))
        torch.testing.assert_close(model.weights, ridge.fit(x, labels, shape[2], choice.l2).weights)


def test_float32_is_in_use_and_agrees_with_scikit_learn() -> None:
    """The test above would hold of a function that always gives up."""
    for seed in range(5):
        x, labels = draw(600, 300, 12, seed, noise=2.0)
        problem = ridge.prepare(x, labels, 12)
        found = by_elimination(problem, GRID)
        assert found is not None
        z = torch.cat([problem.z, torch.full((600, 1), 100.0)], dim=1).numpy()
        peer = RidgeClassifierCV(alphas=GRID, fit_intercept=False).fit(z, labels.numpy())
        assert found[0].l2 == peer.alpha_
        assert select(problem, GRID)[0] == found[0]


def test_penalties_that_float32_cannot_tell_apart_are_left_to_float64() -> None:
    x, labels = draw(300, 40, 6)
    problem = ridge.prepare(x, labels, 6)
    best = exact.choose(ridge.decompose(problem), GRID).l2
    close = tuple(best * (1 + step * 1e-6) for step in range(4))
    assert by_elimination(problem, close) is None
    assert select(problem, close)[0] == exact.choose(ridge.decompose(problem), close)


def test_eigenvalues_that_float32_does_not_see_are_left_to_float64() -> None:
    """Two features are equal to seven digits: their difference is what float32 cannot see, and a tiny penalty would use."""
    x, labels = draw(300, 40, 6)
    x = x.double()
    x[:, 1] = x[:, 0] + 1e-7 * torch.randn(300, generator=torch.Generator().manual_seed(1))
    problem = ridge.prepare(x, labels, 6)
    grid = (1e-14, 1e-13)
    assert by_elimination(problem, grid) is None
    assert select(problem, grid)[0] == exact.choose(ridge.decompose(problem), grid)


def test_what_float32_is_not_meant_for_is_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(single_precision, "by_elimination", refuse)
    x, labels = draw(300, 40, 6)
    assert select(ridge.prepare(x, labels, 6), GRID)[0].l2 in GRID, "few features"
    x, labels = draw(300, 280, 6)
    problem = ridge.prepare(x, labels, 6)
    assert select(problem, GRID, "accuracy")[0] == exact.choose(ridge.decompose(problem), GRID, "accuracy")
    assert select(ridge.prepare(x, labels, 6, primal=False), GRID)[0].l2 in GRID, "the dual"


def test_reduced_precision_products_are_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert by_elimination(ridge.prepare(*draw(300, 40, 6), 6), GRID) is None


def with_rows_of_their_own(seed: int, alone: int) -> tuple[Tensor, Tensor]:
    """500 rows of 260 features, of which the last `alone` are nonzero in one row each, none of those that are sampled evenly."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (500,), generator=rng)
    x = torch.zeros(500, 260)
    shared = 260 - alone
    x[:, :shared] = torch.randn(3, shared, generator=rng)[labels] + 0.01 * torch.randn(500, shared, generator=rng)
    sampled = set(torch.linspace(0, 499, 64).long().tolist())
    others = [row for row in range(500) if row not in sampled]
    x[others[:alone], torch.arange(shared, 260)] = 1.0
    return x, labels


@pytest.mark.parametrize("alone", [5, 100, 252])
@pytest.mark.parametrize("least", [-16, -9, 0])
def test_rows_that_decide_a_direction_alone_do_not_mislead_it(alone: int, least: int) -> None:
    """Their leverage is all but 1, and what float32 leaves of 1 minus it says nothing."""
    grid = tuple(2.0**power for power in range(least, least + 20))
    for seed in range(4):
        problem = ridge.prepare(*with_rows_of_their_own(seed, alone), 3)
        found = by_elimination(problem, grid)
        if found is not None:
            expected = exact.choose(ridge.decompose(problem), grid)
            assert found[0].l2 == expected.l2
            assert found[0].squared_error == pytest.approx(expected.squared_error, rel=0.01)


def test_a_process_that_asked_for_tf32_by_torchs_newer_names_gets_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> str:
        raise RuntimeError("mixed use of the old and the new precision settings")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    x, labels = draw(600, 300, 12, noise=2.0)
    problem = ridge.prepare(x, labels, 12)
    assert by_elimination(problem, GRID) is None
    choice, model = select(problem, GRID)
    assert choice.l2 in GRID
    assert model.predict(x).shape == (600,)


def few_shots(seed: int, classes: int, shot: int, features: int) -> tuple[Tensor, Tensor]:
    """Many classes with few rows each, of features with a decaying spectrum: the left-out errors of large penalties are near."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(shot)
    means = 0.25 * torch.randn(classes, features, generator=rng)
    noise = torch.randn(classes * shot, features, generator=rng)
    return (means[labels] + noise) * torch.arange(1, features + 1) ** -0.5, labels


def adversarial(kind: str, seed: int) -> tuple[Tensor, Tensor, int]:
    """Rows, labels and the number of classes."""
    rng = torch.Generator().manual_seed(seed)
    if kind == "rows of their own":
        return *with_rows_of_their_own(seed, 60), 3
    if kind == "duplicates":
        x, labels = draw(150, 256, 5, seed, noise=3.0)
        return x.repeat(3, 1), labels.repeat(3), 5
    if kind == "duplicates that disagree":
        x, labels = draw(200, 256, 5, seed, noise=3.0)
        return x.repeat(2, 1), torch.cat([labels, (labels + 1) % 5]), 5
    if kind == "labels at random":
        return torch.randn(600, 260, generator=rng), torch.randint(0, 4, (600,), generator=rng), 4
    if kind == "nearly singular":
        x, labels = draw(500, 256, 5, seed, noise=3.0)
        return x[:, :20] @ torch.randn(20, 256, generator=rng) + 1e-4 * x, labels, 5
    if kind == "barely primal":
        return *draw(258 + seed % 2, 256, 5, seed, noise=3.0), 5
    if kind == "one row each":
        return *few_shots(seed, 300, 1, 256), 300
    return *few_shots(seed, 200, 3, 256), 200


GRIDS = {
    "powers of two": GRID,
    "tiny and huge": tuple(10.0**power for power in range(-14, 16)),
    "close": tuple(64 * 1.05**step for step in range(20)),
    "closer": tuple(64 * 1.0001**step for step in range(20)),
    "nearly the same": tuple(64 * (1 + 1e-9 * step) for step in range(5)),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "kind",
    [
        "rows of their own",
        "duplicates",
        "duplicates that disagree",
        "labels at random",
        "nearly singular",
        "barely primal",
        "one row each",
        "few shots",
    ],
)
def test_the_choice_is_that_of_the_whole_curve_in_float64(kind: str, grid: str) -> None:
    """Of penalties whose errors are equal but for float64's rounding, any."""
    for seed in range(3):
        x, labels, num_classes = adversarial(kind, seed)
        problem = ridge.prepare(x, labels, num_classes)
        assert problem.primal
        choice, model = select(problem, GRIDS[grid])
        curve = exact.leave_one_out(ridge.decompose(problem), GRIDS[grid])
        errors = dict(zip(curve.grid, curve.squared_error, strict=True))
        best = curve.grid[curve.best("squared_error")]
        assert choice.l2 == best or errors[choice.l2] == pytest.approx(errors[best], rel=1e-12)
        assert choice.squared_error == pytest.approx(errors[choice.l2], rel=0.01)
        if choice.l2 > 1e4 * problem.noise:  # else no two ways of solving agree
            torch.testing.assert_close(model.weights, ridge.fit(x, labels, num_classes, choice.l2).weights)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How many contenders each call of a function of the module, which goes on as before, was given."""
    calls: list[int] = []
    original = getattr(single_precision, name)

    def counting(*arguments: Sized) -> object:
        calls.append(len(arguments[2] if name == "_decided" else arguments[0]))
        return original(*arguments)

    monkeypatch.setattr(single_precision, name, counting)
    return calls


def test_contenders_that_float32_cannot_tell_apart_are_told_apart_without_eigenvalues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By float32's energies and float64's weights, whose error is far smaller."""
    calls = counted(monkeypatch, "_decided")
    step = 2.0**0.25
    grid = tuple(step**power for power in range(20, 80))
    for seed in range(5):
        x, labels = few_shots(seed, 300, 5, 256)
        problem = ridge.prepare(x, labels, 300)
        found = by_elimination(problem, grid)
        expected = exact.choose(ridge.decompose(problem), grid)
        if found is not None:
            assert found[0].l2 == expected.l2
            assert found[0].squared_error == pytest.approx(expected.squared_error, rel=1e-6)
            assert found[0].accuracy == pytest.approx(expected.accuracy, abs=2 / len(x))
    assert any(1 < count <= single_precision._most(problem) for count in calls)


def test_what_the_weights_leave_open_is_settled_by_residuals_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_precision, "_by_weights", lambda *arguments: (arguments[4], torch.inf))
    calls = counted(monkeypatch, "_decided")
    for seed in range(5):
        problem = ridge.prepare(*few_shots(seed, 300, 5, 256), 300)
        grid = tuple(2.0 ** (power / 4) for power in range(20, 80))
        found = by_elimination(problem, grid)
        expected = exact.choose(ridge.decompose(problem), grid)
        if found is not None:
            assert found[0].l2 == expected.l2
            assert found[0].squared_error == pytest.approx(expected.squared_error, rel=1e-12 if calls else 1e-4)
            assert found[0].accuracy == pytest.approx(expected.accuracy, abs=2 / len(problem.z))
    assert calls


def test_float32_that_was_worse_than_assumed_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors of the contenders in float64 are a measurement on all rows."""
    original = single_precision._decided

    def doctored(problem: Any, grid: Any, contenders: Any, off: Any, first: Any) -> object:
        wrong = {item: replace(one, error=one.error * 1.01) for item, one in contenders.items()}
        refuted.append(original(problem, grid, wrong, off, first) is None)
        return original(problem, grid, contenders, off, first)

    refuted: list[bool] = []
    monkeypatch.setattr(single_precision, "_decided", doctored)
    for seed in range(5):
        problem = ridge.prepare(*few_shots(seed, 300, 5, 256), 300)
        by_elimination(problem, tuple(2.0 ** (power / 4) for power in range(20, 80)))
    assert refuted
    assert all(refuted)
