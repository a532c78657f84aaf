"""The folder of this machine that mirrors a URL: what is brought from there, and what of that is still the same."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vitbench.errors import StoreError
from vitbench.records.atomic import write_text
from vitbench.records.filesystem import Entry, RemoteFolder

MARKER = ".remote.json"
INCOMING = ".incoming"
ATTACHED_FOLDERS = ("records", "configs", "costs", "runs")
"""What is taken up when a folder is attached; of features that would be long lists for a leaderboard that needs none."""
ON_DEMAND = (".parquet", ".safetensors")
STAY_HERE = ("training", "trackers")
WRITTEN = ".written"
"""What was written here, a line each: what of it is no longer at the URL was removed there."""
LEFTOVER_SECONDS = 3600.0
"""Age from which a temporary file, or a shard without its sidecar, is no longer anybody's work under way."""


class Mirror:
    """The mirror of one URL on this machine.

    Attributes:
        url: The URL.
        root: The mirror's folder.
        there: Path inside the folder to what is known of the file at the URL, from the last look.
        is_attached: Whether this process has taken up what lies there.
    """

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url, root
        self.there: dict[str, Entry] = {}
        self.is_attached = False
        self._folder: RemoteFolder | None = None

    @property
    def folder(self) -> RemoteFolder:
        """The folder at the URL."""
        self._folder = self._folder or RemoteFolder(self.url)
        return self._folder

    def pull(self, inside: str, whole: bool) -> None:
        """Take up what lies at the URL below `inside`; see `pull`."""
        # Before the look: what is written while it lasts must not count as removed.
        stamps, written = self._stamps(), self._written()
        found = {name: entry for name, entry in self.folder.listing(inside).items() if is_shared(name)}
        below = f"{inside}/" if inside else ""
        self.there = {name: entry for name, entry in self.there.items() if not name.startswith(below)} | found
        gone = [name for name in {*stamps, *written} if name.startswith(below) and name not in found]
        # A shard has a name of its own and is never written twice: it is the same wherever it is.
        changed = {name for name, entry in found.items() if stamps.get(name) != entry.stamp and not _is_of_shard(name)}
        lacking = {name for name in found if not (self.root / name).exists()}
        later = set() if whole else {name for name in {*changed, *lacking} if name.endswith(ON_DEMAND)}
        for name in (*gone, *(changed & later)):
            (self.root / name).unlink(missing_ok=True)
            stamps.pop(name, None)
        self.note(self.take((changed | lacking) - later), stamps, anew=bool(gone))

    def note(self, taken: Iterable[str], stamps: dict[str, str] | None = None, *, anew: bool = False) -> None:
        """Keep what the URL said of the files that were brought: they are the same as long as it says so."""
        stamps = self._stamps() if stamps is None else stamps
        fresh = {name: self.there[name].stamp for name in taken if name in self.there}
        if fresh or anew:
            write_text(self.root / MARKER, json.dumps({"url": self.url, "stamps": stamps | fresh}))

    def take(self, names: Iterable[str]) -> set[str]:
        """Bring files from the URL, each whole or not at all; those that were there."""
        incoming = self.root / INCOMING
        files = {name: incoming / uuid.uuid4().hex for name in names}
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            taken = self.folder.get(files, {name: entry.size for name, entry in self.there.items()})
            for name in sorted(taken):
                entry, place = self.there.get(name), self.root / name
                if entry is not None and entry.changed is not None:
                    os.utime(files[name], (entry.changed, entry.changed))
                place.parent.mkdir(parents=True, exist_ok=True)
                files[name].replace(place)
        except OSError as error:
            raise StoreError(
                f"the copy of {self.url} in {self.root} cannot be written: {error.strerror or error}"
            ) from error
        finally:
            for leftover in files.values():
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)
        return taken

    def put(self, source: Path, name: str) -> None:
        """Put a file to the URL, and note that it was there."""
        self.folder.put(source, name)
        if name.startswith("runs/"):
            return  # a journal is written every few seconds, and small
        with suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            with (self.root / WRITTEN).open("a", encoding="utf-8") as notes:
                notes.write(f"{name}\n")

    def attach(self) -> None:
        """Take up the records and what is small beside them, once in a process."""
        if self.is_attached:
            return
        _remove_old(self.root / INCOMING)
        for inside in ATTACHED_FOLDERS:
            self.pull(inside, whole=False)
        if not (self.root / MARKER).exists():
            write_text(self.root / MARKER, json.dumps({"url": self.url, "stamps": {}}))
        self.is_attached = True

    def _stamps(self) -> dict[str, str]:
        """Path to the stamp that the file had at the URL when it was brought."""
        try:
            stamps = json.loads((self.root / MARKER).read_text(encoding="utf-8"))["stamps"]
            return {str(name): str(stamp) for name, stamp in stamps.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _written(self) -> list[str]:
        """What was written here."""
        try:
            return (self.root / WRITTEN).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return []


def is_shared(name: str) -> bool:
    """Whether a file belongs at the URL: the index of records holds inodes of this machine, hidden files are locks and such."""
    parts = name.split("/")
    return not (name == "records/index.parquet" or parts[0] in STAY_HERE or any(part.startswith(".") for part in parts))


def _is_of_shard(name: str) -> bool:
    return name.rpartition("/")[2].startswith("shard-")


def _remove_old(folder: Path) -> None:
    """Remove what processes that were killed while they took files left in the mirror."""
    for path in folder.glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()
