from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ImageFolderMaker
from vitbench.errors import DataError, UsageError, VitbenchError
from vitbench.tasks.catalog import load_task
from vitbench.tasks.spec import read_task_file
from vitbench.tasks.splits import RowSet, Segment, parse, resolve, whole
from vitbench.tasks.task import TaskOptions

SIZES = {"train": 3144, "validation": 200, "test": 50}
SELECTIONS = {
    "train800": "train[:800]",
    "val200": "train[2944:3144]",
    "both": "train800+val200",
    "all": "train+validation",
}


def stored(name: str) -> RowSet | None:
    return whole(name, SIZES[name]) if name in SIZES else None


def rows(expression: str) -> list[tuple[str, int]]:
    bases, numbers = resolve(expression, SELECTIONS, stored).rows()
    return list(zip(bases, numbers.tolist(), strict=True))


def test_a_name_a_slice_a_percentage_and_a_sum() -> None:
    assert rows("test") == [("test", row) for row in range(50)]
    assert rows("train[:3]") == [("train", 0), ("train", 1), ("train", 2)]
    assert rows("test[48:]") == [("test", 48), ("test", 49)]
    assert rows("test[:90%]") + rows("test[90%:]") == rows("test")
    assert rows("train[:1] + validation[198:]") == [("train", 0), ("validation", 198), ("validation", 199)]


def test_selections_are_made_of_selections() -> None:
    assert len(rows("both")) == 1000
    assert rows("both")[800] == ("train", 2944)
    assert rows("both[799:801]") == [("train", 799), ("train", 2944)]
    assert rows("all[3140:3147]") == [("train", row) for row in range(3140, 3144)] + [
        ("validation", row) for row in range(3)
    ]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("train[:9999]", r"the slice 'train\[:9999\]' lies outside the 3,144 rows of split 'train'"),
        ("test[50:]", r"the slice 'test\[50:\]' takes none of the 50 rows of split 'test'"),
        ("test[51:]", r"the slice 'test\[51:\]' lies outside the 50 rows of split 'test'"),
        ("test[:0]", r"takes none of the 50 rows"),
        (f"test[:{'1' * 5000}]", r"cannot be read"),
        ("train[5:5]", r"the slice 'train\[5:5\]' is empty"),
        ("train[:101%]", r"a percentage is at most 100%"),
        ("train[-5:]", r"cannot be read at 'train\[-5:\]': write it like train\[:800\]\+validation\[:200\]"),
        ("train[:5", r"cannot be read"),
        ("", r"cannot be read"),
        ("train+", r"cannot be read"),
        ("train[:10]+train[5:15]", r"takes some rows twice"),
        ("trian", r"unknown split 'trian'; did you mean .*train"),
    ],
)
def test_each_mistake_is_told(expression: str, message: str) -> None:
    with pytest.raises(VitbenchError, match=message):
        resolve(expression, SELECTIONS, stored)


def test_a_split_is_not_made_of_itself() -> None:
    with pytest.raises(UsageError, match=r"the split 'a' is made of itself: a of b"):
        resolve("a", {"a": "b", "b": "a[:3]"}, stored)


@given(
    parts=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 40), st.integers(1, 12)), max_size=5),
    cut=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_a_row_set_is_a_list_of_rows(parts: list[tuple[str, int, int]], cut: tuple[int, int]) -> None:
    """Slices, overlaps and repeats of segments are those of the plain list of (split, row) pairs."""
    sets = RowSet(tuple(Segment(base, start, start + count) for base, start, count in parts))
    plain = [(base, row) for base, start, count in parts for row in range(start, start + count)]
    bases, numbers = sets.rows()
    assert list(zip(bases, numbers.tolist(), strict=True)) == plain
    start, stop = sorted(cut)
    cut_bases, cut_numbers = sets.slice(start, stop).rows()
    assert list(zip(cut_bases, cut_numbers.tolist(), strict=True)) == plain[start:stop]
    assert sets.repeats == (len(set(plain)) < len(plain))
    other = RowSet((Segment("a", 10, 20),))
    if not sets.repeats:
        assert sets.shared(other)[0] == len(set(plain) & {("a", row) for row in range(10, 20)})


@given(size=st.integers(1, 5000), percent=st.integers(1, 99))
def test_percentages_share_no_row_and_leave_none_out(size: int, percent: int) -> None:
    def one(name: str) -> RowSet:
        return whole(name, size)

    try:
        left, right = resolve(f"x[:{percent}%]", {}, one), resolve(f"x[{percent}%:]", {}, one)
    except DataError:
        assert round(size * percent / 100) in (0, size)
        return
    assert len(left) + len(right) == size
    assert left.shared(right)[0] == 0


def test_parsing_gives_back_what_was_written() -> None:
    for text in ("train", "train[:800]", "train[10%:90%]", "train[:800]+validation[:200]"):
        assert "+".join(map(str, parse(text))) == text


SHOES = """\
title: Shoes
source: {kind: imagefolder, path: shoes}
splits:
  everything: {folder: train, size: 18}
  test: {folder: test, size: 12}
  train: {select: "everything[:12]", size: 12}
  validation: {select: "everything[12:]"}
  listed: {select: everything, index: rows.txt}
evaluation: {train: train, test: test, tune_train: train, tune_validation: validation}
"""


def shoes(image_folder: ImageFolderMaker, text: str = SHOES) -> str:
    folder = image_folder()
    (folder.parent / "shoes.yaml").write_text(text)
    (folder.parent / "rows.txt").write_text("3\n17\n0\n")
    return str(folder.parent / "shoes.yaml")


def test_a_task_with_selected_splits(image_folder: ImageFolderMaker) -> None:
    task = load_task(shoes(image_folder))
    assert (task.train.name, len(task.train), len(task.test)) == ("train", 12, 12)
    assert task.split("everything[6:12]").labels.tolist() == [1] * 6
    assert task.split("listed").labels.tolist() == [0, 2, 0]
    assert task.split("listed").where(1) == "row 17 (train/loafer/005.png)"
    everything = task.split("everything")
    assert task.split("listed").image(1).tobytes() == everything.image(17).tobytes()
    tuning = task.tuning_splits()
    assert tuning is not None
    assert [len(split) for split in tuning] == [12, 6]
    prints = {
        task.split(name).fingerprint for name in ("everything", "train", "validation", "listed", "everything[6:]")
    }
    assert len(prints) == 5


def test_the_splits_in_use_can_be_chosen(image_folder: ImageFolderMaker) -> None:
    path = shoes(image_folder)
    task = load_task(path, TaskOptions(train_split="everything[1:]", test_split="test[:6]"))
    assert (len(task.train), len(task.test), task.train.name) == (17, 6, "everything[1:]")
    with pytest.raises(UsageError, match=r"unknown split of task 'shoes': 'tset'; did you mean 'test'"):
        load_task(path, TaskOptions(test_split="tset"))
    with pytest.raises(
        DataError, match=r"'everything' and 'validation' share 6 images, such as row 12 of 'everything'"
    ):
        load_task(path, TaskOptions(train_split="everything", test_split="validation"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"everything[:12]", size: 12',
            '"everything[:13]", size: 12',
            r"size is 12 but 'everything\[:13\]' takes 13 rows",
        ),
        ('"everything[:12]"', '"everything[:19]"', r"lies outside the 18 rows of split 'everything'"),
        (
            '"everything[12:]"',
            '"everything[11:]"',
            r"'train' and 'validation' share 1 images, such as row 11 of 'everything'",
        ),
        ('"everything[12:]"', '"everythin[12:]"', r"unknown split 'everythin'"),
        ("test: {folder: test, size: 12}", 'test: {select: "everything[:3]"}', r"'train' and 'test' share 3 images"),
        ("index: rows.txt", "index: ../rows.txt", r"'../rows.txt' climbs out of its folder"),
        (
            "{select: everything, index",
            "{folder: test2, index",
            r"splits.listed: 'index' numbers the rows of a split that",
        ),
        (
            '"everything[:12]", size',
            '"everything[:12]", folder: train, size',
            r"'select' takes rows of other splits, so 'folder'",
        ),
        ("tune_train: train, ", "", r"tune_train and tune_validation are given together or not at all"),
        ("tune_validation: validation", "tune_validation: dev", r"splits lack dev"),
    ],
)
def test_a_task_file_says_what_its_splits_are(image_folder: ImageFolderMaker, old: str, new: str, message: str) -> None:
    assert old in SHOES
    with pytest.raises(DataError, match=message):
        read_task_file(Path(shoes(image_folder, SHOES.replace(old, new))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n18\n", r"rows.txt: entry 2 is '18', where row numbers from 0 to 17 are expected"),
        ("3\nx\n", r"rows.txt: entry 2 is 'x'"),
        ("-1\n", r"entry 1 is '-1'"),
        ("3 3", r"rows.txt: a row number comes twice"),
        ("", r"rows.txt: the index file is empty"),
    ],
)
def test_a_wrong_index_file(image_folder: ImageFolderMaker, text: str, message: str) -> None:
    path = Path(shoes(image_folder))
    (path.parent / "rows.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load_task(str(path)).split("listed")


def test_other_sizes_stop_the_run_unless_they_are_accepted(image_folder: ImageFolderMaker) -> None:
    path = shoes(image_folder, SHOES.replace("test, size: 12", "test, size: 13"))
    with pytest.raises(DataError, match=r"split 'test' has 12 images where the task file expects 13: .*--accept-sizes"):
        load_task(path)
    task = load_task(path, TaskOptions(accept_sizes=True))
    assert task.deviations == ["split 'test' has 12 images where the task file expects 13"]


def test_index_files_of_many_rows_are_compared_quickly() -> None:
    """Two sets of 200,000 rows apart from each other: pairwise it would be 40,000,000,000 comparisons."""
    every = whole("train", 400_000)
    even, odd = every.take(range(0, 400_000, 2)), every.take(range(1, 400_000, 2))
    assert even.shared(odd)[0] == 0
    assert even.shared(every.slice(0, 10)) == (5, "train", 0)
    assert len(every.take(range(400_000)).segments) == 1
