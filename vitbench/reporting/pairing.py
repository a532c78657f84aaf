"""Which measurements of two sides belong together: the same task, protocol, shot, support sets and test images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from vitbench.errors import UsageError, listed
from vitbench.reporting.hits import PAIRING_FIELDS
from vitbench.reporting.labels import ROW_FIELDS, shot_label
from vitbench.reporting.selection import backbone_label

CELL = ["task", "protocol", "metric", *PAIRING_FIELDS]
"""What two measurements must agree in to be compared, next to the parameters of the protocol."""

EXACT, ANY_SOLVER = "parameters", "options"
"""Parameters of the protocol, and the same without the version of the solver: an upgrade may bring another one."""

_REASONS = {
    "protocol": "another protocol",
    EXACT: "other parameters of the protocol",
    "metric": "another metric",
    "num_classes": "another number of classes",
    "train_fingerprint": "other train images, so other support sets",
    "test_fingerprint": "other test images",
    "limit": "another --limit, so other test images",
    "identity_version": "another scheme of identities",
}


@dataclass(frozen=True)
class Match:
    """One measurement of both sides.

    Attributes:
        subject: Which backbone or representation it is; empty where there is only one.
        a: The records of A, one per seed.
        b: The records of B.
        differs: Fields of the identity in which the two differ.
    """

    subject: str
    a: pd.DataFrame
    b: pd.DataFrame
    differs: tuple[str, ...]

    @property
    def task(self) -> str:
        """Full name."""
        return str(self.a["task"].iloc[0])

    @property
    def shot(self) -> int:
        """0 stands for all train images."""
        return int(self.a["shot"].iloc[0])

    @property
    def metric(self) -> str:
        """The task's own."""
        return str(self.a["metric"].iloc[0])

    @property
    def setting(self) -> str:
        """The protocol and its parameters, in words."""
        first = self.a.iloc[0]
        limit = "" if pd.isna(first["limit"]) else f" · LIMITED to {int(first['limit'])} test images"
        return f"{first['protocol']} · {first['protocol_label']}{limit}"

    @property
    def title(self) -> str:
        """What is measured, on one line."""
        return " · ".join(filter(None, (self.subject, self.task, shot_label(self.shot))))


@dataclass(frozen=True)
class Unmatched:
    """A measurement that cannot be compared.

    Attributes:
        subject: As in `Match`.
        task: Full name.
        shot: 0 stands for all train images.
        reason: Why.
    """

    subject: str
    task: str
    shot: int
    reason: str

    @property
    def text(self) -> str:
        """What, and why."""
        return " · ".join(filter(None, (self.subject, self.task, shot_label(self.shot)))) + f": {self.reason}"


@dataclass(frozen=True)
class _Measurement:
    """The records of one side that differ in nothing but their seed."""

    fields: Mapping[str, object]
    records: pd.DataFrame

    def key(self, names: Sequence[str]) -> tuple[object, ...]:
        return tuple(self.fields[name] for name in names)

    def differs(self, other: _Measurement, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.fields[name] != other.fields[name]]


@dataclass(frozen=True)
class _Rule:
    """How measurements of two sides find each other.

    Attributes:
        steps: Fields of the backbone that must agree, from the most to the fewest.
        subject: The field that says what is compared.
        expected: Fields that are meant to differ, and are not told.
    """

    steps: Sequence[Sequence[str]]
    subject: str
    expected: Sequence[str] = ()


def match_backbones(a: pd.DataFrame, b: pd.DataFrame, *, named: bool = False) -> tuple[list[Match], list[Unmatched]]:
    """Pair the measurements of two backbones.

    Args:
        a: The records of A (`selection.match_backbone`).
        b: The records of B.
        named: Each side is of the one representation that the user named, so that they need not be the same.

    Returns:
        What belongs together, and what does not. Where a backbone was measured with several preprocessings or dtypes, those that
        both have go together.

    Raises:
        UsageError: They have no representation in common, and several each.
    """
    one, other = (sorted(side["representation"].unique()) for side in (a, b))
    free = named or len(one) == len(other) == 1
    if not free and not set(one) & set(other):
        raise UsageError(
            f"A and B have no representation in common (A: {', '.join(one)}; B: {', '.join(other)}): say which to compare by "
            f"writing /{one[0]} behind A and /{other[0]} behind B"
        )
    same = [] if free else ["representation"]
    steps = [[*same, "preprocessing", "dtype"], [*same, "dtype"], same]
    told = ("dtype",) if free else ("dtype", "representation")
    return _matched(a, b, _Rule(steps, "representation", [name for name in ROW_FIELDS if name not in told]))


def match_folders(a: pd.DataFrame, b: pd.DataFrame) -> tuple[list[Match], list[Unmatched]]:
    """Pair the measurements of two result folders.

    What has the same identity goes together first; then the same spec with the same preprocessing, dtype and representation,
    however its weights changed; then the same spec and representation; then the same label, which is the spec without folders.
    What differs in a pair is told.
    """
    steps = [
        ROW_FIELDS,
        ["backbone", "preprocessing", "dtype", "representation"],
        ["backbone", "representation"],
        ["label", "preprocessing", "dtype", "representation"],
        ["label", "representation"],
    ]
    return _matched(a, b, _Rule(steps, "row"))


def without_aliases(matches: Sequence[Match]) -> list[Match]:
    """The matches but for those of a representation that equals another one, by construction, which is there itself."""
    there = {_place(match, str(match.a["representation"].iloc[0])) for match in matches}
    return [match for match in matches if _place(match, match.a["alias_of"].iloc[0]) not in there]


def _place(match: Match, representation: object) -> tuple[object, ...]:
    first = match.a.iloc[0]
    return (
        match.task,
        match.setting,
        match.shot,
        first["backbone"],
        first["preprocessing"],
        first["dtype"],
        representation,
    )


def _told_apart(matches: Sequence[Match]) -> list[Match]:
    """Subjects that name one measurement each: those of a backbone with several dtypes, preprocessings or weights say which."""
    found = list(matches)
    for field in ("dtype", "preprocessing", "weights"):
        seen = Counter((match.subject, match.setting, match.shot, match.task) for match in found)
        doubtful = {key[0] for key, count in seen.items() if count > 1}
        found = [
            replace(match, subject=" ".join(filter(None, (match.subject, str(match.a[field].iloc[0])[:60]))))
            if match.subject in doubtful
            else match
            for match in found
        ]
    return found


def _matched(a: pd.DataFrame, b: pd.DataFrame, rule: _Rule) -> tuple[list[Match], list[Unmatched]]:
    """Pair in steps, from what has most in common to what has least; a step pairs only what has one partner."""
    every = _measurements(a), _measurements(b)
    one, other = list(every[0]), list(every[1])
    matches = []
    for step in rule.steps:
        for parameters in (EXACT, ANY_SOLVER):
            keys = [*step, *CELL, parameters]
            left, right = _by_key(one, keys), _by_key(other, keys)
            pairs = [(left[key][0], right[key][0]) for key in left if len(left[key]) == len(right.get(key, ())) == 1]
            matches += [_match(here, there, rule) for here, there in pairs]
            paired = {id(part) for pair in pairs for part in pair}
            one, other = ([part for part in side if id(part) not in paired] for side in (one, other))
    lonely = [_unmatched(part, every[1], other, "A", rule) for part in one]
    lonely += [_unmatched(part, every[0], one, "B", rule) for part in other]
    return (
        sorted(
            _told_apart(matches),
            key=lambda match: (match.subject, match.setting, match.shot == 0, match.shot, match.task),
        ),
        # What both sides say of each other is told once.
        sorted(dict.fromkeys(lonely), key=lambda entry: (entry.reason, entry.subject, entry.task, entry.shot)),
    )


def _measurements(records: pd.DataFrame) -> list[_Measurement]:
    keys = [*ROW_FIELDS, *CELL, EXACT]
    found = []
    for _, group in records.groupby(keys, dropna=False, sort=False):
        first = group.iloc[0]
        fields = {name: first[name] for name in [*keys, "backbone"]}
        label = backbone_label(str(first["backbone"]))
        fields |= {
            # NaN equals nothing, not even itself.
            "limit": None if pd.isna(first["limit"]) else int(first["limit"]),
            ANY_SOLVER: re.sub(r"(^|, )solver=[^,]*", "", str(first[EXACT])),
            "label": label,
            "row": f"{label} · {first['representation']}",
        }
        found.append(_Measurement(fields, group))
    return found


def _by_key(side: Iterable[_Measurement], names: Sequence[str]) -> dict[tuple[object, ...], list[_Measurement]]:
    found: dict[tuple[object, ...], list[_Measurement]] = {}
    for part in side:
        found.setdefault(part.key(names), []).append(part)
    return found


def _match(here: _Measurement, there: _Measurement, rule: _Rule) -> Match:
    names = [str(part.fields[rule.subject]) for part in (here, there)]
    differs = [name for name in here.differs(there, [*ROW_FIELDS, EXACT]) if name not in rule.expected]
    return Match(" → ".join(dict.fromkeys(names)), here.records, there.records, tuple(differs))


def _unmatched(
    part: _Measurement, others: Sequence[_Measurement], free: Sequence[_Measurement], side: str, rule: _Rule
) -> Unmatched:
    """Why a measurement of one side has no partner among those of the other, of which some are still free."""
    subject, task, shot = (part.fields[name] for name in (rule.subject, "task", "shot"))

    def because(reason: str) -> Unmatched:
        return Unmatched(str(subject), str(task), int(str(shot)), reason)

    alike = [other for other in others if not part.differs(other, [*rule.steps[-1], "task", "shot"])]
    if not alike:
        return because(f"only in {side}")
    nearest = min(alike, key=lambda other: len(part.differs(other, _REASONS)))
    if reasons := [_REASONS[name] for name in part.differs(nearest, _REASONS)]:
        return because(" and ".join(reasons))
    telling = [name for name in rule.steps[0] if name not in rule.steps[-1]]
    rows = listed(sorted({name for other in alike for name in part.differs(other, telling)}), most=9)
    if any(nearest is other for other in free):
        return because(f"several records would fit, which differ in {rows}")
    return because(f"only in {side} with its {rows}")
