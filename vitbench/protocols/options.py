"""Options of protocols, as a command line, a YAML file or Python gives them: brought to their types, or refused in one line."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vitbench.errors import UsageError, unknown

L2_RANGE = (1e-30, 1e30)
MOST_SEEDS = 10_000

_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def known_options(protocol: str, options: Iterable[str], names: Sequence[str], hint: str = "") -> None:
    """Refuse an option that the protocol does not have.

    Raises:
        UsageError: There is one; the nearest names are offered.
    """
    for name in options:
        if name not in names:
            raise unknown(f"option of protocol '{protocol}':", str(name), names, hint=hint)


def items(option: str, value: Any) -> list[Any]:
    """The items of a list, of a text with commas, or the one value.

    Raises:
        UsageError: There is none.
    """
    if isinstance(value, str):
        found: list[Any] = [part.strip() for part in value.split(",") if part.strip()]
    else:
        found = list(value) if isinstance(value, Iterable) else [value]
    if not found:
        raise UsageError(f"protocol option: {option} is empty; give at least one")
    return found


def distinct(option: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """The values as a tuple.

    Raises:
        UsageError: One comes twice.
    """
    found = tuple(values)
    if len(set(found)) < len(found):
        raise UsageError(f"protocol option: {option} has a value twice: {', '.join(map(str, found))}")
    return found


def switch(option: str, value: Any) -> bool:
    """A yes or no, given as a bool or as text.

    Raises:
        UsageError: It is neither.
    """
    found = value if isinstance(value, bool) else _SWITCH.get(str(value).strip().lower())
    if found is None:
        raise UsageError(f"protocol option: {option} must be true or false, got {value!r}")
    return found


def seed_items(value: Any) -> list[Any]:
    """The seeds; a plain whole number is how many, at most 10,000."""
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        value = range(whole_number("the number of seeds", value, least=1, most=MOST_SEEDS))
    return items("seeds", value)


def whole_number(option: str, value: Any, least: int, most: int = 2**31 - 1) -> int:
    """A whole number from `least` to `most`, given as a number or as text.

    Raises:
        UsageError: It is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        number = least - 1
    if not least <= number <= most:
        bound = f" to {most}" if number > most else ""
        raise UsageError(f"protocol option: {option} must be whole numbers from {least}{bound}, got {value!r}")
    return number


def penalty(option: str, value: Any, others: str = "") -> float:
    """A penalty λ: a positive number, given as a number or as text.

    Args:
        option: Its name.
        value: What was given.
        others: What else the option takes, for the message: `"'paper', 'loo' or "`.

    Raises:
        UsageError: It is none, or so far from 1 that float64 cannot solve with it.
    """
    low, high = L2_RANGE
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise UsageError(
            f"protocol option: {option} must be {others}a number above 0 (from {low:g} to {high:g}), got {value!r}"
        )
    return number
