"""The main job on real images with real weights."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import vitbench


@pytest.fixture(scope="module")
def cifar(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task file for the subset of CIFAR-10."""
    path = tmp_path_factory.mktemp("task") / "cifar10_subset.yaml"
    path.write_text(
        "title: CIFAR-10, a subset\n"
        f"source: {{kind: parquet, path: {test_data / 'images' / 'cifar10_subset'}}}\n"
        "splits: {train: {files: [train.parquet], size: 4000}, test: {files: [test.parquet], size: 1000}}\n"
        "num_classes: 10\n"
    )
    return str(path)


@pytest.fixture(scope="module")
def vit(test_data: Path) -> str:
    weights = test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    return f"timm:vit_tiny_patch16_224,checkpoint={weights}"


def test_every_representation_of_a_real_vit_is_far_above_the_pixels_floor(cifar: str, vit: str, tmp_path: Path) -> None:
    settings = {"shots": [5], "seeds": 2, "limit": 250, "out": tmp_path}
    names = "cls,gap,pooler,cls+gap,gap@10"
    frame = vitbench.run([vit, "pixels"], cifar, representations=names, **settings)
    means = frame.groupby("representation")["accuracy"].mean()
    assert set(means.index) == {"cls", "gap", "pooler", "cls+gap", "gap@10", "pixels"}
    assert means.drop("pixels").min() > means["pixels"] + 0.15
    assert means["cls"] == means["pooler"]
    shards = list((tmp_path / "features").glob("timm*/**/shard-*.json"))
    assert {tuple(sorted(path.read_text().split('"atoms": [')[1].split("]")[0].split(", "))) for path in shards} == {
        ('"cls"', '"gap"', '"gap@10"', '"pooler"')
    }
    chosen = vitbench.run([vit, "pixels"], cifar, representations=names, l2="loo", **settings)
    pd.testing.assert_series_equal(chosen["n_test"], frame["n_test"])
    assert chosen["l2"].nunique() > 1


def test_a_real_cnn_on_real_photographs(test_data: Path, tmp_path: Path) -> None:
    weights = test_data / "weights" / "mobilenetv2_100.imagenet1k.fp16.safetensors"
    spec = f"timm:mobilenetv2_100,checkpoint={weights},model.pad_type=same"
    task = f"imagefolder:{test_data / 'images' / 'flowers12'}"
    frame = vitbench.run(spec, task, representations="gap", shots=5, seeds=1, out=tmp_path)
    assert frame["accuracy"].item() > 0.6
    assert frame["n_test"].item() == 240
    with pytest.raises(vitbench.VitbenchError, match=r"has no 'cls'"):
        vitbench.run(spec, task, representations="cls", out=tmp_path)
