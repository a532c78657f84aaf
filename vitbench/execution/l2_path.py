"""The λ-path: every penalty from one eigendecomposition, as the very records that single runs would write.

A run with one penalty solves by Cholesky; here each support set of each representation is decomposed once, and
W = V diag(1/(e+λ)) A serves every λ (`vitbench.solvers.ridge`). The two agree to rounding, so identities, predictions and scores
are those of `FewShot(l2=λ)`, and either kind of run uses the other's records again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import torch

from vitbench.backbones.base import Backbone
from vitbench.errors import StoreError, UsageError, VitbenchError
from vitbench.execution.config import RunConfig
from vitbench.execution.job import Job, prepare
from vitbench.execution.local import LocalRun
from vitbench.execution.plan import PlannedJob, RunResult, planned_job
from vitbench.execution.recording import predictions_of, record_of
from vitbench.execution.reporter import Reporter
from vitbench.execution.work import features_of, timed
from vitbench.features.featureset import FeatureSet
from vitbench.hub import offline
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Cell, Outcome, Protocol
from vitbench.protocols.closed_form import Fitted, Queries, class_counts, finite, outcome
from vitbench.protocols.fewshot import FewShot
from vitbench.protocols.ridge import Ridge
from vitbench.records.provenance import provenance
from vitbench.solvers import ridge
from vitbench.tasks.catalog import expand_tasks
from vitbench.tasks.task import Task

Penalised = FewShot | Ridge


def execute_path(
    config: RunConfig, penalties: Sequence[float], reporter: Reporter, command: str, *, dry_run: bool = False
) -> tuple[RunResult, dict[str, float]]:
    """Carry out a run once for each penalty, with one eigendecomposition per support set and representation.

    Args:
        config: What to run; `options` without `l2`.
        penalties: Each λ, above 0.
        reporter: Hears of the progress.
        command: What started the run, for the records.
        dry_run: Prepare every job, write nothing, and stop.

    Returns:
        What came of the run, and each key's penalty.

    Raises:
        UsageError: A name cannot be meant, or the protocol has no closed-form penalty.
    """
    kind: type[Protocol] = PROTOCOLS.load(config.protocol)
    protocols = {l2: penalised(kind.from_options({**config.options, "l2": l2})) for l2 in penalties}
    run = _PathRun(config, protocols, reporter, command, dry_run)
    with offline() if config.offline else nullcontext():
        tasks = list(run.load_tasks(expand_tasks(list(config.tasks))))
        for spec in config.backbones if tasks else ():
            run.backbone(spec, tasks)
    return run.result, run.penalties


def penalised(protocol: Protocol) -> Penalised:
    """The protocol, if it is one whose penalty can be varied.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(protocol, FewShot | Ridge):
        raise UsageError(f"--over l2 is for the protocols fewshot and ridge, not for '{protocol.name}'")
    return protocol


class _PathRun(LocalRun):
    """A run whose jobs are carried out for all penalties at once."""

    recalls: ClassVar[bool] = False

    def __init__(
        self,
        config: RunConfig,
        protocols: Mapping[float, Penalised],
        reporter: Reporter,
        command: str,
        dry_run: bool,
    ) -> None:
        super().__init__(config, next(iter(protocols.values())), reporter, command, dry_run)
        self.protocols = protocols
        self.penalties: dict[str, float] = {}

    def _job(self, backbone: Backbone, task: Task) -> None:
        jobs = {
            l2: prepare(self.config, backbone, task, protocol, self.results, self.made)
            for l2, protocol in self.protocols.items()
        }
        for failure in next(iter(jobs.values())).failures:
            self.fail(failure, None)
        for l2, job in jobs.items():
            self.penalties |= dict.fromkeys(job.keys, l2)
        planned = self._planned(list(jobs.values()))
        if not self.dry_run:
            try:
                for failure in self._carry_out(jobs):
                    self.fail(failure, None)
            finally:
                present = [found for job in jobs.values() for found in job.keys if found in self.results]
                self.result.keys += [found for found in present if found not in self.result.keys]
        self.result.planned.append(planned)

    def _planned(self, jobs: Sequence[Job]) -> PlannedJob:
        """The plan's line for all penalties together: an image is embedded once, and one decomposition serves them all."""
        largest = max(jobs, key=lambda job: job.records_wanted)
        records = sum(len(job.identities) for job in jobs)
        missing = sum(job.records_wanted for job in jobs)
        planned = planned_job(largest, self.estimate(largest))
        return dataclasses.replace(planned, records=records, present=records - missing)

    def _carry_out(self, jobs: Mapping[float, Job]) -> list[str]:
        """Score what is missing; a line for each representation that could not be scored."""
        wanted = _wanted(jobs)
        failures: list[str] = []
        if not wanted:
            return failures
        union = _union(max(jobs.values(), key=lambda job: job.records_wanted), wanted)
        features = features_of(union, self.config, self.reporter)
        backbone, task = union.backbone, union.task
        source = provenance(self.command, str(backbone.device), backbone.provenance_notes)
        label = f"score   {backbone.spec.label} · {task.name} · l2"
        total = sum(len(penalties) for cells in wanted.values() for penalties in cells.values())
        with self.reporter.track(label, total, "records") as advance:
            for name, cells in wanted.items():
                try:
                    path = path_outcomes(
                        penalised(union.protocol), features["train"], features["test"], name, task.num_classes, cells
                    )
                    for found, seconds in timed(path):
                        record = record_of(jobs[found.details["l2"]], name, found, features["test"], seconds, source)
                        self.results.write(record, predictions_of(found, features["test"]))
                        self.made.add(record.key)
                        self.result.written += 1
                        advance(1)
                except StoreError:
                    raise
                except VitbenchError as error:
                    failures.append(f"{backbone.spec.label} on {task.name}, {name}: {error}")
        return failures


def path_outcomes(
    protocol: Penalised,
    train: FeatureSet,
    test: FeatureSet,
    name: str,
    num_classes: int,
    cells: Mapping[Cell, Sequence[float]],
) -> Iterator[Outcome]:
    """Score representation `name` in each cell with each of its penalties.

    Args:
        protocol: Says which images a cell learns from; its own penalty plays no part.
        train: The train split's features.
        test: The test rows' features.
        name: Canonical name of the representation.
        num_classes: Number of classes that the task declares.
        cells: Cell to penalties.

    Yields:
        The outcome that the protocol with that penalty has; its `details` name the penalty.

    Raises:
        DataError: No labelled image, a label that is not one of the classes, or features that are NaN or infinite.
    """
    class_counts(test.labels[test.rows], num_classes, "test")
    queries = Queries.of(test, name, "test")
    for cell, penalties in cells.items():
        one = dataclasses.replace(protocol, shots=(cell.shot,)) if isinstance(protocol, FewShot) else protocol
        known = one.check(train.labels, num_classes)
        rows = protocol.train_rows(train.labels, num_classes, [cell])
        labels = train.labels[rows]
        support = finite(train.select(name, rows), "train")
        spectrum = ridge.decompose(ridge.prepare(support, torch.from_numpy(labels).to(support.device), num_classes))
        per_class = np.bincount(labels, minlength=num_classes)
        learned_from = "support set" if isinstance(protocol, FewShot) else "train split"
        for l2 in penalties:
            model = ridge.RidgeClassifier(spectrum.problem.standardisation, ridge.weights(spectrum, l2))
            yield outcome(cell, Fitted(model, {"l2": l2}), queries, per_class, known, learned_from)


def _wanted(jobs: Mapping[float, Job]) -> dict[str, dict[Cell, list[float]]]:
    """Representation to cell to the penalties whose records are still to be made."""
    wanted: dict[str, dict[Cell, list[float]]] = {}
    for l2, job in jobs.items():
        for name, cells in job.wanted.items():
            for cell in cells:
                wanted.setdefault(name, {}).setdefault(cell, []).append(l2)
    return wanted


def _union(job: Job, wanted: Mapping[str, Mapping[Cell, Sequence[float]]]) -> Job:
    """A job that asks for the features of everything that is wanted."""
    cells = sorted({cell for found in wanted.values() for cell in found})
    train = job.protocol.train_rows(job.task.train.labels, job.task.num_classes, cells)
    rows = {**job.rows, "train": train}
    return dataclasses.replace(job, wanted={name: list(found) for name, found in wanted.items()}, rows=rows)
