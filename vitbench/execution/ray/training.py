"""Trainings on a cluster: each cell of each job is a piece of work of its own, as many at once as fit, the longest first.

A job of several GPUs trains in as many processes (see `training_group`); any other in one worker (see `training_task`).
"""

from __future__ import annotations

import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import ray

from vitbench.errors import StoppedError, StoreError
from vitbench.execution.estimate import flops_per_image
from vitbench.execution.job import Job
from vitbench.execution.ray.cluster import PerJob
from vitbench.execution.ray.course import LISTEN_SECONDS, Course
from vitbench.execution.ray.tasks import Piece
from vitbench.execution.ray.training_group import train_together
from vitbench.execution.ray.training_task import (
    Files,
    Trained,
    Training,
    files_below,
    place_of,
    train_alone,
    write_files,
)
from vitbench.execution.ray.watch import ADVANCED, BEGAN, SAID, WARNED, Event
from vitbench.execution.ray.worker import Problem
from vitbench.execution.training import training_images
from vitbench.protocols.finetune import FineTune
from vitbench.records.identity import key
from vitbench.records.schema import Record
from vitbench.records.store import ResultStore
from vitbench.training.signals import stop_signals

APPEARING_SECONDS = 60.0
"""How long a network folder may take to show a record that another machine has written there."""
ENDING_SECONDS = 60.0
"""How long trainings that were asked to end may take to save their state."""


def train(course: Course, jobs: Sequence[Job]) -> None:
    """Train every cell whose record is wanted; what fails does not stop the others.

    Args:
        course: The run.
        jobs: As `prepare` gave them.

    Raises:
        StoppedError: This process was asked to end; the trainings have saved their state, as far as they came to it.
        UsageError: No node is left on which a job fits.
    """
    under_way = _Trainings(course)
    for job in jobs:
        under_way.plan(job)
    under_way.carry_out()


def processes_of(per_job: PerJob) -> int:
    """How many processes share a training: one for each GPU."""
    return max(1, int(per_job.gpus))


class _Trainings:
    """The trainings of a run."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._supervisor = course.supervisor()
        self._waiting: list[tuple[float, Job, Training]] = []
        self._left: Counter[int] = Counter()
        self._steps: Counter[str] = Counter()
        self._advance: Callable[..., None] = lambda steps, text="": None
        self._stopping = False
        self._unfinished = 0

    def plan(self, job: Job) -> None:
        """Take up the cells of a job."""
        self._left[id(job)] = job.records_wanted
        if not job.records_wanted:
            self._course.finish(job)
            return
        cost = flops_per_image(job.backbone) * training_images(job) / job.records_wanted
        spec, task = self._course.run.place(job)
        for name, cells in job.wanted.items():
            for cell in cells:
                work = f"train   {job.backbone.spec.label} · {job.task.name} · {name} seed {cell.seed}"
                identity = job.identities[name, cell]
                self._waiting.append((cost, job, Training(work, spec, task, name, cell, identity, key(identity))))

    def carry_out(self) -> None:
        """Until all have ended. Errors as of `train`."""
        course = self._course
        waiting = deque(sorted(self._waiting, key=lambda item: -item[0]))
        total = sum(_steps_of(job) for _, job, _ in waiting)
        label = waiting[0][2].work if len(waiting) == 1 else f"train   {len(waiting)} trainings"
        try:
            with course.run.reporter.track(label, total, "steps") as advance, stop_signals() as stopped:
                self._advance = advance
                while waiting or len(self._supervisor):
                    while waiting and len(self._supervisor) < course.per_job.slots:
                        _, job, training = waiting.popleft()
                        self._begin(job, training)
                    course.listen()
                    if number := stopped():
                        self._stop(number, len(waiting))
                    self._supervisor.poll(LISTEN_SECONDS)
        except BaseException:
            self._supervisor.cancel()
            raise
        finally:
            course.listeners.clear()

    def _begin(self, job: Job, training: Training) -> None:
        course = self._course
        count = processes_of(course.per_job)
        if count > 1:
            remote: Any = ray.remote(max_retries=0, num_cpus=0)(train_together)
            how: tuple[Any, ...] = (count, course.per_job.gpus > 0)
        else:
            resources = {"num_cpus": course.per_job.cpus, "num_gpus": course.per_job.gpus}
            remote, how = ray.remote(train_alone).options(max_retries=0, **resources), ()

        def submit() -> Any:
            return remote.remote(course.told_to_workers, training, self._begun(training), *how)

        def done(result: Trained) -> None:
            self._done(piece, job, training, result)

        def failed(problem: Problem) -> None:
            self._failed(job, training, problem)

        def heard(event: Event) -> None:
            self._hear(job, event)

        course.listeners[training.work] = heard
        piece = Piece(training.work, submit, done, failed, size=_steps_of(job))
        self._supervisor.add(piece)

    def _begun(self, training: Training) -> Files:
        """What an earlier attempt has left, for a worker that does not see it."""
        if self._course.setting.writes:
            return {}
        out = self._course.run.config.out
        folder = f"training/{training.key}"
        return {f"{folder}/{name}": content for name, content in files_below(out / folder).items()}

    def _hear(self, job: Job, event: Event) -> None:
        reporter = self._course.run.reporter
        if event.kind == BEGAN:
            self._course.at(job, "train")
            self._advance(-self._steps.pop(event.work, 0))
        elif event.kind == ADVANCED:
            self._steps[event.work] += event.images
            self._advance(event.images, event.text)
        elif event.kind == SAID:
            reporter.line(event.text)
        elif event.kind == WARNED:
            reporter.warn(event.text)

    def _done(self, piece: Piece, job: Job, training: Training, result: Trained) -> None:
        course, run = self._course, self._course.run
        course.listen(now=True)
        taken = False
        with course.keeping(job):
            out = run.config.out
            names = _where_they_belong(result.files, run.results, out)
            write_files({names[name]: content for name, content in result.files.items()}, out)
            _forget_what_went(result, out, f"training/{training.key}")
            for name in result.written:
                path = out / names.get(name, name)
                _see(path)
                run.results.take_up(path)
                run.made.add(training.key)
                run.result.written += 1
            taken = True
        if taken and result.lost and not result.failures:
            if self._stopping:
                self._unfinished += 1
                return
            if piece.attempts <= course.max_failures:
                attempt = f"attempt {piece.attempts + 1} of {course.max_failures + 1}"
                course.retried(f"{piece.work}: {result.lost}; tried again ({attempt})")
                self._supervisor.add(piece)
                return
            if result.problem is None:
                self._failed(job, training, Problem("GivenUpError", f"given up: {result.lost}"))
                return
        for line in result.failures:
            course.fail(job, line)
        if result.problem is not None:
            course.lose(job, result.problem)
        self._ended(job)

    def _failed(self, job: Job, training: Training, problem: Problem) -> None:
        """Nothing came back."""
        if self._stopping:
            self._unfinished += 1
            return
        name = f"{job.backbone.spec.label} on {job.task.name}, {training.representation}, seed {training.cell.seed}"
        self._course.fail(job, f"{name}: {problem.text}")
        self._ended(job)

    def _ended(self, job: Job) -> None:
        self._left[id(job)] -= 1
        if not self._left[id(job)]:
            self._course.finish(job)

    def _stop(self, number: int, waiting: int) -> None:
        """Let the trainings that are under way save their state.

        Raises:
            StoppedError: Always.
        """
        self._stopping = True
        self._supervisor.max_failures = 0
        self._supervisor.ask_to_end()
        until = time.monotonic() + ENDING_SECONDS
        while len(self._supervisor) and time.monotonic() < until:
            self._course.listen()
            self._supervisor.poll(LISTEN_SECONDS)
        left = self._unfinished + len(self._supervisor) + waiting
        raise StoppedError(
            f"stopped with {left} training{'s' if left != 1 else ''} unfinished; what they have saved is in "
            f"{self._course.run.config.out / 'training'}: run the same command again to go on from there",
            status=128 + number,
        )


def _steps_of(job: Job) -> int:
    """Updates of one cell, those of trials included."""
    assert isinstance(job.protocol, FineTune)
    recipe = job.protocol.recipe
    return recipe.steps + sum(trial.steps for trial in recipe.trials() if job.protocol.tune)


def _where_they_belong(files: Files, results: ResultStore, out: Path) -> dict[str, str]:
    """Path that a worker has given a file to the path that it has below the output folder.

    They differ for a record that is made again and lies in the folder of another task with the same data.

    Raises:
        StoreError: A path leads outside.
    """
    folders = {}
    for name, content in files.items():
        place_of(name, out)
        if name.startswith("records/") and name.endswith(".json"):
            record = Record.model_validate_json(content.tobytes())
            folders[PurePosixPath(name).parent] = results.place(record).parent.relative_to(out)
    return {
        name: (folders.get(path.parent, path.parent) / path.name).as_posix()
        for name, path in ((name, PurePosixPath(name)) for name in files)
    }


def _forget_what_went(result: Trained, out: Path, folder: str) -> None:
    """Remove what an earlier attempt had given back and the worker has removed since, such as the checkpoints of what is done."""
    kept = {name for name in result.files if name.startswith(f"{folder}/")}
    if not result.files or not (kept or result.written):
        return
    for name in files_below(out / folder):
        if f"{folder}/{name}" not in kept:
            (out / folder / name).unlink(missing_ok=True)
    if not kept:
        shutil.rmtree(out / folder, ignore_errors=True)
        with suppress(OSError):
            (out / folder).parent.rmdir()


def _see(path: Path) -> None:
    """Wait until a file that a worker has written can be seen here.

    Raises:
        StoreError: It cannot.
    """
    until = time.monotonic() + APPEARING_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise StoreError(f"what a worker wrote to {path} cannot be seen here: use --writer driver")
        time.sleep(1.0)
