"""A comparison of models as tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitbench.analysis.parity import Pair
from vitbench.analysis.parity_activations import Activations
from vitbench.analysis.parity_weights import Weights

WORST = 5


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        heading: What it is about.
        rows: A table, if any.
        lines: Lines of text after it.
    """

    heading: str
    rows: Sequence[Mapping[str, str]] = ()
    lines: Sequence[str] = ()


def sections(pair: Pair, tolerance: float) -> list[Section]:
    """The report on a pair, the verdict last."""
    found = [Section("models", lines=[f"A  {pair.a}", f"B  {pair.b}"])]
    if pair.weights is not None:
        found.append(_weights_section(pair.weights))
    if pair.fields:
        rows = [
            {"field": item.field, "A": item.a, "B": item.b, "": "no effect here" if item.kind == "information" else ""}
            for item in pair.fields
        ]
        found.append(Section("configuration", rows))
    if pair.activations is not None:
        found.append(_layers_section(pair.activations, pair.first, tolerance))
        found.append(_finals_section(pair.activations))
    elif pair.note:
        found.append(Section("activations", lines=[f"not compared: {pair.note}"]))
    if pair.preparation is not None:
        found.append(_preparation_section(pair))
    if pair.scores or pair.unscored:
        found.append(_scores_section(pair))
    if pair.causes:
        found.append(Section("likely cause", lines=pair.causes))
    return [*found, Section("verdict", lines=[pair.verdict])]


def as_dict(pairs: Sequence[Pair], tolerance: float) -> dict[str, Any]:
    """The whole report for JSON; a number that is infinite or no number is None."""
    return {"reference": pairs[0].a, "tolerance": tolerance, "pairs": [_plain(_with_ratios(pair)) for pair in pairs]}


def _with_ratios(pair: Pair) -> dict[str, Any]:
    record = asdict(pair)
    if pair.activations is not None:
        for part in ("layers", "finals"):
            for entry, item in zip(record["activations"][part], getattr(pair.activations, part), strict=True):
                entry["relative"] = item.relative
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _weights_section(weights: Weights) -> Section:
    lines = [f"{weights.compared} tensors in both, {weights.equal} of them equal in every bit"]
    if weights.resized is not None:
        lines.append(str(weights.resized))
    lines += [f"{item.name} is {list(item.a)} in A and {list(item.b)} in B" for item in weights.shapes[:WORST]]
    for owner, parts in (("A", weights.only_a), ("B", weights.only_b)):
        if parts:
            lines.append(f"only in {owner}: " + ", ".join(f"{part} ({_count(n)})" for part, n in parts.items()))
    notes = {item.note for item in weights.different}
    if len(notes) == 1 and "" not in notes and len(weights.different) > 1:
        lines.append(f"of every tensor that differs: {notes.pop()}")
    if len(weights.different) > WORST:
        lines.append(f"{len(weights.different)} differ; the worst {WORST} are shown")
    rows = [
        {
            "tensor": item.name,
            "largest difference": _number(item.largest),
            "relative": _number(item.relative),
            "": item.note,
        }
        for item in weights.different[:WORST]
    ]
    return Section("weights", rows, lines)


def _layers_section(activations: Activations, first: str, tolerance: float) -> Section:
    rows = [
        {
            "layer": item.name,
            "output of": _place(item.name),
            "largest difference": _number(item.largest),
            "relative": _number(item.relative),
            "": "first beyond the tolerance" if item.name == first else "",
        }
        for item in activations.layers
    ]
    part = (
        f"first beyond {tolerance:g}: {first}"
        if first
        else f"no activation differs by more than {tolerance:g} of its scale"
    )
    return Section(f"activations on {activations.pixels}", rows, [part])


def _place(name: str) -> str:
    if not name.startswith("@"):
        layer = name.partition("@")[2]
        return f"stage {layer}" if int(layer) else "stem"
    return f"blocks.{int(name[1:]) - 1}" if int(name[1:]) else "embedding"


def _finals_section(activations: Activations) -> Section:
    rows = [
        {
            "representation": item.name,
            "largest difference": _number(item.largest),
            "relative": _number(item.relative),
            "smallest cosine": f"{item.cosine:.8f}",
        }
        for item in activations.finals
    ]
    return Section("final representations", rows, [] if rows else ["the models have none in common"])


def _preparation_section(pair: Pair) -> Section:
    prepared = pair.preparation
    assert prepared is not None
    lines = ["the models' inputs differ in size"]
    if prepared.mean is not None and prepared.largest is not None:
        lines = [f"the models' inputs differ by {prepared.mean:.3g} on average and {prepared.largest:.3g} at most"]
    rows = [{"representation": name, "smallest cosine": f"{value:.6f}"} for name, value in prepared.cosines.items()]
    return Section("each with its own preprocessing of the images", rows, lines)


def _scores_section(pair: Pair) -> Section:
    rows = [
        {
            "task": item.task,
            "representation": item.representation,
            "shots": str(item.shot),
            "A": f"{100 * item.a:.2f} %",
            "B": f"{100 * item.b:.2f} %",
            "B - A": f"{100 * (item.b - item.a):+.2f}",
        }
        for item in pair.scores
    ]
    return Section("few-shot accuracy, each with its own preprocessing", rows, pair.unscored)


def _number(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _count(number: int) -> str:
    return f"{number} tensor{'s' if number > 1 else ''}"
