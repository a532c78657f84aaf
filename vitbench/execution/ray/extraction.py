"""Extraction on Ray Data: the images that are missing, in units, stream through actors that keep a backbone loaded.

One pipeline serves many jobs: a large split is many units and spreads over all actors, many small splits run side by side.
Units of one backbone follow each other, and an actor loads the next backbone only when it is given such a unit. What an actor
gives back is the features of one unit, which is bounded, and Ray Data holds back the actors when the driver is slower than
they are: memory does not grow with the number of images. The units come in order, and are written in order.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError
from safetensors.torch import load
from torch import Tensor

from vitbench.errors import StoreError, one_line
from vitbench.execution.job import Job
from vitbench.execution.ray.cluster import PerJob
from vitbench.execution.ray.course import Course
from vitbench.execution.ray.scoring import Scoring
from vitbench.execution.ray.worker import Embedder, Problem, Setting, Unit
from vitbench.execution.work import label_of, tell_damaged
from vitbench.features.extract import FLUSH_BYTES, FLUSH_SECONDS, GPU_BATCH, default_batch
from vitbench.features.featureset import IntArray
from vitbench.features.store import FeatureStore, runs_of
from vitbench.records.remote import pull

UNITS_PER_SLOT = 4
"""So many units for each actor at least, where there are images enough, so that none waits long for the last."""
CPU_IMAGES, GPU_IMAGES = 256, 2048
"""Images of a unit at most: what a lost worker has done in vain."""
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


def units_of(jobs: Sequence[Job], names: Sequence[str], per_job: PerJob, setting: Setting) -> list[tuple[int, Unit]]:
    """The units of some jobs, in the order of the jobs, each with the number of its job.

    Every unit but the last of a split is whole batches, as this process would form them: which images share a batch can
    decide the last bits of their features.

    Args:
        jobs: The jobs.
        names: The task of each, as the run was told.
        per_job: What one actor has.
        setting: What workers are told.
    """
    lacking = [
        (number, name, atoms, rows)
        for number, job in enumerate(jobs)
        for name, wanted in job.stored_rows.items()
        for atoms, rows in job.stores[name].missing(job.atoms, wanted).items()
    ]
    total = sum(len(rows) for *_, rows in lacking)
    batch = setting.config.batch_size or (
        GPU_BATCH if per_job.gpus else default_batch(torch.device("cpu"), per_job.cpus)
    )
    share = min(GPU_IMAGES if per_job.gpus else CPU_IMAGES, -(-total // (UNITS_PER_SLOT * per_job.slots)))
    size = max(1, -(-share // batch)) * batch
    units = []
    for number, split, atoms, rows in lacking:
        job = jobs[number]
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            where = f"{label_of('extract', job)} {split}, rows {part[0]} to {part[-1]}"
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
    client: Any = ray.util.client.ray
    rows = _far_rows if client.is_connected() else _rows
    for row in _without_blocking(rows(units, setting, per_job), idle):
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
                except RayError as error:
                    lost += 1
                    if lost > course.max_failures:
                        for job in left:
                            course.lose(job, Problem("UsageError", f"extraction was given up: {one_line(error)}"))
                            course.finish(job)
                        break
                    course.retried(f"extraction was lost ({one_line(error)}); what is missing is tried again")


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
    """
    jobs = list(left)
    for job in jobs:
        for name in job.stored_rows if job.records_wanted else ():
            tell_damaged(job, name, course.run.reporter)
    units = units_of(jobs, [course.run.place(job)[1] for job in jobs], course.per_job, course.setting)
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


def _rows(units: Sequence[Unit], setting: Setting, per_job: PerJob) -> Iterator[dict[str, Any]]:
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # what of it a user can use, the run tells
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    blocks = [{"unit": unit.text()} for unit in units]
    actors = min(per_job.slots, len(units))
    # An actor that is lost is started again, and its unit given out again, by Ray Data, without end; a unit that has lost
    # its worker too often gives up by itself (`Embedder`).
    dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
        Embedder,
        fn_constructor_args=(setting,),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=2),
        num_cpus=per_job.cpus,
        num_gpus=per_job.gpus,
    )
    yield from dataset.iter_rows()


class _FarPipeline:
    """The pipeline in an actor of the cluster, for a driver that is no part of it (`ray://`), in which Ray Data does not run."""

    def __init__(self, units: Sequence[Unit], setting: Setting, per_job: PerJob) -> None:
        self._rows = _rows(units, setting, per_job)

    def next(self) -> dict[str, Any] | None:
        """The next row; None after the last."""
        return next(self._rows, None)


def _far_rows(units: Sequence[Unit], setting: Setting, per_job: PerJob) -> Iterator[dict[str, Any]]:
    actor: Any = ray.remote(num_cpus=0)(_FarPipeline)
    pipeline = actor.remote(units, setting, per_job)
    while (row := ray.get(pipeline.next.remote())) is not None:
        yield row


def _without_blocking(rows: Iterator[dict[str, Any]], idle: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """The rows, waited for in a thread, so that this one can do other things meanwhile."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=1)
    stopped = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for row in rows:
                put(row)
                if stopped.is_set():
                    return
            put(end)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="extraction", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=1.0)
            except queue.Empty:
                idle()
                continue
            if item is end:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


class Collector:
    """Writes the features that workers give back: rows in order, several units to a shard where they are small."""

    def __init__(self) -> None:
        self._store: FeatureStore | None = None
        self._rows: list[IntArray] = []
        self._parts: list[dict[str, Tensor]] = []
        self._since = time.monotonic()

    def take(self, store: FeatureStore, features: bytes) -> None:
        """Take up the features of one unit.

        Raises:
            StoreError: They cannot be written.
        """
        found = load(features)
        rows = found.pop("rows").numpy()
        if self._store is not store or (self._parts and self._parts[0].keys() != found.keys()):
            self.flush()
            self._store = store
        self._rows.append(rows)
        self._parts.append(found)
        held = sum(value.nbytes for part in self._parts for value in part.values())
        if held > FLUSH_BYTES or time.monotonic() - self._since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._store is not None and self._rows:
            atoms = self._parts[0]
            values = {atom: torch.cat([part[atom] for part in self._parts]) for atom in atoms}
            self._store.append(np.concatenate(self._rows), values)
        self._rows, self._parts, self._since = [], [], time.monotonic()


def locked(stores: Sequence[FeatureStore], waiting: Callable[[], None]) -> ExitStack:
    """Hold some stores for writing; always in the same order, so that two drivers cannot wait for each other."""
    stack = ExitStack()
    try:
        for store in sorted(stores, key=lambda store: store.folder):
            stack.enter_context(store.lock(waiting))
    except BaseException:
        stack.close()
        raise
    return stack
