"""Sufficient statistics of ridge classification: all that a fit needs to know of its rows, whose memory does not grow with them.

For N rows x with D features and K classes these are the number of rows of each class, the mean μ, the scatter matrix
S = Σ(x-μ)(x-μ)' and the class sums cₖ = Σ(x-μ) over the rows of class k. With the standard deviations s (the root of S's diagonal
over N), Z'Z = diag(1/s) S diag(1/s), and Z'Y = 2 [c₁ … c_K]' / s, because Y = 2·onehot - 1 and Z'1 = 0.

Two disjoint sets of rows, N₁ and N₂, join by Chan's formulas (Chan, Golub and LeVeque 1983). With δ = μ₂ - μ₁:

    μ = μ₁ + δ·N₂/N        S = S₁ + S₂ + δδ'·N₁N₂/N        cₖ = cₖ₁ - nₖ₁ (μ-μ₁) + cₖ₂ - nₖ₂ (μ-μ₂).

Every sum is about a mean that is near its rows, so that nothing cancels: X'X - Nμμ' loses as many digits as the square of the
mean has more than the variance. All is float64. A float32 product of rows would be off by 6·10⁻⁸ of S's largest eigenvalue, which
the solve divides by its smallest plus λ: the weights of a full train split, where that quotient is 10⁴ and more, would not be
right to 1e-6.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from vitbench.solvers.standardisation import Standardisation, from_variance

BLOCK = 1 << 22
"""Elements of the rows that are multiplied at once: 32 MiB in float64, 4,096 rows of 1,024 features."""

PANEL = 192
"""Columns of the scatter matrix that are computed at once; the panels above the diagonal are left out."""


class Moments:
    """The statistics of some rows; more rows can be added, and the statistics of other rows merged, in any order.

    Attributes:
        counts: `[K]` int64, rows of each class.
        mean: `[D]` float64.
        sums: `[K, D]` float64, the sums of x - mean over the rows of each class.
    """

    def __init__(self, features: int, num_classes: int, device: torch.device | str = "cpu") -> None:
        """No rows as yet.

        Args:
            features: D.
            num_classes: K.
            device: Where the sums are held and the rows will be.
        """
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.mean = torch.zeros(features, dtype=torch.float64, device=device)
        self.sums = torch.zeros(num_classes, features, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(features, features, dtype=torch.float64, device=device)  # valid up to the diagonal

    @property
    def size(self) -> int:
        """N, the number of rows."""
        return int(self.counts.sum())

    def add(self, x: Tensor, labels: Tensor) -> Self:
        """Add rows.

        Args:
            x: `[n, D]`, any float dtype, finite.
            labels: `[n]` int64 in `[0, K)`.
        """
        step = max(1, BLOCK // max(1, x.shape[1]))
        for rows, classes in zip(torch.split(x, step), torch.split(labels, step), strict=True):
            if not len(rows):
                continue
            centred = rows.to(torch.float64, copy=True)
            mean = centred.mean(dim=0)
            centred -= mean
            self._join(torch.bincount(classes, minlength=len(self.counts)), mean)
            self.sums.index_add_(0, classes, centred)
            for start in range(0, centred.shape[1], PANEL):
                stop = min(start + PANEL, centred.shape[1])
                self._scatter[start:stop, :stop].addmm_(centred[:, start:stop].T, centred[:, :stop])
        return self

    def merge(self, other: Moments) -> Self:
        """Add the rows that `other` has seen, none of which may be among these."""
        if other.size:
            self._join(other.counts, other.mean)
            self.sums += other.sums
            self._scatter += other._scatter
        return self

    def standardisation(self) -> Standardisation:
        """Mean and scale of the rows, of which there must be one; see `vitbench.solvers.standardisation.standardise`."""
        return from_variance(self.mean, self._scatter.diagonal() / self.size)

    def gram(self, standardisation: Standardisation) -> Tensor:
        """Z'Z `[D, D]` float64, the scatter matrix of the standardised rows, exactly symmetric."""
        lower = (self._scatter / standardisation.scale).div_(standardisation.scale[:, None]).tril_()
        return lower + lower.tril(-1).T

    def cross(self, standardisation: Standardisation) -> Tensor:
        """Z'Y `[D, K]` float64 for the targets Y = 2·onehot - 1."""
        return (2 * self.sums / standardisation.scale).T

    def _join(self, counts: Tensor, mean: Tensor) -> None:
        """Move to the mean of these rows and others, whose own sums about their own mean are then still to be added."""
        before, added = self.size, int(counts.sum())
        delta = mean - self.mean
        step = delta * (added / (before + added))
        self.sums.addr_(self.counts.to(torch.float64), step, alpha=-1)
        self.sums.addr_(counts.to(torch.float64), delta - step)
        if before:
            self._scatter.addr_(delta, delta, alpha=before * added / (before + added))
        self.counts += counts
        self.mean += step
