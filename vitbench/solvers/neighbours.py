"""Classification by the nearest training rows in cosine similarity: exact, in blocks, all k from one pass.

The similarity of a query q and a row x is q·x / (‖q‖·‖x‖), in float64; a row of zeros has similarity 0 to everything. Every
query is compared with every row (no index, nothing is approximated); blocks of queries × rows keep the memory bounded whatever
their numbers are. Of equal similarities the row of the lowest number is the nearer one.

Most rows are far, which float32 tells. The rows of length 1 are rounded to float32 and multiplied in it, whatever the order of
the sum; that is off by at most (D + 4) u Σ|q_d x_d| ≤ (D + 4) u = b, u = 2⁻²⁴, by Cauchy and Schwarz (see
`vitbench.solvers.classifier`). Of each query the k + 12 rows of the highest such similarity are compared again in float64. If the
k-th of them is above all that was left out by more than b, the k nearest are among them. A query of which that is not so, as
where many rows are copies of one, is compared with every row in float64.

The k nearest rows vote for their classes, each with weight 1, or with weight exp(s/T) for similarity s and temperature T, as
in the evaluation of DINO (Caron et al. 2021; T = 0.07, after Wu et al. 2018). Of equal sums of votes the lowest class comes
first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitbench.solvers import products
from vitbench.solvers.classifier import best_first

QUERIES, ROWS = 1024, 8192
"""Sides of a block of similarities, 64 MiB in float64. Its rows are converted once: a hundredth of the work of the product."""

DECIMALS = 12
"""Digits of a similarity that count."""

SPARE = 12
"""Rows beyond the k nearest that are compared again in float64."""

FEWEST_ROWS, MOST_FEATURES = 64, 8192
"""Where float32 is of use: for few rows it saves nothing, and with many features its bound is too wide."""

_AGAIN = 1 << 20
_UNIT = 2.0**-24


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
    wanted = count + SPARE
    useful = max(FEWEST_ROWS, wanted) < len(bank) and bank.shape[1] <= MOST_FEATURES
    if not (useful and len(queries) and products.float32_is_float32()):
        return _nearest_in_float64(bank, queries, count, rows)
    similarity, found, proved = _nearest_of_candidates(bank, queries, count, *_candidates(bank, queries, wanted, rows))
    doubtful = (~proved).nonzero()[:, 0]
    if len(doubtful):
        similarity[doubtful], found[doubtful] = _nearest_in_float64(bank, queries[doubtful], count, rows)
    return similarity, found


def _candidates(bank: Tensor, queries: Tensor, count: int, rows: int) -> tuple[Tensor, Tensor]:
    """The rows of largest similarity in float32: row numbers `[M, count]`, increasing, and the smallest similarity `[M]`."""
    q = normalised(queries).to(torch.float32)
    parts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(bank), rows):
        block = normalised(bank[start : start + rows]).to(torch.float32)
        best = products.times(block.T, len(q))(q).topk(min(count, len(block)), dim=1)
        parts.append((best.values, best.indices + start))
    values, numbers = (torch.cat(items, dim=1) for items in zip(*parts, strict=True))
    chosen = values.topk(count, dim=1)
    return numbers.gather(1, chosen.indices).sort(dim=1).values, chosen.values[:, -1]


def _nearest_of_candidates(
    bank: Tensor, queries: Tensor, count: int, candidates: Tensor, least: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `nearest`, of the candidates alone, and whether that is proved to be the same, `[M]`.

    Args:
        bank: `[N, D]`.
        queries: `[M, D]`.
        count: How many.
        candidates: `[M, C]` row numbers, increasing.
        least: `[M]` the float32 similarity that no other row exceeds.
    """
    size = bank.shape[1]
    step = max(1, _AGAIN // (candidates.shape[1] * size))
    blocks = zip(torch.split(queries, step), torch.split(candidates, step), strict=True)
    again = torch.cat([cosine(q[:, None], bank[some])[:, 0] for q, some in blocks])
    order = again.sort(dim=1, descending=True, stable=True).indices[:, :count]
    similarity = again.gather(1, order)
    bound = (size + 4) * _UNIT * (1 + size * _UNIT) * 1.001 + 2 * 10.0**-DECIMALS
    return similarity, candidates.gather(1, order), similarity[:, -1] > least.to(torch.float64) + bound


def _nearest_in_float64(bank: Tensor, queries: Tensor, count: int, rows: int) -> tuple[Tensor, Tensor]:
    """As `nearest`."""
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
