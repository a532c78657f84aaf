"""How far the numbers can be trusted: an interval for every measurement, and paired differences between representations.

Predictions are read once, a backbone and a task at a time, and let go again: all of them at once would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vitbench.errors import VitbenchError
from vitbench.reporting.hits import Hits, hits, shared_seeds
from vitbench.reporting.labels import DATA_FIELDS
from vitbench.reporting.statistics import Comparison, Interval, adjust, combined_interval, paired_difference, t_interval

FIRST_CHOICES = ("cls", "gap")
"""What the other representations of a backbone are compared with: the first of these that it has."""

_SAME_BUT_REPRESENTATION = [
    *["architecture", "weights", "preprocessing", "dtype"],
    *["task", *DATA_FIELDS, "protocol", "parameters", "limit", "shot"],
]


@dataclass(frozen=True)
class Ablation:
    """One representation against another of the same backbone, on the same support sets and test images.

    Attributes:
        cell: The measurement of the representation.
        reference_cell: That of the reference.
        comparison: The paired difference, a fraction.
        adjusted: Its p-value, corrected for the number of comparisons of the same protocol and shot.
    """

    cell: int
    reference_cell: int
    comparison: Comparison
    adjusted: float = float("nan")

    @property
    def verdict(self) -> int:
        """1 for better than the reference, -1 for worse, 0 where that cannot be told."""
        return int(np.sign(self.comparison.difference)) if self.adjusted < 0.05 else 0


@dataclass(frozen=True)
class Evidence:
    """What the predictions tell beyond the scores.

    Attributes:
        intervals: Number of a measurement to the interval of its score, a fraction.
        ablations: Every representation against the reference of its backbone, task by task.
        problems: Number of a measurement to why nothing can be said of it.
    """

    intervals: Mapping[int, Interval]
    ablations: Sequence[Ablation]
    problems: Mapping[int, str]


def weigh(records: pd.DataFrame) -> Evidence:
    """Read the predictions of all records, and weigh what they say.

    Args:
        records: Of a `Collection`.
    """
    intervals: dict[int, Interval] = {}
    problems: dict[int, str] = {}
    ablations: list[Ablation] = []
    for _, alike in records.groupby(_SAME_BUT_REPRESENTATION, dropna=False, sort=False):
        known: dict[str, tuple[int, Hits]] = {}
        for _, seeds in alike.groupby("cell", sort=False):
            cell, representation = int(seeds["cell"].iloc[0]), str(seeds["representation"].iloc[0])
            try:
                found = _own_hits(seeds)
                intervals[cell] = combined_interval(found.values, unit=found.unit)
                known[representation] = cell, found
            except VitbenchError as error:
                problems[cell] = str(error)
                scores = seeds["score"].to_numpy(dtype=np.float64)
                if len(scores) > 1 and np.isfinite(scores).all():
                    intervals[cell] = t_interval(scores)
        aliases = alike.drop_duplicates("representation").set_index("representation")["alias_of"]
        ablations += _against_reference(known, aliases)
    return Evidence(intervals, list(_adjusted(ablations, records)), problems)


def _own_hits(seeds: pd.DataFrame) -> Hits:
    """The hits of one measurement, once they are known to be those that its scores were computed from."""
    found = hits(seeds, seeds["path"].tolist())
    scores = seeds.sort_values("seed", kind="stable")["score"].to_numpy(dtype=np.float64)
    if not np.allclose(found.values.mean(axis=1), scores, rtol=0, atol=1e-6):
        raise VitbenchError("the predictions are not those that the scores were computed from: run the command again")
    return found


def _against_reference(known: Mapping[str, tuple[int, Hits]], aliases: pd.Series) -> Iterator[Ablation]:
    reference = next((name for name in (*FIRST_CHOICES, *known) if name in known), None)
    if reference is None:
        return
    against, base = known[reference]
    for name, (cell, own) in known.items():
        if name == reference or aliases[name] == reference or aliases[reference] == name:
            continue
        one, other, seeds = shared_seeds(own, base)
        if seeds and one.shape == other.shape:
            yield Ablation(cell, against, paired_difference(one, other, unit=own.unit))


def _adjusted(ablations: Sequence[Ablation], records: pd.DataFrame) -> Iterator[Ablation]:
    """Correct the p-values within each family: the comparisons that a reader sees beside each other."""
    family = records.groupby(["protocol", "parameters", "limit", "shot"], dropna=False).ngroup()
    of_cell = dict(zip(records["cell"], family, strict=True))
    for wanted in sorted({of_cell[ablation.cell] for ablation in ablations}):
        members = [ablation for ablation in ablations if of_cell[ablation.cell] == wanted]
        corrected = adjust([ablation.comparison.p_value for ablation in members])
        for ablation, p_value in zip(members, corrected, strict=True):
            yield replace(ablation, adjusted=float(p_value))
