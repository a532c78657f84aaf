"""Nearest neighbours: every train image votes for its class where it is near enough, and nothing is fitted.

Cosine similarity of frozen features, the whole train split as the bank, exact search (`vitbench.solvers.neighbours`). By
default the k nearest images vote with weight exp(similarity / 0.07), as in the evaluation of DINO and DINOv2;
`weights="uniform"` gives each of them one vote. There is one record for each k: k is among the parameters of its identity,
and every k is read off one search.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitbench.errors import DataError, UsageError, unknown
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.protocols.base import Cell, Outcome, Protocol, Tuning
from vitbench.protocols.closed_form import checked, class_counts, missing_classes, with_float64
from vitbench.protocols.metrics import RANKED
from vitbench.protocols.options import distinct, items, known_options, whole_number
from vitbench.solvers.neighbours import queries_at_once, ranked, rows_at_once

Weights = Literal["temperature", "uniform"]
WEIGHTS: tuple[Weights, ...] = ("temperature", "uniform")
TEMPERATURE = 0.07

_TEMPERATURES = (1e-4, 1e4)


def vote_fields(protocol: str, weights: Any, temperature: Any) -> dict[str, Any]:
    """The fields that say what a neighbour's vote weighs, each brought to its type.

    Args:
        protocol: The protocol's name, for messages.
        weights: `temperature` or `uniform`.
        temperature: T of the weight exp(similarity / T).

    Raises:
        UsageError: A value that cannot be meant.
    """
    if weights not in WEIGHTS:
        raise unknown(f"weights of protocol '{protocol}':", str(weights), WEIGHTS)
    low, high = _TEMPERATURES
    try:
        number = math.nan if isinstance(temperature, bool) else float(temperature)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise UsageError(
            f"protocol option: temperature must be a number from {low:g} to {high:g}, got {temperature!r}; "
            f"--set weights=uniform gives every neighbour the same vote"
        )
    return {"weights": weights, "temperature": number}


def vote_parameters(weights: Weights, temperature: float) -> dict[str, Any]:
    """What of them can change a score, for the identity: uniform votes have no temperature."""
    found: dict[str, Any] = {"distance": "cosine", "weights": weights}
    return found | ({"temperature": temperature} if weights == "temperature" else {})


def vote_label(weights: Weights, temperature: float) -> str:
    """How neighbours vote, for a title."""
    return "uniform votes" if weights == "uniform" else f"votes weighted by exp(cosine / {temperature:g})"


def rows_of_zeros(features: Tensor) -> int:
    """How many rows of `[N, D]` are 0 throughout."""
    return int((features == 0).all(dim=1).sum())


def zero_rows(zeros: int, size: int, which: str) -> list[str]:
    """The line about `rows_of_zeros`, to which a cosine means nothing; none where there are none."""
    return [f"{zeros} of {size} {which} have features that are all 0: their cosine is taken as 0"] if zeros else []


@dataclass(frozen=True)
class NearestNeighbours(Protocol):
    """k nearest neighbours in the whole train split. Fields also take the texts of a command line or a YAML file.

    Attributes:
        k: Numbers of neighbours, each at least 1 and at most the number of train images.
        weights: What a neighbour's vote weighs: `temperature`, exp(cosine similarity / `temperature`), or `uniform`, 1.
        temperature: T of these weights; without meaning for `uniform`.
    """

    name: ClassVar[str] = "knn"
    summary: ClassVar[str] = "k nearest train images in cosine similarity, weighted votes (DINO)"

    k: tuple[int, ...] = (1, 5, 20)
    weights: Weights = "temperature"
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        """Bring every field to its type.

        Raises:
            UsageError: A value that cannot be meant.
        """
        values = {
            "k": distinct("k", [whole_number("k", item, least=1) for item in items("k", self.k)]),
            **vote_fields(self.name, self.weights, self.temperature),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from the fields' names and values; see `Protocol.from_options`."""
        known_options(
            cls.name, options, [field.name for field in fields(cls)], hint="the whole train split is the bank"
        )
        return cls(**options)

    def parameters(self) -> dict[str, Any]:
        """The parameters that all k share; see `Protocol.parameters`."""
        return vote_parameters(self.weights, self.temperature)

    def label(self) -> str:
        """How the neighbours vote; a record's label has its k before it."""
        return vote_label(self.weights, self.temperature)

    def cells(self) -> list[Cell]:
        """One for each k; nothing is drawn."""
        return [Cell(shot=0, seed=0, parameters=(("k", k),)) for k in self.k]

    def check(self, labels: IntArray, num_classes: int) -> list[str]:
        """Says how many classes have no train image; see `Protocol.check`.

        Raises:
            DataError: No class has an image, a label is not one of the classes, or there are fewer images than neighbours.
        """
        counts = class_counts(labels, num_classes, "train")
        if max(self.k) > len(labels):
            raise DataError(
                f"k = {max(self.k)}, but the train split has {len(labels)} images: give --k up to {len(labels)}"
            )
        return missing_classes(counts)

    def train_rows(self, labels: IntArray, num_classes: int, cells: Sequence[Cell]) -> IntArray:
        """Every row; see `Protocol.train_rows`."""
        return np.arange(len(labels) if cells else 0, dtype=np.int64)

    def evaluate(
        self,
        train: FeatureSet,
        test: FeatureSet,
        name: str,
        num_classes: int,
        cells: Sequence[Cell],
        tuning: Tuning | None = None,
    ) -> Iterator[Outcome]:
        """Rank the classes of every test row by the votes of its neighbours; see `Protocol.evaluate`.

        One search serves every cell, so that the first outcome takes the time of all. The neighbours are those of float64
        (`solvers.neighbours`), found on the device that holds the features. Both splits are read a part at a time, the test
        split twice and the train split up to three times for each `queries_at_once` test rows, and neither is held. A class
        without a vote is not ranked, and fewer than 5 neighbours rank fewer than 5 classes: the top-5 accuracy of k < 5 does
        not exist.

        Raises:
            UsageError: A train row has no features.
            DataError: No image, a label that is not one of the classes, fewer images than neighbours, or features that are
                NaN or infinite.
        """
        known = self.check(train.labels, num_classes)
        class_counts(test.labels[test.rows], num_classes, "test")
        if len(train.rows) < len(train.labels):
            raise UsageError(
                f"{len(train.labels) - len(train.rows)} of the {len(train.labels)} train rows have no features"
            )
        zeros = _checked(test, name, "test")
        known += _checked(train, name, "train") + zeros
        counts = np.bincount(train.labels, minlength=num_classes)
        found = self._ranked(train, test, name, num_classes, [dict(cell.parameters)["k"] for cell in cells])
        for cell in cells:
            k = dict(cell.parameters)["k"]
            ranking, share = found[k]
            yield Outcome(
                cell=cell,
                ranking=ranking,
                n_support=len(train.labels),
                n_test=len(test.rows),
                details={"k": k, "n_per_class_min": int(counts.min()), "n_per_class_max": int(counts.max())},
                warnings=tuple(known),
                confidence=share if k > 1 else None,  # one neighbour's share is 1, whatever it is worth
            )

    def _ranked(
        self, train: FeatureSet, test: FeatureSet, name: str, num_classes: int, ks: Sequence[int]
    ) -> dict[int, tuple[IntArray, npt.NDArray[np.float64]]]:
        """Rankings and shares of all test rows, in their order, by k; see `solvers.neighbours.ranked`."""
        first = with_float64(train.part(name, train.rows[:1]))
        dimension, device = first.shape[1], first.device
        labels = torch.from_numpy(train.labels).to(device)
        size = len(test.rows)
        found = {k: (np.empty((size, min(RANKED, k, num_classes)), np.int64), np.empty(size)) for k in ks}

        def rows() -> Iterator[tuple[Tensor, Tensor]]:
            for numbers, x in train.chunks(name, rows_at_once(dimension)):
                yield torch.from_numpy(numbers).to(device), with_float64(x)

        for numbers, x in test.chunks(name, queries_at_once(dimension, max(ks))):
            places = np.searchsorted(test.rows, numbers)
            temperature = self.temperature if self.weights == "temperature" else None
            part = ranked(rows, labels, x.to(device), num_classes, ks, temperature=temperature, count=RANKED)
            for k, (ranking, share) in part.items():
                found[k][0][places] = ranking.cpu().numpy()
                found[k][1][places] = share.cpu().numpy()
        return found


def _checked(features: FeatureSet, name: str, split: str) -> list[str]:
    """The line about rows of zeros of a split, once all of its rows are known to be finite.

    Raises:
        DataError: Features that are NaN or infinite, or so large that their squares are.
    """
    size, parts = len(features.rows), features.chunks(name, rows_at_once(features.dimension(name)))
    zeros = sum(map(rows_of_zeros, checked((x for _, x in parts), size, split)))
    return zero_rows(zeros, size, f"{split} images")
