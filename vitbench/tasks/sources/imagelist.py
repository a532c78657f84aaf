"""Lists of images: text files with a path and a label a line, as the VTAB-1k archives that go around hold them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from vitbench.errors import DataError
from vitbench.tasks.source_spec import ListSource
from vitbench.tasks.sources.digests import file_digests
from vitbench.tasks.sources.rows import Rows, text_digest
from vitbench.tasks.spec import TaskSpec


def read_list(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the lists of one split. Images are in the order of the lines; a label is the last word of a line, from 0.

    Raises:
        DataError: A list or an image is missing, a line is not a path and a whole number, or a path climbs out of the folder.
    """
    source = spec.source
    assert isinstance(source, ListSource)
    root = base / Path(source.path).expanduser()
    names: list[str] = []
    labels: list[int] = []
    for file in spec.splits[split].files:
        for name, label in _lines(root / file):
            names.append(name)
            labels.append(label)
    files = [root / name for name in names]
    if missing := next((path for path in files if not path.is_file()), None):
        raise DataError(f"split '{split}': there is no image {missing}, which a list names")
    digests = file_digests(root, files)

    def where(row: int) -> str:
        return f"row {row} ({names[row]})"

    contents = [f"{name} {label} {digest}" for name, label, digest in zip(names, labels, digests, strict=True)]
    return Rows(
        labels=np.array(labels, dtype=np.int64),
        class_names=(),
        fingerprint=text_digest(["imagelist", *contents]),
        raw=lambda row: files[row],
        where=where,
        name=lambda row: files[row].name,
    )


def _lines(path: Path) -> list[tuple[str, int]]:
    """The paths and labels of one list."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        name = name.strip()
        if not name or not label.isdecimal():
            raise DataError(f"{path}:{number}: '{line.strip()}' is not a path and a label from 0")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{path}:{number}: '{name}' climbs out of the list's folder")
        found.append((name, int(label)))
    if not found:
        raise DataError(f"the list {path} is empty")
    return found
