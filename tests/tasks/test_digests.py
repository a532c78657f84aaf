from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from vitbench.errors import DataError
from vitbench.tasks.sources import digests
from vitbench.tasks.sources.digests import file_digests


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files that were modified long ago, and a cache of their own, which trusts them at once."""
    monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 0.0)
    paths = [tmp_path / "data" / name for name in ("a.png", "b.png")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(path.name)
        os.utime(path, (1e9, 1e9))
    return paths


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content is read from here on."""
    names: list[str] = []
    original = digests.file_digest

    def counting(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(digests, "file_digest", counting)
    return names


def test_a_file_is_read_once_and_again_when_it_changes(files: list[Path], read: list[str]) -> None:
    first = file_digests(files[0].parent, files)
    assert first == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert file_digests(files[0].parent, files) == first
    assert sorted(read) == ["a.png", "b.png"]
    files[0].write_text("A.png")
    os.utime(files[0], (2e9 - 5e8, 1e9 + 1))
    assert file_digests(files[0].parent, files)[0] == hashlib.sha256(b"A.png").hexdigest()
    assert sorted(read) == ["a.png", "a.png", "b.png"]


def test_a_file_changed_just_now_is_not_trusted_yet(
    files: list[Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file_digests(files[0].parent, files[1:])
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 60.0)
    file_digests(files[0].parent, files)
    file_digests(files[0].parent, files)
    # The time of modification is old, as after a copy; the time of change is not.
    assert files[0].stat().st_mtime == 1e9
    assert sorted(read) == ["a.png", "a.png", "b.png"]


def test_files_that_swap_their_names_are_read_again(files: list[Path], read: list[str]) -> None:
    first = file_digests(files[0].parent, files)
    aside = files[0].with_name("aside")
    files[0].rename(aside)
    files[1].rename(files[0])
    aside.rename(files[1])
    assert file_digests(files[0].parent, files) == first[::-1]
    assert len(read) == 4


def test_a_rewrite_with_the_old_size_and_time_is_seen(files: list[Path]) -> None:
    file_digests(files[0].parent, files)
    files[0].write_text("A.png")
    os.utime(files[0], (1e9, 1e9))
    assert file_digests(files[0].parent, files)[0] == hashlib.sha256(b"A.png").hexdigest()


def test_the_entries_of_another_version_are_not_believed(files: list[Path], read: list[str]) -> None:
    first = file_digests(files[0].parent, files)
    (place,) = digests.cache_folder().rglob("*.sqlite")
    state = files[0].stat()
    other = f"{state.st_size} {state.st_mtime_ns} {'0' * 64}"
    with closing(sqlite3.connect(place)) as database, database:
        database.execute("UPDATE files SET entry = ? WHERE name = ?", [other, os.fsencode(files[0])])
    assert file_digests(files[0].parent, files) == first
    assert sorted(read) == ["a.png", "a.png", "b.png"]


@pytest.mark.parametrize(
    "content", [b"{" * 200, b"SQLite format 3\0" + b"\xff" * 4096], ids=["no database", "a broken one"]
)
def test_a_damaged_cache_is_done_without_and_made_anew(files: list[Path], read: list[str], content: bytes) -> None:
    first = file_digests(files[0].parent, files)
    (place,) = digests.cache_folder().rglob("*.sqlite")
    place.write_bytes(content)
    for times in (4, 6, 6):
        assert file_digests(files[0].parent, files) == first
        assert len(read) == times


def test_a_cache_that_another_process_writes_to_is_done_without(
    files: list[Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "WAIT_SECONDS", 0.01)
    first = file_digests(files[0].parent, files)
    (place,) = digests.cache_folder().rglob("*.sqlite")
    with closing(sqlite3.connect(place, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert file_digests(files[0].parent, files) == first
    assert len(read) == 4
    assert file_digests(files[0].parent, files) == first
    assert len(read) == 4


def test_a_cache_that_takes_no_more_is_still_read(
    files: list[Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "FILES_AT_ONCE", 1)
    more = files[0].with_name("0.png")
    more.write_text("more")
    os.utime(more, (1e9, 1e9))
    file_digests(files[0].parent, files)
    (place,) = digests.cache_folder().rglob("*.sqlite")
    with closing(sqlite3.connect(place, isolation_level=None)) as database:
        monkeypatch.setattr(digests, "WAIT_SECONDS", 0.01)
        database.execute("BEGIN IMMEDIATE")
        assert len(file_digests(files[0].parent, [more, *files])) == 3
    assert sorted(read) == ["0.png", "a.png", "b.png"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such name")
def test_a_name_that_is_no_text_is_kept_too(files: list[Path], read: list[str]) -> None:
    odd = Path(os.fsdecode(os.fsencode(files[0].parent) + b"/\xff.png"))
    files[0].rename(odd)
    assert file_digests(odd.parent, [odd]) == file_digests(odd.parent, [odd])
    assert len(read) == 1


def test_what_was_read_before_a_file_that_cannot_be_is_kept(
    files: list[Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "FILES_AT_ONCE", 1)
    with pytest.raises(DataError, match="vanished"):
        file_digests(files[0].parent, [*files, files[0].with_name("vanished.png")])
    file_digests(files[0].parent, files)
    assert sorted(read) == ["a.png", "b.png"]


def test_a_cache_that_cannot_be_written_is_done_without(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITBENCH_CACHE", str(files[0] / "no-folder"))
    assert len(file_digests(files[0].parent, files)) == 2


def test_a_file_that_vanished_is_named(files: list[Path]) -> None:
    files[1].unlink()
    with pytest.raises(DataError, match=r"the file .*b.png cannot be read"):
        file_digests(files[0].parent, files)
