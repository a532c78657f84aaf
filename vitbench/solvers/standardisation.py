"""Standardisation of features: what big_vision calls whitening, with the statistics of the rows that are learned from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-5
"""Added to every standard deviation."""

CONSTANT_STD = 1e-7
"""A feature whose standard deviation is below this counts as constant."""


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
        return torch.sub(x, self.mean).div_(self.scale)


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
    return from_variance(mean, (x - mean).square_().mean(dim=0))


def from_variance(mean: Tensor, variance: Tensor) -> Standardisation:
    """The standardisation of features whose mean and population variance are known, both `[D]` float64; see `standardise`."""
    std = variance.sqrt()
    constant = std < (1e-14 * mean.abs()).clamp_min_(CONSTANT_STD)
    return Standardisation(mean, (std + EPSILON).masked_fill_(constant, torch.inf))
