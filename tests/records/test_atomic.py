from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbench.errors import StoreError
from vitbench.records.atomic import check_writable, slug, write_file, write_text


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fails(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"cannot write .*a\.json: the disk is full; what was saved before is intact"):
        write_file(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_bug_in_the_writer_is_not_dressed_up_as_a_store_error(tmp_path: Path) -> None:
    def buggy(temporary: Path) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        write_file(tmp_path / "a", buggy)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "out").write_text("I am a file")
    with pytest.raises(StoreError, match=r"the output folder .* cannot be written to: .*choose another with --out"):
        check_writable(tmp_path / "out" / below)


@given(st.text())
def test_a_slug_is_one_safe_path_component(text: str) -> None:
    name = slug(text)
    assert name
    assert name == Path(name).name
    assert not name.startswith(".")
    assert slug(name) == name
