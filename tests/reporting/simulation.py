"""Simulated hits whose true accuracy is known, and how often intervals cover it.

    python -m tests.reporting.simulation [DRAWS]

prints the tables of `docs/methodology.md` (10,000 draws: about ten minutes).

An image has a difficulty, a support set an accuracy, and their meeting a rest; a prediction is right where their sum is above a
threshold (a probit model). The share of the difficulty is what makes the seeds' hits on one image alike.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import special

from vitbench.reporting.statistics import combined_interval, paired_difference

CHUNK_VALUES = 5_000_000

Hits = npt.NDArray[np.bool_]


def draw_hits(
    draws: int, seeds: int, images: int, accuracy: float, seed_sd: float, share: float, random_seed: int = 0
) -> Iterator[Hits]:
    """Tables `[S, N]` of hits.

    Args:
        draws: How many.
        seeds: S.
        images: N.
        accuracy: The true mean, a fraction.
        seed_sd: Standard deviation of the accuracy over support sets (a beta distribution), a fraction.
        share: Of the variance within a support set, what is the image's.
        random_seed: Of the random numbers.
    """
    random = np.random.default_rng(random_seed)
    total = accuracy * (1 - accuracy) / seed_sd**2 - 1 if seed_sd else np.inf
    for size in _sizes(draws, seeds * images):
        drawn = (
            random.beta(accuracy * total, (1 - accuracy) * total, (size, seeds))
            if seed_sd
            else np.full((size, seeds), accuracy)
        )
        # ndtri(1) is infinite: a support set that is always right.
        yield from _hits(random, special.ndtri(drawn), _normal(random, size, 1, images), share)


def draw_pairs(
    draws: int,
    seeds: int,
    images: int,
    accuracies: tuple[float, float],
    seed_sd: float,
    common: float,
    own: float,
    *,
    seed_correlation: float = 0.5,
    random_seed: int = 0,
) -> Iterator[tuple[Hits, Hits]]:
    """Pairs of tables `[S, N]` for the same support sets and images.

    Args:
        draws: How many.
        seeds: S.
        images: N.
        accuracies: The true means of both.
        seed_sd: Standard deviation of each accuracy over support sets, about.
        common: Share of the image's difficulty that both models feel.
        own: Share of it that each feels for itself.
        seed_correlation: How alike both accuracies move with the support set.
        random_seed: Of the random numbers.
    """
    random = np.random.default_rng(random_seed)
    for size in _sizes(draws, 2 * seeds * images):
        difficulty = _normal(random, size, 1, images)
        support = random.standard_normal((size, seeds))
        sides = []
        for accuracy in accuracies:
            threshold = special.ndtri(accuracy)
            width = seed_sd / (np.exp(-(threshold**2) / 2) / np.sqrt(2 * np.pi))
            moved = seed_correlation**0.5 * support + (1 - seed_correlation) ** 0.5 * random.standard_normal(
                support.shape
            )
            # E Φ(m + w·z) = Φ(m / √(1 + w²)): the mean is the accuracy, exactly.
            mean = threshold * np.sqrt(1 + width**2) + width * moved
            felt = (common / (common + own)) ** 0.5 * difficulty
            felt += np.float32((own / (common + own)) ** 0.5) * _normal(random, size, 1, images)
            sides.append(_hits(random, mean, felt, common + own))
        yield from zip(*sides, strict=True)


def rate(events: Iterator[bool]) -> float:
    """The share of events that happened, in percent."""
    return 100 * float(np.mean(np.fromiter(events, dtype=bool)))


def coverage(draws: int, seeds: int, images: int, accuracy: float, seed_sd: float, share: float) -> float:
    """How often, in percent, the shown interval holds the true accuracy."""
    tables = draw_hits(draws, seeds, images, accuracy, seed_sd, share)
    return rate(combined_interval(hits).contains(accuracy) for hits in tables)


def false_positives(
    draws: int, seeds: int, images: int, accuracy: float, seed_sd: float, common: float, own: float
) -> float:
    """How often, in percent, two equally good models differ at the 5 % level."""
    pairs = draw_pairs(draws, seeds, images, (accuracy, accuracy), seed_sd, common, own)
    return rate(paired_difference(a, b).p_value < 0.05 for a, b in pairs)


def _sizes(draws: int, cells: int) -> Iterator[int]:
    step = max(1, CHUNK_VALUES // cells)
    for start in range(0, draws, step):
        yield min(step, draws - start)


def _normal(random: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return random.standard_normal(shape, dtype=np.float32)


def _hits(
    random: np.random.Generator, mean: npt.NDArray[np.float64], difficulty: npt.NDArray[np.float32], share: float
) -> Hits:
    rest = _normal(random, *mean.shape, difficulty.shape[-1])
    rest *= np.float32((1 - share) ** 0.5)
    rest += np.float32(share**0.5) * difficulty
    return rest > -mean.astype(np.float32)[:, :, None]


def _table(name: str, measure: Callable[..., float], draws: int, columns: list[tuple[float, float]]) -> str:
    lines = [f"{name}, {draws:,} draws", ""]
    lines.append("| seeds | images | accuracy | seed sd | " + " | ".join(map(str, columns)) + " |")
    lines.append("|---" * (4 + len(columns)) + "|")
    for seeds, images in itertools.product((3, 5), (200, 2000)):
        for accuracy, seed_sd in itertools.product((0.3, 0.7, 0.9, 0.97), (0.0, 0.01, 0.03)):
            cells = [f"{measure(draws, seeds, images, accuracy, seed_sd, *column):.1f}" for column in columns]
            lines.append(f"| {seeds} | {images} | {accuracy} | {seed_sd} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    one = [(0.3,), (0.8,)]
    sys.stdout.write(_table("coverage of combined_interval by share", coverage, count, one) + "\n")  # type: ignore[arg-type]
    two = [(0.4, 0.2), (0.8, 0.1), (0.8, 0.0)]
    sys.stdout.write(_table("false positives by common, own", false_positives, count, two))
