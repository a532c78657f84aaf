"""Classification by the nearest training rows in cosine similarity: exact, in parts, all k from one search.

The similarity of a query q and a row x is q·x / (‖q‖·‖x‖), in float64; a row of zeros has similarity 0 to everything. Every
query is compared with every row (no index, nothing is approximated). Of equal similarities the row of the lowest number is the
nearer one.

The rows are gone through a part at a time, in whatever order they are cheap to read, and none of them is kept: of each query the
nearest of the parts so far are. A pass over them serves as many queries as `queries_at_once` says, so that memory is bounded
whatever the numbers of rows and of queries are, and what a part costs once (to read it, to divide its rows by their lengths) is
little beside the products with all these queries.

Most rows are far, which float32 tells. The rows of length 1 are rounded to float32 and multiplied in it, whatever the order of
the sum; that is off by at most (D + 4) u Σ|q_d x_d| ≤ (D + 4) u = b, u = 2⁻²⁴, by Cauchy and Schwarz (see
`vitbench.solvers.classifier`). Of each query the k + 12 rows of the highest such similarity are compared again in float64, in a
second pass. If the k-th of them is above all that was left out by more than b, the k nearest are among them. A query of which
that is not so, as where many rows are copies of one, is compared with every row in float64, in a third.

The k nearest rows vote for their classes, each with weight 1, or with weight exp(s/T) for similarity s and temperature T, as
in the evaluation of DINO (Caron et al. 2021; T = 0.07, after Wu et al. 2018). Of equal sums of votes the lowest class comes
first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from vitbench.solvers import products
from vitbench.solvers.classifier import best_first

Rows = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts anew with every call: parts of N rows, their numbers `[n]` int64, each of 0 to N-1 once and in any order, and their
features `[n, D]` of any float dtype, all on one device. Every call gives the same parts in the same order."""

QUERIES, ROWS = 1024, 8192
"""Largest sides of a block of similarities, 64 MiB in float64."""

BLOCK = 1 << 22
"""Features of the rows of a block, and of its queries: 32 MiB in float64."""

PASS = 1 << 23
"""Numbers that are kept of the queries of one pass: 32 MiB in float32."""

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
    equally near, and the lowest row number decides between them, unless their similarity is within rounding of half a digit
    (some in ten thousand) and their blocks differ.
    """
    return _cosine_of_unit(queries, normalised(rows))


def _cosine_of_unit(queries: Tensor, unit: Tensor) -> Tensor:
    """As `cosine`, of rows that are `normalised`."""
    q = queries.to(torch.float64)
    return (q @ unit.mT).div_(lengths(q)).round_(decimals=DECIMALS)


def rows_at_once(dimension: int) -> int:
    """Rows of a part that make good blocks, at D features."""
    return max(1, min(ROWS, BLOCK // dimension))


def queries_at_once(dimension: int, count: int) -> int:
    """Queries of a pass for their `count` nearest rows, at D features.

    Of a query are kept its features, these again at length 1, and for each candidate a similarity, a row and what it takes to
    sort them: 2·D + 16·(count + 12) numbers of 4 bytes.
    """
    return max(1, PASS // (2 * dimension + 16 * (count + SPARE)))


def nearest(rows: Rows, size: int, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows of largest cosine similarity, nearest first.

    Args:
        rows: What is searched; gone through once, twice or three times.
        size: N.
        queries: `[M, D]` on the same device, all of one pass; see `queries_at_once`.
        count: How many, 1 to N.

    Returns:
        Similarities `[M, count]` float64 and row numbers `[M, count]` int64.
    """
    wanted = count + SPARE
    useful = max(FEWEST_ROWS, wanted) < size and queries.shape[1] <= MOST_FEATURES
    if not (useful and len(queries) and products.float32_is_float32()):
        return _nearest_in_float64(rows, queries, count)
    similarity, found, proved = _nearest_of_candidates(rows, queries, count, *_candidates(rows, queries, wanted))
    doubtful = (~proved).nonzero()[:, 0]
    if len(doubtful):
        similarity[doubtful], found[doubtful] = _nearest_in_float64(rows, queries[doubtful], count)
    return similarity, found


def _candidates(rows: Rows, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows of largest similarity in float32: their places `[M, count]`, and the smallest similarity `[M]` among them.

    The place of a row is how many came before it, whatever its number is.
    """
    blocks = _blocks(queries, queries.shape[1])
    unit = torch.empty(queries.shape, dtype=torch.float32, device=queries.device)
    for block in blocks:
        unit[block] = normalised(queries[block])
    values = unit.new_full((len(unit), count), -torch.inf)
    places = torch.zeros(values.shape, dtype=torch.int64, device=unit.device)
    start = 0
    for _, x in rows():
        multiply = products.times(normalised(x).to(torch.float32).T, len(unit))
        for block in blocks:
            best = multiply(unit[block]).topk(min(count, len(x)), dim=1)
            chosen = torch.cat([values[block], best.values], dim=1).topk(count, dim=1)
            values[block] = chosen.values
            places[block] = torch.cat([places[block], best.indices + start], dim=1).gather(1, chosen.indices)
        start += len(x)
    return places, values[:, -1]


def _nearest_of_candidates(
    rows: Rows, queries: Tensor, count: int, places: Tensor, least: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `nearest`, of the candidates alone, and whether that is proved to be the same, `[M]`.

    Args:
        rows: As in `nearest`.
        queries: `[M, D]`.
        count: How many.
        places: `[M, C]`, of the candidates.
        least: `[M]` the float32 similarity that no other row exceeds.
    """
    size, dimension = places.shape[1], queries.shape[1]
    similarity = torch.empty(places.shape, dtype=torch.float64, device=places.device)
    numbers = torch.empty_like(places)
    ordered, pairs = places.flatten().sort()  # in the order in which the rows come
    start = first = 0
    for names, x in rows():
        last = int(torch.searchsorted(ordered, start + len(x)))
        step = max(1, _AGAIN // dimension)
        for begin in range(first, last, step):
            some = slice(begin, min(begin + step, last))
            pair, row = pairs[some], ordered[some] - start
            similarity.view(-1)[pair] = cosine(queries[pair // size, None], x[row, None])[:, 0, 0]
            numbers.view(-1)[pair] = names[row]
        start, first = start + len(x), last
    similarity, found = _best(similarity, numbers, count)
    bound = (dimension + 4) * _UNIT * (1 + dimension * _UNIT) * 1.001 + 2 * 10.0**-DECIMALS
    return similarity, found, similarity[:, -1] > least.to(torch.float64) + bound


def _nearest_in_float64(rows: Rows, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `nearest`."""
    similarity = torch.full((len(queries), count), -torch.inf, dtype=torch.float64, device=queries.device)
    found = torch.zeros(similarity.shape, dtype=torch.int64, device=queries.device)
    for names, x in rows():
        names, order = names.sort()  # so that of equal columns the first is of the lowest number
        unit = normalised(x[order])
        for block in _blocks(queries, queries.shape[1]):
            near = _cosine_of_unit(queries[block], unit)
            best = best_first(near, count)
            similarity[block], found[block] = _best(
                torch.cat([similarity[block], near.gather(1, best)], dim=1),
                torch.cat([found[block], names[best]], dim=1),
                count,
            )
    return similarity, found


def _best(similarity: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest similarities of each row and their numbers; of equal ones the lowest number first."""
    numbers, order = numbers.sort(dim=1)
    similarity, best = similarity.gather(1, order).sort(dim=1, descending=True, stable=True)
    return similarity[:, :count], numbers.gather(1, best[:, :count])


def _blocks(queries: Tensor, width: int) -> list[slice]:
    """The rows of `queries`, as many at a time as a block takes of which each has `width` numbers."""
    step = max(1, min(QUERIES, BLOCK // width))
    return [slice(start, start + step) for start in range(0, len(queries), step)]


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
    rows: Rows,
    labels: Tensor,
    queries: Tensor,
    num_classes: int,
    ks: Sequence[int],
    *,
    temperature: float | None,
    count: int,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Rank the classes of every query by the votes of its k nearest rows, for every k.

    Args:
        rows: What is searched, on the device that is to compute.
        labels: `[N]` int64 in `[0, num_classes)`, of each row by its number, on the same device.
        queries: `[M, D]`, on the same device, all of one pass; see `queries_at_once`.
        num_classes: Number of classes.
        ks: Numbers of neighbours, each 1 to N.
        temperature: See `votes`.
        count: How many classes to rank.

    Returns:
        k to the ranking `[M, min(count, k, num_classes)]` int64, best first, with -1 where no further class has a vote; and
        to the first class's share of the votes `[M]` float64.
    """
    similarity, found = nearest(rows, len(labels), queries, max(ks))
    classes = labels[found]
    rankings: dict[int, list[Tensor]] = {k: [] for k in ks}
    shares: dict[int, list[Tensor]] = {k: [] for k in ks}
    for block in _blocks(queries, num_classes):
        for k in ks:
            voted = votes(similarity[block, :k], classes[block, :k], num_classes, temperature)
            ranking = best_first(voted, min(count, k))
            share = voted.gather(1, ranking)
            rankings[k].append(ranking.masked_fill(share == 0, -1))
            shares[k].append(share[:, 0])
    return {k: (torch.cat(rankings[k]), torch.cat(shares[k])) for k in ks}
