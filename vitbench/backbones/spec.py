"""Backbone specs: `KIND:NAME[@REVISION][,key=value…]`, and representation names: `cls`, `gap@6`, `cls+gap`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

from vitbench.errors import UsageError, unknown

DTYPES = ("auto", "float32", "bfloat16", "float16")
POSITIONS = ("library", "jax")
OPTION_KEYS = ("resolution", "positions", "dtype", "preprocess", "checkpoint")
MODEL_PREFIX = "model."
COMMON_REPRESENTATIONS = ("cls", "gap", "pooler")
"""What every backbone names, if only to say why it lacks it."""


@dataclass(frozen=True)
class BackboneSpec:
    """A parsed backbone spec.

    Attributes:
        text: The spec as it was written.
        kind: The adapter's name (`timm`, `hf`, `jax`, `pixels`, …).
        name: What the adapter is to load: a model name, a hub id, a folder or a file; empty for `pixels`.
        revision: A branch, tag or commit of a hub model; empty for the default one.
        resolution: The side of the square input in pixels, or None for the model's own.
        dtype: One of `DTYPES`; `auto` is bfloat16 autocast on CUDA with native support, float32 elsewhere.
        preprocess: `auto` (the backbone's own), a preset's name, or a preprocessing string.
        checkpoint: A local weights file that takes the place of the pretrained ones; empty for none.
        model_options: The `model.KEY=VALUE` options, passed to the model's constructor (timm only), in order of key.
        positions: How a table of position embeddings is resized to `resolution`, one of `POSITIONS`: `library` as timm and
            transformers do (bicubic), `jax` as `vit_jax` does (bilinear, corners aligned). Empty: the adapter's own way.
        initialise: Build the model without reading any weights, to train it from scratch. Set by `load_backbone`, not by users.
    """

    text: str
    kind: str
    name: str = ""
    revision: str = ""
    resolution: int | None = None
    dtype: str = "auto"
    preprocess: str = "auto"
    checkpoint: str = ""
    model_options: tuple[tuple[str, str], ...] = field(default=())
    positions: str = ""
    initialise: bool = False

    @property
    def label(self) -> str:
        """The spec without options, paths cut to their last part: `timm:vit_tiny_patch16_224`, `jax:B_16.npz`."""
        is_path = self.name.startswith((".", "/", "~")) or self.kind == "jax" or self.name.startswith("local-dir:")
        name = PurePath(self.name).name if is_path else self.name
        return f"{self.kind}:{name}".rstrip(":") + (f"@{self.revision}" if self.revision else "")

    @property
    def long_label(self) -> str:
        """`label` with the options, paths cut to their last part."""
        options = [f"checkpoint={PurePath(self.checkpoint).name}"] if self.checkpoint else []
        options += [f"resolution={self.resolution}"] if self.resolution else []
        options += [f"positions={self.positions}"] if self.positions else []
        options += [f"{MODEL_PREFIX}{key}={value}" for key, value in self.model_options]
        return ",".join([self.label, *options])


def parse_backbone_spec(text: str) -> BackboneSpec:
    """Parse `KIND:NAME[@REVISION][,key=value…]`.

    Raises:
        UsageError: An unknown or repeated key, or a value that cannot be meant.
    """
    head, *options = _split_options(text.strip())
    kind, _, name = head.partition(":")
    if not kind:
        raise UsageError(
            f"backbone '{text}' has no kind: write KIND:NAME, for example timm:vit_base_patch16_224.augreg_in21k"
        )
    revision = ""
    if kind == "hf" and "@" in name:
        name, _, revision = name.rpartition("@")
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        key = key.strip()
        if not equals or not value:
            raise UsageError(f"backbone '{text}': option '{option}' is not of the form key=value")
        if key in values:
            raise UsageError(f"backbone '{text}': option '{key}' is given twice")
        if key not in OPTION_KEYS and not key.startswith(MODEL_PREFIX):
            raise unknown(f"option in backbone '{text}':", key, [*OPTION_KEYS, MODEL_PREFIX + "KEY"])
        values[key] = value.strip()
    dtype = values.get("dtype", "auto")
    if dtype not in DTYPES:
        raise unknown(f"dtype in backbone '{text}':", dtype, DTYPES)
    positions = values.get("positions", "")
    if positions and positions not in POSITIONS:
        raise unknown(f"positions in backbone '{text}':", positions, POSITIONS)
    return BackboneSpec(
        text=text.strip(),
        kind=kind,
        name=name,
        revision=revision,
        resolution=_parse_resolution(text, values.get("resolution")),
        dtype=dtype,
        preprocess=values.get("preprocess", "auto"),
        checkpoint=values.get("checkpoint", ""),
        positions=positions,
        model_options=tuple(
            sorted(
                (key.removeprefix(MODEL_PREFIX), value) for key, value in values.items() if key.startswith(MODEL_PREFIX)
            )
        ),
    )


def _split_options(text: str) -> list[str]:
    """Split at the commas that begin an option, so that a comma inside parentheses (a preprocessing string) stays."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _parse_resolution(text: str, value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or not 1 <= int(value) <= 8192:
        raise UsageError(f"backbone '{text}': resolution '{value}' is not a whole number of pixels from 1 to 8192")
    return int(value)


class Atom(NamedTuple):
    """One pooled vector of one layer, the unit in which features are stored.

    `layer` is None for the model's output; a number L means the output of block (or stage) L, passed through the model's final
    norm where its width allows, so that `cls@depth` equals `cls`. Layer 0 is the input of the first block.
    """

    pooling: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.pooling if self.layer is None else f"{self.pooling}@{self.layer}"


_ATOM = re.compile(r"([a-z][a-z0-9_]*)(?:@(-?\d+))?")


def parse_representation(name: str) -> tuple[Atom, ...]:
    """Parse a representation's name into the atoms that are concatenated to make it (`cls+gap@6` into two).

    Raises:
        UsageError: The name does not have the form `pooling[@layer][+pooling[@layer]…]`.
    """
    atoms = []
    for part in name.strip().split("+"):
        match = _ATOM.fullmatch(part)
        if match is None:
            raise UsageError(
                f"representation '{name}' cannot be read: write cls, gap, pooler, cls+gap, or a layer such as cls@6 or gap@-2"
            )
        atom = Atom(match[1], None if match[2] is None else int(match[2]))
        if atom in atoms:
            raise UsageError(f"representation '{name}' has '{atom}' twice")
        atoms.append(atom)
    return tuple(atoms)


def representation_name(atoms: tuple[Atom, ...]) -> str:
    """The canonical name of a tuple of atoms; the inverse of `parse_representation`."""
    return "+".join(map(str, atoms))
