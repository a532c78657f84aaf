"""Whether checkpoints are one model: weights, configuration, activations, scores, and a verdict in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Literal

from vitbench.analysis.base import Images
from vitbench.analysis.parity_activations import (
    Activations,
    Pixels,
    compare_activations,
    noise_pixels,
    own_cosines,
    pixel_difference,
    pixels_of_images,
)
from vitbench.analysis.parity_cause import Trial, likely_cause, run_trials
from vitbench.analysis.parity_configuration import (
    Description,
    FieldDifference,
    architecture_difference,
    compare_fields,
    compare_representations,
    describe,
)
from vitbench.analysis.parity_scores import Score, Scoring, check_scoring, score_pair
from vitbench.analysis.parity_weights import (
    POSITIONS,
    ResizedPositions,
    Weights,
    compare_weights,
    find_round_trip,
    stored_grids,
)
from vitbench.backbones import BACKBONES
from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone
from vitbench.backbones.vit_names import canonical_weights
from vitbench.errors import UsageError, VitbenchError

TOLERANCE = 1e-5

Outcome = Literal["identical", "configuration", "weights", "architecture"]


@dataclass(frozen=True)
class Preparation:
    """What comes of each model's own preprocessing of the same images.

    Attributes:
        mean: Mean absolute difference of the models' inputs, in units of A's input; None where their sizes differ.
        largest: Largest absolute difference of the same.
        cosines: Smallest cosine over images, per final representation.
    """

    mean: float | None
    largest: float | None
    cosines: Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """A model compared with the reference.

    Attributes:
        a: The reference's spec.
        b: The other's spec.
        outcome: What the verdict says, as a word.
        verdict: The verdict line.
        weights: The weights; None for two architectures.
        fields: What else differs, that which changes no feature included.
        activations: The activations on the same pixels; None where they could not be had.
        note: Why not; else empty.
        first: The first activation that differs beyond the tolerance; empty where none does.
        trials: What is left when differences are undone.
        preparation: What preprocessing makes of the images; None without images, or where it is the same.
        causes: Why they differ, in words.
        scores: Scores on tasks.
        unscored: What could not be scored, a line each.
    """

    a: str
    b: str
    outcome: Outcome
    verdict: str
    weights: Weights | None = None
    fields: Sequence[FieldDifference] = ()
    activations: Activations | None = None
    note: str = ""
    first: str = ""
    trials: Sequence[Trial] = ()
    preparation: Preparation | None = None
    causes: Sequence[str] = ()
    scores: Sequence[Score] = ()
    unscored: Sequence[str] = ()


def parity(
    specs: Sequence[str],
    images: Images | None = None,
    *,
    source: str = "",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    device: str = "cpu",
    scoring: Scoring | None = None,
) -> list[Pair]:
    """Compare every model with the first one.

    Activations are computed in float32 unless a spec says otherwise: in half precision everything differs.

    Args:
        specs: Two or more backbone specs; the first is the reference.
        images: What goes through the models; a seeded batch of noise if None.
        source: Where the images are from, for the report.
        tolerance: The relative difference beyond which activations count as different.
        seed: Seed of the noise.
        device: Where the models are run.
        scoring: Tasks on which both are scored by the few-shot protocol.

    Raises:
        UsageError: Fewer than two specs, or models that have nothing in common by which to compare them.
        VitbenchError: A model or an image cannot be loaded.
    """
    if len(specs) < 2:
        raise UsageError("parity compares models: give two specs or more, the reference first")
    if not 0 < tolerance < 1:
        raise UsageError(f"the tolerance is a relative difference between 0 and 1, got {tolerance:g}")
    if scoring is not None:
        check_scoring(scoring)
    a = _load(specs[0], device)
    of_a = describe(a)
    pixels = noise_pixels(a, seed) if images is None else pixels_of_images(images, a, source)
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for spec in specs[1:]:
            pair = _compare(a, of_a, _load(spec, device), pixels, images, tolerance)
            if scoring is not None:
                scores, unscored = score_pair(specs[0], spec, scoring, scoring.out or Path(folder), device)
                pair = replace(pair, scores=scores, unscored=unscored)
            pairs.append(pair)
    return pairs


def _load(spec: str, device: str) -> Backbone:
    backbone = load_backbone(spec, device=device)
    return backbone.to(backbone.device, "float32") if backbone.spec.dtype == "auto" else backbone


def _compare(
    a: Backbone, of_a: Description, b: Backbone, pixels: Pixels, images: Images | None, tolerance: float
) -> Pair:
    of_b = describe(b)
    fields, accounts = compare_fields(of_a, of_b), compare_representations(a, b)
    weights = _explain_positions(compare_weights(of_a.weights, of_b.weights), a, b)
    equal = not (weights.changed or weights.only_a or weights.only_b)
    apart = architecture_difference(of_a, of_b, fields, equal)
    if apart is not None:
        verdict = f"different architectures ({apart})"
        return Pair(a.spec.text, b.spec.text, "architecture", verdict, fields=[*fields, *accounts])
    vit = of_a.vit and of_b.vit
    prefix = (int(of_a.fields["prefix_tokens"]), int(of_b.fields["prefix_tokens"])) if vit else None
    activations, note, trials = None, "", []
    try:
        activations = compare_activations(a, b, pixels, prefix)
        trials = run_trials(a, b, fields, lambda: compare_activations(a, b, pixels, prefix))
    except UsageError as error:
        note = str(error)
    first = activations.first_beyond(tolerance) if activations is not None else None
    outcome, verdict = judge(weights, fields)
    return Pair(
        a=a.spec.text,
        b=b.spec.text,
        outcome=outcome,
        verdict=verdict,
        weights=weights,
        fields=[*fields, *accounts],
        activations=activations,
        note=note,
        first=first.name if first is not None else "",
        trials=trials,
        preparation=_preparation(a, b, of_a, of_b, images),
        causes=likely_cause(weights, fields, activations, trials, tolerance, vit),
    )


def judge(weights: Weights, fields: Sequence[FieldDifference]) -> tuple[Outcome, str]:
    """The verdict on two models of one architecture.

    A part that one model lacks (a pooler) and a position embedding that is the other's, resized, are differences of
    configuration: what both have is equal.
    """
    if weights.changed:
        count = len(weights.changed)
        return "weights", f"different weights ({count} tensor{'s' if count > 1 else ''})"
    parts = [*weights.only_a, *weights.only_b]
    implied = {"pooling"} if parts else set()
    names = [item.field for item in fields if item.kind != "information"]
    if weights.resized is not None:
        implied |= {"image_size"}
        names.insert(sum(name in ("gelu", "eps", "heads") for name in names), "resized position embedding")
    names = [name for name in names if name not in implied]
    cut = names.index("preprocessing") if "preprocessing" in names else len(names)
    names[cut:cut] = parts
    if names:
        return "configuration", f"same weights, different configuration ({', '.join(names)})"
    return "identical", "identical"


def _explain_positions(weights: Weights, a: Backbone, b: Backbone) -> Weights:
    """Position embeddings of one size that differ may still be one table, resized on the way.

    Either a checkpoint holds the other's table at another size, which its library resized back at load: its notes say from which
    size. Or two libraries resized one table at load in two ways: the models are loaded once more at the sizes that they were made
    for, and their tables compared.
    """
    if POSITIONS not in {item.name for item in weights.different}:
        return weights
    tables = [canonical_weights(backbone)[POSITIONS] for backbone in (a, b)]
    for backbone, other, table in ((b, tables[0], tables[1]), (a, tables[1], tables[0])):
        for grid in stored_grids(backbone.provenance_notes):
            if (how := find_round_trip(other, table, grid)) is not None:
                own = isqrt(table.shape[1])
                sizes = (own, grid) if backbone is b else (grid, own)
                return _without_positions(weights, a, ResizedPositions(*sizes, how[0], how[1]))
    if a.spec.resolution is None and b.spec.resolution is None:
        return weights
    try:
        one, other = (canonical_weights(_natively(backbone))[POSITIONS] for backbone in (a, b))
    except VitbenchError:
        return weights
    if one.shape != other.shape or not bool((one == other).all()):
        return weights
    left = next(item.largest for item in weights.different if item.name == POSITIONS)
    grid, own = isqrt(tables[0].shape[1]), isqrt(one.shape[1])
    return _without_positions(
        weights, a, ResizedPositions(grid, grid, f"both from one table of {own}x{own}, in two ways", left)
    )


def _without_positions(weights: Weights, a: Backbone, resized: ResizedPositions) -> Weights:
    """The weights with the difference of the position embeddings explained."""
    others = {name for name in weights.changed if name != POSITIONS}
    return replace(
        weights,
        different=[item for item in weights.different if item.name != POSITIONS],
        first=next((name for name in canonical_weights(a) if name in others), ""),
        resized=resized,
    )


def _natively(backbone: Backbone) -> Backbone:
    spec = replace(backbone.spec, resolution=None)
    loaded: Backbone = BACKBONES.load(spec.kind)(spec)
    return loaded


def _preparation(
    a: Backbone, b: Backbone, of_a: Description, of_b: Description, images: Images | None
) -> Preparation | None:
    if images is None or of_a.fields["preprocessing"] == of_b.fields["preprocessing"]:
        return None
    mean = largest = None
    if a.input_size == b.input_size:
        mean, largest = pixel_difference(a, b, images)
    return Preparation(mean, largest, own_cosines(a, b, images))
