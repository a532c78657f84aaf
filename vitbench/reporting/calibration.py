"""Calibration: whether of predictions with confidence 0.8 eight in ten are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitbench.errors import DataError
from vitbench.reporting.two_way import FloatArray, vector


@dataclass(frozen=True)
class Reliability:
    """Predictions in M bins of equal width of their confidence.

    Attributes:
        edges: `[M + 1]` from 0 to 1; bin m is (edge m, edge m + 1], and a confidence of 0 is in the first.
        counts: `[M]` int64, predictions in each bin.
        confidence: `[M]` their mean confidence, NaN in an empty bin.
        accuracy: `[M]` the share of them that is right, NaN in an empty bin.
    """

    edges: FloatArray
    counts: npt.NDArray[np.int64]
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def ece(self) -> float:
        """Expected calibration error: Σ_m n_m/n · |accuracy_m − confidence_m| (Guo et al. 2017), a fraction."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def reliability(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> Reliability:
    """Accuracy against confidence (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2).

    Args:
        confidence: `[N]` in [0, 1], the probability that the classifier gave to the class it chose.
        correct: `[N]`, whether that class was right.
        bins: M.

    Raises:
        DataError: There is no prediction, a confidence is outside [0, 1], the lengths differ, or there is no bin.
    """
    confidences = vector(confidence, "calibration, confidences")
    hits = vector(correct, "calibration, right or wrong")
    if len(confidences) != len(hits):
        raise DataError(f"calibration: {len(confidences):,} confidences do not fit {len(hits):,} predictions")
    if confidences.min() < 0 or confidences.max() > 1:
        raise DataError("calibration needs confidences between 0 and 1: probabilities, not scores")
    if bins < 1:
        raise DataError(f"calibration needs at least 1 bin, not {bins}")
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Left-sided: a confidence that equals an inner edge is in the bin below, as in the reference.
    place = np.searchsorted(edges[1:-1], confidences, side="left")
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, weights=confidences, minlength=bins) / counts
        accuracy = np.bincount(place, weights=hits, minlength=bins) / counts
    return Reliability(edges, counts.astype(np.int64), mean_confidence, accuracy)


def ece(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of Guo et al. 2017, as a fraction: `reliability(...).ece`.

    It is never below 0 and so above 0 by chance even for a calibrated classifier, the more the fewer images a bin has.
    """
    return reliability(confidence, correct, bins).ece
