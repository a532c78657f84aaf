"""The penalty of the smallest leave-one-out error, proved so, with few penalties evaluated.

With rᵢ(λ) = yᵢ - ŷᵢ and wᵢ(λ) = 1/(1 - Hᵢᵢ)², the left-out error is E(λ) = Σᵢ wᵢ‖rᵢ‖². The weights of every λ are known at once,
and so is the error of the fit itself, R(λ) = Σᵢ‖rᵢ‖², and the distance of two fits, d² = Σᵢ‖rᵢ(λ) - rᵢ(λ')‖²; only the
residuals of each row cost a matrix product. Let λ' be one that was evaluated, and v and h the middle and half the range of the
weights of λ. With wᵢ = v + (wᵢ - v), and since |‖rᵢ(λ)‖² - ‖rᵢ(λ')‖²| ≤ 2‖rᵢ(λ')‖‖rᵢ(λ) - rᵢ(λ')‖ + ‖rᵢ(λ) - rᵢ(λ')‖², by Cauchy
and Schwarz

    | E(λ) - v R(λ) - Σᵢ (wᵢ(λ) - v) ‖rᵢ(λ')‖² | ≤ h (2 √R(λ') d + d²).

Where nothing is evaluated, rᵢ(λ') = 0 and d² = R(λ) make that the bound min w · R ≤ E ≤ max w · R. The penalty that looks best is
evaluated, the bounds get tighter around it, and so on until no other can be as good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitbench.solvers.ridge import Problem, Spectrum, inverse


@dataclass(frozen=True)
class FitErrors:
    """The squared errors of the fits themselves, R(λ), and what tells how far apart they are, for G penalties; all float64.

    Attributes:
        error: `[G]` R(λ).
        rounding: `[G]` a bound on the rounding of `error`.
        factors: `[R, G]` what each ‖Aᵣ‖ is multiplied by in the distance of two fits.
        energies: `[R]` ‖Aᵣ‖², in the primal times eᵣ.
        bias: `[G]` (1-β) √N ‖ȳ‖.
    """

    error: Tensor
    rounding: Tensor
    factors: Tensor
    energies: Tensor
    bias: Tensor

    def distance(self, penalty: int) -> Tensor:
        """d² `[G]` of the fit with one penalty to the fits with all."""
        apart = (self.factors - self.factors[:, penalty, None]).square()
        return self.energies @ apart + (self.bias - self.bias[penalty]).square()


def fit_errors(spectrum: Spectrum, l2: Tensor) -> FitErrors:
    """The errors of the fits with each penalty of `l2` `[G]`, from the spectrum alone.

    F'F = diag(e) and Q'Q = I, their columns sum to 0, and F'Y = A (`vitbench.solvers.leave_one_out`):

    Primal:   ‖Y - Ŷ‖² = N(1-β)²‖ȳ‖² + (NK - N‖ȳ‖²) - 2 Σᵣ ‖Aᵣ‖²/(eᵣ+λ) + Σᵣ eᵣ‖Aᵣ‖²/(eᵣ+λ)²
    Dual:     ‖Y - Ŷ‖² = N(1-β)²‖ȳ‖² + Σᵣ ‖Aᵣ‖² (λ/(eᵣ+λ))²

    The primal's sum can cancel, the dual's cannot. The distance of two fits is the same sum with the difference of the two
    factors of ȳ, and of Aᵣ.
    """
    problem, values = spectrum.problem, spectrum.values.to(torch.float64)
    l2 = l2.to(torch.float64)
    size, num_classes = problem.size, len(problem.counts)
    energy = spectrum.projected.to(torch.float64).square().sum(dim=1)
    mean_energy = size * problem.mean_target.to(torch.float64).square().sum()
    kept = problem.bias_shrinkage(l2)
    if problem.primal:
        factors, energies = inverse(spectrum, values[:, None] + l2), energy * values
        error = kept.square() * mean_energy + (size * num_classes - mean_energy)
        error = error - 2 * energy @ factors + energies @ factors.square()
        scale = torch.full_like(error, size * num_classes)
    else:
        factors, energies = l2 / (values[:, None] + l2), energy
        error = scale = kept.square() * mean_energy + energies @ factors.square()
    rounding = 8 * torch.finfo(spectrum.values.dtype).eps * size * scale
    return FitErrors(error, rounding, factors, energies, kept * mean_energy.sqrt())


def fit_error(problem: Problem, l2: float, slopes: Tensor) -> tuple[float, float]:
    """R(λ) of one penalty of a primal problem and a bound on its rounding, from the weights W `[D, K]` of the features alone.

    W'(Z'Z + λI)W = W'Z'Y, so that ‖Y - Ŷ‖² = N(1-β)²‖ȳ‖² + (NK - N‖ȳ‖²) - tr W'Z'Y - λ‖W‖².
    """
    size, entries = problem.size, problem.size * len(problem.counts)
    mean_energy = size * float(problem.mean_target.square().sum())
    explained = float((slopes * problem.cross).sum() + l2 * slopes.square().sum())
    error = problem.bias_shrinkage(l2) ** 2 * mean_energy + (entries - mean_energy) - explained
    return error, 8 * torch.finfo(slopes.dtype).eps * size * entries


@dataclass(frozen=True)
class Evaluated:
    """What is known of a penalty whose residuals were computed.

    Attributes:
        error: E(λ).
        accuracy: Fraction of left-out rows whose class is predicted.
        energy: `[N]` float64 ‖rᵢ(λ)‖².
    """

    error: float
    accuracy: float
    energy: Tensor


class Search:
    """The search among G penalties."""

    def __init__(self, errors: FitErrors, factors: Tensor, evaluate: Callable[[int], Evaluated]) -> None:
        """Find the first bounds.

        Args:
            errors: Of the G fits.
            factors: `[N, G]` wᵢ.
            evaluate: Computes the residuals of the penalty of a number.
        """
        self._errors, self._factors, self._evaluate = errors, factors.to(torch.float64), evaluate
        ends = self._factors.aminmax(dim=0)
        self._middle, self._half = (ends.max + ends.min) / 2, (ends.max - ends.min) / 2
        self._slack = errors.rounding * ends.max
        error = errors.error.clamp_min(0)
        self._lower = ends.min * error - self._slack
        self._estimate = self._factors.mean(dim=0) * error
        self._nearest = torch.full_like(error, len(error))
        self._evaluated: dict[int, Evaluated] = {}

    def best(self) -> tuple[int, Evaluated]:
        """The penalty of the least E(λ), of equals the first, and what is known of it."""
        while True:
            least = min((found.error for found in self._evaluated.values()), default=torch.inf)
            if not (rivals := self._open(torch.full_like(self._lower, least))):
                break
            self._take(rivals)
        best = min(self._evaluated, key=lambda item: (self._evaluated[item].error, item))
        return best, self._evaluated[best]

    def contenders(self, best: int, margin: Tensor, most: int) -> dict[int, Evaluated]:
        """The penalties whose error is not above that of the best by more than their own margin, the best first.

        Args:
            best: The penalty of the least error.
            margin: `[G]`, fractions of its error.
            most: How many are of use; where there are more, not all of them are returned, but more than that.
        """
        limit = self._evaluated[best].error * (1 + margin)
        while True:
            found = {best: self._evaluated[best]}
            found |= {item: one for item, one in self._evaluated.items() if not one.error > float(limit[item])}
            if len(found) > most or not (rivals := self._open(limit)):
                return found
            self._take(rivals)

    def inconsistency(self) -> dict[int, float]:
        """Of each penalty that was evaluated, the fraction by which R(λ), which excludes others, is off the sum of its ‖rᵢ‖²."""
        sums = {item: float(one.energy.sum()) for item, one in self._evaluated.items()}
        return {item: abs(float(self._errors.error[item]) - sum_) / sum_ for item, sum_ in sums.items()}

    def _open(self, limit: Tensor) -> list[int]:
        """The penalties that are not evaluated and may be as low as a limit `[G]`; a bound that is NaN excludes nothing."""
        return [item for item in (~(self._lower > limit)).nonzero()[:, 0].tolist() if item not in self._evaluated]

    def _take(self, penalties: list[int]) -> None:
        """Evaluate the most promising of some penalties, and tighten the bounds about it."""
        estimate = self._estimate.tolist()
        penalty = min(penalties, key=lambda item: (estimate[item], item))
        energy = self._evaluated.setdefault(penalty, self._evaluate(penalty)).energy
        distance = self._errors.distance(penalty)
        central = self._middle * (self._errors.error - energy.sum()) + energy @ self._factors
        reach = self._half * (2 * energy.sum().sqrt() * distance.sqrt() + distance)
        steps = (torch.arange(len(distance), device=distance.device) - penalty).abs().to(self._nearest.dtype)
        self._lower = torch.fmax(self._lower, central - reach - 2 * self._slack)
        self._estimate = torch.where(steps < self._nearest, central, self._estimate)
        self._nearest = torch.minimum(self._nearest, steps)
