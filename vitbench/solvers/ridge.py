"""Ridge regression onto {-1, +1} class targets, in closed form.

This is big_vision's few-shot classifier (`evaluators/fewshot_lsr.py`), solved in float64. N support rows x with D features and K
classes are standardised with their own statistics to Z `[N, D]`, get a constant feature of value B = 100, and are fitted to
Y = 2·onehot - 1 `[N, K]` with one penalty λ (`l2`) on all weights, the bias among them:

    minimise ‖[Z B·1] W - Y‖² + λ ‖W‖²        W = ([Z B]'[Z B] + λI)⁻¹ [Z B]'Y.

The bias decouples. Standardising centres the columns, Z'1 = 0, so [Z B]'[Z B] is block diagonal: Z'Z and the single number N·B².
With ȳ the mean of Y's rows, the bias row of W is N·B·ȳ/(N·B² + λ), it adds β·ȳ to every score with β = N·B²/(N·B² + λ), and
what is left is a ridge regression on Z alone. The bias feature is therefore never appended: its eigenvalue N·B², often 10⁷, would
drown the small eigenvalues of Z'Z in rounding.

Primal (N > D+1).  Z'Z = V diag(e) V', and with A = V'Z'Y:      W = V diag(1/(e+λ)) A.
Dual (N ≤ D+1).    ZZ' = Q diag(e) Q', and since (Z'Z + λI)⁻¹Z' = Z'(ZZ' + λI)⁻¹, with A = Q'Y:      W = Z'Q diag(1/(e+λ)) A.
Either decomposition serves every λ. (big_vision takes the primal at N = D+1 too; the dual is the better conditioned there.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from vitbench.solvers.classifier import BIAS, RidgeClassifier, best_first
from vitbench.solvers.moments import Moments
from vitbench.solvers.standardisation import CONSTANT_STD, EPSILON, Standardisation, standardise

__all__ = [
    "BIAS",
    "CONSTANT_STD",
    "EPSILON",
    "PAPER_L2",
    "SOLVER_VERSION",
    "Problem",
    "RidgeClassifier",
    "Spectrum",
    "Standardisation",
    "best_first",
    "cholesky",
    "decompose",
    "fit",
    "inverse",
    "prepare",
    "solve",
    "standardise",
    "summarised",
    "weights",
]

Shrinkage = TypeVar("Shrinkage", float, Tensor)

PAPER_L2 = 1024.0
"""big_vision's fixed penalty, 2¹⁰."""

PANEL = 96
"""Columns of a matrix that are factorised at once on a CPU."""

SOLVER_VERSION = 1
"""Raised whenever a change here can change a score; part of every record's identity."""


@dataclass(frozen=True)
class Problem:
    """A support set made ready: standardised, with the matrix that is to be inverted.

    Attributes:
        standardisation: The statistics of the rows.
        counts: `[K]` int64, rows of each class.
        size: N, the number of rows that were learned from.
        primal: Whether `gram` is Z'Z `[D, D]`; else it is ZZ' `[N, N]`.
        gram: The matrix.
        cross: `[D, K]` Z'Y if primal; else `[D, 0]`.
        z: Standardised rows: all N `[N, D]`, or in the primal some of them or none, where the others are not in memory.
        labels: int64, the classes of `z`.
    """

    standardisation: Standardisation
    counts: Tensor
    size: int
    primal: bool
    gram: Tensor
    cross: Tensor
    z: Tensor
    labels: Tensor

    @property
    def mean_target(self) -> Tensor:
        """ȳ `[K]`: the mean of the rows of Y, in the dtype of `gram`."""
        return 2 * self.counts.to(self.gram.dtype) / self.size - 1  # int / int would be float32

    @property
    def noise(self) -> float:
        """A bound on the rounding in the eigenvalues of `gram`: machine epsilon times its size times its Frobenius norm."""
        return torch.finfo(self.gram.dtype).eps * len(self.gram) * float(torch.linalg.matrix_norm(self.gram))

    def bias_shrinkage(self, l2: Shrinkage) -> Shrinkage:
        """1 - β = λ/(N·B² + λ): the part of ȳ that the penalty keeps from the bias, for one λ or a tensor of them."""
        return l2 / (self.size * BIAS**2 + l2)

    def with_bias(self, slopes: Tensor, l2: float) -> Tensor:
        """The weights `[D+1, K]` from those of the features `[D, K]`: the bias row is N·B·ȳ/(N·B² + λ)."""
        return torch.cat([slopes, ((1 - self.bias_shrinkage(l2)) / BIAS * self.mean_target)[None]])

    def on_rows(self, x: Tensor, labels: Tensor) -> Problem:
        """The same problem with other rows in memory: `x` `[n, D]`, not standardised, and `labels` `[n]`."""
        return replace(self, z=self.standardisation(x).to(self.gram.dtype), labels=labels)


def prepare(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    dtype: torch.dtype = torch.float64,
    primal: bool | None = None,
    moments: Moments | None = None,
) -> Problem:
    """Standardise a support set and form its Gram matrix, which is computed in float64 whatever `dtype` is.

    Args:
        x: `[N, D]`, N at least 1, any float dtype, on the device that is to compute.
        labels: `[N]` int64 in `[0, num_classes)`, on the same device.
        num_classes: K; a class without rows gets a target column that is -1 throughout, as in big_vision.
        dtype: Of the solve. In float32, small eigenvalues are wrong by more than a small λ, and can be negative.
        primal: Which matrix to form; None takes the smaller one (primal if N > D+1). Both give the same answer.
        moments: Those of these rows, where they are known; of use in the primal.
    """
    if x.shape[0] > x.shape[1] + 1 if primal is None else primal:
        known = moments or Moments(x.shape[1], num_classes, x.device).add(x, labels)
        return summarised(known, dtype=dtype).on_rows(x, labels)
    standardisation = standardise(x)
    z = standardisation(x)
    gram, counts = (z @ z.T).to(dtype), torch.bincount(labels, minlength=num_classes)
    cross = gram.new_empty(x.shape[1], 0)
    return Problem(standardisation, counts, len(x), False, gram, cross, z.to(dtype), labels)


def summarised(moments: Moments, *, dtype: torch.dtype = torch.float64) -> Problem:
    """The primal problem of rows of which the moments are known; none of its rows is in memory."""
    standardisation = moments.standardisation()
    gram, cross = moments.gram(standardisation).to(dtype), moments.cross(standardisation).to(dtype)
    z, labels = gram.new_empty(0, len(gram)), moments.counts.new_empty(0)
    return Problem(standardisation, moments.counts.clone(), moments.size, True, gram, cross, z, labels)


def fit(
    x: Tensor, labels: Tensor, num_classes: int, l2: float = PAPER_L2, *, dtype: torch.dtype = torch.float64
) -> RidgeClassifier:
    """Fit with one given penalty.

    Args:
        x: `[N, D]`, N at least 1, any float dtype.
        labels: `[N]` int64 in `[0, num_classes)`, on the same device.
        num_classes: K.
        l2: λ, above 0, not divided by N.
        dtype: Of the solve.
    """
    return solve(prepare(x, labels, num_classes, dtype=dtype), l2)


def solve(problem: Problem, l2: float, factor: Tensor | None = None) -> RidgeClassifier:
    """The classifier of one penalty, which needs no eigenvalues: a Cholesky factorisation is several times faster.

    Args:
        problem: The problem; in the dual, with all of its rows.
        l2: λ, above 0.
        factor: `cholesky(problem, l2)`, where it is known.
    """
    factor = cholesky(problem, l2) if factor is None else factor
    if factor is None:
        return RidgeClassifier(problem.standardisation, weights(decompose(problem), l2))
    if problem.primal:
        slopes = torch.cholesky_solve(problem.cross, factor)
    else:
        # Y may be centred, because Z'(ZZ' + λI)⁻¹1 = Z'1/λ = 0; it must be, or that zero is rounding noise divided by λ.
        targets = -(problem.mean_target + 1).expand(problem.size, -1).clone()
        targets[torch.arange(problem.size, device=factor.device), problem.labels] += 2
        slopes = problem.z.T @ torch.cholesky_solve(targets, factor)
    return RidgeClassifier(problem.standardisation, problem.with_bias(slopes, l2))


def cholesky(problem: Problem, l2: float) -> Tensor | None:
    """The lower factor of the Gram matrix plus λI; None where λ is below the rounding of its eigenvalues."""
    if l2 <= problem.noise:
        return None
    factor = problem.gram.clone()
    factor.diagonal().add_(l2)
    return _factorise(factor) if len(factor) > PANEL and factor.device.type == "cpu" else _lapack(factor)


def _lapack(matrix: Tensor) -> Tensor | None:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if bool(failed) else factor


def _factorise(matrix: Tensor) -> Tensor | None:
    """The lower Cholesky factor of a matrix, in place; None if it has none.

    Panel by panel of columns P, with those to its left done, as A = LL' says of the rows from the panel's own p on:

        Lₚ Lₚ' = Aₚₚ - L_{p,<} L_{p,<}'          L_{>,p} = (A_{>,p} - L_{>,<} L_{p,<}') Lₚ'⁻¹.

    MKL's own factorisation takes 1.7 times as long on processors that are not Intel's, where its products are not as slow.
    """
    size = len(matrix)
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        panel = matrix[start:, start:stop]
        panel.addmm_(matrix[start:, :start], matrix[start:stop, :start].T, alpha=-1)
        own = _lapack(panel[: stop - start])
        if own is None:
            return None
        panel[: stop - start] = own
        panel[stop - start :] = torch.linalg.solve_triangular(own.T, panel[stop - start :], upper=True, left=False)
    return matrix.tril_()


@dataclass(frozen=True)
class Spectrum:
    """The eigendecomposition of a problem's Gram matrix: all that any λ needs.

    Attributes:
        problem: The problem.
        values: `[R]` eigenvalues e, ascending, none below 0.
        vectors: `[D, D]` V (primal, R = D) or `[N, N-1]` Q (dual, R = N-1: without the constant vector, which is the bias's).
        projected: `[R, K]` A: V'Z'Y (primal) or Q'Y (dual).
    """

    problem: Problem
    values: Tensor
    vectors: Tensor
    projected: Tensor


def decompose(problem: Problem) -> Spectrum:
    """Eigendecomposition of the Gram matrix, in time O(min(N, D)³)."""
    gram = problem.gram
    if problem.primal:
        values, vectors = torch.linalg.eigh(gram)
        projected = vectors.T @ problem.cross
    else:
        # ZZ'1 = 0: the constant vector is an eigenvector, and in the full problem its eigenvalue is that of the bias. Other null
        # vectors (duplicate rows) must not mix with it. Adding τ·11'/N lifts it, and no other, to an eigenvalue τ that no
        # eigenvalue of ZZ' reaches; the last eigenvector is then the constant one and is dropped.
        lift = 2 * torch.linalg.matrix_norm(gram) + 1
        values, vectors = torch.linalg.eigh(gram + lift / len(gram))
        values, vectors = values[:-1], vectors[:, :-1]
        # Q'Y: the columns of Q sum to 0, so that it is twice the sum of the rows of each class.
        sums = gram.new_zeros(len(problem.counts), vectors.shape[1])
        projected = 2 * sums.index_add_(0, problem.labels, vectors).T
    return Spectrum(problem, values.clamp_min(0), vectors, projected)


def weights(spectrum: Spectrum, l2: float) -> Tensor:
    """The weights `[D+1, K]` for penalty `l2`, on standardised features, the bias row last."""
    problem = spectrum.problem
    slopes = spectrum.vectors @ (inverse(spectrum, spectrum.values + l2)[:, None] * spectrum.projected)
    return problem.with_bias(slopes if problem.primal else problem.z.T @ slopes, l2)


def inverse(spectrum: Spectrum, denominator: Tensor) -> Tensor:
    """1/(e+λ), from a tensor of e+λ of any shape.

    Where e+λ is below the rounding noise of e (only if λ is), it means nothing and is taken as 0, as in a pseudo-inverse.
    """
    return torch.where(denominator > spectrum.problem.noise, 1 / denominator, 0)
