"""Webdataset tars: an image `KEY.jpg` and its label `KEY.cls` beside each other, shard after shard.

A tar is gone through once, from header to header; after that every image is read from its place, so that any row is at hand and
nothing is ever unpacked.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from vitbench.errors import DataError, first_line, listed
from vitbench.tasks.label_rules import apply_rule
from vitbench.tasks.sources.digests import file_digests
from vitbench.tasks.sources.files import class_names, local_files, local_names_file, settings
from vitbench.tasks.sources.local import identities
from vitbench.tasks.sources.rows import Rows, no_label, text_digest
from vitbench.tasks.spec import TaskSpec

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "pgm", "ppm", "tif", "tiff")
LABEL_EXTENSION = "cls"
DEFAULT_IMAGE, DEFAULT_LABEL = "image", "label"
"""What `source.image` and `source.label` are when the task file leaves them out; in a tar they mean the usual extensions."""

_NAME = re.compile(r"(?P<key>(?:.*/)?[^./][^/.]*)\.(?P<extension>[^/]+)", re.DOTALL)
_WHOLE_NUMBER = re.compile(rb"\s*([+-]?\d+)\s*")
_MOST_DIGITS = 18  # so that it fits 64 bits
_MOST_LABEL_BYTES = 64
_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """Where a file lies in a tar.

    Attributes:
        name: Its name in the tar.
        offset: Its first byte, in bytes from the tar's.
        size: In bytes.
    """

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """One key of a tar: its image, and the value of its label."""

    tar: Path
    image: Member
    label: int


def read_webdataset(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the tars of one split, named relative to the task file.

    Raises:
        DataError: As for `rows_of_tars`, or a tar is missing.
    """
    files = local_files(spec, split, base)
    rows = rows_of_tars(files, spec, file_digests(base, files), local_names_file(spec, base))
    return replace(rows, files=lambda: identities(files))


def rows_of_tars(
    files: Sequence[Path], spec: TaskSpec, fingerprint: Sequence[str], names_file: Path | None = None
) -> Rows:
    """Turn webdataset tars into `Rows`: in the order of the tars, and of the keys in each.

    Args:
        files: The tars, uncompressed.
        spec: Their task, whose source names the extensions of images and labels.
        fingerprint: What identifies the tars' contents.
        names_file: The text file with the classes' names, where the task file names one.

    Raises:
        DataError: A tar is damaged, cut off or compressed, or holds a link, a device, or a name that leads out of its folder; a
            key comes twice or has no image or no label; a label is no whole number. Tar and member are named.
    """
    source: Any = spec.source
    if source.hits:
        raise DataError("source.hits means nothing for webdataset tars: a label is the whole number in KEY.cls")
    images = IMAGE_EXTENSIONS if source.image == DEFAULT_IMAGE else tuple(source.image.lower().split("|"))
    label = LABEL_EXTENSION if source.label == DEFAULT_LABEL else source.label.lower()
    samples = [sample for path in files for sample in read_tar(path, images, label)]

    def where(row: int) -> str:
        return f"row {row} ({samples[row].tar.name}: {samples[row].image.name})"

    def raw(row: int) -> bytes:
        tar, member, _ = samples[row]
        try:
            # Each read has its own handle and says where it reads, so threads cannot get in each other's way.
            with tar.open("rb", buffering=0) as handle:
                content = os.pread(handle.fileno(), member.size, member.offset)
        except OSError as error:
            raise DataError(f"{where(row)}: the tar cannot be read: {error.strerror or error}") from error
        if len(content) != member.size:
            raise DataError(f"{where(row)}: the tar has changed since it was opened")
        return content

    values = np.array([sample.label for sample in samples], dtype=np.int64)
    return Rows(
        labels=apply_rule(source.label_rule, values, where, f"the labels .{label}"),
        class_names=class_names(spec, names_file),
        fingerprint=text_digest(
            [source.kind, "webdataset", source.image, source.label, *settings(source, names_file), *fingerprint]
        ),
        raw=raw,
        where=where,
        name=lambda row: PurePosixPath(samples[row].image.name).name,
        pixel_scale=source.pixel_scale,
    )


def read_tar(path: Path, images: Sequence[str], label: str) -> list[Sample]:
    """The samples of one tar, in order of the first member of each key; files of other extensions are passed over.

    Args:
        path: The tar.
        images: The extensions of images; a key has one of them.
        label: The extension of labels.

    Raises:
        DataError: As for `rows_of_tars`.
    """
    keys: dict[str, dict[str, Member]] = {}
    for member in tar_members(path):
        match = _NAME.fullmatch(member.name)
        if match is None:  # hidden files, such as macOS adds, and those without an extension belong to no sample
            continue
        parts, extension = keys.setdefault(match["key"], {}), match["extension"].lower()
        if extension in parts:
            raise DataError(f"{path}: {member.name!r} is there twice: keys must differ")
        parts[extension] = member
    samples = []
    with path.open("rb", buffering=0) as handle:
        for key, parts in keys.items():
            image = _image(path, key, parts, images)
            if label not in parts:
                raise DataError(f"{path}: the key {key!r} has no label .{label} (it has: {_extensions(parts)})")
            samples.append(Sample(path, image, _label(path, parts[label], handle.fileno())))
    if not samples:
        raise DataError(f"{path} holds no samples: they are files KEY.{images[0]} and KEY.{label}")
    return samples


def tar_members(path: Path) -> list[Member]:
    """The plain files of a tar.

    Raises:
        DataError: The tar is damaged, cut off or compressed, or holds a link, a device, or a name that leads out of its folder.
    """
    members = []
    try:
        _refuse_compressed(path)
        # Another encoding than the machine's own default, so that a key is the same everywhere.
        with tarfile.open(path, "r:", encoding="utf-8", errors="replace") as tar:
            for entry in tar:
                if tar.offset <= entry.offset:  # a size below 0, with which tarfile goes in circles (CVE-2025-8194)
                    raise tarfile.ReadError(f"{entry.name!r} has the size {entry.size:,}")
                _check_safe(path, entry)
                if entry.isfile():
                    members.append(Member(entry.name, entry.offset_data, entry.size))
        _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} is damaged, cut off, or no tar: {first_line(error)}") from error
    return members


def _check_safe(path: Path, entry: tarfile.TarInfo) -> None:
    name = PurePosixPath(entry.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{path} holds {entry.name!r}, a name that leads out of its folder: such a tar is not read")
    if not (entry.isfile() or entry.isdir()) or entry.issparse():
        kind = "a link" if entry.issym() or entry.islnk() else "no plain file"
        raise DataError(f"{path} holds {entry.name!r}, which is {kind}: such a tar is not read")


def _check_end(path: Path, end: int) -> None:
    """A tar ends in zeros. `tarfile` takes a broken header for the end as well, and would silently lose all that follows."""
    with path.open("rb") as handle:
        handle.seek(end)
        tail = handle.read(_BLOCK)
        if len(tail) < _BLOCK or any(tail):
            raise DataError(f"{path} is cut off or damaged after {end:,} bytes: fetch it again")
        while block := handle.read(1 << 20):
            if any(block):
                raise DataError(f"{path} goes on after its end: tars that are joined must be separate files")


def _refuse_compressed(path: Path) -> None:
    with path.open("rb") as handle:
        start = handle.read(8)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"{path} is compressed ({kind}): unpack it to a plain .tar, so that any image is at hand")


def _image(path: Path, key: str, parts: dict[str, Member], images: Sequence[str]) -> Member:
    found = [extension for extension in images if extension in parts]
    if not found:
        raise DataError(f"{path}: the key {key!r} has no image .{'|'.join(images)} (it has: {_extensions(parts)})")
    if len(found) > 1:
        raise DataError(
            f"{path}: the key {key!r} has several images ({_extensions(found)}): say by source.image which is meant"
        )
    return parts[found[0]]


def _label(path: Path, member: Member, handle: int) -> int:
    content = os.pread(handle, member.size, member.offset) if member.size <= _MOST_LABEL_BYTES else b""
    match = _WHOLE_NUMBER.fullmatch(content)
    if match is None:
        shown = repr(content[:20].decode("utf-8", "replace")) if content else f"{member.size:,} bytes"
        raise DataError(f"{path}: {member.name!r} holds {shown}, where a whole number is needed")
    if len(match[1]) > _MOST_DIGITS:
        raise no_label(match[1].decode(), f"{member.name!r} of {path}")
    return int(match[1])


def _extensions(parts: Iterable[str]) -> str:
    return listed([f".{extension}" for extension in parts])
