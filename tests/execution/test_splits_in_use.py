"""Runs on selected splits: what goes through the backbone, what is recorded, what is tuned on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import UsageError, VitbenchError
from vitbench.execution.config import make_config

TASK = """\
title: Shoes
source: {kind: imagefolder, path: shoes}
splits:
  everything: {folder: train, size: 36}
  test: {folder: test, size: 12}
  odd: {select: everything, index: odd.txt, size: 18}
  even: {select: everything, index: even.txt, size: 18}
  both: {select: odd+even, size: 36}
evaluation: {train: both, test: test, tune_train: odd, tune_validation: even}
num_classes: 3
metric: mean_per_class_accuracy
preprocess: vtab
"""


@pytest.fixture
def task(image_folder: ImageFolderMaker) -> str:
    folder = image_folder(train=12)
    for name, rows in (("odd", range(1, 36, 2)), ("even", range(0, 36, 2))):
        (folder.parent / f"{name}.txt").write_text("\n".join(map(str, rows)))
    (folder.parent / "shoes.yaml").write_text(TASK)
    return str(folder.parent / "shoes.yaml")


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(out.rglob("records/**/*.json"))]


def test_a_tuned_run_embeds_every_image_once_and_says_what_it_used(
    tiny_vit: str, task: str, tmp_path: Path, encoded: list[int]
) -> None:
    frame = vitbench.run(
        tiny_vit, task, representations="cls,gap", protocol="ridge", options={"tune": True}, out=tmp_path
    )
    assert sum(encoded) == 36 + 12
    assert (len(frame), frame["n_support"].tolist()) == (2, [36, 36])
    first = records(tmp_path)[0]
    assert first["splits"] == {"train": "both", "test": "test", "tune_train": "odd", "tune_validation": "even"}
    assert {"tune_train_fingerprint", "tune_validation_fingerprint"} < set(first["identity"]["parameters"])
    assert first["metric"] == "mean_per_class_accuracy"
    assert frame["score"].tolist() == frame["mean_per_class_accuracy"].tolist()
    # The stored split's features serve every selection of it.
    vitbench.run(
        tiny_vit, task, representations="cls", shots=[1, 3], seeds=1, train_split="everything[:30]", out=tmp_path
    )
    assert sum(encoded) == 36 + 12


def test_an_untuned_run_is_another_result(tiny_vit: str, task: str, tmp_path: Path) -> None:
    keys = {
        vitbench.run("pixels", task, protocol="ridge", options=options, out=tmp_path, **settings)["key"].item()
        for options, settings in (
            ({"tune": True}, {}),
            ({"l2": "loo"}, {}),
            ({}, {}),
            ({}, {"train_split": "odd"}),
            ({}, {"train_split": "even"}),
            ({}, {"test_split": "test[:9]"}),
        )
    }
    assert len(keys) == 6


def test_selected_rows_have_the_features_of_their_images(tiny_vit: str, task: str, tmp_path: Path) -> None:
    """Scores on `odd+even` equal those of the same images in one stored folder, by a protocol that is blind to order."""
    options = {"l2": 10.0}
    both = vitbench.run(tiny_vit, task, representations="cls", protocol="ridge", options=options, out=tmp_path / "a")
    plain = vitbench.run(
        tiny_vit,
        task,
        representations="cls",
        protocol="ridge",
        options=options,
        train_split="everything",
        out=tmp_path / "b",
    )
    assert both["key"].item() != plain["key"].item()
    first, second = (next((tmp_path / name).rglob("records/**/*.parquet")).read_bytes() for name in "ab")
    assert first == second


def test_accepted_sizes_are_recorded(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    file = folder.parent / "mine.yaml"
    file.write_text(
        "title: Mine\nsource: {kind: imagefolder, path: shoes}\n"
        "splits: {train: {folder: train, size: 19}, test: {folder: test}}\n"
    )
    with pytest.raises(VitbenchError, match="--accept-sizes"):
        vitbench.run("pixels", str(file), shots=1, seeds=1, out=tmp_path)
    vitbench.run("pixels", str(file), shots=1, seeds=1, out=tmp_path, accept_sizes=True)
    assert records(tmp_path)[0]["deviations"] == ["split 'train' has 18 images where the task file expects 19"]


def test_the_tasks_own_preprocessing(task: str, tmp_path: Path) -> None:
    frame = vitbench.run("pixels", task, shots=1, seeds=1, preprocess="task", out=tmp_path)
    assert frame["preprocessing"].item() == "tf1_resize(32x32,bilinear)|value_range(0,1)"
    folder = Path(task).parent / "shoes"
    with pytest.raises(UsageError, match=r"task 'imagefolder/shoes' names no preprocessing: use --preprocess auto"):
        vitbench.run("pixels", f"imagefolder:{folder}", shots=1, seeds=1, preprocess="task", out=tmp_path)


def test_tuning_needs_splits_to_tune_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"task 'builtin/digits' has no splits to tune on .*: use --l2 loo"):
        vitbench.run("pixels", "digits", protocol="ridge", options={"tune": True}, out=tmp_path)


def test_a_suite_sets_what_is_not_given() -> None:
    config = make_config({"suite": "vtab", "options": {"tune": True}})
    assert (config.tasks, config.protocol, config.preprocess) == (("vtab",), "ridge", "vtab")
    assert config.options == {"tune": True}
    narrow = make_config({"suite": "vtab", "tasks": ["vtab/natural"], "preprocess": "auto"})
    assert (narrow.tasks, narrow.protocol, narrow.preprocess) == (("vtab/natural",), "ridge", "auto")
    with pytest.raises(UsageError, match=r"unknown suite 'vtap'; did you mean .*'vtab'"):
        make_config({"suite": "vtap"})


def test_task_data_must_be_of_a_task_of_the_run(task: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--task-data names the task 'cifar10', which is not among the tasks of this run"
    ):
        vitbench.run("pixels", task, task_data={"cifar10": str(tmp_path)}, out=tmp_path / "out")


def test_two_tasks_of_one_name(task: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "shoes.yaml"
    other.write_text(Path(task).read_text())
    with pytest.raises(
        UsageError, match=r"two tasks are called 'shoes': .*shoes.yaml and .*other/shoes.yaml: rename one"
    ):
        vitbench.run("pixels", [task, str(other)], out=tmp_path / "out")


def test_a_record_says_what_its_task_file_says_today(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    """What decides no number is said anew in the records that are there, and no image is embedded for it."""
    folder = image_folder()
    file = folder.parent / "mine.yaml"
    plain = "title: Mine\nsource: {kind: imagefolder, path: shoes}\nsplits: {train: {folder: train}, test: {folder: test}}\n"
    file.write_text(plain)
    first = vitbench.run("pixels", str(file), shots=1, seeds=1, out=tmp_path)
    file.write_text(
        plain.replace("{folder: test}", "{folder: test, size: 9}")
        + "metric: mean_per_class_accuracy\nsynthetic: true\n"
    )
    again = vitbench.run("pixels", str(file), shots=1, seeds=1, out=tmp_path, accept_sizes=True)
    assert again["key"].tolist() == first["key"].tolist()
    (record,) = records(tmp_path)
    assert (record["metric"], record["synthetic"]) == ("mean_per_class_accuracy", True)
    assert record["deviations"] == ["split 'test' has 12 images where the task file expects 9"]
    assert record["provenance"]["created"] == json.loads(first.to_json(orient="records"))[0]["created"]
