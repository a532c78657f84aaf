"""An output folder that is an fsspec URL (`s3://bucket/runs`, `gs://`, `file:///shared/x`): a folder of this machine mirrors it.

All code works on the mirror, a folder below vitbench's cache, named by the URL. Every file that is written whole below it
(`vitbench.records.atomic.write_file`) is first put to the URL and only then gets its name in the mirror: what the mirror has,
the URL has or had, so that the mirror may be deleted at any time. Records, configurations, costs and the journals of runs are
taken up when the folder is attached; predictions and shards of features when they are asked for (`fetch`). Checkpoints of a
training under way, trackers' logs and the index of records stay on the machine that made them.

Files are put in the order in which they are written: predictions before their record, a shard before its sidecar, each whole
or not at all. So a process that is killed leaves whole records at the URL or none, and at most a file that nothing refers to.

Several processes, here or elsewhere, may write to one URL: shards have names of their own, and a record's name is the key of its
identity, so that two of one name say the same. Locks (`FeatureStore.lock`) are files of the mirror and bind the processes of this
machine only: two drivers on two machines may embed the same image twice. That is work done twice, never a wrong number: a
row that two shards have is read from one of them, and each shard's checksum is verified.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

from vitbench.errors import StoreError, UsageError
from vitbench.records.atomic import TEMPORARY_PREFIX, slug
from vitbench.records.filesystem import url_in
from vitbench.records.mirror import ATTACHED_FOLDERS, INCOMING, LEFTOVER_SECONDS, MARKER, Mirror, is_shared

CACHE_VARIABLE = "VITBENCH_CACHE"


def cache_folder() -> Path:
    """Where vitbench keeps what it can make again: `$VITBENCH_CACHE`, else `vitbench` in the user's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitbench"


_MIRRORS: dict[str, Mirror] = {}
"""Root to mirror, of this process."""


def mirror_of(url: str) -> Path:
    """The folder of this machine that mirrors a URL; nothing is asked or made."""
    name = f"{slug(url.partition('://')[2])}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    root = (cache_folder() / "remote" / name).absolute()
    _MIRRORS.setdefault(str(root), Mirror(url, root))
    return root


def url_of(path: Path) -> str:
    """The URL that a mirror's folder, or a path below it, stands for; empty for any other path."""
    found = _place(path)
    return "" if found is None else f"{found[0].url}/{found[1]}".rstrip("/")


def told(path: Path) -> str:
    """A path as a user should read it: at its URL, where it has one."""
    return url_of(path) or str(path)


def attach(url: str) -> Path:
    """Mirror a URL, and take up its records the first time that this process asks.

    Raises:
        StoreError: It cannot be read, or does not answer.
        UsageError: There is no driver for it.
    """
    root = mirror_of(url)
    _MIRRORS[str(root)].attach()
    return root


def ready(folder: Path) -> None:
    """As `attach`, for a path that may be below a mirror; nothing is done for any other."""
    if (found := _place(folder)) is not None:
        found[0].attach()


def output_folder(path: Path | str) -> Path:
    """The folder that stands for what a user named: a path itself; of a URL the mirror, with all records that lie there now.

    Raises:
        StoreError: The URL cannot be read, or does not answer.
        UsageError: There is no driver for it, or it names no folder.
    """
    url = url_in(path)
    if url is None:
        return Path(path)
    mirror = _MIRRORS[str(mirror_of(url))]
    if mirror.is_attached:
        for inside in ATTACHED_FOLDERS:
            mirror.pull(inside, whole=False)
    else:
        mirror.attach()
    return mirror.root


def refuse_url(path: Path, option: str) -> None:
    """Refuse a URL where pictures, pages or tables are to go.

    Raises:
        UsageError: It is one.
    """
    if url := url_in(path):
        raise UsageError(f"{option} {url}: only a run's output folder may be a URL; name a path of this machine here")


def pull(folder: Path, *, whole: bool = False) -> None:
    """Take up what others have put below a folder of a mirror, and drop what they have removed.

    Args:
        folder: Any path; nothing is done where it is below no mirror.
        whole: Bring predictions and shards too; else they come when they are asked for.

    Raises:
        StoreError: The URL cannot be read, or does not answer.
    """
    if (found := _place(folder)) is not None:
        found[0].pull(found[1], whole)


def fetch(path: Path, *, siblings: bool = False) -> bool:
    """Bring a file from the URL if it is not in the mirror.

    Args:
        path: Any path.
        siblings: Bring all files of its kind in its folder at once: who wants one will want the others.

    Returns:
        Whether the file is there.

    Raises:
        StoreError: The URL cannot be read, or does not answer.
    """
    if path.exists() or (found := _place(path)) is None:
        return path.exists()
    mirror, name = found
    folder = name.rpartition("/")[0]
    beside = [
        other
        for other in (mirror.there if siblings else ())
        if other.rpartition("/")[0] == folder and other.endswith(path.suffix) and not (mirror.root / other).exists()
    ]
    taken = mirror.take({name, *beside})
    if not path.name.startswith("shard-"):
        mirror.note(taken)
    return name in taken


def lies_there(path: Path) -> int | None:
    """Bytes of the file at the URL, as it was last seen; None where there was none."""
    found = _place(path)
    entry = found[0].there.get(found[1]) if found else None
    return None if entry is None else entry.size


def put(source: Path, path: Path) -> None:
    """Put the content of `source` to where `path` has its place at the URL; nothing is done for what stays on this machine.

    Raises:
        StoreError: It cannot be written there; what was there before is there still.
    """
    found = _place(path)
    if found is not None and is_shared(found[1]):
        found[0].put(source, found[1])


def push(folder: Path) -> None:
    """Put all files below a folder of a mirror to the URL, those in JSON last: they say that the others are there.

    Raises:
        StoreError: They cannot be written there.
    """
    if _place(folder) is not None:
        for path in sorted(folder.rglob("*"), key=lambda path: (path.suffix == ".json", path)):
            if path.is_file():
                put(path, path)


def remove(path: Path) -> None:
    """Remove a file; below a mirror, the one at the URL too.

    Raises:
        OSError: The file here cannot be removed.
        StoreError: The one at the URL cannot be removed.
    """
    path.unlink(missing_ok=True)
    if (found := _place(path)) is not None:
        mirror, name = found
        mirror.folder.remove([name])
        mirror.there.pop(name, None)


def remove_tree(folder: Path) -> None:
    """Remove a folder; below a mirror, what lies at the URL too, sidecars first: what is left does not count without them.

    Raises:
        OSError: The folder here cannot be removed.
        StoreError: What lies at the URL cannot be removed.
    """
    if folder.is_dir():
        shutil.rmtree(folder)
    if (found := _place(folder)) is not None:
        mirror, inside = found
        names = sorted(mirror.folder.listing(inside), key=lambda name: (not name.endswith(".json"), name))
        mirror.folder.remove(names)
        for name in names:
            mirror.there.pop(name, None)


def leftovers(folder: Path, older_than: float = LEFTOVER_SECONDS) -> list[Path]:
    """Files that killed processes left at the URL of a mirror's folder: temporary ones, and shards without a sidecar.

    They are given as the paths that they would have in the mirror; `remove` takes them.

    Raises:
        StoreError: The URL cannot be read.
    """
    if (found := _place(folder)) is None:
        return []
    mirror, inside = found
    listing = mirror.folder.listing(inside)
    old = [name for name, entry in listing.items() if entry.changed and time.time() - entry.changed > older_than]
    left = []
    for name in old:
        place = Path(name)
        orphan = place.name.startswith("shard-") and place.suffix == ".safetensors"
        if place.name.startswith(TEMPORARY_PREFIX) or (orphan and str(place.with_suffix(".json")) not in listing):
            left.append(mirror.root / place)
    return sorted(left)


def check_writable(folder: Path) -> None:
    """Prove that files can be put to a folder's URL, where it has one.

    Raises:
        StoreError: They cannot.
    """
    if (found := _place(folder)) is None:
        return
    mirror, inside = found
    probe = mirror.root / INCOMING / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    name = "/".join(filter(None, [inside, probe.name]))
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"vitbench")
        mirror.folder.put(probe, name)
        mirror.folder.remove([name])
    except OSError as error:
        raise StoreError(
            f"the copy of {mirror.url} in {mirror.root} cannot be written: {error.strerror or error}"
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _place(path: Path) -> tuple[Mirror, str] | None:
    """The mirror that a path is in, and the path inside it; also where another process of this machine has attached it."""
    text = str(path)
    for root, mirror in _MIRRORS.items():
        if text == root or text.startswith(root + os.sep):
            return mirror, _inside(text, root)
    above = f"{(cache_folder() / 'remote').absolute()}{os.sep}"
    if not text.startswith(above):
        return None
    root = above + Path(text.removeprefix(above)).parts[0]
    try:
        url = str(json.loads(Path(root, MARKER).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _MIRRORS.setdefault(root, Mirror(url, Path(root))), _inside(text, root)


def _inside(text: str, root: str) -> str:
    return text.removeprefix(root).strip(os.sep).replace(os.sep, "/")
