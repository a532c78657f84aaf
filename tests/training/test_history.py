from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitbench.errors import StoreError
from vitbench.training.history import Entry, append, cut_after, read_history


def entry(step: int, **changes: float) -> Entry:
    values = {
        "loss": 1 / step,
        "accuracy": 0.5,
        "learning_rate": 0.01,
        "images_per_second": 100.0,
        "seconds": 2.0 * step,
    }
    return Entry(step=step, **(values | changes))


def written(path: Path, *steps: int) -> Path:
    for step in steps:
        append(path, entry(step))
    return path


def test_a_line_is_on_disk_as_soon_as_it_is_added_and_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a" / "history.jsonl"
    append(path, entry(10))
    assert json.loads(path.read_text()) == {
        "step": 10,
        "loss": 0.1,
        "accuracy": 0.5,
        "learning_rate": 0.01,
        "images_per_second": 100.0,
        "seconds": 20.0,
    }
    append(path, entry(20))
    assert read_history(path) == [entry(10), entry(20)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_the_file_and_nan_when_it_is_read(tmp_path: Path, value: float) -> None:
    path = tmp_path / "history.jsonl"
    append(path, entry(1, loss=value, accuracy=value))
    line = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert line["loss"] is None
    (found,) = read_history(path)
    assert math.isnan(found.loss)
    assert math.isnan(found.accuracy)


def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.jsonl", 10, 20, 30, 40).read_bytes()
    path = written(tmp_path / "history.jsonl", 10, 20, 30)
    assert cut_after(path, 20) == [entry(10), entry(20)]
    written(path, 30, 40)
    assert path.read_bytes() == whole


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(1, 50)), st.integers(0, 60), st.integers(0, 200))
def test_cutting_keeps_what_was_whole_up_to_the_step(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], step: int, lost: int
) -> None:
    path = written(tmp_path_factory.mktemp("history") / "history.jsonl", *sorted(steps))
    path.touch()
    text = path.read_bytes()
    torn = text[: max(0, len(text) - lost)]
    path.write_bytes(torn)
    whole = sorted(steps)[: torn.count(b"\n")]
    assert [found.step for found in read_history(path)] == whole
    assert [found.step for found in cut_after(path, step)] == [found for found in whole if found <= step]
    assert path.read_bytes() in text, "the lines that are left are the very bytes that were written"
    append(path, entry(60))
    assert read_history(path)[-1] == entry(60), "a half line does not spoil the next one"


def test_to_begin_anew_is_to_cut_everything_and_nothing_is_cut_where_there_is_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "history.jsonl", 1, 2)
    assert cut_after(path, 0) == []
    assert read_history(path) == []
    assert cut_after(tmp_path / "none.jsonl", 5) == []
    assert not (tmp_path / "none.jsonl").exists()


def test_what_lies_beyond_the_step_need_not_be_readable(tmp_path: Path) -> None:
    path = written(tmp_path / "history.jsonl", 10, 20)
    with path.open("a") as handle:
        handle.write("\0\0\0\n")
    assert cut_after(path, 10) == [entry(10)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2 of the history .* cannot be read .*invalid JSON.*: move the file away"),
        ("\0\0", "line 2 of the history .*invalid JSON"),
        ("[1]", "line 2 of the history"),
        (entry(1).model_dump_json().replace('"step":1', '"step":0'), "step must be at least 1, got 0"),
        (entry(1).model_dump_json().replace('"loss":1.0', '"loss":"low"'), "loss takes a number, got 'low'"),
        (entry(1).model_dump_json().replace("}", ',"more":1}'), "more .*got 1"),
        ('{"step": 1}', "loss field required"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path / "history.jsonl", 10)
    with path.open("a") as handle:
        handle.write(line + "\n")
    for read in (read_history, lambda path: cut_after(path, 100)):
        with pytest.raises(StoreError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert len(path.read_text().splitlines()) == 2, "nothing was lost"


def test_no_history_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no history at .*none.jsonl"):
        read_history(tmp_path / "none.jsonl")
    with pytest.raises(StoreError, match="cannot read the history"):
        read_history(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the history"):
        append(tmp_path / "file" / "history.jsonl", entry(1))


def _fill(path: Path) -> None:
    """Append until files may not grow any more, as on a full disk; then exit with the number of lines that were written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for step in range(1, 100):
        try:
            append(path, entry(step))
        except StoreError as error:
            os._exit(step - 1 if "what was saved before is intact" in str(error) else 200)
    os._exit(201)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(path,))
    process.start()
    process.join()
    assert process.exitcode is not None
    assert 0 < process.exitcode < 200
    assert path.read_bytes().endswith(b"\n"), "no half line"
    assert [found.step for found in read_history(path)] == list(range(1, process.exitcode + 1))
