"""One job: a backbone on a task. It is prepared (what is there, what is missing), then carried out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import COMMON_REPRESENTATIONS, parse_backbone_spec, parse_representation
from vitbench.errors import RepresentationError, UsageError, unknown
from vitbench.execution.config import AUTO, TASK, RunConfig
from vitbench.execution.recording import is_there, shown
from vitbench.features.featureset import IntArray
from vitbench.features.load import backbone_name, load_backbone, preprocessing_of
from vitbench.features.remembered import recall
from vitbench.features.store import FeatureStore
from vitbench.features.view import rows_of_bases
from vitbench.protocols import metrics
from vitbench.protocols.base import Cell, Protocol
from vitbench.records.identity import FEATURE_FIELDS, RECORD_FIELDS, identity, key
from vitbench.records.schema import Record
from vitbench.records.store import ResultStore
from vitbench.tasks import transforms
from vitbench.tasks.task import Split, Task


@dataclass(frozen=True)
class Job:
    """What is to be done for one backbone on one task.

    Attributes:
        representations: Canonical names of all that is asked for.
        identities: (representation, cell) to the identity of its record, for every record of the job.
        wanted: Canonical representation to the cells whose records are still to be made.
        splits: Role (`train`, `test`; `tune_train` and `tune_validation` for a protocol that tunes) to the split that has it.
        rows: Role to the rows of its split whose features are needed, increasing.
        stores: Name of each stored split behind them to its feature store.
        limit: Number of test images when fewer than all are scored.
        failures: What cannot be done, a line each: representations that the backbone lacks.
        notes: What the user should know about the task under this protocol.
        same_as: Another name under which the same data has its records; empty if there is none.
        refreshed: Records that are there, and of which the task file now says something else that decides no number.
    """

    backbone: Backbone
    task: Task
    protocol: Protocol
    representations: Sequence[str]
    preprocessing: transforms.Preprocessing
    identities: Mapping[tuple[str, Cell], Mapping[str, Any]]
    wanted: Mapping[str, Sequence[Cell]]
    splits: Mapping[str, Split]
    rows: Mapping[str, IntArray]
    stores: Mapping[str, FeatureStore]
    limit: int | None
    failures: Sequence[str]
    notes: Sequence[str]
    same_as: str = ""
    refreshed: Sequence[Record] = ()

    @property
    def keys(self) -> list[str]:
        """The keys of every record of the job, present or not."""
        return [key(value) for value in self.identities.values()]

    @property
    def records_wanted(self) -> int:
        """Number of records still to be made."""
        return sum(map(len, self.wanted.values()))

    @cached_property
    def atoms(self) -> frozenset[str]:
        """What the representations that are still wanted are made of, as feature stores name it."""
        return frozenset(str(atom) for name in self.wanted for atom in self.backbone.resolve(name))

    @cached_property
    def bases(self) -> dict[str, Split]:
        """Name to each stored split that rows are taken from."""
        return {base.name: base for split in self.splits.values() for base in split.bases}

    @cached_property
    def stored_rows(self) -> dict[str, IntArray]:
        """Name of a stored split to the rows of it whose features are needed for any role, increasing."""
        found: dict[str, IntArray] = {}
        for role, split in self.splits.items():
            for name, rows in rows_of_bases(split, self.rows[role]).items():
                found[name] = np.union1d(found[name], rows) if name in found else rows
        return found

    def images_missing(self) -> dict[str, int]:
        """Name of a stored split to the number of its images that must go through the backbone."""
        return {
            name: sum(map(len, self.stores[name].missing(self.atoms, rows).values())) if self.atoms else 0
            for name, rows in self.stored_rows.items()
        }


def load_for(spec: str, config: RunConfig, protocol: Protocol) -> Backbone:
    """The backbone of a spec on the device and in the dtype of a run's configuration; the spec's own dtype goes first."""
    backbone = load_backbone(
        spec, device=config.device, allow_untrained=config.allow_untrained, **_loading(spec, protocol)
    )
    if backbone.spec.dtype == AUTO:
        backbone.to(backbone.device, config.dtype)
    return backbone


def recall_for(spec: str, config: RunConfig) -> Backbone | None:
    """As `load_for`, what is remembered of the backbone, without its weights; None where nothing is."""
    backbone = recall(spec, device=config.device, allow_untrained=config.allow_untrained)
    if backbone is not None and backbone.spec.dtype == AUTO:
        backbone.to(backbone.device, config.dtype)
    return backbone


def _loading(spec: str, protocol: Protocol) -> dict[str, Any]:
    """How the protocol wants the backbone loaded; `pixels`, which has nothing to train, is told so later.

    Raises:
        UsageError: The spec asks for another resolution or other position embeddings than the protocol.
    """
    asked, loading = parse_backbone_spec(spec), dict(protocol.loading)
    if asked.kind == "pixels":
        return {}
    for name in ("resolution", "positions"):
        own = getattr(asked, name)
        if name in loading and own not in (None, "", "library", loading[name]):
            raise UsageError(
                f"backbone '{spec}' asks for {name}={own}, and protocol '{protocol.name}' for {loading[name]}: leave one out, or "
                f"make them equal (--set {name}={own})"
            )
    return loading


def looks_at_classifier(protocol: Protocol) -> bool:
    """Whether a protocol may ask a backbone for the checkpoint's own classifier when it is bound to it."""
    return type(protocol).bind is not Protocol.bind


def prepare(
    config: RunConfig,
    backbone: Backbone,
    task: Task,
    protocol: Protocol,
    results: ResultStore,
    made: Collection[str] = (),
) -> Job:
    """Find out what a job has to do.

    Args:
        config: The run's configuration.
        backbone: The backbone, on its device.
        task: The task.
        protocol: The protocol.
        results: The records that are there.
        made: Keys of the records that this run has made itself: they are there, whatever `on_existing` says.

    Raises:
        UsageError: No representation that was asked for exists, the preprocessing does not fit, or records exist and
            `on_existing` is `error`.
    """
    protocol = protocol.bind(backbone, task)
    names, failures = _representations(config, backbone, protocol)
    preprocessing = preprocessing_of(backbone, _preprocess(config, task, protocol))
    train, test = task.train, task.test
    tuning = {} if protocol.trains else _tuning_splits(task, protocol)
    splits = {"train": train, "test": test, **tuning}
    limit = config.limit if config.limit is not None and config.limit < len(test) else None
    common = {
        "architecture": backbone.architecture,
        "dtype": backbone.dtype,
        "features_dtype": config.features_dtype,
        "preprocessing": str(preprocessing),
        "weights": backbone.weights_digest,
    }
    shared = common | {
        "limit": limit,
        "num_classes": task.num_classes,
        "parameters": protocol.parameters()
        | protocol.fingerprints()
        | {f"{role}_fingerprint": part.fingerprint for role, part in tuning.items()},
        "protocol": protocol.name,
        "test_fingerprint": test.fingerprint,
        "train_fingerprint": train.fingerprint,
    }
    identities = {
        (name, cell): identity(RECORD_FIELDS, shared | _of_cell(shared, cell) | {"representation": name})
        for name in names
        for cell in protocol.cells()
    }
    said = shown(task, splits, protocol)
    present = {pair for pair, value in identities.items() if is_there(results, key(value), task)}
    own = {pair for pair in present if key(identities[pair]) in made}
    there = [results.read(key(identities[pair])) for pair in present]
    refreshed = [record for record in there if record.task == task.name and record.model_copy(update=said) != record]
    names_there = {results.read(key(identities[pair])).task for pair in present}
    if present - own and config.on_existing == "error":
        raise UsageError(
            f"{len(present)} of the {len(identities)} records of {backbone.spec.text} on {task.name} exist in {config.out} "
            f"already: choose another --out, or --on-existing skip or rerun"
        )
    if config.on_existing == "rerun":
        present = own
    wanted = {
        name: cells for name in names if (cells := [cell for cell in protocol.cells() if (name, cell) not in present])
    }
    cells = sorted({cell for cells in wanted.values() for cell in cells})
    rows = {
        "train": protocol.train_rows(train.labels, task.num_classes, cells) if cells else np.empty(0, np.int64),
        "test": _test_rows(len(test), limit) if cells else np.empty(0, np.int64),
        **{role: np.arange(len(part) if cells else 0, dtype=np.int64) for role, part in tuning.items()},
    }
    stores = {
        split.name: FeatureStore(
            config.out,
            backbone_name(backbone),
            task.name,
            split.name,
            identity(FEATURE_FIELDS, common | {"split_fingerprint": split.fingerprint}),
        )
        for part in splits.values()
        for split in part.bases
    }
    notes = [*protocol.check(train.labels, task.num_classes), *_notes(task, test.labels)]
    same_as = " and ".join(sorted(names_there - {task.name}))
    return Job(
        backbone,
        task,
        protocol,
        names,
        preprocessing,
        identities,
        wanted,
        splits,
        rows,
        stores,
        limit,
        failures,
        notes,
        same_as,
        [record.model_copy(update=said) for record in refreshed],
    )


def _of_cell(shared: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """The fields of an identity in which the cells of one protocol differ."""
    return {"parameters": shared["parameters"] | dict(cell.parameters), "seed": cell.seed, "shot": cell.shot}


def _preprocess(config: RunConfig, task: Task, protocol: Protocol) -> str:
    """The preprocessing that is asked for, by the user before the protocol; `task` is what the task file names."""
    if config.preprocess == AUTO:
        return protocol.preprocess
    if config.preprocess != TASK:
        return config.preprocess
    if not task.spec.preprocess:
        raise UsageError(f"task '{task.name}' names no preprocessing: use --preprocess auto, or a preset")
    return task.spec.preprocess


def _tuning_splits(task: Task, protocol: Protocol) -> dict[str, Split]:
    """Role to split, of what a hyper-parameter is chosen on; empty for a protocol that chooses none that way."""
    if not protocol.tunes:
        return {}
    splits = task.tuning_splits()
    if splits is None:
        raise UsageError(
            f"task '{task.name}' has no splits to tune on (evaluation.tune_train and tune_validation in its file): "
            f"use --l2 loo, which needs none"
        )
    return {"tune_train": splits[0], "tune_validation": splits[1]}


def _notes(task: Task, labels: IntArray) -> list[str]:
    """What a user should know of a task's data.

    Raises:
        DataError: The task's metric is not defined on it.
    """
    scored = metrics.check(task.spec.metric, labels, task.num_classes, task.label_sets)
    unverified = (
        [f"unverified: nobody had seen this source before; it is {task.source}"] if task.spec.unverified else []
    )
    synthetic = ["synthetic: the images were rendered by a program"] if task.spec.synthetic else []
    return [*(f"accepted: {line}" for line in task.deviations), *scored, *unverified, *synthetic]


def _representations(config: RunConfig, backbone: Backbone, protocol: Protocol) -> tuple[list[str], list[str]]:
    """Canonical names of what is to be scored, and a line for each representation that the backbone lacks.

    What is not said is all that the backbone has; for a protocol that trains, where each is a training of its own, the
    first: the class token where there is one, without the pooler's dense layer, as the reference drops `pre_logits`.
    """
    if config.representations == (AUTO,) and protocol.reads:
        return [backbone.canonical(protocol.reads)], []
    if config.representations == (AUTO,):
        return backbone.available()[: 1 if protocol.trains else None], []
    if backbone.is_floor:
        for name in config.representations:
            for atom in parse_representation(name) if name != AUTO else ():
                if atom.pooling not in (*COMMON_REPRESENTATIONS, *backbone.representations):
                    raise unknown(
                        "representation",
                        name,
                        [*COMMON_REPRESENTATIONS, *backbone.representations],
                        error=RepresentationError,
                    )
        return backbone.available(), []
    names, failures = [], []
    for name in config.representations:
        try:
            names += backbone.available() if name == AUTO else [backbone.canonical(name)]
        except RepresentationError as error:
            failures.append(str(error))
    if not names:
        raise RepresentationError(failures[0])
    return list(dict.fromkeys(names)), failures


def _test_rows(size: int, limit: int | None) -> IntArray:
    """All rows, or `limit` rows spread evenly over the split, so that a split in order of class keeps all its classes."""
    if limit is None:
        return np.arange(size, dtype=np.int64)
    return np.arange(limit, dtype=np.int64) * size // limit
