"""Lists of images: text files with a path and a label a line, as the VTAB-1k archives that go around hold them.

The label is the last word of a line; one space, a tab, or any other white space stands before it. A path may have spaces inside.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vitbench.errors import DataError, first_line
from vitbench.tasks.source_spec import ListSource
from vitbench.tasks.sources.digests import file_digests
from vitbench.tasks.sources.local import check_name, identities, is_file, local_folder, shorten
from vitbench.tasks.sources.rows import LABEL_LIMIT, Rows, no_label, scale_setting, text_digest
from vitbench.tasks.spec import TaskSpec

_LABEL = re.compile(r"[0-9]+")
_MOST_DIGITS = 18  # so that it fits 64 bits, and Python takes any time at all to read it


class _Line(NamedTuple):
    """One line of a list; `place` is the list and the line's number, for messages."""

    name: str
    label: int
    place: str


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
    names = [line.name for line in lines]
    files = [root / name for name in names]
    if missing := next((path for path in files if not is_file(path)), None):
        raise DataError(f"split '{split}': there is no image {missing}, which a list names")
    images = identities(files)
    _refuse_repeats(lines, images)
    digests = file_digests(root, files)

    def where(row: int) -> str:
        return f"row {row} ({names[row]})"

    contents = [f"{line.name} {line.label} {digest}" for line, digest in zip(lines, digests, strict=True)]
    return Rows(
        labels=np.array([line.label for line in lines], dtype=np.int64),
        class_names=(),
        fingerprint=text_digest(["imagelist", *scale_setting(source.pixel_scale), *contents]),
        raw=lambda row: files[row],
        where=where,
        name=lambda row: files[row].name,
        pixel_scale=source.pixel_scale,
        files=images,
    )


def _refuse_repeats(lines: list[_Line], images: tuple[str, ...]) -> None:
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
            found.append(_line(line, f"{path}:{number}"))
    if not found:
        raise DataError(f"the list {path} is empty")
    return found


def _line(text: str, place: str) -> _Line:
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
    return _Line(name, int(label), place)
