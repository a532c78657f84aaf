"""Why something would run again: the identities that a command asks for today, held against the records that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import StoreError, VitbenchError
from vitbench.execution.config import RunConfig, make_config
from vitbench.execution.job import Job, load_for, prepare
from vitbench.execution.recording import cell_of
from vitbench.execution.replay import (
    MOVED,
    Difference,
    StoredRecord,
    differences,
    record_config,
    saved_configs,
    task_data,
    task_pattern,
)
from vitbench.hub import offline
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Cell
from vitbench.records.identity import DEFAULTS, RECORD_FIELDS, canonical_json, key
from vitbench.records.schema import Record
from vitbench.records.store import ResultStore, read_record
from vitbench.tasks.catalog import expand_tasks, load_task
from vitbench.tasks.task import Task

Loaded = TypeVar("Loaded")

_COORDINATES = ("representation", "shot", "seed")

_FIELDS = (*RECORD_FIELDS, *DEFAULTS, "identity_version")


@dataclass(frozen=True)
class RecordAnswer:
    """Whether a record would be used again today.

    Attributes:
        found: The record.
        asked_by: The configuration of the run that asks for it; None when none is left, and the record itself was asked.
        differences: The identity's fields that are others today; empty when it would be used again.
        notes: What else helps to see why, a line each.
    """

    found: StoredRecord
    asked_by: Path | None
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One line."""
        if not self.differences:
            return "would be used again: every field of its identity is the same today"
        names = ", ".join(difference.field for difference in self.differences)
        return f"would be made again: {len(self.differences)} of its identity's fields differ today ({names})"


@dataclass(frozen=True)
class Missing:
    """A record that a command needs and that is not there.

    Attributes:
        backbone: The backbone's spec.
        task: The task's full name.
        representation: Canonical name.
        cell: Shot and seed.
        nearest: The record that is most like it; None when there is no record at all.
        differences: The identity's fields in which that one differs: its value, and the one that is needed.
        damaged: The record's own file when it is there but cannot be read.
    """

    backbone: str
    task: str
    representation: str
    cell: Cell
    nearest: StoredRecord | None
    differences: tuple[Difference, ...]
    damaged: Path | None = None


@dataclass
class CommandAnswer:
    """What a command would use again, and what it would make.

    Attributes:
        present: Number of its records that are there.
        missing: Those that are not, in the order of the run.
        failures: What cannot be prepared, a line each.
        on_existing: What the command does with those that are there: `skip`, `rerun` or `error`.
    """

    present: int = 0
    missing: list[Missing] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    on_existing: str = "skip"

    @property
    def verdict(self) -> str:
        """One line."""
        total = self.present + len(self.missing)
        fate = {"rerun": " (--on-existing rerun makes them again)", "error": " (--on-existing error stops at them)"}
        there = f"{self.present} there{fate.get(self.on_existing, '') if self.present else ''}"
        return f"{total} records: {there}, {len(self.missing)} to be made"

    def groups(self) -> list[list[Missing]]:
        """The missing records, those of one backbone and task that lack for the same reason together.

        Which representation, shot or seed a nearest record has instead is no reason of its own: only that it is another.
        """

        def reason(missing: Missing) -> tuple[str, ...]:
            told = (
                part.field if part.field in _COORDINATES else f"{part.field} {part.then} {part.now}"
                for part in missing.differences
            )
            return (missing.backbone, missing.task, str(missing.damaged or ""), str(missing.nearest is None), *told)

        first = {why: number for number, why in reversed(list(enumerate(map(reason, self.missing))))}
        ordered = sorted(self.missing, key=lambda missing: first[reason(missing)])
        return [list(group) for _, group in groupby(ordered, key=reason)]


def why_record(found: StoredRecord, changes: Mapping[str, Any] | None = None) -> RecordAnswer:
    """Say whether a record would be used again, if the run that made it were started today; nothing is embedded or written.

    Args:
        found: The record, from `find_record`.
        changes: Fields of `RunConfig` that the user gives anew, such as `backbones`, `tasks`, `task_data`, `device`.

    Raises:
        VitbenchError: Its backbone or its task cannot be loaded.
    """
    record, opened = found.record, _Opened(ResultStore(found.out))
    answers: list[RecordAnswer] = []
    problems: list[VitbenchError] = []
    askers: list[tuple[Path | None, RunConfig]] = list(_askers(found, changes or {}))
    for path, config in askers or [(None, record_config(found, changes or {}))]:
        try:
            job = opened.job(config)
        except VitbenchError as error:
            problems.append(error)
            continue
        cell = cell_of(record, (cell for name, cell in job.identities if name == record.representation))
        if cell is not None:
            now = job.identities[record.representation, cell]
            answers.append(RecordAnswer(found, path, differences(record.identity, now), _notes(record, job)))
            if not answers[-1].differences:
                break
    if not answers:
        reason = problems[0] if problems else VitbenchError("its protocol has no such shot and seed today")
        raise type(reason)(f"the record {record.key} cannot be asked for today: {reason} ({MOVED})") from reason
    return min(answers, key=lambda answer: len(answer.differences))


def _askers(found: StoredRecord, changes: Mapping[str, Any]) -> Iterator[tuple[Path, RunConfig]]:
    """The saved configurations that may have made a record, narrowed to it, the newest first."""
    record = found.record
    for path, config in saved_configs(found.out).items():
        task = task_pattern(record.task, config)
        if not task or record.backbone not in config.backbones or config.protocol != record.protocol:
            continue
        # A limit that is no less than the test split is none.
        unlimited = record.limit is None and config.limit is not None and config.limit >= record.n_test
        splits = ((config.train_split, "train"), (config.test_split, "test"))
        other = any(given and given != record.splits.get(role) for given, role in splits)
        if other or (config.limit != record.limit and not unlimited):
            continue
        narrowed = {
            "backbones": [record.backbone],
            "tasks": [task],
            "task_data": task_data(config, task),
            "representations": [record.representation],
            "out": found.out,
            "on_existing": "skip",
        }
        yield path, make_config({**config.model_dump(), **narrowed, **changes})


def _notes(record: Record, job: Job) -> tuple[str, ...]:
    """What explains other data: sizes and names of splits."""
    notes = []
    test = job.limit or len(job.splits["test"])
    if test != record.n_test:
        notes.append(f"the record scored {record.n_test:,} test images, today there would be {test:,}")
    for role, split in job.splits.items():
        if role in record.splits and record.splits[role] != split.name:
            notes.append(f"the record's {role} split is '{record.splits[role]}', today's is '{split.name}'")
    return tuple(notes)


def why_command(config: RunConfig) -> CommandAnswer:
    """Say what a run would make, and for each missing record which one of the output folder is the nearest.

    Nothing is embedded or written; backbones and labels are loaded, because their content is part of the identity.

    Args:
        config: The run.

    Raises:
        UsageError: A name cannot be meant.
    """
    PROTOCOLS.load(config.protocol).from_options(config.options)
    answer = CommandAnswer(on_existing=config.on_existing)
    config = config.model_copy(update={"on_existing": "skip"})
    opened = _Opened(ResultStore(config.out))
    nearby = _Nearby(config.out)
    names = expand_tasks(list(config.tasks))
    for spec in config.backbones:
        for name in names:
            one = config.model_copy(update={"backbones": (spec,), "tasks": (name,)})
            try:
                job = opened.job(one)
            except VitbenchError as error:
                if str(error) not in answer.failures:
                    answer.failures.append(str(error))
                continue
            answer.failures += [line for line in job.failures if line not in answer.failures]
            for (representation, cell), needed in job.identities.items():
                if key(needed) in opened.results:
                    answer.present += 1
                else:
                    answer.missing.append(nearby.missing(job, representation, cell, needed))
    return answer


class _Opened:
    """Jobs as a run prepares them. A task is loaded once, a backbone stays loaded until another is asked for."""

    def __init__(self, results: ResultStore) -> None:
        self.results = results
        self._tasks: dict[str, Task | VitbenchError] = {}
        self._backbone: tuple[str, Backbone | VitbenchError] | None = None

    def job(self, config: RunConfig) -> Job:
        """The job of a configuration's one backbone on its one task.

        Raises:
            VitbenchError: One of them cannot be loaded, or they do not fit.
        """
        protocol = PROTOCOLS.load(config.protocol).from_options(config.options)
        (task_name,), (spec,) = config.tasks, config.backbones
        with offline() if config.offline else nullcontext():
            asked = f"{task_name} {config.task_options}"
            if asked not in self._tasks:
                self._tasks[asked] = _attempt(lambda: load_task(task_name, config.task_options))
            place = f"{spec} {config.device} {config.dtype} {config.allow_untrained} {dict(protocol.loading)}"
            if self._backbone is None or self._backbone[0] != place:
                self._backbone = None  # or two would be in memory at once
                self._backbone = (place, _attempt(lambda: load_for(spec, config, protocol)))
            task, backbone = self._tasks[asked], self._backbone[1]
            for loaded in (task, backbone):
                if isinstance(loaded, VitbenchError):
                    raise loaded
            assert isinstance(task, Task)
            assert isinstance(backbone, Backbone)
            return prepare(config, backbone, task, protocol, self.results)


def _attempt(load: Callable[[], Loaded]) -> Loaded | VitbenchError:
    """What `load` gives, or its error, so that what failed once is not tried again for every job."""
    try:
        return load()
    except VitbenchError as error:
        # A copy: the error itself would hold, by its traceback, what was being loaded.
        return type(error)(str(error))


class _Nearby:
    """The records of an output folder, as numbers, so that the nearest of many is found at once."""

    def __init__(self, out: Path) -> None:
        self.records: list[StoredRecord] = []
        self.damaged: dict[str, Path] = {}
        for path in sorted((out / "records").rglob("*.json")):
            try:
                self.records.append(StoredRecord(path, read_record(path), out))
            except StoreError:
                self.damaged[path.stem] = path
        # Of equals, the newest is the one to tell of.
        self.records.sort(key=lambda found: found.record.provenance.created, reverse=True)
        self._codes: dict[str, int] = {}
        rows = [self._row(_names(found.record), found.record.identity) for found in self.records]
        self._matrix = np.array(rows, dtype=np.int64)

    def missing(self, job: Job, representation: str, cell: Cell, needed: Mapping[str, Any]) -> Missing:
        """The missing record of an identity, with its nearest neighbour.

        Nearest is what has the fewest other fields; of equals, what is called alike (backbone with its options, task, protocol,
        representation, shot, seed), so that a changed checkpoint is held against itself and not against a sister.
        """
        spec, task = job.backbone.spec, job.task.name
        damaged = self.damaged.get(key(needed))
        if not self.records:
            return Missing(spec.text, task, representation, cell, None, (), damaged)
        names = [spec.long_label, task, job.protocol.name, representation, cell.shot, cell.seed]
        unlike = self._matrix != np.array(self._row(names, needed))
        split = len(names)
        costs = unlike[:, split:].sum(axis=1) * unlike.shape[1] + unlike[:, :split].sum(axis=1)
        near = self.records[int(costs.argmin())]
        told = differences(near.record.identity, needed)
        return Missing(spec.text, task, representation, cell, near, told, damaged)

    def _row(self, names: Sequence[Any], identity: Mapping[str, Any]) -> list[int]:
        values = [*names, *(identity.get(name) for name in _FIELDS)]
        texts = [f"{number} {canonical_json(value)}" for number, value in enumerate(values)]
        return [self._codes.setdefault(text, len(self._codes)) for text in texts]


def _names(record: Record) -> list[Any]:
    label = parse_backbone_spec(record.backbone).long_label
    return [label, record.task, record.protocol, record.representation, record.shot, record.seed]
