"""The local executor: the jobs of a run, one after the other, in this process."""

from __future__ import annotations

import gc
import hashlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from vitbench.backbones import BACKBONES
from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import parse_backbone_spec, parse_representation
from vitbench.errors import StoppedError, UsageError, VitbenchError, first_line
from vitbench.execution.config import TASK, RunConfig
from vitbench.execution.job import Job, carry_out, load_for, prepare, recall_for
from vitbench.execution.reporter import Reporter
from vitbench.features.profile import Profile, recording, stage
from vitbench.features.remembered import remember
from vitbench.hub import offline
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Protocol
from vitbench.records.atomic import check_writable, sweep, write_text
from vitbench.records.store import ResultStore
from vitbench.tasks import transforms
from vitbench.tasks.catalog import expand_tasks, load_task
from vitbench.tasks.splits import parse
from vitbench.tasks.task import Task
from vitbench.training import processes


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
        profile: Where the time went, if that was asked for.
        trace: The file that the profile was written to.
    """

    keys: list[str] = field(default_factory=list)
    written: int = 0
    planned: list[PlannedJob] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    first_error: VitbenchError | None = None
    profile: Profile | None = None
    trace: Path | None = None


def execute(config: RunConfig, reporter: Reporter, command: str, *, dry_run: bool = False) -> RunResult:
    """Carry out a run: every task on every backbone. A failing job does not stop the others.

    Args:
        config: What to run.
        reporter: Hears of the progress.
        command: What started the run, for the records.
        dry_run: Prepare every job, write nothing, and stop.

    Raises:
        StoppedError: A training was asked to end; its state is saved.
        UsageError: A name cannot be meant (nothing has been done then).
        StoreError: The output folder cannot be written to (nothing has been done then).
    """
    protocol: Protocol = PROTOCOLS.load(config.protocol).from_options(config.options)
    task_names = expand_tasks(list(config.tasks))
    for spec in config.backbones:
        BACKBONES.check(parse_backbone_spec(spec).kind)
    for name in config.representations:
        parse_representation(name)
    if config.preprocess != TASK:
        transforms.check(config.preprocess)
    for name in config.task_data:
        if not set(expand_tasks([name])) & set(task_names):
            raise UsageError(f"--task-data names the task '{name}', which is not among the tasks of this run")
    for split in (config.train_split, config.test_split):
        if split:
            parse(split)
    if processes.count() > 1:
        processes.join(cpu=config.device == "cpu" or not torch.cuda.is_available())
        if not processes.is_main():
            return _beside_the_main_process(config, protocol, command, task_names)
    if not dry_run:
        check_writable(config.out)
        sweep(config.out / "records")
        config.save()
    run = LocalRun(config, protocol, reporter, command, dry_run)
    profile = Profile() if config.profile and not dry_run else None
    with recording(profile), offline() if config.offline else nullcontext():
        with stage("prepare"):
            tasks = list(run.load_tasks(task_names))
        for spec in config.backbones if tasks else ():
            run.backbone(spec, tasks)
    if profile is not None:
        run.result.profile, run.result.trace = profile, profile.save(config.out / "profile")
    return run.result


def _beside_the_main_process(config: RunConfig, protocol: Protocol, command: str, task_names: list[str]) -> RunResult:
    """What a process does that shares the trainings of a run: no more than that, and in silence.

    Raises:
        SystemExit: A training was asked to end, which the main process tells.
    """
    if protocol.trains:
        run = LocalRun(config, protocol, Reporter(), command, dry_run=False)
        with offline() if config.offline else nullcontext():
            tasks = list(run.load_tasks(task_names))
            for spec in config.backbones if tasks else ():
                try:
                    run.backbone(spec, tasks)
                except StoppedError as stopped:
                    raise SystemExit(stopped.status) from None
    return RunResult()


class LocalRun:
    """One run under way: what failed and what was done."""

    recalls: ClassVar[bool] = True
    """Whether a backbone need not be loaded where `prepare` says that every record is there."""

    def __init__(self, config: RunConfig, protocol: Protocol, reporter: Reporter, command: str, dry_run: bool) -> None:
        self.config, self.protocol, self.reporter = config, protocol, reporter
        self.command, self.dry_run = command, dry_run
        self.results = ResultStore(config.out)
        self.result = RunResult()
        self.made: set[str] = set()

    def load_tasks(self, names: list[str]) -> Iterator[Task]:
        """The tasks that can be loaded; one that cannot is noted among the failures."""
        for name in names:
            with self._failing_alone(""):
                yield load_task(name, self.config.task_options)

    def backbone(self, spec: str, tasks: list[Task]) -> None:
        """Every job of one backbone, which is loaded once and released afterwards; not at all where every record is there."""
        known = self._remembered(spec)
        tasks = [task for task in tasks if known is None or not self._all_there(known, task)]
        if not tasks:
            return
        backbone: Backbone | None = None
        with self._failing_alone(""), stage("load"):
            backbone = load_for(spec, self.config, self.protocol)
        if backbone is not None:
            if not self.protocol.loading:
                remember(backbone)
            for task in tasks:
                with self._failing_alone(f"{backbone.spec.label} on {task.name}: "):
                    self._job(backbone, task)
        del backbone
        gc.collect()

    def _remembered(self, spec: str) -> Backbone | None:
        """What the backbone of a spec was when it was last loaded, where that suffices to say which records are there."""
        protocol = self.protocol
        if not self.recalls or protocol.trains or protocol.loading or type(protocol).bind is not Protocol.bind:
            return None
        with suppress(VitbenchError):  # loading it tells what is wrong
            return recall_for(spec, self.config)
        return None

    def _all_there(self, backbone: Backbone, task: Task) -> bool:
        """Whether a job has nothing to embed or score; it is carried out then."""
        try:
            with stage("prepare"):
                job = prepare(self.config, backbone, task, self.protocol, self.results, self.made)
        except Exception:  # whatever it is, it comes again with the loaded backbone, and is told then
            return False
        if job.records_wanted or job.failures:
            return False
        with self._failing_alone(f"{backbone.spec.label} on {task.name}: "):
            self._prepared(job)
        return True

    def _job(self, backbone: Backbone, task: Task) -> None:
        with stage("prepare"):
            job = prepare(self.config, backbone, task, self.protocol, self.results, self.made)
        self._prepared(job)

    def _prepared(self, job: Job) -> None:
        task = job.task
        planned = planned_job(job)
        for failure in job.failures:
            self._fail(failure, None)
        for note in job.notes:
            self.reporter.warn(f"{task.name}: {note}")
        if job.same_as:
            self.reporter.line(f"{task.name} is the same data as {job.same_as}: the records of that name are used")
        if not self.dry_run:
            try:
                made, failures = carry_out(job, self.config, self.results, self.reporter, self.command)
            finally:
                self.result.keys += [key for key in job.keys if key in self.results and key not in self.result.keys]
            self.made |= made
            self.result.written += len(made)
            for failure in failures:
                self._fail(failure, None)
        self.result.planned.append(planned)

    @contextmanager
    def _failing_alone(self, where: str) -> Iterator[None]:
        """An error inside is noted, and the rest of the run goes on."""
        try:
            yield
        except StoppedError:
            raise
        except Exception as error:
            if processes.count() > 1:
                raise  # the other processes wait for this one: they can only end with it
            self._note(where, error)

    def _note(self, where: str, error: Exception) -> None:
        if isinstance(error, VitbenchError):
            told = any(f"'{name}'" in str(error) for name in self.config.backbones)
            self._fail(str(error) if told else f"{where}{error}", error)
        else:
            # A bug, or a device that gave up: this job is lost, the others need not be, and the traceback is kept.
            self._fail(f"{where}{self._keep_traceback(error)}", None)

    def _keep_traceback(self, error: Exception) -> str:
        text = "".join(traceback.format_exception(error))
        line = f"{type(error).__name__}: {first_line(error)} (unexpected"
        if self.dry_run:
            return f"{line})"
        path = self.config.out / "failures" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
        write_text(path, text)
        return f"{line}; traceback in {path})"

    def _fail(self, line: str, error: VitbenchError | None) -> None:
        if error is not None and self.result.first_error is None:
            # A copy: the error itself would hold, by its traceback, the backbone and the features of the failed job.
            self.result.first_error = type(error)(str(error))
        if line not in self.result.failures:
            self.result.failures.append(line)
            self.reporter.warn(f"failed: {line}")


def planned_job(job: Job) -> PlannedJob:
    """A job as a line of the plan."""
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
    )
