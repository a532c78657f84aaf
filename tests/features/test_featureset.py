from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vitbench.errors import UsageError
from vitbench.features import featureset
from vitbench.features.featureset import FeatureSet, IntArray, LazyRepresentations, copy_rows
from vitbench.features.view import split_features
from vitbench.tasks.task import Split


class Source:
    """Features of 20 rows in two representations, and what was read of them."""

    def __init__(self, rows: IntArray) -> None:
        self.values = {
            name: torch.randn(20, 3, generator=torch.Generator().manual_seed(len(name))) for name in ("a", "bb")
        }
        self.rows = rows
        self.read: list[tuple[str, list[int]]] = []

    def __call__(self, name: str, rows: IntArray) -> Tensor:
        assert (np.diff(rows) > 0).all()
        self.read.append((name, rows.tolist()))
        return self.values[name][torch.from_numpy(rows)]

    def features(self, order: IntArray | None = None) -> FeatureSet:
        lazy = LazyRepresentations(["a", "bb"], self.rows, self, order)
        return FeatureSet(np.arange(20) % 4, self.rows, lazy)


ROWS = np.array([1, 2, 5, 9, 11, 12, 17])


def test_nothing_is_read_before_it_is_asked_for_and_only_one_representation_is_kept() -> None:
    source = Source(ROWS)
    features = source.features()
    assert (list(features.representations), len(features.representations)) == (["a", "bb"], 2)
    assert "a" in features.representations
    assert source.read == []
    found = [features.select("a", np.array([9, 1])), features.select("bb", ROWS), features.representations["bb"]]
    assert torch.equal(found[0], source.values["a"][[9, 1]])
    assert torch.equal(found[1], source.values["bb"][torch.from_numpy(ROWS)])
    assert [name for name, _ in source.read] == ["a", "bb"], "the one that was asked for last is kept"
    with pytest.raises(KeyError):
        features.representations["c"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("order", [None, ROWS[::-1].copy(), np.array([9, 1, 17, 2, 12, 5, 11])])
def test_parts_have_every_row_once(size: int, order: IntArray | None) -> None:
    source = Source(ROWS)
    features = source.features(order)
    parts = list(features.chunks("bb", size))
    rows = np.concatenate([some for some, _ in parts])
    assert rows.tolist() == (ROWS if order is None else order).tolist()
    assert torch.equal(torch.cat([x for _, x in parts]), source.values["bb"][torch.from_numpy(rows)])
    assert max(len(read) for _, read in source.read) == min(size, 7)
    assert features.dimension("a") == 3


def test_features_in_memory_have_the_same_parts() -> None:
    source = Source(ROWS)
    eager = FeatureSet(np.arange(20) % 4, ROWS, {"a": source.values["a"][torch.from_numpy(ROWS)]})
    for (rows, x), (other_rows, other) in zip(eager.chunks("a", 3), source.features().chunks("a", 3), strict=True):
        assert rows.tolist() == other_rows.tolist()
        assert torch.equal(x, other)
    assert eager.dimension("a") == 3


def test_a_row_without_features_is_refused() -> None:
    source = Source(ROWS)
    with pytest.raises(UsageError, match="rows asked for have no features"):
        source.features().part("a", np.array([1, 3]))
    assert source.read == []


def stored(name: str, size: int) -> Split:
    return Split("task", name, np.arange(size) % 4, name, np.zeros(size, np.int64), np.arange(size))


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_view_of_stored_splits_is_read_in_their_order(size: int) -> None:
    """Rows of two stored splits, mixed and one of them twice."""
    base, row = np.array([1, 0, 0, 1, 0, 1, 0]), np.array([7, 3, 19, 2, 3, 11, 0])
    split = Split("task", "mixed", np.arange(7) % 4, "mixed", base, row, selected=(stored("x", 20), stored("y", 20)))
    sources = [Source(np.array([0, 3, 4, 19])), Source(np.array([2, 7, 9, 11]))]
    sets = {name: source.features() for name, source in zip("xy", sources, strict=True)}
    features = split_features(split, np.arange(7), sets)
    assert [source.read for source in sources] == [[], []]
    expected = torch.stack([sources[b].values["a"][r] for b, r in zip(base, row, strict=True)])
    parts = list(features.chunks("a", size))
    rows = np.concatenate([some for some, _ in parts])
    assert sorted(rows) == list(range(7))
    assert torch.equal(torch.cat([x for _, x in parts]), expected[torch.from_numpy(rows)])
    assert all(np.diff(base[rows]) >= 0), "one stored split after the other"
    assert torch.equal(features.representations["a"], expected)
    assert torch.equal(features.select("a", np.array([4, 1])), expected[[4, 1]])
    whole = split_features(split, np.array([1, 3, 5]), sets)
    assert torch.equal(whole.representations["a"], expected[[1, 3, 5]])


@pytest.mark.parametrize("rows", [[4, 5, 6, 7], [4, 6, 5, 7], [7, 6, 5, 4], [0, 3, 4, 9], [3]])
@pytest.mark.parametrize("places", [[0, 1, 2, 3], [0, 2, 1, 3], [5, 1, 4, 2]])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_copied_to_their_places(
    monkeypatch: pytest.MonkeyPatch, rows: list[int], places: list[int], dtype: type[np.floating]
) -> None:
    monkeypatch.setattr(featureset, "COPIED_ROWS", 3)
    source = np.arange(20, dtype=dtype).reshape(10, 2)
    target = np.full((6, 2), -1, np.float32)
    copy_rows(source, np.array(rows), target, np.array(places[: len(rows)]))
    expected = np.full((6, 2), -1, np.float32)
    expected[places[: len(rows)]] = source[rows]
    np.testing.assert_array_equal(target, expected)
