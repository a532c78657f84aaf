"""The plan of a run, and what comes of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vitbench.errors import VitbenchError
from vitbench.execution.job import Job
from vitbench.features.profile import Profile

_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True)
class Estimate:
    """How long what is left of a job takes, in seconds (`vitbench.execution.estimate`).

    Attributes:
        load: To load its backbone, which is done once for all jobs of it.
        alone: The work itself, by one slot.
        shared: The same where every slot of the run has a part in it.
    """

    load: float
    alone: float
    shared: float


def run_seconds(estimates: Iterable[tuple[Hashable, Estimate]], slots: int = 1) -> float:
    """How long the jobs of a run take: the slots share the work, and the longest job is its own time at least.

    Args:
        estimates: The estimates of the jobs that have something to do, each with its backbone or a name of it.
        slots: How many jobs run at a time.
    """
    loads: dict[Hashable, float] = {}
    work, longest = 0.0, 0.0
    for backbone, job in estimates:
        loads[backbone] = job.load
        work += job.alone / slots
        longest = max(longest, job.load + job.shared)
    return max(sum(loads.values()) + work, longest)


@dataclass(frozen=True)
class PlannedJob:
    """A line of the plan, for `--dry-run` and for the summary.

    Attributes:
        backbone: The backbone's spec.
        task: The task's full name.
        representations: Those asked for.
        records: Number of records that the job has in all.
        present: Number of them that are there already.
        images: Number of images that must go through the backbone, train and test together.
        cached: Number of images that are needed and whose features are there already.
        estimate: How long the rest takes; None where nothing is left.
    """

    backbone: str
    task: str
    representations: tuple[str, ...]
    records: int
    present: int
    images: int
    cached: int
    estimate: Estimate | None = None

    @property
    def seconds(self) -> float:
        """How long the rest takes one slot that has the backbone; 0 where nothing is left."""
        return self.estimate.alone if self.estimate else 0.0


@dataclass
class RunResult:
    """What came of a run.

    Attributes:
        keys: Keys of the run's records, those that were there before included.
        written: Number of records written now.
        planned: The plan, a line per job that could be prepared.
        slots: How many jobs run at a time.
        failures: What could not be done, a line each.
        first_error: The first failure that is no bug, as an exception; None when there was none.
        beyond_input: Whether something failed that no mistake in the input is known to explain.
        profile: Where the time went, if that was asked for.
        trace: The file that the profile was written to.
    """

    keys: list[str] = field(default_factory=list)
    written: int = 0
    planned: list[PlannedJob] = field(default_factory=list)
    slots: int = 1
    failures: list[str] = field(default_factory=list)
    first_error: VitbenchError | None = None
    beyond_input: bool = False
    profile: Profile | None = None
    trace: Path | None = None

    @property
    def seconds(self) -> float:
        """An estimate of how long the plan takes."""
        return run_seconds(((job.backbone, job.estimate) for job in self.planned if job.estimate), self.slots)

    @property
    def status(self) -> int:
        """The exit status that tells it: 0 done; 1 a job failed; 2 a mistake in the input, and nothing could be done."""
        if not self.failures:
            return 0
        return 1 if self.planned or self.beyond_input else 2


def planned_job(job: Job, estimate: Estimate | None = None) -> PlannedJob:
    """A job as a line of the plan, with an estimate of what is left to do of it."""
    if job.protocol.trains:
        from vitbench.execution.training import training_images

        missing = training_images(job)
        cached = 0
    else:
        missing = sum(job.images_missing().values())
        cached = sum(map(len, job.stored_rows.values())) - missing
    return PlannedJob(
        backbone=job.backbone.spec.text,
        task=job.task.name,
        representations=tuple(job.representations),
        records=len(job.identities),
        present=len(job.identities) - job.records_wanted,
        images=missing,
        cached=cached,
        estimate=estimate,
    )


def plan_rows(planned: Iterable[PlannedJob]) -> list[dict[str, object]]:
    """The rows of a dry run's table, one for each job, in order."""
    columns = ("backbone", "task", "representations", "records", "present", "images", "cached")
    return [
        {name: getattr(job, name) for name in columns}
        | {"representations": ", ".join(job.representations), "estimate": duration_text(job.seconds)}
        for job in planned
    ]


def duration_text(seconds: float) -> str:
    """A duration as roughly as an estimate is known: `40 s`, `3 min`, `2.5 h`, `4 days`; what is less than a second is one."""
    if seconds < 1:
        return "1 s" if seconds > 0 else "0 s"
    for text, unit, below in (("s", 1, 90), ("min", _MINUTE, 90 * _MINUTE), ("h", _HOUR, 36 * _HOUR)):
        if seconds < below:
            return f"{_rounded(seconds / unit)} {text}"
    return f"{_rounded(seconds / (24 * _HOUR))} days"


def _rounded(value: float) -> str:
    """One decimal below 10 where it says something, else none."""
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:,.0f}"
