"""What a worker process does for a run: it describes backbones, embeds images, scores features.

Whatever goes wrong is given back as a `Problem`: an error that passes through Ray loses its one line. A worker reads
backbones and data by itself, by the names that the run was told, and compares them with what the driver has seen.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.registry import uncollected

with uncollected():  # a worker begins with this module, and the run waits for it
    import numpy as np
    import ray
    import torch
    from safetensors.torch import save

    from vitbench import errors
    from vitbench.backbones.base import Backbone
    from vitbench.backbones.spec import Atom, parse_representation
    from vitbench.errors import DataError, GivenUpError, VitbenchError, WeightsError, first_line
    from vitbench.execution.config import RunConfig
    from vitbench.execution.job import load_for, looks_at_classifier
    from vitbench.execution.ray.watch import ADVANCED, BEGAN, limited, tell
    from vitbench.features import heap
    from vitbench.features.extract import ExtractionOptions, embedded
    from vitbench.features.load import backbone_name
    from vitbench.features.remembered import RememberedBackbone, remember, without_weights
    from vitbench.features.store import FeatureStore
    from vitbench.hub import set_offline
    from vitbench.protocols.base import Protocol
    from vitbench.records.costs import read_costs
    from vitbench.tasks import transforms
    from vitbench.tasks.catalog import load_task
    from vitbench.tasks.task import Split, Task, TaskOptions

if TYPE_CHECKING:
    from vitbench.execution.estimate import Rate


@dataclass(frozen=True)
class Setting:
    """What every worker of a run is told.

    Attributes:
        config: The run's configuration.
        protocol: The protocol, bound to nothing.
        command: What started the run.
        folder: The driver's current folder, which relative paths are relative to.
        cpus: Threads that one worker may use.
        watch: The actor that hears of the progress.
        writes: Whether workers write below the output folder themselves.
    """

    config: RunConfig
    protocol: Protocol
    command: str
    folder: str
    cpus: int
    watch: Any
    writes: bool


@dataclass(frozen=True)
class Problem:
    """Why something was not done.

    Attributes:
        kind: Name of the kind of `VitbenchError` that it was; empty for an error that nobody expected.
        text: What it says.
        trace: The traceback of an unexpected error.
    """

    kind: str
    text: str
    trace: str = ""

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The problem that an exception is."""
        if isinstance(error, VitbenchError):
            kind = next(known.__name__ for known in type(error).__mro__ if known.__module__ == errors.__name__)
            return cls(kind, str(error))
        told = f"{type(error).__name__}: {first_line(error)}"
        return cls("", told, "".join(traceback.format_exception(error)))

    def error(self) -> VitbenchError | None:
        """The exception again; None for an unexpected one."""
        return getattr(errors, self.kind)(self.text) if self.kind else None


@dataclass(frozen=True)
class Unit:
    """Rows of a stored split that one worker embeds at once.

    Attributes:
        work: Its name, for the watch and for messages.
        spec: The backbone.
        weights: Digest of its weights.
        task: The task, as the run was told.
        split: The stored split.
        fingerprint: Its fingerprint.
        preprocessing: How images become pixels.
        atoms: What is computed.
        rows: Runs `[first, after last]` of rows.
        identity: The identity of the features.
    """

    work: str
    spec: str
    weights: str
    task: str
    split: str
    fingerprint: str
    preprocessing: str
    atoms: Sequence[str]
    rows: Sequence[Sequence[int]]
    identity: Mapping[str, Any]

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Unit:
        """From JSON."""
        return cls(**json.loads(text))

    @property
    def numbers(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows `[M]` int64, increasing."""
        return np.concatenate([np.arange(first, last, dtype=np.int64) for first, last in self.rows])


def ended(late: bool, limit: float | None, attempts: int) -> str:
    """Why a piece of work was given up, as a clause."""
    often = {1: "once", 2: "twice"}.get(attempts, f"{attempts} times")
    if late:
        return f"it took longer than --timeout-per-job {limit:g} s, {often}; allow more, or look at what hangs there"
    lost = f"its worker was lost {often} (killed, out of memory, or its node was lost)"
    return f"{lost}; --max-failures allows more, and a higher --cpus-per-job leaves fewer workers to share the memory"


def enter(setting: Setting) -> Setting:
    """Make this process like the driver, as far as a run depends on it; the setting with the output folder of this machine."""
    if Path(setting.folder).is_dir():
        os.chdir(setting.folder)
    torch.set_num_threads(setting.cpus)
    if setting.config.offline:
        set_offline(True)
    return replace(setting, config=setting.config.attached())


def describe(setting: Setting, spec: str) -> RememberedBackbone | Problem:
    """Load a backbone and say what it is here."""
    try:
        setting = enter(setting)
        tell(setting.watch, BEGAN, spec)
        with limited(setting.config.timeout_per_job, setting.watch, spec):
            backbone = load_for(spec, setting.config, setting.protocol)
            if not setting.protocol.loading:
                remember(backbone)
            return without_weights(backbone, looks_at_classifier(setting.protocol))
    except Exception as error:
        return Problem.of(error)


def measure(setting: Setting, device: str, dtypes: Sequence[str], gpus: float) -> Rate | Problem:
    """What one worker does in a second, for estimates."""
    from vitbench.execution.estimate import speed  # whoever embeds does without it

    try:
        setting = enter(setting)
        costs, _ = read_costs(setting.config.out)
        share = min(gpus, 1.0) if torch.device(device).type != "cpu" else 1.0
        return speed(device, dtypes=dtypes, costs=costs, workers=setting.config.workers or setting.cpus, share=share)
    except Exception as error:
        return Problem.of(error)


class Embedder:
    """Keeps a backbone loaded and embeds units; an actor of Ray Data's."""

    def __init__(self, setting: Setting) -> None:
        gc.freeze()  # what was imported stays as long as this process: it is not searched again and again
        self._setting = enter(setting)
        self._spec = ""
        self._backbone: Backbone | None = None

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        """Embed one unit.

        Args:
            batch: `unit`, one unit as JSON.

        Returns:
            `work`, the unit's name; `features`, safetensors with `rows` and an entry per atom, empty where this worker wrote
            them, or where its job cannot be done any more; `problem`, JSON of a `Problem`, empty if there was none.
        """
        unit = Unit.read(str(batch["unit"][0]))
        features, problem = b"", ""
        try:
            useful = self._begin(unit)
            with limited(self._setting.config.timeout_per_job, self._setting.watch, unit.work):
                features = self._embedded(unit) if useful else b""
        except Exception as error:
            problem = json.dumps(asdict(Problem.of(error)))
            if not isinstance(error, VitbenchError):
                self._forget()  # whatever is wrong with it, the next unit begins with a fresh one
        return {"work": [unit.work], "features": [features], "problem": [problem]}

    def _begin(self, unit: Unit) -> bool:
        """Say that a unit is begun; whether it is of use still. Ray gives it to a worker again and again: here that ends.

        Raises:
            GivenUpError: It has lost as many workers as it may.
        """
        most = self._setting.config.max_failures + 1
        begun, late, dropped = ray.get(tell(self._setting.watch, BEGAN, unit.work))
        if begun > most:
            raise GivenUpError(f"given up at {unit.work}: {ended(late, self._setting.config.timeout_per_job, most)}")
        return not dropped

    def _embedded(self, unit: Unit) -> bytes:
        setting = self._setting
        backbone, split = self._loaded(unit), split_of(setting, unit)
        atoms = frozenset(_atom(name) for name in unit.atoms)
        how = transforms.resolve(
            unit.preprocessing, backbone.preprocessing, backbone.input_size, backbone.mean, backbone.std
        )
        options = ExtractionOptions(setting.config.batch_size, setting.config.workers or setting.cpus)
        parts = []
        for rows, values in embedded(backbone, split, how, atoms, unit.numbers, options):
            parts.append(values)
            tell(setting.watch, ADVANCED, unit.work, len(rows))
        found = {str(atom): torch.cat([part[atom] for part in parts]) for atom in atoms}
        if not setting.writes:
            return save({"rows": torch.from_numpy(unit.numbers), **found})
        store = FeatureStore(setting.config.out, backbone_name(backbone), split.task, split.name, unit.identity)
        store.append(unit.numbers, found)
        return b""

    def _loaded(self, unit: Unit) -> Backbone:
        if self._backbone is None or self._spec != unit.spec:
            self._forget()
            self._backbone, self._spec = load_for(unit.spec, self._setting.config, self._setting.protocol), unit.spec
            heap.keep(self._backbone.device)
        if self._backbone.weights_digest != unit.weights:
            raise WeightsError(
                f"backbone '{unit.spec}' has other weights on {platform.node()} than where the run was planned: "
                f"{self._backbone.weights_digest[:12]} and {unit.weights[:12]}; make its files the same on every node"
            )
        return self._backbone

    def _forget(self) -> None:
        self._spec, self._backbone = "", None
        gc.collect()
        heap.give_back()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def split_of(setting: Setting, unit: Unit) -> Split:
    """The stored split of a unit, read on this machine.

    Raises:
        DataError: It is other data than the driver has.
    """
    options = setting.config.task_options
    task = _task(unit.task, json.dumps(asdict(options), sort_keys=True))
    found = _base(unit.split, (task.train, task.test)) or _base(unit.split, task.tuning_splits() or ())
    if found is None or found.fingerprint != unit.fingerprint:
        raise DataError(
            f"{platform.node()} reads other data for split '{unit.split}' of task '{unit.task}' than the machine that the run "
            f"was started on: make the data the same on every node, or name a folder that all see with --task-data"
        )
    return found


def _base(name: str, splits: Sequence[Split]) -> Split | None:
    return next((base for split in splits for base in split.bases if base.name == name), None)


@lru_cache(maxsize=8)
def _task(name: str, options: str) -> Task:
    return load_task(name, TaskOptions(**json.loads(options)))


def _atom(name: str) -> Atom:
    (atom,) = parse_representation(name)
    return atom
