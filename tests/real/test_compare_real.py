"""CLS against GAP of a real ViT on real flowers, and what its classifier gets wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import vitbench
from vitbench.reporting.comparison import compare_backbones, drops
from vitbench.reporting.diagnostics import cells, diagnose
from vitbench.reporting.gallery import sheet, task_of, tiles
from vitbench.reporting.selection import Filters, chosen, read_measured


@pytest.fixture(scope="module")
def flowers(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    vit = f"timm:vit_tiny_patch16_224,checkpoint={weights}"
    out = tmp_path_factory.mktemp("run")
    task = f"imagefolder:{test_data / 'images' / 'flowers12'}"
    vitbench.run([vit, "pixels"], task, representations="cls,gap", shots=5, seeds=3, limit=120, out=out)
    return out


def test_cls_beats_gap_where_the_cls_was_trained_and_pixels_everywhere(flowers: Path) -> None:
    measured, limited = read_measured(flowers), Filters(limited=True)
    name = "timm:vit_tiny_patch16_224"
    (pair,) = compare_backbones(measured, f"{name}/cls", f"{name}/gap", limited).pairs
    assert pair.verdict == "worse"
    assert -15 < pair.points < -3
    means = chosen(measured.records, limited=True).groupby("representation")["accuracy"].mean()
    assert (pair.a, pair.b) == (pytest.approx(means["cls"]), pytest.approx(means["gap"]))
    floor = compare_backbones(measured, f"{name}/cls", "pixels", limited)
    (line,) = drops(floor, 0.2)
    assert floor.pairs[0].points < -30
    assert line.startswith("cls → pixels · imagefolder/flowers12 · 5-shot: -")


def test_the_flowers_that_are_taken_for_each_other_look_alike(flowers: Path) -> None:
    records = chosen(read_measured(flowers).records, representations=["cls"], limited=True)
    (group,) = cells(records)
    task = task_of(group["path"].iloc[0], flowers)
    found = diagnose(group, group["path"].tolist(), task)
    assert found.accuracy == pytest.approx(group["accuracy"].mean())
    first = found.pairs.iloc[0]
    assert {first["one_name"], first["other_name"]} == {"colts-foot", "dandelion"}, "two yellow heads of many petals"
    # A ridge of λ = 1024 on 60 images shrinks its scores: it is right more often than it says.
    assert found.reliability is not None
    assert found.ece is not None
    assert (
        found.accuracy
        > np.nansum(found.reliability.counts * found.reliability.confidence) / found.reliability.counts.sum()
    )
    assert found.ece > 0.3
    shown = tiles(found.right, found.class_names, task.test)
    assert all(tile.picture is not None and tile.right for tile in shown)
    assert sheet(found, task.test).height > 500
    assert isinstance(found.per_class, pd.DataFrame)
