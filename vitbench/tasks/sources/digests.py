"""Digests of many files: kept beside size and time of change, so that a large folder is not read at every start."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from vitbench.errors import DataError, StoreError
from vitbench.records.atomic import write_text
from vitbench.records.remote import CACHE_VARIABLE, cache_folder
from vitbench.tasks.sources.rows import file_digest

__all__ = ["CACHE_VARIABLE", "SETTLED_SECONDS", "cache_folder", "file_digests"]

SETTLED_SECONDS = 2.0
"""A file changed so recently could change again within one tick of its clock, so its digest is not kept."""
ENTRY_LENGTH = 5
"""Size, time of modification, time of change, inode, digest; an entry of another length is of another version."""


def file_digests(root: Path, files: Sequence[Path]) -> list[str]:
    """sha256 of the content of each of `files`, in their order; the cache holds those of one `root` together.

    A digest is taken from the cache only if size, both times of change (in nanoseconds) and inode are those of the file: files
    that swap their names keep their times of modification. A cache that cannot be read or written is done without.

    Raises:
        DataError: A file cannot be read.
    """
    place = cache_folder() / "digests" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:20]}.json"
    known = _read(place)
    fresh: dict[str, list[int | str]] = {}

    def digest(path: Path) -> str:
        try:
            state = path.stat()
            name, stamp = str(path.absolute()), [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
            if known.get(name, [])[:-1] == stamp:
                return str(known[name][-1])
            found = file_digest(path)
        except OSError as error:
            raise DataError(f"the file {path} cannot be read: {error.strerror or error}") from error
        # A copy may keep an old time of modification; the time at which it was made cannot be set.
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED_SECONDS * 1e9:
            fresh[name] = [*stamp, found]
        return found

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(digest, files))
    if fresh:
        _write(place, known | fresh)
    return digests


def _read(place: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: entry for name, entry in content.items() if isinstance(entry, list) and len(entry) == ENTRY_LENGTH}


def _write(place: Path, content: dict[str, list[int | str]]) -> None:
    # Without the cache the next run reads the files again, which is slower, not wrong.
    with suppress(StoreError):
        write_text(place, json.dumps(content))
