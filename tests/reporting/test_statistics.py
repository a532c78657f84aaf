from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from tests.reporting.simulation import draw_pairs
from vitbench.errors import DataError
from vitbench.reporting import statistics as s

Array = npt.NDArray[np.float64]

TABLES = st.tuples(st.integers(1, 5), st.integers(2, 30)).flatmap(
    lambda shape: arrays(np.float64, (2, *shape), elements=st.sampled_from([0.0, 1.0]))
)
"""Pairs of hits `[2, S, N]`."""

HITS = np.array([[1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1]], dtype=float)
OTHER = np.array([[1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 1, 1]], dtype=float)


def pair(seeds: int, images: int, number: int = 0) -> tuple[Array, Array]:
    """Correlated hits of two models, one of them better by three points."""
    a, b = next(draw_pairs(1, seeds, images, (0.8, 0.77), 0.02, 0.4, 0.2, random_seed=number))
    return a.astype(float), b.astype(float)


# --- the model of seeds and images -------------------------------------------------------------------------------------------


def test_the_variance_is_that_of_the_analysis_of_variance() -> None:
    """Mean squares of statsmodels' two-way table without replication."""
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    seeds, images = 4, 25
    table = pair(seeds, images)[0]
    frame = pd.DataFrame(
        [(table[i, j], f"s{i}", f"i{j}") for i in range(seeds) for j in range(images)], columns=["hit", "seed", "image"]
    )
    found = anova_lm(ols("hit ~ C(seed) + C(image)", frame).fit())
    squares = found["sum_sq"] / found["df"]
    error = s.mean_error(table)
    assert error.seed_variance == pytest.approx(squares["C(seed)"] / (seeds * images), rel=1e-9)
    assert error.image_variance == pytest.approx(
        (squares["C(image)"] - squares["Residual"]) / (seeds * images), rel=1e-9
    )
    assert (error.seed_df, error.image_df) == (3, 24)


def test_the_image_part_is_the_mean_covariance_of_the_seeds() -> None:
    """What a t interval over seeds lacks: they were all scored on the same images."""
    table = pair(5, 300)[0]
    covariance = np.cov(table)
    between = covariance[~np.eye(5, dtype=bool)].mean()
    assert s.mean_error(table).image_variance == pytest.approx(between / 300)
    assert s.mean_error(table).seed_variance == pytest.approx(table.mean(axis=1).var(ddof=1) / 5)


def test_with_one_seed_it_is_the_paired_t_test_over_images() -> None:
    a, b = pair(1, 80)
    reference = stats.ttest_rel(a[0], b[0])
    found = s.paired_difference(a, b)
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert "one seed says nothing about other support sets" in found.method


def test_without_a_common_part_it_is_the_t_test_over_seeds() -> None:
    """Where the images make no covariance between the seeds, only the seeds' means are left."""
    table = np.array([[1, 0, 0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1, 0]], dtype=float)
    assert s.mean_error(table).image_variance == 0
    reference = stats.ttest_1samp(table.mean(axis=1), 0)
    found = s.paired_difference(table, np.zeros_like(table))
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(reference.confidence_interval()))


def test_golden_combined_and_paired() -> None:
    """By exact fractions: MS of HITS 1/18, 41/90, 11/90; of the difference 1/18, 4/45, 23/90, whose image part is cut at 0."""
    assert (s.mean_error(HITS).seed_variance, s.mean_error(HITS).image_variance) == pytest.approx((1 / 324, 1 / 54))
    found = s.combined_interval(HITS)
    assert (found.estimate, found.low, found.high) == pytest.approx((13 / 18, 0.31582515, 0.93607874), abs=1e-8)
    assert found.method == "3 seeds and 6 test images, two-way random effects, Wilson"
    paired = s.paired_difference(HITS, OTHER)
    assert (paired.difference, paired.interval.low, paired.interval.high, paired.p_value) == pytest.approx(
        (2 / 9, -0.01681404, 0.46125848, 0.05719096), abs=1e-8
    )


def test_one_seed_is_wilson_as_in_statsmodels() -> None:
    from statsmodels.stats.proportion import proportion_confint

    hits = pair(1, 150)[0]
    error = s.mean_error(hits)
    # n − 1 images and t for z: the variance is estimated.
    tail = 2 * stats.norm.sf(stats.t.ppf(0.975, 149))
    reference = proportion_confint(hits.mean() * 149, 149, alpha=tail, method="wilson")
    found = s.combined_interval(hits)
    assert (found.low, found.high) == pytest.approx(reference, rel=1e-9)
    assert error.seed_variance == 0
    assert "one seed says nothing about other support sets" in found.method


def test_all_right_and_all_wrong_have_an_interval_of_some_width() -> None:
    right, wrong = s.combined_interval(np.ones((3, 100))), s.combined_interval(np.zeros((3, 100)))
    c = stats.t.ppf(0.975, 99)
    assert (right.low, right.high) == pytest.approx((100 / (100 + c**2), 1.0))
    assert (wrong.low, wrong.high) == pytest.approx((0.0, c**2 / (100 + c**2)))
    assert right.contains(1.0)
    assert wrong.contains(0.0)


def test_seeds_of_equal_means_do_not_make_the_rest_certain() -> None:
    """Three seeds with one error each, on different images: their means do not differ, and yet they are drawn."""
    hits = np.ones((3, 12))
    hits[0, 0] = hits[1, 1] = hits[2, 2] = 0
    error = s.mean_error(hits)
    assert error.image_variance == 0
    assert error.variance > 0.5 * (1 / 12) * (11 / 12) / 36


def test_identical_models_do_not_differ_and_constant_differences_are_no_proof() -> None:
    same = s.paired_difference(HITS, HITS)
    assert (same.difference, same.interval.low, same.interval.high, same.p_value) == (0, 0, 0, 1)
    assert s.paired_difference(np.ones((1, 2)), np.zeros((1, 2))).p_value > 0.2
    assert s.paired_difference(np.ones((3, 40)), np.zeros((3, 40))).p_value < 1e-6


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 10, 31, 101])
def test_the_p_value_is_the_level_at_which_the_interval_touches_zero(seeds: int) -> None:
    for number in range(5):
        a, b = pair(seeds, 60, number)
        found = s.paired_difference(a, b)
        assert 0 < found.p_value < 1
        touching = s.paired_difference(a, b, level=1 - found.p_value).interval
        assert min(abs(touching.low), abs(touching.high)) < 1e-9


def test_a_difference_beyond_all_doubt_has_the_p_value_zero() -> None:
    error = s.MeanError(0.5, 1e-9, 1e-9, 400, 9999)
    assert error.p_value() == 0.0
    # Two degrees of freedom: p is about 1/t² for large t, with t = 0.5 / √2e-9 / 0.5^1.5.
    assert s.MeanError(0.5, 1e-9, 1e-9, 2, 9999).p_value() == pytest.approx(1e-9, rel=0.01)


def test_the_p_value_of_seeds_alone_is_that_of_the_t_test_over_seeds() -> None:
    # t = 1 with two degrees of freedom; the two images, which vary in nothing, have one.
    error = s.MeanError(-1 / 6, 1 / 36, 0.0, 2, 1)
    assert error.p_value() == pytest.approx(2 * float(stats.t.sf(1, 2)))


@given(TABLES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_invariances_of_a_paired_comparison(pair_of: Array, random: object) -> None:
    a, b = pair_of
    shuffled = np.random.default_rng(random.randrange(2**32))  # type: ignore[attr-defined]
    seeds, images = shuffled.permutation(a.shape[0]), shuffled.permutation(a.shape[1])
    found = s.paired_difference(a, b)
    moved = s.paired_difference(a[seeds][:, images], b[seeds][:, images])
    swapped = s.paired_difference(b, a)
    raised = s.paired_difference(a + 0.25, b + 0.25)
    for same in (moved, raised):
        assert _numbers(same) == pytest.approx(_numbers(found), abs=1e-9)
    assert (swapped.difference, swapped.interval.low, swapped.interval.high) == pytest.approx(
        (-found.difference, -found.interval.high, -found.interval.low), abs=1e-9
    )
    assert swapped.p_value == pytest.approx(found.p_value)
    assert (found.p_value < 0.05) == (not found.interval.contains(0)) or abs(found.p_value - 0.05) < 1e-6


@given(TABLES)
@settings(max_examples=60, deadline=None)
def test_the_shown_interval_holds_its_estimate_within_the_fractions(pair_of: Array) -> None:
    hits = pair_of[0]
    narrow, wide = s.combined_interval(hits, 0.8), s.combined_interval(hits)
    assert 0 <= wide.low <= narrow.low <= wide.estimate <= narrow.high <= wide.high <= 1
    mirrored = s.combined_interval(1 - hits)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - wide.high, 1 - wide.low), abs=1e-9)
    assert wide.high > wide.low


def _numbers(found: s.Comparison) -> tuple[float, ...]:
    return found.difference, found.interval.low, found.interval.high, found.p_value


# --- over seeds, over images -------------------------------------------------------------------------------------------------


def test_t_interval_is_scipys() -> None:
    scores = np.array([0.71, 0.74, 0.69, 0.735])
    reference = stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    found = s.t_interval(scores, 0.9)
    assert (found.low, found.high) == pytest.approx(tuple(reference))
    assert found.estimate == pytest.approx(scores.mean())
    assert found.method == "t interval over 4 seeds"


def test_one_seed_has_no_t_interval() -> None:
    found = s.t_interval([0.7])
    assert found.estimate == 0.7
    assert math.isnan(found.low)
    assert not found.contains(0.7)


def test_golden_bootstrap_over_images() -> None:
    hits = np.repeat([1.0, 0.0], [90, 10])
    percentile, corrected = s.bootstrap_interval(hits, method="percentile"), s.bootstrap_interval(hits)
    assert (percentile.low, percentile.high) == (0.84, 0.95)
    assert (corrected.low, corrected.high) == (0.83, 0.95)
    wilson = s.combined_interval(hits[None])
    assert (corrected.low, corrected.high) == pytest.approx((wilson.low, wilson.high), abs=0.015)


def test_the_bootstrap_does_not_depend_on_the_order_of_the_images() -> None:
    values = np.random.default_rng(3).random(50)
    assert s.bootstrap_interval(values, draws=500) == s.bootstrap_interval(values[::-1], draws=500)
    assert s.bootstrap_interval(values, draws=500) != s.bootstrap_interval(values, draws=500, seed=1)


def test_a_bootstrap_of_equal_values_says_so() -> None:
    found = s.bootstrap_interval(np.ones(20))
    assert (found.low, found.high) == (1, 1)
    assert "all values are equal" in found.method


def test_golden_paired_bootstrap() -> None:
    """p from all 3^3 · 6^6 equally likely draws is 0.10963."""
    found = s.paired_bootstrap(HITS, OTHER)
    assert (found.difference, found.interval.low, found.interval.high) == pytest.approx((4 / 18, 0.0, 0.5))
    assert found.p_value == pytest.approx(0.10963, abs=0.008)


def test_the_paired_bootstrap_is_that_of_drawn_seeds_and_images() -> None:
    """Against indices drawn one by one, and against the variance of such draws, which can be told in closed form."""
    a, b = pair(3, 40)
    difference, random = a - b, np.random.default_rng(0)
    slow = [difference[np.ix_(random.integers(3, size=3), random.integers(40, size=40))].mean() for _ in range(20_000)]
    found = s.paired_bootstrap(a, b, draws=20_000)
    assert (found.interval.low, found.interval.high) == pytest.approx(
        tuple(np.quantile(slow, [0.025, 0.975])), abs=0.009
    )
    by_seed, by_image = difference.mean(axis=1).var(), difference.mean(axis=0).var()
    rest = difference.var() - by_seed - by_image
    assert np.var(slow) == pytest.approx(by_seed / 3 + by_image / 40 + rest / 120, rel=0.05)


def test_the_paired_bootstrap_is_the_same_in_one_piece_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(3, 200)
    whole = s.paired_bootstrap(a, b, draws=3000)
    monkeypatch.setattr("vitbench.reporting.paired.CHUNK_VALUES", 700)
    pieces = s.paired_bootstrap(a, b, draws=3000)
    assert pieces.interval.low == pytest.approx(whole.interval.low, abs=0.01)
    assert pieces.p_value == pytest.approx(whole.p_value, abs=0.05)
    images = np.random.default_rng(0).permutation(200)
    assert s.paired_bootstrap(a[:, images], b[:, images], draws=3000) == pieces


def test_the_paired_bootstrap_of_equals() -> None:
    assert s.paired_bootstrap(HITS, HITS, draws=50).p_value == 1
    assert s.paired_bootstrap(np.ones((1, 9)), np.zeros((1, 9)), draws=99).p_value == 2 / 100
    assert "images only" in s.paired_bootstrap(HITS[:1], OTHER[:1], draws=9).method


# --- tests -------------------------------------------------------------------------------------------------------------------


def discordant(only_a: int, only_b: int, both: int = 7, none: int = 5) -> tuple[Array, Array]:
    a = np.repeat([1.0, 0.0, 1.0, 0.0], [only_a, only_b, both, none])
    b = np.repeat([0.0, 1.0, 1.0, 0.0], [only_a, only_b, both, none])
    return a, b


@pytest.mark.parametrize(
    ("counts", "p_value"),
    [((6, 1), 0.125), ((0, 5), 0.0625), ((20, 4), 0.001544), ((20, 5), 0.005110), ((59, 6), 1.12e-10)],
)
def test_golden_mcnemar(counts: tuple[int, int], p_value: float) -> None:
    found = s.mcnemar(*discordant(*counts))
    assert (found.only_a, found.only_b) == counts
    assert found.p_value == pytest.approx(p_value, rel=1e-3)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_then_chi_square(only_a: int, only_b: int, both: int, none: int) -> None:
    a, b = discordant(only_a, only_b, both, none)
    found, total = s.mcnemar(a.astype(bool), b), only_a + only_b
    if total < 25:
        assert found.p_value == pytest.approx(stats.binomtest(only_a, total).pvalue if total else 1.0)
        assert found.method == "McNemar, exact"
    else:
        assert found.p_value == pytest.approx(stats.chi2.sf((abs(only_a - only_b) - 1) ** 2 / total, 1))
        assert "chi-square" in found.method
    assert s.mcnemar(b, a).p_value == found.p_value


def test_corrections_for_many_comparisons() -> None:
    p_values = np.array([0.01, 0.04, 0.03, 0.005])
    assert s.adjust(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.adjust(p_values, "fdr_bh") == pytest.approx(stats.false_discovery_control(p_values))
    assert s.adjust([0.01, np.nan, 0.02]) == pytest.approx([0.02, np.nan, 0.02], nan_ok=True)
    assert np.isnan(s.adjust([np.nan])).all()


def test_over_tasks() -> None:
    differences = np.array([0.02, 0.01, 0.03, -0.005, 0.015, 0.04, 0.022])
    intervals = [s.Interval(d, d - 0.012, d + 0.012, 0.95, "") for d in differences]
    found = s.paired_over_tasks(differences, intervals)
    assert (found.n_tasks, found.wins, found.ties, found.losses) == (7, 5, 2, 0)
    assert found.wilcoxon_p_value == pytest.approx(stats.wilcoxon(differences).pvalue) == 0.03125
    reference = stats.ttest_1samp(differences, 0)
    assert found.t_p_value == pytest.approx(reference.pvalue)
    assert (found.mean.low, found.mean.high) == pytest.approx(tuple(reference.confidence_interval()))


def test_few_or_equal_tasks() -> None:
    assert s.paired_over_tasks([0.02, 0.0, -0.01]).ties == 1
    zero = s.paired_over_tasks([0.0, 0.0])
    assert (zero.ties, zero.t_p_value, zero.wilcoxon_p_value) == (2, 1, 1)
    one = s.paired_over_tasks([0.02])
    assert (one.wins, math.isnan(one.mean.low), math.isnan(one.wilcoxon_p_value)) == (1, True, True)


def test_the_mean_over_these_tasks_adds_their_variances() -> None:
    comparisons = [s.paired_difference(*pair(3, 100, number)) for number in range(4)]
    found = s.mean_over_tasks(comparisons)
    errors = [comparison.error for comparison in comparisons]
    assert found.difference == pytest.approx(np.mean([c.difference for c in comparisons]))
    assert found.error is not None
    assert found.error.variance == pytest.approx(sum(error.variance for error in errors if error) / 16)
    assert 2 <= found.error.seed_df <= 8
    assert (found.n_seeds, found.n_images) == (3, 400)
    alone = s.mean_over_tasks(comparisons[:1])
    assert _numbers(alone) == pytest.approx(_numbers(comparisons[0]))


# --- summaries ---------------------------------------------------------------------------------------------------------------


def test_per_class_values_have_the_mean_of_mean_per_class_accuracy() -> None:
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 4], p=[0.7, 0.25, 0.05], size=200)
    hits = (random.random((3, 200)) < np.array([0.9, 0.5, 0, 0, 0.3])[labels]).astype(float)
    values = s.per_class_values(hits, labels)
    for seed in range(3):
        predictions = np.where(hits[seed] > 0, labels, 9)
        with pytest.warns(UserWarning, match="y_pred contains classes"):
            assert values[seed].mean() == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert s.combined_interval(values).estimate == pytest.approx(values.mean())


def test_per_class_values_do_not_take_the_sizes_of_classes_for_error() -> None:
    labels = np.repeat([0, 1], [180, 20])
    assert np.ptp(s.per_class_values(np.ones((3, 200)), labels)) == 0
    balanced = np.repeat([0, 1], 100)
    hits = pair(3, 200)[0]
    within = np.concatenate([hits[:, balanced == c] - hits[:, balanced == c].mean() for c in (0, 1)], axis=1)
    assert s.per_class_values(hits, balanced) == pytest.approx(within + hits.mean())


def test_per_class_interval_agrees_with_a_stratified_bootstrap_of_the_metric() -> None:
    random = np.random.default_rng(1)
    labels = random.choice(3, p=[0.6, 0.3, 0.1], size=600)
    hits = (random.random(600) < np.array([0.9, 0.7, 0.4])[labels]).astype(float)
    drawn = []
    for _ in range(1500):
        rows = random.integers(600, size=600)
        drawn.append(np.mean([hits[rows][labels[rows] == c].mean() for c in range(3)]))
    error = s.mean_error(s.per_class_values(hits[None], labels))
    assert math.sqrt(error.variance) == pytest.approx(np.std(drawn), rel=0.08)


def test_normalised() -> None:
    assert s.normalised([0.1, 1.0, 0.55, 0.0], 0.1) == pytest.approx([0, 1, 0.5, -1 / 9])
    assert s.normalised(np.array([[0.5, 0.5]]), np.array([0.1, 0.5])) == pytest.approx(np.array([[4 / 9, 0.0]]))


def test_mean_rank() -> None:
    table = np.array([[0.9, 0.5, 0.7], [0.8, 0.5, 0.9], [np.nan, 0.9, 0.9], [0.7, 0.4, 0.1]])
    # Row 2 lacks a task: it has no rank, and takes no place in the others'.
    assert s.mean_rank(table) == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, np.nan, 3.0], nan_ok=True)
    assert np.isnan(s.mean_rank([[np.nan]])).all()


def test_label_efficiency() -> None:
    assert s.label_efficiency([1, 5, 25], [0.4, 0.6, 0.7]) == pytest.approx((0.5 + 0.65) / 2)
    assert s.label_efficiency([25, 1, 5], [0.7, 0.4, 0.6]) == pytest.approx((0.5 + 0.65) / 2)
    assert s.label_efficiency([1, 10], [[0.3, 0.3], [0.2, np.nan]]) == pytest.approx([0.3, np.nan], nan_ok=True)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6, unique=True), st.floats(0, 1))
def test_a_constant_score_has_itself_as_label_efficiency(shots: list[int], score: float) -> None:
    assert s.label_efficiency(shots, np.full(len(shots), score)) == pytest.approx(score, abs=1e-12)


# --- calibration -------------------------------------------------------------------------------------------------------------


def test_golden_reliability() -> None:
    confidence, correct = [0.95, 0.85, 0.8, 0.3, 0.2, 0.0], [1, 0, 1, 1, 0, 0]
    found = s.reliability(confidence, correct, bins=5)
    assert found.edges == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    # The ends belong to the bin below: 0.2 to the first, 0.8 to the fourth.
    assert found.counts.tolist() == [2, 1, 0, 1, 2]
    assert found.confidence == pytest.approx([0.1, 0.3, np.nan, 0.8, 0.9], nan_ok=True)
    assert found.accuracy == pytest.approx([0, 1, np.nan, 1, 0.5], nan_ok=True)
    assert found.ece == pytest.approx((2 * 0.1 + 0.7 + 0.2 + 2 * 0.4) / 6)


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_ece_is_that_of_guos_code(images: int, bins: int, number: int) -> None:
    """The loop of temperature_scaling.py (gpleiss), in numpy."""
    random = np.random.default_rng(number)
    confidence = random.random(images) * 0.999 + 0.001
    correct = random.random(images) < confidence
    edges, expected = np.linspace(0, 1, bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += abs(confidence[inside].mean() - correct[inside].mean()) * inside.mean()
    assert s.ece(confidence, correct, bins) == pytest.approx(expected, abs=1e-12)
    shuffled = random.permutation(images)
    assert s.ece(confidence[shuffled], correct[shuffled], bins) == pytest.approx(expected, abs=1e-12)


# --- mistakes ----------------------------------------------------------------------------------------------------------------

MISTAKES: dict[str, Callable[[], object]] = {
    r"an array \[seeds, test images\] with at least 1 seed and 2 images, not \[5\]": lambda: s.combined_interval(
        np.ones(5)
    ),
    r"2 images, not \[3, 1\]": lambda: s.combined_interval(np.ones((3, 1))),
    "at least one is NaN": lambda: s.combined_interval([[0.0, np.nan]]),
    "fractions between 0 and 1; their mean is 70": lambda: s.combined_interval([[60.0, 80.0]]),
    "95 % is 0.95": lambda: s.t_interval([0.1, 0.2], 95),
    "a t interval over seeds: at least 1": lambda: s.t_interval([]),
    "over test images: at least 2": lambda: s.bootstrap_interval([1.0]),
    r"the same seeds and test images .* \[3, 6\] and \[2, 6\]": lambda: s.paired_difference(HITS, OTHER[:2]),
    "at least 1 draw": lambda: s.paired_bootstrap(HITS, OTHER, draws=0),
    r"equal length, not \[2\] and \[3\]": lambda: s.mcnemar([1, 0], [1, 0, 1]),
    "nothing between": lambda: s.mcnemar([0.5, 1], [0, 1]),
    "p-values between 0 and 1": lambda: s.adjust([0.1, 1.2]),
    "1 intervals do not fit 2 tasks": lambda: s.paired_over_tasks([0.1, 0.2], [s.Interval(0, 0, 0, 0.95, "")]),
    "made by paired_difference": lambda: s.mean_over_tasks([s.paired_bootstrap(HITS, OTHER, draws=9)]),
    "chance is at least 0 and below 1": lambda: s.normalised(0.5, 1.0),
    "at least one task": lambda: s.mean_rank([0.1, 0.2]),
    "shot 0": lambda: s.label_efficiency([0, 5], [0.1, 0.2]),
    "different shots": lambda: s.label_efficiency([5, 5], [0.1, 0.2]),
    r"2 shots do not fit scores of shape \[3\]": lambda: s.label_efficiency([1, 5], [0.1, 0.2, 0.3]),
    r"\[2\] labels do not fit": lambda: s.per_class_values(HITS, [0, 1]),
    "probabilities, not scores": lambda: s.reliability([1.2], [1]),
    "2 confidences do not fit 1 predictions": lambda: s.reliability([0.2, 0.3], [1]),
    "at least 1 bin": lambda: s.reliability([0.2], [1], 0),
    "calibration, confidences: at least 1": lambda: s.ece([], []),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_in_one_line(message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        MISTAKES[message]()
    assert "\n" not in str(caught.value)
