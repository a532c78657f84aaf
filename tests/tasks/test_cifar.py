"""CIFAR's binary version: both layouts, and what is taken for it by mistake."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitbench.errors import DataError
from vitbench.tasks.catalog import load_task
from vitbench.tasks.sources.cifar import read_cifar
from vitbench.tasks.sources.rows import Rows
from vitbench.tasks.spec import TaskSpec

RNG = np.random.default_rng(0)


def write_records(path: Path, labels: list[tuple[int, ...]]) -> np.ndarray[Any, Any]:
    """Records as the authors describe them: label bytes, then 1,024 bytes of red, of green and of blue, row after row."""
    images = RNG.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    content = b""
    for label, image in zip(labels, images, strict=True):
        content += bytes(label) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
    path.write_bytes(content)
    return images


def read(folder: Path, *files: str, names: tuple[str, ...] = (), **source: Any) -> Rows:
    spec = TaskSpec(
        title="T",
        source={"kind": "cifar_binary", **source},
        splits={"train": {"files": files}, "test": {"files": ("test_batch.bin",)}},
        class_names=names,
    )
    return read_cifar(spec, "train", folder)


def test_cifar10_through_a_task_file(tmp_path: Path) -> None:
    first = write_records(tmp_path / "data_batch_1.bin", [(3,), (9,)])
    second = write_records(tmp_path / "data_batch_2.bin", [(0,)])
    write_records(tmp_path / "test_batch.bin", [(1,), (2,)])
    names = [f"class {number}" for number in range(10)]
    (tmp_path / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    path = tmp_path / "t.yaml"
    path.write_text(
        "title: T\nsource: {kind: cifar_binary}\nnum_classes: 10\n"
        "splits: {train: {files: ['data_batch_*.bin'], size: 3, partial: true}, test: {files: [test_batch.bin]}}\n"
    )
    task = load_task(str(path))
    assert task.train.labels.tolist() == [3, 9, 0]
    assert list(task.class_names) == names
    assert np.array_equal(np.stack([np.asarray(task.train.image(row)) for row in range(3)]), [*first, *second])
    assert task.train.where(2) == "row 2 (record 0 of data_batch_2.bin)"


def test_cifar100_has_two_labels(tmp_path: Path) -> None:
    images = write_records(tmp_path / "train.bin", [(19, 99), (0, 42)])
    (tmp_path / "fine_label_names.txt").write_text("".join(f"fine {number}\n" for number in range(100)))
    (tmp_path / "coarse_label_names.txt").write_text("".join(f"coarse {number}\n" for number in range(20)))
    fine = read(tmp_path, "train.bin", label="fine_label")
    coarse = read(tmp_path, "train.bin", label="coarse_label")
    assert fine.labels.tolist() == [99, 42]
    assert coarse.labels.tolist() == [19, 0]
    assert fine.class_names[42] == "fine 42"
    assert coarse.class_names[19] == "coarse 19"
    assert np.array_equal(np.asarray(fine.image(1)), images[1])
    assert np.array_equal(np.asarray(coarse.image(0)), images[0])
    assert fine.fingerprint != coarse.fingerprint


def test_the_fingerprint_follows_content_and_order(tmp_path: Path) -> None:
    write_records(tmp_path / "data_batch_1.bin", [(0,), (1,)])
    write_records(tmp_path / "data_batch_2.bin", [(1,), (0,)])
    one = read(tmp_path, "data_batch_1.bin", "data_batch_2.bin").fingerprint
    assert read(tmp_path, "data_batch_2.bin", "data_batch_1.bin").fingerprint != one
    assert read(tmp_path, "data_batch_*.bin").fingerprint == one
    write_records(tmp_path / "data_batch_1.bin", [(0,), (1,)])
    assert read(tmp_path, "data_batch_*.bin").fingerprint != one


def test_a_size_that_is_no_number_of_records(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    write_records(path, [(0,), (1,)])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"has 6,145 bytes, which is no whole number of records of 3073 bytes: is it dam"
    ):
        read(tmp_path, "data_batch_1.bin")
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"has 0 bytes, which is no whole number of records"):
        read(tmp_path, "data_batch_1.bin")
    write_records(path, [(0, 1)])
    with pytest.raises(DataError, match=r"it is one of 3074: source.label is fine_label then"):
        read(tmp_path, "data_batch_1.bin")
    write_records(path, [(1,)])
    with pytest.raises(DataError, match=r"it is one of 3073: source.label is label then"):
        read(tmp_path, "data_batch_1.bin", label="coarse_label")


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "train", "meta", "cifar-10-batches-py/data_batch_1"])
def test_the_pickled_version_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(pickle.dumps({"data": [1, 2]}))
    for file in ("data_batch_1.bin", name):
        with pytest.raises(DataError, match=r"is of CIFAR's Python version, a pickle, .*: use the binary version"):
            read(tmp_path, file)


def test_another_folder_is_not_taken_for_the_pickled_version(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "meta").write_text("notes")
    with pytest.raises(DataError, match=r"split 'train': there is no file .*data_batch_1.bin"):
        read(tmp_path, "data_batch_1.bin")


def test_labels_and_names_that_are_not_cifars(tmp_path: Path) -> None:
    write_records(tmp_path / "data_batch_1.bin", [(0,), (10,)])
    with pytest.raises(DataError, match=r"row 1 \(record 1 of data_batch_1.bin\): the label is 10, outside 0 to 9"):
        read(tmp_path, "data_batch_1.bin")
    write_records(tmp_path / "data_batch_1.bin", [(0,), (1,)])
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"batches.meta.txt has the classes of the task file in another order"):
        read(tmp_path, "data_batch_1.bin", names=("dog", "cat"))


def test_rows_say_which_files_they_are_from(tmp_path: Path) -> None:
    write_records(tmp_path / "c.bin", [(3,), (9,)])
    write_records(tmp_path / "c_test.bin", [(0,)])
    expected = tuple(str((tmp_path / name).resolve()) for name in ("c.bin", "c_test.bin"))
    assert tuple(read(tmp_path, "c*.bin").files()) == expected
    assert tuple(read(tmp_path, "./c_test.bin").files()) == expected[1:]
