"""Classification by the nearest training rows in cosine similarity: exact, in blocks, all k from one pass.

The similarity of a query q and a row x is q·x / (‖q‖·‖x‖), computed in float64; a row of zeros has similarity 0 to
everything. Every query is compared with every row (no index, nothing is approximated); blocks of queries × rows keep the
memory bounded whatever their numbers are. Of equal similarities the row of the lowest number is the nearer one.

The k nearest rows vote for their classes, each with weight 1, or with weight exp(s/T) for similarity s and temperature T, as
in the evaluation of DINO (Caron et al. 2021; T = 0.07, after Wu et al. 2018). Of equal sums of votes the lowest class comes
first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitbench.solvers.classifier import best_first

QUERIES, ROWS = 1024, 8192
"""Sides of a block of similarities, 64 MiB in float64. Its rows are converted once: a hundredth of the work of the product."""

DECIMALS = 12
"""Digits of a similarity that count."""


def lengths(x: Tensor) -> Tensor:
    """Euclidean lengths of rows `[..., D]` float64, as `[..., 1]` to divide by.

    Infinite for a row of zeros, which stays one that way; a length below 1e-150, whose square float64 cannot tell from 0,
    counts as 0.
    """
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.masked_fill_(length < 1e-150, torch.inf)


def normalised(x: Tensor) -> Tensor:
    """Rows `[..., D]` of any float dtype, divided by their `lengths`; float64."""
    x = x.to(torch.float64)
    return x / lengths(x)


def cosine(queries: Tensor, rows: Tensor) -> Tensor:
    """Cosine similarities `[..., M, N]` float64 of `queries` `[..., M, D]` and `rows` `[..., N, D]`, to 12 decimals.

    A product's last digits depend on how it is cut into blocks. Without them, rows that are equal (copies of an image) are
    equally near whatever the blocks and the threads, and the lowest row number decides between them.
    """
    q = queries.to(torch.float64)
    return (q @ normalised(rows).mT).div_(lengths(q)).round_(decimals=DECIMALS)


def nearest(bank: Tensor, queries: Tensor, count: int, *, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """The rows of largest cosine similarity, nearest first.

    Args:
        bank: `[N, D]`, any float dtype.
        queries: `[M, D]` on the same device; all of them make one block.
        count: How many, 1 to N.
        rows: Rows of `bank` that are compared at a time.

    Returns:
        Similarities `[M, count]` float64 and row numbers `[M, count]` int64.
    """
    q = queries.to(torch.float64)
    similarity = q.new_empty(len(q), 0)
    found = torch.empty(len(q), 0, dtype=torch.int64, device=q.device)
    for start in range(0, len(bank), rows):
        block = cosine(q, bank[start : start + rows])
        best = best_first(block, count)
        # What was found before has lower row numbers and stands first, so that a stable sort leaves it first among equals.
        similarity = torch.cat([similarity, block.gather(1, best)], dim=1)
        found = torch.cat([found, best + start], dim=1)
        order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :count]
        similarity, found = similarity.gather(1, order), found.gather(1, order)
    return similarity, found


def votes(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float | None) -> Tensor:
    """The share of the votes that every class has, `[..., num_classes]` float64; each row sums to 1.

    The weights exp(s/T) are taken relative to the nearest row's, exp((s − s₁)/T), so that none of them overflows: the shares are
    the same.

    Args:
        similarity: `[..., k]` float64, nearest first.
        labels: `[..., k]` int64, the classes of these rows.
        num_classes: Number of classes.
        temperature: T, above 0; None for votes that all weigh 1.
    """
    weights = torch.ones_like(similarity)
    if temperature is not None:
        weights = ((similarity - similarity[..., :1]) / temperature).exp()
    sums = similarity.new_zeros(*similarity.shape[:-1], num_classes).scatter_add_(-1, labels, weights)
    return sums / weights.sum(dim=-1, keepdim=True)


def ranked(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    num_classes: int,
    ks: Sequence[int],
    *,
    temperature: float | None,
    count: int,
    block: int = QUERIES,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Rank the classes of every query by the votes of its k nearest rows, for every k.

    Args:
        bank: `[N, D]`, any float dtype, on the device that is to compute.
        labels: `[N]` int64 in `[0, num_classes)`, on the same device.
        queries: `[M, D]`, on the same device.
        num_classes: Number of classes.
        ks: Numbers of neighbours, each 1 to N.
        temperature: See `votes`.
        count: How many classes to rank.
        block: Queries that are classified at a time.

    Returns:
        k to the ranking `[M, min(count, k, num_classes)]` int64, best first, with -1 where no further class has a vote; and
        to the first class's share of the votes `[M]` float64.
    """
    rankings: dict[int, list[Tensor]] = {k: [] for k in ks}
    shares: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part in torch.split(queries, block):
        similarity, rows = nearest(bank, part, max(ks))
        classes = labels[rows]
        for k in ks:
            found = votes(similarity[:, :k], classes[:, :k], num_classes, temperature)
            ranking = best_first(found, min(count, k))
            share = found.gather(1, ranking)
            rankings[k].append(ranking.masked_fill(share == 0, -1))
            shares[k].append(share[:, 0])
    return {k: (torch.cat(rankings[k]), torch.cat(shares[k])) for k in ks}
