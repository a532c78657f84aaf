"""Ridge regression on features that are not in memory: they are gone through a part at a time, and summed up.

A fit needs the moments of its rows alone (`vitbench.solvers.moments`): 8·D² + 8·K·D bytes whatever N is, 16 MB for 1,024 features
and 1,000 classes, beside a part of the rows in float64. One pass over the features serves a given penalty and generalised
cross-validation. Leave-one-out is exact here too: it goes through them twice more, for the leverages of all rows and then for the
left-out residuals of the penalties that are still in question. Where N ≤ D+1 the Gram matrix of the rows is the smaller one, and
the rows are held in memory; they are held for leave-one-out too while they are few, because float32 then halves the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitbench.errors import DataError
from vitbench.features.featureset import FeatureSet
from vitbench.protocols.closed_form import (
    Fitted,
    Rule,
    broken_rows,
    chosen_left_out,
    finite,
    fit,
    fit_summary,
    not_finite,
    with_float64,
)
from vitbench.solvers import ridge
from vitbench.solvers.leave_one_out import Criterion, choose_streamed
from vitbench.solvers.moments import Moments

IN_MEMORY = 1 << 25
"""Features (rows times dimension) up to which leave-one-out holds them: 128 MiB, and five times that while it works."""


def fit_streamed(
    features: FeatureSet,
    name: str,
    num_classes: int,
    l2: Rule,
    criterion: Criterion,
    grid: Sequence[float],
    split: str,
) -> Fitted:
    """Fit every row of a feature set; see `vitbench.protocols.closed_form.fit`.

    Args:
        features: At least one row.
        name: Canonical name of the representation.
        num_classes: K.
        l2: `"paper"`, `"loo"`, `"gcv"` or a number.
        criterion: What leave-one-out compares.
        grid: What is chosen from, increasing.
        split: Name of the split, for messages.

    Raises:
        DataError: Features that are NaN or infinite.
    """
    size, dimension = len(features.rows), features.dimension(name)
    if size <= dimension + 1 or (l2 == "loo" and size * dimension <= IN_MEMORY):
        rows = finite(features.representations[name], split)
        return fit(rows, features.labels[features.rows], num_classes, l2, criterion, grid)
    problem = problem_of(features, name, num_classes, split)
    if l2 != "loo":
        return fit_summary(problem, l2, grid)
    spectrum = ridge.decompose(problem)
    choice = choose_streamed(spectrum, lambda: _parts(features, name), grid, criterion)
    model = ridge.RidgeClassifier(problem.standardisation, ridge.weights(spectrum, choice.l2))
    return chosen_left_out(choice, model, problem, grid)


def problem_of(features: FeatureSet, name: str, num_classes: int, split: str) -> ridge.Problem:
    """The problem of every row of a feature set: in the primal without any row in memory, in the dual with all.

    Raises:
        DataError: Features that are NaN or infinite.
    """
    size, dimension = len(features.rows), features.dimension(name)
    if size <= dimension + 1:
        rows = finite(features.representations[name], split)
        labels = torch.from_numpy(features.labels[features.rows]).to(rows.device)
        return ridge.prepare(rows, labels, num_classes)
    moments: Moments | None = None
    bad = 0
    for x, labels in _parts(features, name):
        bad += broken_rows(x)
        if not bad:
            moments = moments or Moments(dimension, num_classes, x.device)
            moments.add(finite(x, split), labels)
        del x  # or it would be held while the next is read
    if bad or moments is None:
        raise DataError(not_finite(bad, size, split))
    return ridge.summarised(moments)


def _parts(features: FeatureSet, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    for rows, x in features.chunks(name):
        part = with_float64(x)
        yield part, torch.from_numpy(features.labels[rows]).to(part.device)
        del x, part  # before the next is read
