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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Shrinkage = TypeVar("Shrinkage", float, Tensor)

BIAS = 100.0
"""Value of the constant feature; the same penalty on its weight makes the bias almost free (λ/10⁴)."""

EPSILON = 1e-5
"""Added to every standard deviation."""

CONSTANT_STD = 1e-7
"""A feature whose standard deviation is below this counts as constant."""

PAPER_L2 = 1024.0
"""big_vision's fixed penalty, 2¹⁰."""

SOLVER_VERSION = 1
"""Raised whenever a change here can change a score; part of every record's identity."""

BLOCK = 1 << 19
"""Elements of a temporary block: 4 MiB in float64, which stays in the cache of most processors."""


@dataclass(frozen=True)
class Standardisation:
    """What is subtracted from a feature and what it is divided by.

    Attributes:
        mean: `[D]` float64.
        scale: `[D]` float64; infinite for a constant feature, which is thereby exactly 0 wherever it is standardised.
    """

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise `x` `[M, D]` of any float dtype; the result is float64."""
        return (x.to(torch.float64) - self.mean).div_(self.scale)


def standardise(x: Tensor) -> Standardisation:
    """Mean, and population standard deviation (ddof = 0) plus 1e-5, of every feature, as big_vision takes them.

    Deviation from big_vision: a feature whose standard deviation is below 1e-7 counts as constant and contributes exactly 0, to
    the support rows and to the test rows. big_vision divides its rounding noise by 1e-5, and multiplies the test rows' deviations
    by 10⁵. The same holds below 1e-14 of the mean, where float64 cannot tell spread from rounding. (A model whose features all
    have a standard deviation below 1e-7 is therefore scored as one with constant features.)

    Args:
        x: `[N, D]`, any float dtype; the statistics are computed in float64, because a float32 mean is wrong by more than 1e-7.
    """
    x = x.to(torch.float64)
    mean = x.mean(dim=0)
    std = (x - mean).square_().mean(dim=0).sqrt_()
    constant = std < (1e-14 * mean.abs()).clamp_min_(CONSTANT_STD)
    return Standardisation(mean, (std + EPSILON).masked_fill_(constant, torch.inf))


@dataclass(frozen=True)
class RidgeClassifier:
    """A fitted classifier.

    Attributes:
        standardisation: The statistics of the support set.
        weights: `[D+1, K]`, on standardised features; the last row belongs to the constant feature of value 100.
    """

    standardisation: Standardisation
    weights: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """Scores `[M, K]`, in the dtype of the weights, of rows `x` `[M, D]` of any float dtype."""
        blocks = list(self._score_blocks(x))
        return torch.cat(blocks) if blocks else self.weights.new_empty(0, self.weights.shape[1])

    def predict(self, x: Tensor) -> Tensor:
        """The class of the highest score, `[M]` int64, of rows `x` `[M, D]`; the lowest class where scores are equal."""
        blocks = [block.argmax(dim=1) for block in self._score_blocks(x)]
        return torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.int64, device=x.device)

    def ranking(self, x: Tensor, count: int) -> Tensor:
        """The `count` classes of the highest scores, or all if there are fewer, best first: `[M, min(count, K)]` int64.

        Of equal scores the lowest class comes first, so the first column is `predict`.
        """
        return self.ranked(x, count)[0]

    def ranked(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `ranking`, and the highest score of every row, `[M]` in the dtype of the weights."""
        ranks = [torch.empty(0, min(count, self.weights.shape[1]), dtype=torch.int64, device=x.device)]
        highest = [self.weights.new_empty(0)]
        for block in self._score_blocks(x):
            ranks.append(best_first(block, count))
            highest.append(block.amax(dim=1))
        return torch.cat(ranks), torch.cat(highest)

    def _score_blocks(self, x: Tensor) -> Iterator[Tensor]:
        # ((x - μ)/s) W = (x - μ)(W/s): dividing the weights spares a pass over the test rows. The mean is subtracted from the
        # rows all the same, because x(W/s) - μ(W/s) would cancel where a mean is far larger than its standard deviation.
        dtype = self.weights.dtype
        slopes = self.weights[:-1] / self.standardisation.scale[:, None].to(dtype)
        offset = BIAS * self.weights[-1]
        for block in torch.split(x, max(1, BLOCK // max(self.weights.shape))):
            centred = block.to(torch.float64, copy=True).sub_(self.standardisation.mean)
            yield torch.addmm(offset, centred.to(dtype), slopes)


def best_first(scores: Tensor, count: int) -> Tensor:
    """Columns of the `count` highest scores of each row, or all, highest first; of equal scores the lowest column first.

    Args:
        scores: `[M, K]`, none of them NaN.
        count: How many, at least 1.

    Returns:
        `[M, min(count, K)]` int64.
    """
    best = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    ranking = best.indices[:, :count]
    # topk does not say which of equal scores it takes, nor in what order: rows that have some are sorted, which is far slower.
    tied = (best.values[:, 1:] == best.values[:, :-1]).any(dim=1)
    if bool(tied.any()):
        ranking[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :count]
    return ranking


@dataclass(frozen=True)
class Problem:
    """A support set made ready: standardised, with the matrix that is to be inverted.

    Attributes:
        standardisation: The statistics of the rows.
        z: `[N, D]` standardised rows.
        labels: `[N]` int64.
        counts: `[K]` int64, rows of each class.
        primal: Whether `gram` is Z'Z `[D, D]`; else it is ZZ' `[N, N]`.
        gram: The matrix.
    """

    standardisation: Standardisation
    z: Tensor
    labels: Tensor
    counts: Tensor
    primal: bool
    gram: Tensor

    @property
    def mean_target(self) -> Tensor:
        """ȳ `[K]`: the mean of the rows of Y, in the dtype of `z`."""
        return 2 * self.counts.to(self.z.dtype) / len(self.z) - 1  # int / int would be float32

    @property
    def noise(self) -> float:
        """A bound on the rounding in the eigenvalues of `gram`: machine epsilon times its size times its Frobenius norm."""
        return torch.finfo(self.z.dtype).eps * len(self.gram) * float(torch.linalg.matrix_norm(self.gram))

    def bias_shrinkage(self, l2: Shrinkage) -> Shrinkage:
        """1 - β = λ/(N·B² + λ): the part of ȳ that the penalty keeps from the bias, for one λ or a tensor of them."""
        return l2 / (len(self.z) * BIAS**2 + l2)

    def with_bias(self, slopes: Tensor, l2: float) -> Tensor:
        """The weights `[D+1, K]` from those of the features `[D, K]`: the bias row is N·B·ȳ/(N·B² + λ)."""
        return torch.cat([slopes, ((1 - self.bias_shrinkage(l2)) / BIAS * self.mean_target)[None]])


def prepare(
    x: Tensor, labels: Tensor, num_classes: int, *, dtype: torch.dtype = torch.float64, primal: bool | None = None
) -> Problem:
    """Standardise a support set and form its Gram matrix.

    Args:
        x: `[N, D]`, N at least 1, any float dtype, on the device that is to compute.
        labels: `[N]` int64 in `[0, num_classes)`, on the same device.
        num_classes: K; a class without rows gets a target column that is -1 throughout, as in big_vision.
        dtype: Of the solve. In float32, small eigenvalues are wrong by more than a small λ, and can be negative.
        primal: Which matrix to form; None takes the smaller one (primal if N > D+1). Both give the same answer.
    """
    standardisation = standardise(x)
    z = standardisation(x).to(dtype)
    primal = z.shape[0] > z.shape[1] + 1 if primal is None else primal
    counts = torch.bincount(labels, minlength=num_classes)
    return Problem(standardisation, z, labels, counts, primal, z.T @ z if primal else z @ z.T)


def fit(
    x: Tensor, labels: Tensor, num_classes: int, l2: float = PAPER_L2, *, dtype: torch.dtype = torch.float64
) -> RidgeClassifier:
    """Fit with one given penalty.

    A single λ needs no eigenvalues; a Cholesky factorisation is several times faster.

    Args:
        x: `[N, D]`, N at least 1, any float dtype.
        labels: `[N]` int64 in `[0, num_classes)`, on the same device.
        num_classes: K.
        l2: λ, above 0, not divided by N.
        dtype: Of the solve.
    """
    problem = prepare(x, labels, num_classes, dtype=dtype)
    regularised = problem.gram + l2 * torch.eye(len(problem.gram), dtype=dtype, device=x.device)
    factor, failed = torch.linalg.cholesky_ex(regularised)
    if l2 <= problem.noise or bool(failed):
        spectrum = decompose(problem)
        return RidgeClassifier(problem.standardisation, weights(spectrum, l2))
    if problem.primal:
        slopes = torch.cholesky_solve(_projected_targets(problem, problem.z), factor)
    else:
        # Y may be centred, because Z'(ZZ' + λI)⁻¹1 = Z'1/λ = 0; it must be, or that zero is rounding noise divided by λ.
        targets = -(problem.mean_target + 1).expand(len(x), -1).clone()
        targets[torch.arange(len(x), device=x.device), labels] += 2
        slopes = problem.z.T @ torch.cholesky_solve(targets, factor)
    return RidgeClassifier(problem.standardisation, problem.with_bias(slopes, l2))


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
        projected = vectors.T @ _projected_targets(problem, problem.z)
    else:
        # ZZ'1 = 0: the constant vector is an eigenvector, and in the full problem its eigenvalue is that of the bias. Other null
        # vectors (duplicate rows) must not mix with it. Adding τ·11'/N lifts it, and no other, to an eigenvalue τ that no
        # eigenvalue of ZZ' reaches; the last eigenvector is then the constant one and is dropped.
        lift = 2 * torch.linalg.matrix_norm(gram) + 1
        values, vectors = torch.linalg.eigh(gram + lift / len(gram))
        values, vectors = values[:-1], vectors[:, :-1]
        projected = _projected_targets(problem, vectors)
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


def _projected_targets(problem: Problem, rows: Tensor) -> Tensor:
    """The product rows'Y `[R, K]` for `rows` `[N, R]` whose columns sum to 0: twice the sum of the rows of each class."""
    sums = rows.new_zeros(len(problem.counts), rows.shape[1])
    return 2 * sums.index_add_(0, problem.labels, rows).T
