"""Exact leave-one-out for ridge regression, in closed form, and the choice of a penalty by it.

In the notation of `vitbench.solvers.ridge`, the fit is Ŷ = HY with H = Z(Z'Z + λI)⁻¹Z' + (β/N)·11'. Let ỹ be the prediction for
row i by the model that was fitted without row i. If yᵢ were ỹ, that model would minimise the objective of all N rows too, because
row i would cost nothing. So ỹ = Σ_{j≠i} Hᵢⱼ yⱼ + Hᵢᵢ ỹ = ŷᵢ - Hᵢᵢ yᵢ + Hᵢᵢ ỹ, which gives the residual of a row left out:

    yᵢ - ỹ = (yᵢ - ŷᵢ) / (1 - Hᵢᵢ).

It is exact for the ridge regression on Z; the statistics of the standardisation stay those of all N rows. No test label is
involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitbench.solvers import ridge
from vitbench.solvers.ridge import Spectrum

Criterion = Literal["squared_error", "accuracy"]


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
    curve = _curve(spectrum, _contenders(spectrum, parts) if criterion == "squared_error" else parts)
    best = curve.best(criterion)
    return Choice(curve.grid[best], curve.squared_error[best], curve.accuracy[best])


def predictions(spectrum: Spectrum, l2: float) -> Tensor:
    """Scores `[N, K]` of every support row by the classifier that was fitted without it."""
    labels = spectrum.problem.labels
    blocks = _residuals(spectrum, _parts(spectrum, [l2]))
    return torch.cat([_to_predictions(residuals, labels[rows])[:, 0] for rows, _, residuals in blocks])


@dataclass(frozen=True)
class _Parts:
    """What the left-out residuals of G penalties are made of: (Y - Ŷ)ᵢ = offset + basisᵢ diag(gains) A, over free = 1 - Hᵢᵢ.

    In the primal, offset leaves out the 2 that Y = 2·onehot - 1 has at each row's own class.
    """

    l2: Tensor  # [G]
    basis: Tensor  # [N, R]
    gains: Tensor  # [R, G]
    offsets: Tensor  # [G, K]
    free: Tensor  # [N, G]

    def take(self, penalties: Tensor) -> _Parts:
        """The same for some of the penalties."""
        return _Parts(
            self.l2[penalties],
            self.basis,
            self.gains[:, penalties],
            self.offsets[penalties],
            self.free[:, penalties],
        )


def _parts(spectrum: Spectrum, grid: Sequence[float]) -> _Parts:
    """Residuals and leverages from the eigendecomposition.

    Primal, with F = ZV:   Y - Ŷ = Y - βȳ - F diag(1/(e+λ)) A          1 - Hᵢᵢ = 1 - β/N - Σᵣ Fᵢᵣ²/(eᵣ+λ)
    Dual, with Y = 1ȳ' + QA, and 1 = 1/N + Σᵣ Qᵢᵣ²:
                           Y - Ŷ = (1-β)ȳ + Q diag(λ/(e+λ)) A          1 - Hᵢᵢ = (1-β)/N + Σᵣ Qᵢᵣ² λ/(eᵣ+λ)

    The dual's 1 - Hᵢᵢ is a sum of positive terms: it cannot vanish, however small λ is. The primal's can, by cancellation, for
    a row that alone decides some direction; the residual above it is as small then, and a floor at the size of rounding keeps the
    quotient finite.
    """
    problem, values = spectrum.problem, spectrum.values
    size = len(problem.z)
    l2 = torch.tensor(grid, dtype=values.dtype, device=values.device)
    kept = problem.bias_shrinkage(l2)
    if problem.primal:
        basis, gains = problem.z @ spectrum.vectors, -ridge.inverse(spectrum, values[:, None] + l2)
        free = 1 - (1 - kept) / size + basis.square() @ gains
        free.clamp_min_(8 * torch.finfo(free.dtype).eps)
        return _Parts(l2, basis, gains, -1 - (1 - kept)[:, None] * problem.mean_target, free)
    basis, gains = spectrum.vectors, l2 / (values[:, None] + l2)
    free = kept / size + basis.square() @ gains
    return _Parts(l2, basis, gains, kept[:, None] * problem.mean_target, free)


def _contenders(spectrum: Spectrum, parts: _Parts) -> _Parts:
    """The penalties that can have the smallest left-out error; usually less than half of a wide grid.

    With wᵢ = 1/(1 - Hᵢᵢ)², the left-out error Σᵢ wᵢ‖yᵢ - ŷᵢ‖² lies between min w and max w times the error of the fit itself,
    which needs no residuals. F'F = diag(e) and Q'Q = I, their columns sum to 0, and F'Y = A:

    Primal:   ‖Y - Ŷ‖² = N(1-β)²‖ȳ‖² + (NK - N‖ȳ‖²) - 2 Σᵣ ‖Aᵣ‖²/(eᵣ+λ) + Σᵣ eᵣ‖Aᵣ‖²/(eᵣ+λ)²
    Dual:     ‖Y - Ŷ‖² = N(1-β)²‖ȳ‖² + Σᵣ ‖Aᵣ‖² (λ/(eᵣ+λ))²

    A penalty whose lower bound is above another's upper bound is out. The primal's sum can cancel, the dual's cannot; the bounds
    are widened by the rounding.
    """
    problem = spectrum.problem
    size, num_classes = len(problem.z), len(problem.counts)
    energy = spectrum.projected.square().sum(dim=1)
    mean_energy = problem.mean_target.square().sum()
    error = size * problem.bias_shrinkage(parts.l2).square() * mean_energy
    if problem.primal:
        centred = size * (num_classes - mean_energy)
        error = error + centred + 2 * energy @ parts.gains + (energy * spectrum.values) @ parts.gains.square()
    else:
        error = error + energy @ parts.gains.square()
    rounding = 8 * torch.finfo(error.dtype).eps * size * (size * num_classes if problem.primal else error)
    factor = parts.free.square().reciprocal()
    lower, upper = factor.amin(dim=0) * (error - rounding), factor.amax(dim=0) * (error + rounding)
    return parts.take((lower <= upper.min()).nonzero()[:, 0])


def _curve(spectrum: Spectrum, parts: _Parts) -> LeaveOneOut:
    labels = spectrum.problem.labels
    size, num_classes, penalties = len(labels), len(spectrum.problem.counts), len(parts.l2)
    errors = torch.zeros(penalties, dtype=torch.float64, device=labels.device)
    hits = torch.zeros(penalties, dtype=torch.float64, device=labels.device)
    for rows, chosen, residuals in _residuals(spectrum, parts):
        errors[chosen] += residuals.square().sum(dim=(0, 2), dtype=torch.float64)
        predicted = _to_predictions(residuals, labels[rows]).argmax(dim=2)
        hits[chosen] += (predicted == labels[rows, None]).sum(dim=0)
    return LeaveOneOut(
        tuple(parts.l2.tolist()), tuple((errors / (size * num_classes)).tolist()), tuple((hits / size).tolist())
    )


def _residuals(spectrum: Spectrum, parts: _Parts) -> Iterator[tuple[slice, slice, Tensor]]:
    """The left-out residuals (Y - Ŷ)/(1 - H), block by block: which rows, which penalties, and `[rows, penalties, K]`."""
    problem, projected = spectrum.problem, spectrum.projected
    size, num_classes, penalties = len(problem.z), len(problem.counts), len(parts.l2)
    together = min(penalties, max(1, ridge.BLOCK // (size * num_classes)))
    step = max(1, ridge.BLOCK // (together * num_classes))
    for first in range(0, penalties, together):
        chosen = slice(first, min(first + together, penalties))
        coefficients = (parts.gains[:, chosen, None] * projected[:, None]).flatten(1)
        offset = parts.offsets[chosen].flatten()
        for start in range(0, size, step):
            rows = slice(start, min(start + step, size))
            flat = torch.addmm(offset, parts.basis[rows], coefficients)
            residuals = flat.view(len(flat), -1, num_classes)
            if problem.primal:
                _add_to_own(residuals, problem.labels[rows], 2)
            yield rows, chosen, residuals.div_(parts.free[rows, chosen, None])


def _to_predictions(residuals: Tensor, labels: Tensor) -> Tensor:
    """Y minus the residuals `[rows, penalties, K]`, in place."""
    return _add_to_own(residuals.neg_().sub_(1), labels, 2)


def _add_to_own(block: Tensor, labels: Tensor, value: float) -> Tensor:
    """Add to the entry of each row's own class, in place."""
    block[torch.arange(len(labels), device=labels.device), :, labels] += value
    return block
