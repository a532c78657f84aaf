"""What the runs of an output folder are doing, from the store alone: the files of the runs, and the records that exist.

A record is counted by the name of its file, which is its key; no record is opened.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from vitbench.errors import StoreError, UsageError
from vitbench.execution.journal import STALE_SECONDS, JobState, RunState, process_space, read_run, run_files
from vitbench.records.remote import told
from vitbench.records.store import find_records

SAME_PROCESS_SECONDS = 60.0
"""How far apart two times of one process's start may be: they are counted from a clock that is set now and then."""
CLOCK_SECONDS = 5.0
"""How far the clocks of two machines may differ without a word."""
EARLIEST_SECONDS = 3.0
EARLIEST_SHARE = 0.01
"""No time left is told before so much of the work is done: it would be a guess."""


@dataclass(frozen=True)
class JobStatus:
    """How far one job is.

    Attributes:
        backbone: The backbone's spec.
        task: The task's full name.
        state: `done`, `running`, `waiting` or `failed`; `stopped` and `not begun` in a run that has ended.
        stage: What it is, or was last, busy with: `extract`, `score` or `train`; empty before.
        records: Number of its records that exist; None while it is not known which they are.
        records_total: Number of its records; None while that is not known.
        images: Number of images embedded in this run.
        images_total: Number of images that this run had to embed; None while that is not known.
        errors: What is wrong with it, a line each.
    """

    backbone: str
    task: str
    state: str
    stage: str
    records: int | None
    records_total: int | None
    images: int
    images_total: int | None
    errors: Sequence[str]


@dataclass(frozen=True)
class RunStatus:
    """How far one run is.

    Attributes:
        name: The name of its file, without suffix.
        state: `running`, `finished`, `stopped` (asked to, killed, or not heard of) or `failed`.
        reason: Why it stopped or failed, where that is known.
        heard: Seconds since the heartbeat; None where the clocks of the two machines cannot both be right.
        started: When it was started.
        elapsed: Seconds from its start to its heartbeat.
        command: What started it.
        executor: Its executor.
        host: The machine that drives it.
        jobs: How far each job is, in order.
        records: Number of records of the jobs whose records are known, and of those that exist: distinct ones, as two names of
            the same data share theirs.
        records_total: See above.
        seconds_left: Estimate for the jobs that are prepared; None where nothing can be said.
        unprepared: Number of jobs of which it is not known yet what they have to do.
        failures: What failed beside the jobs.
        retried: What was lost and tried again.
        notes: What the run says beside that.
    """

    name: str
    state: str
    reason: str
    heard: float | None
    started: datetime
    elapsed: float
    command: str
    executor: str
    host: str
    jobs: Sequence[JobStatus]
    records: int
    records_total: int
    seconds_left: float | None
    unprepared: int
    failures: Sequence[str]
    retried: Sequence[str]
    notes: Sequence[str]

    @property
    def states(self) -> Counter[str]:
        """State to the number of jobs in it."""
        return Counter(job.state for job in self.jobs)

    @property
    def images(self) -> tuple[int, int]:
        """Number of images that were embedded, and of those that had to be as far as that is known."""
        return sum(job.images for job in self.jobs), sum(job.images_total or 0 for job in self.jobs)


@dataclass(frozen=True)
class Status:
    """What there is in an output folder.

    Attributes:
        out: The folder, as a user names it.
        runs: The runs that were asked for, the newest first.
        earlier: Number of other runs.
        records: Number of records in the folder, those of no run included.
        problems: Run files that could not be read, a line each.
    """

    out: str
    runs: Sequence[RunStatus]
    earlier: int
    records: int
    problems: Sequence[str]


def read_status(out: Path, *, every: bool = False, now: float | None = None) -> Status:
    """Find out what the runs of an output folder are doing.

    Args:
        out: The folder.
        every: Give all runs that there are files of; else the newest one, and those that are going on.
        now: Seconds since 1970; the clock's if not given.

    Raises:
        StoreError: The folder cannot be read.
        UsageError: There is no such folder, or it holds neither a run nor a record.
    """
    now = time.time() if now is None else now
    try:
        files = run_files(out)
        has_records = (out / "records").is_dir() and any(True for _ in (out / "records").iterdir())
    except OSError as error:
        raise StoreError(f"the folder {told(out)} cannot be read: {error.strerror or error}") from error
    if not files and not has_records:
        raise _nothing_there(out)
    records = {path.stem: path for path in find_records(out)} if has_records else {}
    found, problems = [], []
    for path in files:
        try:
            found.append((read_run(path), _age(path, now)))
        except FileNotFoundError:
            continue  # a run that began just now has removed it: it was old
        except StoreError as error:
            problems.append(str(error))
    standing = [(run, *_standing(run, written, now)) for run, written in found]
    shown = [
        _run_status(run, state, reason, heard, records)
        for number, (run, state, reason, heard) in enumerate(standing)
        if every or number == 0 or state == "running"
    ]
    return Status(told(out), shown, len(standing) - len(shown), len(records), problems)


def _nothing_there(out: Path) -> UsageError:
    """The error for a folder without a run; it names one beside it that has some, as `vitbench leaderboard` does."""
    if out.exists() and not out.is_dir():
        return UsageError(f"{told(out)} is a file: name the output folder of a run")
    near = None
    with suppress(OSError):  # a neighbour that cannot be read is none that was meant
        places = [out.parent, *sorted(out.glob("*"))] if out.is_dir() else []
        near = next((place for place in places if (place / "records").is_dir() or run_files(place)), None)
    hint = f"did you mean {told(near)}?" if near else "start one with `vitbench run`, or name another folder"
    return UsageError(f"there are no runs and no records at {told(out)}: {hint}")


def _age(path: Path, now: float) -> float:
    return now - path.stat().st_mtime


def _standing(run: RunState, written: float, now: float) -> tuple[str, str, float | None]:
    """The state of a run, why it has stopped, and the seconds since its heartbeat.

    The heartbeat is a time of the run's clock, the file's age one of the file system's. Where the machines' clocks differ, one of
    them may lie in the future, which cannot be, or seem older than it is: so the younger of those that can be is taken. A
    copy of the file is young at first, and says no more than a minute too long that the run goes on.

    Args:
        run: The file of the run.
        written: Seconds since the file was written.
        now: Seconds since 1970.
    """
    ages = [age for age in (now - run.heartbeat.timestamp(), written) if age > -CLOCK_SECONDS]
    heard = max(0.0, min(ages)) if ages else None
    if run.state != "running":
        return run.state, run.reason, heard
    here = run.process_space == process_space()
    if here and not _is_there(run.pid, run.process_started):
        return "stopped", f"its process {run.pid} is gone", heard
    if heard is not None and heard > STALE_SECONDS:
        still = f"; its process {run.pid} is there, but does nothing" if here else ""
        return "stopped", f"it has not been heard of for {duration(heard)}{still}", heard
    return "running", "", heard


def _is_there(pid: int, started: float) -> bool:
    """Whether a process of this machine is alive, and not another one that was given its number."""
    try:
        process = psutil.Process(pid)
        alive: bool = process.status() != psutil.STATUS_ZOMBIE
        return alive and abs(process.create_time() - started) < SAME_PROCESS_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it is somebody else's
        return True


def _run_status(run: RunState, state: str, reason: str, heard: float | None, records: Mapping[str, Path]) -> RunStatus:
    there = [_records_there(job, run.since, records) for job in run.jobs]
    jobs = [_job_status(job, len(keys), state == "running") for job, keys in zip(run.jobs, there, strict=True)]
    return RunStatus(
        name=run.name,
        state=state,
        reason=reason,
        heard=heard,
        started=run.started,
        elapsed=run.elapsed,
        command=run.command,
        executor=run.executor,
        host=run.host,
        jobs=jobs,
        records=len({key for keys in there for key in keys}),
        records_total=len({key for job in run.jobs for key in job.keys or ()}),
        seconds_left=_seconds_left(run.jobs, jobs, run.working) if state == "running" else None,
        unprepared=sum(job.keys is None and job.state != "failed" for job in run.jobs),
        failures=run.failures,
        retried=run.retried,
        notes=run.notes,
    )


def _records_there(job: JobState, since: float, records: Mapping[str, Path]) -> list[str]:
    """The keys of a job's records that exist.

    A run that makes everything anew (`--on-existing rerun`) has the old files still: beyond those that counted as present when
    the job was prepared, only what was written since the run began counts.

    Args:
        job: The job.
        since: When the run began, by the file system's clock.
        records: Key to file, of the records that exist.
    """
    there = [key for key in job.keys or () if key in records]
    if job.state == "done" or len(there) <= job.present:
        return there
    fresh = [key for key in there if _written(records[key]) >= since]
    old = sorted(set(there) - set(fresh))
    return [*fresh, *old[: job.present]]


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _job_status(job: JobState, there: int, going_on: bool) -> JobStatus:
    known, state = job.keys is not None, str(job.state)
    if not going_on and state in ("waiting", "running"):
        # What an ended run left may have been done all the same: in its last second, or by a later run.
        whole = known and there == len(job.keys or ())
        state = "done" if whole else "stopped" if state == "running" else "not begun"
    images = min(job.embedded, job.images)
    # What a job that is done has not embedded, though it was to, another run has meanwhile. A training embeds nothing.
    to_embed = images if job.state == "done" and job.stage != "train" else job.images
    return JobStatus(
        backbone=job.backbone,
        task=job.task,
        state=state,
        stage=job.stage,
        records=there if known else None,
        records_total=len(job.keys or ()) if known else None,
        images=images,
        images_total=to_embed if known else None,
        errors=job.errors,
    )


def _seconds_left(states: Sequence[JobState], jobs: Sequence[JobStatus], working: float) -> float | None:
    """What is left for the jobs that are prepared, at the pace of this run so far; None where that says nothing.

    A job weighs what it was estimated to take. Where a job has no estimate, an image to embed and a record to make weigh the
    same, in all jobs: records alone where the run trains, as its images do not go through a backbone one by one. With the
    weights w and the shares f that are done, the run has done Σ w f in the seconds it has been working, and Σ w (1 - f) is left.

    Args:
        states: The jobs as the run's file has them.
        jobs: How far they are.
        working: Seconds since the first of them was begun.
    """
    prepared = [(state, job) for state, job in zip(states, jobs, strict=True) if state.keys is not None]
    trains = any(state.stage == "train" for state in states)
    estimated = all(state.seconds is not None for state, _ in prepared)
    done = left = 0.0
    for state, job in prepared:
        images = 0 if trains else state.images
        units = images + len(state.keys or ()) - state.present
        made = (0 if trains else job.images) + max(0, (job.records or 0) - state.present)
        share = 1.0 if units == 0 or job.state == "done" else min(1.0, made / units)
        weight = float(state.seconds or 0.0) if estimated else float(units)
        done += weight * share
        left += weight * (1 - share) if job.state != "failed" else 0.0
    if not left:
        return 0.0 if prepared else None
    if working < EARLIEST_SECONDS or done < EARLIEST_SHARE * (done + left):
        return None
    return working * left / done


def duration(seconds: float) -> str:
    """How long, in its two largest units: `42 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"
