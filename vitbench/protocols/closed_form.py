"""What the protocols with a closed-form solution share: how the penalty is found, the checks of their data, the fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitbench.errors import DataError, unknown
from vitbench.features.featureset import CHUNK_ROWS, FeatureSet, IntArray, LazyRepresentations
from vitbench.protocols.base import Cell, Outcome
from vitbench.protocols.metrics import RANKED
from vitbench.protocols.options import distinct, items, penalty
from vitbench.solvers import ridge
from vitbench.solvers.leave_one_out import Choice, Criterion, generalised
from vitbench.solvers.moments import Moments
from vitbench.solvers.single_precision import select

Rule = Literal["paper", "loo", "gcv", "validation"] | float

GRID = tuple(2.0**power for power in range(-9, 21))
"""The penalties to choose from: 30 powers of two, big_vision's 1024 among them."""

CRITERIA: tuple[Criterion, ...] = ("squared_error", "accuracy")

HELD = 1 << 23
"""Test features (rows times dimension) up to which they are held, because each cell, or episode, asks for some: 32 MiB."""

_LARGEST_FEATURE = 1e150


def penalty_fields(protocol: str, rules: Sequence[str], l2: Any, criterion: Any, grid: Any) -> dict[str, Any]:
    """The fields that say how the penalty is found, each brought to its type.

    Args:
        protocol: The protocol's name, for messages.
        rules: The words that `l2` may be in place of a number.
        l2: A rule or a number.
        criterion: What leave-one-out compares.
        grid: The penalties to choose from; they come back in increasing order.

    Raises:
        UsageError: A value that cannot be meant.
    """
    if criterion not in CRITERIA:
        raise unknown(f"criterion of protocol '{protocol}':", str(criterion), CRITERIA)
    others = f"{', '.join(map(repr, rules))} or "
    return {
        "l2": l2 if isinstance(l2, str) and l2 in rules else penalty("l2", l2, others),
        "criterion": criterion,
        "grid": distinct("grid", sorted(penalty("grid", item) for item in items("grid", grid))),
    }


def penalty_parameters(l2: Rule, criterion: Criterion, grid: Sequence[float]) -> dict[str, Any]:
    """What of them can change a score, for the identity; `"paper"` and 1024 are the same score, and so the same parameters."""
    solver = {"bias": ridge.BIAS, "epsilon": ridge.EPSILON, "solver": ridge.SOLVER_VERSION}
    if l2 == "loo":
        return {"l2": l2, "criterion": criterion, "grid": list(grid), **solver}
    if l2 == "validation":
        return {"l2": l2, "criterion": "accuracy", "grid": list(grid), **solver}
    if l2 == "gcv":
        return {"l2": l2, "grid": list(grid), **solver}
    return {"l2": given_penalty(l2), **solver}


def penalty_label(l2: Rule, criterion: Criterion, grid: tuple[float, ...]) -> str:
    """What is done about the penalty, for a title: `l2 = 1024`, `l2 by leave-one-out error`, `l2 chosen on validation`."""
    by = "error" if criterion == "squared_error" else criterion
    chosen = {
        "loo": f"l2 by leave-one-out {by}",
        "gcv": "l2 by generalised cross-validation",
        "validation": "l2 chosen on validation",
    }.get(str(l2))
    if chosen is None:
        return f"l2 = {given_penalty(l2):g}"
    return chosen if grid == GRID else f"{chosen} from {len(grid)} values, {grid[0]:g} to {grid[-1]:g}"


def given_penalty(l2: Rule) -> float:
    """The number that a rule means by itself."""
    return ridge.PAPER_L2 if l2 == "paper" else float(l2)


def class_counts(labels: IntArray, num_classes: int, split: str) -> IntArray:
    """Number of images of every class, `[num_classes]` int64.

    Raises:
        DataError: There is no image, or a label is not one of the classes.
    """
    if not len(labels):
        raise DataError(f"the {split} split has no image of any class")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"the {split} split has label {wrong}, which is none of the {num_classes} classes 0 to {num_classes - 1}"
        )
    return np.bincount(labels, minlength=num_classes)


def missing_classes(counts: IntArray) -> list[str]:
    """The line about classes without a train image; none when every class has one."""
    missing = np.flatnonzero(counts == 0)
    if not len(missing):
        return []
    return [
        f"{len(missing)} of {len(counts)} classes have no train image (the first is class {missing[0]}): "
        "their test images cannot be recognised"
    ]


def finite(features: Tensor, split: str) -> Tensor:
    """The features `[N, D]`, where float64 exists, once they are known to be finite.

    Raises:
        DataError: Some are NaN or infinite, or so large that their squares are.
    """
    refuse_broken(broken_rows(features), largest(features), len(features), split)
    return with_float64(features)


def refuse_broken(bad: int, highest: float, size: int, split: str) -> None:
    """Refuse features that cannot be computed with.

    Args:
        bad: Their `broken_rows`.
        highest: Their `largest`.
        size: Number of rows.
        split: Name of the split, for the message.

    Raises:
        DataError: Some are NaN or infinite, or so large that their squares are.
    """
    if bad:
        raise DataError(not_finite(bad, size, split))
    if highest > _LARGEST_FEATURE:
        raise DataError(f"the {split} features go up to {highest:.2g}, whose squares float64 cannot hold")


def checked(parts: Iterable[Tensor], size: int, split: str) -> Iterator[Tensor]:
    """Each part of some features, and after the last a look at what was wrong with any.

    Args:
        parts: `[m, D]` each.
        size: Rows of all of them.
        split: Name of the split, for the message.

    Raises:
        DataError: Features that are NaN or infinite, or so large that their squares are.
    """
    bad, highest = 0, 0.0
    for part in parts:
        bad += broken_rows(part)
        highest = max(highest, largest(part))
        yield part
    refuse_broken(bad, highest, size, split)


def check_finite(features: FeatureSet, name: str, split: str) -> None:
    """As `finite`, of representation `name`, a part at a time; nothing is kept."""
    bad, highest = 0, 0.0
    for _, x in features.chunks(name):
        bad += broken_rows(x)
        highest = max(highest, largest(x))
        del x  # or it would be held while the next is read
    refuse_broken(bad, highest, len(features.rows), split)


def with_float64(features: Tensor) -> Tensor:
    """The features where float64 exists: those on Apple's GPU go to the CPU."""
    return features.cpu() if features.device.type == "mps" else features


def largest(features: Tensor) -> float:
    """The largest absolute value of a feature; 0 for a dtype whose squares float64 can always hold."""
    return float(features.abs().max()) if features.dtype == torch.float64 and features.numel() else 0.0


def broken_rows(features: Tensor) -> int:
    """How many rows have a feature that is NaN or infinite."""
    # NaN and infinity survive a sum, which is many times faster than a look at every value; a sum can also overflow by itself.
    suspects = features[~torch.isfinite(features.sum(dim=1))]
    return int((~torch.isfinite(suspects).all(dim=1)).sum())


def not_finite(bad: int, size: int, split: str) -> str:
    """The message about rows that are not finite."""
    return f"{bad} of {size} {split} rows have NaN or infinite features; a half-precision overflow looks like this"


@dataclass(frozen=True)
class Fitted:
    """A classifier and how its penalty was found.

    Attributes:
        model: The classifier.
        details: What to record of the penalty: JSON values.
        warnings: What to warn of.
    """

    model: ridge.RidgeClassifier
    details: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def fit(
    features: Tensor,
    labels: IntArray,
    num_classes: int,
    l2: Rule,
    criterion: Criterion,
    grid: Sequence[float],
    moments: Moments | None = None,
) -> Fitted:
    """Fit with a given penalty, or with the one of `grid` that leave-one-out or generalised cross-validation chooses.

    Args:
        features: `[N, D]`, finite, of any float dtype, on the device that is to compute.
        labels: `[N]` int64 in `[0, num_classes)`.
        num_classes: K.
        l2: `"paper"`, `"loo"`, `"gcv"` or a number.
        criterion: What leave-one-out compares.
        grid: What is chosen from, increasing.
        moments: Those of these rows, where they are known.
    """
    targets = torch.from_numpy(labels).to(features.device)
    problem = ridge.prepare(features, targets, num_classes, moments=moments)
    if l2 == "loo":
        choice, model = select(problem, grid, criterion)
        return chosen_left_out(choice, model, problem, grid)
    return fit_summary(problem, l2, grid)


def fit_summary(problem: ridge.Problem, l2: Rule, grid: Sequence[float]) -> Fitted:
    """Fit with a given penalty, or with that of the least generalised cross-validation error: no row is needed for either.

    Args:
        problem: The problem; in the dual, with all of its rows.
        l2: `"paper"`, `"gcv"` or a number.
        grid: What is chosen from, increasing.
    """
    if l2 != "gcv":
        value = given_penalty(l2)
        return Fitted(ridge.solve(problem, value), {"l2": value})
    spectrum = ridge.decompose(problem)
    errors = generalised(spectrum, grid)
    best = min(range(len(grid)), key=errors.__getitem__)
    on_edge, warnings = edge(grid[best], grid, "generalised cross-validation")
    model = ridge.RidgeClassifier(problem.standardisation, ridge.weights(spectrum, grid[best]))
    return Fitted(model, {"l2": grid[best], "gcv_error": errors[best], **on_edge}, warnings)


def chosen_left_out(
    choice: Choice, model: ridge.RidgeClassifier, problem: ridge.Problem, grid: Sequence[float]
) -> Fitted:
    """A classifier whose penalty leave-one-out has chosen from `grid`, with what is to be said of the choice."""
    on_edge, warnings = edge(choice.l2, grid, "leave-one-out")
    if int(problem.counts.max()) == 1:
        warnings.append(
            "leave-one-out chose l2 from one image per class: the class of an image left out is never seen, "
            "so the choice says little; l2=paper is the safer one"
        )
    details = {"l2": choice.l2, "loo_error": choice.squared_error, "loo_accuracy": choice.accuracy, **on_edge}
    return Fitted(model, details, warnings)


def edge(l2: float, grid: Sequence[float], chooser: str) -> tuple[dict[str, bool], list[str]]:
    """Whether the chosen penalty is at an end of the grid, as a detail, and the line that warns of it."""
    if len(grid) < 2 or l2 not in (grid[0], grid[-1]):
        return {"l2_on_edge": False}, []
    end = "smallest" if l2 == grid[0] else "largest"
    return {"l2_on_edge": True}, [f"{chooser} chose the {end} l2 of the grid, {l2:g}: a value beyond it may be better"]


@dataclass(frozen=True)
class Queries:
    """The rows that classifiers are asked about, all of them finite, in one representation.

    Attributes:
        features: The rows; where they are many, read a part at a time whenever a classifier is asked.
        name: Canonical name of the representation.
    """

    features: FeatureSet
    name: str

    @classmethod
    def of(cls, features: FeatureSet, name: str, split: str) -> Queries:
        """Take every row of a feature set.

        Args:
            features: At least one row.
            name: Canonical name of the representation.
            split: Name of the split, for messages.

        Raises:
            DataError: Features that are NaN or infinite, or so large that their squares are.
        """
        lazy = isinstance(features.representations, LazyRepresentations)
        if lazy and len(features.rows) * features.dimension(name) > HELD:
            check_finite(features, name, split)
            return cls(features, name)
        held = finite(features.representations[name], split)
        return cls(FeatureSet(features.labels, features.rows, {name: held}), name)

    @property
    def held(self) -> bool:
        """Whether the features are in memory."""
        return not isinstance(self.features.representations, LazyRepresentations)

    def ranked(self, model: ridge.RidgeClassifier, count: int) -> tuple[IntArray, npt.NDArray[np.floating[Any]]]:
        """Rankings `[M, min(count, K)]` and highest scores `[M]`, in the order of the rows; see `RidgeClassifier.ranked`."""
        parts = []
        for numbers, x in self.features.chunks(self.name, len(self.features.rows) if self.held else CHUNK_ROWS):
            parts.append((numbers, *model.ranked(with_float64(x), count)))
            del x  # or it would be held while the next is read
        rows, rankings, highest = zip(*parts, strict=True)
        order = np.argsort(np.concatenate(rows))
        return torch.cat(rankings).cpu().numpy()[order], torch.cat(highest).cpu().numpy()[order]


def outcome(
    cell: Cell, fitted: Fitted, queries: Queries, per_class: IntArray, known: Sequence[str], support: str
) -> Outcome:
    """Rank the classes of every test row.

    Least squares estimates the conditional mean of its targets. With targets ±1 that of class k is P(k|x) - (1 - P(k|x)), so a
    score s estimates the probability (1 + s) / 2; the confidence is that of the first class, cut to [0, 1] because nothing
    keeps a linear estimate there.

    Args:
        cell: Which cell.
        fitted: The classifier.
        queries: The test rows.
        per_class: `[K]`, how many images of each class were learned from.
        known: Warnings that are known already; they come first.
        support: What was learned from, for a message (`support set`).
    """
    warnings = [*known, *fitted.warnings]
    if bool(torch.isinf(fitted.model.standardisation.scale).all()):
        warnings.append(f"every feature is constant over the {support}: the score is a guess")
    ranking, highest = queries.ranked(fitted.model, RANKED)
    sizes = {"n_per_class_min": int(per_class.min()), "n_per_class_max": int(per_class.max())}
    return Outcome(
        cell=cell,
        ranking=ranking,
        confidence=((1 + highest) / 2).clip(0, 1),
        n_support=int(per_class.sum()),
        n_test=len(ranking),
        details={**fitted.details, **sizes},
        warnings=tuple(warnings),
    )
