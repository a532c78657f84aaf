from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitbench.errors import DataError
from vitbench.features.featureset import FeatureSet, LazyRepresentations
from vitbench.features.store import FeatureStore
from vitbench.protocols import closed_form, streamed
from vitbench.protocols.closed_form import GRID, Fitted, Queries, fit
from vitbench.protocols.fewshot import FewShot
from vitbench.protocols.ridge import Ridge
from vitbench.protocols.streamed import fit_streamed

RULES: list[Any] = ["paper", 3.0, "gcv", "loo"]


def draw(rows: int, features: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=rows - num_classes)])
    means = rng.normal(size=(num_classes, features))
    x = (means[labels] + 2 * rng.normal(size=(rows, features))) * np.geomspace(3, 0.1, features) + 1
    return torch.from_numpy(x.astype(np.float32)), labels


def lazily(x: torch.Tensor, labels: np.ndarray, order: np.ndarray | None = None) -> FeatureSet:
    rows = np.arange(len(x))
    lazy = LazyRepresentations(["cls"], rows, lambda _, some: x[torch.from_numpy(some)], order)
    return FeatureSet(labels, rows, lazy)


def assert_same(found: Fitted, expected: Fitted) -> None:
    torch.testing.assert_close(found.model.weights, expected.model.weights, rtol=1e-6, atol=1e-9)
    assert found.details == pytest.approx(expected.details, rel=1e-6)
    assert found.warnings == expected.warnings


@pytest.mark.parametrize("l2", RULES)
@pytest.mark.parametrize("shape", [(300, 16, 5), (50, 60, 4), (61, 60, 4), (62, 60, 4), (80, 20, 80)])
@pytest.mark.parametrize("in_memory", [0, 1 << 25])
def test_a_streamed_fit_is_that_of_the_rows_in_memory(
    l2: Any, shape: tuple[int, int, int], in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one image per class too, in the primal and in the dual, in parts of 7 rows, in another order."""
    monkeypatch.setattr(streamed, "IN_MEMORY", in_memory)
    original = FeatureSet.chunks
    monkeypatch.setattr(FeatureSet, "chunks", lambda self, name: original(self, name, 7))
    x, labels = draw(*shape)
    expected = fit(x, labels, shape[2], l2, "squared_error", GRID)
    order = np.random.default_rng(1).permutation(len(x))
    for features in (lazily(x, labels), lazily(x, labels, order), FeatureSet(labels, np.arange(len(x)), {"cls": x})):
        assert_same(fit_streamed(features, "cls", shape[2], l2, "squared_error", GRID, "train"), expected)


def test_leave_one_out_by_accuracy_is_streamed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "IN_MEMORY", 0)
    x, labels = draw(300, 16, 5)
    expected = fit(x, labels, 5, "loo", "accuracy", GRID)
    assert_same(fit_streamed(lazily(x, labels), "cls", 5, "loo", "accuracy", GRID, "train"), expected)


@pytest.mark.parametrize("l2", RULES)
def test_features_that_are_not_finite_are_counted_over_all_parts(l2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FeatureSet.chunks
    monkeypatch.setattr(FeatureSet, "chunks", lambda self, name: original(self, name, 50))
    x, labels = draw(300, 16, 5)
    x[[3, 70, 299], 2] = torch.tensor([np.nan, np.inf, -np.inf])
    with pytest.raises(DataError, match="3 of 300 train rows have NaN or infinite features"):
        fit_streamed(lazily(x, labels), "cls", 5, l2, "squared_error", GRID, "train")


def test_a_given_penalty_reads_each_row_once_and_holds_none(tmp_path: Path) -> None:
    x, labels = draw(10_000, 16, 5)
    store = FeatureStore(tmp_path, "tiny", "task", "train", {"test": "streamed"})
    for start in range(0, len(x), 3000):
        rows = np.arange(start, min(start + 3000, len(x)))
        store.append(rows, {"cls": x[start : start + 3000]})
    asked: list[int] = []

    def read(_: str, rows: np.ndarray) -> torch.Tensor:
        asked.append(len(rows))
        return store.load(["cls"], rows)["cls"]

    rows = np.arange(len(x))
    features = FeatureSet(labels, rows, LazyRepresentations(["cls"], rows, read))
    found = fit_streamed(features, "cls", 5, "gcv", "squared_error", GRID, "train")
    parts = [size for size in asked if size > 1]  # one row tells the dimension
    assert sum(parts) == len(x)
    assert max(asked) <= 4096
    assert_same(found, fit(x, labels, 5, "gcv", "squared_error", GRID))


@pytest.mark.parametrize("protocol", [FewShot(shots=(1, 5), seeds=(0, 1)), Ridge(l2="paper")])
def test_test_rows_that_are_read_in_parts_are_ranked_as_those_in_memory(
    protocol: FewShot | Ridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = draw(5300, 16, 5)
    train = FeatureSet(labels[:300], np.arange(300), {"cls": x[:300]})
    x, labels = x[300:], labels[300:]
    order = np.random.default_rng(1).permutation(len(x))
    asked: list[int] = []

    def read(_: str, rows: np.ndarray) -> torch.Tensor:
        asked.append(len(rows))
        return x[torch.from_numpy(rows)]

    test = FeatureSet(labels, np.arange(len(x)), LazyRepresentations(["cls"], np.arange(len(x)), read, order))
    expected = list(protocol.evaluate(train, test, "cls", 5, protocol.cells()))
    assert max(asked) == len(x), "few are held"
    asked.clear()
    monkeypatch.setattr(closed_form, "HELD", 0)
    test = FeatureSet(labels, np.arange(len(x)), LazyRepresentations(["cls"], np.arange(len(x)), read, order))
    found = list(protocol.evaluate(train, test, "cls", 5, protocol.cells()))
    assert max(asked) == 4096
    parts = [size for size in asked if size > 1]  # one row tells the dimension
    assert sum(parts) == len(x) * (1 + len(protocol.cells())), "a check, and each cell"
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.ranking, other.ranking)
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-6)


def test_test_rows_that_are_not_finite_are_counted_over_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "HELD", 0)
    x, labels = draw(9000, 4, 3)
    x[[3, 5000, 8999], 2] = torch.tensor([np.nan, np.inf, -np.inf])
    with pytest.raises(DataError, match="3 of 9000 test rows have NaN or infinite features"):
        Queries.of(lazily(x, labels), "cls", "test")


SCRIPT = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from vitbench.features.featureset import FeatureSet, LazyRepresentations
from vitbench.protocols.ridge import Ridge
part = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))

def split(size):
    rows = np.arange(size)
    read = lambda _, some: part[torch.from_numpy(some % 4096)]
    return FeatureSet(rows % 10, rows, LazyRepresentations(["cls"], rows, read))

def evaluate(size):
    protocol = Ridge(l2=sys.argv[2])
    list(protocol.evaluate(split(size), split(500), "cls", 10, protocol.cells()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

few = evaluate(20_000)
print(evaluate(int(sys.argv[1])) - few)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
@pytest.mark.parametrize("l2", ["1024", "gcv", "loo"])
def test_memory_does_not_grow_with_the_train_rows(l2: str) -> None:
    """160,000 rows of 256 features are 156 MiB, and 780 MiB while they are standardised; 40,000 of them a quarter of it."""

    def growth(rows: int) -> float:
        command = [sys.executable, "-c", SCRIPT, str(rows), l2]
        unit = 1 if sys.platform == "darwin" else 1024
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * unit

    few, many = growth(40_000), growth(160_000)
    tolerance = 24 * 2**20  # what an allocator keeps
    assert many <= few + tolerance, (few, many)
