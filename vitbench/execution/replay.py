"""From a record back to the run that made it: find it, say what it was asked with, run exactly that again and compare."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitbench.errors import StoreError, UsageError, VitbenchError, listed, unknown
from vitbench.execution.config import RunConfig, make_config
from vitbench.execution.job import Job, load_for, prepare
from vitbench.execution.recording import cell_of
from vitbench.execution.reporter import Reporter
from vitbench.execution.work import carry_out
from vitbench.hub import offline
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Cell
from vitbench.records import remote
from vitbench.records.atomic import TEMPORARY_PREFIX, slug
from vitbench.records.identity import canonical_json, key
from vitbench.records.predictions import read_predictions
from vitbench.records.schema import Record
from vitbench.records.store import ResultStore, find_records, read_record
from vitbench.tasks.catalog import expand_tasks, load_task, own_name, task_files

MOVED = "--backbone, --task and --task-data say where its files lie now"

_MEANINGS = {
    "identity_version": "vitbench's scheme of identities changed: no older record is used again",
    "architecture": "another architecture",
    "weights": "other weights: the content of the checkpoint is not the same",
    "preprocessing": "the images are prepared in another way",
    "dtype": "the forward pass is computed in another dtype",
    "features_dtype": "the features are kept in another dtype",
    "representation": "another representation",
    "protocol": "another protocol",
    "shot": "another shot",
    "seed": "another seed",
    "limit": "another number of test images is scored",
    "num_classes": "the task has another number of classes",
    "train_fingerprint": "the train data, its order or its split changed",
    "test_fingerprint": "the test data, its order or its split changed",
}
"""Field of an identity to what it means that it differs, in the order in which differences are told."""


@dataclass(frozen=True)
class Difference:
    """One field in which two identities differ.

    Attributes:
        field: Its name; a parameter of the protocol is `parameters.l2`.
        meaning: What that means, in plain words.
        then: The value in the record, as text; digests are cut.
        now: The value today, as text.
    """

    field: str
    meaning: str
    then: str
    now: str


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The fields in which two identities differ, the most telling first; empty when they are equal."""
    before, after = _flat(then), _flat(now)
    order = [*_MEANINGS, *sorted((before.keys() | after.keys()) - _MEANINGS.keys())]
    return tuple(
        Difference(name, _meaning(name), _shown(name, before), _shown(name, after))
        for name in order
        if canonical_json(before.get(name, "absent")) != canonical_json(after.get(name, "absent"))
    )


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    parameters = identity.get("parameters", {})
    rest = {name: value for name, value in identity.items() if name != "parameters"}
    return rest | {f"parameters.{name}": value for name, value in parameters.items()}


def _meaning(name: str) -> str:
    if name in _MEANINGS:
        return _MEANINGS[name]
    field, dot, parameter = name.partition(".")
    if not dot:
        return f"'{field}' is in one scheme of identities only"
    if parameter.endswith("_fingerprint"):
        return "the tuning data, its order or its split changed"
    return f"another {parameter} of the protocol"


def _shown(name: str, values: Mapping[str, Any]) -> str:
    value = values.get(name)
    if name not in values:
        return "—"
    if name == "limit" and value is None:
        return "all"
    if name == "weights" or name.endswith("_fingerprint"):
        return str(value)[:12]
    text = value if isinstance(value, str) else canonical_json(value)
    return f"{text[:57]}…({len(value)} values)" if isinstance(value, list) and len(text) > 60 else text


@dataclass(frozen=True)
class StoredRecord:
    """A record and where it lies.

    Attributes:
        path: Its JSON file.
        record: What is in it.
        out: The output folder that it belongs to.
    """

    path: Path
    record: Record
    out: Path

    @property
    def title(self) -> str:
        """What was measured, on one line."""
        record = self.record
        learned = "all train images" if record.n_support else "no training"
        shot = f"{record.shot}-shot, seed {record.seed}" if record.shot else f"{learned}, seed {record.seed}"
        limit = f", {record.limit} test images" if record.limit is not None else ""
        where = f"{record.backbone} · {record.representation} · {record.task}"
        return f"{where} · {record.protocol}, {record.protocol_label} · {shot}{limit}"


def find_record(reference: str, out: Path) -> StoredRecord:
    """Find a record by the path of its JSON file, by its key, or by the first digits of it that no other key has.

    Args:
        reference: Path, key or beginning of a key.
        out: The output folder in which a key is looked for.

    Raises:
        UsageError: There is none, or several keys begin like that.
        StoreError: It is damaged.
    """
    path = Path(reference).expanduser()
    if path.suffix != ".json" and len(path.parts) < 2:
        path = _by_key(reference, out)
    elif len(path.name) > 255 or not path.is_file():
        raise UsageError(f"there is no record {reference}: give the path of its JSON file, or its key")
    record = read_record(path)
    if key(record.identity) != record.key:
        raise StoreError(
            f"the record {path} is damaged: its key is not that of its identity; move it away and run its command again"
        )
    above = next((folder.parent for folder in path.absolute().parents if folder.name == "records"), None)
    return StoredRecord(path, record, above or out)


def _by_key(beginning: str, out: Path) -> Path:
    found = [path for path in find_records(out) if path.stem.startswith(beginning.lower())]
    if beginning and len(found) == 1:
        return found[0]
    if beginning and found:
        raise UsageError(
            f"{len(found)} records in {out} have a key that begins with '{beginning}': "
            f"{listed(path.stem for path in found)}; give more of it"
        )
    raise UsageError(
        f"no record in {out} has a key that begins with '{beginning}': take one from `vitbench export`, name its JSON "
        f"file, or another folder with --out"
    )


def saved_configs(out: Path) -> dict[Path, RunConfig]:
    """The configurations of the runs of an output folder, the newest first; what this version cannot read is left out."""
    found: dict[Path, RunConfig] = {}
    for path in sorted((out / "configs").glob("*.yaml"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            found[path] = make_config({}, path)
        except VitbenchError:
            continue
    return found


def task_pattern(task: str, config: RunConfig) -> str:
    """What a configuration called the task that has its records under the name `task`; empty if it was not among its tasks."""
    for pattern in config.tasks:
        try:
            names = expand_tasks([pattern])
        except VitbenchError:
            continue
        for name in names:
            if own_name(name) == task:
                return name
    return ""


def record_config(found: StoredRecord, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration that makes exactly this record: its preprocessing and its dtype in full, not as they were asked for.

    Args:
        found: The record. Where a folder of images, a task file or relocated data lies is taken from the configurations of its
            runs, the newest that names it.
        changes: Fields of `RunConfig` that the user gives anew, such as `backbones`, `tasks`, `task_data`, `device`.

    Raises:
        UsageError: Nothing says where its task is, or its protocol does not exist.
    """
    record = found.record
    named = [(task_pattern(record.task, config), config) for config in saved_configs(found.out).values()]
    task, config = next(((task, config) for task, config in named if task), ("", None))
    if not task and "tasks" not in changes:
        if record.task not in task_files():
            hint = (
                f"nothing in {found.out / 'configs'} says where it is: name its file, or imagefolder:PATH, with --task"
            )
            raise unknown("task of the record:", record.task, task_files(), hint=hint)
        task = record.task
    values = {
        "backbones": [record.backbone],
        "tasks": [task],
        "task_data": task_data(config, task) if config else {},
        "representations": [record.representation],
        "protocol": record.protocol,
        "options": PROTOCOLS.load(record.protocol).options_of(
            record.parameters, record.details, Cell(record.shot, record.seed)
        ),
        # A training is the same to the bit only where as many images go through at once; its weights are there already.
        "batch_size": record.details.get("images_at_once"),
        "trackers": ("none",),
        "save_models": False,
        "preprocess": record.preprocessing,
        "dtype": record.dtype,
        "features_dtype": record.features_dtype,
        "limit": record.limit,
        "train_split": record.splits.get("train", ""),
        "test_split": record.splits.get("test", ""),
        "accept_sizes": bool(record.deviations),
        "allow_untrained": record.representation_provenance == "untrained",
        "out": found.out,
    }
    return make_config({**values, **changes})


def task_data(config: RunConfig, task: str) -> dict[str, str]:
    """What a configuration says of where one task's data lies; names that no longer mean a task are passed over."""
    found: dict[str, str] = {}
    for name, place in config.task_data.items():
        try:
            found |= {name: place} if expand_tasks([name]) == [task] else {}
        except VitbenchError:
            continue
    return found


@dataclass(frozen=True)
class Replay:
    """A record, `found`, and the same thing run `again`.

    Attributes:
        differences: Fields in which their identities differ.
        changed: Test images whose predicted class differs; None when other test rows were scored.
        versions: What computed, as `name: then → now`, for all that differs: libraries, Python, vitbench's commit, the device.
        tolerance: By how many points the score may differ; 0 asks for the same score and the same predictions.
    """

    found: StoredRecord
    again: Record
    differences: tuple[Difference, ...]
    changed: int | None
    versions: tuple[str, ...]
    tolerance: float = 0.0

    @property
    def points(self) -> float:
        """The new score minus the record's, in points (percent)."""
        return 100 * (self.again.score - self.found.record.score)

    @property
    def agrees(self) -> bool:
        """Whether the record stands."""
        if self.changed is None:
            return False
        # A difference of exactly the tolerance is within it, whatever binary fractions make of it.
        within = self.tolerance > 0 and abs(self.points) <= self.tolerance + 1e-9
        return within or (self.points == 0 and self.changed == 0)

    @property
    def verdict(self) -> str:
        """One line: whether the record stands, and what it was held against."""
        record, again = self.found.record, self.again
        score = f"{record.metric} {100 * record.score:.2f} %"
        if self.changed is None:
            return f"not comparable: {again.n_test} test images were scored, of other rows than the record's {record.n_test}"
        if self.points == 0 and self.changed == 0:
            return f"the same: {score}, all {again.n_test} predictions"
        text = f"{score} then, {100 * again.score:.2f} % now; {self.changed} of {again.n_test} predictions differ"
        return f"the same within {self.tolerance:g} points: {text}" if self.agrees else f"not the same: {text}"


def replay(
    found: StoredRecord,
    *,
    changes: Mapping[str, Any] | None = None,
    tolerance: float = 0.0,
    reuse_features: bool = False,
    reporter: Reporter | None = None,
    command: str = "vitbench replay",
) -> Replay:
    """Run exactly one record again, in a temporary folder, and compare. The record's own folder is only read.

    Args:
        found: The record, from `find_record`.
        changes: Fields of `RunConfig` that the user gives anew (`backbones`, `tasks`, `task_data`, `device`, `batch_size`, …).
        tolerance: By how many points the score may differ; 0 asks for the same score and the same predictions.
        reuse_features: Read the features that are there; by default every image goes through the backbone again.
        reporter: Hears of the progress.
        command: What started this, for the new record.

    Raises:
        VitbenchError: It cannot be run again, because its checkpoint, its task or its predictions are gone or damaged.
    """
    before = read_predictions(found.path)
    with tempfile.TemporaryDirectory(prefix="vitbench-replay-") as folder:
        config = record_config(found, changes or {})
        config = config.model_copy(update={"out": Path(folder)})
        if reuse_features:
            _share_features(found, Path(folder))
        results = ResultStore(Path(folder))
        with offline() if config.offline else nullcontext():
            job = _one_cell(found.record, config, results)
            made, failures = carry_out(job, config, results, reporter or Reporter(), command)
        if failures:
            raise UsageError(failures[0])
        again = results.read(made.pop())
        (path,) = find_records(Path(folder))
        after = read_predictions(path)
    changed = int((before.prediction != after.prediction).sum()) if np.array_equal(before.row, after.row) else None
    other = differences(found.record.identity, again.identity)
    return Replay(found, again, other, changed, _versions(found.record, again), tolerance)


def _one_cell(record: Record, config: RunConfig, results: ResultStore) -> Job:
    """The job of one record alone."""
    protocol = PROTOCOLS.load(config.protocol).from_options(config.options)
    try:
        task = load_task(config.tasks[0], config.task_options)
        backbone = load_for(config.backbones[0], config, protocol)
        job = prepare(config, backbone, task, protocol, results)
    except VitbenchError as error:
        raise type(error)(f"the record {record.key} cannot be run again: {error} ({MOVED})") from error
    cell = cell_of(record, (cell for name, cell in job.identities if name == record.representation))
    if cell is None:
        raise UsageError(
            f"the record {record.key} cannot be run again: protocol '{record.protocol}' makes no outcome of "
            f"'{record.representation}' for shot {record.shot} and seed {record.seed} today"
        )
    return dataclasses.replace(job, wanted={record.representation: [cell]})


def _share_features(found: StoredRecord, folder: Path) -> None:
    """Let the temporary folder see the shards of the record's backbone and task, by links, so that nothing is written to them."""
    record = found.record
    inside = Path("features", slug(record.backbone_name), *map(slug, record.task.split("/")))
    source = found.out / inside
    remote.pull(source, whole=True)
    if not source.is_dir():
        raise UsageError(f"--reuse-features: there are no features at {source}; leave the option out to embed again")
    shutil.copytree(
        source.resolve(),
        folder / inside,
        copy_function=os.symlink,
        ignore=shutil.ignore_patterns(".lock", f"{TEMPORARY_PREFIX}*"),
    )


def _versions(then: Record, now: Record) -> tuple[str, ...]:
    before, after = (
        {**source.versions, "python": source.python, "commit": source.git_commit or "—", "device": source.device}
        for source in (then.provenance, now.provenance)
    )
    names = dict.fromkeys([*before, *after])
    told = {name: (before.get(name, "—"), after.get(name, "—")) for name in names}
    return tuple(f"{name}: {old} → {new}" for name, (old, new) in told.items() if old != new)
