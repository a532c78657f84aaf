"""Write a file whole or not at all: to a temporary name beside it, flushed to disk, then renamed."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vitbench.errors import StoreError

TEMPORARY_PREFIX = ".tmp-"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in `path`'s folder, then give it the name `path`.

    A reader sees the old file, no file, or the whole new one. A process that is killed leaves at most a temporary file, which
    nothing reads. Below the mirror of a URL the file is put there first (see `vitbench.records.remote`).

    Raises:
        StoreError: The disk is full, or the folder or its URL cannot be written to; nothing that was there before is lost.
    """
    from vitbench.records import remote  # which writes its own notes by this module

    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        remote.put(temporary, path)
        temporary.replace(path)
    except Exception as error:
        # Libraries wrap a full disk in errors of their own (safetensors does), so their text is looked at as well.
        if isinstance(error, StoreError):
            raise
        if isinstance(error, OSError) or "os error" in str(error).lower():
            raise StoreError(f"cannot write {path}: {write_problem(error)}; what was saved before is intact") from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all (see `write_file`)."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, whole or not at all (see `write_file`)."""
    write_file(path, lambda temporary: temporary.write_bytes(content))


def check_writable(folder: Path) -> None:
    """Make `folder` and prove that files can be written there, and at its URL where it is the mirror of one.

    Raises:
        StoreError: They cannot.
    """
    from vitbench.records import remote

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        probe.write_bytes(b"vitbench")
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"the output folder {folder} cannot be written to: {write_problem(error)}; choose another with --out"
        ) from error
    remote.check_writable(folder)


def sweep(folder: Path, older_than: float = 3600.0) -> None:
    """Remove the temporary files that killed processes left below `folder`; younger ones may be at work still.

    Args:
        folder: Where to look, subfolders included.
        older_than: Age in seconds.
    """
    for leftover in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > older_than:
                leftover.unlink()


def write_problem(error: BaseException) -> str:
    """What kept a file from being written, in a few words."""
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return "the disk is full" if "No space left" in text else text


def slug(text: str, limit: int = 80) -> str:
    """`text` as a single safe path component: letters, digits, dot, dash and underscore, never starting with a dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[-limit:].lstrip(".-") or "unnamed"
