"""The choice of a penalty by leave-one-out: float32 eliminates, and float64 decides among what is left.

The eigendecomposition of G = Z'Z and the products with N rows are what a choice costs, and float32 halves them. What is then
solved with the penalty is solved in float64 all the same; so is G computed. The error that float32 finds is that of G + E, with
‖E‖ about u‖G‖, u = 2⁻²⁴. To first order the inverse moves by -(G+λ)⁻¹E(G+λ)⁻¹, a fraction of at most ‖E‖/(min e + λ) of it, so
that an error τ at one penalty λ* is taken to be at most

    τ(λ) = τ · max(1, (min e + λ*)/(min e + λ))

at another, as this upper bound grows. τ itself is measured, not bounded from ‖G‖, which would be hundreds of times too large:
once λ* has been found, its Cholesky factor in float64, which the solve needs anyway, gives the exact left-out residuals of 64
rows, evenly spread, and of 64 more (see below). τ is the largest difference of their squared norms, over the mean of the
squared norms.

What a sample cannot show is a row that decides a direction alone (a feature that one image has): its leverage H is all but 1,
1 - H is what float32 leaves of a difference of two numbers near 1, and its left-out residual is divided by that. H is a sum of D
squares, of relative error 2 D u at most, so that a squared residual (·/(1 - H))² is off by a fraction of at most

    κ(λ) = 4 D u / min (1 - H)        over all rows, at penalty λ.

The sample holds the rows of the least 1 - H too.

Elimination. What is assumed, and all that is: at every penalty the squared left-out residuals of the N rows are off by no more
than a fraction

    a(λ) = 32 τ(λ) + κ(λ)

of their sum E(λ), each error taken positive: the mean error over all rows would have to be 32 times the largest that was seen, or
to grow from λ* to λ faster than its upper bound does. With Ê the error that float32 finds, λ* the penalty of the least Ê and
a(λ*) < 1, it follows from

    Ê(λ)/(1 + a(λ)) > Ê(λ*)/(1 - a(λ*))    that    E(λ) ≥ Ê(λ)/(1 + a(λ)) > Ê(λ*)/(1 - a(λ*)) ≥ E(λ*):

λ is out. Most penalties go out without their residuals, by a lower bound of Ê(λ) from R(λ) and d² (`penalty_search`), which are
of the same float32 eigenvalues. That these too are off by no more than a(λ) is assumed as well, and looked at where residuals
are known: R(λ) must be within a(λ) of the sum of their squares, or the choice is made in float64. So it is if κ(λ*) is above a
hundredth, or κ(λ) above a half at some λ: nothing is assumed then. If all but λ* are out, it is chosen.

Decision. What is left is λ* and the penalties near it. If they are few (`_most`), each is solved in float64 by Cholesky, without
an eigenvalue, and all leverages follow in float64. First the residuals of the rows are still those of float32, in the one sum
that their differences of weight leave (`_by_weights`), whose error is smaller than a(λ) by about the spread of the weights. If
the intervals of the errors still overlap, all residuals are computed in float64. An error found in float64 that differs from Ê
by more than a fraction a(λ) of it refutes the assumption, and the choice is made by eigendecomposition in float64. So it is where
the errors differ by less than 2⁻²⁴ (a(λ) + a(λ')): float64 rounds 2⁻²⁹ as much as float32, in either way of computing, and so
small a difference could come out otherwise there. (A curve so flat that rounding decides, and eigenvalues, penalties or 1 - H so
small that float32 does not see them, come to the same.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitbench.solvers import leave_one_out as exact
from vitbench.solvers import products, ridge
from vitbench.solvers.leave_one_out import Choice, Criterion, Parts
from vitbench.solvers.penalty_search import Evaluated, fit_error
from vitbench.solvers.ridge import Problem, RidgeClassifier, Spectrum

FROM_FEATURES = 256
"""Fewer features than this are decomposed in float64: nothing is won."""

SAFETY = 32.0
"""How many times the largest error of a sampled row the mean error of all rows is taken to be at most."""

_SAMPLE = 64
_UNIT = 2.0**-24
_CLOSE = 2.0**-24  # of a(λ): 32 times what float64 rounds
_MOST_CANCELLED, _MOST_AT_BEST = 0.5, 0.01


def select(
    problem: Problem, grid: Sequence[float], criterion: Criterion = "squared_error"
) -> tuple[Choice, RidgeClassifier]:
    """The penalty that leave-one-out chooses from `grid`, and the classifier of all rows with it, solved in float64.

    The choice is that of `vitbench.solvers.leave_one_out.choose`, by the bound above, which is measured. Where only float32's
    residuals were needed, its error is that of float64 to two digits at least, five where no row has a leverage near 1, and its
    accuracy to the rows whose two best left-out scores are equal to as many.

    Args:
        problem: The prepared support set, all of its rows in memory.
        grid: G penalties, each above 0.
        criterion: What is compared; `accuracy` is always in float64.
    """
    if criterion == "squared_error" and problem.primal and len(problem.gram) >= FROM_FEATURES:
        found = by_elimination(problem, grid)
        if found is not None:
            return found
    spectrum = ridge.decompose(problem)
    choice = exact.choose(spectrum, grid, criterion)
    return choice, RidgeClassifier(problem.standardisation, ridge.weights(spectrum, choice.l2))


def by_elimination(problem: Problem, grid: Sequence[float]) -> tuple[Choice, RidgeClassifier] | None:
    """The penalty of the least left-out error and its classifier, if float32 and a few solves in float64 can tell; else None.

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
    solved = _solved(problem, grid[best])
    if solved is None:
        return None
    off = _off(parts, spectrum.values[0], best, _measured(problem, parts, best, solved))
    # Written so that a NaN decides nothing.
    if not float(off[best]) < 1:
        return None
    most = _most(problem)
    contenders = search.contenders(best, (off + off[best]) / (1 - off[best]), most)
    if not all(apart <= float(off[item]) for item, apart in search.inconsistency().items()):
        return None
    if len(contenders) == 1:
        return _choice(problem, grid[best], found), solved.model
    return _decided(problem, grid, contenders, off.tolist(), solved) if len(contenders) <= most else None


def _choice(problem: Problem, l2: float, found: Evaluated) -> Choice:
    return Choice(float(l2), found.error / (problem.size * len(problem.counts)), found.accuracy)


@dataclass(frozen=True)
class _Solved:
    """The solution with one penalty in float64: the classifier, and the Cholesky factor `[D, D]` of Z'Z + λI."""

    model: RidgeClassifier
    factor: Tensor

    def parts(self, problem: Problem, l2: float) -> Parts:
        """What the left-out residuals of the rows of `problem` are made of, in float64."""
        return exact.parts_solved(problem, l2, self.factor, self.model.weights[:-1])


def _solved(problem: Problem, l2: float) -> _Solved | None:
    """The solution; None where λ is below the rounding of the eigenvalues."""
    factor = ridge.cholesky(problem, l2)
    return None if factor is None else _Solved(ridge.solve(problem, l2, factor), factor)


def _off(parts: Parts, least: Tensor, best: int, measured: float) -> Tensor:
    """a(λ) `[G]`: the fraction by which float32's error of each penalty may be off; NaN where nothing is known of one.

    Args:
        parts: Of all G penalties.
        least: min e.
        best: The number of λ*.
        measured: τ.
    """
    shifted = least + parts.l2
    cancelled = 4 * parts.basis.shape[1] * _UNIT / parts.free.amin(dim=0).to(torch.float64)
    known = bool(((cancelled > 0) & (cancelled <= _MOST_CANCELLED)).all()) and float(cancelled[best]) <= _MOST_AT_BEST
    off = SAFETY * max(measured, 2 * _UNIT) * (shifted[best] / shifted).clamp_min_(1) + cancelled
    return off if known else off.fill_(torch.nan)


def _measured(problem: Problem, parts: Parts, penalty: int, solved: _Solved) -> float:
    """τ: the largest error that float32 makes in the squared norm of a sampled row's left-out residual, over their mean."""
    count = min(_SAMPLE, len(problem.z))
    evenly = torch.linspace(0, len(problem.z) - 1, count, device=problem.z.device).long()
    rows = torch.cat([evenly, parts.free[:, penalty].topk(count, largest=False).indices])
    some = replace(problem, z=problem.z[rows], labels=problem.labels[rows])
    expected = exact.left_out_energies(some, solved.parts(some, float(parts.l2[penalty])))
    one = parts.take(torch.tensor([penalty], device=problem.z.device))
    energies = exact.left_out_energies(some, replace(one, basis=one.basis[rows], free=one.free[rows]))
    return float((energies - expected).abs().amax() / expected.mean())


def _most(problem: Problem) -> int:
    """How many penalties may be solved in float64 for what the float64 path costs.

    In multiplications, of one penalty: D³/6 for the factor, D²K for the weights, N D²/2 for the leverages. Of the float64 path:
    as many as take the time of 5 D³ for the eigendecomposition, N D² for ZV, and N D K for the residuals of each penalty that its
    bounds do not exclude, two at the least.
    """
    size, features, num_classes = problem.size, len(problem.gram), len(problem.counts)
    spared = 5 * features + size + 2 * size * num_classes / features
    return int(spared / (features / 6 + num_classes + size / 2))


def _decided(
    problem: Problem, grid: Sequence[float], contenders: dict[int, Evaluated], off: Sequence[float], first: _Solved
) -> tuple[Choice, RidgeClassifier] | None:
    """The contender of the least left-out error; None if float32 was worse than assumed, or float64 cannot tell.

    Args:
        problem: The problem.
        grid: G penalties.
        contenders: The numbers of some of them, and what float32 found of them.
        off: a(λ), of all G.
        first: The solution with the first of the contenders.
    """
    models: dict[int, RidgeClassifier] = {}
    parts: dict[int, Parts] = {}
    errors: dict[int, Evaluated] = {}
    bounds: dict[int, float] = {}
    for item, single in contenders.items():
        solved = _solved(problem, grid[item]) if models else first
        if solved is None:
            return None
        models[item], parts[item] = solved.model, solved.parts(problem, grid[item])
        errors[item], bounds[item] = _by_weights(problem, grid[item], models[item], parts[item], single, off[item])
    best = _leader(errors, bounds)
    if best is None:
        errors = {item: exact.evaluated(problem, parts[item], 0) for item in contenders}
        best = _leader(errors, {item: _CLOSE * off[item] for item in contenders})
    as_assumed = all(abs(contenders[item].error - one.error) <= off[item] * one.error for item, one in errors.items())
    return (_choice(problem, grid[best], errors[best]), models[best]) if best is not None and as_assumed else None


def _by_weights(
    problem: Problem, l2: float, model: RidgeClassifier, parts: Parts, single: Evaluated, off: float
) -> tuple[Evaluated, float]:
    """The left-out error from float32's energies of rows and all else in float64, and the fraction by which it may be off.

    With wᵢ = 1/(1 - Hᵢᵢ)² and the middle v and half the range h of them, E(λ) = v R(λ) + Σᵢ (wᵢ - v) ‖rᵢ‖², and only the second
    sum holds float32's energies, whose errors δᵢ move it by h Σᵢ |δᵢ| at most. The left-out energies are off by a(λ) E together,
    and the part of it that is 1 - H's by a(λ) E (1 + a(λ)); hence Σᵢ wᵢ |δᵢ| ≤ a(λ) (2 + a(λ)) E. What float64 rounds is added.
    """
    factors = parts.free[:, 0].square().reciprocal()
    low, high = float(factors.min()), float(factors.max())
    middle, half = (high + low) / 2, (high - low) / 2
    fit, rounding = fit_error(problem, l2, model.weights[:-1])
    error = middle * fit + float((factors - middle) @ single.energy)
    if not error > 0:
        return replace(single, error=error), torch.inf
    return replace(single, error=error), off * ((2 + off) * half / low + _CLOSE) + high * rounding / error


def _leader(found: Mapping[int, Evaluated], off: Mapping[int, float]) -> int | None:
    """The penalty of the least error, if it is that whatever the errors are within the fractions `off` of them; else None."""
    best = min(found, key=lambda item: found[item].error)
    most = found[best].error / (1 - off[best]) if off[best] < 1 else torch.inf
    others = (found[item].error / (1 + off[item]) for item in found if item != best)
    return best if all(least > most for least in others) else None
