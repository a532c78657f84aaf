"""Digests of many files: kept beside size and time of change, so that a large folder is not read at every start.

They are kept in SQLite, which looks one up without holding the others: of a million files, they would take much memory.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path

from vitbench.errors import DataError
from vitbench.records.remote import CACHE_VARIABLE, cache_folder
from vitbench.tasks.sources.rows import file_digest

__all__ = ["CACHE_VARIABLE", "SETTLED_SECONDS", "cache_folder", "each_digest", "file_digests"]

SETTLED_SECONDS = 2.0
"""A file changed so recently could change again within one tick of its clock, so its digest is not kept."""
FILES_AT_ONCE = 1024
"""What waits for a thread takes more memory than a digest does."""
WAIT_SECONDS = 5.0
"""How long another process may write to the cache before it is done without."""


def file_digests(root: Path, files: Iterable[Path]) -> list[str]:
    """All of `each_digest`."""
    return list(each_digest(root, files))


def each_digest(root: Path, files: Iterable[Path]) -> Iterator[str]:
    """sha256 of the content of each of `files`, in their order; the cache holds those of one `root` together.

    A digest is taken from the cache only if size, both times of change (in nanoseconds) and inode are those of the file: files
    that swap their names keep their times of modification. A cache that cannot be read or written is done without.

    Raises:
        DataError: A file cannot be read.
    """
    place = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:20]}.sqlite"
    waiting = iter(files)
    with closing(_Kept(place)) as kept, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while part := list(islice(waiting, FILES_AT_ONCE)):
            names = [os.fsencode(path.absolute()) for path in part]  # a name need not be UTF-8
            found = list(pool.map(_digest, part, kept.entries(names)))
            kept.keep([(name, entry) for name, (_, entry) in zip(names, found, strict=True) if entry])
            yield from (digest for digest, _ in found)


def _digest(path: Path, entry: str) -> tuple[str, str]:
    """The digest of a file, and the entry that is to be kept of it: empty where it is kept, or may not be.

    Args:
        path: The file.
        entry: What is kept of it: size, time of modification, time of change, inode, digest; empty for nothing.
    """
    try:
        state = path.stat()
        stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino} "
        if entry.startswith(stamp):
            return entry.removeprefix(stamp), ""
        found = file_digest(path)
    except OSError as error:
        raise DataError(f"the file {path} cannot be read: {error.strerror or error}") from error
    # A copy may keep an old time of modification; the time at which it was made cannot be set.
    settled = time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED_SECONDS * 1e9
    return found, stamp + found if settled else ""


class _Kept:
    """The entries of a cache; one that cannot be opened, read or written has none, and its files are read again, more slowly."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._database: sqlite3.Connection | None = None
        self._takes_more = True
        with self._else_without():
            place.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(place, timeout=WAIT_SECONDS)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS files (name BLOB PRIMARY KEY, entry TEXT NOT NULL) WITHOUT ROWID"
            )

    def entries(self, names: Sequence[bytes]) -> list[str]:
        """What is kept of each file, by its absolute path; empty for nothing."""
        found: dict[bytes, object] = {}
        with self._else_without():
            if self._database:
                for name in names:
                    found |= self._database.execute("SELECT name, entry FROM files WHERE name = ?", [name])
        return [str(found.get(name, "")) for name in names]

    def keep(self, entries: Sequence[tuple[bytes, str]]) -> None:
        """Keep entries of some files, by their absolute paths."""
        with self._else_without():
            if self._database and entries and self._takes_more:
                try:
                    with self._database:
                        self._database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?)", entries)
                except (
                    sqlite3.OperationalError
                ):  # locked, read-only, or on a full disk: what is there can still be read
                    self._takes_more = False

    def close(self) -> None:
        """Let go of it."""
        if self._database:
            self._database.close()
        self._database = None

    @contextmanager
    def _else_without(self) -> Iterator[None]:
        """Go on without the cache where it fails; one that is damaged, which is an error of no narrower kind, is removed."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            self.close()
            if type(error) is sqlite3.DatabaseError:
                with suppress(OSError):
                    self._place.unlink()
