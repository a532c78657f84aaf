"""CIFAR-10 and CIFAR-100 in their authors' binary version: records of one or two label bytes and 3 x 32 x 32 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitbench.errors import DataError
from vitbench.tasks.source_spec import CifarSource
from vitbench.tasks.sources.digests import file_digests
from vitbench.tasks.sources.files import class_names, local_files
from vitbench.tasks.sources.local import identities, local_folder, matching_files
from vitbench.tasks.sources.rows import Rows, text_digest
from vitbench.tasks.spec import TaskSpec

SIDE = 32
PIXELS = 3 * SIDE * SIDE
LABEL_BYTES = {"label": (1, 0), "coarse_label": (2, 0), "fine_label": (2, 1)}
"""The number of label bytes of a record, and which of them is the label."""
CLASSES = {"label": 10, "coarse_label": 20, "fine_label": 100}
NAME_FILES = {
    "label": "batches.meta.txt",
    "coarse_label": "coarse_label_names.txt",
    "fine_label": "fine_label_names.txt",
}
PICKLED_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
PICKLED_FILES = ("data_batch_1", "test_batch", "batches.meta", "train", "test", "meta")


def read_cifar(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the binary files of one split. Images stay on disk, mapped into memory.

    The names of the classes are read from the text file that comes with the data, if it is there.

    Raises:
        DataError: A file is missing, is of the Python version, which is pickled, or is no whole number of records.
    """
    source = spec.source
    assert isinstance(source, CifarSource)
    folder = local_folder(base, source.path)
    _refuse_pickles(folder, spec.splits[split].files, f"splits.{split}")
    files = local_files(spec, split, base)
    before, place = LABEL_BYTES[source.label]
    parts = [_records(path, before) for path in files]
    labels = np.concatenate([part[:, place] for part in parts]).astype(np.int64)
    starts = np.cumsum([0, *(len(part) for part in parts)])

    def locate(row: int) -> tuple[int, int]:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return file, row - int(starts[file])

    def where(row: int) -> str:
        file, record = locate(row)
        return f"row {row} (record {record} of {files[file].name})"

    def raw(row: int) -> npt.NDArray[np.uint8]:
        file, record = locate(row)
        # Plane after plane, red, green, blue; each row after row.
        planes = parts[file][record, before:].reshape(3, SIDE, SIDE)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    if labels.max() >= CLASSES[source.label]:
        row = int(np.argmax(labels >= CLASSES[source.label]))
        raise DataError(
            f"{where(row)}: the {source.label} is {labels[row]}, outside 0 to {CLASSES[source.label] - 1}: is this the "
            f"binary version of the data set?"
        )
    names = files[0].parent / NAME_FILES[source.label]
    known = names if names.is_file() else None
    return Rows(
        labels=labels,
        class_names=class_names(spec, known),
        fingerprint=text_digest(["cifar_binary", source.label, *file_digests(base, files)]),
        raw=raw,
        where=where,
        files=lambda: identities(files),
    )


def _records(path: Path, label_bytes: int) -> npt.NDArray[np.uint8]:
    """`[N, label_bytes + 3072]` uint8."""
    size, record = path.stat().st_size, label_bytes + PIXELS
    if size == 0 or size % record:
        if path.suffix != ".bin" and _starts_as_pickle(path):
            raise _pickled(path)
        other = {1: 2, 2: 1}[label_bytes] + PIXELS
        hint = "is it damaged?"
        if size and size % other == 0:
            hint = f"it is one of {other}: source.label is {'fine_label' if label_bytes == 1 else 'label'} then"
        raise DataError(f"{path} has {size:,} bytes, which is no whole number of records of {record} bytes: {hint}")
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, record)


def _refuse_pickles(folder: Path, patterns: tuple[str, ...], what: str) -> None:
    """Say so where the Python version lies in place of the binary one."""
    if any(matching_files(folder, pattern, what) for pattern in patterns):
        return
    for place in dict.fromkeys((folder, *((folder / pattern).parent for pattern in patterns))):
        folders = [place / name for name in PICKLED_FOLDERS if (place / name).is_dir()]
        files = [place / name for name in PICKLED_FILES if _starts_as_pickle(place / name)]
        if folders or files:
            raise _pickled((folders or files)[0])


def _starts_as_pickle(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(1) == b"\x80"


def _pickled(path: Path) -> DataError:
    return DataError(
        f"{path} is of CIFAR's Python version, a pickle, which could run code when it is read: use the binary version "
        f"(cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, unpacked)"
    )
