from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitbench.solvers import moments as module
from vitbench.solvers import ridge
from vitbench.solvers.moments import Moments


def draw(rows: int, features: int, num_classes: int, seed: int = 0, mean: float = 3.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (rows,), generator=rng)
    means = torch.randn(num_classes, features, generator=rng)
    x = (means[labels] + torch.randn(rows, features, generator=rng)) * torch.logspace(1, -1, features) + mean
    return x, labels


def of(x: Tensor, labels: Tensor, num_classes: int) -> Moments:
    return Moments(x.shape[1], num_classes).add(x, labels)


def assert_same(found: Moments, expected: Moments, tolerance: float = 1e-12) -> None:
    assert found.counts.tolist() == expected.counts.tolist()
    scales = expected.standardisation()
    torch.testing.assert_close(found.mean, expected.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.standardisation().scale, scales.scale, rtol=tolerance, atol=0)
    size = max(1, found.size)
    torch.testing.assert_close(found.gram(scales), expected.gram(scales), rtol=0, atol=tolerance * size)
    torch.testing.assert_close(found.cross(scales), expected.cross(scales), rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("features", [1, 7, 300])
def test_moments_are_the_products_of_the_standardised_rows(features: int) -> None:
    """300 features are more than one panel."""
    x, labels = draw(50, features, 4)
    found = of(x, labels, 4)
    standardisation = found.standardisation()
    expected = ridge.standardise(x)
    torch.testing.assert_close(standardisation.mean, expected.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(standardisation.scale, expected.scale, rtol=1e-13, atol=0)
    z, y = expected(x), 2 * torch.nn.functional.one_hot(labels, 4).double() - 1
    torch.testing.assert_close(found.gram(standardisation), z.T @ z, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.cross(standardisation), z.T @ y, rtol=0, atol=1e-11)
    assert torch.equal(found.gram(standardisation), found.gram(standardisation).T)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from([0.0, 3.0, 1e6]),
)
def test_parts_in_any_order_and_merged_give_the_moments_of_the_whole(
    seed: int, rows: int, cuts: list[int], mean: float
) -> None:
    x, labels = draw(rows, 5, 3, seed=seed, mean=mean)
    expected = of(x, labels, 3)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    pieces = [order[start:stop] for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), rows], strict=True)]
    added, merged = Moments(5, 3), Moments(5, 3)
    for piece in pieces:
        added.add(x[piece], labels[piece])
        merged.merge(of(x[piece], labels[piece], 3))
    if rows > 1:
        for found in (added, merged):
            assert_same(found, expected, 1e-9 if mean > 10 else 1e-12)


def test_merging_leaves_the_other_as_it_was() -> None:
    x, labels = draw(20, 4, 3)
    other = of(x[:10], labels[:10], 3)
    of(x[10:], labels[10:], 3).merge(other)
    assert_same(other, of(x[:10], labels[:10], 3))


@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_blocks_of_any_size_give_the_same_moments(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = draw(30, 9, 4)
    expected = of(x, labels, 4)
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "PANEL", 4)
    assert_same(of(x, labels, 4), expected)


def test_a_large_mean_does_not_cancel() -> None:
    """X'X - Nμμ' would be wrong by 1e16 · 1e-16 here, which is all of it."""
    x, labels = draw(200, 6, 3, mean=0.0)
    x = x.double()
    parts = Moments(6, 3)
    for rows in torch.arange(200).split(7):
        parts.add(x[rows] + 1e8, labels[rows])
    expected = of(x, labels, 3)
    scales = expected.standardisation()
    torch.testing.assert_close(parts.standardisation().scale, scales.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.gram(scales), expected.gram(scales), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.1, -3.0, 1e8])
def test_a_feature_that_is_constant_over_all_parts_is_exactly_nothing(value: float) -> None:
    x, labels = draw(60, 5, 3)
    x = x.double()
    x[:, 2] = value
    parts = Moments(5, 3)
    for rows in torch.arange(60).split(7):
        parts.add(x[rows], labels[rows])
    standardisation = parts.standardisation()
    assert torch.isinf(standardisation.scale).tolist() == [False, False, True, False, False]
    assert (parts.gram(standardisation)[2] == 0).all()
    assert (parts.cross(standardisation)[2] == 0).all()


@pytest.mark.parametrize("l2", [2.0**-9, 1.0, 1024.0, 2.0**20])
def test_a_streamed_solution_is_that_of_the_rows_in_memory(l2: float) -> None:
    x, labels = draw(400, 30, 6)
    parts = Moments(30, 6)
    for rows in torch.arange(400).split(33):
        parts.add(x[rows], labels[rows])
    expected = ridge.fit(x, labels, 6, l2)
    found = ridge.solve(ridge.summarised(parts), l2)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-9, atol=1e-12)
    z = expected.standardisation(x)
    y = 2 * np.eye(6)[labels.numpy()] - 1
    textbook = np.linalg.solve((z.T @ z + l2 * torch.eye(30)).numpy(), z.numpy().T @ y)
    np.testing.assert_allclose(found.weights[:-1].numpy(), textbook, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_dtype_is_read_as_its_float64_value(dtype: torch.dtype) -> None:
    x, labels = draw(40, 6, 3)
    assert_same(of(x.to(dtype), labels, 3), of(x.to(dtype).double(), labels, 3), 1e-15)


def test_no_rows_change_nothing() -> None:
    x, labels = draw(10, 4, 3)
    found = of(x, labels, 3).add(x[:0], labels[:0]).merge(Moments(4, 3))
    assert_same(found, of(x, labels, 3), 0)
    assert Moments(4, 3).size == 0
