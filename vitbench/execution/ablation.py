"""Ablations: the runs that they ask for, and which record belongs to which level.

Only what is missing is run: every level is an ordinary run whose records are looked up first. All representations and layers of
a backbone come from one forward pass, all penalties from one eigendecomposition (`vitbench.execution.l2_path`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import VitbenchError
from vitbench.execution.ablation_levels import (
    LOO,
    Axis,
    Lacking,
    Subject,
    l2_level,
    refuse_unknown,
    set_references,
    subject_of,
)
from vitbench.execution.config import RunConfig
from vitbench.execution.execute import execute
from vitbench.execution.l2_path import execute_path, penalised
from vitbench.execution.plan import RunResult
from vitbench.execution.reporter import Reporter
from vitbench.protocols import PROTOCOLS
from vitbench.records.schema import Record
from vitbench.records.store import ResultStore
from vitbench.solvers.ridge import PAPER_L2

_VARIES_FEATURES = ("resolution", "preprocess", "dtype")


@dataclass(frozen=True)
class Measurement:
    """A record of an ablation, and the level of every axis at which it was measured."""

    key: str
    backbone: str
    levels: Mapping[str, str]


@dataclass
class Ablation:
    """What came of an ablation.

    Attributes:
        axes: What was varied.
        compared: The axis whose levels are compared with a reference; the others say within what.
        subjects: The backbones.
        measurements: The records.
        result: Keys, failures and plan of all runs together.
        out: The output folder.
    """

    axes: tuple[str, ...]
    compared: str
    subjects: list[Subject]
    out: Path
    measurements: list[Measurement] = field(default_factory=list)
    result: RunResult = field(default_factory=RunResult)


def ablate(
    config: RunConfig,
    axes: Sequence[Axis],
    reporter: Reporter,
    command: str,
    *,
    reference: str | None = None,
    dry_run: bool = False,
) -> Ablation:
    """Run what an ablation lacks, and say which record belongs to which level.

    Args:
        config: What does not vary.
        axes: What varies; several are crossed.
        reporter: Hears of the progress.
        command: What started the run, for the records.
        reference: A level of the axis that is to be compared; by default the first level that was named, or the usual one.
        dry_run: Prepare every run, write nothing, and stop.

    Raises:
        UsageError: A name or value cannot be meant (nothing has been done then).
        VitbenchError: No backbone can be loaded.
    """
    if any(axis.name == "l2" for axis in axes):
        # Asked now: a protocol without a penalty must not first be run for the other levels.
        penalised(PROTOCOLS.load(config.protocol).from_options({**config.options, "l2": PAPER_L2}))
    found = Ablation(tuple(axis.name for axis in axes), "", [], config.out)
    for spec in config.backbones:
        try:
            found.subjects.append(subject_of(spec, config, axes))
        except VitbenchError as error:
            if len(config.backbones) == 1:
                raise
            found.result.failures.append(str(error))
            found.result.first_error = found.result.first_error or error
            reporter.warn(f"failed: {error}")
    if not found.subjects:
        assert found.result.first_error is not None
        raise found.result.first_error
    refuse_unknown(found.subjects)
    found.compared = set_references(found.subjects, axes, reference)
    for subject in found.subjects:
        for levels, run in _runs(subject, config):
            _carry_out(found, subject, levels, run, reporter, command, dry_run)
    return found


def _runs(subject: Subject, config: RunConfig) -> Iterator[tuple[dict[str, str], RunConfig]]:
    """The runs of a backbone, one for each combination of what changes its features; which levels each has."""
    levels = {axis: subject.measurable(axis) for axis in subject.levels}
    fixed: dict[str, Any] = {"backbones": (subject.backbone,), "options": dict(config.options)}
    for axis in ("representation", "layer"):
        if axis in levels:
            fixed["representations"] = tuple(levels[axis])
    if "shots" in levels:
        fixed["options"]["shots"] = ",".join(levels["shots"])
    varied = [axis for axis in _VARIES_FEATURES if axis in levels]
    for chosen in itertools.product(*(levels[axis] for axis in varied)) if all(levels.values()) else ():
        here = dict(zip(varied, chosen, strict=True))
        spec, changes = subject.backbone, dict(fixed)
        for axis, level in here.items():
            if axis == "resolution" or (getattr(parse_backbone_spec(spec), axis) != "auto" and level != "auto"):
                # What a spec says goes before what a run says.
                spec = _with_option(spec, axis, level)
            else:
                changes[axis] = level
        yield here, RunConfig.model_validate({**config.model_dump(), **changes, "backbones": (spec,)})


def _with_option(spec: str, name: str, value: str) -> str:
    """A spec with another value of one option."""
    parts = re.split(r",(?![^(]*\))", spec)
    return ",".join([*(part for part in parts if part.partition("=")[0].strip() != name), f"{name}={value}"])


def _carry_out(
    ablation: Ablation,
    subject: Subject,
    levels: Mapping[str, str],
    config: RunConfig,
    reporter: Reporter,
    command: str,
    dry_run: bool,
) -> None:
    """One run, with all its penalties where these vary; its records are added to the ablation."""
    penalties = subject.levels.get("l2", ())
    path: dict[str, float] = {}
    if not penalties:
        results = [execute(config, reporter, command, dry_run=dry_run)]
    else:
        chosen = config.model_copy(update={"options": {**config.options, "l2": LOO}})
        results = [execute(chosen, reporter, command, dry_run=dry_run)]
        numbers = [float(level) for level in penalties if level != LOO]
        if numbers:
            found, path = execute_path(config, numbers, reporter, command, dry_run=dry_run)
            results.append(found)
    for result in results:
        _merge(ablation.result, result)
        if result.failures and not result.keys and not dry_run:
            subject.lacking |= {(axis, level): Lacking("failed", result.failures[0]) for axis, level in levels.items()}
    store = ResultStore(config.out)
    for result in results:
        for found_key in result.keys:
            at = {**levels, **_levels_of(store.read(found_key), ablation.axes)}
            if penalties:
                at["l2"] = l2_level(path[found_key]) if found_key in path else LOO
            ablation.measurements.append(Measurement(found_key, subject.backbone, at))


def _levels_of(record: Record, axes: Sequence[str]) -> dict[str, str]:
    """The levels that a record tells by itself."""
    values = {"representation": record.representation, "layer": record.representation, "shots": str(record.shot)}
    return {axis: values[axis] for axis in axes if axis in values}


def _merge(whole: RunResult, part: RunResult) -> None:
    whole.keys += [found for found in part.keys if found not in whole.keys]
    whole.failures += [line for line in part.failures if line not in whole.failures]
    whole.written += part.written
    whole.planned += part.planned
    whole.first_error = whole.first_error or part.first_error
    whole.beyond_input |= part.beyond_input
