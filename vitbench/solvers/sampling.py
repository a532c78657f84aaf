"""Which images make a support set: the sampler of big_vision's few-shot evaluator, draw for draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def class_permutations(labels: IntArray, num_classes: int, seed: int) -> list[IntArray]:
    """A random order of the rows of every class.

    One generator serves all classes, in order, as in big_vision (`evaluators/fewshot_lsr.py`):

        rng = numpy.random.default_rng(seed)
        [rng.permutation(numpy.where(labels == c)[0]) for c in range(num_classes)]

    A draw therefore depends on the order of the rows and on the size of every earlier class.

    Args:
        labels: `[N]` integers in `[0, num_classes)`.
        num_classes: Number of classes K that the data set declares, not the number that occurs in `labels`.
        seed: Seed of numpy's PCG64 generator, at least 0.

    Returns:
        K arrays of int64 rows; the array of a class without any row is empty.
    """
    rng = np.random.default_rng(seed)
    # One stable sort gives the same increasing rows as K searches, which would cost K passes over the labels.
    order = np.argsort(labels, kind="stable").astype(np.int64, copy=False)
    edges = np.searchsorted(labels, np.arange(num_classes + 1), sorter=order)
    return [rng.permutation(order[start:stop]) for start, stop in pairwise(edges)]


def support_set(permutations: Sequence[IntArray], shot: int) -> IntArray:
    """The first `shot` rows of every class, so that the sets of one seed are nested: 1 ⊂ 5 ⊂ 10 ⊂ 25.

    Args:
        permutations: K arrays of rows from `class_permutations`.
        shot: Rows per class, at least 1. A class that has fewer gives all it has, as in big_vision.

    Returns:
        `[sum_c min(shot, n_c)]` int64 rows, class by class.
    """
    return np.concatenate([rows[:shot] for rows in permutations])
