from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ImageFolderMaker
from vitbench.errors import DataError, UsageError
from vitbench.tasks.catalog import load_task
from vitbench.tasks.sources.imagelist import read_list
from vitbench.tasks.sources.rows import Rows
from vitbench.tasks.spec import TaskSpec
from vitbench.tasks.task import TaskOptions

TASK = """\
title: Shoes
source: {kind: imagelist, path: shoes}
splits: {train: {files: [train.txt]}, test: {files: [test.txt]}}
"""


def listed(image_folder: ImageFolderMaker) -> Path:
    """The folder of a task whose images are named by lists, last class first."""
    root = image_folder()
    for split in ("train", "test"):
        paths = sorted(root.joinpath(split).rglob("*.png"), reverse=True)
        names = ["boot", "clog", "loafer"]
        lines = [f"{path.relative_to(root).as_posix()} {names.index(path.parent.name)}" for path in paths]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n\n")
    (root.parent / "shoes.yaml").write_text(TASK)
    return root


def test_images_are_in_the_order_of_the_list(image_folder: ImageFolderMaker) -> None:
    root = listed(image_folder)
    task = load_task(str(root.parent / "shoes.yaml"))
    assert task.train.labels.tolist() == [2] * 6 + [1] * 6 + [0] * 6
    assert task.train.where(0) == "row 0 (train/loafer/005.png)"
    assert task.num_classes == 3
    folder = load_task(f"imagefolder:{root}")
    assert task.train.image(17).tobytes() == folder.train.image(0).tobytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/boot/999.png 0", r"split 'train': there is no image .*999.png, which a list names"),
        ("train/boot/000.png", r"train.txt:1: 'train/boot/000.png' is not a path and a label from 0"),
        ("train/boot/000.png -1", r"is not a path and a label from 0"),
        ("../shoes/train/boot/000.png 0", r"climbs out of the list's folder"),
        ("/etc/passwd 0", r"climbs out of the list's folder"),
        ("", r"the list .*train.txt is empty"),
        (
            "train/boot/000.png,0",
            r"'train/boot/000.png,0' is not a path and a label .* one space or a tab between them",
        ),
        ("train/boot/000.png ²", r"is not a path and a label from 0"),
        ("train/boot/000.png ٣", r"is not a path and a label from 0"),
        (
            "train/boot/000.png 1000000",
            r"^label 1000000 at .*train.txt:1: labels are class numbers from 0, below 1,000,000",
        ),
        ("train/boot/000.png " + "9" * 25, r"^label 999999999999… \(25 digits\) at .*train.txt:1: labels are class"),
        ("train/boot/000.png " + "9" * 5000, r"^label 999999999999… \(5,000 digits\) at .*train.txt:1"),
        ("train/boot/\0.png 0", r"train.txt:1: 'train/boot/\\x00.png' holds a NUL character"),
        ("a" * 300 + ".png 0", r"cannot be looked up: file name too long"),
        (
            "train/boot/000.png 0\n\n./train//boot/000.png 1",
            r"train.txt:3: the image './train//boot/000.png' comes twice: it is also at .*train.txt:1",
        ),
        ("train/boot/000.png 0\ntwin.png 0", r"train.txt:2: the image 'twin.png' comes twice"),
    ],
)
def test_a_wrong_list(image_folder: ImageFolderMaker, line: str, message: str) -> None:
    root = listed(image_folder)
    (root / "twin.png").symlink_to("train/boot/000.png")
    (root / "train.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        load_task(str(root.parent / "shoes.yaml"))


def test_the_order_of_a_list_is_part_of_what_it_is(image_folder: ImageFolderMaker) -> None:
    root = listed(image_folder)
    first = load_task(str(root.parent / "shoes.yaml")).train.fingerprint
    lines = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join(reversed(lines)))
    assert load_task(str(root.parent / "shoes.yaml")).train.fingerprint != first


def hub_task(folder: Path) -> Path:
    path = folder / "far.yaml"
    path.write_text(
        "title: Shoes\nunverified: true\nsource: {kind: hub, repo: nobody/shoes}\nnum_classes: 3\n"
        "splits:\n  trainval: {files: [data/train-*.parquet], size: 18}\n  test: {files: [data/test-*.parquet], size: 12}\n"
        '  train: {select: "trainval[:12]+trainval[13:]", size: 17}\n'
    )
    return path


def test_a_tasks_data_may_lie_elsewhere(image_folder: ImageFolderMaker) -> None:
    """As lists, as folders, and as the files that the task file names; the splits keep their meaning."""
    root = listed(image_folder)
    path = hub_task(root.parent)
    (root / "train.txt").rename(root / "trainval.txt")
    by_list = load_task(str(path), TaskOptions(data={str(path): str(root)}))
    assert (len(by_list.train), by_list.train.labels[0]) == (17, 2)
    (root / "trainval.txt").unlink()
    (root / "train").rename(root / "trainval")
    by_folder = load_task(str(path), TaskOptions(data={str(path): str(root)}))
    assert (len(by_folder.train), by_folder.train.labels[0]) == (17, 0)
    assert by_folder.train.where(12) == "row 13 (trainval/loafer/001.png)"


def test_data_elsewhere_that_does_not_fit(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    path = hub_task(image_folder().parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError,
        match=r"holds nothing that task '.*far.yaml' could read: the files data/test-\*.parquet, data/train-\*.parquet; "
        r"lists test.txt, trainval.txt; or folders test/, trainval/ with a folder per class",
    ):
        load_task(str(path), TaskOptions(data={str(path): str(tmp_path / "empty")}))
    with pytest.raises(DataError, match=r"--task-data: there is no folder .*nowhere"):
        load_task(str(path), TaskOptions(data={str(path): str(tmp_path / "nowhere")}))
    with pytest.raises(UsageError, match=r"task 'builtin/digits' is made by a program \(sklearn\) and has no files"):
        load_task("digits", TaskOptions(data={"digits": str(tmp_path)}))


def test_an_image_in_two_lists_is_refused(image_folder: ImageFolderMaker) -> None:
    root = listed(image_folder)
    line = (root / "test.txt").read_text().splitlines()[0]
    (root / "train.txt").write_text((root / "train.txt").read_text() + f"./{line}\n")
    with pytest.raises(DataError, match=r"the splits 'train' and 'test' are both read from .*test/loafer/003.png"):
        load_task(str(root.parent / "shoes.yaml"))


def read(root: Path, *, files: tuple[str, ...] = ("train.txt",), path: str = "", **source: object) -> Rows:
    spec = TaskSpec(
        title="T",
        source={"kind": "imagelist", "path": path, **source},
        splits={"train": {"files": files}, "test": {"files": ("test.txt",)}},
    )
    return read_list(spec, "train", root)


@pytest.mark.parametrize("between", [" ", "\t", "   ", " \t "])
@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\n"), ("", "\r\n")])
def test_lists_of_every_spelling_are_one(image_folder: ImageFolderMaker, between: str, start: str, end: str) -> None:
    root = listed(image_folder)
    (root / "train" / "boot" / "a shoe.png").write_bytes((root / "train" / "boot" / "000.png").read_bytes())
    names = ["train/boot/a shoe.png", "train/clog/000.png"]
    (root / "train.txt").write_text(f"{names[0]} 0\n{names[1]} 1")
    plain = read(root)
    text = start + end.join(f"{name}{between}{label}" for label, name in enumerate(names)) + end
    (root / "train.txt").write_bytes(text.encode())
    assert read(root).fingerprint == plain.fingerprint
    assert tuple(read(root).files()) == tuple(plain.files()) == tuple(str(root / name) for name in names)


def test_rows_say_which_images_they_are_from(image_folder: ImageFolderMaker) -> None:
    root = listed(image_folder)
    (root / "twin").symlink_to("train")
    (root / "train.txt").write_text("./train/boot/000.png 0\ntwin/boot/001.png 1\n")
    assert tuple(read(root).files()) == tuple(str(root / "train" / "boot" / name) for name in ("000.png", "001.png"))


def test_a_list_that_is_named_twice_is_refused(image_folder: ImageFolderMaker) -> None:
    with pytest.raises(DataError, match=r"train.txt:1: the image '.*' comes twice: it is also at .*train.txt:1"):
        read(listed(image_folder), files=("train.txt", "./train.txt"))


def test_pixel_scale_of_a_list(image_folder: ImageFolderMaker) -> None:
    root = listed(image_folder)
    Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).save(root / "mask.png")
    (root / "train.txt").write_text("mask.png 0")
    assert np.asarray(read(root).image(0))[..., 0].tolist() == [[0, 1], [1, 0]]
    assert np.asarray(read(root, pixel_scale=255).image(0))[..., 0].tolist() == [[0, 255], [255, 0]]
    assert read(root, pixel_scale=255).fingerprint != read(root).fingerprint


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        ("", "a\0b", r"the list: '.*a\\x00b' holds a NUL character"),
        ("", "a" * 300, r"the list '.*' cannot be read: File name too long"),
        ("a\0b", "train.txt", r"source.path: 'a\\x00b' holds a NUL character"),
        ("~no-such-user", "train.txt", r"source.path: '~no-such-user': nobody here has the home ~no-such-user"),
    ],
)
def test_names_that_no_disk_could_hold(tmp_path: Path, path: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, files=(name,), path=path)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"the list .*train.txt cannot be read: it is no text in UTF-8$"):
        read(tmp_path)
