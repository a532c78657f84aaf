"""Evaluation as Ray tasks: the features are put into the object store once, a part at a time, and tasks are fed by reference.

A task is one representation of one job, or one seed of it where there are workers enough. It reads the parts that it needs,
as the local executor reads them from the feature store, so that neither the driver nor a worker holds all features at once
unless the protocol asks for them all; what the object store cannot hold Ray keeps on disk.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from vitbench.execution.job import Job
from vitbench.execution.ray.watch import BEGAN, limited, tell
from vitbench.execution.ray.worker import Problem, Setting, enter
from vitbench.execution.work import timed
from vitbench.features.featureset import FeatureSet, IntArray, LazyRepresentations, copy_rows
from vitbench.protocols.base import Cell, Outcome, Protocol, Tuning


@dataclass(frozen=True)
class PutFeatures:
    """One representation of some rows of a split, in the object store.

    Attributes:
        labels: Reference of the labels of the whole split.
        rows: `[M]` int64, increasing: the rows that have features.
        order: `[M]` int64, the same rows part by part.
        parts: References of the parts' features `[m, D]` float32.
        starts: `[len(parts) + 1]`, where each part begins in `order`.
    """

    labels: Any
    rows: IntArray
    order: IntArray
    parts: tuple[Any, ...]
    starts: IntArray

    @classmethod
    def put(cls, features: FeatureSet, name: str) -> PutFeatures:
        """Put representation `name` of a feature set."""
        rows, parts = [], []
        for numbers, values in features.chunks(name):
            rows.append(numbers)
            parts.append(ray.put(values.numpy()))
            del values  # or it would be held while the next is read
        order = np.concatenate(rows) if rows else np.empty(0, np.int64)
        starts = np.cumsum([0, *map(len, rows)])
        return cls(ray.put(features.labels), features.rows, order, tuple(parts), starts)

    def features(self, name: str) -> FeatureSet:
        """The feature set again, in another process; parts are read when they are asked for."""
        place = np.argsort(self.order, kind="stable")

        def read(_: str, wanted: IntArray) -> Tensor:
            places = place[np.searchsorted(self.order, wanted, sorter=place)]
            part = np.searchsorted(self.starts, places, side="right") - 1
            found: Tensor | None = None
            for number in np.unique(part):
                values = ray.get(self.parts[number])
                mine = np.flatnonzero(part == number)
                if found is None:
                    found = torch.empty((len(wanted), values.shape[1]), dtype=torch.float32)
                copy_rows(values, places[mine] - self.starts[number], found.numpy(), mine)
            assert found is not None
            return found

        labels = np.array(ray.get(self.labels))
        names = [name] if len(self.rows) else []
        return FeatureSet(labels, self.rows, LazyRepresentations(names, self.rows, read, self.order))


@dataclass(frozen=True)
class Portion:
    """What one task evaluates.

    Attributes:
        work: Its name, for the watch and for messages.
        name: The representation.
        cells: Which cells of it.
    """

    work: str
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Evaluated:
    """What a task gives back.

    Attributes:
        outcomes: Each outcome with the seconds that it took.
        problem: What kept the rest from being evaluated; None if nothing did.
        host: Where.
    """

    outcomes: Sequence[tuple[Outcome, float]]
    problem: Problem | None
    host: str


def portions(job: Job, workers: int) -> list[Portion]:
    """The tasks of one job; each seed by itself where there are fewer representations than workers."""
    where = f"score   {job.backbone.spec.label} · {job.task.name}"
    found = []
    for name, cells in job.wanted.items():
        if len(job.wanted) >= workers:
            found.append(Portion(f"{where} · {name}", name, tuple(cells)))
            continue
        for seed in dict.fromkeys(cell.seed for cell in cells):
            part = tuple(cell for cell in cells if cell.seed == seed)
            found.append(Portion(f"{where} · {name}, seed {seed}", name, part))
    return found


@ray.remote(max_retries=0)
def evaluate(
    setting: Setting, protocol: Protocol, portion: Portion, num_classes: int, put: Mapping[str, PutFeatures]
) -> Evaluated:
    """Score one portion on a worker.

    Args:
        setting: What workers are told.
        protocol: The protocol, bound to the job's backbone and task.
        portion: What to score.
        num_classes: Number of classes that the task declares.
        put: Role to the features of its split.
    """
    outcomes: list[tuple[Outcome, float]] = []
    problem = None
    try:
        enter(setting)
        tell(setting.watch, BEGAN, portion.work)
        with limited(setting.config.timeout_per_job, setting.watch, portion.work):
            outcomes += _outcomes(protocol, portion, num_classes, put)
    except Exception as error:
        problem = Problem.of(error)
    return Evaluated(outcomes, problem, platform.node())


def _outcomes(
    protocol: Protocol, portion: Portion, num_classes: int, put: Mapping[str, PutFeatures]
) -> Iterator[tuple[Outcome, float]]:
    sets = {role: features.features(portion.name) for role, features in put.items()}
    tuning = Tuning(sets["tune_train"], sets["tune_validation"]) if protocol.tunes else None
    yield from timed(protocol.evaluate(sets["train"], sets["test"], portion.name, num_classes, portion.cells, tuning))
