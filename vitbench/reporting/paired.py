"""Comparisons on the same support sets and the same test images: what both find hard or easy drops out of the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy

from vitbench.errors import DataError
from vitbench.reporting.two_way import (
    EPISODES,
    IMAGES,
    FloatArray,
    Interval,
    MeanError,
    Unit,
    check_level,
    independent,
    matrix,
    mean_error,
    vector,
)

EXACT_BELOW = 25
"""Fewer discordant images than this and McNemar's test is the exact one."""

CHUNK_VALUES = 4_000_000
"""Most counts that a bootstrap holds at a time."""


@dataclass(frozen=True)
class Comparison:
    """The difference of two scores.

    Attributes:
        difference: mean(a) − mean(b).
        interval: Of the difference.
        p_value: Two-sided, of the difference being 0.
        method: How both were made, for a table's footer.
        n_seeds: Support sets that both saw; the smallest number where several tasks are averaged.
        n_images: Test images that both saw; all of them where several tasks are averaged.
        error: The parts of the difference's variance; None from the bootstrap.
    """

    difference: float
    interval: Interval
    p_value: float
    method: str
    n_seeds: int
    n_images: int
    error: MeanError | None = None


@dataclass(frozen=True)
class OverTasks:
    """Differences on several tasks.

    Attributes:
        n_tasks: Their number, T.
        wins: Tasks whose difference is above 0 and no tie.
        ties: Tasks whose interval contains 0; without intervals, those whose difference is 0.
        losses: Tasks whose difference is below 0 and no tie.
        mean: The mean difference with its t interval over tasks.
        t_p_value: Of the mean being 0; NaN for a single task.
        wilcoxon_p_value: Wilcoxon's signed-rank test of a distribution around 0; NaN for a single task.
    """

    n_tasks: int
    wins: int
    ties: int
    losses: int
    mean: Interval
    t_p_value: float
    wilcoxon_p_value: float


@dataclass(frozen=True)
class McNemar:
    """McNemar's test.

    Attributes:
        only_a: Images that only a has right.
        only_b: Images that only b has right.
        statistic: The smaller of both counts (exact test), or χ².
        p_value: Two-sided, of both counts having the same expectation.
        method: Which of the two tests.
    """

    only_a: int
    only_b: int
    statistic: float
    p_value: float
    method: str


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95, unit: Unit = IMAGES) -> Comparison:
    """mean(a) − mean(b) with its interval and p-value, by two-way random effects on a − b.

    The same as `combined_interval` without Wilson's form, for a difference has no end at 0: Δ ± c·√V, with V and c of
    `mean_error(a − b)`, and p the level at which the interval just touches 0.

    Where V is estimated as 0, because every entry of a − b is the same, its value under Δ = 0 takes its place: the mean of
    (a − b)² divided by N, which is McNemar's variance. Two models that differ on no image have the interval [0, 0].

    Args:
        a: `[S, N]`, S seeds × N test images: right (1) or wrong (0), fractions, or `per_class_values`.
        b: `[S, N]` for the same support sets and the same test images.
        level: Level of confidence.
        unit: What the N are; episodes, whose values are accuracies, are S·N independent draws.

    Raises:
        DataError: The shapes differ or are not these, or a value is not finite.
    """
    check_level(level)
    differences = independent(_differences(a, b), unit)
    seeds, images = differences.shape
    error = mean_error(differences)
    if error.variance == 0:
        of_null = float(np.square(differences).mean()) / images
        error = MeanError(error.mean, 0.0, of_null, math.inf, images - 1)
    method = f"paired, {seeds} seeds and {images:,} test images, two-way random effects"
    if seeds == 1:
        method = f"paired, {images:,} test images only: one seed says nothing about other support sets"
    if unit == EPISODES:
        method = f"paired, {images:,} episodes: other draws from the same images, not other classes or images"
    return _comparison(error, level, method, seeds, images)


def mean_over_tasks(comparisons: Sequence[Comparison], level: float = 0.95) -> Comparison:
    """The mean difference over these very tasks: other support sets and test images could have been drawn, other tasks not.

    Tasks are independent of each other, so Var = Σ_t V_t / T². The seeds' parts A_t and the images' parts B_t are added apart.
    The degrees of freedom of each sum are Satterthwaite's, (Σ A_t)² / Σ (A_t²/ν_t); the critical value weighs them as for one.
    Whether one is better on tasks in general is another question: `paired_over_tasks`.

    Args:
        comparisons: Of `paired_difference`, one per task.
        level: Level of confidence.

    Raises:
        DataError: There is none, or one has no variance parts.
    """
    check_level(level)
    errors = [comparison.error for comparison in comparisons if comparison.error is not None]
    if not errors or len(errors) < len(comparisons):
        raise DataError("a mean over tasks needs at least one comparison, each of them made by paired_difference")
    tasks = len(errors)
    of_seeds = np.array([error.seed_variance for error in errors]) / tasks**2
    of_images = np.array([error.image_variance for error in errors]) / tasks**2
    error = MeanError(
        float(np.mean([error.mean for error in errors])),
        float(of_seeds.sum()),
        float(of_images.sum()),
        _satterthwaite(of_seeds, np.array([error.seed_df for error in errors])),
        _satterthwaite(of_images, np.array([error.image_df for error in errors])),
    )
    seeds = min(comparison.n_seeds for comparison in comparisons)
    method = f"mean over these {tasks} tasks, paired, seeds and test images, two-way random effects"
    if seeds == 1:
        method += "; tasks with one seed cover their test images only"
    return _comparison(error, level, method, seeds, sum(comparison.n_images for comparison in comparisons))


def paired_over_tasks(
    differences: npt.ArrayLike, intervals: Sequence[Interval] | None = None, level: float = 0.95
) -> OverTasks:
    """Whether one is better on tasks like these: the tasks are taken as a sample of all that could have been asked.

    A task's difference carries the error of its seeds and images; the spread of the differences between tasks contains it. So the
    t interval over tasks covers all three levels (the mean of a hierarchical model, each task of equal weight). Wilcoxon's
    signed-rank test asks the same without normality (Demšar 2006); scipy's is exact up to 50 tasks without ties. It cannot
    reach p < 0.05 with fewer than six tasks.

    Args:
        differences: `[T]`, one per task.
        intervals: Those of the tasks; a tie is a task whose interval contains 0. Without them only a difference of 0 is a tie.
        level: Level of confidence of the mean's interval.

    Raises:
        DataError: There is no difference, one is not finite, or there is another number of intervals.
    """
    check_level(level)
    found = vector(differences, "a comparison over tasks")
    if intervals is not None and len(intervals) != len(found):
        raise DataError(f"{len(intervals)} intervals do not fit {len(found)} tasks")
    tied = found == 0 if intervals is None else np.array([interval.contains(0.0) for interval in intervals])
    mean, tasks = float(found.mean()), len(found)
    low = high = t_p = wilcoxon_p = math.nan
    if tasks > 1:
        error = MeanError(mean, 0.0, float(found.var(ddof=1)) / tasks, math.inf, tasks - 1)
        half = error.critical(level) * math.sqrt(error.variance)
        low, high, t_p = mean - half, mean + half, error.p_value()
        wilcoxon_p = float(scipy.stats.wilcoxon(found).pvalue) if found.any() else 1.0
    return OverTasks(
        n_tasks=tasks,
        wins=int(np.sum(~tied & (found > 0))),
        ties=int(np.sum(tied)),
        losses=int(np.sum(~tied & (found < 0))),
        mean=Interval(
            mean, low, high, level, f"t interval over {tasks} tasks" if tasks > 1 else "one task: no interval"
        ),
        t_p_value=t_p,
        wilcoxon_p_value=wilcoxon_p,
    )


def paired_bootstrap(
    a: npt.ArrayLike, b: npt.ArrayLike, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """mean(a) − mean(b) with a percentile interval; seeds and images are drawn anew together, with replacement.

    Each draw takes S of the S seeds and N of the N images and averages a − b over their product (the pigeonhole bootstrap:
    McCullagh 2000, Owen 2007). p = 2·min((1 + #{Δ* ≤ 0}), (1 + #{Δ* ≥ 0})) / (draws + 1), at most 1.

    The expected variance of its draws is, for large N, σ_a²(S−1)/S² + σ_b²/N + σ_e²(3S−2)/(S²·N): with three seeds a third is
    missing of what differs between support sets, and the rest e counts 7/3 times. It also takes that variance for known. Where
    the two disagree, believe `paired_difference`; this one asks for no model.

    Images on which a − b is the same for every seed are exchangeable: they are counted once and their number is drawn from the
    multinomial distribution. That is the same bootstrap, and the cost of 50,000 images is that of a few hundred. The order of the
    images changes nothing.

    Args:
        a: `[S, N]` as in `paired_difference`.
        b: `[S, N]`.
        draws: Resamples.
        seed: Of their random numbers.
        level: Level of confidence.

    Raises:
        DataError: The shapes differ or are not `[S, N]`, a value is not finite, or there is no draw.
    """
    check_level(level)
    differences = _differences(a, b)
    if draws < 1:
        raise DataError(f"a bootstrap needs at least 1 draw, not {draws}")
    seeds, images = differences.shape
    kinds, counts = np.unique(differences, axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    step = max(1, CHUNK_VALUES // len(counts))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        of_images = random.multinomial(images, counts / images, size=size)
        of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        means[start : start + size] = np.einsum("ds,sk,dk->d", of_seeds, kinds, of_images, optimize=True)
    # A sum that is 0 in truth must count as 0.
    means[np.abs(means) < 1e-9] = 0.0
    means /= seeds * images
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    at_most, at_least = int(np.sum(means <= 0)), int(np.sum(means >= 0))
    method = f"paired bootstrap over seeds and test images, {draws:,} draws"
    if seeds == 1:
        method = f"paired bootstrap over test images only (one seed), {draws:,} draws"
    difference = float(differences.mean())
    interval = Interval(difference, float(low), float(high), level, method)
    return Comparison(
        difference, interval, min(1.0, 2 * (1 + min(at_most, at_least)) / (draws + 1)), method, seeds, images
    )


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> McNemar:
    """McNemar's test on the predictions of one seed: only images that one has right and the other wrong count.

    With n01 and n10 such images it is the exact binomial test of n01 of n01 + n10 at ½ where these are fewer than 25, else
    χ² = (|n01 − n10| − 1)² / (n01 + n10) with one degree of freedom (McNemar 1947, Edwards 1948); by statsmodels.

    It takes both classifiers as given: other support sets are not part of it.

    Args:
        a: `[N]` bool, whether each prediction is right.
        b: `[N]` bool, for the same images.

    Raises:
        DataError: They are of different lengths, or hold something else than right and wrong.
    """
    one, other = np.asarray(a), np.asarray(b)
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise DataError(f"McNemar's test needs two rows of equal length, not {list(one.shape)} and {list(other.shape)}")
    if not (np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all()):
        raise DataError("McNemar's test needs right (1) and wrong (0) for each image, nothing between")
    from statsmodels.stats.contingency_tables import mcnemar as of_table

    one, other = one.astype(bool), other.astype(bool)
    only_a, only_b = int(np.sum(one & ~other)), int(np.sum(~one & other))
    exact = only_a + only_b < EXACT_BELOW
    if not only_a + only_b:
        return McNemar(0, 0, 0.0, 1.0, "McNemar, exact")
    table = [[int(np.sum(one & other)), only_a], [only_b, int(np.sum(~one & ~other))]]
    found = of_table(table, exact=exact, correction=True)
    method = "McNemar, exact" if exact else "McNemar, chi-square with continuity correction"
    return McNemar(only_a, only_b, float(found.statistic), min(1.0, float(found.pvalue)), method)


def adjust(p_values: npt.ArrayLike, method: Literal["holm", "fdr_bh"] = "holm") -> FloatArray:
    """p-values corrected for their number, by statsmodels.

    With m p-values in order, `holm` (Holm 1979) makes of the i-th the max over j ≤ i of (m − j + 1)·p_j: the chance of even one
    false finding stays below the level. `fdr_bh` (Benjamini and Hochberg 1995) makes of it the min over j ≥ i of m·p_j/j: the
    expected share of false ones among the findings does. Both are at most 1.

    Args:
        p_values: `[M]` in [0, 1]; NaN where there is no test, which does not count and stays NaN.
        method: `holm` or `fdr_bh`.

    Returns:
        `[M]` float64 in the same order.

    Raises:
        DataError: A value is outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    known = ~np.isnan(values)
    if values.ndim != 1 or ((values[known] < 0) | (values[known] > 1)).any():
        raise DataError("a correction for multiple comparisons needs one row of p-values between 0 and 1")
    found = np.full(values.shape, np.nan)
    if known.any():
        from statsmodels.stats.multitest import multipletests

        found[known] = multipletests(values[known], method=method)[1]
    return found


def _differences(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    one, other = matrix(a), matrix(b)
    if one.shape != other.shape:
        raise DataError(
            "a paired comparison needs the same seeds and test images on both sides, not arrays of shape "
            f"{list(one.shape)} and {list(other.shape)}"
        )
    return one - other


def _comparison(error: MeanError, level: float, method: str, seeds: int, images: int) -> Comparison:
    half = error.critical(level) * math.sqrt(error.variance)
    interval = Interval(error.mean, error.mean - half, error.mean + half, level, method)
    return Comparison(error.mean, interval, error.p_value(), method, seeds, images, error)


def _satterthwaite(variances: FloatArray, freedom: FloatArray) -> float:
    total = float(np.sum(variances**2 / freedom))
    return float(variances.sum()) ** 2 / total if total else math.inf
