"""However many images there are, an analysis holds one batch of them at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from vitbench.analysis.base import Images
from vitbench.analysis.run import analyze
from vitbench.backbones.base import Backbone

KINDS = {
    "attention-distance": {},
    "rollout": {"files": "0", "shown": "1"},
    "heatmap": {"files": "0"},
    "faithfulness": {"steps": "2", "draws": "1"},
    "similarity": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_batches_are_let_go(kind: str, tiny_vit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, given = Images.batches, []

    def watched(self: Images, backbone: Backbone, size: int = 16) -> Iterator[tuple[list[int], Tensor]]:
        for indices, pixels in original(self, backbone, 4):
            gc.collect()
            # The consumer's loop variable may still name the batch before this one; nothing may hold an older one.
            assert all(reference() is None for reference in given[:-1])
            given.append(weakref.ref(pixels))
            yield indices, pixels

    monkeypatch.setattr(Images, "batches", watched)
    analyze(kind, [tiny_vit], out=tmp_path, task="digits", options=KINDS[kind], limit=24, device="cpu")
    assert len(given) >= 6
