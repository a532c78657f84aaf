"""Statistics of scores: intervals, comparisons, calibration. Arrays in, numbers out.

This is the front door: what compares two models lives in `paired`, calibration in `calibration`, the model behind the shown
intervals in `two_way`. Every method is derived in `docs/methodology.md`.

| question | function |
|---|---|
| how far is a score off? | `combined_interval` (shown), `t_interval` (seeds only), `bootstrap_interval` (images only) |
| is one better? | `paired_difference` (shown), `paired_bootstrap`, `mcnemar`; over tasks `paired_over_tasks`, `mean_over_tasks` |
| after how many comparisons? | `adjust` |
| summaries | `normalised`, `mean_rank`, `label_efficiency`, `per_class_values` |
| is the confidence right? | `reliability`, `ece` |
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy

from vitbench.errors import DataError
from vitbench.reporting.calibration import Reliability, ece, reliability
from vitbench.reporting.paired import (
    Comparison,
    McNemar,
    OverTasks,
    adjust,
    mcnemar,
    mean_over_tasks,
    paired_bootstrap,
    paired_difference,
    paired_over_tasks,
)
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

__all__ = [
    "EPISODES",
    "Comparison",
    "Interval",
    "McNemar",
    "MeanError",
    "OverTasks",
    "Reliability",
    "adjust",
    "bootstrap_interval",
    "combined_interval",
    "ece",
    "label_efficiency",
    "mcnemar",
    "mean_error",
    "mean_over_tasks",
    "mean_rank",
    "normalised",
    "paired_bootstrap",
    "paired_difference",
    "paired_over_tasks",
    "per_class_values",
    "reliability",
    "t_interval",
]

BATCH_VALUES = 5_000_000
"""Most values that a bootstrap holds at a time."""


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval over seeds: mean ± t(S−1)·s/√S, with s the standard deviation (n − 1).

    It says how the score moves with the support set on these very test images, and nothing about other test images.

    Args:
        values: `[S]`, one score per seed; with a single one the ends are NaN.
        level: Level of confidence.

    Raises:
        DataError: There is no value, or one is not finite.
    """
    check_level(level)
    scores = vector(values, "a t interval over seeds")
    mean = float(scores.mean())
    if len(scores) == 1:
        return Interval(mean, math.nan, math.nan, level, "one seed: no interval over seeds")
    half = float(scipy.special.stdtrit(len(scores) - 1, (1 + level) / 2) * scores.std(ddof=1) / math.sqrt(len(scores)))
    return Interval(mean, mean - half, mean + half, level, f"t interval over {len(scores)} seeds")


def combined_interval(hits: npt.ArrayLike, level: float = 0.95, unit: Unit = IMAGES) -> Interval:
    """The interval that is shown: both other support sets and other test images could have been drawn.

    The variance V of the mean p is that of `mean_error` (two-way random effects), c its critical value. The interval is Wilson's
    score interval for n = p(1 − p)/V images, the number of independent ones that would be as informative:

        (p + c²/2n ± c·√(p(1 − p)/n + c²/4n²)) / (1 + c²/n).

    Near p = 0.5 it is p ± c·√V; near 0 and 1 it is not symmetric, stays within [0, 1], and covers where p ± c·√V does not. Where
    V is estimated as 0 (every prediction right), n is the number of images.

    With one seed only the images are covered, and `method` says so. Episodes are S·N independent draws (`two_way.independent`)
    from one test split: their interval covers other draws of episodes and nothing else.

    Args:
        hits: `[S, N]`, S seeds × the same N test images: 1 for right and 0 for wrong, or fractions; or `per_class_values`; or the
            accuracies of N episodes of each seed.
        level: Level of confidence.
        unit: What the N are.

    Raises:
        DataError: The shape is another, a value is not finite, or the mean is no fraction.
    """
    check_level(level)
    table = independent(matrix(hits), unit)
    seeds, images = table.shape
    error = mean_error(table)
    if not -1e-9 <= error.mean <= 1 + 1e-9:
        raise DataError(f"an interval of a score needs fractions between 0 and 1; their mean is {error.mean:.6g}")
    p = min(max(error.mean, 0.0), 1.0)
    spread = p * (1 - p)
    n = spread / error.variance if spread * error.variance > 0 else float(images)
    c = error.critical(level)
    centre = (p + c * c / (2 * n)) / (1 + c * c / n)
    half = c * math.sqrt(spread / n + c * c / (4 * n * n)) / (1 + c * c / n)
    method = (
        f"{seeds} seeds and {images:,} test images, two-way random effects, Wilson"
        if seeds > 1
        else f"{images:,} test images only, Wilson: one seed says nothing about other support sets"
    )
    if unit == EPISODES:
        method = f"{images:,} episodes, Wilson: other draws from the same images, not other classes or images"
    # Of p = 0 or 1 the one end is p itself, which rounding may miss.
    return Interval(error.mean, min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p), level, method)


def bootstrap_interval(
    hits: npt.ArrayLike,
    level: float = 0.95,
    *,
    method: Literal["percentile", "BCa"] = "BCa",
    draws: int = 9_999,
    seed: int = 0,
) -> Interval:
    """The bootstrap's interval of a mean over test images (Efron 1987), by `scipy.stats.bootstrap`.

    For a plain mean of right and wrong it says what Wilson's interval says, with the noise of its draws: it is here to check that
    one. It knows nothing of seeds.

    Args:
        hits: `[N]`, N ≥ 2.
        level: Level of confidence.
        method: `percentile`, or `BCa` (corrected for bias and skewness).
        draws: Resamples.
        seed: Of their random numbers.

    Raises:
        DataError: There are fewer than two values, or one is not finite.
    """
    check_level(level)
    values = vector(hits, "a bootstrap over test images", least=2)
    name = f"{method} bootstrap over {len(values):,} test images, {draws:,} draws"
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, level, f"{name}; all values are equal")
    found = scipy.stats.bootstrap(
        (np.sort(values),),
        np.mean,
        n_resamples=draws,
        batch=max(1, BATCH_VALUES // len(values)),
        vectorized=True,
        confidence_level=level,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), level, name)


def per_class_values(hits: npt.ArrayLike, labels: npt.ArrayLike) -> FloatArray:
    """Values whose mean is the mean-per-class accuracy and whose spread is that of its error; for every function here.

    Mean-per-class accuracy is the mean over K classes of h̄_c, the hits of class c over its n_c images: a mean of ratios, because
    n_c was drawn too. To first order (Taylor linearisation; Särndal, Swensson and Wretman 1992) it moves with image
    i of class c by z_si = M + N/(K·n_c)·(h_si − h̄_c), with h̄_c and M over all seeds. The mean of z over the images of seed s is
    that seed's mean-per-class accuracy, exactly. Weighted hits N/(K·n_c)·h_si have the same mean, but also a spread that comes
    from the sizes of the classes alone: they show an interval where every prediction is right.

    Args:
        hits: `[S, N]`.
        labels: `[N]`, the class of each image; classes without an image are left out.

    Returns:
        `[S, N]` float64; single values may lie outside [0, 1].

    Raises:
        DataError: The shapes do not fit, or a value is not finite.
    """
    table = matrix(hits)
    found = np.asarray(labels)
    if found.shape != (table.shape[1],):
        raise DataError(f"{list(found.shape)} labels do not fit hits of shape {list(table.shape)}")
    _, place, sizes = np.unique(found, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=table.mean(axis=0)) / sizes
    weights = len(found) / (len(sizes) * sizes)
    values: FloatArray = means.mean() + weights[place] * (table - means[place])
    return values


def normalised(score: npt.ArrayLike, chance: npt.ArrayLike) -> FloatArray:
    """(score − chance) / (1 − chance): 0 for guessing, 1 for perfect, below 0 for worse than guessing.

    Tasks of different numbers of classes become comparable; it is Cohen's κ with the chance of a uniform guess.

    Args:
        score: Fractions, any shape.
        chance: What guessing scores, a fraction below 1; a shape that fits.

    Raises:
        DataError: A chance is not in [0, 1).
    """
    guess = np.asarray(chance, dtype=np.float64)
    if not bool(np.all((guess >= 0) & (guess < 1))):
        raise DataError("a score can be normalised only where chance is at least 0 and below 1")
    found: FloatArray = (np.asarray(score, dtype=np.float64) - guess) / (1 - guess)
    return found


def mean_rank(table: npt.ArrayLike) -> FloatArray:
    """Each row's rank within each task, 1 the best, averaged over tasks; equal scores share the mean of their ranks.

    A row that lacks a task has no rank, and the others are ranked without it: filling a gap would invent a result. Ranks depend
    on which rows are in the table (Demšar 2006).

    Args:
        table: `[rows, tasks]`, higher is better, NaN where a score is missing.

    Returns:
        `[rows]` float64, NaN for incomplete rows.

    Raises:
        DataError: It is no table, or has no task.
    """
    scores = np.asarray(table, dtype=np.float64)
    if scores.ndim != 2 or not scores.shape[1]:
        raise DataError(f"mean ranks need a table [rows, tasks] with at least one task, not {list(scores.shape)}")
    ranks = np.full(len(scores), np.nan)
    complete = ~np.isnan(scores).any(axis=1)
    if complete.any():
        ranks[complete] = scipy.stats.rankdata(-scores[complete], method="average", axis=0).mean(axis=1)
    return ranks


def label_efficiency(shots: npt.ArrayLike, scores: npt.ArrayLike) -> FloatArray:
    """The area under score against log(shots), divided by the range of log(shots): the mean score along a logarithmic axis.

    By trapezoids, ∫ score d(log shots) / (log K_max − log K_min); a constant score gives itself. Compare only rows with the same
    shots.

    Args:
        shots: `[K]` at least two different numbers above 0, in any order.
        scores: `[..., K]`; a row with a NaN gives NaN.

    Returns:
        `[...]` float64.

    Raises:
        DataError: There are fewer than two shots, equal ones or one that is not above 0, or the shapes do not fit.
    """
    axis = vector(shots, "label efficiency", least=2)
    values = np.asarray(scores, dtype=np.float64)
    if (axis <= 0).any() or len(np.unique(axis)) < len(axis):
        raise DataError(
            "label efficiency needs different shots above 0; shot 0 (all train images) has no place on the axis"
        )
    if values.shape[-1:] != axis.shape:
        raise DataError(f"{len(axis)} shots do not fit scores of shape {list(values.shape)}")
    order = np.argsort(axis)
    logs = np.log(axis[order])
    return np.asarray(
        scipy.integrate.trapezoid(values[..., order], logs, axis=-1) / (logs[-1] - logs[0]), dtype=np.float64
    )
