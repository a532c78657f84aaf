"""Regression guards: the ratios that were kept of a good run, and which of a later run's have fallen behind them.

`bench/guards.json` holds them, with the processor on which they were measured: on another one they say nothing, and are not
looked at. A ratio has fallen when it is worse than the kept one by more than a third, which is above what repeated runs on a
shared machine differ by and below what a lost optimisation costs. Goals are another matter: a row can be within its goal and
have fallen, or miss its goal as it always has. A row that says whether numbers are right (`held`) is held to its goal instead, on
every machine and whatever was kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("guards.json")
SLACK = 4 / 3

Ratios = dict[str, dict[str, float]]


def ratios(found: Mapping[str, Mapping[str, Any]]) -> Ratios:
    """Bench to claim to ratio, of what benches have written."""
    return {
        name: {item["claim"]: item["ratio"] for item in bench["rows"]}
        for name, bench in found.items()
        if "rows" in bench
    }


def text(kept: Ratios, processor: str) -> str:
    """The content of the file."""
    rounded = {name: {claim: float(f"{ratio:.3g}") for claim, ratio in claims.items()} for name, claims in kept.items()}
    return json.dumps({"processor": processor, "ratios": rounded}, indent=2, ensure_ascii=False) + "\n"


def read(processor: str, path: Path = FILE) -> Ratios | None:
    """The kept ratios; None where there are none, or they are another processor's."""
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    found: Ratios = content["ratios"]
    return found if content["processor"] == processor else None


def wrong(found: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> list[str]:
    """A line for every row about right numbers that misses its goal. Arguments as `fallen`."""
    return [
        f"{name}: {item['claim']}: {item['ratio']:.3g}, which must be {item['goal']}"
        for name in names
        for item in found[name].get("rows", ())
        if item.get("held") and not item["met"]
    ]


def fallen(found: Mapping[str, Mapping[str, Any]], kept: Ratios, names: Collection[str]) -> list[str]:
    """A line for every kept ratio that has fallen, or is measured no more.

    Args:
        found: Bench to its `rows`, or to the `problem` that kept it from having any, which is no matter of this function.
        kept: The kept ratios.
        names: The benches that were run.
    """
    lines = []
    for name in names:
        if "rows" not in found[name]:
            continue
        rows = {item["claim"]: item for item in found[name]["rows"]}
        for claim, before in kept.get(name, {}).items():
            if claim not in rows:
                lines.append(f"{name}: no row says any more: {claim}")
                continue
            if rows[claim].get("held"):
                continue
            now, at_most = rows[claim]["ratio"], rows[claim]["goal"].startswith("≤")
            # Written so that a NaN has fallen.
            if not (now <= before * SLACK if at_most else now >= before / SLACK):
                lines.append(f"{name}: {claim}: {now:.3g}, where {before:.3g} was kept")
    return lines
