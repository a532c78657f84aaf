from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import StoreError, UsageError
from vitbench.features import cache
from vitbench.features.store import FeatureStore
from vitbench.records.identity import key
from vitbench.records.store import ResultStore, find_records


@pytest.fixture
def run(image_folder: ImageFolderMaker, tmp_path: Path) -> Path:
    """An output folder with the features and the records of pixels on an image folder."""
    vitbench.run("pixels", f"imagefolder:{image_folder()}", shots=1, seeds=1, out=tmp_path / "out")
    return tmp_path / "out"


def by_split(out: Path) -> dict[str, cache.Stored]:
    return {store.split: store for store in cache.stores(out)}


def shard(store: cache.Stored) -> Path:
    return next(store.folder.glob("shard-*.safetensors"))


def test_what_is_there(run: Path) -> None:
    train, test = by_split(run)["train"], by_split(run)["test"]
    assert (test.backbone, test.task, test.representations, test.rows) == (
        "pixels-e3b0c442",
        "imagefolder/shoes",
        ["pixels"],
        12,
    )
    assert train.rows == 3
    assert test.dtype == "float32"
    assert test.size > 12 * 3072 * 4
    assert 0 <= test.age < 3600
    with pytest.raises(UsageError, match="there are no features at"):
        cache.stores(run / "records")


def test_rows_in_several_shards_count_once(tmp_path: Path) -> None:
    one = FeatureStore(tmp_path, "vit", "paper/cifar10", "train", {"weights": "ab"})
    for rows, atom in (([0, 1, 2], "cls"), ([2, 5], "cls"), ([0, 1], "gap")):
        one.append(np.array(rows), {atom: torch.zeros(len(rows), 3)})
    (found,) = cache.stores(tmp_path)
    assert (found.task, found.split, found.rows, found.representations) == ("paper/cifar10", "train", 4, ["cls", "gap"])
    assert cache.problems(found) == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("flip", "the checksum is not that of the sidecar"),
        ("cut", "the checksum is not that of the sidecar"),
        ("delete", "the shard is missing"),
        ("sidecar", "the sidecar is damaged"),
        ("rows", "it has other rows than the sidecar says"),
        ("identity", "missing or unreadable"),
        ("another", "it is not the identity that names the folder"),
    ],
)
def test_every_kind_of_damage_is_named(run: Path, damage: str, reason: str) -> None:
    store = by_split(run)["test"]
    path = shard(store)
    sidecar, content = path.with_suffix(".json"), path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(content[:100])
    elif damage == "delete":
        path.unlink()
    elif damage == "sidecar":
        sidecar.write_text("{")
    elif damage == "rows":
        sidecar.write_text(sidecar.read_text().replace("[[0, 12]]", "[[1, 13]]"))
    elif damage == "identity":
        (store.folder / "identity.json").write_text("[")
    else:
        (store.folder / "identity.json").write_text('{"weights": "other"}')
    (line,) = cache.problems(by_split(run)["test"])
    assert line.endswith(reason)
    assert str(store.folder) in line
    assert cache.problems(by_split(run)["train"]) == []


@pytest.mark.parametrize("wrong", ["dim", "dtype", "identity"])
def test_a_whole_shard_of_another_shape_or_dtype_is_found(tmp_path: Path, wrong: str) -> None:
    one = FeatureStore(tmp_path, "vit", "t", "train", {"weights": "ab"})
    one.append(np.array([0]), {"cls": torch.zeros(1, 3)})
    other = FeatureStore(
        tmp_path, "vit", "t", "train", {"weights": "ab", **({"features_dtype": "float16"} if wrong == "dtype" else {})}
    )
    other.identity = {"weights": "cd"} if wrong == "identity" else one.identity
    other.folder = one.folder
    other.append(np.array([1]), {"cls": torch.zeros(1, 4 if wrong == "dim" else 3)})
    lines = cache.problems(cache.stores(tmp_path)[0])
    assert len(lines) == 1
    told = {"dim": "'cls' has the shape [1, ", "dtype": "'cls' is kept as F16", "identity": "of another identity"}
    assert told[wrong] in lines[0]


def test_only_what_no_record_was_computed_from_is_unused(run: Path, image_folder: ImageFolderMaker) -> None:
    assert cache.unused(cache.stores(run), run) == []
    # The same split of another content, as of data that has changed since, and another encoding of the same data.
    test = by_split(run)["test"]
    identity = dict(test.identity)
    strangers = [identity | {"split_fingerprint": "00"}, identity | {"preprocessing": "other"}]
    strangers.append(identity | {"features_dtype": "float16"})
    for stranger in strangers:
        FeatureStore(run, test.backbone, test.task, "test", stranger).append(
            np.array([0]), {"pixels": torch.zeros(1, 3)}
        )
    unused = {store.folder.name for store in cache.unused(cache.stores(run), run)}
    assert unused == {key(stranger) for stranger in strangers}
    for path in find_records(run):
        path.unlink()
    assert len(cache.unused(cache.stores(run), run)) == 5


def test_parts_of_splits_and_data_by_another_name_are_in_use(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    task = f"imagefolder:{image_folder()}"
    out = tmp_path / "out"
    vitbench.run("pixels", task, shots=1, seeds=1, out=out, train_split="train[:50%]+train[50%:]")
    assert {store.split for store in cache.stores(out)} == {"train", "test"}
    assert cache.unused(cache.stores(out), out) == []
    # A record under another name of the same data keeps the features where they are.
    path = find_records(out)[0]
    path.write_text(path.read_text().replace('"task": "imagefolder/shoes"', '"task": "imagefolder/boots"'))
    assert "test" not in {store.split for store in cache.unused(cache.stores(out), out)}


def test_nothing_counts_as_unused_while_a_record_cannot_be_read(run: Path) -> None:
    find_records(run)[0].write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        cache.unused(cache.stores(run), run)


def test_what_killed_processes_left_counts_once_it_is_old(run: Path) -> None:
    folder = by_split(run)["test"].folder
    left = [folder / ".tmp-12", folder / "shard-ffff.safetensors"]
    for path in left:
        path.write_bytes(b"half")
    assert cache.leftovers(run) == []
    for path in left:
        os.utime(path, (time.time() - 7200,) * 2)
    assert cache.leftovers(run) == sorted(left)


def test_a_removed_store_is_gone_with_its_empty_folders_and_a_run_makes_it_again(run: Path, tmp_path: Path) -> None:
    before = vitbench.load_results(run)
    for store in cache.stores(run):
        assert cache.remove(store)
    assert list((run / "features").iterdir()) == []
    again = vitbench.run("pixels", f"imagefolder:{tmp_path / 'shoes'}", shots=1, seeds=1, out=run, on_existing="rerun")
    assert again["accuracy"].tolist() == before["accuracy"].tolist()
    assert len(cache.stores(run)) == 2


def test_a_store_in_use_is_left_alone(run: Path) -> None:
    store = by_split(run)["test"]
    with FileLock(store.folder / ".lock"):
        assert not cache.remove(store)
    assert cache.problems(store) == []
    assert json.loads((store.folder / "identity.json").read_text())


def test_records_are_never_touched(run: Path) -> None:
    before = {path: path.read_bytes() for path in (run / "records").rglob("*") if path.is_file()}
    for store in cache.stores(run):
        cache.remove(store)
    assert {path: path.read_bytes() for path in (run / "records").rglob("*") if path.is_file()} == before
    assert len(ResultStore(run)._paths) == 1
