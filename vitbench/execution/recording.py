"""What an outcome becomes: a record, and the table of predictions beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.features.load import backbone_name
from vitbench.protocols import metrics
from vitbench.protocols.base import Cell, Outcome, Protocol
from vitbench.records.identity import DEFAULTS, key
from vitbench.records.schema import Provenance, Record
from vitbench.records.store import ResultStore
from vitbench.tasks.task import Split, Task

if TYPE_CHECKING:
    from vitbench.execution.job import Job


def record_of(job: Job, name: str, outcome: Outcome, test: FeatureSet, seconds: float, source: Provenance) -> Record:
    """The record of one outcome.

    Args:
        job: The job, one of whose identities it is.
        name: Canonical name of the representation.
        outcome: What the protocol measured.
        test: The features that were scored.
        seconds: Time of the evaluation.
        source: Where the record comes from.

    Raises:
        DataError: The task's metric is not defined on this outcome.
    """
    backbone, task, cell = job.backbone, job.task, outcome.cell
    found = job.identities[name, cell]
    return Record(
        key=key(found),
        identity=dict(found),
        backbone=backbone.spec.text,
        backbone_name=backbone_name(backbone),
        representation=name,
        representation_dim=backbone.dim(name),
        representation_provenance=backbone.provenance(name),
        alias_of=backbone.alias_of(name),
        num_parameters=backbone.num_parameters,
        task=task.name,
        num_classes=task.num_classes,
        **shown(task, job.splits, job.protocol),
        protocol=job.protocol.name,
        protocol_label=", ".join([*(f"{name} = {value}" for name, value in cell.parameters), job.protocol.label()]),
        parameters=dict(cell.parameters) | job.protocol.parameters(),
        shot=cell.shot,
        seed=cell.seed,
        limit=job.limit,
        preprocessing=str(job.preprocessing),
        dtype=backbone.dtype,
        features_dtype=found.get("features_dtype", DEFAULTS["features_dtype"]),
        scores=_scores(task, outcome, test),
        details=outcome.details,
        warnings=list(outcome.warnings),
        n_support=outcome.n_support,
        n_test=outcome.n_test,
        seconds=round(seconds, 4),
        provenance=source,
    )


def shown(task: Task, splits: Mapping[str, Split], protocol: Protocol) -> dict[str, Any]:
    """What a record says of its task beside the identity: a task file may say it anew without another number coming of it."""
    choices = protocol.choices(task.num_classes)
    restricted = min(1.0, (5 if task.spec.metric == "top5_accuracy" else 1) / choices)
    return {
        "metric": task.spec.metric,
        "chance": task.chance if choices == task.num_classes else restricted,
        "splits": {role: split.name for role, split in splits.items()},
        "source": task.source,
        "deviations": list(task.deviations),
        "synthetic": task.spec.synthetic,
    }


def cell_of(record: Record, cells: Iterable[Cell]) -> Cell | None:
    """The cell of which a record holds the outcome; None if it is not among them."""
    place = record.shot, record.seed
    return next(
        (
            cell
            for cell in cells
            if (cell.shot, cell.seed) == place and dict(cell.parameters).items() <= record.parameters.items()
        ),
        None,
    )


def is_there(results: ResultStore, name: str, task: Task) -> bool:
    """Whether a record is there with every score that the task asks for: one from before a metric was asked for is made again."""
    if name not in results:
        return False
    scores = results.read(name).scores
    return task.spec.metric in scores and (task.label_sets is None or "multilabel_hit" in scores)


def _scores(task: Task, outcome: Outcome, test: FeatureSet) -> dict[str, float]:
    rows = _rows(outcome, test)
    label_sets = task.label_sets.take(rows) if task.label_sets is not None else None
    found = metrics.scores(outcome.ranking, test.labels[rows], task.num_classes, label_sets)
    if outcome.episode is not None:
        # An episode has as many queries of each of its classes: its mean over classes is its accuracy. Over all episodes
        # together, whose classes differ, a mean over classes or an F1 would be another number, which nobody means.
        found = {name: value for name, value in found.items() if name != "macro_f1"}
        found["mean_per_class_accuracy"] = found["accuracy"]
    metrics.required(task.spec.metric, found)
    return found


def predictions_of(outcome: Outcome, test: FeatureSet) -> dict[str, npt.NDArray[Any]]:
    """The columns of an outcome's predictions table; see `vitbench.records.predictions`."""
    rows = _rows(outcome, test)
    columns: dict[str, npt.NDArray[Any]] = {
        "row": rows,
        "label": test.labels[rows],
        "prediction": outcome.predictions,
    }
    if outcome.confidence is not None:
        columns["confidence"] = outcome.confidence.astype(np.float32)
    if outcome.episode is not None:
        columns["episode"] = outcome.episode
    return columns


def _rows(outcome: Outcome, test: FeatureSet) -> IntArray:
    """The row of the test split that each prediction is of."""
    return test.rows if outcome.rows is None else outcome.rows
