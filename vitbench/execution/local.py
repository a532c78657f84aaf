"""The local executor: the jobs of a run, one after the other, in this process."""

from __future__ import annotations

import gc
import hashlib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, ClassVar

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import GivenUpError, StoppedError, VitbenchError, first_line, printable
from vitbench.execution.config import RunConfig
from vitbench.execution.job import Job, load_for, looks_at_classifier, prepare, recall_for
from vitbench.execution.journal import Journal, NoJournal
from vitbench.execution.plan import Estimate, PlannedJob, RunResult, duration_text, planned_job
from vitbench.execution.reporter import Reporter, Stages
from vitbench.execution.work import carry_out
from vitbench.features.profile import stage
from vitbench.features.remembered import remember, without_weights
from vitbench.protocols.base import Protocol
from vitbench.records.atomic import write_text
from vitbench.records.costs import read_costs
from vitbench.records.store import ResultStore
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Task
from vitbench.training import processes

if TYPE_CHECKING:
    from vitbench.execution.estimate import Rate


class LocalRun:
    """One run under way: what failed and what was done."""

    recalls: ClassVar[bool] = True
    """Whether a backbone need not be loaded where `prepare` says that every record is there."""

    def __init__(
        self,
        config: RunConfig,
        protocol: Protocol,
        reporter: Reporter,
        command: str,
        dry_run: bool,
        journal: Journal | NoJournal | None = None,
    ) -> None:
        self.config, self.protocol, self.reporter = config, protocol, reporter
        self.command, self.dry_run = command, dry_run
        self.journal = journal or NoJournal()
        self.results = ResultStore(config.out)
        self.result = RunResult()
        self.made: set[str] = set()
        self.noted: set[str] = set()
        self.names: dict[str, str] = {}
        self.rates: dict[tuple[str, str], Rate] = {}

    def carry_out(self, task_names: list[str]) -> None:
        """Every job of the run."""
        with stage("prepare"):
            tasks = list(self.load_tasks(task_names))
        if tasks and self.config.budget is not None:
            tasks = self.fitted(list(self._descriptions()), tasks)
        for spec in self.config.backbones if tasks else ():
            self.backbone(spec, tasks)

    def load_tasks(self, names: list[str]) -> Iterator[Task]:
        """The tasks that can be loaded; one that cannot is noted among the failures."""
        for name in names:
            with self._failing_alone("", task=name):
                task = load_task(name, self.config.task_options)
                self.names[task.name] = name
                yield task

    def fitted(self, backbones: Sequence[Backbone], tasks: Sequence[Task], slots: int = 1) -> list[Task]:
        """The tasks that fit into the budget, with the seeds and shots that do; what is left out is told.

        Raises:
            UsageError: Not even the least of it fits.
        """
        budget = self.config.budget
        if not backbones or budget is None:
            return list(tasks)
        from vitbench.execution.budget import fit

        rate = self._rate(backbones[0])
        found = fit(self.config, self.protocol, backbones, tasks, self.results, budget, rate, slots)
        self.config, self.protocol = found.config, found.protocol
        told = f"about {duration_text(found.seconds)} of a budget of {duration_text(budget)}"
        line = f"{told}; left out: {'; '.join(found.dropped)}" if found.dropped else f"{told}: nothing is left out"
        self.reporter.line(line)
        self.journal.note(line)
        for task in tasks:
            if task not in found.tasks:
                self.journal.dropped(self.names.get(task.name, task.name))
        return found.tasks

    def estimate(self, job: Job) -> Estimate | None:
        """How long what is left to do of a job takes; None where nothing is."""
        if not job.records_wanted:
            return None
        from vitbench.execution.estimate import estimate_of, work_of  # not for a run whose records are all there

        return estimate_of(job.backbone, work_of(job), self._rate(job.backbone), self.result.slots)

    def _rate(self, backbone: Backbone) -> Rate:
        """What a worker of this run does in a second in a backbone's dtype; measured once."""
        from vitbench.execution.estimate import speed

        place = str(backbone.device), backbone.dtype
        if place not in self.rates:
            costs, _ = read_costs(self.config.out)
            self.rates[place] = speed(place[0], dtypes=place[1:], costs=costs, workers=self.config.workers)
        return self.rates[place]

    def _descriptions(self) -> Iterator[Backbone]:
        """What the backbones of the run are; one that is not remembered is loaded and released."""
        for spec in self.config.backbones:
            known = self._remembered(spec)
            with self._failing_alone("", backbone=spec), stage("load"):
                yield known or without_weights(
                    load_for(spec, self.config, self.protocol), looks_at_classifier(self.protocol)
                )

    def backbone(self, spec: str, tasks: list[Task]) -> None:
        """Every job of one backbone, which is loaded once and released afterwards; not at all where every record is there."""
        known = self._remembered(spec)
        tasks = [task for task in tasks if known is None or not self._all_there(known, task)]
        if not tasks:
            return
        backbone: Backbone | None = None
        with self._failing_alone("", backbone=spec), stage("load"):
            backbone = load_for(spec, self.config, self.protocol)
        if backbone is not None:
            if not self.protocol.loading:
                remember(backbone)
            for task in tasks:
                with self._failing_alone(f"{backbone.spec.label} on {task.name}: ", backbone=spec, task=task.name):
                    self._job(backbone, task)
        del backbone
        gc.collect()

    def _remembered(self, spec: str) -> Backbone | None:
        """What the backbone of a spec was when it was last loaded, where that suffices to say which records are there."""
        protocol = self.protocol
        if not self.recalls or protocol.trains or protocol.loading or looks_at_classifier(protocol):
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
        with self._failing_alone(f"{backbone.spec.label} on {task.name}: ", backbone.spec.text, task.name):
            self._prepared(job)
        return True

    def _job(self, backbone: Backbone, task: Task) -> None:
        with stage("prepare"):
            job = prepare(self.config, backbone, task, self.protocol, self.results, self.made)
        self._prepared(job)

    def _prepared(self, job: Job) -> None:
        planned, place = self.announce(job), self.place(job)
        if not self.dry_run:
            try:
                made, failures = carry_out(
                    job, self.config, self.results, self.reporter, self.command, _JournalStages(self.journal, *place)
                )
            finally:
                self.count(job)
            self.made |= made
            self.result.written += len(made)
            for failure in failures:
                self.fail(failure, None, *place)
            if not failures and not job.failures:
                self.journal.done(*place)
        self.result.planned.append(planned)

    def announce(self, job: Job) -> PlannedJob:
        """Tell what the user should know of a job that is about to be carried out; its line of the plan."""
        planned, task, place = planned_job(job, self.estimate(job)), job.task, self.place(job)
        self.journal.prepared(*place, job.keys, planned.present, planned.images, planned.seconds)
        for failure in job.failures:
            self.fail(failure, None, *place)
        for line in (f"{task.name}: {note}" for note in job.notes):
            if line not in self.noted:
                self.noted.add(line)
                self.reporter.warn(line)
        if job.same_as:
            self.reporter.line(f"{task.name} is the same data as {job.same_as}: the records of that name are used")
        return planned

    def count(self, job: Job) -> None:
        """Take up the keys of a job's records that are there."""
        known = set(self.result.keys)
        self.result.keys += [key for key in job.keys if key in self.results and key not in known]

    def place(self, job: Job) -> tuple[str, str]:
        """A job's name in the journal: the backbone and the task as the run was told."""
        return job.backbone.spec.text, self.names.get(job.task.name, job.task.name)

    @contextmanager
    def _failing_alone(self, where: str, backbone: str = "", task: str = "") -> Iterator[None]:
        """An error inside is noted, and the rest of the run goes on."""
        try:
            yield
        except StoppedError:
            raise
        except Exception as error:
            if processes.count() > 1:
                raise  # the other processes wait for this one: they can only end with it
            self.note(where, error, backbone, task)

    def note(self, where: str, error: Exception, backbone: str = "", task: str = "") -> None:
        """Put an error among the failures: a user's mistake as its line, anything else with its traceback in a file."""
        if isinstance(error, VitbenchError):
            told = any(f"'{name}'" in str(error) for name in self.config.backbones)
            self.fail(str(error) if told else f"{where}{error}", error, backbone, task)
        else:
            # A bug, or a device that gave up: this job is lost, the others need not be, and the traceback is kept.
            text = "".join(traceback.format_exception(error))
            line = f"{type(error).__name__}: {first_line(error)}"
            self.note_unexpected(where, line, text, backbone, task)

    def note_unexpected(self, where: str, line: str, text: str, backbone: str, task: str) -> None:
        """Put an error that no mistake in the input is known to explain among the failures, its traceback in a file."""
        where = where or f"loading {backbone or task}: "  # other errors of loading name what was loaded
        self.fail(f"{where}{self._keep_traceback(line, text)}", None, backbone, task)

    def _keep_traceback(self, line: str, text: str) -> str:
        """Write the traceback of an unexpected error below the output folder; the error's line, with where that is."""
        text = printable(text)
        if self.dry_run:
            return f"{line} (unexpected)"
        path = self.config.out / "failures" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
        write_text(path, text)
        return f"{line} (unexpected; traceback in {path})"

    def fail(self, line: str, error: VitbenchError | None, backbone: str = "", task: str = "") -> None:
        """Put a line among the failures.

        Args:
            line: What is wrong.
            error: The exception that it was; None for a bug, and for what only showed once the work had begun.
            backbone: Whose job it is; empty for every backbone's.
            task: Of which task; empty for every task's.
        """
        line = printable(line)
        if error is not None and self.result.first_error is None:
            # A copy: the error itself would hold, by its traceback, the backbone and the features of the failed job.
            self.result.first_error = type(error)(str(error))
        self.result.beyond_input |= error is None or isinstance(error, GivenUpError)
        self.journal.failed(parse_backbone_spec(backbone).text if backbone else "", self.names.get(task, task), line)
        if line not in self.result.failures:
            self.result.failures.append(line)
            self.reporter.warn(f"failed: {line}")


class _JournalStages(Stages):
    """Writes down where one job is."""

    def __init__(self, journal: Journal | NoJournal, backbone: str, task: str) -> None:
        self._journal, self._place = journal, (backbone, task)

    def running(self, stage: str) -> None:
        self._journal.running(*self._place, stage)

    def advanced(self, images: int) -> None:
        self._journal.advanced(*self._place, images)
