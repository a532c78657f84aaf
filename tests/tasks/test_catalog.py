from __future__ import annotations

import pytest

from tests.conftest import ImageFolderMaker
from vitbench.errors import DataError, UsageError
from vitbench.tasks.catalog import expand_tasks, find_task, load_task, suite_spec, suites, task_files
from vitbench.tasks.task import TaskOptions


def test_full_names_short_names_suites_and_globs() -> None:
    assert expand_tasks(["paper/cifar10"]) == expand_tasks(["cifar10"]) == ["paper/cifar10"]
    assert set(expand_tasks(["paper"])) == {name for name in task_files() if name.startswith("paper/")}
    assert expand_tasks(["paper/cifar*"]) == ["paper/cifar10", "paper/cifar100"]
    assert expand_tasks(["cifar10", "paper/cifar*"]) == ["paper/cifar10", "paper/cifar100"]
    assert suites()["builtin"][0] == "builtin/digits"
    assert len(expand_tasks(["vtab"])) == 19


def test_a_suite_and_the_last_part_name_a_task() -> None:
    assert expand_tasks(["vtab/resisc45"]) == ["vtab/specialized/resisc45"]
    assert expand_tasks(["vtab/natural/dtd"]) == ["vtab/natural/dtd"]
    with pytest.raises(UsageError, match=r"task 'dtd' could be .*vtab/natural/dtd.*: write the full name"):
        expand_tasks(["dtd"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", r"unknown task 'cifar'; did you mean .*cifar10"),
        ("oxford_pet", r"did you mean .*oxford_pets"),
        ("paper/cifar9*", r"unknown task 'paper/cifar9\*'"),
        ("zzz", r"unknown task 'zzz' \(vitbench ls tasks"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand_tasks([name])


def test_a_suite_is_not_one_task() -> None:
    with pytest.raises(UsageError, match=r"'paper' is \d tasks"):
        load_task("paper")


def test_digits_are_what_the_file_says() -> None:
    task = load_task("digits")
    assert task.name == "builtin/digits"
    assert (len(task.split("train")), len(task.split("test")), task.num_classes) == (1000, 797, 10)
    image = task.split("test").image(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert task.chance == 0.1
    assert task.split("train").fingerprint != task.split("test").fingerprint


def test_an_image_folder_by_path(image_folder: ImageFolderMaker) -> None:
    folder = image_folder()
    task = load_task(f"imagefolder:{folder}")
    assert task.name == "imagefolder/shoes"
    assert list(task.class_names) == ["boot", "clog", "loafer"]
    assert task.split("train").labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert task.split("test").image(3).size == (20, 24)


def test_a_task_file_by_path(image_folder: ImageFolderMaker) -> None:
    folder = image_folder()
    file = folder.parent / "mine.yaml"
    file.write_text(
        "title: Mine\nsource: {kind: imagefolder, path: shoes}\nsplits: {train: {folder: train}, test: {folder: test}}\n"
    )
    task = load_task(str(file))
    assert task.name == "mine"
    assert task.split("train").fingerprint == load_task(f"imagefolder:{folder}").split("train").fingerprint


def test_a_missing_task_file_and_a_missing_folder(image_folder: ImageFolderMaker) -> None:
    folder = image_folder()
    with pytest.raises(DataError, match="there is no task file"):
        find_task(str(folder.parent / "nothing.yaml"))
    with pytest.raises(DataError, match=r"there is no image folder .*did you mean .*shoes\?"):
        load_task(f"imagefolder:{folder.parent / 'shoe'}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagefolder:~nobody-of-that-name/x", r"'~nobody-of-that-name/x' is no path"),
        (f"imagefolder:{'x' * 300}", r"is no path: .*name too long"),
        (f"{'x' * 300}.yaml", r"is no path"),
    ],
)
def test_what_is_no_path_at_all(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_task(name)


def test_a_folder_of_images_says_itself_where_its_data_is(image_folder: ImageFolderMaker) -> None:
    name = f"imagefolder:{image_folder()}"
    with pytest.raises(UsageError, match=r"--task-data: 'imagefolder:.*' says itself where its data is"):
        load_task(name, TaskOptions(data={name: "elsewhere"}))


def test_a_part_of_a_suite_is_run_by_the_suite() -> None:
    with pytest.raises(
        UsageError, match=r"'vtab/natural' is a part of the suite 'vtab': write --suite vtab --tasks vtab/nat"
    ):
        suite_spec("vtab/natural")
