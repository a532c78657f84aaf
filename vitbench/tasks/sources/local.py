"""Local paths that task files and lists name: joined, looked up and told apart, with one line for what no disk could hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vitbench.errors import DataError

_MOST_SHOWN = 80


def local_folder(base: Path, path: str) -> Path:
    """The folder that `source.path` names: absolute, relative to `base`, the folder of the task file, or from a home (`~`).

    Raises:
        DataError: It can be no path, or begins with a user who is not known here.
    """
    check_name(path, "source.path")
    try:
        return base / Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"source.path: {shorten(path)}: nobody here has the home {Path(path).parts[0]}") from error


def check_name(name: str, what: str) -> None:
    """Refuse a name with a NUL, which ends a name for the system, and would be another file's.

    Raises:
        DataError: It has one.
    """
    if "\0" in name:
        raise DataError(f"{what}: {shorten(name)} holds a NUL character, which no file name can")


def is_file(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        DataError: The system cannot tell: the name is too long, or a folder above cannot be entered.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise _cannot(path, error) from error


def is_folder(path: Path) -> bool:
    """Whether there is such a folder.

    Raises:
        DataError: As for `is_file`.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise _cannot(path, error) from error


def matching_files(folder: Path, pattern: str, what: str) -> list[Path]:
    """The files below a folder that a name or glob means, in order of name.

    Args:
        folder: Where to look.
        pattern: A name or a glob, in which `**` stands for any folders.
        what: Where the pattern is from, for messages.

    Raises:
        DataError: It can be no name and no glob, or the system refuses it.
    """
    check_name(pattern, what)
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except OSError as error:
        raise _cannot(folder / pattern, error) from error
    except (ValueError, IndexError, NotImplementedError, re.error) as error:  # pathlib raises IndexError for "."
        raise DataError(
            f"{what}: {shorten(pattern)} is no file name and no pattern (* in a name, ** for any folders)"
        ) from error


def identities(paths: Iterable[Path]) -> Iterator[str]:
    """The absolute path of each file with links followed: equal exactly if two spellings mean one file.

    A folder is resolved once, so that a million images take seconds.
    """
    folders: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        place = f"{folders[folder]}{os.sep}{name}"
        yield os.path.realpath(place) if path.is_symlink() else place


def shorten(name: str | Path) -> str:
    """A name in quotes and on one line, its middle left out when it is long."""
    text = str(name)
    short = text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN // 2]}…{text[-_MOST_SHOWN // 2 :]}"
    return repr(short)


def _cannot(path: Path, error: OSError) -> DataError:
    return DataError(f"{shorten(path)} cannot be looked up: {(error.strerror or str(error)).lower()}")
