"""Exact leave-one-out for ridge regression, in closed form, and the choice of a penalty by it.

In the notation of `vitbench.solvers.ridge`, the fit is Ŷ = HY with H = Z(Z'Z + λI)⁻¹Z' + (β/N)·11'. Let ỹ be the prediction for
row i by the model that was fitted without row i. If yᵢ were ỹ, that model would minimise the objective of all N rows too, because
row i would cost nothing. So ỹ = Σ_{j≠i} Hᵢⱼ yⱼ + Hᵢᵢ ỹ = ŷᵢ - Hᵢᵢ yᵢ + Hᵢᵢ ỹ, which gives the residual of a row left out:

    yᵢ - ỹ = (yᵢ - ŷᵢ) / (1 - Hᵢᵢ).

It is exact for the ridge regression on Z; the statistics of the standardisation stay those of all N rows. No test label is
involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vitbench.solvers import classifier, products, ridge
from vitbench.solvers.penalty_search import Evaluated, FitErrors, Search, fit_errors
from vitbench.solvers.ridge import Problem, Spectrum

Criterion = Literal["squared_error", "accuracy"]
Rows = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class LeaveOneOut:
    """How each of G penalties does on support rows that were left out.

    Attributes:
        grid: The penalties.
        squared_error: Mean squared residuals, over rows and classes, of the targets ±1.
        accuracy: Fractions of rows whose class is predicted.
    """

    grid: tuple[float, ...]
    squared_error: tuple[float, ...]
    accuracy: tuple[float, ...]

    def best(self, criterion: Criterion) -> int:
        """Index of the best penalty; of equals, the first for `squared_error` (as scikit-learn), the largest for `accuracy`."""
        indices = range(len(self.grid))
        if criterion == "squared_error":
            return min(indices, key=lambda index: self.squared_error[index])
        return max(indices, key=lambda index: (self.accuracy[index], self.grid[index]))


@dataclass(frozen=True)
class Choice:
    """A penalty and its leave-one-out error and accuracy, as in `LeaveOneOut`."""

    l2: float
    squared_error: float
    accuracy: float


def leave_one_out(spectrum: Spectrum, grid: Sequence[float]) -> LeaveOneOut:
    """Leave-one-out error and accuracy of every penalty, in time O(N·R·K) each.

    Memory is O(N·D + N·G) and a block of fixed size, never N·K·G.

    Args:
        spectrum: The decomposed support set.
        grid: G penalties, each above 0.
    """
    return _curve(spectrum, _parts(spectrum, grid))


def choose(spectrum: Spectrum, grid: Sequence[float], criterion: Criterion = "squared_error") -> Choice:
    """The best penalty of `grid`: the same as `leave_one_out(spectrum, grid).best(criterion)`, in less time."""
    parts = _parts(spectrum, grid)
    if criterion == "squared_error":
        best, found = search(spectrum, parts).best()
        return Choice(grid[best], found.error / (spectrum.problem.size * len(spectrum.problem.counts)), found.accuracy)
    return _best(_curve(spectrum, parts), criterion)


def choose_streamed(
    spectrum: Spectrum, rows: Rows, grid: Sequence[float], criterion: Criterion = "squared_error"
) -> Choice:
    """As `choose`, where the rows are not in memory: they are gone through twice, the first time for their leverages.

    Args:
        spectrum: Of a primal problem; its own rows play no part.
        rows: Starts anew with every call: parts of the rows `[n, D]`, not standardised, and their labels `[n]`, of all N rows.
        grid: G penalties, each above 0.
        criterion: What is compared.
    """
    kept = tuple(grid)
    if criterion == "squared_error":
        ends = []
        for some in rows():
            ends.append(_parts(_on(spectrum, *some), grid).free.aminmax(dim=0))
            del some  # or it would be held while the next is read
        low, high = (
            torch.stack([end.min for end in ends]).amin(dim=0),
            torch.stack([end.max for end in ends]).amax(dim=0),
        )
        kept = _contenders(kept, fit_errors(spectrum, low.new_tensor(grid)), low, high)
    total = _Sums(torch.zeros(len(kept), dtype=torch.float64), torch.zeros(len(kept), dtype=torch.float64))
    for some in rows():
        part = _on(spectrum, *some)
        total.add(_sums(part.problem, _parts(part, kept)))
        del some, part
    return _best(_as_curve(spectrum, kept, total), criterion)


def search(spectrum: Spectrum, parts: Parts) -> Search:
    """The search for the penalty of the least left-out error."""
    factors = parts.free.square().reciprocal()
    return Search(fit_errors(spectrum, parts.l2), factors, lambda penalty: evaluated(spectrum.problem, parts, penalty))


def evaluated(problem: Problem, parts: Parts, penalty: int) -> Evaluated:
    """The left-out error and accuracy of one penalty, and the energy of every row's residual in the fit itself.

    With r = Y - Ŷ and f = 1 - H, the left-out score of class k is -1 - rₖ/f, and 1 - rₖ/f for the row's own, c. The highest is
    where rₖ - 2f·(k = c) is lowest, because f is positive: r is never divided.
    """
    labels, one = problem.labels, parts.take(torch.tensor([penalty], device=parts.l2.device))
    free = one.free[:, 0]
    energy, hits = torch.empty(len(labels), dtype=torch.float64, device=labels.device), 0
    for rows, _, residuals in _fitted_residuals(problem, one):
        energy[rows] = torch.linalg.vector_norm(residuals, dim=(1, 2), dtype=torch.float64).square()
        _add_to_own(residuals, labels[rows], -2 * free[rows, None].to(residuals.dtype))
        hits += int((residuals.argmin(dim=2)[:, 0] == labels[rows]).sum())
    return Evaluated(float((energy / free.square()).sum()), hits / len(labels), energy)


def left_out_energies(problem: Problem, parts: Parts) -> Tensor:
    """Squared norms `[N]` float64 of the left-out residuals of the rows in `parts`, summed over its penalties."""
    return torch.cat([part.square().sum(dim=(1, 2), dtype=torch.float64) for _, _, part in _residuals(problem, parts)])


def predictions(spectrum: Spectrum, l2: float) -> Tensor:
    """Scores `[N, K]` of every support row by the classifier that was fitted without it."""
    labels = spectrum.problem.labels
    blocks = _residuals(spectrum.problem, _parts(spectrum, [l2]))
    return torch.cat([_to_predictions(residuals, labels[rows])[:, 0] for rows, _, residuals in blocks])


def generalised(spectrum: Spectrum, grid: Sequence[float]) -> tuple[float, ...]:
    """The generalised cross-validation error of every penalty: leave-one-out with every leverage Hᵢᵢ replaced by their mean.

    (Golub, Heath and Wahba 1979.) With tr H = β + Σᵣ eᵣ/(eᵣ+λ) it needs the spectrum alone and no row:

        GCV(λ) = ‖Y - Ŷ‖²/(N·K) / (1 - tr H/N)².

    Args:
        spectrum: The decomposed support set.
        grid: G penalties, each above 0.
    """
    problem, values = spectrum.problem, spectrum.values
    l2 = torch.tensor(grid, dtype=values.dtype, device=values.device)
    kept = problem.bias_shrinkage(l2)
    shrunk = (l2 / (values[:, None] + l2)).sum(dim=0)
    # N - tr H: of the N directions, one is the bias's, R are shrunk, and N - 1 - R (in the primal) are not reached at all.
    free = (problem.size - 1 - len(values)) + kept + shrunk
    error = fit_errors(spectrum, l2).error.clamp_min(0) / (problem.size * len(problem.counts))
    return tuple((error / (free / problem.size).square()).tolist())


@dataclass(frozen=True)
class Parts:
    """What the left-out residuals of G penalties are made of: (Y - Ŷ)ᵢ = offset + basisᵢ diag(gains) A, over free = 1 - Hᵢᵢ.

    In the primal, offset leaves out the 2 that Y = 2·onehot - 1 has at each row's own class.
    """

    l2: Tensor  # [G]
    basis: Tensor  # [N, R]
    projected: Tensor  # [R, K], A
    gains: Tensor  # [R, G]
    offsets: Tensor  # [G, K]
    free: Tensor  # [N, G]

    def take(self, penalties: Tensor) -> Parts:
        """The same for some of the penalties."""
        return Parts(
            self.l2[penalties],
            self.basis,
            self.projected,
            self.gains[:, penalties],
            self.offsets[penalties],
            self.free[:, penalties],
        )


def _parts(spectrum: Spectrum, grid: Sequence[float]) -> Parts:
    problem = spectrum.problem
    return parts_of(spectrum, problem.z @ spectrum.vectors if problem.primal else spectrum.vectors, grid)


def parts_of(spectrum: Spectrum, basis: Tensor, grid: Sequence[float]) -> Parts:
    """Residuals and leverages from the eigendecomposition.

    Primal, with F = ZV:   Y - Ŷ = Y - βȳ - F diag(1/(e+λ)) A          1 - Hᵢᵢ = 1 - β/N - Σᵣ Fᵢᵣ²/(eᵣ+λ)
    Dual, with Y = 1ȳ' + QA, and 1 = 1/N + Σᵣ Qᵢᵣ²:
                           Y - Ŷ = (1-β)ȳ + Q diag(λ/(e+λ)) A          1 - Hᵢᵢ = (1-β)/N + Σᵣ Qᵢᵣ² λ/(eᵣ+λ)

    The dual's 1 - Hᵢᵢ is a sum of positive terms: it cannot vanish, however small λ is. The primal's can, by cancellation, for
    a row that alone decides some direction; the residual above it is as small then, and a floor at the size of rounding keeps the
    quotient finite.

    Args:
        spectrum: The decomposed support set.
        basis: F (primal) or Q (dual), the residuals are computed in its dtype; all else is in that of the eigenvalues.
        grid: G penalties, each above 0.
    """
    problem, values = spectrum.problem, spectrum.values
    size = problem.size
    l2 = torch.tensor(grid, dtype=values.dtype, device=values.device)
    kept = problem.bias_shrinkage(l2)
    if problem.primal:
        gains = -ridge.inverse(spectrum, values[:, None] + l2)
        free = 1 - (1 - kept) / size + _leverages(basis, gains)
        free.clamp_min_(8 * torch.finfo(free.dtype).eps)
        return Parts(l2, basis, spectrum.projected, gains, -1 - (1 - kept)[:, None] * problem.mean_target, free)
    gains = l2 / (values[:, None] + l2)
    free = kept / size + _leverages(basis, gains)
    return Parts(l2, basis, spectrum.projected, gains, kept[:, None] * problem.mean_target, free)


def parts_solved(problem: Problem, l2: float, factor: Tensor, slopes: Tensor) -> Parts:
    """Residuals and leverages of one penalty of a primal problem from its solution, without an eigenvalue.

    With the Cholesky factor LL' = Z'Z + λI and the weights W = (LL')⁻¹Z'Y of the features, zᵢ'(LL')⁻¹zᵢ is ‖L⁻¹zᵢ‖²:

        Y - Ŷ = Y - βȳ - ZW          1 - Hᵢᵢ = 1 - β/N - ‖L⁻¹zᵢ‖².

    Args:
        problem: The problem; the parts are those of the rows that it has in memory.
        l2: λ, above 0.
        factor: `[D, D]` L, lower.
        slopes: `[D, K]` W.
    """
    bias = 1 - problem.bias_shrinkage(l2)
    step = max(1, classifier.BLOCK // len(factor))
    solved = (torch.linalg.solve_triangular(factor, rows.T, upper=False) for rows in torch.split(problem.z, step))
    leverages = torch.cat([block.square().sum(dim=0) for block in solved])
    free = (1 - bias / problem.size - leverages).clamp_min_(8 * torch.finfo(leverages.dtype).eps)
    gains, offset = -slopes.new_ones(len(slopes), 1), -1 - bias * problem.mean_target
    return Parts(slopes.new_tensor([l2]), problem.z, slopes, gains, offset[None], free[:, None])


def _leverages(basis: Tensor, gains: Tensor) -> Tensor:
    """The products of the squares of `basis` `[N, R]` with `gains` `[R, G]`, in the dtype of the latter."""
    step = max(1, classifier.BLOCK // max(1, basis.shape[1]))
    return torch.cat([rows.to(gains.dtype).square() @ gains for rows in torch.split(basis, step)])


def _on(spectrum: Spectrum, x: Tensor, labels: Tensor) -> Spectrum:
    return replace(spectrum, problem=spectrum.problem.on_rows(x, labels))


def _contenders(grid: tuple[float, ...], errors: FitErrors, low: Tensor, high: Tensor) -> tuple[float, ...]:
    """The penalties that can have the smallest left-out error.

    With wᵢ = 1/(1 - Hᵢᵢ)², the left-out error Σᵢ wᵢ‖yᵢ - ŷᵢ‖² lies between min w and max w times the error of the fit itself,
    which needs no residuals. A penalty whose lower bound is above another's upper bound is out.
    """
    lower = (errors.error - errors.rounding) / high.square()
    upper = (errors.error + errors.rounding) / low.square()
    return tuple(l2 for l2, kept in zip(grid, (lower <= upper.min()).tolist(), strict=True) if kept)


@dataclass
class _Sums:
    """Sums over rows of each penalty's squared left-out residuals and of its hits, `[G]` float64."""

    errors: Tensor
    hits: Tensor

    def add(self, other: _Sums) -> None:
        self.errors += other.errors.to(self.errors.device)
        self.hits += other.hits.to(self.hits.device)


def _curve(spectrum: Spectrum, parts: Parts) -> LeaveOneOut:
    return _as_curve(spectrum, tuple(parts.l2.tolist()), _sums(spectrum.problem, parts))


def _as_curve(spectrum: Spectrum, grid: tuple[float, ...], sums: _Sums) -> LeaveOneOut:
    size, num_classes = spectrum.problem.size, len(spectrum.problem.counts)
    return LeaveOneOut(grid, tuple((sums.errors / (size * num_classes)).tolist()), tuple((sums.hits / size).tolist()))


def _best(curve: LeaveOneOut, criterion: Criterion) -> Choice:
    best = curve.best(criterion)
    return Choice(curve.grid[best], curve.squared_error[best], curve.accuracy[best])


def _sums(problem: Problem, parts: Parts) -> _Sums:
    labels, penalties = problem.labels, len(parts.l2)
    sums = _Sums(*torch.zeros(2, penalties, dtype=torch.float64, device=labels.device))
    for rows, chosen, residuals in _residuals(problem, parts):
        sums.errors[chosen] += residuals.square().sum(dim=(0, 2), dtype=torch.float64)
        predicted = _to_predictions(residuals, labels[rows]).argmax(dim=2)
        sums.hits[chosen] += (predicted == labels[rows, None]).sum(dim=0)
    return sums


def _residuals(problem: Problem, parts: Parts) -> Iterator[tuple[slice, slice, Tensor]]:
    """The left-out residuals (Y - Ŷ)/(1 - H), block by block: which rows, which penalties, and `[rows, penalties, K]`."""
    for rows, chosen, residuals in _fitted_residuals(problem, parts):
        yield rows, chosen, residuals.div_(parts.free[rows, chosen, None].to(residuals.dtype))


def _fitted_residuals(problem: Problem, parts: Parts) -> Iterator[tuple[slice, slice, Tensor]]:
    """The residuals Y - Ŷ of the fits themselves, block by block, as in `_residuals`."""
    size, num_classes, penalties = len(parts.basis), len(problem.counts), len(parts.l2)
    together = min(penalties, max(1, classifier.BLOCK // (size * num_classes)))
    step = max(1, classifier.BLOCK // (together * num_classes))
    for first in range(0, penalties, together):
        chosen = slice(first, min(first + together, penalties))
        coefficients = (parts.gains[:, chosen, None] * parts.projected[:, None]).flatten(1).to(parts.basis.dtype)
        offset = parts.offsets[chosen].flatten().to(parts.basis.dtype)
        multiply = products.times(coefficients, size)
        for start in range(0, size, step):
            rows = slice(start, min(start + step, size))
            flat = multiply(parts.basis[rows]).add_(offset)
            residuals = flat.view(len(flat), -1, num_classes)
            if problem.primal:
                _add_to_own(residuals, problem.labels[rows], 2)
            yield rows, chosen, residuals


def _to_predictions(residuals: Tensor, labels: Tensor) -> Tensor:
    """Y minus the residuals `[rows, penalties, K]`, in place."""
    return _add_to_own(residuals.neg_().sub_(1), labels, 2)


def _add_to_own(block: Tensor, labels: Tensor, value: float | Tensor) -> Tensor:
    """Add to the entry of each row's own class, in place; a number, or a tensor `[rows, penalties]` of them."""
    block[torch.arange(len(labels), device=labels.device), :, labels] += value
    return block
