"""Digests of many files: kept beside size and time of change, so that a large folder is not read at every start."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

from vitbench.errors import DataError, StoreError
from vitbench.records.atomic import write_file
from vitbench.records.remote import CACHE_VARIABLE, cache_folder
from vitbench.tasks.sources.rows import file_digest

__all__ = ["CACHE_VARIABLE", "SETTLED_SECONDS", "cache_folder", "file_digests"]

SETTLED_SECONDS = 2.0
"""A file changed so recently could change again within one tick of its clock, so its digest is not kept."""
FILES_AT_ONCE = 1024
"""What waits for a thread takes more memory than a digest does."""
ENTRY_LENGTH = 5
"""Words of an entry: size, time of modification, time of change, inode, digest; one of another length is of another version."""


def file_digests(root: Path, files: Iterable[Path]) -> list[str]:
    """sha256 of the content of each of `files`, in their order; the cache holds those of one `root` together.

    A digest is taken from the cache only if size, both times of change (in nanoseconds) and inode are those of the file: files
    that swap their names keep their times of modification. A cache that cannot be read or written is done without.

    Raises:
        DataError: A file cannot be read.
    """
    place = cache_folder() / "digests" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:20]}.jsonl"
    known = _read(place)
    fresh = False

    def digest(path: Path) -> str:
        nonlocal fresh
        try:
            state = path.stat()
            name = str(path.absolute())
            stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino} "
            if (entry := known.get(name, "")).startswith(stamp):
                return entry.removeprefix(stamp)
            found = file_digest(path)
        except OSError as error:
            raise DataError(f"the file {path} cannot be read: {error.strerror or error}") from error
        # A copy may keep an old time of modification; the time at which it was made cannot be set.
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED_SECONDS * 1e9:
            known[name], fresh = stamp + found, True
        return found

    digests: list[str] = []
    waiting = iter(files)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while part := list(islice(waiting, FILES_AT_ONCE)):
            digests += pool.map(digest, part)
    if fresh:
        _write(place, known)
    return digests


def _read(place: Path) -> dict[str, str]:
    """Absolute path to entry."""
    known = {}
    with suppress(OSError, ValueError, TypeError, AttributeError), place.open(encoding="utf-8") as lines:
        for line in lines:
            name, entry = json.loads(line)
            if len(entry.split()) == ENTRY_LENGTH:
                known[name] = entry
    return known


def _write(place: Path, known: Mapping[str, str]) -> None:
    def lines(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.writelines(f"{json.dumps(item)}\n" for item in known.items())

    # Without the cache the next run reads the files again, which is slower, not wrong.
    with suppress(StoreError):
        write_file(place, lines)
