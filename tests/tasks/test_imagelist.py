from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ImageFolderMaker
from vitbench.errors import DataError, UsageError
from vitbench.tasks.catalog import load_task
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
    ],
)
def test_a_wrong_list(image_folder: ImageFolderMaker, line: str, message: str) -> None:
    root = listed(image_folder)
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
