"""Several protocols in one table: what tells their rows apart, and what a reader must know of them.

A row is a backbone, a representation and a setting: a protocol with one set of parameters at one shot. Every number is of one
setting; none is a mean over two.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from vitbench.errors import listed
from vitbench.reporting.labels import ROW_LABELS, SETTING, setting_title, shot_label

SUBJECT = "protocols side by side"

_NAMED, _TOLD, _LONGEST = 3, 6, 32
_ABSENT = "—"


def with_settings(records: pd.DataFrame) -> pd.DataFrame:
    """Add `setting`: protocol, label and shot, and what parameters differ in where the label is the same.

    Args:
        records: Rows of `load_results`.
    """
    how = ["protocol", "parameters"]
    label = records.groupby(how)["protocol_label"].transform("first")
    for _, same in records.groupby([records["protocol"], label.copy()], sort=False):
        label.loc[same.index] += same["parameters"].map(_apart(sorted(set(same["parameters"]))))
    texts = map(setting_title, label, map(shot_label, records["shot"], records["n_support"]))
    return records.assign(setting=records["protocol"] + " · " + pd.Series(list(texts), index=records.index))


def differences(records: pd.DataFrame) -> list[str]:
    """What the settings of a table differ in, a line each.

    Args:
        records: Labelled records with `setting`.
    """
    return [
        "each row is one protocol with one set of parameters at one shot: no number is a mean over two of them",
        *_learned(records),
        *_parameters(records),
    ]


def _learned(records: pd.DataFrame) -> Iterator[str]:
    parts = []
    for protocol, same in records.groupby("protocol"):
        low, high = same["n_support"].min(), same["n_support"].max()
        images = (f"{low:,} images" if low == high else f"{low:,} to {high:,} images") if high else "no image"
        counts = same.groupby([*ROW_LABELS, SETTING, "column"])["seed"].nunique()
        seeds = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        parts.append(f"{protocol} {images}, {seeds} seed{'' if counts.max() == 1 else 's'}")
    yield f"learned from: {'; '.join(parts)}"


def _parameters(records: pd.DataFrame) -> Iterator[str]:
    for protocol, same in records.groupby("protocol"):
        values = _differing(sorted(set(same["parameters"])))
        parts = [f"{name} ({listed(map(_short, sorted(set(found), key=_in_order)))})" for name, found in values.items()]
        if parts:
            yield f"rows of {protocol} differ in {listed(parts, most=_TOLD)}"


def _apart(texts: Sequence[str]) -> dict[str, str]:
    """What is added to a label for each of the parameters that it stands for: nothing where there is one."""
    values = _differing(texts)
    # What can be said in a few characters says it; a long list of values would not.
    names = sorted(values, key=lambda name: max(map(len, values[name])) > _LONGEST)[:_NAMED]
    parts = [[f"{name} {_short(values[name][place])}" for name in names] for place in range(len(texts))]
    told = [f" · {', '.join(part)}" if part else "" for part in parts]
    if len(set(told)) == len(texts):
        return dict(zip(texts, told, strict=True))
    return {
        text: f"{part} #{hashlib.sha256(text.encode()).hexdigest()[:6]}" for text, part in zip(texts, told, strict=True)
    }


def _differing(texts: Sequence[str]) -> dict[str, list[str]]:
    """The parameters whose values are not the same in all texts: name to the value in each.

    A parameter of a parameter has its last name where no other one is called so: `steps` for `recipe.steps`.
    """
    found = [_values(text) for text in texts]
    names = dict.fromkeys(name for values in found for name in values)
    values = {name: [one.get(name, _ABSENT) for one in found] for name in names}
    differ = {name: of_each for name, of_each in values.items() if len(set(of_each)) > 1}
    lasts = [name.rpartition(".")[2] for name in differ]
    shown = [last if lasts.count(last) == 1 else name for name, last in zip(differ, lasts, strict=True)]
    return dict(zip(shown, differ.values(), strict=True))


def _values(text: str) -> dict[str, str]:
    """The parameters as `load_results` writes them, `l2=loo, recipe={'steps': 500}`, as `l2` and `recipe.steps`."""
    found: dict[str, str] = {}
    for part in re.split(r", (?=\w+=)", text):
        name, _, value = part.partition("=")
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed = value
        found |= dict(_leaves(name, parsed))
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, f"{value:g}" if isinstance(value, float) else str(value)


def _in_order(text: str) -> tuple[float, str]:
    """Numbers by size, then everything else."""
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
