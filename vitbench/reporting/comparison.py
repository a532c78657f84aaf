"""Two backbones, or two result folders, compared on the same support sets and the same test images.

A comparison is paired or it is not made: what one side has and the other lacks, or was measured on other data, is listed with
the reason. Which measurements belong together is in `pairing`; what is said of them is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vitbench.errors import DataError, StoreError, UsageError
from vitbench.records.predictions import Predictions, read_predictions
from vitbench.reporting import statistics
from vitbench.reporting.hits import Hits, hits, shared_seeds
from vitbench.reporting.labels import shot_label
from vitbench.reporting.leaderboard import match_tasks
from vitbench.reporting.pairing import Match, Unmatched, match_backbones, match_folders, without_aliases
from vitbench.reporting.selection import Filters, Measured, match_backbone, read_measured
from vitbench.reporting.statistics import Comparison, Interval

SIGNIFICANCE = 0.05
ROUNDING = 1e-9
"""In points: a drop of exactly the tolerance is within it, whatever binary fractions make of it."""


@dataclass(frozen=True)
class Adjusted:
    """p-values after Holm's correction for the number of pairs, each kind by itself; NaN before it."""

    difference: float = float("nan")
    bootstrap: float = float("nan")
    mcnemar: float = float("nan")


@dataclass(frozen=True)
class Pair:
    """One measurement of both sides: one task at one shot, over the seeds that both have.

    Attributes:
        subject: Which backbone or representation this is, where there are several; what both sides have in common.
        task: Full name.
        setting: The protocol and its parameters, in words.
        shot: 0 stands for all train images.
        metric: The task's own metric, which `a` and `b` are values of.
        a: Score of A, a fraction, mean over the seeds.
        b: Score of B.
        difference: B - A in that metric, over seeds and test images at once.
        bootstrap: p-value of the paired bootstrap over seeds and test images.
        mcnemar: p-value of McNemar's tests of every seed, together.
        seeds: Those that both sides have.
        identical: Whether every prediction is equal.
        differs: Fields of the identity in which the two differ.
        adjusted: The three p-values, adjusted for all pairs of the comparison.
    """

    subject: str
    task: str
    setting: str
    shot: int
    metric: str
    a: float
    b: float
    difference: Comparison
    bootstrap: float
    mcnemar: float
    seeds: tuple[int, ...]
    identical: bool
    differs: tuple[str, ...]
    adjusted: Adjusted = Adjusted()

    @property
    def verdict(self) -> str:
        """`identical`, `tie` (the interval holds 0), `better` or `worse` (B than A)."""
        if self.identical:
            return "identical"
        if self.difference.interval.contains(0.0):
            return "tie"
        return "better" if self.points > 0 else "worse"

    @property
    def p_value(self) -> float:
        """Of `difference`, adjusted: what a drop is judged by."""
        return self.adjusted.difference

    @property
    def points(self) -> float:
        """B - A in percentage points."""
        return 100 * self.difference.difference


@dataclass(frozen=True)
class Mean:
    """The mean of B - A over several tasks, those of one subject, setting and shot.

    Attributes:
        subject: As in `Pair`.
        setting: As in `Pair`.
        shot: As in `Pair`.
        pairs: The tasks.
        difference: The mean over these very tasks.
        p_value: Its p-value, adjusted for all means of the comparison.
    """

    subject: str
    setting: str
    shot: int
    pairs: tuple[Pair, ...]
    difference: Comparison
    p_value: float

    @property
    def points(self) -> float:
        """The mean of B - A in percentage points."""
        return 100 * self.difference.difference

    def count(self, *verdicts: str) -> int:
        """How many tasks have one of these verdicts."""
        return sum(pair.verdict in verdicts for pair in self.pairs)


@dataclass(frozen=True)
class Compared:
    """The outcome of a comparison.

    Attributes:
        a: What A is, for a reader.
        b: What B is.
        pairs: In order of subject, setting, shot and task.
        means: One for each subject, setting and shot with several tasks.
        unmatched: What could not be paired, with the reason.
        problems: What is broken (damaged predictions, contradictory records), a line each.
        notes: What a reader must know, a line each.
    """

    a: str
    b: str
    pairs: tuple[Pair, ...]
    means: tuple[Mean, ...]
    unmatched: tuple[Unmatched, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def identical(self) -> bool:
        """Whether every prediction of every pair is equal."""
        return all(pair.identical for pair in self.pairs)


def compare_backbones(measured: Measured, a: str, b: str, filters: Filters | None = None) -> Compared:
    """Compare two backbones that have records in one folder.

    Args:
        measured: The folder's records.
        a: A spec as it was written or a label, with `/REPRESENTATION` behind it where one is meant.
        b: The same.
        filters: Which records.

    Raises:
        UsageError: A name means no backbone or several, or nothing can be compared.
    """
    filters = filters or Filters()
    measured.check()
    tasks = match_tasks(filters.tasks, measured.records)
    sides, named = [], []
    for name, asked in (("A", a), ("B", b)):
        records, representation = match_backbone(asked, measured.records, side=name)
        sides.append(filters.of(records, tasks, name))
        named.append(representation is not None)
    matches, unmatched = match_backbones(*sides, named=all(named))
    return compare(a, b, matches, unmatched, measured.problems)


def compare_folders(a: Path, b: Path, filters: Filters | None = None) -> Compared:
    """Compare two result folders, such as those of two versions of one model or of one library.

    Args:
        a: An output folder.
        b: Another one.
        filters: Which records.

    Raises:
        UsageError: A folder holds no results, or nothing can be compared.
    """
    filters = filters or Filters()
    measured = [read_measured(folder) for folder in (a, b)]
    for side in measured:
        side.check()
    tasks = match_tasks(filters.tasks, pd.concat([side.records for side in measured]))
    sides = [filters.of(side.records, tasks, name) for side, name in zip(measured, "AB", strict=True)]
    matches, unmatched = match_folders(*sides)
    problems = [f"{name}: {line}" for side, name in zip(measured, "AB", strict=True) for line in side.problems]
    return compare(str(a), str(b), matches, unmatched, problems)


def compare(
    a: str, b: str, matches: Sequence[Match], unmatched: Sequence[Unmatched] = (), problems: Sequence[str] = ()
) -> Compared:
    """Compare what belongs together.

    Args:
        a: What A is, for a reader.
        b: What B is.
        matches: What belongs together (`pairing.match`).
        unmatched: What does not.
        problems: What is broken already.

    Raises:
        UsageError: Nothing can be compared; the reasons are told.
    """
    pairs, lonely, broken, notes = [], list(unmatched), list(problems), []
    for match in without_aliases(matches):
        try:
            pairs.append(_pair(match))
        except StoreError as error:
            broken.append(f"{match.title}: {error}")
        except (UsageError, DataError) as error:
            lonely.append(Unmatched(match.subject, match.task, match.shot, str(error)))
        else:
            notes += [f"{match.title}: {text}" for text in _left_out(match, pairs[-1].seeds)]
    if not pairs:
        reasons = [*broken, *(entry.text for entry in lonely)]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise UsageError(f"nothing of A and B can be compared: {reasons[0] if reasons else 'no records'}{more}")
    adjusted = _adjusted(pairs)
    return Compared(a, b, adjusted, _means(adjusted), tuple(lonely), tuple(broken), tuple(notes))


def drops(compared: Compared, tolerance: float, strict: bool = False) -> list[str]:
    """Where B is worse than A, a line each; none when B may take A's place.

    A drop counts when the difference of a task, or the mean difference over several tasks, is below -tolerance and its adjusted
    p-value is below 0.05; with `strict` whether it is significant or not.

    Args:
        compared: The comparison.
        tolerance: In percentage points, 0 or more.
        strict: Count drops that may be chance, too.
    """
    found = []
    for mean in compared.means:
        if _dropped(mean.points, mean.p_value, tolerance, strict):
            name = f"mean of {len(mean.pairs)} tasks"
            found.append(_drop(_place(mean.subject, name, mean.shot), mean.difference.interval, mean.p_value))
    for pair in compared.pairs:
        if not pair.identical and _dropped(pair.points, pair.p_value, tolerance, strict):
            place = _place(pair.subject, pair.task, pair.shot)
            found.append(_drop(place, pair.difference.interval, pair.p_value))
    return found


def _dropped(points: float, p_value: float, tolerance: float, strict: bool) -> bool:
    return points < -tolerance - ROUNDING and (strict or p_value < SIGNIFICANCE)


def _drop(place: str, interval: Interval, p_value: float) -> str:
    return f"{place}: {points_text(interval)} points, p {p_text(p_value, equals='= ')}"


def _place(subject: str, task: str, shot: int) -> str:
    return " · ".join(filter(None, (subject, task, shot_label(shot))))


def points_text(interval: Interval) -> str:
    """`-1.23 [-1.80, -0.66]`, in percentage points."""
    low, high = (f"{100 * value:+.2f}" for value in (interval.low, interval.high))
    return f"{100 * interval.estimate:+.2f} [{low}, {high}]"


def p_text(value: float, equals: str = "") -> str:
    """`0.031`; `< 0.001` for what is smaller."""
    return "< 0.001" if value < 0.001 else f"{equals}{value:.3f}"


def _pair(match: Match) -> Pair:
    """Compare one measurement of both sides.

    Raises:
        StoreError: Predictions are missing or damaged, or are not those of their record.
        UsageError: The two cannot be paired; the text is the reason.
        DataError: There is a single test image.
    """
    one, other, seeds = shared_seeds(_hits(match.a), _hits(match.b))
    if not seeds:
        raise UsageError("no seed that both sides have")
    said = [(_predictions(match.a, seed), _predictions(match.b, seed)) for seed in seeds]
    if not all(np.array_equal(x.row, y.row) and np.array_equal(x.label, y.label) for x, y in said):
        raise UsageError("the predictions are of other rows or labels of the test split")
    # Right or wrong comes from the predictions: the values of a mean over classes may be above 0 for a wrong one.
    tests = [statistics.mcnemar(y.hits, x.hits) for x, y in said]
    return Pair(
        subject=match.subject,
        task=match.task,
        setting=match.setting,
        shot=match.shot,
        metric=match.metric,
        a=float(one.mean()),
        b=float(other.mean()),
        difference=statistics.paired_difference(other, one),
        bootstrap=statistics.paired_bootstrap(other, one).p_value,
        mcnemar=together([test.p_value for test in tests]),
        seeds=seeds,
        identical=all(np.array_equal(x.prediction, y.prediction) for x, y in said),
        differs=match.differs,
    )


def _hits(records: pd.DataFrame) -> Hits:
    """The hits of one side, once it is known that they give the records' scores."""
    found = hits(records, records["path"].tolist())
    if found.unit == statistics.EPISODES:
        raise UsageError(
            "episodes score an image several times, and compare pairs single predictions of images: "
            "vitbench ablate pairs episodes, of two representations of one backbone"
        )
    for seed, score in zip(found.seeds, found.values.mean(axis=1), strict=True):
        record = records[records["seed"] == seed].iloc[0]
        if abs(score - record["score"]) > 1e-6:
            raise StoreError(
                f"the predictions beside {record['path']} give {100 * score:.2f} %, but the record says "
                f"{100 * record['score']:.2f} %: run its command again with --on-existing rerun"
            )
    return found


def _predictions(records: pd.DataFrame, seed: int) -> Predictions:
    return read_predictions(records["path"][records["seed"] == seed].item())


def together(p_values: Sequence[float]) -> float:
    """One p-value of several that may depend on each other, as those of seeds on the same test images do: twice their median.

    For p-values that are each valid, P(at least half of S are ≤ α/2) ≤ α whatever their dependence: the expected number of
    those is at most S·α/2, and by Markov's inequality it reaches S/2 with probability at most α (Rüger 1978). The median that
    is taken of an even number is the larger of the middle two, so that at least half of them lie at or below it.
    """
    ordered = sorted(p_values)
    if len(ordered) == 1:
        return ordered[0]
    return min(1.0, 2 * ordered[len(ordered) // 2])


def _left_out(match: Match, seeds: Sequence[int]) -> Iterator[str]:
    for name, records in (("A", match.a), ("B", match.b)):
        if rest := sorted(set(records["seed"]) - set(seeds)):
            several = "s" if len(rest) > 1 else ""
            yield f"seed{several} {', '.join(map(str, rest))} only in {name}: left out"


def _adjusted(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs with p-values adjusted for all comparisons; pairs of equal predictions ask nothing, and count as none."""
    asked = [pair for pair in pairs if not pair.identical]
    raw = [[pair.difference.p_value, pair.bootstrap, pair.mcnemar] for pair in asked]
    columns = [statistics.adjust(column, method="holm") for column in zip(*raw, strict=True)]
    values = iter(zip(*columns, strict=True))
    return tuple(
        replace(pair, adjusted=Adjusted(*((1.0,) * 3 if pair.identical else map(float, next(values)))))
        for pair in pairs
    )


def _means(pairs: Sequence[Pair]) -> tuple[Mean, ...]:
    groups: dict[tuple[str, str, int], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.subject, pair.setting, pair.shot), []).append(pair)
    several = {key: members for key, members in groups.items() if len(members) > 1}
    found = [statistics.mean_over_tasks([pair.difference for pair in members]) for members in several.values()]
    values = statistics.adjust([one.p_value for one in found], method="holm")
    return tuple(
        Mean(*key, pairs=tuple(members), difference=difference, p_value=float(value))
        for (key, members), difference, value in zip(several.items(), found, values, strict=True)
    )
