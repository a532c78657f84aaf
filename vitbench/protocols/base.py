"""What every protocol is: features and labels in, scores and predictions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from vitbench.features.featureset import FeatureSet, IntArray


@dataclass(frozen=True, order=True)
class Cell:
    """One measured outcome of a protocol, and so one record per representation.

    Attributes:
        shot: Images per class in the support set; 0 for a protocol that uses the whole train split.
        seed: The seed of the draw.
    """

    shot: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a protocol measured in one cell.

    Attributes:
        cell: Which cell.
        ranking: `[n_test, R]` int64, the R best classes of each test row, best first (R is 5, or the number of classes if that
            is less), in the order of the test rows. Every score is computed from it.
        n_support: Number of labelled images that were learned from.
        n_test: Number of images that were scored.
        details: What else the record should hold (`l2`, `n_per_class_min`, …): JSON values only.
        warnings: What a reader of the record should know.
        confidence: `[n_test]` float, the estimated probability that each prediction is right; None when the protocol has none.
    """

    cell: Cell
    ranking: IntArray
    n_support: int
    n_test: int
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    confidence: npt.NDArray[np.floating[Any]] | None = None

    @property
    def predictions(self) -> IntArray:
        """`[n_test]` int64, the predicted class of each test row."""
        return self.ranking[:, 0]


@dataclass(frozen=True)
class Tuning:
    """Features on which a hyper-parameter is chosen, none of them of a test image.

    Attributes:
        train: What is learned from while choosing.
        validation: What chooses.
    """

    train: FeatureSet
    validation: FeatureSet


class Protocol(ABC):
    """A way to score frozen features. An instance holds its parameters, is immutable, and can be used on any task."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    def tunes(self) -> bool:
        """Whether `evaluate` needs the task's tuning splits; no by default."""
        return False

    @classmethod
    @abstractmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from options as they come from a command line or YAML file.

        Raises:
            UsageError: An option is unknown (the nearest is offered) or its value cannot be meant.
        """

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The parameters that can change a score, as JSON values, for the identity. Shots and seeds are not among them."""

    @abstractmethod
    def label(self) -> str:
        """The parameters in a few words, for the title of a table: `l2 = 1024`."""

    @abstractmethod
    def cells(self) -> list[Cell]:
        """The cells that a complete evaluation has."""

    @abstractmethod
    def train_rows(self, labels: IntArray, num_classes: int, cells: Sequence[Cell]) -> IntArray:
        """The rows of the train split whose features `evaluate` will ask for, increasing.

        Args:
            labels: `[N]` int64, the labels of the whole train split.
            num_classes: Number of classes that the task declares.
            cells: The cells to be evaluated.
        """

    def check(self, labels: IntArray, num_classes: int) -> list[str]:
        """What a user should know before the run about this protocol on these train labels, a line each; none by default."""
        return []

    @abstractmethod
    def evaluate(
        self,
        train: FeatureSet,
        test: FeatureSet,
        name: str,
        num_classes: int,
        cells: Sequence[Cell],
        tuning: Tuning | None = None,
    ) -> Iterator[Outcome]:
        """Score representation `name` in each of `cells`; an outcome is given as soon as it is known.

        Args:
            train: The train split's features, of the rows that `train_rows` named.
            test: The test rows' features.
            name: Canonical name of the representation.
            num_classes: Number of classes that the task declares.
            cells: The cells to be evaluated.
            tuning: Features of the task's tuning splits, every row of both; given when `tunes` is true.
        """
