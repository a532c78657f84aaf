"""Results for a model card of the Hugging Face hub: its `model-index`, made by huggingface_hub's own `EvalResult`."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

import vitbench
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError, VitbenchError, listed, unknown
from vitbench.records.atomic import slug
from vitbench.records.identity import canonical_json
from vitbench.records.schema import Record
from vitbench.reporting.labels import shot_label
from vitbench.tasks.catalog import find_task, task_files

METRIC_TITLES = {
    "accuracy": "Top-1 accuracy",
    "top5_accuracy": "Top-5 accuracy",
    "mean_per_class_accuracy": "Mean per-class accuracy",
    "multilabel_hit": "Multi-label hit rate",
}
_HUB_SOURCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")
HEADER = (
    "# Measured on frozen features by vitbench {version}. Values are fractions: 0.9 is 90 %.\n"
    "# The mean is over seeds (draws of the support set), ± is the standard deviation over seeds.\n"
)


def of_backbone(records: Sequence[Record], backbone: str) -> list[Record]:
    """The records of one backbone: by its spec, by its spec without options, or by the name of its folder of records.

    Raises:
        UsageError: There is none (the nearest are offered), or what is named is several models.
    """
    ways: tuple[Callable[[Record], str], ...] = (
        lambda record: record.backbone,
        lambda record: parse_backbone_spec(record.backbone).label,
        lambda record: record.backbone_name,
    )
    for way in ways:
        found = [record for record in records if way(record) == backbone]
        models = {(record.identity["architecture"], record.identity["weights"]) for record in found}
        if len(models) > 1:
            texts = {record.backbone for record in found}
            choices = sorted(texts if len(texts) == len(models) else {record.backbone_name for record in found})
            raise UsageError(f"{len(models)} models among the records are called '{backbone}': {listed(choices)}")
        if found:
            return found
    raise unknown("backbone among the records:", backbone, {way(record) for record in records for way in ways[:2]})


def model_index(
    records: Sequence[Record], *, name: str = "", synthetic: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """The model index of one backbone's records: a metric per representation, protocol and shot, below each data set.

    Left out, each with a note: limited runs, data that is not as its task file says, rendered images (unless asked for),
    untrained representations, names for the same features (a pooler that is CLS), identities in conflict, and what lacks some of
    the seeds that the protocol was run with.

    Args:
        records: Records of one backbone, from `of_backbone`.
        name: The model's name on the card; that of the backbone if not given.
        synthetic: Take tasks of rendered images too.

    Returns:
        What stands below `model-index:`, and the notes.

    Raises:
        UsageError: Nothing is left to tell.
    """
    kept, notes = _publishable(records, synthetic)
    groups, incomplete = _complete(kept)
    notes += incomplete
    if not groups:
        raise UsageError(f"nothing to put on a model card: {'; '.join(notes)}")
    title = name or _model_name(records[0])
    several = len({(record.preprocessing, record.dtype) for group in groups for record in group}) > 1
    by_data: dict[str, list[EvalResult]] = {}
    for group in groups:
        first = group[0]
        place = canonical_json([first.task, first.splits, first.identity["test_fingerprint"]])
        by_data.setdefault(place, []).append(_result(group, several))
    # Data set by data set: the function takes two tasks of one repository for one, and shows the first one's name for both.
    results = [eval_results_to_model_index(title, found)[0]["results"] for found in by_data.values()]
    return [{"name": title, "results": [entry for part in results for entry in part]}], notes


def card_yaml(index: Sequence[dict[str, Any]]) -> str:
    """The `model-index` as YAML, for the head of a model card."""
    body = yaml.safe_dump({"model-index": list(index)}, sort_keys=False, allow_unicode=True, width=4096)
    return HEADER.format(version=vitbench.__version__) + body


def _publishable(records: Sequence[Record], synthetic: bool) -> tuple[list[Record], list[str]]:
    """The records that a stranger may read without a warning, and what was left out."""
    by_key: dict[str, set[float]] = {}
    for record in records:
        by_key.setdefault(record.key, set()).add(record.score)
    there = {_named(record, record.representation) for record in records}
    reasons: dict[str, Callable[[Record], bool]] = {
        "of limited runs": lambda record: record.limit is not None,
        "of data that is not as its task file says": lambda record: bool(record.deviations),
        "of rendered images (--synthetic takes them)": lambda record: record.synthetic and not synthetic,
        "of untrained representations": lambda record: record.representation_provenance == "untrained",
        "under another name of the same representation": lambda record: _named(record, record.alias_of or "") in there,
        "in conflict: one identity with different scores": lambda record: len(by_key[record.key]) > 1,
    }
    kept = {record.key: record for record in records}
    notes = []
    for reason, applies in reasons.items():
        out = [name for name, record in kept.items() if applies(record)]
        if out:
            notes.append(f"left out: {len(out)} records {reason}")
        kept = {name: record for name, record in kept.items() if name not in out}
    return list(kept.values()), notes


def _named(record: Record, representation: str) -> str:
    """What tells that a record has its double under another name of the representation."""
    return canonical_json({**record.identity, "representation": representation})


def _complete(records: Sequence[Record]) -> tuple[list[list[Record]], list[str]]:
    """Records that differ by their seed alone, together, where they have every seed that their protocol was run with."""
    groups: dict[str, list[Record]] = {}
    expected: dict[str, set[int]] = {}
    for record in records:
        same = {name: value for name, value in record.identity.items() if name != "seed"}
        groups.setdefault(canonical_json([same, record.metric]), []).append(record)
        expected.setdefault(_protocol(record), set()).add(record.seed)
    whole, notes = [], []
    for group in groups.values():
        first, seeds = group[0], {record.seed for record in group}
        if missing := sorted(expected[_protocol(first)] - seeds):
            notes.append(
                f"left out: {first.representation} on {first.task}, {first.protocol}, {shot_label(first.shot, first.n_support)}: "
                f"it lacks seed {listed(map(str, missing))}"
            )
        else:
            whole.append(sorted(group, key=lambda record: record.seed))
    return whole, notes


def _protocol(record: Record) -> str:
    return canonical_json([record.protocol, record.parameters])


def _result(group: Sequence[Record], several: bool) -> EvalResult:
    """One metric: the mean over the seeds of a group. `several`: other results have other preprocessing or dtype."""
    first = group[0]
    scores = [record.score for record in group]
    spread = round(statistics.stdev(scores), 6) if len(scores) > 1 else None
    mean = round(statistics.fmean(scores), 6)
    over = f", mean of {len(scores)} seeds ± {spread:.4f}" if spread is not None else ""
    how = f"{first.protocol}, {shot_label(first.shot, first.n_support)}, {first.protocol_label}, {first.representation}"
    how += f", {first.dtype}, {first.preprocessing}" if several else ""
    return EvalResult(
        task_type="image-classification",
        task_name="Image Classification",
        metric_type=first.metric,
        metric_value=mean,
        metric_name=f"{METRIC_TITLES.get(first.metric, first.metric)} ({how}{over})",
        metric_args={
            "unit": "fraction",
            "protocol": first.protocol,
            "parameters": first.parameters,
            "shots": first.shot or shot_label(0, first.n_support),
            "seeds": [record.seed for record in group],
            "standard_deviation": spread,
            "representation": first.representation,
            "preprocessing": first.preprocessing,
            "dtype": first.dtype,
            "train_split": first.splits.get("train", "train"),
            "predictions" if "episodes" in first.details else "test_images": first.n_test,
        },
        **_dataset(first),
    )


def _dataset(record: Record) -> dict[str, Any]:
    """Name, identifier, revision and split of a record's data; a repository and its commit only where the record names them.

    A task of the hub that was read from a folder of the user's own keeps its name, but is claimed to be no revision.
    """
    dataset = {"name": record.task, "type": slug(record.task), "split": record.splits.get("test", "test")}
    if record.task in task_files():
        with suppress(VitbenchError):
            _, _, spec = find_task(record.task)
            dataset["name"] = f"{spec.title} ({record.task})"
    if hub := _HUB_SOURCE.fullmatch(record.source):
        dataset |= {"type": hub["repo"], "revision": hub["commit"]}
    return {f"dataset_{field}": value for field, value in dataset.items()}


def _model_name(record: Record) -> str:
    """The last part of the model's name, as a card has it."""
    spec = parse_backbone_spec(record.backbone)
    return spec.name.rstrip("/").split("/")[-1] or spec.label
