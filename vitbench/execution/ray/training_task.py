"""A training as a worker does it: one cell, as the local executor would have trained it.

Where workers see the output folder, the worker writes there, checkpoints included, and whoever takes the training up after it was
lost goes on from the last one. Otherwise it writes into a folder of its own, and what lies there in the end, be it a record or
the state of a training that was stopped, goes to the driver through the object store; after a loss the next worker begins anew.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from filelock import FileLock, Timeout

from vitbench.errors import DataError, StoppedError, StoreError, VitbenchError, WeightsError
from vitbench.execution.job import Job, load_for, prepare
from vitbench.execution.ray.watch import ADVANCED, BEGAN, SAID, WARNED, limited, tell
from vitbench.execution.ray.worker import Problem, Setting, enter
from vitbench.execution.reporter import Advance, Reporter
from vitbench.execution.training import carry_out_training
from vitbench.protocols.base import Cell
from vitbench.protocols.finetune import FineTune
from vitbench.records.atomic import TEMPORARY_PREFIX, write_file
from vitbench.records.store import ResultStore
from vitbench.tasks.catalog import load_task
from vitbench.training import processes

TELL_SECONDS = 1.0
"""At least between two tellings of how far a training is."""
LOCK_SECONDS = 30.0
"""How long the processes of a lost worker may hold its folder; those that read images look for their parent every 5 s."""
_LAST_WORD_SECONDS = 10.0
_LOCK = ".lock"

Files = Mapping[str, npt.NDArray[np.uint8]]
"""Path, relative and with slashes, to content."""


@dataclass(frozen=True)
class Training:
    """One cell that is to be trained.

    Attributes:
        work: Its name, for the watch and for messages.
        spec: The backbone.
        task: The task, as the run was told.
        representation: Canonical name of what the head reads.
        cell: The cell.
        identity: The identity of its record.
        key: The key of that.
    """

    work: str
    spec: str
    task: str
    representation: str
    cell: Cell
    identity: Mapping[str, Any]
    key: str


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        written: The record, by its path below the output folder; none where it was there already, or was not made.
        failures: A line on a training that came to nothing, as the local executor says it.
        problem: What kept it from being begun or written; None if nothing did.
        lost: Why it is to be taken up again, though nothing is wrong with it; empty if it is not.
        files: All that it has left, of a worker that does not write to the output folder.
    """

    written: Sequence[str] = ()
    failures: Sequence[str] = ()
    problem: Problem | None = None
    lost: str = ""
    files: Files = field(default_factory=dict, repr=False)

    @property
    def bad(self) -> bool:
        """Whether it did not come to its end."""
        return bool(self.failures or self.problem or self.lost)


def train_alone(setting: Setting, training: Training, begun: Files) -> Trained:
    """Train one cell in this process; a Ray task.

    Args:
        setting: What workers are told.
        training: What to train.
        begun: What an earlier attempt has left, for a worker that does not see the output folder.
    """
    return carry_out(setting, training, begun)


def carry_out(setting: Setting, training: Training, begun: Files) -> Trained:
    """Train one cell, or a process's share of it (see `vitbench.training.processes`); arguments as of `train_alone`."""
    written: Sequence[str] = ()
    failures: Sequence[str] = ()
    problem, lost = None, ""
    files: Files = {}
    try:
        enter(setting)
        with _output(setting, begun) as out:
            told = Reporter()
            if processes.is_main():
                told = _Told(setting, training.work, out)
                tell(setting.watch, BEGAN, training.work)
            try:
                with limited(setting.config.timeout_per_job, setting.watch, training.work):
                    written, failures = _train(setting, training, out, told)
            except StoppedError as error:
                lost = f"its worker was asked to end ({str(error).partition(';')[0]})"
            except Exception as error:
                found = Problem.of(error)
                problem = replace(found, text=_as_told(found.text, setting, out))
            failures = [_as_told(line, setting, out) for line in failures]
            files = {} if setting.writes else files_below(out)
            if isinstance(told, _Told):
                told.finish()
    except Exception as error:
        problem = Problem.of(error)
    return Trained(written, failures, problem, lost, files)


def _train(setting: Setting, training: Training, out: Path, told: Reporter) -> tuple[Sequence[str], Sequence[str]]:
    """Prepare and train; the record's path below `out`, and the line on a failure."""
    assert isinstance(setting.protocol, FineTune)
    config = setting.config.model_copy(
        update={
            "out": out,
            "backbones": (training.spec,),
            "tasks": (training.task,),
            "representations": (training.representation,),
            # A record may be there because an earlier attempt was lost after writing it.
            "on_existing": "rerun" if setting.config.on_existing == "rerun" else "skip",
        }
    )
    protocol, results = replace(setting.protocol, seeds=(training.cell.seed,)), ResultStore(out)
    backbone = load_for(training.spec, config, protocol)
    job = prepare(config, backbone, load_task(training.task, config.task_options), protocol, results)
    _check(job, training)
    if processes.is_main():
        _wait_for_the_lost(out / "training" / training.key / _LOCK)
    try:
        made, failures = carry_out_training(job, config, results, told, setting.command)
    except (StoreError, StoppedError):
        raise
    except VitbenchError as error:  # one of several processes ends with it, and does not count it among the failures
        name = f"{backbone.spec.label} on {job.task.name}, {training.representation}, seed {training.cell.seed}"
        return [], [f"{name}: {error}"]
    if not processes.is_main():
        return [], failures
    return [results.place(results.read(key)).relative_to(out).as_posix() for key in made], failures


def _check(job: Job, training: Training) -> None:
    """Refuse to train something else than what the driver has planned.

    Raises:
        WeightsError: The backbone has other weights here.
        DataError: The task has other data here, or something else differs.
    """
    found = job.identities.get((training.representation, training.cell), {})
    differing = sorted(name for name in {*found, *training.identity} if found.get(name) != training.identity.get(name))
    if "weights" in differing:
        raise WeightsError(
            f"backbone '{training.spec}' has other weights on {platform.node()} than where the run was planned; make its files "
            f"the same on every node"
        )
    if any(name.endswith("_fingerprint") for name in differing):
        raise DataError(
            f"{platform.node()} reads other data for task '{training.task}' than the machine that the run was started on: make "
            f"the data the same on every node, or name a folder that all see with --task-data"
        )
    if differing:
        raise DataError(
            f"{platform.node()} would train '{training.spec}' on '{training.task}' otherwise than planned ({', '.join(differing)}"
            f" differ): give every node the same devices, or say --device and --dtype"
        )


def _wait_for_the_lost(lock: Path) -> None:
    """Wait until the processes of a lost worker have let go of a training's folder; if they do not, that is told elsewhere."""
    if lock.exists():
        with suppress(Timeout), FileLock(lock, timeout=LOCK_SECONDS):
            pass


@contextmanager
def _output(setting: Setting, begun: Files) -> Iterator[Path]:
    """The folder that a worker writes to."""
    if setting.writes:
        yield Path(setting.folder) / setting.config.out
        return
    with tempfile.TemporaryDirectory(prefix="vitbench-", ignore_cleanup_errors=True) as scratch:
        write_files(begun, Path(scratch))
        yield Path(scratch)


def _as_told(text: str, setting: Setting, out: Path) -> str:
    """A text with the output folder as the user knows it."""
    return text.replace(str(out), str(setting.config.out))


def files_below(folder: Path) -> Files:
    """All files below a folder but locks and temporary ones; they are mapped, not read."""
    found: dict[str, npt.NDArray[np.uint8]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _LOCK and not path.name.startswith(TEMPORARY_PREFIX):
            empty = not path.stat().st_size
            content = np.empty(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, mode="r"))
            found[path.relative_to(folder).as_posix()] = content
    return found


def write_files(files: Files, folder: Path) -> None:
    """Write files below a folder, each whole or not at all, those in JSON last: they say that the others are there.

    Raises:
        StoreError: One cannot be written, or would lie outside.
    """
    for name in sorted(files, key=lambda name: (name.endswith(".json"), name)):
        write_file(place_of(name, folder), files[name].tofile)


def place_of(name: str, folder: Path) -> Path:
    """The place of a file that a worker has named.

    Raises:
        StoreError: It is outside the folder.
    """
    path = PurePosixPath(name)
    inside = (folder / path).resolve().is_relative_to(folder.resolve())
    if path.is_absolute() or ".." in path.parts or not path.name or not inside:
        raise StoreError(
            f"a worker gave back a file '{name}', which would lie outside {folder}: nothing of it was written"
        )
    return folder / path


class _Told(Reporter):
    """Tells the driver what a training says."""

    def __init__(self, setting: Setting, work: str, out: Path) -> None:
        self._setting, self._work, self._out = setting, work, out
        self._steps, self._text, self._since = 0, "", 0.0

    def line(self, text: str) -> None:
        """Tell a fact."""
        self._tell(SAID, text=_as_told(text, self._setting, self._out))

    def warn(self, text: str) -> None:
        """Tell something that the user should look at."""
        self._tell(WARNED, text=_as_told(text, self._setting, self._out))

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Tell of the steps, about once a second."""
        yield self._advance
        self._flush()

    def finish(self) -> None:
        """Wait until the driver can hear all that was told: the end of the training is heard by another way."""
        self._flush()
        with suppress(ray.exceptions.RayError):
            ray.get(self._tell(ADVANCED), timeout=_LAST_WORD_SECONDS)

    def _advance(self, done: int, text: str = "") -> None:
        self._steps, self._text = self._steps + done, text
        if time.monotonic() - self._since > TELL_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._steps:
            self._tell(ADVANCED, self._steps, self._text)
        self._steps, self._since = 0, time.monotonic()

    def _tell(self, kind: str, steps: int = 0, text: str = "") -> Any:
        return tell(self._setting.watch, kind, self._work, steps, text)
