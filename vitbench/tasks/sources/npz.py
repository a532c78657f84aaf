"""NumPy archives: an array of images and an array of labels, such as MedMNIST and dSprites come in."""

from __future__ import annotations

import math
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vitbench.errors import DataError, first_line, listed, nearest
from vitbench.tasks.label_rules import apply_rule
from vitbench.tasks.source_spec import NpzSource
from vitbench.tasks.sources.digests import file_digests
from vitbench.tasks.sources.files import local_files, settings
from vitbench.tasks.sources.local import identities
from vitbench.tasks.sources.rows import Rows, text_digest
from vitbench.tasks.spec import TaskSpec

Array = npt.NDArray[Any]

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a member in a zip file: signature, and the lengths of its name and of its extra field."""
MEMORY_SHARE = 0.5
"""A compressed array may take this share of the memory that is free before it is read."""


@dataclass(frozen=True)
class _Header:
    """What an archive says of one of its arrays before its content is read."""

    shape: tuple[int, ...]
    column_major: bool
    dtype: np.dtype[Any]
    length: int
    """Of the header, in bytes."""


def read_npz(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the archives of one split: labels now, images when the first of them is asked for.

    An array of images that is stored uncompressed (`numpy.savez`) is mapped into memory; a compressed one
    (`numpy.savez_compressed`) is read whole, once, if the memory that is free has room for it.

    Raises:
        DataError: An archive is missing or damaged, an array is missing, pickled, or of another shape or dtype than a task's.
    """
    source = spec.source
    assert isinstance(source, NpzSource)
    image_name, label_name = (name.replace("{split}", split) for name in (source.image, source.label))
    files = local_files(spec, split, base)
    counts = [_count_images(path, image_name) for path in files]
    starts = np.cumsum([0, *counts])
    arrays = [_once(path, image_name) for path in files]

    def locate(row: int) -> tuple[int, int]:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return file, row - int(starts[file])

    def where(row: int) -> str:
        file, number = locate(row)
        return f"row {row} (number {number} of '{image_name}' in {files[file].name})"

    def raw(row: int) -> Array:
        file, number = locate(row)
        return np.asarray(arrays[file]()[number])

    values = []
    for path, count in zip(files, counts, strict=True):
        part = _label_values(path, label_name, source.label_item)
        if len(part) != count:
            raise DataError(f"{path}: '{image_name}' has {count:,} images and '{label_name}' {len(part):,} labels")
        values.append(part)
    described = f"{files[0]}: the array of labels '{label_name}'"
    item = [] if source.label_item is None else [f"label_item={source.label_item}"]
    return Rows(
        labels=apply_rule(source.label_rule, np.concatenate(values), where, described),
        class_names=(),
        fingerprint=text_digest(["npz", image_name, label_name, *item, *settings(source), *file_digests(base, files)]),
        raw=raw,
        where=where,
        pixel_scale=source.pixel_scale,
        files=lambda: (f"{path}:{image_name}" for path in identities(files)),
    )


def _count_images(path: Path, name: str) -> int:
    """The number of images, after a check of the array's header."""
    with _archive(path) as archive:
        header = _header(archive, path, name)
    shape, dtype = header.shape, header.dtype
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))) or 0 in shape[1:]:
        hint = ""
        if len(shape) == 4 and shape[1] in (1, 3):
            hint = ": channels come last"
        elif dtype.kind in "fb":
            hint = ": store gray levels from 0 to 255, or 0 and 1 with pixel_scale: 255"
        raise DataError(
            f"{path}: the array of images '{name}' is {list(shape)} of dtype {dtype}, where [N, H, W], [N, H, W, 1] or "
            f"[N, H, W, 3] of dtype uint8 is needed{hint}"
        )
    return shape[0]


def _label_values(path: Path, name: str, item: int | None) -> Array:
    """`[N]`: one value per image."""
    values = _read(path, name)
    if values.ndim == 2 and item is not None:
        if item >= values.shape[1]:
            raise DataError(f"{path}: '{name}' has {values.shape[1]} columns, and label_item {item} counts from 0")
        return values[:, item]
    if item is None and (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        return values.reshape(-1)
    if values.ndim == 2:
        hint = f"say by label_item which of the {values.shape[1]} columns is the label"
    else:
        hint = "label_item has no meaning" if values.ndim == 1 else "a label is one value"
    raise DataError(f"{path}: the array of labels '{name}' is {list(values.shape)}: {hint}")


def _once(path: Path, name: str) -> Callable[[], Array]:
    """A function that reads an array when it is first called, and only then, whatever threads call it."""
    lock, found = threading.Lock(), list[Array]()

    def array() -> Array:
        with lock:
            if not found:
                found.append(_read(path, name))
        return found[0]

    return array


def _read(path: Path, name: str) -> Array:
    """An array of an archive, mapped into memory if it is stored as it is, else read whole."""
    with _archive(path) as archive:
        header = _header(archive, path, name)
        member = archive.getinfo(f"{name}.npy")
        size = math.prod(header.shape) * header.dtype.itemsize
        if header.length + size != member.file_size:
            raise DataError(f"{path}: the array '{name}' is damaged: its size is not the one that it states")
        if member.compress_type == zipfile.ZIP_STORED and size:
            with archive.open(member) as stream:
                while stream.read(1 << 20):  # at its end zipfile compares the checksum, which a mapping would never do
                    pass
            return _mapped(path, member, header)
        # A few kilobytes can unpack to more than any memory, so the size that is stated comes first.
        if size > MEMORY_SHARE * (available := available_memory()):
            raise _too_large(path, name, size, f", and {available / 1e9:.1f} GB are free")
        try:
            with archive.open(member) as stream:
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
        except MemoryError as error:
            raise _too_large(path, name, size, "") from error


def available_memory() -> int:
    """Bytes that can be had without pushing other programs out: of the machine, or of the container if that has fewer."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10)
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(limits)


def _too_large(path: Path, name: str, size: int, free: str) -> DataError:
    return DataError(
        f"{path}: the array '{name}' needs {size / 1e9:.1f} GB of memory{free}: store it uncompressed (numpy.savez), which "
        f"needs next to none"
    )


def _mapped(path: Path, member: zipfile.ZipInfo, header: _Header) -> Array:
    with path.open("rb") as handle:
        handle.seek(member.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(handle.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile("a member is not where the directory says")
    # The local extra field differs in length from the directory's, so it has to be read.
    start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length + header.length
    order = "F" if header.column_major else "C"
    return np.memmap(path, header.dtype, "r", start, header.shape, order)  # type: ignore[call-overload, no-any-return]


def _header(archive: zipfile.ZipFile, path: Path, name: str) -> _Header:
    names = [member.removesuffix(".npy") for member in archive.namelist()]
    if name not in names:
        close = nearest(name, names, count=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        # As Python writes them: a damaged name can hold a line break.
        raise DataError(f"{path} has no array '{name}'{hint} (it has: {listed(map(repr, names), 12)})")
    with archive.open(f"{name}.npy") as stream:
        shape, column_major, dtype = _npy_header(stream)
        if dtype.hasobject:
            raise DataError(
                f"{path}: the array '{name}' holds Python objects, a pickle, which could run code when it is read: save "
                f"numbers"
            )
        return _Header(shape, column_major, dtype, stream.tell())


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the npy format")


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, and one line for whatever is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        struct.error,
    ) as error:
        raise DataError(f"{path} is damaged or no NumPy archive: {first_line(error)}") from error
