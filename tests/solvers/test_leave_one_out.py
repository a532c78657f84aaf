from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitbench.solvers import ridge
from vitbench.solvers.leave_one_out import Criterion, choose, choose_streamed, generalised, leave_one_out
from vitbench.solvers.moments import Moments

GRID = tuple(2.0**power for power in range(-9, 21))


def draw(rows: int, features: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (rows,), generator=rng)
    means = torch.randn(num_classes, features, generator=rng)
    return (means[labels] + 2 * torch.randn(rows, features, generator=rng)) * torch.logspace(1, -1, features), labels


def in_parts(x: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(size), labels.split(size), strict=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 80), st.sampled_from(["squared_error", "accuracy"]))
def test_a_streamed_choice_is_that_of_the_rows_in_memory(seed: int, size: int, criterion: Criterion) -> None:
    x, labels = draw(80, 9, 4, seed)
    moments = Moments(9, 4)
    for some in in_parts(x, labels, size):
        moments.add(*some)
    spectrum = ridge.decompose(ridge.summarised(moments))
    expected = choose(ridge.decompose(ridge.prepare(x, labels, 4)), GRID, criterion)
    found = choose_streamed(spectrum, lambda: in_parts(x, labels, size), GRID, criterion)
    assert found.l2 == expected.l2
    assert found.accuracy == expected.accuracy
    assert found.squared_error == pytest.approx(expected.squared_error, rel=1e-9)


@pytest.mark.parametrize("shape", [(60, 7, 3), (24, 9, 2), (20, 30, 4), (20, 19, 4)])
def test_generalised_cross_validation_is_its_formula(shape: tuple[int, int, int]) -> None:
    """‖Y - HY‖²/(NK) / (1 - tr H/N)², with the hat matrix of the problem with the bias feature."""
    x, labels = draw(*shape)
    x64 = x.double().numpy()
    z = np.c_[(x64 - x64.mean(axis=0)) / (x64.std(axis=0) + 1e-5), np.full(len(x), 100.0)]
    y = 2 * np.eye(shape[2])[labels.numpy()] - 1
    for l2, found in zip(GRID, generalised(ridge.decompose(ridge.prepare(x, labels, shape[2])), GRID), strict=True):
        hat = z @ np.linalg.solve(z.T @ z + l2 * np.eye(z.shape[1]), z.T)
        expected = np.mean((y - hat @ y) ** 2) / (1 - np.trace(hat) / len(z)) ** 2
        assert found == pytest.approx(expected, rel=1e-6)


def test_generalised_cross_validation_is_leave_one_out_where_all_leverages_are_equal() -> None:
    """Rows and their negatives along the axes."""
    x = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    labels = torch.arange(12) % 3
    spectrum = ridge.decompose(ridge.prepare(x, labels, 3))
    assert generalised(spectrum, GRID) == pytest.approx(leave_one_out(spectrum, GRID).squared_error, rel=1e-9)


def test_generalised_cross_validation_needs_no_row_in_memory() -> None:
    x, labels = draw(80, 9, 4)
    summary = ridge.summarised(Moments(9, 4).add(x, labels))
    assert not len(summary.z)
    whole = ridge.decompose(ridge.prepare(x, labels, 4))
    assert generalised(ridge.decompose(summary), GRID) == pytest.approx(generalised(whole, GRID), rel=1e-10)


def test_few_penalties_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.solvers import leave_one_out as module

    x, labels = draw(400, 60, 10)
    spectrum = ridge.decompose(ridge.prepare(x, labels, 10))
    evaluated: list[int] = []
    original = module.evaluated

    def counting(*arguments: object) -> object:
        evaluated.append(arguments[2])  # type: ignore[arg-type]
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "evaluated", counting)
    curve = leave_one_out(spectrum, GRID)
    assert choose(spectrum, GRID).l2 == GRID[curve.best("squared_error")]
    assert len(evaluated) == len(set(evaluated))
    assert len(evaluated) <= 12
