from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vitbench.errors import StoreError
from vitbench.features import writer
from vitbench.features.featureset import IntArray
from vitbench.features.store import FeatureStore
from vitbench.features.writer import ShardWriter


class Heard(FeatureStore):
    """A store that says what it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "vit", "paper/cifar10", "train", {"weights": "abcd"})
        self.shards: list[list[int]] = []
        self.places: set[int] = set()

    def append(self, rows: IntArray, features: dict[str, Tensor]) -> None:  # type: ignore[override]
        """Write, and remember."""
        self.shards.append(rows.tolist())
        self.places.add(features["cls"].data_ptr())
        super().append(rows, features)


@pytest.fixture
def store(tmp_path: Path) -> Heard:
    """An empty store."""
    return Heard(tmp_path)


def batch(first: int, last: int) -> tuple[IntArray, dict[str, Tensor]]:
    """Rows `first` to before `last`, whose features are their numbers."""
    rows = np.arange(first, last)
    value = torch.from_numpy(rows).float()[:, None]
    return rows, {"cls": value.expand(-1, 2), "gap": 2 * value.expand(-1, 5)}


def check(store: Heard, count: int) -> None:
    """All rows come back."""
    rows = np.arange(count)
    loaded = store.load(["cls", "gap"], rows)
    assert torch.equal(loaded["cls"], torch.arange(count).float()[:, None].expand(-1, 2))
    assert torch.equal(loaded["gap"], 2 * torch.arange(count).float()[:, None].expand(-1, 5))


def test_features_wait_in_memory_that_is_used_again(store: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_BYTES", 150)  # a row has 28 bytes
    waiting = ShardWriter(store, 40)
    for first, last in ((0, 3), (3, 7), (7, 10), (10, 14), (14, 15)):
        waiting.add(*batch(first, last))
    waiting.flush()
    waiting.flush()
    assert store.shards == [list(range(7)), list(range(7, 14)), [14]]
    assert len(store.places) == 1
    check(store, 15)


def test_a_batch_that_is_larger_than_those_before_finds_room(store: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_BYTES", 150)
    waiting = ShardWriter(store)
    for first, last in ((0, 1), (1, 4), (4, 20), (20, 21), (21, 60)):
        waiting.add(*batch(first, last))
    waiting.flush()
    assert [row for shard in store.shards for row in shard] == list(range(60))
    check(store, 60)


def test_what_waits_long_is_written(store: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = ShardWriter(store)
    waiting.add(*batch(0, 2))
    assert not store.shards
    monkeypatch.setattr(writer, "FLUSH_SECONDS", -1.0)
    waiting.add(*batch(2, 3))
    assert store.shards == [[0, 1, 2]]


def test_what_cannot_be_written_is_let_go(store: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(rows: IntArray, features: dict[str, Tensor]) -> None:
        raise StoreError("no room")

    waiting = ShardWriter(store)
    waiting.add(*batch(0, 2))
    with monkeypatch.context() as patched:
        patched.setattr(store, "append", full)
        with pytest.raises(StoreError, match="no room"):
            waiting.flush()
    waiting.add(*batch(2, 4))
    waiting.flush()
    assert store.shards == [[2, 3]]
