"""Why two models' activations part: by trial where a difference can be undone, else by where the weights differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from vitbench.analysis.parity_activations import Activations, Difference
from vitbench.analysis.parity_configuration import FieldDifference
from vitbench.analysis.parity_weights import Weights
from vitbench.backbones.base import Backbone

_EMBEDDING = ("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre")
_AFTER = 1_000_000
_WHERE_IT_ACTS = {
    "gelu": "from the MLP of blocks.0 on",
    "eps": "from the first LayerNorm on",
    "position_resize": "at the input of the first block",
    "heads": "from the attention of blocks.0 on",
    "final_norm": "after the last block",
    "pooling": "after the last block",
}


_ALIGNABLE = ("gelu", "eps", "heads", "final_norm")
"""The fields whose effect is measured by making them equal, where that can be done."""


@dataclass(frozen=True)
class Trial:
    """What is left of the difference when some fields of the configuration are made equal in the loaded models.

    Attributes:
        fields: The fields, such as `gelu`, `eps`.
        remaining: The largest relative difference of any activation then.
    """

    fields: tuple[str, ...]
    remaining: float


class _Gelu(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "quick":
            return x * (1.702 * x).sigmoid()
        return functional.gelu(x, approximate="tanh" if self.kind == "tanh" else "none")


def run_trials(
    a: Backbone, b: Backbone, fields: Sequence[FieldDifference], compare: Callable[[], Activations]
) -> list[Trial]:
    """Undo each difference in GELU and in LayerNorm eps, alone and together, and compare again.

    Args:
        a: The reference; its activations are changed only where B's cannot be (JAX models compute GELU without a module).
        b: The other model.
        fields: What differs between them.
        compare: Compares the activations of the two models as they are.
    """
    aligners = {}
    for item in fields:
        if item.field == "gelu" and (aligner := _align_gelu(a, b, item)) is not None:
            aligners["gelu"] = aligner
        if item.field == "eps" and "," not in item.a + item.b:
            aligners["eps"] = _align_eps(b, float(item.a))
    trials = []
    for count in range(1, len(aligners) + 1):
        for chosen in combinations(aligners, count):
            with aligners[chosen[0]](), aligners[chosen[1]]() if count > 1 else nullcontext():
                trials.append(Trial(chosen, compare().worst))
    return trials


def _align_eps(backbone: Backbone, eps: float) -> Callable[[], Any]:
    @contextmanager
    def aligned() -> Iterator[None]:
        norms = [item for module in backbone.modules for item in module.modules() if isinstance(item, nn.LayerNorm)]
        before = [norm.eps for norm in norms]
        try:
            for norm in norms:
                norm.eps = eps
            yield
        finally:
            for norm, own in zip(norms, before, strict=True):
                norm.eps = own

    return aligned


def _align_gelu(a: Backbone, b: Backbone, item: FieldDifference) -> Callable[[], Any] | None:
    """Give B the GELU of A, or A that of B where B's is not a module; None where neither is."""
    for backbone, kind in ((b, item.a), (a, item.b)):
        places = _gelus(backbone)
        if places and kind in ("erf", "tanh", "quick"):
            return _swapped(places, kind)
    return None


def _gelus(backbone: Backbone) -> list[tuple[nn.Module, str]]:
    """Every GELU that is a module, as the module that holds it and its name there."""
    return [
        (parent, name)
        for module in backbone.modules
        for parent in module.modules()
        for name, child in parent.named_children()
        if "gelu" in type(child).__name__.lower()
    ]


def _swapped(places: list[tuple[nn.Module, str]], kind: str) -> Callable[[], Any]:
    @contextmanager
    def swapped() -> Iterator[None]:
        before = [getattr(parent, name) for parent, name in places]
        try:
            for parent, name in places:
                setattr(parent, name, _Gelu(kind))
            yield
        finally:
            for (parent, name), own in zip(places, before, strict=True):
                setattr(parent, name, own)

    return swapped


def likely_cause(
    weights: Weights,
    fields: Sequence[FieldDifference],
    activations: Activations | None,
    trials: Sequence[Trial],
    tolerance: float,
    vit: bool,
) -> list[str]:
    """Sentences that say where two models of one architecture part and why, the first cause along the way first.

    Args:
        weights: How the weights compare.
        fields: What else differs.
        activations: How the activations compare; None where they could not be.
        trials: See `run_trials`.
        tolerance: The relative difference from which on activations count as different.
        vit: Whether the tensors have the canonical names, which tell in which block they are.
    """
    computation = [item for item in fields if item.kind != "information" and item.field != "preprocessing"]
    first = activations.first_beyond(tolerance) if activations is not None else None
    lines = []
    if weights.resized is not None:
        lines.append(f"{weights.resized}; it acts at the input of the first block")
    if weights.changed:
        lines.append(_weights_line(weights, first, activations is not None, vit))
    for item in computation:
        where = _WHERE_IT_ACTS.get(item.field)
        lines += [f"{item.field} is {item.a} in A and {item.b} in B{f': it acts {where}' if where else ''}"]
    if activations is not None and trials:
        lines.append(_trial_line(trials, activations.worst))
    tried = {name for trial in trials for name in trial.fields}
    untried = [item.field for item in computation if item.field in _ALIGNABLE and item.field not in tried]
    if activations is not None and untried:
        lines.append(f"inferred, not measured: {', '.join(untried)} cannot be made equal in the loaded models")
    for lacking, parts in (("B", weights.only_a), ("A", weights.only_b)):
        if parts:
            lines.append(f"{lacking} lacks {', '.join(parts)}: no representation that needs it can be compared")
    if activations is not None and first is None and (lines or any(item.field == "preprocessing" for item in fields)):
        lines.append(f"on equal pixels no activation differs by more than the tolerance ({activations.worst:.1e})")
    if any(item.field == "preprocessing" for item in fields):
        lines.append("each prepares images in its own way: one image file gives them different pixels")
    return lines or ["nothing differs"]


def _weights_line(weights: Weights, first: Difference | None, compared: bool, vit: bool) -> str:
    start = _place(weights.first) if vit else _AFTER
    found = [f"{item.name} (by up to {item.largest:.1e})" for item in weights.different]
    if vit:
        found = [text for text, item in zip(found, weights.different, strict=True) if _place(item.name) == start]
        found += [item.name for item in weights.shapes if _place(item.name) == start]
    listed = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    where = _place_name(start) if vit else f"{weights.first}, in the order of the model; most in"
    line = f"weights differ first in {where}{':' if vit else ''} {listed}"
    if not compared:
        return line
    if first is None:
        return f"{line}, which moves no activation beyond the tolerance"
    layer = _layer(first)
    if not vit:
        return f"{line}; activations part at {first.name}"
    if layer == start:
        return f"{line}, and there the activations part"
    if layer > start:
        return f"{line}, and its effect passes the tolerance at {first.name}"
    return f"{line}; but the activations part earlier, at {first.name}"


def _trial_line(trials: Sequence[Trial], before: float) -> str:
    left = [
        f"with {' and '.join(trial.fields)} made equal {trial.remaining:.1e}" for trial in trials if trial.remaining
    ]
    left += [f"with {' and '.join(trial.fields)} made equal 0" for trial in trials if not trial.remaining]
    explained = "; nothing else moves anything" if trials[-1].remaining == 0 else ""
    return f"the largest relative difference is {before:.1e}; {', '.join(left)}{explained}"


def _place(name: str) -> int:
    """The layer whose output a tensor is the first to act on: 0 for the embedding, L for block L, `_AFTER` for what follows."""
    if match := re.match(r"blocks\.(\d+)\.", name):
        return int(match[1]) + 1
    return 0 if name.startswith(_EMBEDDING) else _AFTER


def _place_name(place: int) -> str:
    if place in (0, _AFTER):
        return "what follows the last block" if place else "the embedding"
    return f"blocks.{place - 1} (its output is layer @{place})"


def _layer(item: Difference) -> int:
    _, at, layer = item.name.partition("@")
    return int(layer) if at else _AFTER
