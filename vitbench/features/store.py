"""The feature store: shards of features that were embedded once and are never embedded again.

`<out>/features/<backbone>/<task>/<split>/<key>/` holds the features of one identity:

    identity.json                 what they are features of
    shard-<id>.safetensors        `rows` [n] int64, and one [n, D] tensor per atom (`cls`, `gap@6`, …)
    shard-<id>.json               the shard's sha256, its atoms, and its rows as runs [first, after last]

A shard counts only once its sidecar is there, which is written after it; both are renamed into place. Shards have random names,
so two processes never write the same file; a lock keeps them from doing the same work.

Features are kept as float32, or as float16 where the identity's `features_dtype` says so, which halves the store. What is read is
float32 either way; a float16 store gives rounded values from the first run on, so that a run and its repetition agree.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitbench.errors import StoreError, UsageError
from vitbench.features.featureset import IntArray, copy_rows
from vitbench.records import remote
from vitbench.records.atomic import TEMPORARY_PREFIX, slug, write_file, write_text
from vitbench.records.identity import DEFAULTS, canonical_json, key

CHUNK_ROWS = 4096
"""Rows that `FeatureStore.chunks` gives at once: 16 MiB of 1,024 features."""


@dataclass(frozen=True)
class Shard:
    """One whole shard: its file, the atoms it holds and the rows, in order."""

    path: Path
    atoms: frozenset[str]
    rows: IntArray


class FeatureStore:
    """The features of one identity.

    Attributes:
        folder: Where its shards lie.
        dtype: What a number is kept as, `float32` or `float16`.
        damaged: Shards whose checksum, rows or identity are wrong; they do not count, and go when the store is next written.
    """

    def __init__(self, out: Path, backbone_name: str, task: str, split: str, identity: Mapping[str, Any]) -> None:
        """Name the store below output folder `out`. Nothing is read before something is asked for."""
        self.identity = dict(identity)
        self.dtype = str(identity.get("features_dtype", DEFAULTS["features_dtype"]))
        folder = out / "features" / slug(backbone_name) / Path(*map(slug, task.split("/"))) / slug(split)
        self.folder = folder / key(identity)
        self.damaged: list[Path] = []
        self._shards: dict[str, Shard] = {}
        self._is_read = False

    def refresh(self) -> None:
        """Take up shards that were added since, also by other processes; damaged ones are left out.

        Raises:
            StoreError: A shard cannot be read for now (too many open files, a network folder that is gone): nothing is judged.
        """
        remote.pull(self.folder)
        self._is_read = True
        for sidecar in sorted(self.folder.glob("shard-*.json")):
            shard = sidecar.with_suffix(".safetensors")
            if sidecar.stem in self._shards or shard in self.damaged:
                continue
            found = _verified(sidecar, key(self.identity))
            if found is None:
                self.damaged.append(shard)
            else:
                self._shards[sidecar.stem] = found

    def missing(self, atoms: Iterable[str], rows: IntArray) -> dict[frozenset[str], IntArray]:
        """Which atoms still lack which rows.

        Args:
            atoms: The atoms wanted.
            rows: The rows wanted, increasing.

        Returns:
            Set of atoms to the rows, increasing, that lack exactly these; rows that lack nothing are left out.
        """
        atoms = sorted(atoms)
        if not len(rows):
            return {}
        if not self._is_read:
            self.refresh()
        lacking = np.stack([~np.isin(rows, self._rows_with(atom)) for atom in atoms])
        patterns, inverse = np.unique(lacking, axis=1, return_inverse=True)
        groups = {}
        for index, pattern in enumerate(patterns.T):
            if pattern.any():
                names = frozenset(atom for atom, lacks in zip(atoms, pattern, strict=True) if lacks)
                groups[names] = rows[inverse.reshape(-1) == index]
        return groups

    def append(self, rows: IntArray, features: Mapping[str, Tensor]) -> None:
        """Write one shard, whole or not at all.

        Args:
            rows: `[n]` int64, increasing.
            features: Atom to `[n, D]` float32 on the CPU.

        Raises:
            StoreError: The disk is full or the folder cannot be written to; earlier shards are intact.
            UsageError: A feature is too large for the store's dtype.
        """
        kept = {name: self._rounded(name, value).contiguous() for name, value in features.items()}
        if not (self.folder / "identity.json").exists():
            write_text(self.folder / "identity.json", canonical_json(self.identity) + "\n")
        path = self.folder / f"shard-{uuid.uuid4().hex[:16]}.safetensors"
        tensors = {"rows": torch.from_numpy(rows), **kept}
        metadata = {"identity": key(self.identity)}
        digest = ""

        def write(temporary: Path) -> None:
            nonlocal digest
            save_file(tensors, temporary, metadata=metadata)
            digest = sha256_of(temporary)

        write_file(path, write)
        sidecar = {"sha256": digest, "atoms": sorted(features), "rows": runs_of(rows)}
        write_text(path.with_suffix(".json"), json.dumps(sidecar) + "\n")
        self._shards[path.stem] = Shard(path, frozenset(features), rows)

    def load(self, atoms: Iterable[str], rows: IntArray) -> dict[str, Tensor]:
        """Read features.

        Args:
            atoms: Which.
            rows: `[M]` int64, increasing; all must be there.

        Returns:
            Atom to `[M, D]` float32.

        Raises:
            StoreError: A row is not there, or a shard cannot be read.
        """
        if not self._is_read:
            self.refresh()
        return {atom: self._load(atom, rows) for atom in atoms}

    def chunks(
        self, atoms: Iterable[str], rows: IntArray, size: int = CHUNK_ROWS
    ) -> Iterator[tuple[IntArray, dict[str, Tensor]]]:
        """Read features a part at a time, so that memory does not grow with the number of rows.

        Args:
            atoms: Which.
            rows: `[M]` int64, increasing; all must be there.
            size: Rows of a part; the last may have fewer.

        Yields:
            The part's rows `[m]`, in order, and atom to `[m, D]` float32.

        Raises:
            StoreError: A row is not there, or a shard cannot be read.
        """
        wanted = list(atoms)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield part, self.load(wanted, part)

    @contextmanager
    def lock(self, waiting: Any = None) -> Iterator[None]:
        """Hold the store for writing. `waiting()` is called once if another process holds it.

        What a killed process left behind (temporary files, shards without a sidecar) is removed, and so are damaged shards.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if waiting:
                    waiting()
                lock.acquire()
        except OSError as error:
            raise StoreError(f"cannot lock the feature store {self.folder}: {error.strerror or error}") from error
        try:
            self.refresh()
            self._sweep()
            yield
        finally:
            lock.release()

    def _sweep(self) -> None:
        for damaged in self.damaged:
            remote.remove(damaged.with_suffix(".json"))
            remote.remove(damaged)
        for leftover in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
            leftover.unlink(missing_ok=True)
        for shard in self.folder.glob("shard-*.safetensors"):
            if not shard.with_suffix(".json").exists():
                shard.unlink(missing_ok=True)

    def _rows_with(self, atom: str) -> IntArray:
        held = [shard.rows for shard in self._shards.values() if atom in shard.atoms]
        return np.concatenate(held) if held else np.empty(0, np.int64)

    def _rounded(self, atom: str, values: Tensor) -> Tensor:
        """Features as they are kept; what is not finite already stays so, and is found by who reads it."""
        if self.dtype == "float32":
            return values
        halves = values.to(torch.float16)
        if bool((torch.isinf(halves) & torch.isfinite(values)).any()):
            largest = float(values[torch.isfinite(values)].abs().max())
            raise UsageError(
                f"'{atom}' has features up to {largest:.3g}, and float16 ends at 65504: use --features-dtype float32"
            )
        return halves

    def _load(self, atom: str, rows: IntArray) -> Tensor:
        result: Tensor | None = None
        filled = np.zeros(len(rows), bool)
        for shard in self._shards.values():
            if atom not in shard.atoms or not len(rows):
                continue
            # Both are increasing: what is wanted of the shard lies between two places, and only that part of the file is read.
            first, last = np.searchsorted(shard.rows, [rows[0], rows[-1] + 1])
            held = shard.rows[first:last]
            places = np.searchsorted(rows, held)
            wanted = rows[places] == held
            wanted[wanted] = ~filled[places[wanted]]
            if not wanted.any():
                continue
            self._bring(shard)
            values = _mapped(shard.path, atom, int(first), int(last))
            if result is None:
                result = torch.empty(len(rows), values.shape[1], dtype=torch.float32)
            copy_rows(values.numpy(), np.flatnonzero(wanted), result.numpy(), places[wanted])
            filled[places[wanted]] = True
        if result is None or not filled.all():
            raise StoreError(f"{int((~filled).sum())} rows of '{atom}' are not in the feature store {self.folder}")
        return result

    def _bring(self, shard: Shard) -> None:
        """Have a shard here that so far lies at the output folder's URL alone, and verify it as all others."""
        if shard.path.exists() or not remote.fetch(shard.path):
            return
        if _verified(shard.path.with_suffix(".json"), key(self.identity)) is None:
            self.damaged.append(shard.path)
            del self._shards[shard.path.stem]
            raise StoreError(
                f"the shard {remote.told(shard.path)} is damaged; run the same command again to embed its images anew"
            )


def _verified(sidecar: Path, identity_key: str) -> Shard | None:
    """The shard of a sidecar; None if it is proved to be damaged, of other rows than it says, or of another identity.

    One that lies at the URL of the output folder, and not here, is taken at its sidecar's word until it is read.

    Raises:
        StoreError: It could not be read, which proves nothing.
    """
    path = sidecar.with_suffix(".safetensors")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        rows = np.concatenate([np.arange(first, last, dtype=np.int64) for first, last in content["rows"]])
        if not path.exists() and remote.lies_there(path) is not None:
            return Shard(path, frozenset(content["atoms"]), rows)
        if sha256_of(path) != content["sha256"]:
            return None
        with safe_open(path, framework="np") as shard:
            same_rows = np.array_equal(shard.get_tensor("rows"), rows)
            same_identity = (shard.metadata() or {}).get("identity") == identity_key
        return Shard(path, frozenset(content["atoms"]), rows) if same_rows and same_identity else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    except OSError as error:
        raise StoreError(f"the feature store cannot be read for now: {path}: {error.strerror or error}") from error


def _mapped(path: Path, atom: str, first: int, last: int) -> Tensor:
    """Rows `first` to before `last` of one atom, in the dtype of the file, which is mapped into memory."""
    try:
        with safe_open(path, framework="pt") as shard:
            value: Tensor = shard.get_slice(atom)[first:last]
            return value
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the shard {path} cannot be read ({error}); run the same command again to remake it"
        ) from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def runs_of(rows: IntArray) -> list[list[int]]:
    """Increasing rows as runs `[first, after last]`."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(rows, breaks) if len(run)]
