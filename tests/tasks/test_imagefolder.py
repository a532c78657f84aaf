from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ImageFolderMaker
from vitbench.errors import DataError
from vitbench.tasks.catalog import find_task, load_task
from vitbench.tasks.sources.imagefolder import read_folder, split_folders
from vitbench.tasks.spec import TaskSpec


def test_without_split_folders_each_class_is_cut_80_to_20(image_folder: ImageFolderMaker) -> None:
    root = image_folder(train=10)
    load = root / "train"
    task = load_task(f"imagefolder:{load}")
    train, test = task.split("train"), task.split("test")
    assert np.bincount(train.labels).tolist() == [8, 8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    places = [{split.where(row).split("(")[1] for row in range(len(split))} for split in (train, test)]
    assert not places[0] & places[1]
    assert len(places[0] | places[1]) == 30
    assert task.source == "imagefolder:train (80% train, 20% test of every class, seed 0)"
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
        (break_extra_class, r"the class folder 'sandal' does not exist in .*train, where the classes are taken from"),
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


CLASSES = ("boot", "clog", "loafer")


def write_task(root: Path, fields: str) -> str:
    path = root.parent / "shoes.yaml"
    path.write_text(f"title: Shoes\nsource: {{kind: imagefolder, path: {root.name}}}\n{fields}")
    return str(path)


def test_splits_of_any_name_and_selections_of_them(image_folder: ImageFolderMaker) -> None:
    root = image_folder()
    (root / "train").rename(root / "collected")
    (root / "test").rename(root / "held out")
    fields = (
        "splits:\n  trainval: {folder: collected, size: 18}\n  test: {folder: held out, size: 12}\n"
        "  train: {select: 'trainval[:12]+trainval[16:]', partial: true}\n  val: {select: 'trainval[12:16]'}\n"
        "evaluation: {train: train, test: test}\n"
    )
    task = load_task(write_task(root, fields))
    assert task.class_names == CLASSES
    assert task.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 2
    assert task.split("val").labels.tolist() == [2] * 4
    assert task.train.where(13) == "row 17 (collected/loafer/005.png)"
    with Image.open(root / "collected" / "loafer" / "005.png") as image:
        assert np.array_equal(np.asarray(task.train.image(13)), np.asarray(image))


def test_labels_follow_the_order_of_the_task_file(image_folder: ImageFolderMaker) -> None:
    root = image_folder()
    splits = "splits: {train: {folder: train}, test: {folder: test}}\n"
    plain = load_task(write_task(root, splits))
    task = load_task(write_task(root, f"{splits}class_names: [loafer, boot, clog]\n"))
    assert list(task.class_names) == ["loafer", "boot", "clog"]
    for row in range(len(task.test)):
        folder = task.test.where(row).split("/")[1]
        assert task.class_names[task.test.labels[row]] == folder
    assert task.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert task.test.fingerprint != plain.test.fingerprint
    same = load_task(write_task(root, f"{splits}class_names: [boot, clog, loafer]\n"))
    assert same.test.fingerprint == plain.test.fingerprint


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "[boot, clogs, loafer]",
            r"train: the class folder 'clog' is none of the task file's class_names; did you mean",
        ),
        ("[Q1, Q2, Q3]", r"the class folder 'boot' is none of .*class_names; the classes are Q1, Q2, Q3"),
        ("[boot, clog]", r"the class folder 'loafer' is none of the task file's class_names"),
        ("[boot, clog, loafer, sandal]", r"train has no folder for the class 'sandal' of the task file's class_names"),
    ],
)
def test_folders_that_are_not_the_task_files_classes(image_folder: ImageFolderMaker, names: str, message: str) -> None:
    splits = "splits: {train: {folder: train}, test: {folder: test}}\n"
    with pytest.raises(DataError, match=message):
        load_task(write_task(image_folder(), f"{splits}class_names: {names}\n"))


@pytest.mark.parametrize("named", [True, False])
def test_only_a_partial_split_may_lack_a_class(image_folder: ImageFolderMaker, named: bool) -> None:
    root = image_folder()
    shutil.rmtree(root / "train" / "boot")
    names = f"class_names: [{', '.join(CLASSES)}]\n" if named else ""
    partial = f"splits: {{train: {{folder: train, partial: true}}, test: {{folder: test}}}}\n{names}"
    task = load_task(write_task(root, partial))
    assert task.class_names == CLASSES
    assert task.train.labels.tolist() == [1] * 6 + [2] * 6
    assert task.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(DataError, match=r"train has no folder for the class 'boot'|'boot' does not exist in .*train"):
        load_task(write_task(root, partial.replace(", partial: true", "")))


def test_classes_are_those_of_the_first_whole_split(image_folder: ImageFolderMaker) -> None:
    root = image_folder()
    (root / "train").rename(root / "train800")
    shutil.rmtree(root / "train800" / "boot")
    spec = TaskSpec(
        title="T",
        source={"kind": "imagefolder", "path": root.name},
        splits={"train800": {"folder": "train800", "partial": True}, "test": {"folder": "test"}},
        evaluation={"train": "train800"},
    )
    rows = read_folder(spec, "train800", root.parent)
    assert rows.class_names == CLASSES
    assert rows.labels.tolist() == [1] * 6 + [2] * 6


def test_the_draw_is_told_and_decides_the_fingerprint(image_folder: ImageFolderMaker) -> None:
    root = image_folder(train=10)
    _, _, spec = find_task(f"imagefolder:{root / 'train'}")
    assert (spec.splits["train"].fraction, spec.splits["test"].fraction, spec.split_seed) == (0.8, 0.2, 0)
    fields = "splits: {{train: {{folder: train, fraction: {0}}}, test: {{folder: train, fraction: 0.2}}}}\n{1}"
    found = [
        load_task(write_task(root, fields.format(*given))).test
        for given in ((0.8, ""), (0.8, "split_seed: 1\n"), (0.7, ""))
    ]
    assert len({split.fingerprint for split in found}) == 3
    drawn = [sorted(split.where(row).split("(")[1] for row in range(len(split))) for split in found]
    assert drawn[0] != drawn[1]


def folder_spec(path: str, folder: str, **source: object) -> TaskSpec:
    return TaskSpec(
        title="T",
        source={"kind": "imagefolder", "path": path, **source},
        splits={"train": {"folder": folder}, "test": {"folder": "test"}},
    )


def test_rows_say_which_images_they_are_from(image_folder: ImageFolderMaker) -> None:
    root = image_folder()
    rows = read_folder(folder_spec(str(root), "train"), "train", root.parent)
    assert tuple(rows.files()) == tuple(str(rows.raw(row)) for row in range(18))
    assert tuple(read_folder(folder_spec(str(root), "train/"), "train", root.parent).files()) == tuple(rows.files())
    assert tuple(read_folder(folder_spec("shoes", "./train"), "train", root.parent).files()) == tuple(rows.files())
    (root / "twin").symlink_to("train")
    (root / "links" / "boot").mkdir(parents=True)
    (root / "links" / "boot" / "x.png").symlink_to(root / "train" / "boot" / "003.png")
    assert tuple(read_folder(folder_spec(str(root), "twin"), "train", root.parent).files()) == tuple(rows.files())
    assert tuple(read_folder(folder_spec(str(root), "links"), "train", root.parent).files()) == tuple(rows.files())[3:4]


def test_pixel_scale_of_a_folder(image_folder: ImageFolderMaker) -> None:
    root = image_folder()
    mask = root / "train" / "boot" / "000.png"
    Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).save(mask)
    plain = read_folder(folder_spec(str(root), "train"), "train", root.parent)
    scaled = read_folder(folder_spec(str(root), "train", pixel_scale=255), "train", root.parent)
    assert np.asarray(plain.image(0))[..., 0].tolist() == [[0, 1], [1, 0]]
    assert np.asarray(scaled.image(0))[..., 0].tolist() == [[0, 255], [255, 0]]
    assert scaled.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("path", "folder", "message"),
    [
        ("a\0b", "train", r"source.path: 'a\\x00b' holds a NUL character"),
        ("shoes", "a\0b", r"splits.train: 'a\\x00b' holds a NUL character"),
        ("a" * 300, "train", r"cannot be looked up: file name too long"),
        ("shoes", "a" * 300, r"cannot be looked up: file name too long"),
        ("~no-such-user", "train", r"source.path: '~no-such-user': nobody here has the home ~no-such-user"),
    ],
)
def test_names_that_no_disk_could_hold(image_folder: ImageFolderMaker, path: str, folder: str, message: str) -> None:
    root = image_folder()
    with pytest.raises(DataError, match=message):
        read_folder(folder_spec(path, folder), "train", root.parent)


def test_a_folder_of_a_name_that_no_disk_could_hold() -> None:
    with pytest.raises(DataError, match="cannot be looked up: file name too long"):
        split_folders(Path("/tmp") / ("a" * 300))
