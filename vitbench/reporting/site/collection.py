"""The records that a report is made of, each with the page that it is told on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import pandas as pd

from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import StoreError, UsageError, VitbenchError
from vitbench.records.atomic import slug
from vitbench.records.store import as_frame, find_records, read_record
from vitbench.reporting.diagnostics import SAME_BUT_SEED
from vitbench.reporting.labels import labelled
from vitbench.reporting.selection import read_measured

SETTING = ["protocol", "parameters", "limit"]
"""Records that agree in these may share a plot against shots."""


@dataclass(frozen=True)
class Run:
    """What records have in common that one command made with the same code on one machine.

    Attributes:
        command: The command or call.
        git_commit: Commit of the vitbench checkout, or that there was none.
        host: Name of the machine.
        device: Device of the forward pass.
        python: Version of Python.
        versions: Of vitbench and of the libraries that compute, a line each.
    """

    command: str
    git_commit: str
    host: str
    device: str
    python: str
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """The records of an output folder.

    Attributes:
        folder: Where they lie.
        records: As `read_measured` gives them, with the labels of a leaderboard (`backbone`, `shown`, `variant`, `column`; here
            `backbone` is the label of the model) and: `spec`, the backbone as it was written; `model` and `task_page`, names of
            the pages of its weights and of its task; `cell`, the number of its measurement: records of one cell differ in
            nothing but their seed; `setting`, the number of its protocol with parameters and limit; `run`, that of its run.
        contradicting: Records of one identity with different scores: for leaderboards, which show the conflict.
        models: Page of a backbone (one architecture with one set of weights) to its label, which no other has.
        tasks: Full name of a task to its page.
        runs: Every run that made records, in order of their number, the column `run`.
        problems: Records that are left out, and why, a line each.
    """

    folder: Path
    records: pd.DataFrame
    contradicting: pd.DataFrame
    models: Mapping[str, str]
    tasks: Mapping[str, str]
    runs: tuple[Run, ...]
    problems: tuple[str, ...]


def collect(folder: Path) -> Collection:
    """Read the records below a folder.

    Raises:
        UsageError: There is no such folder, or it holds no record that can be used.
    """
    measured = read_measured(folder)
    if not len(measured.records):
        reason = f": {measured.problems[0]}" if measured.problems else ": make some with `vitbench run`"
        raise UsageError(f"there are no records to report at {folder}{reason}")
    contradicting = _contradicting(folder, set(measured.records["key"]))
    used = len(measured.records)
    records = pd.concat([measured.records, *contradicting], ignore_index=True)
    records = labelled(records.assign(shown_metric=records["metric"]))
    named = page_names(records["task"].unique())
    model = records["architecture"] + " " + records["weights"]
    pages = page_names(model.unique(), dict(zip(model, records["backbone_name"], strict=True)))
    records = records.assign(
        model=model.map(pages),
        task_page=records["task"].map(named),
        cell=records.groupby(SAME_BUT_SEED, dropna=False, sort=False).ngroup(),
        setting=records.groupby(SETTING, dropna=False, sort=False).ngroup(),
    )
    labels = model_labels(records.drop_duplicates("model").set_index("model")[["spec", "weights"]])
    records["backbone"] = records["model"].map(labels)
    own = records.iloc[:used]
    runs, of_record, weights_notes = _runs(own, measured.provenance)
    own = own.assign(run=of_record, weights_notes=pd.Series(weights_notes, index=own.index, dtype=object))
    there = set(own["model"])
    return Collection(
        folder,
        own,
        records.iloc[used:],
        {page: label for page, label in labels.items() if page in there},
        {task: page for task, page in named.items() if task in set(own["task"])},
        runs,
        measured.problems,
    )


def page_names(things: Iterable[str], called: Mapping[str, str] | None = None) -> dict[str, str]:
    """A file name for each thing, without its ending: safe in every path and address, and never another's, whatever the case.

    Args:
        things: What needs a page.
        called: What its file is to be called like, where that is not itself.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for thing in sorted(things):
        name = slug((called or {}).get(thing, thing))
        if name.casefold() in taken:
            name = f"{name}-{hashlib.sha256(thing.encode()).hexdigest()[:8]}"
        taken.add(name.casefold())
        names[thing] = name
    return names


def model_labels(models: pd.DataFrame) -> dict[str, str]:
    """The shortest label of each model that no other has: its spec without options, with its checkpoint, with all of them.

    Args:
        models: Index page, columns `spec` and `weights`.
    """
    candidates = pd.DataFrame([_candidates(*row) for row in models.itertuples(index=False)], index=models.index)
    labels = candidates[0]
    for column in candidates.columns[1:]:
        # All namesakes get the longer label: one that kept the short one would look like the family's head.
        labels = labels.where(~labels.duplicated(keep=False), candidates[column])
    return dict(labels)


def _candidates(spec: str, weights: str) -> list[str]:
    digest = f"weights {weights[:8]}"
    try:
        parsed = parse_backbone_spec(spec)
    except VitbenchError:
        # Another version wrote what this one cannot read.
        return [spec, spec, spec, f"{spec} · {digest}", f"{spec} · weights {weights}"]
    by_file = f"{parsed.label} · {PurePath(parsed.checkpoint).stem}" if parsed.checkpoint else parsed.label
    long = parsed.long_label
    return [parsed.label, by_file, long, f"{long} · {digest}", f"{long} · weights {weights}"]


def _contradicting(folder: Path, kept: set[str]) -> list[pd.DataFrame]:
    """The records that `read_measured` left out because others of their identity have other scores; a frame each."""
    paths = find_records(folder)
    several = Counter(path.stem for path in paths)
    frames = []
    for path in paths:
        if several[path.stem] < 2 or path.stem in kept:
            continue
        try:
            frames.append(as_frame([read_record(path)]).assign(path=pd.Series([path], dtype=object)))
        except StoreError:
            continue
    return frames


def _runs(records: pd.DataFrame, provenance: pd.DataFrame) -> tuple[tuple[Run, ...], list[int], list[tuple[str, ...]]]:
    """The runs, the number of each record's run, and what was noted when its weights were loaded."""
    numbers: dict[Run, int] = {}
    of_record = []
    for row in records[["command", "host", "device"]].join(provenance).to_dict("records"):
        versions = tuple(f"{name} {version}" for name, version in row["versions"].items())
        commit = row["git_commit"] or "none: an installed vitbench"
        run = Run(row["command"], commit, row["host"], row["device"], row["python"], versions)
        of_record.append(numbers.setdefault(run, len(numbers)))
    return tuple(numbers), of_record, [tuple(notes) for notes in provenance["weights_notes"]]
