"""A folder at an fsspec URL: what lies there, files taken from it, put there whole, removed.

Every wait is bounded, and what goes wrong is told in one line. Credentials are the driver's own business (its environment
variables, profiles and configuration files): none is read, kept or printed here.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vitbench.errors import StoreError, UsageError, one_line, unknown
from vitbench.records.atomic import TEMPORARY_PREFIX

WAIT_SECONDS = 60.0
"""How long an answer is waited for, beside the time that the bytes themselves may take."""
SLOWEST = 256 * 1024.0
"""Bytes per second below which a transfer counts as one that hangs."""
ATTEMPTS = 3
PAUSE_SECONDS = 0.5
"""Before the second attempt; twice as long before each further one."""
TOGETHER = 64
"""Files that are asked for at once."""
WHOLE_AT_ONCE = {
    *("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "ocilake", "tos", "tosfs", "hf"),
}
"""Object stores: a file appears there when its upload is complete, and not before."""
_PERMANENT = (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_STAMPS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "mtime", "ino")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.:-]+):(?P<slashes>/+)(?P<rest>.*)", re.DOTALL)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Entry:
    """A file at the URL.

    Attributes:
        size: Bytes.
        stamp: Changes with the content: the size, and what the driver knows of checksum, generation or times.
        changed: When it was last written, seconds since 1970; None where the driver does not say.
    """

    size: int
    stamp: str
    changed: float | None


def url_in(path: Path | str) -> str | None:
    """The URL that a path means, in one spelling; None for a path of this machine.

    A `Path` has lost a slash of `s3://bucket/runs`; it is given back. Of a text both slashes are asked for: `hf:/models/vit` is
    no URL.

    Raises:
        UsageError: The URL names no folder, has a password in it, or goes up (`..`).
    """
    match = _URL.fullmatch(os.fspath(path))
    if match is None or (isinstance(path, str) and len(match["slashes"]) < 2):
        return None
    if isinstance(path, Path) and Path(f"{match['protocol']}:").is_dir():
        return None
    protocol = match["protocol"].lower()
    parts = [part for part in match["rest"].split("/") if part]
    if parts and re.match(r"[^@]*:[^@]*@", parts[0]):
        raise UsageError(
            f"a password in the URL {protocol}://…@{parts[0].rpartition('@')[2]}/… would be kept in records: "
            f"give it by the driver's environment variables or configuration"
        )
    if not parts or {".", ".."} & set(parts):
        raise UsageError(f"the URL {protocol}://{'/'.join(parts)} names no folder: write such as s3://bucket/runs")
    start = "/" if protocol in ("file", "local") else ""
    return f"{'file' if start else protocol}://{start}{'/'.join(parts)}"


def check_driver(url: str) -> None:
    """Refuse a URL that nothing installed can read.

    Raises:
        UsageError: The protocol is unknown, or its driver is not installed; the message says what to install.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        hint = "an output folder is a path, or a URL such as s3://, gs://, az:// or file:///"
        raise unknown("protocol", protocol, fsspec.available_protocols(), hint=hint) from error
    except ImportError as error:
        cause = error.__cause__ or error
        package = (getattr(cause, "name", None) or protocol).split(".")[0]
        raise UsageError(f"{url} needs the package {package}, which is not installed: pip install {package}") from error


class RemoteFolder:
    """The folder at one URL."""

    def __init__(self, url: str) -> None:
        """Name the folder. Nothing is asked before something is wanted.

        Raises:
            UsageError: There is no driver for the URL.
        """
        check_driver(url)
        self.url = url
        self.protocol = url.partition("://")[0]
        self._filesystem: Any = None
        self._process = 0
        self._made: set[str] = set()
        self._one_at_a_time = threading.RLock()

    def listing(self, inside: str = "") -> dict[str, Entry]:
        """Every file below the folder, or below the folder `inside` of it; path from this folder on to what is known of it.

        Raises:
            StoreError: It cannot be read, or does not answer.
        """
        place = self._place(inside)

        def look(filesystem: Any) -> Mapping[str, Mapping[str, Any]]:
            filesystem.invalidate_cache()
            try:
                found: Mapping[str, Mapping[str, Any]] = filesystem.find(place, detail=True)
            except FileNotFoundError:
                if self.protocol in WHOLE_AT_ONCE:
                    raise  # an empty folder of a bucket is empty; there is no bucket, then
                return {}
            return found

        start = f"{self._place('')}/"
        entries = {}
        for name, info in self._call(look, "read").items():
            path = name.removeprefix(start)
            if info.get("type") != "directory" and name.startswith(start) and _harmless(path):
                entries[path] = _entry(info)
        return entries

    def put(self, source: Path, inside: str) -> None:
        """Put a file of this machine at `inside`, whole or not at all.

        Raises:
            StoreError: It cannot be written, or there is no answer; what was there before is there still.
        """
        place = self._place(inside)
        folder = place.rpartition("/")[0]
        temporary = f"{folder}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"

        def put(filesystem: Any) -> None:
            if self.protocol in WHOLE_AT_ONCE:
                filesystem.put_file(str(source), place)
                return
            if folder not in self._made:
                filesystem.makedirs(folder, exist_ok=True)
                self._made.add(folder)
            try:
                filesystem.put_file(str(source), temporary)
                filesystem.mv(temporary, place)
            except Exception:
                self._made.discard(folder)  # others may have removed it
                with suppress(Exception):
                    filesystem.rm_file(temporary)
                raise

        self._call(put, "written to", source.stat().st_size)

    def get(self, files: Mapping[str, Path], sizes: Mapping[str, int]) -> set[str]:
        """Take files from the folder; many at once where the driver can.

        Args:
            files: Path inside the folder to the file to write.
            sizes: Path inside the folder to the file's size in bytes, as far as it is known.

        Returns:
            Those that were taken; the others are not there.

        Raises:
            StoreError: They cannot be read, or there is no answer.
        """
        taken: set[str] = set()
        names = list(files)
        for part in (names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)):
            size = sum(sizes.get(name, 0) for name in part)
            try:
                self._call(partial(self._get, part, files), "read", size, missing=True)
                taken |= set(part)
            except FileNotFoundError:  # one of them: which, is found by asking for each
                for name in part:
                    with suppress(FileNotFoundError):
                        self._call(partial(self._get, [name], files), "read", sizes.get(name, 0), missing=True)
                        taken.add(name)
        return taken

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, in this order; one that is gone already is passed over.

        Raises:
            StoreError: They cannot be removed, or there is no answer.
        """
        for name in names:
            with suppress(FileNotFoundError):
                self._call(partial(self._remove, self._place(name)), "written to", missing=True)

    @staticmethod
    def _remove(place: str, filesystem: Any) -> None:
        filesystem.rm_file(place)

    def _get(self, names: Sequence[str], files: Mapping[str, Path], filesystem: Any) -> None:
        filesystem.get([self._place(name) for name in names], [str(files[name]) for name in names])

    def _place(self, inside: str) -> str:
        """Where the driver finds a path inside the folder."""
        import fsspec

        kind = fsspec.get_filesystem_class(self.protocol)
        root = str(kind._strip_protocol(self.url)).rstrip("/")
        return f"{root}/{inside}".rstrip("/")

    def _driver(self) -> Any:
        """The driver of this process: one that was made before a fork has connections of another process."""
        import fsspec

        if self._filesystem is None or self._process != os.getpid():
            self._filesystem, self._process = fsspec.filesystem(self.protocol), os.getpid()
        return self._filesystem

    def _call(self, action: Callable[[Any], Found], doing: str, size: int = 0, *, missing: bool = False) -> Found:
        """What `action` gives for the driver, within a bounded time; what may pass is tried again.

        Args:
            action: Gets the driver.
            doing: `read` or `written to`, for the message.
            size: Bytes that go over the wire.
            missing: Whether a file that is not there is the caller's business.

        Raises:
            FileNotFoundError: There is no such file (`missing`).
            StoreError: Anything else.
        """
        seconds = WAIT_SECONDS + size / SLOWEST
        for attempt in range(ATTEMPTS):
            try:
                driver = _within(seconds, self._driver)
                # Drivers that are not made for many requests at once are no safer with several threads.
                with nullcontext() if getattr(driver, "async_impl", False) else self._one_at_a_time:
                    return _within(seconds, partial(action, driver))
            except _NoAnswerError as error:
                raise StoreError(
                    f"{self.url} did not answer within {seconds:.0f} s: is it the right URL, and can this machine reach it?"
                ) from error
            except Exception as error:
                if missing and isinstance(error, FileNotFoundError):
                    raise
                full = isinstance(error, OSError) and error.errno in _FULL
                if isinstance(error, _PERMANENT) or full or _no_credentials(error) or attempt == ATTEMPTS - 1:
                    raise StoreError(self._told(error, doing)) from error
                time.sleep(PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _told(self, error: Exception, doing: str) -> str:
        if isinstance(error, PermissionError) or _no_credentials(error):
            return (
                f"no access to {self.url}, which cannot be {doing} ({one_line(error)}): check the rights there, and the "
                f"credentials that its driver finds in the environment"
            )
        if isinstance(error, FileNotFoundError) and self.protocol in WHOLE_AT_ONCE:
            bucket = "/".join(self.url.split("/")[:3])
            return f"there is no bucket {bucket}: make it, or name another one with --out"
        return f"{self.url} cannot be {doing}: {one_line(error)}; what was saved before is intact"


class _NoAnswerError(Exception):
    """Nothing came within the time."""


def _within(seconds: float, call: Callable[[], Found]) -> Found:
    """What `call` gives, on a thread that is left behind when it takes too long.

    A pool's threads would be waited for when the process ends, and so would hang it; these are not.

    Raises:
        _NoAnswerError: It took too long.
    """
    answers: queue.SimpleQueue[tuple[list[Found], BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(([call()], None))
        except BaseException as error:  # raised again where it is waited for
            answers.put(([], error))

    threading.Thread(target=work, daemon=True, name="vitbench-url").start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise _NoAnswerError from None
    if error is not None:
        raise error
    return found[0]


def _no_credentials(error: BaseException) -> bool:
    return "credential" in type(error).__name__.lower() or "unable to locate credentials" in str(error).lower()


def _harmless(path: str) -> bool:
    """Whether a name that a listing gives can be a file below a folder of this machine, and nowhere else."""
    parts = path.split("/")
    return "\0" not in path and "\\" not in path and all(part not in ("", ".", "..") for part in parts)


def _entry(info: Mapping[str, Any]) -> Entry:
    size = int(info.get("size") or 0)
    known = [str(info[name]) for name in _STAMPS if info.get(name) is not None]
    known = known or [str(info[name]) for name in _TIMES if info.get(name) is not None]
    return Entry(size, " ".join([str(size), *known]), _changed(info))


def _changed(info: Mapping[str, Any]) -> float | None:
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, str):
            with suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
