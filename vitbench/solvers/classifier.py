"""A fitted ridge classifier: scores, and rankings of classes that are those of float64 at the speed of float32.

A ranking needs no score to the last digit, only which of two is larger. The scores of a row x are therefore computed in float32,
with a bound on their error. With m the mean in float32, c = fl(x - m), v the weights of a class over the scales, in float64, and
o that class's score of m, each score is o plus a sum of D products of c with v. It is summed in p pieces of at most s products,
and then over the pieces. Rounding c, v and o to float32 and summing each piece in any order, with or without fused products, is
off by at most

    (s + p + 3) u (Σ |c_d v_d| + |o|) ≤ (s + p + 3) u (‖c‖‖v‖ + |o|) = b,    u = 2⁻²⁴,

times 1 + O(Du) (Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 4.2). Two scores of a row that differ by
more than 2b are in the order of the exact ones. A row with a smaller gap anywhere among its best is scored again in float64, so
that every ranking, ties included, is the one of float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitbench.solvers import products
from vitbench.solvers.standardisation import Standardisation

BIAS = 100.0
"""Value of the constant feature; the same penalty on its weight makes the bias almost free (λ/10⁴)."""

BLOCK = 1 << 19
"""Elements of a temporary block: 4 MiB in float64, which stays in the cache of most processors."""

PIECE = 256
"""Products that float32 sums before it adds them to others."""

_UNIT = 2.0**-24
_VANISHING = 2.0**-100
_SAFE = (1e-25, 1e25)
_COLUMN = (1 << 29) - 1


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
        return self.ranking(x, 1)[:, 0]

    def ranking(self, x: Tensor, count: int) -> Tensor:
        """The `count` classes of the highest scores, or all if there are fewer, best first: `[M, min(count, K)]` int64.

        Of equal scores the lowest class comes first, so the first column is `predict`.
        """
        return self.ranked(x, count)[0]

    def ranked(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `ranking`, and the highest score of every row, `[M]` in the dtype of the weights, right to float32's rounding.

        Memory is that of the result and of a block of fixed size, whatever M and K are.
        """
        ranks = torch.empty(len(x), min(count, self.weights.shape[1]), dtype=torch.int64, device=x.device)
        highest = self.weights.new_empty(len(x))
        if not len(x):
            return ranks, highest
        doubtful = self._rank_in_float32(x, ranks, highest)
        rows = slice(None) if doubtful is None else doubtful
        if doubtful is None or len(doubtful):
            blocks = [(best_first(block, count), block.amax(dim=1)) for block in self._score_blocks(x[rows])]
            ranks[rows] = torch.cat([found for found, _ in blocks])
            highest[rows] = torch.cat([found for _, found in blocks])
        return ranks, highest

    def _rows_at_once(self) -> int:
        return max(1, BLOCK // max(self.weights.shape))

    def _slopes(self) -> Tensor:
        """Weights `[D, K]` on features that are not scaled: ((x - μ)/s) W = (x - μ)(W/s) spares a pass over the test rows."""
        return self.weights[:-1] / self.standardisation.scale[:, None].to(self.weights.dtype)

    def _score_blocks(self, x: Tensor) -> Iterator[Tensor]:
        # The mean is subtracted from the rows, because x(W/s) - μ(W/s) would cancel where a mean is far larger than its
        # standard deviation.
        dtype = self.weights.dtype
        slopes, offset = self._slopes(), BIAS * self.weights[-1]
        for block in torch.split(x, self._rows_at_once()):
            centred = block.to(torch.float64, copy=True).sub_(self.standardisation.mean)
            yield torch.addmm(offset, centred.to(dtype), slopes)

    def _rank_in_float32(self, x: Tensor, ranks: Tensor, highest: Tensor) -> Tensor | None:
        """Fill in the rows whose ranking is proved; the others `[m]` int64, or None if float32 proves nothing here."""
        slopes = self._slopes()
        size = float(slopes.norm(dim=0).amax())
        exact = products.float32_is_float32()
        if not (exact and self.weights.dtype == torch.float64 and _SAFE[0] < size < _SAFE[1]):
            return None
        mean = self.standardisation.mean.to(torch.float32)
        offset = BIAS * self.weights[-1] + (mean - self.standardisation.mean) @ slopes
        single, shift, floor = slopes.to(torch.float32), offset.to(torch.float32), float(offset.abs().amax())
        pieces = [slice(start, start + PIECE) for start in range(0, len(slopes), PIECE)]
        terms = min(PIECE, len(slopes)) + len(pieces) + 3
        unit = terms * _UNIT * (1 + len(slopes) * _UNIT) * 1.001  # the last for the rounding of the bound itself
        count = ranks.shape[1]
        doubtful = []
        step = self._rows_at_once()
        multiply = [products.times(single[piece], len(x)) for piece in pieces]
        for start in range(0, len(x), step):
            block = x[start : start + step]
            wide = block.to(torch.promote_types(block.dtype, torch.float32))
            scores, squares = shift.expand(len(block), -1).clone(), wide.new_zeros(len(block))
            for piece, product in zip(pieces, multiply, strict=True):
                centred = (wide[:, piece] - mean[piece]).to(torch.float32)
                scores += product(centred)
                squares += torch.linalg.vector_norm(centred, dim=1).square()
            values, indices = highest_of(scores, min(count + 1, single.shape[1]))
            # Below the square root of the smallest number, squares vanish; no row is that close to the mean but by chance.
            bound = (squares.clamp_min_(_VANISHING).sqrt() * size + floor) * unit
            # Written so that a gap or a bound that is NaN proves nothing.
            proved = (values[:, :-1] - values[:, 1:] > 2 * bound[:, None]).all(dim=1)
            ranks[start : start + step] = indices[:, :count]
            highest[start : start + step] = values[:, 0]
            doubtful.append((~proved).nonzero()[:, 0] + start)
        return torch.cat(doubtful)


def highest_of(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest scores of each row and their columns, highest first; of equal ones any, in any order.

    On a CPU torch's `topk` is slow where 64 · count columns are not there, and numpy's partition of numbers is fast. So each
    score is widened to float64, whose last 29 bits are then 0, and these take the number of its column: no two different
    scores change places. An infinite score becomes NaN.

    Args:
        scores: `[M, K]` float32.
        count: How many, at most K.

    Returns:
        `[M, count]` in the dtype of `scores`, and `[M, count]` int64.
    """
    columns = scores.shape[1]
    if scores.device.type != "cpu" or columns >= 64 * count:
        best = scores.topk(count, dim=1)
        return best.values, best.indices
    wide = scores.to(torch.float64)
    wide.view(torch.int64).bitwise_or_(torch.arange(columns))
    top = np.partition(wide.numpy(), columns - count, axis=1)[:, columns - count :]
    top.sort(axis=1)
    found = torch.from_numpy(top[:, ::-1].copy())
    return found.to(scores.dtype), found.view(torch.int64) & _COLUMN


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
