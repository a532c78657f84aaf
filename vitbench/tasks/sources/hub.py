"""Parquet files on the Hugging Face hub, at a pinned commit: only the files that a split names are fetched."""

from __future__ import annotations

import errno
import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vitbench.errors import DataError, StoreError
from vitbench.hub import check_reachable
from vitbench.tasks.sources.files import open_parquet, rows_of
from vitbench.tasks.sources.rows import Rows
from vitbench.tasks.spec import HubSource, TaskSpec


def read_hub(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Fetch (or find in the cache) the files of one split, and read them.

    The cache is huggingface_hub's own (`HF_HOME`); a file is fetched to a temporary name and renamed when whole. What is
    cached needs no network. The commit pins the content, so it is the fingerprint.

    Raises:
        DataError: The repository, the commit or a file cannot be reached, or a column is missing or of the wrong type.
    """
    source = spec.source
    assert isinstance(source, HubSource)
    names = [name for pattern in spec.splits[split].files for name in _names(source, pattern)]  # type: ignore[index]
    files = [_fetch(source, name) for name in names]
    identity = [f"{source.repo}@{source.revision}", *names]
    return rows_of(open_parquet(files), spec, files, fingerprint=identity)


def _names(source: HubSource, pattern: str) -> list[str]:
    if not any(character in pattern for character in "*?["):
        return [pattern]
    known = _cached_files(source)
    found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    # A glob over a partly filled cache would silently miss files, so the repository's own list decides when it can be had.
    if not found or not _complete(found):
        found = [name for name in _remote_files(source.repo, source.revision) if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise DataError(f"the dataset {source.repo}@{source.revision[:7]} has no file like '{pattern}'")
    return sorted(found)


def _complete(names: list[str]) -> bool:
    """Whether names of the hub's form `train-00000-of-00002.parquet` are all there."""
    counts = [re.search(r"-\d{5}-of-(\d{5})", name) for name in names]
    return all(match is not None and int(match[1]) == len(names) for match in counts)


def _cached_files(source: HubSource) -> list[str]:
    from huggingface_hub import constants

    folder = (
        Path(constants.HF_HUB_CACHE) / f"datasets--{source.repo.replace('/', '--')}" / "snapshots" / source.revision
    )
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


@cache
def _remote_files(repo: str, revision: str) -> list[str]:
    from huggingface_hub import HfApi

    with _explained(repo, revision, "the list of files"):
        check_reachable()
        return list(HfApi().list_repo_files(repo, repo_type="dataset", revision=revision))


def _fetch(source: HubSource, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _explained(source.repo, source.revision, name):
        if name not in _cached_files(source):
            check_reachable()
        path: Any = hf_hub_download(source.repo, name, repo_type="dataset", revision=source.revision)
    return Path(path)


@contextmanager
def _explained(repo: str, revision: str, what: str) -> Iterator[None]:
    """Turn the hub's many errors into one line that says what could not be had, and what to do."""
    from huggingface_hub import errors

    dataset = f"the dataset {repo}@{revision[:7]}"
    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise DataError(f"{dataset} does not exist on the hub, or needs a login (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise DataError(
            f"{dataset}: the pinned commit is gone from the hub; the task file must name another"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise DataError(f"{dataset} has no file {what}") from error
    except OSError as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise StoreError(
                f"cannot fetch {what} of {dataset}: the disk is full; what was fetched before is kept"
            ) from error
        raise _offline(dataset, repo, revision, what) from error
    except Exception as error:
        # The hub's client passes its HTTP library's errors through, and that library changes between its versions.
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise _offline(dataset, repo, revision, what) from error


def _offline(dataset: str, repo: str, revision: str, what: str) -> DataError:
    return DataError(
        f"cannot fetch {what} of {dataset}: no network and not in the cache. Where there is a network run "
        f"`hf download --repo-type dataset --revision {revision} {repo}` and set HF_HOME to that cache, or use a local copy "
        f"with imagefolder:PATH or a parquet task file"
    )
