"""Few-shot episodes: W classes, S labelled images of each, Q queries of each, drawn anew many times and classified in batches.

Every classifier takes a batch of episodes, support `[E, W, S, D]` and queries `[E, M, D]` with M = W·Q, and gives scores `[E,
M, W]` float64, higher for a better class. Each is one batched product (and for ridge one batched factorisation) per batch,
the same as a loop over episodes but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitbench.solvers import ridge
from vitbench.solvers.classifier import best_first
from vitbench.solvers.neighbours import cosine, normalised, votes
from vitbench.solvers.standardisation import from_variance

IntArray = npt.NDArray[np.int64]
Classifier = Callable[[Tensor, Tensor], Tensor]
"""Support `[E, W, S, D]` and queries `[E, M, D]`, any float dtype, to scores `[E, M, W]` float64."""

SAMPLER_VERSION = 1
"""Raised whenever other images would be drawn; part of every record's identity."""

BATCH = 1 << 20
"""Features of the episodes that are classified at a time: 8 MiB in float64, which stays in the cache of most processors."""


@dataclass(frozen=True)
class Episodes:
    """Drawn episodes. E of them, W classes, S support images and Q queries of each class.

    Attributes:
        classes: `[E, W]` int64, increasing within each episode.
        support: `[E, W, S]` int64, rows.
        queries: `[E, W, Q]` int64, rows; none of an episode's is in its support.
    """

    classes: IntArray
    support: IntArray
    queries: IntArray


def eligible(labels: IntArray, num_classes: int, size: int) -> IntArray:
    """The classes that have at least `size` rows, increasing.

    Args:
        labels: `[N]` int64 in `[0, num_classes)`.
        num_classes: Number of classes.
        size: Images that an episode takes of a class: S + Q.
    """
    return np.flatnonzero(np.bincount(labels, minlength=num_classes) >= size)


def draw(
    labels: IntArray, num_classes: int, *, way: int, shot: int, queries: int, episodes: int, seed: int
) -> Episodes:
    """Draw episodes: W of the classes that have S + Q rows, and S + Q rows of each, all without replacement.

    One generator, `numpy.random.default_rng(seed)`, serves all episodes in turn: it permutes the eligible classes, of which
    the first W are taken, and then, class by class in increasing order, the rows of each, of which the first Q are queries
    and the next S support. So the episodes of one seed begin alike however many there are, and where the same classes are
    eligible they have the same queries for every shot, and nested support sets.

    Args:
        labels: `[N]` int64 in `[0, num_classes)`.
        num_classes: Number of classes.
        way: W, at most the number of eligible classes.
        shot: S.
        queries: Q.
        episodes: E.
        seed: Of the generator, at least 0.
    """
    rng = np.random.default_rng(seed)
    candidates = eligible(labels, num_classes, shot + queries)
    order = np.argsort(labels, kind="stable").astype(np.int64, copy=False)
    edges = np.searchsorted(labels, np.arange(num_classes + 1), sorter=order)
    classes = np.empty((episodes, way), np.int64)
    rows = np.empty((episodes, way, queries + shot), np.int64)
    for episode in range(episodes):
        classes[episode] = np.sort(rng.permutation(candidates)[:way])
        for place, label in enumerate(classes[episode]):
            rows[episode, place] = rng.permutation(order[edges[label] : edges[label + 1]])[: queries + shot]
    return Episodes(classes, rows[:, :, queries:], rows[:, :, :queries])


def rankings(features: Tensor, drawn: Episodes, classifier: Classifier, count: int) -> IntArray:
    """Rank the classes of each query within its episode.

    Args:
        features: `[N, D]`, any float dtype, on the device that is to compute.
        drawn: The episodes; their rows are rows of `features`.
        classifier: What gives the scores.
        count: How many classes to rank, 1 to W.

    Returns:
        `[E·W·Q, count]` int64, best first, in the order of `drawn.queries`; of equal scores the lowest class comes first.
    """
    found = []
    for part in _batches(drawn, features.shape[1]):
        support = features[torch.from_numpy(part.support).to(features.device)]
        queries = features[torch.from_numpy(part.queries).to(features.device)]
        scores = classifier(support, queries.flatten(1, 2))
        places = best_first(scores.flatten(0, 1), count).cpu().numpy()
        owner = np.repeat(part.classes, part.queries[0].size, axis=0)
        found.append(np.take_along_axis(owner, places, axis=1))
    return np.concatenate(found)


def _batches(drawn: Episodes, width: int) -> Iterator[Episodes]:
    """The episodes, as many at a time as have about `BATCH` features."""
    each = (drawn.support[0].size + drawn.queries[0].size) * width
    step = max(1, BATCH // each)
    for start in range(0, len(drawn.classes), step):
        part = slice(start, start + step)
        yield Episodes(drawn.classes[part], drawn.support[part], drawn.queries[part])


def ridge_scores(support: Tensor, queries: Tensor, l2: float) -> Tensor:
    """Ridge regression onto ±1 in each episode: the classifier of `vitbench.solvers.ridge`, batched.

    N = W·S support rows are standardised with their own statistics to Z `[N, D]`, and W = Z'(ZZ' + λI)⁻¹Y in the dual, where
    ZZ' is only N × N. Y may be centred (see `ridge.fit`). An episode has as many images of every class, so that ȳ is the same
    for all and the bias β·ȳ adds the same to every score: it is left out. What the batch is no good for, `ridge.fit` solves
    one by one: episodes of more images than features (the primal is the better conditioned), and those whose λ is below the
    rounding of their Gram matrix.
    """
    episodes, way, shot, width = support.shape
    x = support.flatten(1, 2).to(torch.float64)
    labels = torch.arange(way, device=x.device).repeat_interleave(shot)
    if way * shot > width + 1:
        return torch.stack([_scores(*pair, labels, way, l2) for pair in zip(x, queries, strict=True)])
    mean = x.mean(dim=1, keepdim=True)
    z = x - mean
    scale = from_variance(mean, z.square().mean(dim=1, keepdim=True)).scale
    z /= scale
    gram = z @ z.mT
    noise = torch.finfo(torch.float64).eps * way * shot * torch.linalg.matrix_norm(gram)
    gram.diagonal(dim1=1, dim2=2).add_(l2)
    factor, failed = torch.linalg.cholesky_ex(gram)
    targets = 2 * torch.nn.functional.one_hot(labels, way).to(torch.float64) - 2 / way
    slopes = z.mT @ torch.cholesky_solve(targets.expand(episodes, -1, -1), factor) / scale.mT
    scores = (queries.to(torch.float64) - mean) @ slopes
    for episode in torch.nonzero((failed != 0) | (l2 <= noise)).flatten().tolist():
        scores[episode] = _scores(x[episode], queries[episode], labels, way, l2)
    return scores


def _scores(support: Tensor, queries: Tensor, labels: Tensor, way: int, l2: float) -> Tensor:
    """The scores `[M, W]` of one episode: support `[N, D]` with its labels `[N]`, queries `[M, D]`."""
    return ridge.fit(support, labels, way, l2).scores(queries)


def prototype_scores(support: Tensor, queries: Tensor, distance: str) -> Tensor:
    """Nearness to the mean of each class's support images.

    `cosine`: the cosine between the query and the mean of the support rows, each divided by its length first. A query's own
        length is
    a factor of all its scores and is left out.

    `euclidean`: -‖q - p‖² for a prototype p, the score of prototypical networks (Snell et al. 2017), without ‖q - c‖², which
        all classes
    have. With the episode's mean prototype c and r = p - c, -‖q - p‖² + ‖q - c‖² = 2 q·r - (2c + r)·r: no pass over the
    queries but the product, and no cancellation of large ‖p‖² where all features have a common offset.
    """
    queries = queries.to(torch.float64)
    if distance == "cosine":
        return queries @ normalised(normalised(support).mean(dim=2)).mT
    prototypes = support.to(torch.float64).mean(dim=2)
    centre = prototypes.mean(dim=1, keepdim=True)
    apart = prototypes - centre
    return queries @ (2 * apart).mT - ((2 * centre + apart) * apart).sum(dim=2)[:, None]


def neighbour_scores(support: Tensor, queries: Tensor, k: int, temperature: float | None) -> Tensor:
    """The share of the votes of each class among the query's k nearest support rows in cosine similarity.

    Args:
        support: `[E, W, S, D]`.
        queries: `[E, M, D]`.
        k: 1 to W·S.
        temperature: See `neighbours.votes`.
    """
    episodes, way, shot = support.shape[:3]
    similarity = cosine(queries, support.flatten(1, 2))
    rows = best_first(similarity.flatten(0, 1), k).view(episodes, -1, k)
    return votes(similarity.gather(2, rows), rows // shot, way, temperature)
