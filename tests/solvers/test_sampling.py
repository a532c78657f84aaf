from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbench.solvers.sampling import class_permutations, support_set

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 0])
GOLDEN = {
    0: [[6, 11, 9, 0, 3], [1, 10, 7, 4], [5, 8, 2]],
    1: [[11, 0, 3, 6, 9], [1, 4, 10, 7], [5, 8, 2]],
    2: [[6, 11, 9, 0, 3], [1, 10, 4, 7], [2, 8, 5]],
}

# Labels of up to 6 of 6 to 8 classes: some classes are short, some are empty.
label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(np.array)
class_counts = st.integers(6, 8)
seeds = st.integers(0, 2**32)


def as_big_vision(labels: np.ndarray, num_classes: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.where(labels == c)[0]).tolist() for c in range(num_classes)]


@pytest.mark.parametrize("seed", GOLDEN)
def test_draws_are_those_of_the_reference(seed: int) -> None:
    assert [rows.tolist() for rows in class_permutations(LABELS, 3, seed)] == GOLDEN[seed]


def test_golden_support_sets() -> None:
    permutations = class_permutations(LABELS, 3, 0)
    assert support_set(permutations, 2).tolist() == [6, 11, 1, 10, 5, 8]
    assert len(support_set(permutations, 4)) == 11, "class 2 has three rows only and gives them all"


@given(label_lists, class_counts, seeds)
def test_draws_equal_the_literal_loop(labels: np.ndarray, num_classes: int, seed: int) -> None:
    drawn = class_permutations(labels, num_classes, seed)
    assert [rows.tolist() for rows in drawn] == as_big_vision(labels, num_classes, seed)
    assert all(rows.dtype == np.int64 for rows in drawn)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_the_dtype_of_the_labels_does_not_matter(dtype: type) -> None:
    assert [rows.tolist() for rows in class_permutations(LABELS.astype(dtype), 3, 1)] == GOLDEN[1]


@given(label_lists, class_counts, seeds, st.integers(1, 12), st.integers(1, 12))
def test_support_sets_are_nested_pure_and_of_the_right_size(
    labels: np.ndarray, num_classes: int, seed: int, shot: int, more: int
) -> None:
    permutations = class_permutations(labels, num_classes, seed)
    small, large = support_set(permutations, shot), support_set(permutations, shot + more)
    assert set(small) <= set(large)
    assert len(set(small)) == len(small), "no row twice"
    counts = np.bincount(labels, minlength=num_classes)
    assert np.bincount(labels[small], minlength=num_classes).tolist() == np.minimum(counts, shot).tolist()
    assert small.dtype == np.int64
    assert (np.diff(labels[small]) >= 0).all(), "class by class"


def test_an_empty_class_takes_nothing_from_the_stream() -> None:
    with_gap = np.where(LABELS == 2, 3, LABELS)
    drawn = class_permutations(with_gap, 5, 0)
    assert [rows.tolist() for rows in drawn] == [*GOLDEN[0][:2], [], GOLDEN[0][2], []]
    assert support_set(drawn, 1).tolist() == [6, 1, 5]


def test_an_earlier_class_changes_the_draws_of_a_later_one() -> None:
    """The trap in big_vision's sampler: one generator serves all classes, so dropping one image moves the later draws."""
    shorter = class_permutations(LABELS[:-1], 3, 0)
    assert shorter[1].tolist() != GOLDEN[0][1] or shorter[2].tolist() != GOLDEN[0][2]
