"""A job that trains: each cell is trained in a folder of its own, and what comes out is put beside its record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from vitbench.backbones.classifier import Classifier
from vitbench.errors import StoppedError, StoreError, UsageError, VitbenchError, first_line
from vitbench.execution.config import RunConfig
from vitbench.execution.recording import predictions_of, record_of
from vitbench.execution.reporter import Reporter
from vitbench.features.featureset import FeatureSet
from vitbench.protocols.base import Cell, Outcome
from vitbench.protocols.finetune import FineTune
from vitbench.protocols.metrics import accuracy
from vitbench.records import remote
from vitbench.records.atomic import write_bytes
from vitbench.records.identity import key
from vitbench.records.provenance import provenance
from vitbench.records.schema import Provenance, Record
from vitbench.records.store import ResultStore
from vitbench.training import history, processes
from vitbench.training.loop import HISTORY
from vitbench.training.options import TrainingOptions
from vitbench.training.pictures import confusion_counts, save_confusion, save_learning_curve
from vitbench.training.trainee import Trainee

if TYPE_CHECKING:
    from vitbench.execution.job import Job

_WORKERS = 1


def carry_out_training(
    job: Job, config: RunConfig, results: ResultStore, reporter: Reporter, command: str
) -> tuple[set[str], list[str]]:
    """Train every cell whose record is wanted, score it, write the record and what belongs beside it.

    Returns:
        The keys of the records written, and a line for each cell that failed.

    Raises:
        StoppedError: The process was asked to end; the state is saved.
        StoreError: Something cannot be written; what was written before is intact.
        UsageError: A tracker is not installed.
    """
    made: set[str] = set()
    failures: list[str] = []
    used = trackers(config.trackers) if job.wanted else ()
    for old in job.refreshed if processes.is_main() else ():
        results.refresh(old)
    source = provenance(command, str(job.backbone.device), job.backbone.provenance_notes) if job.wanted else None
    for name, cells in job.wanted.items():
        for cell in cells:
            assert source is not None
            try:
                made.add(_one(job, name, cell, config, used, results, reporter, source))
            except (StoreError, StoppedError):
                raise
            except VitbenchError as error:
                if processes.count() > 1:
                    raise  # the others wait for this process: they can only end with it
                failures.append(f"{job.backbone.spec.label} on {job.task.name}, {name}, seed {cell.seed}: {error}")
    processes.wait()
    return made, failures


def training_images(job: Job) -> int:
    """Number of images that go through the backbone: every update's batch, and the test images before and after."""
    assert isinstance(job.protocol, FineTune)
    recipe = job.protocol.recipe
    trials = sum(trial.steps * trial.batch_size for trial in recipe.trials()) if job.protocol.tune else 0
    each = recipe.steps * recipe.batch_size + 2 * len(job.rows["test"]) + trials
    return job.records_wanted * each


def _one(
    job: Job,
    name: str,
    cell: Cell,
    config: RunConfig,
    used: tuple[str, ...],
    results: ResultStore,
    reporter: Reporter,
    source: Provenance,
) -> str:
    """Train one cell; the key of its record."""
    assert isinstance(job.protocol, FineTune)
    identity = key(job.identities[name, cell])
    folder = config.out / "training" / identity
    label = f"train   {job.backbone.spec.label} · {job.task.name} · {name} seed {cell.seed}"
    began = time.perf_counter()
    total = job.protocol.recipe.steps + sum(trial.steps for trial in job.protocol.recipe.trials() if job.protocol.tune)
    with _alone(folder), reporter.track(label, total, "steps") as advance:
        options = TrainingOptions(
            batch_size=config.batch_size,
            workers=config.workers or _WORKERS,
            every_steps=config.checkpoint_steps,
            every_seconds=60.0 * config.checkpoint_minutes,
            keep=config.keep_checkpoints,
            trackers=used,
            tracker_folder=config.out / "trackers" / identity,
            progress=lambda steps, text: advance(steps, text),
            message=reporter.line,
        )
        outcome, trainee = job.protocol.carry_out(
            job.backbone,
            job.splits["train"],
            job.splits["test"],
            job.rows["test"],
            job.preprocessing,
            name,
            job.task.num_classes,
            cell,
            folder,
            identity,
            options,
        )
    if not processes.is_main():
        return identity
    scored = FeatureSet(job.splits["test"].labels, job.rows["test"], {})
    after = accuracy(outcome.predictions, scored.labels[scored.rows])
    head = "the checkpoint's own head" if outcome.details["head_before"] == "checkpoint" else "a new head"
    reporter.line(
        f"{job.backbone.spec.label} · {job.task.name} · {name} seed {cell.seed}: accuracy "
        f"{100 * outcome.details['accuracy_before']:.1f} % before the first step ({head}), {100 * after:.1f} % after the last"
    )
    if config.save_models:
        outcome.details["model"] = f"models/{identity}"
        told = _save(trainee, config.out / "models" / identity, job)
        remote.push(config.out / "models" / identity)
        reporter.line(f"the trained model: --backbone {told}")
    record = record_of(job, name, outcome, scored, time.perf_counter() - began, source)
    try:
        _beside(record, results.place(record), folder, outcome, scored, job)
    except StoreError:
        raise
    except Exception as error:  # of a drawing library: a picture is not worth a finished training
        reporter.warn(f"a picture of {record.key} could not be drawn ({first_line(error)}); the record is whole")
    results.write(record, predictions_of(outcome, scored))
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()
    return record.key


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second process from training the same thing in the same folder.

    Raises:
        UsageError: Another process is at it.
    """
    if not processes.is_main():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"another process is training this in {folder}: wait for it, or choose another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _save(trainee: Trainee, folder: Path, job: Job) -> str:
    """Write the trained model; the spec that loads it."""
    head = Classifier(
        trainee.representation,
        trainee.head.weight.detach().cpu(),
        trainee.head.bias.detach().cpu(),
        tuple(job.task.class_names),
        f"trained on {job.task.name} by recipe {job.protocol.label()}",
    )
    return trainee.backbone.save(folder, head, str(job.preprocessing))


def _beside(record: Record, path: Path, folder: Path, outcome: Outcome, test: FeatureSet, job: Job) -> None:
    """Put the history, the learning curve and the confusion matrix beside the record that is about to be written."""
    title = f"{job.backbone.spec.label} · {record.representation} on {record.task} · {record.protocol_label}, seed {record.seed}"
    if (written := folder / HISTORY).is_file():
        write_bytes(path.with_suffix(".history.jsonl"), written.read_bytes())
        save_learning_curve(history.read_history(written), path.with_suffix(".curve.png"), title)
    labels = test.labels[test.rows]
    counts = confusion_counts(labels, np.asarray(outcome.predictions), job.task.num_classes)
    names = job.task.class_names if len(job.task.class_names) == job.task.num_classes else ()
    save_confusion(counts, names, path.with_suffix(".confusion.png"), title)


def trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """The trackers to use; `auto` is TensorBoard where it is installed.

    Raises:
        UsageError: One is not installed.
    """
    from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available

    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available, "mlflow": is_mlflow_available}
    found = []
    for name in names:
        if name == "auto":
            found += ["tensorboard"] if is_tensorboard_available() else []
        elif name != "none":
            if not there[name]():
                raise UsageError(f"--tracker {name} needs the package {name}: pip install {name}, or --tracker none")
            found.append(name)
    return tuple(dict.fromkeys(found))
