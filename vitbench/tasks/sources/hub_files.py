"""Files of the hub's dataset repositories: which there are at a commit, which lie in the cache, and whether these are whole.

The cache is huggingface_hub's own (`HF_HOME`), in its layout, so that files fetched by other programs are found here and the
other way round. Beside it, in vitbench's cache, lie the list of files of every commit that was looked at (a commit never
changes) and the pins: the commits that unverified tasks were pinned to.
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from vitbench.errors import DataError, StoreError, listed, one_line
from vitbench.hub import check_reachable, is_offline
from vitbench.records.atomic import slug, write_text
from vitbench.tasks.source_spec import HubSource
from vitbench.tasks.sources.digests import cache_folder, file_digests
from vitbench.tasks.sources.hub_transfer import (
    SHA256_DIGITS,
    AnswerError,
    DamagedError,
    HubFile,
    Progress,
    damage,
    digest_problem,
    download,
    git_digest,
    is_transport_error,
    kept_files,
    listed_files,
    newest_commit,
)

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class NotFetchedError(DataError):
    """Something of the hub that is not on this machine and cannot be fetched now."""


@dataclass(frozen=True)
class Repository:
    """A dataset repository at one commit.

    Attributes:
        repo: `organisation/name`.
        commit: The full hash.
    """

    repo: str
    commit: str

    def __str__(self) -> str:
        return f"the dataset {self.repo}@{self.commit[:7]}"

    @property
    def folder(self) -> Path:
        """Its folder in huggingface_hub's cache."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"datasets--{self.repo.replace('/', '--')}"

    def path(self, name: str) -> Path:
        """Where a file lies in the cache, whether it is there or not."""
        return self.folder / "snapshots" / self.commit / name

    def blob(self, digest: str) -> Path:
        """Where content lies in the cache, by its digest."""
        return self.folder / "blobs" / digest


def repository_of(source: HubSource) -> Repository:
    """The repository of a source, at the commit that the task file pins, or that its first fetch has found.

    Raises:
        NotFetchedError: It is not pinned, and the hub cannot be asked for its commit.
        DataError: The hub has no such repository, or refuses it.
    """
    if source.revision:
        return Repository(source.repo, source.revision)
    return Repository(source.repo, pins().get(source.repo) or _pin(source.repo))


def pins_file() -> Path:
    """Where the commits of unverified tasks are kept."""
    return cache_folder() / "hub" / "pins.json"


def pins() -> dict[str, str]:
    """Repository to commit, of those that no task file pins.

    Raises:
        StoreError: The file of pins is damaged.
    """
    place = pins_file()
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"the pins of unverified tasks, {place}, cannot be read: remove the file") from error
    good = isinstance(found, dict) and all(re.fullmatch(r"[0-9a-f]{40}", str(commit)) for commit in found.values())
    if not good:
        raise StoreError(f"the pins of unverified tasks, {place}, are no commit hashes: remove the file")
    return dict(found)


def _pin(repo: str) -> str:
    """Ask the hub for the commit of the main branch, and keep it."""
    with explained(Repository(repo, ""), "the newest commit"):
        check_reachable()
        found = newest_commit(repo)
    place = pins_file()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            kept = pins()
            kept.setdefault(repo, found)
            write_text(place, json.dumps(kept, indent=2, sort_keys=True))
    except OSError as error:
        raise StoreError(f"cannot keep the pin of {repo} in {place}: {error.strerror or error}") from error
    return kept[repo]


def known_files(repository: Repository) -> dict[str, HubFile] | None:
    """The files of a repository by name, as far as they can be told without the network; None when they cannot."""
    try:
        files = kept_files(_list_file(repository).read_bytes())
    except (OSError, ValueError):
        return None
    # A list without files was never a hub's; one with such names was altered.
    return files if files and all(map(_stays_inside, files)) else None


def repository_files(repository: Repository) -> dict[str, HubFile]:
    """The files of a repository by name. The hub is asked once for a commit.

    Raises:
        NotFetchedError: The hub cannot be asked.
        DataError: It has no such repository or commit, or refuses it, or what answers is no hub. Nothing is kept then.
    """
    if (known := known_files(repository)) is not None:
        return known
    with explained(repository, "the list of files"):
        check_reachable()
        files = listed_files(repository.repo, repository.commit)
    if not files:
        raise DataError(f"the hub lists no files of {repository}: is there a proxy or a mirror in between?")
    if unsafe := next((name for name in files if not _stays_inside(name)), None):
        raise DataError(f"{repository}: the hub lists a file {unsafe!r} that cannot be stored safely")
    with suppress(StoreError):
        # Without the cache the hub is asked again, which is slower, not wrong.
        write_text(_list_file(repository), json.dumps({name: [file.size, file.digest] for name, file in files.items()}))
    return files


def _list_file(repository: Repository) -> Path:
    return cache_folder() / "hub" / f"{slug(repository.repo)}@{repository.commit}.json"


def _stays_inside(name: str) -> bool:
    """Whether a name in a list stays in its folder."""
    path = PurePosixPath(name)
    plain = bool(path.parts) and str(path) == name and "\0" not in name
    return plain and not path.is_absolute() and ".." not in path.parts


def cached_names(repository: Repository) -> list[str]:
    """The files of a repository that lie in the cache."""
    root = repository.path("")
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def bytes_there(repository: Repository, name: str, file: HubFile) -> int:
    """How many bytes of a file need not be fetched any more: all, none, or what a half download has."""
    for path in (repository.path(name), repository.blob(file.digest)):
        if path.is_file() and path.stat().st_size == file.size:
            return file.size
    partial = _partial(repository, file)
    return min(partial.stat().st_size, file.size) if partial.is_file() else 0


def obtain(repository: Repository, name: str, progress: Progress = lambda count: None) -> Path:
    """Fetch a file of a repository, unless it is there; a half download is gone on with.

    Raises:
        NotFetchedError: The hub cannot be reached, or the user wants to stay offline.
        DataError: The hub has no such file or refuses it, or gives other content than its list says.
        StoreError: The disk is full, or the cache cannot be written to.
    """
    from huggingface_hub import hf_hub_url

    path = repository.path(name)
    if path.is_file():
        return path
    with explained(repository, name):
        check_reachable()
    file = repository_files(repository).get(name)
    if file is None:
        raise DataError(f"{repository} has no file {name}")
    url = hf_hub_url(repository.repo, name, repo_type="dataset", revision=repository.commit)
    blob, partial = repository.blob(file.digest), _partial(repository, file)
    # huggingface_hub's own lock for this content: two processes never write to one half download.
    lock = repository.folder.parent / ".locks" / repository.folder.name / f"{file.digest}.lock"
    with explained(repository, name):
        lock.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not blob.is_file() or damage(blob, file):
                download(url, partial, file, progress)
                partial.replace(blob)
            _place(blob, path)
    return path


def check_whole(repository: Repository, names: Sequence[str]) -> None:
    """Compare size and checksum of cached files with what the hub's list said, or with the name that the cache gives them.

    Checksums are kept beside size and time of change, so that this is slow only once. A file that is not what it should be is
    removed from the cache.

    Raises:
        DataError: One is not.
    """
    known: Mapping[str, HubFile] = known_files(repository) or {}
    wanted = {name: known.get(name) or _by_link(repository.path(name)) for name in names}
    large = [name for name in names if (file := wanted[name]) and len(file.digest) == SHA256_DIGITS]
    found = dict(zip(large, file_digests(repository.folder, [repository.path(name) for name in large]), strict=True))
    for name, file in wanted.items():
        if file is None:
            # A cache without links that another program filled: nothing says what the content should be.
            continue
        path = repository.path(name)
        digest = found.get(name) or git_digest(path)
        if digest == file.digest:
            continue
        size = path.stat().st_size
        problem = (
            digest_problem(digest, file.digest)
            if size == file.size
            else f"it has {size:,} bytes where {file.size:,} are expected"
        )
        raise DataError(f"{name} of {repository} is damaged in the cache: {problem}; {_removed(repository, path)}")


def _by_link(path: Path) -> HubFile | None:
    """What a cached file should be by the name of the content that it links to; its size is not known then."""
    if not path.is_symlink():
        return None
    # One step only: the content may itself be a link into a store that has other names.
    digest = path.readlink().name
    return HubFile(path.stat().st_size, digest) if _DIGEST.fullmatch(digest) else None


def _removed(repository: Repository, path: Path) -> str:
    try:
        if path.is_symlink():
            target = path.parent / path.readlink()
            if Path(os.path.normpath(target)).parent == repository.folder / "blobs":
                target.unlink(missing_ok=True)
        path.unlink()
    except OSError:
        return f"remove {path}, then run the same command again"
    return "it has been removed: run the same command again to fetch it anew"


def _partial(repository: Repository, file: HubFile) -> Path:
    return repository.blob(f"{file.digest}.incomplete")


def _place(blob: Path, path: Path) -> None:
    """Give content its name in the snapshot: by a link, or where there are no links by moving it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        temporary.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        temporary = blob
    temporary.replace(path)


@contextmanager
def explained(repository: Repository, what: str) -> Iterator[None]:
    """Turn the hub's many errors into one line that says what could not be had, and what to do."""
    from huggingface_hub import errors

    dataset = str(repository) if repository.commit else f"the dataset {repository.repo}"
    try:
        yield
    except DamagedError as error:
        raise DataError(
            f"{what} of {dataset} comes damaged from the hub: {error}; nothing of it is kept, so run the same command again, and "
            f"if that does not help see what stands between (a proxy, a mirror)"
        ) from error
    except AnswerError as error:
        raise DataError(
            f"the hub's answer about {what} of {dataset} is not what a hub says: is there a proxy or a login page in between?"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(error, repository, dataset, what) from error
    except OSError as error:
        raise _unreachable(error, dataset, what) from error
    except Exception as error:
        if not is_transport_error(error):
            raise
        raise _unreachable(error, dataset, what) from error


def _refused(error: Any, repository: Repository, dataset: str, what: str) -> DataError:
    """The hub answered, and said no."""
    from huggingface_hub import errors

    status = error.response.status_code
    login = "log in with `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        return DataError(f"{dataset} is gated: accept its terms on its page on the hub, then {login}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return DataError(f"{dataset} does not exist on the hub, or is private: check its name, or {login}")
    if isinstance(error, errors.RevisionNotFoundError):
        if pins().get(repository.repo) == repository.commit:
            return DataError(
                f"{dataset}: the commit that the first fetch found is gone from the hub; remove '{repository.repo}' from "
                f"{pins_file()} to take another"
            )
        return DataError(f"{dataset}: the pinned commit is gone from the hub; the task file must name another")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return DataError(f"{dataset} has no file {what}")
    if status in (401, 403):
        return DataError(f"the hub refuses {what} of {dataset} ({status}): {login}, and accept its terms on its page")
    return DataError(
        f"the hub does not give {what} of {dataset} now ({status}): run the same command later, which goes on from what is there"
    )


def _unreachable(error: Exception, dataset: str, what: str) -> DataError | StoreError:
    """The hub did not answer, or the disk failed."""
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC:
        return StoreError(f"cannot fetch {what} of {dataset}: the disk is full; what was fetched before is kept")
    if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
        return StoreError(f"cannot fetch {what} of {dataset}: the cache (HF_HOME) cannot be written to")
    if is_offline():
        return NotFetchedError(
            f"{what} of {dataset} is not on this machine, and offline was asked for (--offline or HF_HUB_OFFLINE)"
        )
    return NotFetchedError(
        f"{what} of {dataset} is not on this machine, and the hub cannot be reached ({one_line(error)})"
    )


def missing_pattern(repository: Repository, pattern: str, names: Sequence[str]) -> DataError:
    """The error for a file or a glob that fits no file of a repository."""
    return DataError(f"{repository} has no file like '{pattern}' (it has: {listed(names, 6) or 'no files'})")
