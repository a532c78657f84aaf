"""Episodes and nearest neighbours on real images with real weights."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier

import vitbench
from vitbench.records.predictions import read_predictions
from vitbench.reporting.recorded import read_with_paths

CHARACTERS = 14
"""Of the 112 in the alphabets that are scored, so that the test embeds 280 drawings."""


@pytest.fixture(scope="module")
def vit(test_data: Path) -> str:
    weights = test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    return f"timm:vit_tiny_patch16_224,checkpoint={weights}"


@pytest.fixture(scope="module")
def omniglot(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task whose train and test characters are of different alphabets, as the few-shot literature splits classes."""
    folder = tmp_path_factory.mktemp("omniglot")
    names: dict[str, list[str]] = {"train": [], "test": []}
    with zipfile.ZipFile(test_data / "images" / "omniglot_small1" / "images_background_small1.zip") as archive:
        for member in archive.namelist():
            if not member.endswith(".png"):
                continue
            _, alphabet, character, file = member.split("/")
            split, name = "train" if alphabet == "Balinese" else "test", f"{alphabet}_{character}"
            if name not in names[split]:
                if len(names[split]) == CHARACTERS:
                    continue
                names[split].append(name)
                (folder / split / name).mkdir(parents=True)
            (folder / split / name / file).write_bytes(archive.read(member))
    path = folder / "omniglot.yaml"
    path.write_text(
        "title: Omniglot\n"
        f"source: {{kind: imagefolder, path: {folder}}}\n"
        "splits: {train: {folder: train, partial: true}, test: {folder: test, partial: true}}\n"
        f"num_classes: {2 * CHARACTERS}\n"
        f"class_names: {json.dumps(sorted(names['train'] + names['test']))}\n"
    )
    return str(path)


def test_episodes_of_unseen_characters(omniglot: str, vit: str, tmp_path: Path) -> None:
    options = {"way": 5, "queries": 15, "episodes": 100}
    settings = {"protocol": "episodes", "shots": [1, 5], "out": tmp_path, "representations": "cls"}
    frame = vitbench.run([vit, "pixels"], omniglot, options=options, **settings)
    scores = frame.set_index(["representation", "shot"])["accuracy"]
    assert scores["cls", 1] > scores["pixels", 1] + 0.15
    assert scores["cls", 5] > scores["cls", 1] + 0.05
    assert 0.25 < scores["pixels", 1] < 0.65
    assert 0.55 < scores["cls", 1] < 0.95
    assert (frame["n_classes"] == CHARACTERS).all()
    assert frame["ci95"].between(0.001, 0.05).all()
    near = vitbench.run("pixels", omniglot, options={**options, "classifier": "prototype"}, **settings)
    assert 0.25 < near.set_index("shot")["accuracy"][1] < 0.65
    assert abs(near.set_index("shot")["accuracy"][5] - scores["pixels", 5]) < 0.15


def stored(folder: Path) -> np.ndarray:
    """The CLS features below a folder of the store, in order of row."""
    shards = [load_file(path) for path in folder.rglob("shard-*.safetensors")]
    order = np.argsort(np.concatenate([shard["rows"].numpy() for shard in shards]))
    return np.concatenate([shard["cls"].double().numpy() for shard in shards])[order]


def test_neighbours_are_those_of_scikit_learn(test_data: Path, vit: str, tmp_path: Path) -> None:
    """On the very features that are in the store."""
    task = tmp_path / "cifar10_subset.yaml"
    task.write_text(
        "title: CIFAR-10, a subset\n"
        f"source: {{kind: parquet, path: {test_data / 'images' / 'cifar10_subset'}}}\n"
        "splits: {all: {files: [train.parquet], size: 4000}, train: {select: 'all[:300]'}, test: {files: [test.parquet]}}\n"
        "num_classes: 10\n"
    )
    settings = {"protocol": "knn", "representations": "cls", "out": tmp_path / "out", "limit": 120}
    vitbench.run(vit, str(task), options={"k": [1, 5, 20], "weights": "uniform"}, **settings)
    frame, _ = read_with_paths(tmp_path / "out")
    features = {folder.name: stored(folder) for folder in (tmp_path / "out" / "features").glob("*/*/*")}
    assert {name: len(values) for name, values in features.items()} == {"all": 300, "test": 120}
    labels = vitbench.load_task(str(task)).train.labels
    for _, record in frame.iterrows():
        peer = KNeighborsClassifier(int(record["k"]), metric="cosine", algorithm="brute").fit(features["all"], labels)
        table = read_predictions(record["path"])
        assert table.prediction.tolist() == peer.predict(features["test"]).tolist()
        assert record["accuracy"] > 0.35
