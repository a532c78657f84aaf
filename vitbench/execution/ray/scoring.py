"""The driver's side of evaluation: jobs whose features are there are handed out, and what comes back is written."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from vitbench.execution.job import Job
from vitbench.execution.ray.course import Course
from vitbench.execution.ray.evaluation import Evaluated, Portion, PutFeatures, evaluate, portions
from vitbench.execution.ray.tasks import Piece
from vitbench.execution.ray.worker import Problem
from vitbench.execution.work import keep, unscored
from vitbench.features.extract import stored_features
from vitbench.features.featureset import FeatureSet
from vitbench.features.view import split_features
from vitbench.records.provenance import provenance

AHEAD = 1
"""Tasks that wait for a free worker with their features put already."""


class Scoring:
    """Evaluation under way. No more is put into the object store at once than what workers are at, and a little ahead."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._supervisor = course.supervisor()
        self._waiting: deque[tuple[Job, Portion]] = deque()
        self._left: Counter[int] = Counter()
        self._held: tuple[tuple[int, str], dict[str, PutFeatures]] | None = None
        self._written = 0
        self._advance: Callable[[int], None] = lambda records: None

    def ready(self, job: Job) -> None:
        """The features of a job are there."""
        found = portions(job, self._course.evaluators) if job.records_wanted else []
        self._left[id(job)] = len(found)
        self._waiting += [(job, portion) for portion in found]
        if not found:
            self._course.finish(job)

    def tend(self, seconds: float) -> None:
        """Hand out what there is room for, and take up what has ended, waiting up to `seconds` for that."""
        while self._waiting and len(self._supervisor) < self._course.evaluators + AHEAD:
            self._begin(*self._waiting.popleft())
        self._supervisor.poll(seconds)

    def finish(self) -> None:
        """Until everything has been scored."""
        left = sum(len(portion.cells) for _, portion in self._waiting) + self._supervisor.size
        with self._course.run.reporter.track("score", self._written + left, "records") as advance:
            advance(self._written)
            self._advance = advance
            while self._waiting or len(self._supervisor):
                self._course.listen()
                self.tend(1.0)
        self._held, self._advance = None, lambda records: None

    def _begin(self, job: Job, portion: Portion) -> None:
        course, begun = self._course, False
        with course.keeping(job):
            put = self._put(job, portion.name)
            remote = evaluate.options(num_cpus=course.per_job.cpus)

            def submit() -> Any:
                return remote.remote(course.told_to_workers, job.protocol, portion, job.task.num_classes, put)

            def done(result: Evaluated) -> None:
                self._take(job, portion, result)

            def failed(problem: Problem) -> None:
                course.fail(job, unscored(job, portion.name, problem.text))
                self._ended(job)

            course.at(job, "score")
            self._supervisor.add(Piece(portion.work, submit, done, failed, size=len(portion.cells)))
            begun = True
        if not begun:
            self._ended(job)

    def _put(self, job: Job, name: str) -> dict[str, PutFeatures]:
        """One representation of a job in the object store; the portions of it follow each other and share it."""
        if self._held is None or self._held[0] != (id(job), name):
            self._held = None
            sets = {
                base: stored_features(job.backbone, job.bases[base], [name], rows, job.stores[base])
                for base, rows in job.stored_rows.items()
            }
            roles = {role: split_features(split, job.rows[role], sets) for role, split in job.splits.items()}
            self._held = (id(job), name), {role: PutFeatures.put(part, name) for role, part in roles.items()}
        return self._held[1]

    def _take(self, job: Job, portion: Portion, result: Evaluated) -> None:
        run = self._course.run
        test = FeatureSet(job.splits["test"].labels, job.rows["test"], {})
        source = provenance(run.command, str(job.backbone.device), job.backbone.provenance_notes)
        source = source.model_copy(update={"host": result.host})
        with self._course.keeping(job):
            for outcome, seconds in result.outcomes:
                run.made.add(keep(job, portion.name, outcome, test, seconds, source, run.results))
                run.result.written += 1
                self._written += 1
                self._advance(1)
        if result.problem is not None and result.problem.kind:
            self._course.fail(job, unscored(job, portion.name, result.problem.text))
        elif result.problem is not None:
            self._course.lose(job, result.problem)
        self._ended(job)

    def _ended(self, job: Job) -> None:
        self._left[id(job)] -= 1
        if not self._left[id(job)]:
            self._course.finish(job)
