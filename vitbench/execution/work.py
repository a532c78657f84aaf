"""A job carried out in this process: what is missing is embedded, scored, and written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from vitbench.errors import StoreError, VitbenchError
from vitbench.execution.config import RunConfig
from vitbench.execution.job import Job
from vitbench.execution.recording import predictions_of, record_of
from vitbench.execution.reporter import Reporter, Stages
from vitbench.features.extract import ExtractionOptions, feature_set
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.features.profile import stage
from vitbench.features.view import split_features
from vitbench.protocols.base import Outcome, Tuning
from vitbench.records.provenance import provenance
from vitbench.records.schema import Provenance
from vitbench.records.store import ResultStore


def carry_out(
    job: Job,
    config: RunConfig,
    results: ResultStore,
    reporter: Reporter,
    command: str,
    stages: Stages | None = None,
) -> tuple[set[str], list[str]]:
    """Embed what is missing, score it, write the records.

    Args:
        job: As `prepare` gave it.
        config: The run's configuration.
        results: Where records are written.
        reporter: Hears of the progress.
        command: What started the run, for the records.
        stages: Hears where the job is.

    Returns:
        The keys of the records written, and a line for each representation that could not be scored.

    Raises:
        DataError: An image is broken.
        StoreError: Something cannot be written; what was written before is intact.
    """
    stages = stages or Stages()
    if job.protocol.trains:
        from vitbench.execution.training import carry_out_training

        stages.running("train")
        return carry_out_training(job, config, results, reporter, command)
    made: set[str] = set()
    failures: list[str] = []
    for old in job.refreshed:
        results.refresh(old)
    if not job.records_wanted:
        return made, failures
    stages.running("extract")
    features = features_of(job, config, reporter, stages)
    tuning = Tuning(features["tune_train"], features["tune_validation"]) if job.protocol.tunes else None
    source = provenance(command, str(job.backbone.device), job.backbone.provenance_notes)
    stages.running("score")
    with reporter.track(label_of("score", job), job.records_wanted, "records") as advance:
        for name, cells in job.wanted.items():
            try:
                for outcome, seconds in timed(
                    job.protocol.evaluate(
                        features["train"], features["test"], name, job.task.num_classes, cells, tuning
                    )
                ):
                    made.add(keep(job, name, outcome, features["test"], seconds, source, results))
                    advance(1)
            except StoreError:
                raise
            except VitbenchError as error:
                failures.append(unscored(job, name, str(error)))
    return made, failures


def keep(
    job: Job,
    name: str,
    outcome: Outcome,
    test: FeatureSet,
    seconds: float,
    source: Provenance,
    results: ResultStore,
) -> str:
    """Write the record of one outcome; its key. Arguments and errors as for `record_of`; `results` is where."""
    with stage("score"):
        record = record_of(job, name, outcome, test, seconds, source)
    with stage("write"):
        results.write(record, predictions_of(outcome, test))
    return record.key


def label_of(what: str, job: Job) -> str:
    """What a progress bar is called: `score   vit_tiny · cifar10`."""
    return f"{what:<7} {job.backbone.spec.label} · {job.task.name}"


def unscored(job: Job, name: str, problem: str) -> str:
    """The line on a representation that could not be scored."""
    return f"{job.backbone.spec.label} on {job.task.name}, {name}: {problem}"


def timed(outcomes: Iterable[Outcome]) -> Iterator[tuple[Outcome, float]]:
    """Each outcome with the seconds that it took to come."""
    coming = iter(outcomes)
    while True:
        started = time.perf_counter()
        with stage("solve"):
            outcome = next(coming, None)
        if outcome is None:
            return
        yield outcome, time.perf_counter() - started


def features_of(job: Job, config: RunConfig, reporter: Reporter, stages: Stages | None = None) -> dict[str, FeatureSet]:
    """Role to the features of its split; every image of a stored split goes through the backbone once, whatever its roles."""
    stages = stages or Stages()
    sets = {name: _extract(job, name, rows, config, reporter, stages) for name, rows in job.stored_rows.items()}
    return {role: split_features(split, job.rows[role], sets) for role, split in job.splits.items()}


def _extract(job: Job, name: str, rows: IntArray, config: RunConfig, reporter: Reporter, stages: Stages) -> FeatureSet:
    store, split = job.stores[name], job.bases[name]
    missing = job.images_missing()[name]
    tell_damaged(job, name, reporter)
    with reporter.track(f"{label_of('extract', job)} {name}", missing, "images") as advance:

        def embedded(images: int) -> None:
            advance(images)
            stages.advanced(images)

        options = ExtractionOptions(config.batch_size, config.workers, embedded, reporter.warn)
        return feature_set(job.backbone, split, job.preprocessing, list(job.wanted), rows, store, options)


def tell_damaged(job: Job, name: str, reporter: Reporter) -> None:
    """Tell of shards of a stored split that will be made again."""
    for path in job.stores[name].damaged:
        reporter.warn(f"the shard {path.name} of {job.task.name} ({name}) is damaged: its images are embedded again")
