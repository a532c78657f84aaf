from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from vitbench.solvers import neighbours as module
from vitbench.solvers.neighbours import Rows, cosine, nearest, queries_at_once, ranked, rows_at_once, votes


def features(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32))


def problem(
    seed: int, bank: int = 120, queries: int = 60, classes: int = 7
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, 12))
    labels, asked = rng.integers(classes, size=bank), rng.integers(classes, size=queries)
    x, q = (means[y] + 1.2 * rng.normal(size=(len(y), 12)) + 0.3 for y in (labels, asked))
    return torch.from_numpy(x.astype(np.float32)), labels, torch.from_numpy(q.astype(np.float32))


def cut(x: torch.Tensor, sizes: int | Sequence[int] = 8192, order: np.ndarray | None = None) -> Rows:
    """The rows in parts of a size or of given sizes, in their own order or in another."""
    numbers = torch.arange(len(x)) if order is None else torch.from_numpy(order)
    return lambda: [(some, x[some]) for some in torch.split(numbers, sizes if isinstance(sizes, int) else list(sizes))]


def by_definition(x: torch.Tensor, queries: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every similarity in float64 at once, and a stable sort of them."""
    similarity, rows = cosine(queries, x).sort(dim=1, descending=True, stable=True)
    return similarity[:, :count], rows[:, :count]


def test_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    similarity, rows = nearest(cut(bank), 4, torch.tensor([[2.0, 0.1]], dtype=torch.float64), 3)
    assert rows.tolist() == [[0, 2, 1]]
    length = np.hypot(2, 0.1)
    assert similarity[0].tolist() == pytest.approx([2 / length, 2.1 / length / np.sqrt(2), 0.1 / length], abs=1e-12)
    labels = torch.tensor([[1, 0, 0]])
    assert votes(similarity, labels, 3, None)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    weights = np.exp(similarity[0].numpy() / 0.07)
    expected = np.array([weights[1] + weights[2], weights[0], 0]) / weights.sum()
    assert votes(similarity, labels, 3, 0.07)[0].tolist() == pytest.approx(expected.tolist(), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 9), st.integers(1, 60), st.integers(1, 45))
def test_blocks_change_nothing_and_the_search_is_exact(seed: int, bank: int, count: int, rows: int, block: int) -> None:
    """Whatever the block's sides, also of features that are equal or zero."""
    rng = np.random.default_rng(seed)
    x, q = (torch.from_numpy(rng.integers(-1, 2, size=(size, 3)).astype(np.float32)) for size in (bank, 30))
    count = min(count, bank)
    expected = by_definition(x, q, count)
    parts = [nearest(cut(x, rows), bank, part, count) for part in torch.split(q, block)]
    similarity, found = (torch.cat(values) for values in zip(*parts, strict=True))
    assert torch.equal(found, expected[1])
    assert torch.equal(similarity, expected[0])
    by_hand = np.nan_to_num(((q @ x.T) / (q.double().norm(dim=1)[:, None] * x.double().norm(dim=1))).numpy())
    np.testing.assert_allclose(cosine(q, x).numpy(), by_hand, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 90), min_size=1, max_size=9),
    st.integers(1, 30),
    st.sampled_from([2, 3, 17]),
    st.sampled_from([1, 7, 1 << 22]),
)
def test_neither_parts_nor_their_order_change_a_neighbour(
    seed: int, sizes: list[int], count: int, values: int, block: int
) -> None:
    """Rows of few values: some are equal or 0 and some stand alone, so that float32 proves some queries and not others."""
    rng = np.random.default_rng(seed)
    size = sum(sizes)
    count = min(count, size)
    x = rng.integers(-(values // 2), values // 2 + 1, size=(size, 4)).astype(np.float32)
    x[rng.integers(size, size=3)] = x[0]
    q = torch.from_numpy(np.concatenate([x[:9], np.zeros((1, 4)), rng.normal(size=(9, 4))]).astype(np.float32))
    bank = torch.from_numpy(x)
    expected = by_definition(bank, q, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "_AGAIN", block)
        for order in (None, np.arange(size)[::-1].copy(), rng.permutation(size)):
            similarity, found = nearest(cut(bank, sizes, order), size, q, count)
            assert torch.equal(found, expected[1])
            torch.testing.assert_close(similarity, expected[0], rtol=0, atol=2e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 40),
    st.integers(1, 30),
    st.sampled_from([97, 400]),
    st.sampled_from([0.0, 1e-7, 1e-5, 1e-3, 1.0]),
)
def test_what_float32_proves_is_what_float64_finds(seed: int, width: int, count: int, rows: int, spread: float) -> None:
    """Whether rows are far apart or copies of ten but for some digits, among them rows of zeros and queries that are rows."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(10, width)) + 1
    x = centres[rng.integers(10, size=400)] + spread * rng.normal(size=(400, width))
    x[rng.integers(400, size=3)] = 0
    queries = torch.from_numpy(np.concatenate([x[:20], rng.normal(size=(20, width))]))
    bank = cut(torch.from_numpy(x), rows, rng.permutation(400))
    expected = module._nearest_in_float64(bank, queries, count)
    similarity, found = nearest(bank, 400, queries, count)
    assert torch.equal(found, expected[1])
    torch.testing.assert_close(similarity, expected[0], rtol=0, atol=2e-12)


def test_most_rows_are_compared_in_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    exact = module._nearest_in_float64

    def counting(rows: Rows, queries: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(queries))
        return exact(rows, queries, count)

    monkeypatch.setattr(module, "_nearest_in_float64", counting)
    nearest(cut(features(2000, 64, 0)), 2000, features(300, 64, 1), 20)
    assert sum(asked) <= 3
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    nearest(cut(features(2000, 64, 0)), 2000, features(300, 64, 1), 20)
    assert asked[-1] == 300, "products of fewer digits prove nothing"


def test_sizes_of_parts_and_passes_are_bounded_in_numbers() -> None:
    assert (rows_at_once(16), rows_at_once(1024), rows_at_once(10**8)) == (8192, 4096, 1)
    assert queries_at_once(768, 20) == 4096
    assert queries_at_once(10**8, 20) == queries_at_once(16, 10**8) == 1


def test_of_equal_rows_the_lowest_number_is_nearest() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for order in (None, np.array([4, 3, 2, 1, 0]), np.array([3, 0, 4, 2, 1])):
        for rows in (1, 2, 3, 5):
            similarity, found = nearest(cut(bank, rows, order), 5, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 4)
            assert found.tolist() == [[0, 2, 3, 1], [1, 4, 0, 2]]
            assert similarity.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]


def test_a_row_of_zeros_is_near_to_nothing() -> None:
    bank = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    similarity, found = nearest(cut(bank), 3, torch.tensor([[3.0, 0.0], [0.0, 0.0]]), 3)
    assert found.tolist() == [[2, 0, 1], [0, 1, 2]]
    assert similarity.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_a_scale_is_no_matter() -> None:
    x, q = features(30, 5, 0).double(), features(9, 5, 1).double()
    expected = nearest(cut(x), 30, q, 4)
    for scale in (1e-120, 1e120):
        similarity, found = nearest(cut(x * scale), 30, q / scale, 4)
        assert torch.equal(found, expected[1])
        torch.testing.assert_close(similarity, expected[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_uniform_votes_are_those_of_scikit_learn(k: int, seed: int) -> None:
    bank, labels, queries = problem(seed)
    peer = KNeighborsClassifier(k, metric="cosine", weights="uniform", algorithm="brute").fit(bank.double(), labels)
    found = ranked(cut(bank), torch.from_numpy(labels), queries, 7, [k], temperature=None, count=5)[k]
    assert found[0][:, 0].tolist() == peer.predict(queries.double()).tolist()
    shares = peer.predict_proba(queries.double())
    np.testing.assert_allclose(found[1].numpy(), shares.max(axis=1), rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("k", [1, 5, 20, 120])
def test_weighted_votes_are_those_of_scikit_learn(k: int, temperature: float) -> None:
    """scikit-learn weighs by a function of the distance, 1 - similarity."""
    bank, labels, queries = problem(5)
    peer = KNeighborsClassifier(
        k, metric="cosine", weights=lambda far: np.exp((1 - far) / temperature), algorithm="brute"
    )
    shares = peer.fit(bank.double(), labels).predict_proba(queries.double())
    ranking, share = ranked(cut(bank), torch.from_numpy(labels), queries, 7, [k], temperature=temperature, count=5)[k]
    expected = np.argsort(-shares, axis=1, kind="stable")[:, : min(5, k)]
    voted = np.take_along_axis(shares, expected, axis=1) > 0
    assert ranking.numpy()[voted].tolist() == expected[voted].tolist()
    assert (ranking.numpy()[~voted] == -1).all()
    np.testing.assert_allclose(share.numpy(), shares.max(axis=1), rtol=1e-9)


def test_every_k_is_read_off_one_search() -> None:
    bank, labels, queries = problem(2)
    targets = torch.from_numpy(labels)
    together = ranked(cut(bank), targets, queries, 7, [20, 1, 5], temperature=0.07, count=5)
    for k in (1, 5, 20):
        alone = ranked(cut(bank), targets, queries, 7, [k], temperature=0.07, count=5)[k]
        assert torch.equal(together[k][0], alone[0])
        torch.testing.assert_close(together[k][1], alone[1], rtol=1e-9, atol=0)
    assert together[1][0].shape == (60, 1)
    assert bool((together[1][1] == 1).all())


def test_a_low_temperature_overflows_nowhere() -> None:
    bank, labels, queries = problem(3)
    cold = ranked(cut(bank), torch.from_numpy(labels), queries, 7, [20], temperature=1e-4, count=5)[20]
    one = ranked(cut(bank), torch.from_numpy(labels), queries, 7, [1], temperature=None, count=5)[1]
    assert torch.equal(cold[0][:, 0], one[0][:, 0])
    assert bool(torch.isfinite(cold[1]).all())


def test_the_lowest_class_of_equal_votes() -> None:
    bank = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]])
    ranking, share = ranked(
        cut(bank), torch.tensor([2, 1, 2, 1]), torch.tensor([[1.0, 0.0]]), 4, [4], temperature=None, count=5
    )[4]
    assert ranking.tolist() == [[1, 2, -1, -1]]
    assert share.tolist() == [0.5]
