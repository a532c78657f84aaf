"""The index against the files: whatever happens to the folder, the table is the one that reading every file gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitbench
from tests.records.test_store import PREDICTIONS, make_record
from vitbench.errors import StoreError
from vitbench.records import index
from vitbench.records.index import INDEX, Reading, read_records
from vitbench.records.store import ResultStore, as_frame, find_records, read_record
from vitbench.reporting.recorded import read_with_paths
from vitbench.reporting.selection import read_measured


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index for any number of records, written at every change, of files that were written just now."""
    monkeypatch.setattr(index, "SMALLEST", 1)
    monkeypatch.setattr(index, "WORTH_WRITING", 1)
    monkeypatch.setattr(index, "SHARE", 10**9)
    monkeypatch.setattr(index, "SETTLED_SECONDS", -3600.0)


def from_files(out: Path) -> tuple[pd.DataFrame, list[str]]:
    """What the index must give: every file read, by nothing that the index has a part in."""
    records, files, damaged = [], [], []
    for file in find_records(out):
        try:
            records.append(read_record(file))
            files.append(file)
        except StoreError as error:
            damaged.append(str(error))
    frame = as_frame(records)
    copies: dict[str, list[Path]] = {}
    for record, file in zip(records, files, strict=True):
        copies.setdefault(record.key, []).append(file)
    frame["path"] = pd.Series([copies[key].pop(0) for key in frame["key"]], index=frame.index, dtype=object)
    return frame, damaged


def check(out: Path) -> Reading:
    """Read with the index and compare to the last cell, column and dtype."""
    reading = read_records(out)
    frame, damaged = from_files(out)
    pd.testing.assert_frame_equal(reading.frame, frame)
    assert list(reading.damaged) == damaged
    origins = [read_record(path).provenance for path in reading.frame["path"]]
    for name in ("git_commit", "python", "versions", "weights_notes"):
        assert (
            reading.provenance[name].tolist() == [getattr(origin, name) for origin in origins] if len(frame) else True
        )
    return reading


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read themselves, from here on."""
    names: list[str] = []

    def counting(path: Path) -> Any:
        names.append(path.name)
        return read_record(path)

    monkeypatch.setattr(index, "read_record", counting)
    return names


def fill(out: Path, count: int = 6) -> list[Path]:
    store = ResultStore(out)
    return [store.write(make_record(seed=seed, scores={"accuracy": seed / 10}), PREDICTIONS) for seed in range(count)]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.lists(st.integers(0, 2), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(0, 1), max_size=1),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "remove", "damage", "copy", "move", "spoil index"]),
        st.integers(0, 4),
        st.sampled_from(["paper/cifar10", "digits", "paper/a-b"]),
        st.dictionaries(st.sampled_from(["l2", "note", "extra", "list"]), VALUES, max_size=3),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_after_any_history_the_table_is_that_of_the_files(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, str, dict[str, Any]]]
) -> None:
    out = tmp_path_factory.mktemp("run")
    (out / "records").mkdir()
    for step, (what, number, task, details) in enumerate(history):
        files = find_records(out)
        chosen = files[number % len(files)] if files else None
        if what == "write" or chosen is None:
            limit = number if number > 2 else None
            scores = {"accuracy": number / 10, **({"top5_accuracy": 0.5} if number % 2 else {})}
            record = make_record(seed=number, task=task, details=details, limit=limit, scores=scores)
            ResultStore(out).write(record, PREDICTIONS)
        elif what == "remove":
            chosen.unlink()
        elif what == "damage":
            chosen.write_text(chosen.read_text()[: number * 100])
        elif what == "copy":
            more = out / "records" / f"more{step}"
            more.mkdir()
            shutil.copy2(chosen, more / chosen.name)
        elif what == "move":
            (out / "records" / "aside").mkdir(exist_ok=True)
            chosen.replace(out / "records" / "aside" / chosen.name)
        elif (out / "records" / INDEX).exists():
            (out / "records" / INDEX).write_bytes(details.__repr__().encode())
        check(out)
    check(out)


def test_a_second_reading_reads_no_file_and_later_ones_only_what_changed(tmp_path: Path, read_files: list[str]) -> None:
    files = fill(tmp_path)
    read_records(tmp_path)
    assert sorted(read_files) == sorted(file.name for file in files)
    read_files.clear()
    check(tmp_path)
    assert read_files == []
    text = files[2].read_text()
    files[2].write_text(text.replace('"accuracy": 0.2', '"accuracy": 0.9'))
    added = ResultStore(tmp_path).write(make_record(seed=9), PREDICTIONS)
    files[4].unlink()
    assert sorted(check(tmp_path).frame["score"]) == [0.0, 0.1, 0.3, 0.5, 0.5, 0.9]
    assert sorted(read_files) == sorted([files[2].name, added.name])


def test_a_change_that_keeps_size_and_time_of_modification_is_noticed(tmp_path: Path) -> None:
    file = fill(tmp_path)[1]
    read_records(tmp_path)
    before = file.stat()
    file.write_text(file.read_text().replace('"accuracy": 0.1', '"accuracy": 0.7'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert 0.7 in set(check(tmp_path).frame["score"])


def test_what_changed_a_moment_ago_is_read_again_because_it_may_change_within_the_same_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_files: list[str]
) -> None:
    fill(tmp_path)
    monkeypatch.setattr(index, "SETTLED_SECONDS", 3600.0)
    for _ in range(2):
        check(tmp_path)
    assert len(read_files) == 12
    assert not (tmp_path / "records" / INDEX).exists()


def test_a_damaged_record_is_named_every_time_and_heals(tmp_path: Path) -> None:
    file = fill(tmp_path)[3]
    text = file.read_text()
    read_records(tmp_path)
    file.write_text(text[:50])
    for _ in range(2):
        reading = check(tmp_path)
        assert len(reading.damaged) == 1
        assert file.name in reading.damaged[0]
    file.write_text(text)
    assert check(tmp_path).damaged == ()


def test_an_index_with_any_byte_changed_or_cut_off_is_never_believed(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    expected = read_records(tmp_path).frame
    place = tmp_path / "records" / INDEX
    whole = place.read_bytes()
    spoilt = [whole[:end] for end in (0, 1, len(whole) // 2, len(whole) - 1)]
    spoilt += [whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :] for at in range(0, len(whole), 97)]
    for content in spoilt:
        place.write_bytes(content)
        pd.testing.assert_frame_equal(read_records(tmp_path).frame, expected)
    place.write_bytes(whole[:-1])
    read_records(tmp_path)
    assert pq.read_table(place).num_rows == 3, "a damaged index is written anew"


def test_an_index_of_other_code_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_files: list[str]
) -> None:
    fill(tmp_path)
    read_records(tmp_path)
    monkeypatch.setattr(index, "_code", lambda: b"another")
    read_files.clear()
    check(tmp_path)
    assert len(read_files) == 6


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)

    def full(path: Path, write: Callable[[Path], object]) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(index, "write_file", full)
    check(tmp_path)
    assert not (tmp_path / "records" / INDEX).exists()


def test_few_records_have_no_index_and_a_part_of_the_folder_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    inside = tmp_path / "records" / "timm-vit_tiny_patch16_224-abcd"
    check(inside)
    assert not (tmp_path / "records" / INDEX).exists()
    check(tmp_path)
    check(inside)
    check(tmp_path / "records")
    assert (tmp_path / "records" / INDEX).exists()
    (tmp_path / "records" / INDEX).unlink()
    monkeypatch.setattr(index, "SMALLEST", 7)
    check(tmp_path)
    assert not (tmp_path / "records" / INDEX).exists()


def test_one_more_record_of_many_is_no_reason_to_write_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    read_records(tmp_path)
    place = tmp_path / "records" / INDEX
    before = place.stat().st_ino
    monkeypatch.setattr(index, "WORTH_WRITING", 2)
    ResultStore(tmp_path).write(make_record(seed=9), PREDICTIONS)
    assert len(check(tmp_path).frame) == 7
    assert place.stat().st_ino == before


def test_everything_that_reads_a_folder_has_the_same_records(tmp_path: Path) -> None:
    fill(tmp_path)
    for _ in range(2):
        frame, _ = from_files(tmp_path)
        pd.testing.assert_frame_equal(vitbench.load_results(tmp_path), frame.drop(columns="path"), check_flags=False)
        pd.testing.assert_frame_equal(read_with_paths(tmp_path)[0], frame)
        pd.testing.assert_frame_equal(read_measured(tmp_path).records, frame)


WORKER = """
import sys
from pathlib import Path
from vitbench.records import index
index.SMALLEST = index.WORTH_WRITING = 1
index.SHARE, index.SETTLED_SECONDS = 10**9, -3600.0
out = Path(sys.argv[1])
for _ in range(30):
    reading = index.read_records(out)
    assert not reading.damaged, reading.damaged
    assert reading.frame["key"].is_unique
    assert len(reading.frame) >= 6
print(len(reading.frame))
"""


def test_processes_that_read_and_write_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    fill(tmp_path)
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    store = ResultStore(tmp_path)
    seed = 100
    while any(worker.poll() is None for worker in workers) and seed < 400:
        store.write(make_record(seed=seed), PREDICTIONS)
        read_records(tmp_path)
        seed += 1
    for worker in workers:
        out, error = worker.communicate(timeout=120)
        assert worker.returncode == 0, error
        assert int(out) >= 6
    check(tmp_path)


def test_the_index_can_be_read_as_a_table_of_json(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    read_records(tmp_path)
    table = pq.read_table(tmp_path / "records" / INDEX).to_pandas()
    assert [json.loads(text) for text in table["task"]] == ["paper/cifar10"] * 2
    assert all(json.loads(text).endswith(".json") for text in table["_path"])
