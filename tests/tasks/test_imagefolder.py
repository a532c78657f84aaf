from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ImageFolderMaker
from vitbench.errors import DataError
from vitbench.tasks.catalog import load_task


def test_without_split_folders_each_class_is_cut_80_to_20(image_folder: ImageFolderMaker) -> None:
    root = image_folder(train=10)
    load = root / "train"
    task = load_task(f"imagefolder:{load}")
    train, test = task.split("train"), task.split("test")
    assert np.bincount(train.labels).tolist() == [8, 8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    places = {
        name: {split.rows.where(row).split("(")[1] for row in range(len(split))} for name, split in task._splits.items()
    }
    assert not places["train"] & places["test"]
    assert len(places["train"] | places["test"]) == 30
    again = load_task(f"imagefolder:{load}")
    assert again.split("test").fingerprint == test.fingerprint


@pytest.mark.parametrize("images", [2, 3, 4])
def test_a_small_class_gives_every_split_an_image(image_folder: ImageFolderMaker, images: int) -> None:
    task = load_task(f"imagefolder:{image_folder(train=images) / 'train'}")
    assert np.bincount(task.split("test").labels).tolist() == [1, 1, 1]
    assert np.bincount(task.split("train").labels).tolist() == [images - 1] * 3


def test_one_image_per_class_leaves_nothing_to_test_on(image_folder: ImageFolderMaker) -> None:
    with pytest.raises(DataError, match="split 'test' has no images"):
        load_task(f"imagefolder:{image_folder(train=1) / 'train'}")


def test_val_takes_the_place_of_test(image_folder: ImageFolderMaker) -> None:
    root = image_folder()
    (root / "test").rename(root / "val")
    assert len(load_task(f"imagefolder:{root}").split("test")) == 12


def test_the_fingerprint_follows_the_content_not_the_place(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    root = image_folder()
    first = load_task(f"imagefolder:{root}").split("train").fingerprint
    copied = tmp_path / "elsewhere" / "shoes"
    shutil.copytree(root, copied)
    assert load_task(f"imagefolder:{copied}").split("train").fingerprint == first
    Image.new("RGB", (8, 8)).save(copied / "train" / "boot" / "000.png")
    assert load_task(f"imagefolder:{copied}").split("train").fingerprint != first


def break_empty(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.unlink()


def break_no_classes(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def break_one_class(root: Path) -> None:
    for split in ("train", "test"):
        for name in ("clog", "loafer"):
            shutil.rmtree(root / split / name)


def break_twice(root: Path) -> None:
    shutil.copytree(root / "train" / "boot", root / "train" / "Boot")


def break_stranger(root: Path) -> None:
    (root / "train" / "boot" / "notes.txt").write_text("size 42")


def break_extra_class(root: Path) -> None:
    (root / "test" / "clog").rename(root / "test" / "sandal")


def break_no_test(root: Path) -> None:
    shutil.rmtree(root / "test")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_empty, "has no images"),
        (break_no_classes, "has no class folders"),
        (break_one_class, "has only one class in its train split .'boot'.: there is nothing to tell apart"),
        (break_twice, "the class folders 'Boot' and 'boot' have the same name"),
        (break_stranger, r"notes.txt is no image \(bmp, .*\): move it out of the class folder"),
        (break_extra_class, "the class folder 'sandal' does not exist in the train split"),
        (break_no_test, "has the folder 'train' but none to test on: add one of test"),
    ],
)
def test_bad_folders(image_folder: ImageFolderMaker, damage: object, message: str) -> None:
    root = image_folder()
    damage(root)  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as caught:
        load_task(f"imagefolder:{root}")
    assert "\n" not in str(caught.value)


def test_clutter_of_file_managers_is_passed_over(image_folder: ImageFolderMaker) -> None:
    root = image_folder()
    for name in (".DS_Store", "Thumbs.db"):
        (root / "train" / "boot" / name).write_bytes(b"x")
    assert len(load_task(f"imagefolder:{root}").split("train")) == 18


def test_a_broken_image_is_named_by_row_and_file(image_folder: ImageFolderMaker) -> None:
    root = image_folder()
    path = root / "test" / "clog" / "001.png"
    path.write_bytes(path.read_bytes()[:60])
    split = load_task(f"imagefolder:{root}").split("test")
    with pytest.raises(DataError, match=r"row 5 \(test/clog/001.png\)"):
        split.image(5)
