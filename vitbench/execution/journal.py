"""The journal of a run: what it is doing, in one file `<out>/runs/<started>-<id>.json`, for `vitbench status`.

A thread rewrites the file every few seconds, whole or not at all. Whoever reads it learns from the heartbeat, and on the same
machine from the process, whether the run still goes on. The journal is no part of the results: a run does the same without it,
and is not stopped by a disk on which it cannot be written.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil
import pydantic
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from vitbench.errors import StoppedError, StoreError, first_line
from vitbench.records.atomic import sweep, write_text
from vitbench.records.remote import remove, told

FOLDER = "runs"
RUN_SCHEMA_VERSION: Literal[1] = 1
BEAT_SECONDS = 5.0
"""At most between two writings of the file."""
QUIET_SECONDS = 1.0
"""At least between two writings, however often something changes."""
STALE_SECONDS = 60.0
"""A run that has not been heard of for so long has stopped."""
KEEP_RUNS = 20
KEEP_LINES = 50
_WRITING_SHARE = 0.05  # of the run's time at most goes into writing the file, unless the beat asks for more


class JobState(BaseModel):
    """One job in the file of a run."""

    model_config = ConfigDict(extra="forbid")

    backbone: str = Field(description="the backbone's spec")
    task: str = Field(description="the task's full name")
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    stage: str = Field("", description="what it is, or was last, busy with: extract, score or train")
    keys: list[str] | None = Field(None, description="keys of all its records; null until they are known")
    present: int = Field(0, ge=0, description="records that were there when it was prepared, and are not made again")
    images: int = Field(0, ge=0, description="images that had to go through the backbone when it was prepared")
    embedded: int = Field(0, ge=0, description="images that have gone through it since")
    seconds: float | None = Field(None, ge=0, description="what it was estimated to take; null without an estimate")
    errors: list[str] = Field([], description="the last line of each of its errors")


class RunState(BaseModel):
    """The file of a run."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = RUN_SCHEMA_VERSION
    name: str = Field(description="the name of the file: when the run was started, and an id")
    command: str
    executor: str
    host: str
    pid: int
    process_started: float = Field(description="when the process began, seconds since 1970; a pid is given again")
    process_space: str = Field(description="where that pid means that process: boot and pid namespace, or the host")
    started: AwareDatetime
    heartbeat: AwareDatetime
    since: float = Field(description="the file system's clock when the run began: what is written later is younger")
    elapsed: float = Field(0.0, ge=0, description="seconds from the start to the heartbeat")
    working: float = Field(0.0, ge=0, description="seconds from the beginning of the first job to the heartbeat")
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    reason: str = Field("", description="why it stopped or failed")
    jobs: list[JobState]
    failures: list[str] = Field([], description="what failed beside the jobs")
    retried: list[str] = Field([], description="what was lost and tried again; the last ones")
    notes: list[str] = []


class Journal:
    """Keeps the file of a run up to date while the run lasts.

    Every method may be called from any thread and only changes memory: the file is written by a thread of the journal's own.
    None raises for a file that cannot be written; that is told once.
    """

    def __init__(
        self,
        out: Path,
        command: str,
        executor: str,
        jobs: Sequence[tuple[str, str]],
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is written before the journal is entered.

        Args:
            out: The run's output folder.
            command: What started the run.
            executor: Its name.
            jobs: Backbone spec and full task name of each job, in order.
            warn: Told once, in one line, when the file cannot be written.
        """
        now = datetime.now(UTC)
        name = f"{now:%Y%m%dT%H%M%S%fZ}-{uuid.uuid4().hex[:8]}"
        self.path = out / FOLDER / f"{name}.json"
        self._jobs = {place: JobState(backbone=place[0], task=place[1]) for place in jobs}
        self._run = RunState(
            name=name,
            command=command,
            executor=executor,
            host=platform.node(),
            pid=os.getpid(),
            process_started=psutil.Process().create_time(),
            process_space=process_space(),
            started=now,
            heartbeat=now,
            since=now.timestamp(),
            jobs=list(self._jobs.values()),
        )
        self._warn = warn
        self._lock, self._changed, self._ended = threading.RLock(), threading.Event(), threading.Event()
        self._began = time.monotonic()
        self._working_since: float | None = None
        self._thread = threading.Thread(target=self._beat, name="vitbench-journal", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        with suppress(OSError):
            self._run.since = self.path.stat().st_mtime
        _remove_old(self.path.parent)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._changed.set()
        self._thread.join()
        with self._lock:
            if error is None:
                self._run.state = "finished"
            else:
                asked_to_end = isinstance(error, StoppedError | KeyboardInterrupt | SystemExit)
                self._run.state = "stopped" if asked_to_end else "failed"
                self._run.reason = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else first_line(error)
        self._write()

    def prepared(
        self, backbone: str, task: str, keys: Sequence[str], present: int, images: int, seconds: float | None
    ) -> None:
        """It is known what a job has to do.

        Args:
            backbone: The backbone's spec.
            task: The task's full name.
            keys: Keys of all records of the job.
            present: Number of them that are there, and need not be made.
            images: Number of images still to go through the backbone.
            seconds: An estimate of what is still to be done; None without one.
        """
        with self._change():
            job = self._job(backbone, task)
            job.keys, job.present, job.images, job.seconds = list(keys), present, images, seconds
            job.embedded, job.stage = 0, ""
            job.state = "failed" if job.errors else "waiting"

    def running(self, backbone: str, task: str, stage: str) -> None:
        """A job is at `extract`, `score` or `train` from now on; one of which a part failed stays a failed one."""
        with self._change():
            job = self._job(backbone, task)
            job.stage = stage
            job.state = "failed" if job.errors else "running"
            if self._working_since is None:
                self._working_since = time.monotonic()

    def advanced(self, backbone: str, task: str, images: int) -> None:
        """So many images of a job have gone through the backbone since; the next beat writes it down."""
        with self._lock:
            self._job(backbone, task).embedded += images

    def done(self, backbone: str, task: str) -> None:
        """A job is over; one of which a part failed stays a failed one."""
        with self._change():
            job = self._job(backbone, task)
            job.state = "failed" if job.errors else "done"

    def failed(self, backbone: str, task: str, line: str) -> None:
        """A job, or a part of it, cannot be done.

        Args:
            backbone: The backbone's spec; empty for every backbone on the task.
            task: The task's full name; empty for every task of the backbone. Both empty: something beside the jobs.
            line: What is wrong; of several lines the last one is kept.
        """
        kept = last_line(line)
        with self._change():
            if backbone and task:
                hit = [self._job(backbone, task)]
            else:
                hit = [
                    job
                    for job in self._run.jobs
                    if job.state != "done" and (job.backbone == backbone or job.task == task)
                ]
            for job in hit:
                job.state = "failed"
                _keep(job.errors, kept)
            if not hit:
                _keep(self._run.failures, kept)

    def dropped(self, task: str) -> None:
        """A task was left out of the run, to fit into its budget."""
        with self._change():
            self._jobs = {place: job for place, job in self._jobs.items() if place[1] != task}
            self._run.jobs = list(self._jobs.values())

    def retried(self, line: str) -> None:
        """Something was lost and is tried again."""
        with self._change():
            _keep(self._run.retried, f"{datetime.now(UTC):%H:%M:%S} {last_line(line)}")

    def note(self, line: str) -> None:
        """Something that whoever looks at the run should know."""
        with self._change():
            _keep(self._run.notes, last_line(line))

    def _job(self, backbone: str, task: str) -> JobState:
        place = (backbone, task)
        if place not in self._jobs:
            self._jobs[place] = JobState(backbone=backbone, task=task)
            self._run.jobs.append(self._jobs[place])
        return self._jobs[place]

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Alone with the state; when all is changed, the thread that writes is woken."""
        with self._lock:
            yield
        self._changed.set()

    def _beat(self) -> None:
        while not self._ended.is_set():
            took = self._write()
            pause = min(max(QUIET_SECONDS, took / _WRITING_SHARE), BEAT_SECONDS)
            self._ended.wait(pause)
            self._changed.wait(BEAT_SECONDS - pause)
            self._changed.clear()

    def _write(self) -> float:
        """Write the file as things are now; the seconds that took."""
        started = time.monotonic()
        with self._lock:
            self._run.heartbeat = datetime.now(UTC)
            self._run.elapsed = started - self._began
            self._run.working = 0.0 if self._working_since is None else started - self._working_since
            text = self._run.model_dump_json(indent=1)
        try:
            write_text(self.path, text + "\n")
        except Exception as error:  # whatever it is, the run itself can go on
            if self._warn is not None:
                self._warn(f"`vitbench status` cannot follow this run: {first_line(error)}")
                self._warn = None
        return time.monotonic() - started


class NoJournal:
    """Writes nothing down; otherwise as `Journal`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def prepared(
        self, backbone: str, task: str, keys: Sequence[str], present: int, images: int, seconds: float | None
    ) -> None:
        """As `Journal.prepared`."""

    def running(self, backbone: str, task: str, stage: str) -> None:
        """As `Journal.running`."""

    def advanced(self, backbone: str, task: str, images: int) -> None:
        """As `Journal.advanced`."""

    def done(self, backbone: str, task: str) -> None:
        """As `Journal.done`."""

    def failed(self, backbone: str, task: str, line: str) -> None:
        """As `Journal.failed`."""

    def dropped(self, task: str) -> None:
        """Nothing."""

    def retried(self, line: str) -> None:
        """As `Journal.retried`."""

    def note(self, line: str) -> None:
        """As `Journal.note`."""


def run_files(out: Path) -> list[Path]:
    """The files of the runs of an output folder, the newest first; none where there is no such folder.

    Raises:
        OSError: The folder cannot be read.
    """
    folder = out / FOLDER
    return sorted((path for path in folder.iterdir() if _is_run(path)), reverse=True) if folder.is_dir() else []


def read_run(path: Path) -> RunState:
    """Read the file of a run.

    Raises:
        FileNotFoundError: It has gone.
        StoreError: It is damaged, or of a schema that this version does not know.
    """
    try:
        return RunState.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
        reason = first_line(error)
        if isinstance(error, pydantic.ValidationError):
            problem = error.errors()[0]
            reason = ": ".join([*map(str, problem["loc"]), problem["msg"]])
            if problem["loc"] == ("schema_version",):
                reason = f"it has the schema version {problem['input']}, and this vitbench reads {RUN_SCHEMA_VERSION}"
        raise StoreError(f"the run file {told(path)} cannot be read ({reason}); it can be deleted") from error


@cache
def process_space() -> str:
    """What processes share to which a pid means the same: the boot and the pid namespace, or else the host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def last_line(text: str) -> str:
    """The last line of a message that is not empty, at most 300 characters: of a traceback, what went wrong."""
    lines = text.strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def _keep(lines: list[str], line: str) -> None:
    """Add a line that is not there yet; only the last ones are kept."""
    if line not in lines:
        lines.append(line)
    del lines[:-KEEP_LINES]


def _is_run(path: Path) -> bool:
    return path.suffix == ".json" and not path.name.startswith(".")


def _remove_old(folder: Path) -> None:
    """Remove what killed runs left, and all but the newest files of runs; one that is still written to goes on."""
    sweep(folder)
    with suppress(OSError, StoreError):
        for path in sorted(filter(_is_run, folder.iterdir()), reverse=True)[KEEP_RUNS:]:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                remove(path)
