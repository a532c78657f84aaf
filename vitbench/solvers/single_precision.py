"""The choice of a penalty by leave-one-out with the work in float32, where its error is too small to change the choice.

The eigendecomposition of G = Z'Z and the products with N rows are what a choice costs, and float32 halves them. What is then
solved with the penalty is solved in float64 all the same; so is G computed. The error that float32 finds is that of G + E, with
‖E‖ about u‖G‖, u = 2⁻²⁴. To first order the inverse moves by -(G+λ)⁻¹E(G+λ)⁻¹, a fraction of at most ‖E‖/(min e + λ) of it, so
that an error τ at one penalty λ* means at most

    τ(λ) = τ · max(1, (min e + λ*)/(min e + λ))

at another. τ itself is measured, not bounded from ‖G‖, which would be hundreds of times too large: once λ* has been found, its
Cholesky factor in float64, which the solve needs anyway, gives the exact left-out residuals of 64 rows, evenly spread, and of
64 more (see below). τ is the largest difference of their squared norms, over the mean of the squared norms.

What a sample cannot show is a row that decides a direction alone (a feature that one image has): its leverage H is all but 1,
1 - H is what float32 leaves of a difference of two numbers near 1, and its left-out residual is divided by that. H is a sum of D
squares, of relative error 2 D u at most, so that a squared residual (·/(1 - H))² is off by a fraction of at most

    κ(λ) = 4 D u / min (1 - H)        over all rows, at penalty λ,

with as much again for what the eigenvectors are off; it is added for both penalties that are compared. The sample holds the rows
of the least 1 - H too.

The stated bound: the choice stands if every other penalty's error is above that of λ* by more than a fraction
32 (τ + τ(λ)) + κ(λ*) + κ(λ) of it, so that the mean error over all rows would have to be 32 times the largest that was seen; if
κ(λ*) is at most a hundredth; and if κ(λ) is at most a half at every λ, above which nothing is known of its error. Otherwise (a
curve so flat that rounding decides, or eigenvalues, penalties or 1 - H so small that float32 does not see them) the choice is
made in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitbench.solvers import leave_one_out as exact
from vitbench.solvers import products, ridge
from vitbench.solvers.leave_one_out import Choice, Criterion, Parts
from vitbench.solvers.ridge import Problem, RidgeClassifier, Spectrum

FROM_FEATURES = 256
"""Fewer features than this are decomposed in float64: nothing is won."""

SAFETY = 32.0
"""How many times the measured error the distance to every other penalty must be."""

_SAMPLE = 64
_UNIT = 2.0**-24
_MOST_CANCELLED, _MOST_AT_BEST = 0.5, 0.01


def select(
    problem: Problem, grid: Sequence[float], criterion: Criterion = "squared_error"
) -> tuple[Choice, RidgeClassifier]:
    """The penalty that leave-one-out chooses from `grid`, and the classifier of all rows with it, solved in float64.

    The choice is that of `vitbench.solvers.leave_one_out.choose`. Where it was made in float32, its error is that of float64 to
    two digits at least, five where no row has a leverage near 1, and its accuracy to the rows whose two best left-out scores are
    equal to as many.

    Args:
        problem: The prepared support set, all of its rows in memory.
        grid: G penalties, each above 0.
        criterion: What is compared; `accuracy` is always in float64.
    """
    if criterion == "squared_error" and problem.primal and len(problem.gram) >= FROM_FEATURES:
        found = in_float32(problem, grid)
        if found is not None:
            return found
    spectrum = ridge.decompose(problem)
    choice = exact.choose(spectrum, grid, criterion)
    return choice, RidgeClassifier(problem.standardisation, ridge.weights(spectrum, choice.l2))


def in_float32(problem: Problem, grid: Sequence[float]) -> tuple[Choice, RidgeClassifier] | None:
    """The penalty of the least left-out error and its classifier, if float32 can tell; else None.

    Args:
        problem: A primal problem, all of its rows in memory.
        grid: G penalties, each above 0.
    """
    if problem.gram.dtype != torch.float64 or not products.float32_is_float32():
        return None
    values, vectors = torch.linalg.eigh(problem.gram.to(torch.float32))
    basis = products.times(vectors, problem.size)(problem.z.to(torch.float32))
    projected = (vectors.T @ problem.cross.to(torch.float32)).to(torch.float64)
    # Only matrices are float32: what there is one of for each eigenvalue, penalty or class is float64.
    spectrum = Spectrum(problem, values.to(torch.float64).clamp_min_(0), vectors, projected)
    parts = exact.parts_of(spectrum, basis, grid)
    search = exact.search(spectrum, parts)
    best, found = search.best()
    factor = ridge.cholesky(problem, grid[best])
    if factor is None:
        return None
    shifted = spectrum.values[0] + parts.l2
    off = max(_measured(spectrum, parts, best, factor), 2 * _UNIT)
    cancelled = 4 * len(problem.gram) * _UNIT / parts.free.amin(dim=0).to(torch.float64)
    # Written so that a NaN decides nothing.
    if not (bool(((cancelled > 0) & (cancelled <= _MOST_CANCELLED)).all()) and float(cancelled[best]) <= _MOST_AT_BEST):
        return None
    margin = SAFETY * off * (1 + (shifted[best] / shifted).clamp_min_(1)) + cancelled + cancelled[best]
    if not search.leads(best, margin):
        return None
    error = found.error / (problem.size * len(problem.counts))
    return Choice(float(grid[best]), error, found.accuracy), ridge.solve(problem, grid[best], factor)


def _measured(spectrum: Spectrum, parts: Parts, penalty: int, factor: Tensor) -> float:
    """τ: the largest error that float32 makes in the squared norm of a sampled row's left-out residual, over their mean."""
    problem = spectrum.problem
    count = min(_SAMPLE, len(problem.z))
    evenly = torch.linspace(0, len(problem.z) - 1, count, device=factor.device).long()
    rows = torch.cat([evenly, parts.free[:, penalty].topk(count, largest=False).indices])
    some = replace(problem, z=problem.z[rows], labels=problem.labels[rows])
    solved = torch.cholesky_solve(some.z.T, factor)
    kept = problem.bias_shrinkage(parts.l2[penalty])
    free = 1 - (1 - kept) / problem.size - (some.z.T * solved).sum(dim=0)
    fitted = (1 - kept) * problem.mean_target + solved.T @ problem.cross
    targets = 2 * torch.nn.functional.one_hot(some.labels, len(problem.counts)).to(fitted.dtype) - 1
    expected = ((targets - fitted) / free[:, None]).square().sum(dim=1)
    one = parts.take(torch.tensor([penalty], device=factor.device))
    one = replace(one, basis=one.basis[rows], free=one.free[rows])
    energies = exact.left_out_energies(replace(spectrum, problem=some), one)
    return float((energies - expected).abs().amax() / expected.mean())
