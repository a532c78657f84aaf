"""Extraction on Ray Data: the images that are missing, in units, stream through actors that keep a backbone loaded.

One pipeline serves many jobs: a large split is many units and spreads over all actors, many small splits run side by side.
Units of one backbone follow each other, and an actor loads the next backbone only when it is given such a unit. What an actor
gives back is the features of one unit, which is bounded, and Ray Data holds back the actors when the driver is slower than
they are: memory does not grow with the number of images. The units come in order, and are written in order.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from ray.exceptions import RayError
from safetensors.torch import load

from vitbench.errors import StoreError, one_line
from vitbench.execution.job import Job
from vitbench.execution.ray.cluster import PerJob
from vitbench.execution.ray.course import Course
from vitbench.execution.ray.pipeline import PipelineStalledError, streamed
from vitbench.execution.ray.scoring import Scoring
from vitbench.execution.ray.worker import Problem, Setting, Unit
from vitbench.execution.work import label_of, tell_damaged
from vitbench.features.extract import GPU_BATCH, default_batch
from vitbench.features.store import FeatureStore, runs_of
from vitbench.features.writer import ShardWriter
from vitbench.records.remote import pull

UNITS_AHEAD = 2
"""A unit is at most what is left, by so many for each actor: units become small towards the end, so that none waits long for the
last."""
CPU_IMAGES, GPU_IMAGES = 256, 2048
"""Images of a unit at most, but for the batch that goes beyond: what a lost worker has done in vain."""
WAVE_STORES = 256
"""Feature stores that one pipeline holds locks of: each is an open file."""
APPEARING_SECONDS = 60.0
"""How long a network folder may take to show what another machine has written there."""


@dataclass(frozen=True)
class Extracted:
    """What came of one unit; `problem` where nothing did."""

    unit: Unit
    features: bytes
    problem: Problem | None


def units_of(
    jobs: Sequence[Job], names: Sequence[str], per_job: PerJob, setting: Setting, made: Counter[str]
) -> list[tuple[int, Unit]]:
    """The units of some jobs, in the order of the jobs, each with the number of its job.

    Every unit but the last of a split is whole batches, as this process would form them: which images share a batch can
    decide the last bits of their features.

    Args:
        jobs: The jobs.
        names: The task of each, as the run was told.
        per_job: What one actor has.
        setting: What workers are told.
        made: How often each unit was made in this run; it is counted on.
    """
    lacking = [
        (number, name, atoms, rows)
        for number, job in enumerate(jobs)
        for name, wanted in job.stored_rows.items()
        for atoms, rows in job.stores[name].missing(job.atoms, wanted).items()
    ]
    left = sum(len(rows) for *_, rows in lacking)
    batch = setting.config.batch_size or (
        GPU_BATCH if per_job.gpus else default_batch(torch.device("cpu"), per_job.cpus)
    )
    most = GPU_IMAGES if per_job.gpus else CPU_IMAGES
    units = []
    for number, split, atoms, rows in lacking:
        job = jobs[number]
        start = 0
        while start < len(rows):
            share = min(most, left / (UNITS_AHEAD * per_job.slots))
            part = rows[start : start + math.ceil(share / batch) * batch]
            start, left = start + len(part), left - len(part)
            where = f"{label_of('extract', job)} {split}, rows {part[0]} to {part[-1]}"
            # Two backbones may have one label, and what was lost is made again: a name is never used twice in a run.
            made[where] += 1
            if made[where] > 1:
                where += f" ({made[where]})"
            unit = Unit(
                work=where,
                spec=job.backbone.spec.text,
                weights=job.backbone.weights_digest,
                task=names[number],
                split=split,
                fingerprint=job.bases[split].fingerprint,
                preprocessing=str(job.preprocessing),
                atoms=sorted(atoms),
                rows=runs_of(part),
                identity=job.stores[split].identity,
            )
            units.append((number, unit))
    return units


def extracted(
    units: Sequence[Unit], setting: Setting, per_job: PerJob, idle: Callable[[], None]
) -> Iterator[Extracted]:
    """What comes of every unit, in their order.

    Args:
        units: What to embed.
        setting: What workers are told.
        per_job: What one actor takes.
        idle: Called about once a second while the next unit is waited for; what it raises ends the extraction.

    Raises:
        RayError: The pipeline was lost.
    """
    known = {unit.work: unit for unit in units}
    blocks = [unit.text() for unit in units]
    for row in streamed(blocks, setting, per_job, idle):
        problem = Problem(**json.loads(row["problem"])) if row["problem"] else None
        yield Extracted(known[row["work"]], row["features"], problem)


def extract(course: Course, jobs: Sequence[Job], scoring: Scoring) -> None:
    """Embed all that is missing of some jobs; each is scored as soon as its features are there.

    Args:
        course: The run.
        jobs: What to embed for, in the order in which that is to begin.
        scoring: Is told of each job that is ready.
    """
    for wave in _waves(jobs):
        stores = [store for job in wave for store in job.stores.values()]
        with locked(stores, lambda: course.run.reporter.warn("another process is extracting; waiting for it")):
            left, lost = list(wave), 0
            while left:
                try:
                    _pipeline(course, left, scoring)
                except PipelineStalledError:
                    course.shrink()
                    course.retried("extraction stood still after a node was lost; what is missing is tried again")
                except RayError as error:
                    lost += 1
                    if lost > course.max_failures:
                        for job in left:
                            course.lose(job, Problem("GivenUpError", f"extraction was given up: {one_line(error)}"))
                            course.finish(job)
                        break
                    course.retried(f"extraction was lost ({one_line(error)}); what is missing is tried again")
                for store in stores if left else ():
                    store.refresh()


def _waves(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """The jobs in groups that have no more feature stores than one process may well hold locks of."""
    wave: list[Job] = []
    held = 0
    for job in jobs:
        if wave and held + len(job.stores) > WAVE_STORES:
            yield wave
            wave, held = [], 0
        wave.append(job)
        held += len(job.stores)
    if wave:
        yield wave


def _pipeline(course: Course, left: list[Job], scoring: Scoring) -> None:
    """Embed what is missing of some jobs in one pipeline; each that is done is taken from `left`.

    Raises:
        RayError: The pipeline was lost; what had come of it is kept.
        PipelineStalledError: It stands still since a node was lost; likewise.
    """
    jobs = list(left)
    for job in jobs:
        for name in job.stored_rows if job.records_wanted else ():
            tell_damaged(job, name, course.run.reporter)
    units = units_of(jobs, [course.run.place(job)[1] for job in jobs], course.per_job, course.setting, course.units)
    of = {unit.work: jobs[number] for number, unit in units}
    waiting = Counter(map(id, of.values()))
    for job in jobs:
        if not waiting[id(job)]:
            left.remove(job)
            scoring.ready(job)
    if not units:
        return
    collector = Collector()
    what = f"{len(waiting)} jobs" if len(waiting) > 1 else label_of("", left[0]).strip()

    def idle() -> None:
        course.listen()
        scoring.tend(0.0)
        if course.stalled:
            raise PipelineStalledError

    course.embedding = of
    total = sum(len(unit.numbers) for _, unit in units)
    try:
        with course.run.reporter.track(f"extract {what}", total, "images") as advance:
            course.advance = advance
            for found in extracted([unit for _, unit in units], course.setting, course.per_job, idle):
                job = of[found.unit.work]
                waiting[id(job)] -= 1
                _take(course, job, found, collector)
                if not waiting[id(job)]:
                    left.remove(job)
                    _complete(course, job, collector, scoring)
                idle()
            course.listen(now=True)
    finally:
        collector.flush()
        course.embedding, course.advance = {}, lambda images: None


def _take(course: Course, job: Job, found: Extracted, collector: Collector) -> None:
    """Take up what came of one unit."""
    if found.problem is not None:
        if not course.lost(job):
            course.lose(job, found.problem)
    elif found.features:
        with course.keeping(job):
            collector.take(job.stores[found.unit.split], found.features)


def _complete(course: Course, job: Job, collector: Collector, scoring: Scoring) -> None:
    """Every unit of a job has come."""
    with course.keeping(job):
        collector.flush()
        if not course.lost(job):
            _see(job)
    if course.lost(job):
        course.finish(job)
    else:
        scoring.ready(job)


def _see(job: Job) -> None:
    """Take up what workers have written; a network folder may show it a little later.

    Raises:
        StoreError: It does not appear.
    """
    until = time.monotonic() + APPEARING_SECONDS
    for name, rows in job.stored_rows.items():
        store = job.stores[name]
        pull(store.folder)
        store.refresh()
        while store.missing(job.atoms, rows):
            if time.monotonic() > until:
                raise StoreError(f"what workers wrote into {store.folder} cannot be seen here: use --writer driver")
            time.sleep(1.0)
            pull(store.folder)
            store.refresh()


class Collector:
    """Writes the features that workers give back."""

    def __init__(self) -> None:
        self._writer: ShardWriter | None = None

    def take(self, store: FeatureStore, features: bytes) -> None:
        """Take up the features of one unit.

        Raises:
            StoreError: They cannot be written.
        """
        found = load(features)
        rows = found.pop("rows").numpy()
        if self._writer is None or self._writer.store is not store or self._writer.atoms != found.keys():
            self.flush()
            self._writer = ShardWriter(store)
        self._writer.add(rows, found)

    def flush(self) -> None:
        """Write what waits; what cannot be written is let go, and is missing.

        Raises:
            StoreError: It cannot be written.
        """
        if self._writer is not None:
            self._writer.flush()


def locked(stores: Sequence[FeatureStore], waiting: Callable[[], None]) -> ExitStack:
    """Hold some stores for writing; always in the same order, so that two drivers cannot wait for each other."""
    stack = ExitStack()
    try:
        for _, store in sorted({store.folder: store for store in stores}.items()):
            stack.enter_context(store.lock(waiting))
    except BaseException:
        stack.close()
        raise
    return stack
