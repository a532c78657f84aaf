from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.errors import DataError
from vitbench.tasks.spec import read_task_file

GOOD = """\
title: Shoes
source:
  kind: imagefolder
  path: shoes
splits:
  train: {folder: train, size: 18}
  test: {folder: test}
num_classes: 3
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "shoes.yaml"
    path.write_text(text)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    spec = read_task_file(write(tmp_path, GOOD))
    assert spec.title == "Shoes"
    assert spec.splits["train"].size == 18
    assert spec.metric == "accuracy"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_classes: 3", "num_clases: 3", r"shoes.yaml:8: unknown field 'num_clases'; did you mean 'num_classes'\?"),
        ("  path: shoes", "  path: shoes\n  imge: x", r"shoes.yaml:5: unknown field 'source.imge'"),
        ("{folder: train, size: 18}", "{folder: train, sise: 18}", r"shoes.yaml:6: unknown field .*sise.*'size'"),
        ("title: Shoes\n", "", r"shoes.yaml:1: the field 'title' is missing"),
        ("num_classes: 3", "num_classes: three", r"shoes.yaml:8: num_classes: takes a whole number, got 'three'"),
        ("num_classes: 3", "num_classes: 1", r"shoes.yaml:8: num_classes: must be at least 2, got 1"),
        (
            "kind: imagefolder",
            "kind: imagefolders",
            r"shoes.yaml:2: source: takes .*imagefolder.*, got 'imagefolders'; did you mean imagefolder\?",
        ),
        ("  test: {folder: test}\n", "", r"splits lack test"),
        ("folder: test", "folder: ../test", r"splits.test: '../test' climbs out of its folder"),
        ("folder: test}", "folder: train}", r"splits.train and splits.test are the same folder: give each its folder"),
        (
            "{folder: train, size: 18}",
            "{rows: [0, 5]}",
            r"splits.train: 'rows' means nothing for a source of kind imagefolder",
        ),
        (
            "  train: {folder: train, size: 18}\n  test: {folder: test}",
            "  train: {fraction: 0.8}\n  test: {fraction: 0.8}",
            r"the fractions of the splits of one folder sum to 1.6, which is above 1",
        ),
        (
            "  kind: imagefolder\n  path: shoes\nsplits:\n  train: {folder: train, size: 18}\n  test: {folder: test}",
            "  kind: sklearn\n  dataset: digits\nsplits:\n  train: {rows: [0, 900]}\n  test: {rows: [800, 1797]}",
            r"splits.train and splits.test share rows",
        ),
        (
            "  kind: imagefolder\n  path: shoes\nsplits:\n  train: {folder: train, size: 18}\n  test: {folder: test}",
            "  kind: parquet\nsplits:\n  train: {files: [a.parquet]}\n  test: {files: [b.parquet, a.parquet]}",
            r"splits.train and splits.test share the file 'a.parquet'",
        ),
        ("path: shoes", "path: ../shoes", r"source.path: '../shoes' climbs out of its folder; write an absolute path"),
        ("folder: test", "folder: /etc", r"climbs out of its folder"),
        ("num_classes: 3", "title: Again", r"shoes.yaml:8: the field 'title' is given twice"),
        ("num_classes: 3", "\tnum_classes: 3", r"shoes.yaml:8: not valid YAML: .*\\t"),
        ("num_classes: 3", "num_classes: 3\nclass_names: [a, b]", r"num_classes is 3 but class_names has 2 names"),
    ],
)
def test_each_mistake_names_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(DataError, match=message) as caught:
        read_task_file(write(tmp_path, GOOD.replace(old, new)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="a task file is a mapping"):
        read_task_file(write(tmp_path, text))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join([f'*{chr(97 + level)}'] * 9)}]\n" for level in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"shoes.yaml:2: aliases are not read here: write out what '\*a' stands for"),
        ("notes: &a [*a]\n", r"aliases are not read here"),
        ("notes: " + "[" * 3000 + "\n", r"nested more than 50 deep"),
        ("? [a]\n: 2\n", r"shoes.yaml"),
        ("title: 2020-13-45\n", r"shoes.yaml: a value cannot be read: month must be in 1..12"),
        (f"num_classes: {'1' * 5000}\n", r"shoes.yaml: a value cannot be read"),
    ],
    ids=["bomb", "recursive", "deep", "list as key", "date", "digits"],
)
def test_a_text_that_would_fill_memory_or_stack(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_task_file(write(tmp_path, text))
    assert len(str(caught.value)) < 600


def test_a_split_of_unknown_size_may_be_sliced_anywhere(tmp_path: Path) -> None:
    text = GOOD.replace("{folder: train, size: 18}", '{select: "everything[:1100000]"}').replace(
        "  test: ", "  everything: {folder: all}\n  test: "
    )
    assert read_task_file(write(tmp_path, text)).stored_parts("train") == {"everything"}


def test_a_mistake_in_a_split_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shoes.yaml:7: splits.test: '../test' climbs out of its folder"):
        read_task_file(write(tmp_path, GOOD.replace("{folder: test}", "{folder: ../test}")))
