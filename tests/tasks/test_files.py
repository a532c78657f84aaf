"""Parquet and arrow files, and the hub's parquet through a server on this machine."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitbench.errors import DataError
from vitbench.tasks.catalog import load_task


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: list[Any], **columns: Any) -> pa.Table:
    images = [{"bytes": png(10 * index), "path": None} for index in range(len(labels))]
    return pa.table({"image": images, "label": labels, **columns})


def write_task(folder: Path, train: pa.Table, test: pa.Table, *, extra: str = "", source: str = "") -> str:
    pq.write_table(train, folder / "train-00000-of-00001.parquet")
    pq.write_table(test, folder / "test-00000-of-00001.parquet")
    path = folder / "task.yaml"
    path.write_text(
        f"title: T\nsource: {{kind: parquet{source}}}\n"
        "splits: {train: {files: ['train-*.parquet']}, test: {files: ['test-*.parquet']}}\n" + extra
    )
    return str(path)


def test_parquet_images_and_labels(tmp_path: Path) -> None:
    task = load_task(write_task(tmp_path, table([0, 1, 2, 1]), table([2, 0])))
    assert task.split("train").labels.tolist() == [0, 1, 2, 1]
    assert task.num_classes == 3
    assert np.asarray(task.split("train").image(2))[0, 0].tolist() == [20, 0, 0]


def test_class_names_come_from_the_files(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.new("RGB", (4, 4))] * 2, "label": [0, 1]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    (tmp_path / "t.yaml").write_text(
        "title: T\nsource: {kind: parquet}\nsplits: {train: {files: ['train-*']}, test: {files: ['test-*']}}\n"
    )
    assert list(load_task(str(tmp_path / "t.yaml")).class_names) == ["cat", "dog"]


def test_arrow_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = {"image": [{"bytes": png(5), "path": None}] * 3, "label": [0, 1, 1]}
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / split)
    (tmp_path / "t.yaml").write_text(
        "title: T\nsource: {kind: arrow}\nsplits: {train: {files: ['train/*.arrow']}, test: {files: ['test/*.arrow']}}\n"
    )
    task = load_task(str(tmp_path / "t.yaml"))
    assert task.split("test").labels.tolist() == [0, 1, 1]
    assert task.split("test").image(0).size == (4, 4)


@pytest.mark.parametrize(
    ("train", "extra", "source", "message"),
    [
        (
            table([0, 1]),
            "",
            ", label: lable",
            r"has no label column 'lable'; did you mean 'label'\? \(it has: image, label\)",
        ),
        (table([0, 1]), "", ", image: img", r"has no image column 'img'"),
        (table(["a", "b"]), "", "", r"the label column 'label' holds (large_)?string, not whole numbers"),
        (table([0.0, 1.0]), "", "", r"the label column 'label' holds double, not whole numbers"),
        (table([0, None]), "", "", r"the label column 'label' is empty in 1 rows"),
        (table([0, -1]), "", "", r"label -1 at row 1 \(train-00000.*\) of split 'train' is outside 0 to"),
        (table([0, 5]), "num_classes: 3\n", "", r"label 5 at row 1 .* is outside 0 to 2"),
        (table([0, 1]), "num_classes: 3\n", "", r"has 2 classes where the task file expects 3: is 'label' the right"),
        (table([0, 0]), "num_classes: 2\n", "", r"has only one class in its train split"),
    ],
)
def test_bad_columns(tmp_path: Path, train: pa.Table, extra: str, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(write_task(tmp_path, train, table([0, 1]), extra=extra, source=source))


def test_another_size_than_expected_says_both_numbers(tmp_path: Path) -> None:
    path = Path(write_task(tmp_path, table([0, 1]), table([0, 1])))
    path.write_text(path.read_text().replace("['test-*.parquet']", "['test-*.parquet'], size: 12345"))
    with pytest.raises(DataError, match=r"split 'test' has 2 images where the task file expects 12,345"):
        load_task(str(path))


def test_a_damaged_and_a_missing_file(tmp_path: Path) -> None:
    path = write_task(tmp_path, table([0, 1]), table([0, 1]))
    damaged = tmp_path / "test-00000-of-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet is damaged or no parquet file"):
        load_task(path)
    damaged.rename(tmp_path / "tset-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"split 'test': there is no file .*test-\*.parquet"):
        load_task(path)


def test_a_broken_image_is_named_by_row_and_file(tmp_path: Path) -> None:
    bad = pa.table({"image": [{"bytes": png(1), "path": None}, {"bytes": b"no image", "path": None}], "label": [0, 1]})
    task = load_task(write_task(tmp_path, table([0, 1]), bad))
    with pytest.raises(DataError, match=r"row 1 \(test-00000-of-00001.parquet\)"):
        task.split("test").image(1)
