from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor

from vitbench.solvers import leave_one_out as exact
from vitbench.solvers import ridge, single_precision
from vitbench.solvers.single_precision import in_float32, select

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
def test_a_choice_in_float32_is_that_of_float64(
    seed: int, shape: tuple[int, int, int], noise: float, grid: tuple[float, ...]
) -> None:
    """Or none: then the curve is flat, or the penalties are below what float32 sees."""
    x, labels = draw(*shape, seed=seed, noise=noise)
    problem = ridge.prepare(x, labels, shape[2])
    found = in_float32(problem, grid)
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
        found = in_float32(problem, GRID)
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
    assert in_float32(problem, close) is None
    assert select(problem, close)[0] == exact.choose(ridge.decompose(problem), close)


def test_eigenvalues_that_float32_does_not_see_are_left_to_float64() -> None:
    """Two features are equal to seven digits: their difference is what float32 cannot see, and a tiny penalty would use."""
    x, labels = draw(300, 40, 6)
    x = x.double()
    x[:, 1] = x[:, 0] + 1e-7 * torch.randn(300, generator=torch.Generator().manual_seed(1))
    problem = ridge.prepare(x, labels, 6)
    grid = (1e-14, 1e-13)
    assert in_float32(problem, grid) is None
    assert select(problem, grid)[0] == exact.choose(ridge.decompose(problem), grid)


def test_what_float32_is_not_meant_for_is_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(single_precision, "in_float32", refuse)
    x, labels = draw(300, 40, 6)
    assert select(ridge.prepare(x, labels, 6), GRID)[0].l2 in GRID, "few features"
    x, labels = draw(300, 280, 6)
    problem = ridge.prepare(x, labels, 6)
    assert select(problem, GRID, "accuracy")[0] == exact.choose(ridge.decompose(problem), GRID, "accuracy")
    assert select(ridge.prepare(x, labels, 6, primal=False), GRID)[0].l2 in GRID, "the dual"


def test_reduced_precision_products_are_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert in_float32(ridge.prepare(*draw(300, 40, 6), 6), GRID) is None


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
        found = in_float32(problem, grid)
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
    assert in_float32(problem, GRID) is None
    choice, model = select(problem, GRID)
    assert choice.l2 in GRID
    assert model.predict(x).shape == (600,)
