from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model
from torch import Tensor

from vitbench.solvers import ridge
from vitbench.solvers.leave_one_out import Criterion, LeaveOneOut, choose, leave_one_out, predictions

GRID = tuple(2.0**power for power in range(-9, 21))

# Reference vectors, computed by big_vision's algorithm in float64.
X = torch.tensor([[0.0, 1, 2], [1, 0, 3], [2, 2, 5], [4, 1, 0]])
LABELS = torch.tensor([0, 0, 1, 2])
QUERIES = torch.tensor([[1.0, 1, 1], [3, 0, 4]])
GOLDEN_WEIGHTS = [
    [-0.0032859616, 0.0003307199, 0.0029552417],
    [-0.0027482915, 0.0027469301, 0.0000013614],
    [-0.0000012003, 0.0026942940, -0.0026930937],
    [0, -0.004875195, -0.004875195],
]
GOLDEN_SCORES = {
    1024.0: [[0.0016672741, -0.4899289809, -0.4867772947], [0.0011084918, -0.4888829085, -0.4872645848]],
    1.0: [[0.3792031436, -0.9875769181, -0.3916012262], [0.0085103931, -0.4984017157, -0.5100836781]],
    0.01: [[0.5427157651, -1.1786481316, -0.3640673835], [-0.1779204432, -0.2772905661, -0.5447887407]],
}

# (rows, features, classes): dual, around N = D+1, primal, two classes, one image per class, and more classes than features.
SHAPES = [(20, 30, 4), (20, 20, 4), (20, 19, 4), (20, 18, 4), (60, 7, 3), (24, 9, 2), (6, 10, 6), (33, 4, 11)]


def draw(rows: int, features: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 class means plus noise of unequal scales, every class present."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(num_classes), torch.randint(num_classes, (rows - num_classes,), generator=rng)])
    means = torch.randn(num_classes, features, generator=rng)
    x = (means[labels] + torch.randn(rows, features, generator=rng)) * torch.logspace(1, -1, features) + 3
    return x, labels


def spectrum(x: Tensor, labels: Tensor, num_classes: int, primal: bool | None = None) -> ridge.Spectrum:
    return ridge.decompose(ridge.prepare(x, labels, num_classes, primal=primal))


def classifier(x: Tensor, labels: Tensor, num_classes: int, l2: float, primal: bool | None = None) -> Tensor:
    return ridge.weights(spectrum(x, labels, num_classes, primal), l2)


def textbook(x: Tensor, labels: Tensor, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Z with the bias feature, and Y, in numpy."""
    x64 = x.numpy().astype(np.float64)
    z = (x64 - x64.mean(axis=0)) / (x64.std(axis=0) + 1e-5)
    return np.c_[z, np.full(len(z), 100.0)], 2 * np.eye(num_classes)[labels.numpy()] - 1


def textbook_weights(z: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    if len(z) < z.shape[1]:
        return z.T @ np.linalg.solve(z @ z.T + l2 * np.eye(len(z)), y)
    return np.linalg.solve(z.T @ z + l2 * np.eye(z.shape[1]), z.T @ y)


def left_out_by_brute_force(x: Tensor, labels: Tensor, num_classes: int, l2: float) -> np.ndarray:
    z, y = textbook(x, labels, num_classes)
    keep = ~np.eye(len(z), dtype=bool)
    return np.stack([z[i] @ textbook_weights(z[keep[i]], y[keep[i]], l2) for i in range(len(z))])


def test_golden_statistics() -> None:
    found = ridge.standardise(X)
    assert found.mean.tolist() == pytest.approx([1.75, 1, 2.5], abs=1e-12)
    assert found.scale.tolist() == pytest.approx([1.47902995, 0.70711678, 1.80278564], abs=1e-8)
    assert found.mean.dtype == found.scale.dtype == torch.float64


@pytest.mark.parametrize("primal", [True, False])
def test_golden_weights(primal: bool) -> None:
    weights = classifier(X, LABELS, 3, 1024, primal)
    np.testing.assert_allclose(weights.numpy(), GOLDEN_WEIGHTS, rtol=0, atol=1e-9)


@pytest.mark.parametrize("l2", GOLDEN_SCORES)
@pytest.mark.parametrize("way", ["fit", "primal", "dual"])
def test_golden_scores(l2: float, way: str) -> None:
    if way == "fit":
        model = ridge.fit(X, LABELS, 3, l2)
    else:
        model = ridge.RidgeClassifier(ridge.standardise(X), classifier(X, LABELS, 3, l2, way == "primal"))
    np.testing.assert_allclose(model.scores(QUERIES).numpy(), GOLDEN_SCORES[l2], rtol=0, atol=1e-9)
    assert model.predict(QUERIES).tolist() == [0, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", [2.0**-9, 1.0, 1024.0, 2.0**20])
def test_fit_primal_dual_and_textbook_agree(shape: tuple[int, int, int], l2: float) -> None:
    x, labels = draw(*shape)
    expected = textbook_weights(*textbook(x, labels, shape[2]), l2)
    for weights in (
        ridge.fit(x, labels, shape[2], l2).weights,
        classifier(x, labels, shape[2], l2, primal=True),
        classifier(x, labels, shape[2], l2, primal=False),
    ):
        np.testing.assert_allclose(weights.numpy(), expected, rtol=0, atol=1e-10)


def test_the_smaller_system_is_solved() -> None:
    assert not ridge.prepare(*draw(20, 30, 4), 4).primal
    assert not ridge.prepare(*draw(20, 19, 4), 4).primal, "at N = D+1 the dual is better conditioned"
    assert ridge.prepare(*draw(20, 18, 4), 4).primal


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", [2.0**-9, 1.0, 1024.0, 2.0**20])
def test_leave_one_out_equals_brute_force(shape: tuple[int, int, int], l2: float) -> None:
    x, labels = draw(*shape)
    expected = left_out_by_brute_force(x, labels, shape[2], l2)
    found = spectrum(x, labels, shape[2])
    np.testing.assert_allclose(predictions(found, l2).numpy(), expected, rtol=0, atol=1e-8)

    curve = leave_one_out(found, [l2])
    _, y = textbook(x, labels, shape[2])
    assert curve.squared_error[0] == pytest.approx(np.mean((y - expected) ** 2), rel=1e-8)
    assert curve.accuracy[0] == np.mean(expected.argmax(axis=1) == labels.numpy())


@pytest.mark.parametrize("l2", [2.0**-9, 1.0, 1024.0])
def test_leave_one_out_with_duplicate_rows(l2: float) -> None:
    """In the dual, duplicates are null vectors of ZZ' beside the constant one, which alone belongs to the bias."""
    x, labels = draw(10, 30, 3)
    x, labels = x.repeat(2, 1), labels.repeat(2)
    found = spectrum(x, labels, 3)
    assert not found.problem.primal
    expected = left_out_by_brute_force(x, labels, 3, l2)
    np.testing.assert_allclose(predictions(found, l2).numpy(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("block", [1, 40, 1 << 19])
def test_blocks_of_any_size_give_the_same_curve(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = draw(23, 9, 4)
    expected = leave_one_out(spectrum(x, labels, 4), GRID)
    scores = ridge.fit(x, labels, 4).scores(x)
    monkeypatch.setattr("vitbench.solvers.classifier.BLOCK", block)
    found = leave_one_out(spectrum(x, labels, 4), GRID)
    assert found.squared_error == pytest.approx(expected.squared_error, rel=1e-12)
    assert found.accuracy == expected.accuracy
    torch.testing.assert_close(ridge.fit(x, labels, 4).scores(x), scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_choice_is_that_of_scikit_learn(shape: tuple[int, int, int]) -> None:
    for seed in range(3):
        x, labels = draw(*shape, seed=seed)
        z, _ = textbook(x, labels, shape[2])
        peer = linear_model.RidgeClassifierCV(alphas=GRID, fit_intercept=False).fit(z, labels.numpy())
        curve = leave_one_out(spectrum(x, labels, shape[2]), GRID)
        assert curve.grid[curve.best("squared_error")] == peer.alpha_
        assert choose(spectrum(x, labels, shape[2]), GRID).l2 == peer.alpha_
        assert -min(curve.squared_error) == pytest.approx(peer.best_score_, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([*SHAPES, (100, 64, 10), (100, 5, 20)]),
    st.sampled_from(["squared_error", "accuracy"]),
    st.sampled_from([None, False]),
    st.sampled_from([GRID, tuple(10.0**power for power in range(-20, 21))]),
)
def test_a_choice_is_the_best_of_the_whole_curve(
    seed: int, shape: tuple[int, int, int], criterion: Criterion, primal: bool | None, grid: tuple[float, ...]
) -> None:
    """The bounds that spare the hopeless penalties never drop the best one."""
    x, labels = draw(*shape, seed=seed)
    found = spectrum(x, labels, shape[2], primal)
    curve = leave_one_out(found, grid)
    best = curve.best(criterion)
    choice = choose(found, grid, criterion)
    if choice.l2 != grid[best]:
        # Penalties below the rounding of the eigenvalues fit alike, to the last digits: these depend on how many are computed
        # at once. None of the grid that is used is so small.
        assert (criterion, grid is GRID) == ("squared_error", False)
        assert max(choice.l2, grid[best]) < found.problem.noise
        assert curve.squared_error[grid.index(choice.l2)] == pytest.approx(curve.squared_error[best], rel=1e-14)
    assert choice.squared_error == pytest.approx(curve.squared_error[best], rel=1e-9)
    assert choice.accuracy == curve.accuracy[grid.index(choice.l2)]


def test_equal_errors_choose_the_first() -> None:
    """Constant features: every penalty leaves the same residuals but for the bias, and a repeated one the very same."""
    found = spectrum(*draw(30, 5, 3), 3)
    best = choose(found, GRID)
    assert choose(found, (best.l2, 1e9, best.l2)) == best
    assert len(leave_one_out(found, (2.0, 2.0)).grid) == 2


def test_ties_take_the_first_for_error_and_the_largest_for_accuracy() -> None:
    curve = LeaveOneOut((1.0, 2.0, 4.0, 8.0), (0.5, 0.2, 0.2, 0.9), (0.3, 0.7, 0.7, 0.1))
    assert curve.best("squared_error") == 1
    assert curve.best("accuracy") == 2


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 20, 8), (2, 5, 2), (1, 3, 1), (9, 8, 3), (12, 4, 4)])
def test_tiny_penalties_and_full_leverage_stay_finite(shape: tuple[int, int, int]) -> None:
    """One image per class, N ≤ D+1, or a row that alone has a feature: 1 - h is as small as λ."""
    x, labels = draw(*shape)
    x[0, 0] += 1e6
    found = spectrum(x, labels, shape[2])
    grid = (1e-30, 1e-12, 1e-6, 1.0, 1e30)
    curve = leave_one_out(found, grid)
    assert np.isfinite(curve.squared_error).all()
    for l2 in grid:
        assert torch.isfinite(ridge.weights(found, l2)).all()
        assert torch.isfinite(ridge.fit(x, labels, shape[2], l2).weights).all()


def test_a_vanishing_penalty_gives_the_pseudo_inverse() -> None:
    x, labels = draw(40, 6, 3)
    x = torch.cat([x, x[:, :3]], dim=1)  # rank-deficient: three features twice
    z, y = textbook(x, labels, 3)
    expected = np.linalg.pinv(z) @ y
    for weights in (ridge.fit(x, labels, 3, 1e-25).weights, classifier(x, labels, 3, 1e-25, primal=False)):
        np.testing.assert_allclose(z @ weights.numpy(), z @ expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("value", [0.1, -3.0, 1e-3, 1e8, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_feature_is_exactly_nothing(value: float, dtype: torch.dtype) -> None:
    """The trap: float32 leaves a mean that is one rounding off, which 1e-5 magnifies, and test deviations 1e5-fold."""
    x, labels = draw(27, 5, 3)
    constant = torch.full((27, 1), value, dtype=dtype)
    wide = torch.cat([x[:, :2].to(dtype), constant, x[:, 2:].to(dtype)], dim=1)
    assert (ridge.standardise(wide)(wide)[:, 2] == 0).all()
    tests = wide.clone()
    tests[:, 2] = torch.linspace(-1e6, 1e6, 27)
    without = ridge.fit(x.to(dtype), labels, 3, 1.0).scores(x.to(dtype))
    torch.testing.assert_close(ridge.fit(wide, labels, 3, 1.0).scores(tests), without, rtol=0, atol=1e-12)


def test_features_that_are_all_constant_give_the_prior() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    model = ridge.fit(torch.ones(4, 3), labels, 3)
    assert model.predict(torch.randn(5, 3)).tolist() == [1] * 5
    balanced = ridge.fit(torch.ones(3, 3), torch.arange(3), 3)
    assert balanced.predict(torch.randn(5, 3)).tolist() == [0] * 5, "equal scores go to the lowest class"
    assert np.isfinite(leave_one_out(spectrum(torch.ones(4, 3), labels, 3), GRID).squared_error).all()


def test_a_class_without_images_is_never_predicted() -> None:
    x, labels = draw(20, 5, 3)
    weights = ridge.fit(x, labels, 5, 1.0).weights
    assert (weights[:-1, 3:] == 0).all()
    np.testing.assert_allclose(weights[-1, 3:].numpy(), -20 * 100 / (20 * 1e4 + 1.0), rtol=1e-12)
    assert ridge.fit(x, labels, 5, 1.0).predict(x).max() < 3


@pytest.mark.parametrize("scale", [1e-2, 1e6, 1e15, 1e30])
def test_the_scale_of_the_features_cancels(scale: float) -> None:
    """Up to the 1e-5 that is added to the standard deviation."""
    x, labels = draw(20, 6, 3)
    x = x.double()
    expected = ridge.fit(x, labels, 3, 1.0).scores(x)
    torch.testing.assert_close(ridge.fit(x * scale, labels, 3, 1.0).scores(x * scale), expected, rtol=0, atol=1e-1)
    assert torch.equal(ridge.fit(x * scale, labels, 3, 1.0).predict(x * scale), expected.argmax(dim=1))


def test_a_large_mean_does_not_cancel_the_scores() -> None:
    x, labels = draw(20, 6, 3)
    x = x.double()
    expected = ridge.fit(x, labels, 3, 1.0).scores(x)
    torch.testing.assert_close(ridge.fit(x + 1e6, labels, 3, 1.0).scores(x + 1e6), expected, rtol=0, atol=1e-8)


def test_float32_statistics_are_computed_in_float64() -> None:
    x = torch.full((1000, 1), 1000.0) + torch.linspace(0, 1e-2, 1000)[:, None]
    exact = x.double()
    found = ridge.standardise(x)
    assert found.mean.item() == pytest.approx(exact.mean().item(), rel=1e-14)
    assert found.scale.item() == pytest.approx(exact.std(correction=0).item() + 1e-5, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_dtype_is_read_as_its_float64_value(dtype: torch.dtype) -> None:
    x, labels = draw(20, 30, 4)
    x = x.to(dtype)
    assert torch.equal(ridge.fit(x, labels, 4).scores(x), ridge.fit(x.double(), labels, 4).scores(x.double()))


@pytest.mark.parametrize("shape", [(20, 30, 4), (60, 7, 3)])
def test_a_float32_solve_is_close_to_the_float64_one(shape: tuple[int, int, int]) -> None:
    x, labels = draw(*shape)
    single = ridge.fit(x, labels, shape[2], dtype=torch.float32).scores(x)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), ridge.fit(x, labels, shape[2]).scores(x), rtol=0, atol=1e-5)
    found = ridge.decompose(ridge.prepare(x, labels, shape[2], dtype=torch.float32))
    assert (found.values >= 0).all(), "float32 eigenvalues go negative; they are clamped"
    assert np.isfinite(leave_one_out(found, GRID).squared_error).all()


def test_no_rows_have_no_predictions() -> None:
    model = ridge.fit(X, LABELS, 3)
    assert model.predict(QUERIES[:0]).shape == (0,)
    assert model.scores(QUERIES[:0]).shape == (0, 3)


def test_features_made_in_inference_mode_are_read() -> None:
    with torch.inference_mode():
        x = X.double() * 1
    model = ridge.fit(x, LABELS, 3, 0.01)
    assert model.predict(x).tolist() == [0, 0, 1, 2]
    assert leave_one_out(spectrum(x, LABELS, 3), GRID).grid == GRID


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 300), st.integers(1, 6), st.sampled_from([2, 9, 10**6])
)
def test_best_first_is_a_stable_sort(seed: int, rows: int, num_classes: int, count: int, distinct: int) -> None:
    """Few distinct values make ties within the first, between the last kept and the first dropped, and among the rest."""
    scores = torch.randint(distinct, (rows, num_classes), generator=torch.Generator().manual_seed(seed)).double() - 1
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :count]
    found = ridge.best_first(scores, count)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert found[:, 0].tolist() == scores.argmax(dim=1).tolist()


def test_best_first_by_hand() -> None:
    scores = torch.tensor([[0.0, 2, 1, 2], [1, 1, 1, 1], [-0.0, 0.0, -1, 3], [4, 3, 2, 1]])
    assert ridge.best_first(scores, 3).tolist() == [[1, 3, 2], [0, 1, 2], [3, 0, 1], [0, 1, 2]]
    assert ridge.best_first(scores, 9).shape == (4, 4)
    assert ridge.best_first(scores[:0], 3).shape == (0, 3)


@pytest.mark.parametrize("block", [1, 40, 1 << 19])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_ranking_is_the_order_of_the_scores(
    shape: tuple[int, int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = draw(*shape)
    model = ridge.fit(x, labels, shape[2], 1.0)
    monkeypatch.setattr("vitbench.solvers.classifier.BLOCK", block)
    expected = np.argsort(-model.scores(x).numpy(), axis=1, kind="stable")[:, :5]
    assert model.ranking(x, 5).tolist() == expected.tolist()
    assert model.ranking(x, 5)[:, 0].tolist() == model.predict(x).tolist()
    assert model.ranking(x[:0], 5).shape == (0, min(5, shape[2]))


def test_classes_without_images_tie_and_are_ranked_in_order() -> None:
    x, labels = draw(20, 5, 3)
    model = ridge.fit(x, labels, 9, 1.0)
    rankings = model.ranking(x, 9).tolist()
    assert all([label for label in ranking if label > 2] == [3, 4, 5, 6, 7, 8] for ranking in rankings)
    constant = ridge.fit(torch.ones(3, 3), torch.arange(3), 3)
    assert constant.ranking(torch.randn(2, 3), 2).tolist() == [[0, 1], [0, 1]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from([0.01, 1.0, 1024.0]))
def test_the_order_of_rows_and_the_names_of_classes_do_not_matter(
    seed: int, shape: tuple[int, int, int], l2: float
) -> None:
    x, labels = draw(*shape, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    rows, names = torch.randperm(shape[0], generator=rng), torch.randperm(shape[2], generator=rng)
    features = torch.randperm(shape[1], generator=rng)
    expected = ridge.fit(x, labels, shape[2], l2).scores(x)
    found = ridge.fit(x[rows][:, features], names[labels[rows]], shape[2], l2).scores(x[:, features])
    torch.testing.assert_close(found[:, names], expected, rtol=0, atol=1e-9)

    curve = leave_one_out(spectrum(x, labels, shape[2]), [l2])
    moved = leave_one_out(spectrum(x[rows], names[labels[rows]], shape[2]), [l2])
    assert moved.squared_error[0] == pytest.approx(curve.squared_error[0], rel=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from([0.01, 1.0, 1024.0]))
def test_every_row_twice_is_twice_the_penalty_halved(seed: int, shape: tuple[int, int, int], l2: float) -> None:
    """The penalty is not divided by N: the rows twice with 2λ have the solution of the rows once with λ."""
    x, labels = draw(*shape, seed=seed)
    once = ridge.fit(x, labels, shape[2], l2).scores(x)
    twice = ridge.fit(x.repeat(2, 1), labels.repeat(2), shape[2], 2 * l2).scores(x)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from([0.01, 1.0, 1024.0]))
def test_scores_sum_to_what_the_bias_gives(seed: int, shape: tuple[int, int, int], l2: float) -> None:
    """The targets of a row sum to 2 - K, and the bias alone fits a constant: N·10⁴/(N·10⁴ + λ) of it."""
    x, labels = draw(*shape, seed=seed)
    sums = ridge.fit(x, labels, shape[2], l2).scores(x).sum(dim=1)
    expected = (2 - shape[2]) * shape[0] * 1e4 / (shape[0] * 1e4 + l2)
    torch.testing.assert_close(sums, torch.full_like(sums, expected), rtol=0, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gpu_gives_the_answer_of_the_cpu(shape: tuple[int, int, int]) -> None:
    x, labels = draw(*shape)
    expected = leave_one_out(spectrum(x, labels, shape[2]), GRID)
    found = leave_one_out(spectrum(x.cuda(), labels.cuda(), shape[2]), GRID)
    assert found.squared_error == pytest.approx(expected.squared_error, rel=1e-7)
    assert found.best("squared_error") == expected.best("squared_error")
    model = ridge.fit(x.cuda(), labels.cuda(), shape[2])
    torch.testing.assert_close(
        model.scores(x.cuda()).cpu(), ridge.fit(x, labels, shape[2]).scores(x), rtol=0, atol=1e-10
    )
    tied = torch.zeros(50, 700, device="cuda")
    assert ridge.best_first(tied, 5).tolist() == [[0, 1, 2, 3, 4]] * 50
