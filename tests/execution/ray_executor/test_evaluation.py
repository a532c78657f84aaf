from __future__ import annotations

import numpy as np
import pytest
import torch

from vitbench.execution.ray.evaluation import PutFeatures
from vitbench.features.featureset import FeatureSet, LazyRepresentations


def test_features_that_are_put_are_those_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 9,000 rows in three parts, in another order than their own, copied 256 rows at a time."""
    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.get", lambda value: value)
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.normal(size=(9000, 3)).astype(np.float32))
    rows, order = np.arange(9000), generator.permutation(9000)
    lazy = LazyRepresentations(["cls"], rows, lambda _, some: x[torch.from_numpy(some)], order)
    features = PutFeatures.put(FeatureSet(rows % 7, rows, lazy), "cls").features("cls")
    assert torch.equal(features.representations["cls"], x)
    for some in (np.arange(700, 1700), generator.permutation(9000)[:600], np.array([8999])):
        assert torch.equal(features.part("cls", some), x[torch.from_numpy(some)])
    parts = list(features.chunks("cls", 500))
    assert np.concatenate([numbers for numbers, _ in parts]).tolist() == order.tolist()
    assert torch.equal(torch.cat([values for _, values in parts]), x[torch.from_numpy(order)])
