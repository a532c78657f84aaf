"""The feature stores of an output folder: what is there, whether it is whole, and what no record refers to any more.

Features can always be made again; records cannot be told apart from lost ones. So nothing here touches a record, and what is
removed is removed only below `<out>/features`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from vitbench.errors import StoreError, UsageError
from vitbench.features.store import sha256_of
from vitbench.records import remote
from vitbench.records.atomic import TEMPORARY_PREFIX, slug
from vitbench.records.identity import DEFAULTS, key
from vitbench.records.schema import Record
from vitbench.records.store import find_records, read_record

FOLDER, IDENTITY_FILE = "features", "identity.json"
LEFTOVER_SECONDS = 3600.0
"""Age from which a temporary file or a shard without its sidecar is no longer anybody's work under way."""
ENCODING = ("architecture", "dtype", "features_dtype", "preprocessing", "weights")
"""The fields of an identity that a record and the features it was computed from share, apart from the data."""


@dataclass(frozen=True)
class Stored:
    """One feature store: the features of one identity.

    Attributes:
        folder: Where its shards lie.
        backbone: Short name of backbone and weights, as in the folders.
        task: The task's name, as in the folders.
        split: The stored split's name, as in the folders.
    """

    folder: Path
    backbone: str
    task: str
    split: str

    @property
    def sidecars(self) -> list[Path]:
        """The sidecars of its shards, in order of name."""
        return sorted(self.folder.glob("shard-*.json"))

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What it holds features of; empty where that cannot be read."""
        try:
            content = json.loads((self.folder / IDENTITY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def dtype(self) -> str:
        """What its numbers are kept as."""
        return str(self.identity.get("features_dtype", DEFAULTS["features_dtype"]))

    @property
    def representations(self) -> list[str]:
        """The representations that it holds, of any row."""
        return sorted({str(atom) for content in self._contents() for atom in content["atoms"]})

    @property
    def rows(self) -> int:
        """Number of rows that have features, of any representation."""
        held = [np.arange(first, last) for content in self._contents() for first, last in content["rows"]]
        return len(np.unique(np.concatenate(held))) if held else 0

    @property
    def size(self) -> int:
        """Bytes of all its files, those of an output folder's URL that were not brought here included."""
        shards = {sidecar.with_suffix(".safetensors") for sidecar in self.sidecars}
        return sum(file_size(path) for path in {*self.folder.iterdir(), *shards})

    @property
    def age(self) -> float:
        """Seconds since it was last written to."""
        times = [path.stat().st_mtime for path in self.sidecars] or [self.folder.stat().st_mtime]
        return max(0.0, time.time() - max(times))

    def _contents(self) -> Iterator[Mapping[str, Any]]:
        for sidecar in self.sidecars:
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads(sidecar.read_text(encoding="utf-8"))
                yield {
                    "atoms": list(content["atoms"]),
                    "rows": [(int(first), int(last)) for first, last in content["rows"]],
                }


def stores(out: Path) -> list[Stored]:
    """Every feature store of an output folder, in order of backbone, task, split and identity.

    Raises:
        UsageError: There is no such folder.
    """
    root = out / FOLDER
    remote.pull(root)
    if not root.is_dir():
        raise UsageError(f"there are no features at {remote.told(out)}: name a run's output folder with --out")
    folders = {path.parent for path in root.rglob(IDENTITY_FILE)} | {path.parent for path in root.rglob("shard-*")}
    found = []
    for folder in sorted(folders):
        backbone, *task, split, _ = (
            folder.relative_to(root).parts if len(folder.relative_to(root).parts) > 3 else ("", "", "")
        )
        found.append(Stored(folder, backbone, "/".join(task), split))
    return found


def problems(store: Stored) -> list[str]:
    """What is wrong with a store, a line for each shard that does not count; empty when it is whole.

    Every byte is read. A shard is whole when its checksum, its rows, its identity and the shape and dtype of each of its tensors
    are what its sidecar and the store say.
    """
    if not store.identity:
        return [f"{store.folder / IDENTITY_FILE}: missing or unreadable"]
    if key(store.identity) != store.folder.name:
        return [f"{store.folder / IDENTITY_FILE}: it is not the identity that names the folder"]
    found = []
    dims: dict[str, int] = {}
    for sidecar in store.sidecars:
        try:
            reason = _problem(sidecar, store, dims)
        except FileNotFoundError:
            reason = "the shard is missing"
        except OSError as error:
            reason = f"it cannot be read: {error.strerror or error}"
        except (ValueError, KeyError, TypeError, SafetensorError):
            reason = "the sidecar is damaged"
        if reason:
            found.append(f"{sidecar.with_suffix('.safetensors')}: {reason}")
    return found


def _problem(sidecar: Path, store: Stored, dims: dict[str, int]) -> str:
    """Why a shard does not count; empty when it does. `dims` collects the length of every representation's vector."""
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    path = sidecar.with_suffix(".safetensors")
    rows = np.concatenate([np.arange(first, last, dtype=np.int64) for first, last in content["rows"]])
    remote.fetch(path)
    if sha256_of(path) != content["sha256"]:
        return "the checksum is not that of the sidecar"
    names = {"float32": "F32", "float16": "F16"}
    with safe_open(path, framework="np") as shard:
        if not np.array_equal(shard.get_tensor("rows"), rows):
            return "it has other rows than the sidecar says"
        if (shard.metadata() or {}).get("identity") != store.folder.name:
            return "it holds the features of another identity"
        for atom in content["atoms"]:
            part = shard.get_slice(atom)
            shape = part.get_shape()
            if len(shape) != 2 or shape[0] != len(rows) or dims.setdefault(atom, shape[1]) != shape[1]:
                return f"'{atom}' has the shape {shape}, where [{len(rows)}, {dims.get(atom, 'D')}] is expected"
            if part.get_dtype() != names[store.dtype]:
                return f"'{atom}' is kept as {part.get_dtype()}, and the store says {store.dtype}"
    return ""


def leftovers(out: Path, older_than: float = LEFTOVER_SECONDS) -> list[Path]:
    """Files of killed processes: temporary ones, and shards without a sidecar, which nothing reads."""
    root = out / FOLDER
    there = remote.leftovers(root, older_than)
    orphans = [path for path in root.rglob("shard-*.safetensors") if not path.with_suffix(".json").exists()]
    found = [*root.rglob(f"{TEMPORARY_PREFIX}*"), *orphans]
    return sorted({*there, *(path for path in found if _older(path, older_than))})


def unused(found: Sequence[Stored], out: Path) -> list[Stored]:
    """The stores that no record of the output folder was computed from.

    A record names the content of the splits that it used. Where that is a stored split's, the record refers to exactly that
    store; where it is a part or a sum of stored splits, to every store of its backbone and task that could have served. A damaged
    record refers to nothing that could be known, so that then nothing counts as unused.

    Raises:
        StoreError: A record cannot be read.
    """
    records = [read_record(path) for path in find_records(out)] if (out / "records").is_dir() else []
    by_place: dict[tuple[str, ...], list[Stored]] = {}
    for store in found:
        by_place.setdefault((*_encoding(store.identity), store.task), []).append(store)
    used: set[Path] = set()
    for record in records:
        used |= _referred(record, by_place, found)
    return [store for store in found if store.folder not in used]


def _referred(
    record: Record, by_place: Mapping[tuple[str, ...], Sequence[Stored]], found: Sequence[Stored]
) -> set[Path]:
    """The stores that a record refers to."""
    task = "/".join(map(slug, record.task.split("/")))
    near = by_place.get((*_encoding(record.identity), task), ())
    prints = {str(value) for name, value in _flat(record.identity) if name.endswith("_fingerprint")}
    exact = {store.identity.get("split_fingerprint"): store for store in near}
    if prints <= exact.keys():
        return {exact[name].folder for name in prints}
    # The same data may have its features under another task's name.
    elsewhere = {
        store.folder
        for store in found
        if store.identity.get("split_fingerprint") in prints and _encoding(store.identity) == _encoding(record.identity)
    }
    return elsewhere | {store.folder for store in near}


def _flat(identity: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    parameters = identity.get("parameters", {})
    return [*identity.items(), *(parameters.items() if isinstance(parameters, Mapping) else ())]


def _encoding(identity: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str({**DEFAULTS, **identity}.get(name)) for name in ENCODING)


def remove(store: Stored) -> bool:
    """Remove a store; False where another process holds it.

    The sidecars go first: what is left by a process that is killed meanwhile does not count as features.

    Raises:
        StoreError: It cannot be removed.
    """
    lock = FileLock(store.folder / ".lock")
    try:
        lock.acquire(timeout=0)
        try:
            for sidecar in store.sidecars:
                remote.remove(sidecar)
            remote.remove_tree(store.folder)
        finally:
            lock.release()
        # The folders of its split, its task and its backbone, as far as nothing else is in them.
        for folder in store.folder.parents[: 2 + len(store.task.split("/"))]:
            if any(folder.iterdir()):
                break
            folder.rmdir()
    except Timeout:
        return False
    except OSError as error:
        raise StoreError(f"the features {store.folder} cannot be removed: {error.strerror or error}") from error
    return True


def file_size(path: Path) -> int:
    """Bytes of a file, or of the one at the URL of the output folder; 0 where there is none."""
    try:
        return path.stat().st_size if path.is_file() else remote.lies_there(path) or 0
    except OSError:
        return 0


def _older(path: Path, seconds: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime > seconds
    except OSError:
        return False
