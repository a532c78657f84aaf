"""Lists of images: text files with a path and a label a line, as the VTAB-1k archives that go around hold them.

The label is the last word of a line; one space, a tab, or any other white space stands before it. A path may have spaces inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vitbench.errors import DataError, first_line
from vitbench.tasks.source_spec import ListSource
from vitbench.tasks.sources.image_files import rows_of_images
from vitbench.tasks.sources.local import check_name, identities, is_file, local_folder, shorten
from vitbench.tasks.sources.rows import LABEL_LIMIT, Rows, no_label
from vitbench.tasks.spec import TaskSpec

_LABEL = re.compile(r"[0-9]+")
_MOST_DIGITS = 18  # so that it fits 64 bits, and Python takes any time at all to read it


class _Line(NamedTuple):
    """One line of a list, and where it stands."""

    name: str
    label: int
    file: Path
    number: int

    @property
    def place(self) -> str:
        return f"{self.file}:{self.number}"


def read_list(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the lists of one split. Images are in the order of the lines; a label is the last word of a line, from 0.

    Raises:
        DataError: A list or an image is missing, an image comes twice, a line is not a path and a whole number, or a path climbs
            out of the folder.
    """
    source = spec.source
    assert isinstance(source, ListSource)
    root = local_folder(base, source.path)
    lines = [line for file in spec.splits[split].files for line in _lines(root / file)]
    names, labels = [line.name for line in lines], np.array([line.label for line in lines], dtype=np.int64)
    if missing := next((root / name for name in names if not is_file(root / name)), None):
        raise DataError(f"split '{split}': there is no image {missing}, which a list names")
    _refuse_repeats(lines, identities(root / name for name in names))
    return rows_of_images("imagelist", root, names, labels, (), source.pixel_scale)


def _refuse_repeats(lines: list[_Line], images: Iterable[str]) -> None:
    """Refuse an image that comes twice, whatever its spelling: it would count twice, and perhaps with two labels."""
    first: dict[str, _Line] = {}
    for line, image in zip(lines, images, strict=True):
        if image in first:
            raise DataError(
                f"{line.place}: the image {shorten(line.name)} comes twice: it is also at {first[image].place}"
            )
        first[image] = line


def _lines(path: Path) -> list[_Line]:
    """The lines of one list that are not empty."""
    check_name(str(path), "the list")
    try:
        # With a byte order mark the first path would begin with an invisible character.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"the list {path} cannot be read: it is no text in UTF-8") from error
    except OSError as error:
        raise DataError(f"the list {shorten(path)} cannot be read: {first_line(error.strerror or error)}") from error
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            found.append(_line(line, path, number))
    if not found:
        raise DataError(f"the list {path} is empty")
    return found


def _line(text: str, file: Path, number: int) -> _Line:
    place = f"{file}:{number}"
    words = text.rsplit(maxsplit=1)
    if len(words) < 2 or not _LABEL.fullmatch(words[1]):
        raise DataError(
            f"{place}: {shorten(text.strip())} is not a path and a label from 0, with one space or a tab between them"
        )
    name, label = words[0].strip(), words[1]
    check_name(name, place)
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{place}: {shorten(name)} climbs out of the list's folder")
    if len(label) > _MOST_DIGITS or int(label) >= LABEL_LIMIT:
        raise no_label(label, place)
    return _Line(name, int(label), file, number)
