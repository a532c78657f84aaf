"""How a run on a cluster goes: what workers tell, what is tried again, and whether the cluster still suffices."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from vitbench.execution.job import Job
from vitbench.execution.plan import PlannedJob
from vitbench.execution.ray import cluster
from vitbench.execution.ray.joining import is_loss
from vitbench.execution.ray.process import heed_sigterm
from vitbench.execution.ray.tasks import Supervisor
from vitbench.execution.ray.watch import ADVANCED, BEGAN, LATE, Event
from vitbench.execution.ray.worker import Problem, Setting

if TYPE_CHECKING:
    from vitbench.execution.ray.run import RayRun

LISTEN_SECONDS = 1.0
CHECK_SECONDS = 20.0
STALLED_SECONDS = 60.0
"""After so long without a sign of work, on a cluster that has become smaller, Ray Data is taken to wait for what is gone."""
_ANSWER_SECONDS = 30.0


class Course:
    """A run on a cluster.

    Attributes:
        run: The run, which has the configuration, the records and the failures.
        per_job: What one job takes, and how many fit.
        setting: What workers are told.
        told_to_workers: A reference of it.
        evaluators: How many evaluation tasks the cluster can run at once.
        late: Names of pieces of work that were ended because they took too long.
        units: How often each unit was made, for names that differ over the whole run.
        listeners: Name of a piece of work to who hears of it what is not told here.
    """

    def __init__(self, run: RayRun, setting: Setting, per_job: cluster.PerJob, nodes: Sequence[cluster.Node]) -> None:
        self.run, self.setting, self.per_job = run, setting, per_job
        self.told_to_workers = ray.put(setting)
        self.evaluators = max(1, sum(int(node.cpus) // per_job.cpus for node in nodes))
        self.late: set[str] = set()
        self.embedding: dict[str, Job] = {}
        self.listeners: dict[str, Callable[[Event], None]] = {}
        self.advance: Callable[[int], None] = lambda images: None
        self.units: Counter[str] = Counter()
        client: Any = ray.util.client.ray
        self._from_outside = bool(client.is_connected())
        self._jobs: list[Job] = []
        self._planned: dict[int, PlannedJob] = {}
        self._failed: set[int] = set()
        self._lost: set[int] = set()
        self._begun: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._heard = self._checked = self._moved = time.monotonic()
        self._slots = per_job.slots

    def begin(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the plan."""
        self._jobs += jobs  # they are told apart by `id`, which is given again when one is let go
        for job in jobs:
            self._planned[id(job)] = self.run.announce(job)
            for old in job.refreshed:
                self.run.results.refresh(old)

    def supervisor(self) -> Supervisor:
        """For tasks of this run."""
        limit = self.run.config.timeout_per_job
        return Supervisor(self.max_failures, self.retried, self.late, limit, lambda: self.listen(now=True))

    def wait_for(self, supervisor: Supervisor) -> None:
        """Until all its pieces have ended."""
        while len(supervisor):
            self.listen()
            supervisor.poll(LISTEN_SECONDS)

    def retried(self, line: str) -> None:
        """Tell of something that is tried again."""
        self.run.reporter.warn(line)
        self.run.journal.retried(line)

    def at(self, job: Job, stage: str) -> None:
        """A job is at a stage from now on."""
        self.run.journal.running(*self.run.place(job), stage)

    def fail(self, job: Job, line: str) -> None:
        """A part of a job cannot be done; the rest goes on."""
        self._failed.add(id(job))
        self.run.fail(line, None, *self.run.place(job))

    def lose(self, job: Job, problem: Problem) -> None:
        """A job cannot be done."""
        self._failed.add(id(job))
        self._lost.add(id(job))
        if of_no_use := [work for work, owner in self.embedding.items() if owner is job]:
            self.setting.watch.drop.remote(of_no_use)
        self.note(problem, f"{job.backbone.spec.label} on {job.task.name}: ", *self.run.place(job))

    def note(self, problem: Problem, where: str, backbone: str, task: str) -> None:
        """Put a worker's problem among the failures, as the local executor would have put its own."""
        error = problem.error()
        if error is not None:
            self.run.note(where, error, backbone, task)
        else:
            self.run.note_unexpected(where, problem.text, problem.trace, backbone, task)

    def lost(self, job: Job) -> bool:
        """Whether a job cannot be done."""
        return id(job) in self._lost

    def finish(self, job: Job) -> None:
        """All that could be done of a job is done."""
        self.run.count(job)
        if id(job) not in self._lost:
            self.run.result.planned.append(self._planned[id(job)])
        if id(job) not in self._failed and not job.failures:
            self.run.journal.done(*self.run.place(job))

    @contextmanager
    def keeping(self, job: Job) -> Iterator[None]:
        """What goes wrong inside, such as a full disk, is this job's alone; but not the loss of the cluster."""
        try:
            yield
        except Exception as error:
            if self._from_outside and is_loss(error):
                raise
            self.lose(job, Problem.of(error))

    @property
    def max_failures(self) -> int:
        """How often a piece of work may lose its worker and be tried again."""
        return self.run.config.max_failures

    def listen(self, now: bool = False) -> None:
        """Hear what workers have told since, and see whether the cluster still has what a job needs; about once a second.

        Args:
            now: Hear them whenever that was last done.

        Raises:
            UsageError: No node is left on which a job fits.
            StoppedError: SIGTERM has come.
        """
        heed_sigterm()
        time_now = time.monotonic()
        if time_now - self._heard < LISTEN_SECONDS and not now:
            return
        self._heard = time_now
        events: list[Event] = []
        # What is not heard now is heard later, or is only missing on the screen.
        with suppress(ray.exceptions.RayError):
            events = ray.get(self.setting.watch.drain.remote(), timeout=_ANSWER_SECONDS)
        if events:
            self._moved = time_now
        for event in events:
            self._hear(event)
        if time_now - self._checked > CHECK_SECONDS:
            self._checked = time_now
            self._slots = cluster.recounted(cluster.nodes(), self.per_job).slots

    @property
    def stalled(self) -> bool:
        """Whether nodes were lost and nothing has moved since, though others could go on."""
        return self._slots < self.per_job.slots and time.monotonic() - self._moved > STALLED_SECONDS

    def shrink(self) -> None:
        """Reckon with what is left of the cluster."""
        self.per_job = replace(self.per_job, slots=self._slots)
        self._moved = time.monotonic()

    def _hear(self, event: Event) -> None:
        job = self.embedding.get(event.work)
        if event.kind == LATE:
            self.late.add(event.work)
        elif event.work in self.listeners:
            self.listeners[event.work](event)
        elif job is None or self.lost(job):
            return
        elif event.kind == BEGAN:
            self.at(job, "extract")
            self._begun[event.work] += 1
            if self._begun[event.work] > 1:
                self._again(event, job)
        elif event.kind == ADVANCED:
            self._done[event.work] += event.images
            self._advanced(job, event.images)

    def _again(self, event: Event, job: Job) -> None:
        attempt, most = self._begun[event.work], self.max_failures + 1
        why = "it took longer than --timeout-per-job" if event.work in self.late else "its worker was lost"
        if attempt <= most:
            self.retried(f"{event.work}: {why}; tried again on {event.host} (attempt {attempt} of {most})")
        self.late.discard(event.work)
        self._advanced(job, -self._done.pop(event.work, 0))

    def _advanced(self, job: Job, images: int) -> None:
        self.advance(images)
        self.run.journal.advanced(*self.run.place(job), images)
