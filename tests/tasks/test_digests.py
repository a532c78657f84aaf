from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vitbench.errors import DataError
from vitbench.tasks.sources import digests
from vitbench.tasks.sources.digests import file_digests


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files that were changed long ago, and a cache of their own."""
    monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / "cache"))
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


def test_a_file_changed_just_now_is_not_trusted_yet(files: list[Path], read: list[str]) -> None:
    files[0].write_text("new")
    file_digests(files[0].parent, files)
    file_digests(files[0].parent, files)
    assert sorted(read) == ["a.png", "a.png", "b.png"]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_a_damaged_cache_is_done_without(files: list[Path], read: list[str], text: str) -> None:
    first = file_digests(files[0].parent, files)
    (place,) = digests.cache_folder().rglob("*.json")
    place.write_text(text)
    assert file_digests(files[0].parent, files) == first
    assert len(read) == 4


def test_a_cache_that_cannot_be_written_is_done_without(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITBENCH_CACHE", str(files[0] / "no-folder"))
    assert len(file_digests(files[0].parent, files)) == 2


def test_a_file_that_vanished_is_named(files: list[Path]) -> None:
    files[1].unlink()
    with pytest.raises(DataError, match=r"the file .*b.png cannot be read"):
        file_digests(files[0].parent, files)
