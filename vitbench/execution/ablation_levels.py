"""What an ablation can vary: the axes, their levels on a backbone, and the level that others are compared with."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from torch import nn

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import COMMON_REPRESENTATIONS, DTYPES, parse_representation
from vitbench.errors import RepresentationError, UsageError, unknown
from vitbench.execution.config import RunConfig
from vitbench.features.load import load_backbone
from vitbench.hub import offline
from vitbench.protocols.closed_form import GRID
from vitbench.protocols.options import penalty, whole_number
from vitbench.solvers.ridge import PAPER_L2
from vitbench.tasks import transforms

AXES = {
    "representation": "every trained one, such as cls, gap and pooler",
    "layer": "every layer of cls, or of gap where there is no cls; layer=gap chooses the pooling",
    "l2": "30 powers of two, and the leave-one-out choice",
    "resolution": "the backbone's own side, two smaller and two larger ones, by multiples of its patch",
    "preprocess": "auto, bigvision_fewshot, vit_jax, vtab",
    "dtype": "float32, bfloat16",
    "shots": "1, 5, 10, 25",
}
"""What can be varied, and the levels that are taken when none is named."""

LOO = "loo"
_FIXED_LEVELS = {
    "preprocess": ("auto", "bigvision_fewshot", "vit_jax", "vtab"),
    "dtype": ("float32", "bfloat16"),
    "shots": ("1", "5", "10", "25"),
}
_COARSEST_STRIDE = 32


@dataclass(frozen=True)
class Axis:
    """One thing that is varied.

    Attributes:
        name: One of `AXES`.
        values: The levels as they were given, brought to one spelling; empty for the usual ones.
    """

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lacking:
    """A level without records.

    Attributes:
        provenance: `absent` or `untrained` for a representation that the model lacks; `failed` for what could not be run.
        reason: Why, in one line.
    """

    provenance: str
    reason: str


@dataclass
class Subject:
    """A backbone and its levels.

    Attributes:
        backbone: Its spec, as it was given.
        levels: Axis to its levels, in order; those that lack records are among them.
        usual: Axis to the level that others are compared with when nothing is said.
        reference: The level that others are compared with, on the axis that is compared; None when this backbone lacks it.
        lacking: (axis, level) to why there are no records.
    """

    backbone: str
    levels: dict[str, tuple[str, ...]]
    usual: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    lacking: dict[tuple[str, str], Lacking] = field(default_factory=dict)

    def measurable(self, axis: str) -> list[str]:
        """The levels of an axis that can be run."""
        return [level for level in self.levels[axis] if (axis, level) not in self.lacking]


def parse_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Read what is to be varied: each text is `NAME` or `NAME=v1,v2`.

    Raises:
        UsageError: A name or value cannot be meant, one comes twice, or two of them choose the same thing.
    """
    axes: list[Axis] = []
    for text in texts:
        name, equals, given = (part.strip() for part in text.partition("="))
        if name not in AXES:
            raise unknown("--over", name, AXES)
        # A comma inside parentheses belongs to a preprocessing string.
        parts = [part.strip() for part in re.split(r",(?![^(]*\))", given) if part.strip()]
        if equals and not parts:
            raise UsageError(f"--over {name}= names no value: give some, or leave the = away for the usual ones")
        values = tuple(_value(name, part) for part in parts)
        if twice := [value for value in values if values.count(value) > 1]:
            raise UsageError(f"--over {name} has {twice[0]} twice")
        if name in [axis.name for axis in axes]:
            raise UsageError(f"--over {name} is given twice: put its values into one list, {name}=v1,v2")
        axes.append(Axis(name, values))
    names = [axis.name for axis in axes]
    if not names:
        raise unknown("--over", "", AXES)
    if {"representation", "layer"} <= set(names):
        raise UsageError(
            "--over representation and --over layer choose the same thing: layer=cls,gap takes all layers of both"
        )
    return tuple(axes)


def _value(axis: str, text: str) -> str:
    """One level in its one spelling.

    Raises:
        UsageError: It cannot be meant.
    """
    if axis == "representation" or (axis == "layer" and not re.fullmatch(r"-?\d+", text)):
        parse_representation(text)
    elif axis == "l2" and text != LOO:
        text = l2_level(PAPER_L2 if text == "paper" else penalty("l2", text, "'paper', 'loo' or "))
    elif axis in ("resolution", "shots"):
        text = str(whole_number(axis, text, least=1, most=8192 if axis == "resolution" else 2**31 - 1))
    elif axis == "preprocess":
        transforms.check(text)
    elif axis == "dtype" and text not in DTYPES:
        raise unknown("dtype", text, DTYPES)
    return text


def l2_level(l2: float) -> str:
    """A penalty as a level: the shortest text that means exactly it."""
    return str(int(l2)) if l2.is_integer() and l2 < 2**53 else repr(l2)


def subject_of(spec: str, config: RunConfig, axes: Sequence[Axis]) -> Subject:
    """Load a backbone to learn its levels, and let it go."""
    with offline() if config.offline else nullcontext():
        backbone = load_backbone(spec, device=config.device, allow_untrained=config.allow_untrained)
    subject = Subject(spec, {})
    for axis in axes:
        levels = list(_names(backbone, axis) if axis.name in ("representation", "layer") else _plain(backbone, axis))
        subject.levels[axis.name] = tuple(dict.fromkeys(level for level, _ in levels))
        subject.lacking |= {(axis.name, level): why for level, why in levels if why is not None}
        if usable := subject.measurable(axis.name):
            subject.usual[axis.name] = _usual(backbone, axis, usable)
    del backbone
    gc.collect()
    return subject


def _plain(backbone: Backbone, axis: Axis) -> Iterator[tuple[str, None]]:
    levels = axis.values or _FIXED_LEVELS.get(axis.name, ())
    if axis.name == "resolution" and not axis.values:
        levels = tuple(map(str, _resolutions(backbone)))
    elif axis.name == "l2":
        levels = axis.values or tuple(map(l2_level, GRID))
        levels = levels if LOO in levels else (*levels, LOO)
    for level in levels:
        yield level, None


def _resolutions(backbone: Backbone) -> list[int]:
    """Two smaller and two larger sides, a seventh of the grid apart, whole numbers of patches; the own one among them."""
    side = backbone.input_size[0]
    convolutions = (module for root in backbone.modules for module in root.modules() if isinstance(module, nn.Conv2d))
    stride = next((module.stride[0] for module in convolutions if module.in_channels == 3), 8)
    # A stem's small stride says nothing about how often a hierarchical network halves its grid after it.
    patch = stride if stride >= 8 or side <= 64 else _COARSEST_STRIDE
    step = patch * max(1, side // patch // 7)
    return [side + number * step for number in (-2, -1, 0, 1, 2) if side + number * step >= patch]


def _names(backbone: Backbone, axis: Axis) -> Iterator[tuple[str, Lacking | None]]:
    """The representations that an axis means on a backbone, and why it lacks those that it lacks."""
    if backbone.is_floor and axis.name == "representation":
        yield from ((name, None) for name in backbone.available())
        for name in set(axis.values) - set(backbone.available()):
            known = all(atom.pooling in COMMON_REPRESENTATIONS for atom in parse_representation(name))
            reason = f"the floor has no tokens, only {', '.join(backbone.available())}"
            yield name, Lacking("absent" if known else "unknown", reason)
        return
    for name in axis.values or backbone.representations if axis.name == "representation" else _layers(backbone, axis):
        try:
            yield backbone.canonical(name), None
        except RepresentationError as error:
            yield name, Lacking(*_why(backbone, name, str(error)))


def _layers(backbone: Backbone, axis: Axis) -> Iterator[str]:
    usable = [name for name in backbone.layer_poolings if backbone.representations[name].provenance == "trained"]
    if not backbone.depth or not usable:
        raise RepresentationError(f"backbone '{backbone.spec.text}' has no layers to vary")
    default = next((name for name in ("cls", "gap") if name in usable), usable[0])
    for value in axis.values or (default,):
        if re.fullmatch(r"-?\d+", value):
            yield f"{default}@{value}"
        elif "@" in value:
            yield value
        else:
            yield from (f"{value}@{layer}" for layer in range(backbone.first_layer, backbone.depth + 1))


def _why(backbone: Backbone, name: str, message: str) -> tuple[str, str]:
    for atom in parse_representation(name):
        item = backbone.representations.get(atom.pooling)
        if item is not None and item.provenance != "trained":
            reason = item.reason
            if item.provenance == "untrained":
                reason += "; --allow-untrained scores it all the same, marked as untrained"
            return item.provenance, reason
    return "unknown", message


def refuse_unknown(subjects: Sequence[Subject]) -> None:
    """Refuse a level that no backbone knows; one that some backbone knows is listed for the others."""
    known = {(axis, level) for subject in subjects for axis in subject.levels for level in subject.measurable(axis)}
    for subject in subjects:
        for place, why in subject.lacking.items():
            if why.provenance == "unknown" and place not in known:
                raise RepresentationError(why.reason)


def set_references(subjects: Sequence[Subject], axes: Sequence[Axis], asked: str | None) -> str:
    """Give every subject its reference; the axis that is compared."""
    by_name = {axis.name: axis for axis in axes}
    # Support sets of other shots are other images: nothing can be paired along that axis, so it is compared last.
    compared = next((name for name in by_name if name != "shots"), "shots")
    if asked is not None:
        spelled = {name: _spelled(name, asked) for name in by_name}
        levels = {name: [level for subject in subjects for level in subject.levels[name]] for name in by_name}
        having = [name for name in by_name if spelled[name] in levels[name]]
        if not having:
            raise unknown("--reference", asked, {level for found in levels.values() for level in found})
        compared, asked = having[0], spelled[having[0]]
        if not any(asked in subject.measurable(compared) for subject in subjects):
            reason = next(
                why.reason for subject in subjects for place, why in subject.lacking.items() if place[1] == asked
            )
            raise UsageError(f"--reference {asked} has no records to compare with: {reason}")
    for subject in subjects:
        subject.reference = subject.usual.get(compared)
        if asked is not None:
            subject.reference = asked if asked in subject.measurable(compared) else None
    return compared


def _spelled(axis: str, text: str) -> str:
    try:
        return _value(axis, text)
    except UsageError:
        return text


def _usual(backbone: Backbone, axis: Axis, levels: Sequence[str]) -> str:
    """The reference when none is asked for: the first level that was named, else what most people have without thinking.

    That is the paper's penalty, the own side, the first of the others; of a pooling whose layers were not named, the last layer.
    """
    named = axis.values[0] if axis.values else ""
    if axis.name == "layer" and not re.search(r"\d", named):
        pooling = named or levels[0].split("@")[0]
        return next((level for level in reversed(levels) if level.split("@")[0] == pooling), levels[-1])
    if axis.name == "l2" and not named:
        return l2_level(PAPER_L2)
    if axis.name == "resolution" and not named:
        return str(backbone.input_size[0])
    return levels[0]
