"""What every protocol is: features and labels in, scores and predictions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from vitbench.features.featureset import FeatureSet, IntArray

if TYPE_CHECKING:
    from vitbench.backbones.base import Backbone
    from vitbench.tasks.task import Task


@dataclass(frozen=True, order=True)
class Cell:
    """One measured outcome of a protocol, and so one record per representation.

    Attributes:
        shot: Images per class in the support set; 0 for a protocol that uses the whole train split.
        seed: The seed of the draw.
        parameters: Names and values of the parameters in which the cells of one protocol differ, such as the k of `knn`. They
            are among the parameters of their record, and so of its identity.
    """

    shot: int
    seed: int
    parameters: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a protocol measured in one cell.

    Attributes:
        cell: Which cell.
        ranking: `[n_test, R]` int64, the R best classes of each test row, best first (R is 5, or the number of classes if that
            is less), in the order of the test rows; -1 behind the last class that a protocol has any reason to rank. Every
            score is computed from it.
        n_support: Number of labelled images that were learned from.
        n_test: Number of predictions that were scored: of images, each once, if `rows` is None.
        details: What else the record should hold (`l2`, `n_per_class_min`, …): JSON values only.
        warnings: What a reader of the record should know.
        confidence: `[n_test]` float, the estimated probability that each prediction is right; None when the protocol has none.
        rows: `[n_test]` int64, the row of the test split that each prediction is of, for a protocol that scores some of them
            several times or not at all; None for every test row once, in order.
        episode: `[n_test]` int64, the episode that each prediction belongs to, for a protocol that draws episodes: the score
            is a mean over episodes, and they, not images, are what its uncertainty is computed from. None for any other.
    """

    cell: Cell
    ranking: IntArray
    n_support: int
    n_test: int
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    confidence: npt.NDArray[np.floating[Any]] | None = None
    rows: IntArray | None = None
    episode: IntArray | None = None

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

    @property
    def trains(self) -> bool:
        """Whether it trains the backbone's weights, so that it is carried out by `train` and reads no features; no by default."""
        return False

    @property
    def preprocess(self) -> str:
        """The preprocessing that it asks for where the user asks for none: `auto`, a preset or a preprocessing string."""
        return "auto"

    @property
    def loading(self) -> Mapping[str, Any]:
        """How backbones are to be loaded for it, as arguments of `vitbench.features.load.load_backbone`; nothing by default."""
        return {}

    def bind(self, backbone: Backbone, task: Task) -> Protocol:
        """The protocol as it is for this backbone and task; itself by default.

        Args:
            backbone: The backbone that will be scored.
            task: The task that it will be scored on.

        Raises:
            UsageError: It cannot be used on them.
        """
        return self

    @property
    def reads(self) -> str:
        """The one representation that it scores where the user asks for none; empty, by default, for all that a backbone has."""
        return ""

    def fingerprints(self) -> dict[str, str]:
        """Digests of what decides a score and is another for every backbone or task; for the identity, and in no table."""
        return {}

    def choices(self, num_classes: int) -> int:
        """Among how many of a task's classes each prediction chooses, which decides what a guess scores; all by default."""
        return num_classes

    @classmethod
    @abstractmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from options as they come from a command line or YAML file.

        Raises:
            UsageError: An option is unknown (the nearest is offered) or its value cannot be meant.
        """

    @classmethod
    def options_of(cls, parameters: Mapping[str, Any], details: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
        """The options from which `from_options` makes the protocol of a record again, narrowed to its one cell.

        Args:
            parameters: The record's parameters. They hold more than options, such as constants of a solver, so by default a field
                of the protocol is what counts.
            details: The record's details.
            cell: Its shot and seed.
        """
        own = {"shots": [cell.shot], "seeds": [cell.seed], "shot": cell.shot, "seed": cell.seed}
        names = {item.name for item in fields(cls)} if is_dataclass(cls) else {*parameters}
        return {name: value for name, value in {**parameters, **own}.items() if name in names}

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
