from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitbench.solvers import classifier as module
from vitbench.solvers.classifier import RidgeClassifier, best_first
from vitbench.solvers.standardisation import Standardisation, standardise


def draw(rows: int, features: int, num_classes: int, seed: int, mean: float = 0.0) -> tuple[RidgeClassifier, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=rng) * torch.logspace(1, -1, features) + mean
    weights = torch.randn(features + 1, num_classes, generator=rng, dtype=torch.float64) / 100
    return RidgeClassifier(standardise(x), weights), x


def exact(model: RidgeClassifier, x: Tensor, count: int) -> Tensor:
    z = torch.cat([model.standardisation(x), torch.full((len(x), 1), 100.0, dtype=torch.float64)], dim=1)
    return best_first(z @ model.weights, count)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 300),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from([0.0, 5.0, 1e3]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_ranking_is_that_of_float64(
    seed: int, features: int, num_classes: int, count: int, mean: float, dtype: torch.dtype
) -> None:
    model, x = draw(30, features, num_classes, seed, mean)
    x = x.to(dtype)
    ranking, highest = model.ranked(x, count)
    scores = model.scores(x)
    assert ranking.tolist() == best_first(scores, count).tolist()
    assert model.predict(x).tolist() == best_first(scores, 1)[:, 0].tolist()
    torch.testing.assert_close(highest, scores.amax(dim=1), rtol=1e-4, atol=1e-3)


def test_scores_closer_than_float32_tells_are_told_apart() -> None:
    """Two classes whose scores differ by 1e-12: float32 alone would call every one of them a tie, or worse."""
    model, x = draw(50, 20, 3, 1)
    weights = model.weights.clone()
    weights[:, 2] = weights[:, 0]
    weights[-1, 2] += 1e-14
    close = RidgeClassifier(model.standardisation, weights)
    assert (close.predict(x) != 0).all()
    assert close.ranking(x, 3).tolist() == exact(close, x, 3).tolist()
    weights[-1, 2] = weights[-1, 0]
    tied = RidgeClassifier(model.standardisation, weights)
    assert (tied.predict(x) != 2).all(), "of equal scores the lowest class"


def test_the_bound_holds_and_leaves_few_rows_for_float64() -> None:
    model, x = draw(2000, 384, 50, 2, mean=3.0)
    ranks, highest = torch.empty(2000, 5, dtype=torch.int64), torch.empty(2000, dtype=torch.float64)
    doubtful = model._rank_in_float32(x, ranks, highest)
    assert doubtful is not None
    assert len(doubtful) < 0.2 * len(x)
    proved = torch.ones(2000, dtype=torch.bool)
    proved[doubtful] = False
    assert ranks[proved].tolist() == best_first(model.scores(x), 5)[proved].tolist()


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
def test_weights_of_any_size(size: float) -> None:
    model, x = draw(40, 16, 5, 3)
    scaled = RidgeClassifier(model.standardisation, model.weights * size)
    assert scaled.ranking(x, 5).tolist() == model.ranking(x, 5).tolist()


def test_features_beyond_float32() -> None:
    model, x = draw(40, 16, 5, 4)
    huge = Standardisation(model.standardisation.mean * 1e100, model.standardisation.scale * 1e100)
    found = RidgeClassifier(huge, model.weights).ranking(x.double() * 1e100, 5)
    assert found.tolist() == model.ranking(x, 5).tolist()


def test_where_float32_products_are_not_float32_none_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = draw(40, 16, 5, 5)
    expected = model.ranking(x, 5).tolist()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert model._rank_in_float32(x, torch.empty(0), torch.empty(0)) is None
    assert model.ranking(x, 5).tolist() == expected


@pytest.mark.parametrize("block", [1, 40, 1 << 19])
def test_blocks_of_any_size_give_the_same_ranking(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = draw(33, 16, 5, 6)
    expected = model.ranking(x, 3).tolist()
    monkeypatch.setattr(module, "BLOCK", block)
    assert model.ranking(x, 3).tolist() == expected
    assert model.ranking(x[:0], 3).shape == (0, 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 500), st.integers(1, 7), st.sampled_from([1e-38, 1e-3, 1.0, 1e30]))
def test_the_highest_scores_are_those_of_a_sort(seed: int, columns: int, count: int, scale: float) -> None:
    scores = torch.randn(20, columns, generator=torch.Generator().manual_seed(seed)) * scale
    values, indices = module.highest_of(scores, min(count, columns))
    expected = scores.sort(dim=1, descending=True).values[:, : min(count, columns)]
    assert torch.equal(values, expected)
    assert torch.equal(scores.gather(1, indices), expected)


def test_of_equal_scores_every_column_is_found_once_and_nan_is_seen() -> None:
    scores = torch.tensor([[0.0, -0.0, 0.0, -1.0], [torch.nan, 3.0, 1.0, 2.0], [torch.inf, 3.0, 1.0, 2.0]])
    values, indices = module.highest_of(scores, 3)
    assert sorted(indices[0].tolist()) == [0, 1, 2]
    assert values[0].tolist() == [0.0, 0.0, 0.0]
    assert not torch.isfinite(values[1, 0])
    assert not torch.isfinite(values[2, 0])
