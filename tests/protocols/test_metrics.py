from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from vitbench.errors import DataError
from vitbench.protocols import metrics
from vitbench.tasks.sources.rows import LabelSets
from vitbench.tasks.spec import Metric

RANKING = np.array([[3, 1, 2, 4, 5], [1, 3, 0, 5, 2], [2, 4, 5, 0, 1], [0, 1, 2, 3, 4], [0, 5, 4, 3, 2]])
LABELS = np.array([3, 2, 3, 0, 1])


def draw(seed: int, rows: int, num_classes: int, distinct: int = 10**6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, of which many are equal if `distinct` is small, their ranking, and labels that need not be all classes."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(distinct, size=(rows, num_classes)).astype(float)
    labels = rng.integers(rng.integers(1, num_classes + 1), size=rows)
    return scores, np.argsort(-scores, axis=1, kind="stable")[:, :5], labels


def test_by_hand() -> None:
    """6 classes, of which 4 and 5 have no test image; of class 3, one of two images is right."""
    found = metrics.scores(RANKING, LABELS, 6)
    assert found == {
        "accuracy": 2 / 5,
        "top5_accuracy": 3 / 5,
        "mean_per_class_accuracy": (1 + 0 + 0 + 1 / 2) / 4,
        # 2 TP / (images + predictions): of class 0 one image and two predictions, of class 3 two images and one prediction.
        "macro_f1": (2 / 3 + 0 + 0 + 2 / 3) / 4,
    }
    assert list(found) == ["accuracy", "top5_accuracy", "mean_per_class_accuracy", "macro_f1"]
    assert all(type(value) is float for value in found.values())


def test_multilabel_hit_by_hand() -> None:
    """Only images that have a right label count: two of the four are hit."""
    sets = LabelSets.of([[1, 3], [2], [], [5, 0, 0], [4, 5]])
    assert metrics.scores(RANKING, LABELS, 6, sets)["multilabel_hit"] == 2 / 4


def test_multilabel_hit_takes_the_first_class_alone() -> None:
    sets = LabelSets.of([[1], [3], [4], [1], [5]])
    assert metrics.scores(RANKING, LABELS, 6, sets)["multilabel_hit"] == 0


def test_one_label_each_is_plain_accuracy() -> None:
    sets = LabelSets.of(LABELS[:, None])
    found = metrics.scores(RANKING, LABELS, 6, sets)
    assert found["multilabel_hit"] == found["accuracy"]


@pytest.mark.parametrize(("num_classes", "expected"), [(2, None), (4, None), (5, 1.0), (6, 0.0)])
def test_top5_below_5_classes_is_absent_and_with_5_is_1(num_classes: int, expected: float | None) -> None:
    ranking = np.arange(min(5, num_classes))[None]
    assert metrics.scores(ranking, np.array([num_classes - 1]), num_classes).get("top5_accuracy") == expected


def test_a_ranking_that_is_filled_up_to_5_columns_still_has_no_top5_below_5_classes() -> None:
    assert "top5_accuracy" not in metrics.scores(np.array([[0, 1, -1, -1, -1]]), np.array([1]), 2)


def test_a_narrow_ranking_has_no_top5() -> None:
    assert "top5_accuracy" not in metrics.scores(RANKING[:, :4], LABELS, 6)
    assert metrics.scores(RANKING[:, :1], LABELS, 6)["accuracy"] == 2 / 5
    wide = np.concatenate([RANKING, LABELS[:, None]], axis=1)
    assert metrics.scores(wide, LABELS, 7) == metrics.scores(RANKING, LABELS, 7), (
        "the sixth is not among the first five"
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 12))
def test_accuracies_are_those_of_scikit_learn(seed: int, rows: int, num_classes: int) -> None:
    _, ranking, labels = draw(seed, rows, num_classes)
    found = metrics.scores(ranking, labels, num_classes)
    assert found["accuracy"] == accuracy_score(labels, ranking[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it warns of predicted classes without a test image, which it leaves out as we do
        expected = balanced_accuracy_score(labels, ranking[:, 0])
    assert found["mean_per_class_accuracy"] == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(5, 12))
def test_top5_is_that_of_scikit_learn(seed: int, rows: int, num_classes: int) -> None:
    scores, ranking, labels = draw(seed, rows, num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that 5 of 5 is always 1
        expected = top_k_accuracy_score(labels, scores, k=5, labels=range(num_classes))
    assert metrics.scores(ranking, labels, num_classes)["top5_accuracy"] == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(5, 9))
def test_with_ties_the_lowest_class_comes_first(seed: int, rows: int, num_classes: int) -> None:
    """scikit-learn sorts ascending and stably, so that its ties go to the highest class: with the classes reversed it is ours."""
    scores, ranking, labels = draw(seed, rows, num_classes, distinct=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backwards = top_k_accuracy_score(num_classes - 1 - labels, scores[:, ::-1], k=5, labels=range(num_classes))
    assert metrics.scores(ranking, labels, num_classes)["top5_accuracy"] == pytest.approx(backwards, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 9), st.integers(0, 4))
def test_multilabel_hit_is_the_loop(seed: int, rows: int, num_classes: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    lists = [rng.integers(num_classes, size=rng.integers(most + 1)).tolist() for _ in range(rows)]
    _, ranking, labels = draw(seed, rows, num_classes)
    hits = [float(ranking[row, 0] in found) for row, found in enumerate(lists) if found]
    result = metrics.scores(ranking, labels, num_classes, LabelSets.of(lists)).get("multilabel_hit")
    assert result == (np.mean(hits) if hits else None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(5, 9))
def test_the_order_of_images_does_not_matter_and_scores_are_fractions(seed: int, rows: int, num_classes: int) -> None:
    _, ranking, labels = draw(seed, rows, num_classes)
    sets = LabelSets.of([[label, (label + 1) % num_classes] for label in labels])
    order = np.random.default_rng(seed).permutation(rows)
    found = metrics.scores(ranking, labels, num_classes, sets)
    moved = metrics.scores(ranking[order], labels[order], num_classes, sets.take(order))
    assert moved == pytest.approx(found, rel=1e-12)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["top5_accuracy"] >= found["accuracy"]
    assert found["multilabel_hit"] >= found["accuracy"]


def test_balanced_test_images_make_both_accuracies_one() -> None:
    labels = np.repeat(np.arange(6), 7)
    ranking = draw(0, 42, 6)[1]
    found = metrics.scores(ranking, labels, 6)
    assert found["mean_per_class_accuracy"] == pytest.approx(found["accuracy"], rel=1e-12)


@pytest.mark.parametrize(
    ("ranking", "labels", "sets", "message"),
    [
        (RANKING[:3], LABELS, None, r"array of shape \[3, 5\], where \[5, R\] is expected"),
        (RANKING[:1], LABELS, None, r"array of shape \[1, 5\]"),
        (RANKING[:, 0], LABELS, None, r"array of shape \[5\]"),
        (RANKING[:, :0], LABELS, None, r"array of shape \[5, 0\]"),
        (RANKING[:0], LABELS[:0], None, "there is no test image to score"),
        (RANKING, LABELS, [[1], [2]], "right labels for 2 images, but 5 test images"),
    ],
)
def test_what_does_not_fit_is_an_error(ranking: Any, labels: Any, sets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        metrics.scores(ranking, labels, 6, None if sets is None else LabelSets.of(sets))
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 12))
def test_macro_f1_is_the_mean_of_each_class_by_itself(seed: int, rows: int, num_classes: int) -> None:
    _, ranking, labels = draw(seed, rows, num_classes)
    each = []
    for label in np.unique(labels):
        right = np.sum((ranking[:, 0] == label) & (labels == label))
        each.append(2 * right / (np.sum(ranking[:, 0] == label) + np.sum(labels == label)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a class that is never predicted is no reason to warn: its F1 is 0
        found = metrics.scores(ranking, labels, num_classes)["macro_f1"]
    assert found == pytest.approx(np.mean(each), rel=1e-12)


def test_every_metric_that_a_task_file_can_name_is_known() -> None:
    assert set(metrics.NEEDS) == {*get_args(Metric), "macro_f1"}, "a guess has no macro F1 that K alone tells"
    assert set(metrics.scores(RANKING, LABELS, 6, LabelSets.of(LABELS[:, None]))) == set(metrics.NEEDS)


def test_required_gives_the_value_or_says_what_is_missing() -> None:
    found = metrics.scores(np.zeros((2, 2), np.int64), np.array([0, 1]), 2)
    assert metrics.required("accuracy", found) == 0.5
    with pytest.raises(DataError, match="'top5_accuracy' is not defined here: it needs at least 5 classes"):
        metrics.required("top5_accuracy", found)
    with pytest.raises(DataError, match="'multilabel_hit' is not defined here: it needs a set of right labels"):
        metrics.required("multilabel_hit", found)
    with pytest.raises(DataError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        metrics.required("acuracy", found)


def test_check_knows_before_the_run_what_will_be_missing() -> None:
    empty = LabelSets.of([[]] * 5)
    for metric, sets, num_classes in (
        ("multilabel_hit", None, 6),
        ("multilabel_hit", empty, 6),
        ("top5_accuracy", None, 4),
    ):
        with pytest.raises(DataError, match=f"'{metric}' is not defined here"):
            metrics.check(metric, LABELS, num_classes, sets)
        with pytest.raises(DataError, match=f"'{metric}' is not defined here"):
            metrics.required(metric, metrics.scores(RANKING[:, :num_classes], LABELS, num_classes, sets))
    with pytest.raises(DataError, match="unknown metric"):
        metrics.check("recall", LABELS, 6)
    with pytest.raises(DataError, match="right labels for 1 images, but 5 test images"):
        metrics.check("accuracy", LABELS, 6, LabelSets.of([[1]]))


def test_check_says_what_is_left_out() -> None:
    assert metrics.check("accuracy", LABELS, 6) == []
    assert metrics.check("mean_per_class_accuracy", LABELS, 4) == []
    for metric in ("mean_per_class_accuracy", "macro_f1"):
        (line,) = metrics.check(metric, LABELS, 6)
        assert line == "2 of 6 classes have no test image: the mean over classes leaves them out"
    assert metrics.check("multilabel_hit", LABELS, 6, LabelSets.of(LABELS[:, None])) == []
    (line,) = metrics.check("multilabel_hit", LABELS, 6, LabelSets.of([[], [1], [], [2], [3]]))
    assert line == "2 of 5 test images have no right label: multilabel_hit leaves them out"


def test_the_module_imports_without_pandas_or_scikit_learn() -> None:
    code = "import sys, vitbench.protocols.metrics; assert not {'pandas', 'sklearn', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
