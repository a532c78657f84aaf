"""Parquet files and tars on the Hugging Face hub, at a pinned commit: only the files that a split names are fetched."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vitbench.errors import DataError, VitbenchError
from vitbench.hub import is_offline
from vitbench.tasks.source_spec import HubSource
from vitbench.tasks.sources.files import open_parquet, rows_of
from vitbench.tasks.sources.hub_files import (
    NotFetchedError,
    Repository,
    cached_names,
    check_whole,
    known_files,
    missing_pattern,
    obtain,
    repository_files,
    repository_of,
)
from vitbench.tasks.sources.rows import Rows
from vitbench.tasks.spec import TaskSpec


def read_hub(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Fetch (or find in the cache) the files of one split, and read them.

    What is cached needs no network, and is compared with its checksum. The commit pins the content, so it is the fingerprint.

    Raises:
        DataError: The repository, the commit or a file cannot be had, a file is damaged, or a column is missing or of the wrong
            type.
        StoreError: The disk is full, or the cache cannot be written to.
    """
    source = spec.source
    assert isinstance(source, HubSource)
    try:
        repository = repository_of(source)
        names = split_files(repository, spec.splits[split].files)
        check_apart(repository, spec)
        names_file = split_files(repository, [source.class_names_file])[0] if source.class_names_file else ""
        wanted = [*names, *([names_file] if names_file else [])]
        for name in wanted:
            obtain(repository, name)
    except NotFetchedError as error:
        raise DataError(
            f"{error}: run `vitbench fetch --tasks {_task_name(spec, base)}` where there is a network{_caches()}"
        ) from error
    check_whole(repository, wanted)
    files = [repository.path(name) for name in names]
    identity = [f"{source.repo}@{repository.commit}", *names]
    classes = repository.path(names_file) if names_file else None
    if source.format == "parquet":
        return rows_of(open_parquet(files), spec, files, identity, classes)
    from vitbench.tasks.sources.webdataset import rows_of_tars

    return rows_of_tars(files, spec, identity, classes)


def split_files(repository: Repository, patterns: Sequence[str]) -> list[str]:
    """The files of a repository that names and globs mean, in their order.

    The list of the repository decides, not what lies in the cache: a glob over a partly filled cache would silently miss files.
    Where there is no list, because another program filled the cache, files that count themselves (`train-00000-of-00002`) are
    taken from the cache when all of them are there.

    Raises:
        DataError: One fits no file, or the list cannot be had.
    """
    known = known_files(repository)
    if known is None:
        found = [_counted(cached_names(repository), pattern) for pattern in patterns]
        if all(found):
            return [name for names in found for name in names]
        known = repository_files(repository)
    names = list(known)
    result: list[str] = []
    for pattern in patterns:
        fitting = [pattern] if pattern in known else _fitting(names, pattern)
        if not fitting:
            raise missing_pattern(repository, pattern, names)
        result += fitting
    return list(dict.fromkeys(result))


def check_apart(repository: Repository, spec: TaskSpec) -> None:
    """Refuse stored splits whose globs take the same file, so that test images would be among those to learn from.

    Raises:
        DataError: Two do; the file is named.
    """
    owner: dict[str, str] = {}
    names = list(known_files(repository) or cached_names(repository))
    for split, part in spec.stored.items():
        for name in {name for pattern in part.files for name in _fitting(names, pattern)}:
            if name in owner:
                raise DataError(f"{repository}: the splits '{owner[name]}' and '{split}' both take the file {name}")
            owner[name] = split


def _fitting(names: Sequence[str], pattern: str) -> list[str]:
    return sorted(name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern))


def _counted(cached: Sequence[str], pattern: str) -> list[str]:
    """The cached files that a name or glob means, if they are all that there can be; else none."""
    if not any(character in pattern for character in "*?["):
        return [pattern] if pattern in cached else []
    found = _fitting(cached, pattern)
    counts = [re.search(r"-\d{5}-of-(\d{5})", name) for name in found]
    return found if all(match is not None and int(match[1]) == len(found) for match in counts) else []


def _task_name(spec: TaskSpec, base: Path) -> str:
    """What a user calls the task that a specification in a folder is of: its name, else its file."""
    from vitbench.tasks.catalog import task_files
    from vitbench.tasks.spec import read_task_file

    called = {path.resolve(): name for name, path in task_files().items()}
    for path in sorted(base.glob("*.y*ml")):
        with suppress(VitbenchError):
            if read_task_file(path) == spec:
                return called.get(path.resolve(), str(path))
    return "NAME"


def _caches() -> str:
    return "" if is_offline() else ", and bring its caches here (HF_HOME and VITBENCH_CACHE), or read a local copy"
