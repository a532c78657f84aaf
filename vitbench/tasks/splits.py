"""Splits as values: `train`, `train[:800]`, `train[90%:]`, `train[:800]+validation[:200]`.

An expression is terms joined by `+`; a term is the name of a split with or without a slice, whose ends are rows or whole
percentages of that split. As in TFDS, a percentage is rounded to the nearest row (`round(size * percent / 100)`, half to even),
so that `[:90%]` and `[90%:]` share no row and leave none out.

Some splits of a task are stored (files, a folder, a draw), others are expressions of these. A `RowSet` is what either comes to:
which stored split each row is taken from, and which row of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitbench.errors import DataError, UsageError, unknown

IntArray = npt.NDArray[np.int64]

_TERM = re.compile(r"(?P<name>\w+)\s*(\[\s*(?P<start>\d{1,12}%?)?\s*:\s*(?P<stop>\d{1,12}%?)?\s*\])?")
EXAMPLE = "train[:800]+validation[:200]"


@dataclass(frozen=True)
class Bound:
    """One end of a slice: a row, or a percentage of the split."""

    value: int
    percent: bool = False

    def row(self, size: int) -> int:
        """The row that it is in a split of `size` rows."""
        return round(size * self.value / 100) if self.percent else self.value

    def __str__(self) -> str:
        return f"{self.value}{'%' if self.percent else ''}"


@dataclass(frozen=True)
class Term:
    """One term of an expression: a split, or a slice of it."""

    name: str
    start: Bound | None = None
    stop: Bound | None = None

    def __str__(self) -> str:
        whole = self.start is None and self.stop is None
        return self.name if whole else f"{self.name}[{self.start or ''}:{self.stop or ''}]"


@dataclass(frozen=True, order=True)
class Segment:
    """Neighbouring rows of a stored split: from `start` to before `stop`."""

    base: str
    start: int
    stop: int


@dataclass(frozen=True)
class RowSet:
    """Rows of stored splits, in order, as runs of neighbouring rows."""

    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return sum(part.stop - part.start for part in self.segments)

    def slice(self, start: int, stop: int) -> RowSet:
        """The rows from number `start` to before number `stop`."""
        parts, passed = [], 0
        for part in self.segments:
            first, last = max(start - passed, 0), min(stop - passed, part.stop - part.start)
            if first < last:
                parts.append(Segment(part.base, part.start + first, part.start + last))
            passed += part.stop - part.start
        return RowSet(tuple(parts))

    def take(self, rows: Sequence[int]) -> RowSet:
        """The rows with these numbers, in their order."""
        bases, numbers = self.rows()
        parts: list[Segment] = []
        for row in rows:
            base, number = bases[row], int(numbers[row])
            if parts and parts[-1].base == base and parts[-1].stop == number:
                parts[-1] = Segment(base, parts[-1].start, number + 1)
            else:
                parts.append(Segment(base, number, number + 1))
        return RowSet(tuple(parts))

    def rows(self) -> tuple[list[str], IntArray]:
        """The stored split of every row, and `[N]` int64, its row there."""
        bases = [part.base for part in self.segments for _ in range(part.start, part.stop)]
        numbers = [np.arange(part.start, part.stop, dtype=np.int64) for part in self.segments]
        return bases, np.concatenate(numbers) if numbers else np.empty(0, np.int64)

    def shared(self, other: RowSet) -> tuple[int, str, int]:
        """How many rows two sets, neither of which repeats a row, share; and the stored split and row of the first of them."""
        mine, theirs = sorted(self.segments), sorted(other.segments)
        count, first = 0, ("", 0)
        while mine and theirs:
            part, other_part = mine[-1], theirs[-1]
            start, stop = max(part.start, other_part.start), min(part.stop, other_part.stop)
            if part.base == other_part.base and start < stop:
                count, first = count + stop - start, (part.base, start)
            # From the back: whichever begins later cannot meet anything before it.
            if (part.base, part.start) >= (other_part.base, other_part.start):
                mine.pop()
            else:
                theirs.pop()
        return count, *first

    @property
    def repeats(self) -> bool:
        """Whether a row comes twice."""
        ordered = sorted(self.segments)
        return any(one.base == two.base and two.start < one.stop for one, two in itertools.pairwise(ordered))


def whole(name: str, size: int) -> RowSet:
    """Every row of a stored split."""
    return RowSet((Segment(name, 0, size),))


def parse(expression: str) -> tuple[Term, ...]:
    """Read an expression.

    Raises:
        UsageError: It is none, or a slice runs backwards or beyond 100 %.
    """
    terms = []
    for text in expression.split("+"):
        match = _TERM.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"the split '{expression}' cannot be read at '{text.strip()}': write it like {EXAMPLE}")
        start, stop = _bound(match["start"]), _bound(match["stop"])
        for bound in (start, stop):
            if bound is not None and bound.percent and bound.value > 100:
                raise UsageError(f"the split '{expression}' asks for {bound}: a percentage is at most 100%")
        if start is not None and stop is not None and start.percent == stop.percent and start.value >= stop.value:
            raise UsageError(f"the slice '{text.strip()}' is empty: it ends where it begins, or before")
        terms.append(Term(match["name"], start, stop))
    return tuple(terms)


def _bound(text: str | None) -> Bound | None:
    return None if text is None else Bound(int(text.rstrip("%")), text.endswith("%"))


def resolve(
    expression: str,
    selections: Mapping[str, str],
    stored: Callable[[str], RowSet | None],
    narrow: Callable[[str, RowSet], RowSet] = lambda name, rows: rows,
) -> RowSet:
    """The rows that an expression means.

    Args:
        expression: A split's name or an expression.
        selections: Name to expression, of the splits that are expressions themselves.
        stored: Name to every row of a split that is no selection; None when there is no split of that name.
        narrow: Name of a selection and the rows of its expression to the rows that it has: those of its index file.

    Raises:
        UsageError: The expression cannot be read, or names a split that is not there or is made of itself.
        DataError: A slice reaches outside its split, or a row would come twice.
    """

    def rows(text: str, above: tuple[str, ...]) -> RowSet:
        segments: list[Segment] = []
        for term in parse(text):
            if term.name in above:
                raise UsageError(f"the split '{term.name}' is made of itself: {' of '.join((*above, term.name))}")
            if term.name in selections:
                found: RowSet | None = narrow(term.name, rows(selections[term.name], (*above, term.name)))
            else:
                found = stored(term.name)
            if found is None:
                raise unknown("split", term.name, selections)
            segments += _sliced(found, term).segments
        return RowSet(tuple(segments))

    found = rows(expression, ())
    if found.repeats:
        raise DataError(f"the split '{expression}' takes some rows twice")
    return found


def _sliced(rows: RowSet, term: Term) -> RowSet:
    start = term.start.row(len(rows)) if term.start else 0
    stop = term.stop.row(len(rows)) if term.stop else len(rows)
    if start >= stop and start <= len(rows):
        raise DataError(f"the slice '{term}' takes none of the {len(rows):,} rows of split '{term.name}'")
    if start >= stop or stop > len(rows):
        raise DataError(f"the slice '{term}' lies outside the {len(rows):,} rows of split '{term.name}'")
    return rows.slice(start, stop)
