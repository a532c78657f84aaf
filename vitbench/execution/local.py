"""The local executor: the jobs of a run, one after the other, in this process."""

from __future__ import annotations

import gc
import hashlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone
from vitbench.backbones.spec import parse_backbone_spec, parse_representation
from vitbench.errors import VitbenchError
from vitbench.execution.config import AUTO, RunConfig
from vitbench.execution.job import Job, carry_out, prepare
from vitbench.execution.reporter import Reporter
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Protocol
from vitbench.records.atomic import check_writable, write_text
from vitbench.records.store import ResultStore
from vitbench.tasks.catalog import expand_tasks, load_task
from vitbench.tasks.task import Task


@dataclass(frozen=True)
class PlannedJob:
    """A line of the plan, for `--dry-run` and for the summary.

    Attributes:
        backbone: The backbone's spec.
        task: The task's full name.
        representations: Those whose records are still to be made.
        records: Number of records that the job has in all.
        present: Number of them that are there already.
        images: Number of images that must go through the backbone, train and test together.
        cached: Number of images that are needed and whose features are there already.
    """

    backbone: str
    task: str
    representations: tuple[str, ...]
    records: int
    present: int
    images: int
    cached: int


@dataclass
class RunResult:
    """What came of a run.

    Attributes:
        keys: Keys of the run's records, those that were there before included.
        written: Number of records written now.
        planned: The plan, a line per job that could be prepared.
        failures: What could not be done, a line each.
        first_error: The first failure that a user can mend, as an exception; None when there was none.
    """

    keys: list[str] = field(default_factory=list)
    written: int = 0
    planned: list[PlannedJob] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    first_error: VitbenchError | None = None


def execute(config: RunConfig, reporter: Reporter, command: str, *, dry_run: bool = False) -> RunResult:
    """Carry out a run: every task on every backbone. A failing job does not stop the others.

    Args:
        config: What to run.
        reporter: Hears of the progress.
        command: What started the run, for the records.
        dry_run: Prepare every job, write nothing, and stop.

    Raises:
        UsageError: A name cannot be meant (nothing has been done then).
        StoreError: The output folder cannot be written to (nothing has been done then).
    """
    protocol: Protocol = PROTOCOLS.load(config.protocol).from_options(config.options)
    task_names = expand_tasks(list(config.tasks))
    for spec in config.backbones:
        parse_backbone_spec(spec)
    for name in config.representations:
        parse_representation(name)
    if not dry_run:
        check_writable(config.out)
        config.save()
    run = _Run(config, protocol, reporter, command, dry_run)
    tasks = list(run.load_tasks(task_names))
    for spec in config.backbones if tasks else ():
        run.backbone(spec, tasks)
    return run.result


class _Run:
    """One run under way: what failed and what was done."""

    def __init__(self, config: RunConfig, protocol: Protocol, reporter: Reporter, command: str, dry_run: bool) -> None:
        self.config, self.protocol, self.reporter = config, protocol, reporter
        self.command, self.dry_run = command, dry_run
        self.results = ResultStore(config.out)
        self.result = RunResult()

    def load_tasks(self, names: list[str]) -> Iterator[Task]:
        for name in names:
            try:
                yield load_task(name)
            except VitbenchError as error:
                self._fail(str(error), error)

    def backbone(self, spec: str, tasks: list[Task]) -> None:
        """Every job of one backbone, which is loaded once and released afterwards."""
        try:
            backbone = _load(spec, self.config)
        except VitbenchError as error:
            self._fail(str(error), error)
            return
        for task in tasks:
            try:
                self._job(backbone, task)
            except VitbenchError as error:
                self._fail(f"{spec} on {task.name}: {error}", error)
            except Exception as error:
                # A bug, or a device that gave up: this job is lost, the others need not be, and the traceback is kept.
                self._fail(f"{spec} on {task.name}: {self._keep_traceback(error)}", None)
        del backbone
        gc.collect()

    def _job(self, backbone: Backbone, task: Task) -> None:
        job = prepare(self.config, backbone, task, self.protocol, self.results)
        planned = _planned(job)
        for failure in job.failures:
            self._fail(failure, None)
        for note in job.notes:
            self.reporter.warn(f"{task.name}: {note}")
        if self.dry_run:
            self.result.planned.append(planned)
            return
        if job.records_wanted:
            self.result.written += carry_out(job, self.config, self.results, self.reporter, self.command)
        self.result.planned.append(planned)
        self.result.keys += job.keys

    def _keep_traceback(self, error: Exception) -> str:
        text = "".join(traceback.format_exception(error))
        path = self.config.out / "failures" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
        write_text(path, text)
        first = str(error).strip().splitlines()[:1]
        return f"{type(error).__name__}: {''.join(first)} (unexpected; traceback in {path})"

    def _fail(self, line: str, error: VitbenchError | None) -> None:
        self.result.first_error = self.result.first_error or error
        if line not in self.result.failures:
            self.result.failures.append(line)
            self.reporter.warn(f"failed: {line}")


def _load(spec: str, config: RunConfig) -> Backbone:
    backbone = load_backbone(spec, device=config.device, allow_untrained=config.allow_untrained)
    if backbone.spec.dtype == AUTO:
        backbone.to(backbone.device, config.dtype)
    return backbone


def _planned(job: Job) -> PlannedJob:
    missing = sum(job.images_missing().values())
    return PlannedJob(
        backbone=job.backbone.spec.text,
        task=job.task.name,
        representations=tuple(job.wanted),
        records=len(job.identities),
        present=len(job.identities) - job.records_wanted,
        images=missing,
        cached=sum(map(len, job.rows.values())) - missing,
    )
