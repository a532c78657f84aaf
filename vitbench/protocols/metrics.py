"""The scores of a ranking of classes against labels, each a fraction from 0 to 1.

| metric | what it is | where it is not defined |
|---|---|---|
| `accuracy` | share of test images whose first class is their label | |
| `top5_accuracy` | share whose label is among the first five | fewer than 5 classes |
| `mean_per_class_accuracy` | accuracy within each class that has a test image, averaged over these classes | |
| `macro_f1` | F1 = 2·TP / (2·TP + FP + FN) of each class that has a test image, averaged over these classes | |
| `multilabel_hit` | share whose first class is one of their right labels, of the images that have any | no label sets |

`macro_f1` is scikit-learn's; every protocol reports it, and `--metric macro_f1` shows it, but it is no task's own metric: what a
guess scores depends on the sizes of the classes, not on their number alone. `multilabel_hit` is big_vision's rule for
ImageNet-ReaL. A metric that is not defined is absent from the scores, never 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vitbench.errors import DataError, VitbenchError, unknown

if TYPE_CHECKING:
    from vitbench.features.featureset import IntArray
    from vitbench.tasks.sources.rows import LabelSets

RANKED = 5
"""How many classes of each test image a ranking holds: what top-5 needs."""

NEEDS = {
    "accuracy": "test images",
    "top5_accuracy": "at least 5 classes, and the best 5 of each test image",
    "mean_per_class_accuracy": "test images",
    "macro_f1": "test images",
    "multilabel_hit": "a set of right labels for each test image, not all of them empty",
}
"""Every metric, and what it cannot do without."""


def scores(
    ranking: IntArray, labels: IntArray, num_classes: int, label_sets: LabelSets | None = None
) -> dict[str, float]:
    """Every metric that is defined, by name.

    Args:
        ranking: `[N, R]` int64, the best classes of each test image, best first; R of 5 or more for `top5_accuracy`.
        labels: `[N]` int64 in `[0, num_classes)`.
        num_classes: K.
        label_sets: Every right label of each of the N images, where the task has a second set of labels.

    Raises:
        DataError: There is no image, or the three are not about the same number of images.
    """
    _check_sizes(labels, label_sets)
    if ranking.ndim != 2 or len(ranking) != len(labels) or not ranking.shape[1]:
        raise DataError(
            f"a protocol ranked classes as an array of shape {list(ranking.shape)}, where [{len(labels)}, R] is expected: "
            f"R classes of each of the {len(labels)} test images"
        )
    found = {"accuracy": accuracy(ranking[:, 0], labels)}
    if num_classes >= 5 and ranking.shape[1] >= 5:
        found["top5_accuracy"] = float(np.mean((ranking[:, :5] == labels[:, None]).any(axis=1)))
    found["mean_per_class_accuracy"] = _mean_per_class(ranking[:, 0], labels)
    found["macro_f1"] = macro_f1(ranking[:, 0], labels)
    if label_sets is not None and len(label_sets.values):
        found["multilabel_hit"] = _multilabel_hit(ranking[:, 0], label_sets)
    return found


def accuracy(predictions: IntArray, labels: IntArray) -> float:
    """Fraction of predictions `[N]` that equal their label `[N]`."""
    return float(np.mean(predictions == labels))


def macro_f1(predictions: IntArray, labels: IntArray) -> float:
    """The mean of each class's F1, over the classes that have a test image.

    F1 is the harmonic mean of a class's precision and recall; it is 0 for a class of which no image is recognised.

    Args:
        predictions: `[N]` int64.
        labels: `[N]` int64, N ≥ 1.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0))


def required(metric: str, found: Mapping[str, float]) -> float:
    """The value of the metric that a task is judged by.

    Raises:
        DataError: It is not among the scores, because it is not defined; what it needs is said.
    """
    if metric not in found:
        raise _undefined(metric)
    return found[metric]


def check(metric: str, labels: IntArray, num_classes: int, label_sets: LabelSets | None = None) -> list[str]:
    """What a reader should know about a metric on these test labels, a line each, before anything is computed.

    Args:
        metric: Its name.
        labels: `[N]` int64, of the test images.
        num_classes: K.
        label_sets: As in `scores`.

    Raises:
        DataError: The metric is unknown or not defined here, or there are more or fewer label sets than images.
    """
    _check_sizes(labels, label_sets)
    too_few = metric == "top5_accuracy" and num_classes < 5
    without = metric == "multilabel_hit" and (label_sets is None or not len(label_sets.values))
    if metric not in NEEDS or too_few or without:
        raise _undefined(metric)
    absent = int(np.count_nonzero(np.bincount(labels, minlength=num_classes) == 0))
    if metric in ("mean_per_class_accuracy", "macro_f1") and absent:
        return [f"{absent} of {num_classes} classes have no test image: the mean over classes leaves them out"]
    if metric == "multilabel_hit" and label_sets is not None and not label_sets.counts().all():
        unlabelled = int(np.count_nonzero(label_sets.counts() == 0))
        return [f"{unlabelled:,} of {len(labels):,} test images have no right label: multilabel_hit leaves them out"]
    return []


def _mean_per_class(predictions: IntArray, labels: IntArray) -> float:
    counts = np.bincount(labels)
    hits = np.bincount(labels[predictions == labels], minlength=len(counts))
    present = counts > 0
    return float(np.mean(hits[present] / counts[present]))


def _multilabel_hit(predictions: IntArray, label_sets: LabelSets) -> float:
    counts = label_sets.counts()
    owner = np.repeat(np.arange(len(counts)), counts)
    hit = np.zeros(len(counts), dtype=bool)
    hit[owner[label_sets.values == predictions[owner]]] = True  # a label that is listed twice counts once
    return float(np.mean(hit[counts > 0]))


def _check_sizes(labels: IntArray, label_sets: LabelSets | None) -> None:
    if not len(labels):
        raise DataError("there is no test image to score")
    if label_sets is not None and len(label_sets) != len(labels):
        raise DataError(f"there are right labels for {len(label_sets):,} images, but {len(labels):,} test images")


def _undefined(metric: str) -> VitbenchError:
    if metric not in NEEDS:
        return unknown("metric", metric, NEEDS, error=DataError)
    return DataError(f"the metric '{metric}' is not defined here: it needs {NEEDS[metric]}")
