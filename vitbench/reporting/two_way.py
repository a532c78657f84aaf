"""How far a mean over seeds and test images may be off: both were drawn, and others could have been.

The derivation is in `docs/methodology.md`; the short form stands at each function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy

from vitbench.errors import DataError

FloatArray = npt.NDArray[np.float64]

Unit = Literal["test images", "episodes"]
IMAGES: Unit = "test images"
EPISODES: Unit = "episodes"

SHARE_POWER = 1.5
"""The exponent of the seeds' share in the critical value; chosen by simulation, see `docs/methodology.md`."""

SMALLEST_P = 1e-100
"""Below this a p-value is given as 0. scipy's t quantiles are infinite or NaN for tails of 1e-200, and right for these."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: The number that is shown.
        low: Lower end; NaN where the values allow no interval.
        high: Upper end.
        level: How often such intervals hold the true value, for example 0.95.
        method: How it was made, for a table's footer.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str

    def contains(self, value: float) -> bool:
        """Whether the value lies in the interval, ends included; never where there is no interval."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class MeanError:
    """The estimated variance of a grand mean, in the two parts that are known to different degrees.

    Attributes:
        mean: The grand mean.
        seed_variance: The part that only more seeds make smaller; 0 for one seed, where it is unknown.
        image_variance: The part that all seeds share because they saw the same images.
        seed_df: Degrees of freedom of the first; infinite where it is absent.
        image_df: Degrees of freedom of the second.
    """

    mean: float
    seed_variance: float
    image_variance: float
    seed_df: float
    image_df: float

    @property
    def variance(self) -> float:
        """Variance of the grand mean."""
        return self.seed_variance + self.image_variance

    def critical(self, level: float) -> float:
        """How many standard errors the interval goes to either side.

        With t_S and t_N the two-sided t quantiles for `seed_df` and `image_df`, and w the seeds' share of the variance:
        t_N + (t_S − t_N)·w^1.5. It is exact for w = 0 and w = 1. w itself is an estimate, and with two degrees of freedom a poor
        one: Satterthwaite's formula, which trusts it, covers 92.2 % of 95 at worst with three seeds, linear weights (Cochran)
        97.1 %, and this one 94.3 to 96.0 % for every true w.
        """
        return self._critical_of_tail((1 - level) / 2)

    def p_value(self) -> float:
        """Two-sided p-value of the mean being 0: the one at which the interval just touches 0."""
        if self.mean == 0 or self.variance == 0:
            return 1.0 if self.mean == 0 else 0.0
        distance = abs(self.mean) / math.sqrt(self.variance)
        if self._critical_of_tail(SMALLEST_P) < distance:
            return 0.0
        ends = (math.log(SMALLEST_P), math.log(0.5))
        found = scipy.optimize.brentq(
            lambda log_tail: self._critical_of_tail(math.exp(log_tail)) - distance, *ends, xtol=1e-12
        )
        return float(2 * math.exp(found))

    def _critical_of_tail(self, tail: float) -> float:
        of_images = -float(scipy.special.stdtrit(self.image_df, tail))
        if not self.seed_variance:
            return of_images
        of_seeds = -float(scipy.special.stdtrit(self.seed_df, tail))
        share = float((self.seed_variance / self.variance) ** SHARE_POWER)
        # Not one and a difference: far in the tail the one of fewer degrees of freedom is larger than the other by any factor.
        return share * of_seeds + (1 - share) * of_images


def mean_error(values: npt.ArrayLike) -> MeanError:
    """The error of the mean of seeds × test images, by two-way random effects and the method of moments.

    y_si = μ + a_s + b_i + e_si with variances σ_a², σ_b², σ_e². The mean over S seeds and N images has the variance
    σ_a²/S + σ_b²/N + σ_e²/(S·N). With the mean squares of the analysis of variance, whose expectations are

        MS_seeds = N·σ_a² + σ_e²,   MS_images = S·σ_b² + σ_e²,   MS_rest = σ_e²,

    it is [MS_seeds + (MS_images − MS_rest)] / (S·N) (Searle, Casella and McCulloch 1992). The first term is the
    variance between the seeds' means divided by S: the t interval over seeds. The second is what it lacks, the covariance that
    the seeds owe to their common images; below 0 it is cut at 0.

    Where all seeds have equal means (few images), MS_rest, which has the same expectation or a smaller one, stands for MS_seeds.

    Args:
        values: `[S, N]`, finite, S ≥ 1, N ≥ 2.

    Raises:
        DataError: The shape is another, or a value is not finite.
    """
    table = matrix(values)
    seeds, images = table.shape
    mean = float(table.mean())
    rest = table - mean
    by_seed, by_image = rest.mean(axis=1), rest.mean(axis=0)
    rest -= by_seed[:, None]
    of_images = seeds * float(by_image @ by_image) / (images - 1)
    if seeds == 1:
        return MeanError(mean, 0.0, of_images / images, math.inf, images - 1)
    rest -= by_image
    of_rest = float(np.square(rest).sum()) / ((seeds - 1) * (images - 1))
    alike = float(np.ptp(by_seed)) <= 1e-12 * float(np.abs(table).max())
    of_seeds = of_rest if alike else images * float(by_seed @ by_seed) / (seeds - 1)
    cells = seeds * images
    return MeanError(mean, of_seeds / cells, max(of_images - of_rest, 0.0) / cells, seeds - 1, images - 1)


def independent(values: FloatArray, unit: Unit) -> FloatArray:
    """Values `[S, N]` as `mean_error` takes them: of images as they are; of episodes as one row `[1, S·N]`.

    Every seed draws episodes of its own, so that S × N of them are S·N independent draws, not N that S seeds share.
    """
    return values.reshape(1, -1) if unit == EPISODES else values


def matrix(values: npt.ArrayLike) -> FloatArray:
    """Values as float64 `[S, N]`.

    Raises:
        DataError: They have another shape, fewer than two images, or a value that is not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.shape[0] or table.shape[1] < 2:
        raise DataError(
            f"an interval needs an array [seeds, test images] with at least 1 seed and 2 images, not {list(table.shape)}"
        )
    if not np.isfinite(table).all():
        raise DataError("an interval needs finite values; at least one is NaN or infinite")
    return table


def vector(values: npt.ArrayLike, subject: str, least: int = 1) -> FloatArray:
    """Values as float64 `[N]`; `subject` says in a message what they are.

    Raises:
        DataError: They have another shape, are fewer than `least`, or a value is not finite.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < least or not np.isfinite(found).all():
        raise DataError(f"{subject}: at least {least} finite values in one row are needed, not {list(found.shape)}")
    return found


def check_level(level: float) -> None:
    """Refuse a level of confidence outside (0, 1).

    Raises:
        DataError: It is, for example 95 in place of 0.95.
    """
    if not 0 < level < 1:
        raise DataError(f"the level {level} of an interval is not between 0 and 1; 95 % is 0.95")
