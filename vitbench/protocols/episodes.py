"""Few-shot episodes: W-way S-shot problems, drawn many times from the classes of the test split.

An episode takes W classes of the test split, S labelled images of each to learn from and Q others of each to classify among
these W classes. Both kinds come from the test split, because that literature keeps the classes that it evaluates on for
evaluation alone (the novel classes of miniImageNet and its like); the train split is not used at all. Whether its classes are
new to a frozen backbone depends on what the backbone was trained on, which no benchmark can see.

The score is the mean over episodes of their accuracy. Its 95 % interval as that literature reports it, ±1.96·s/√E with s the
standard deviation over the E episodes (n − 1), is in the details as `ci95`. It is about the draw of episodes and nothing
else: it shrinks to 0 with more episodes of the same images, and says nothing about other classes or images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from vitbench.errors import DataError, UsageError, unknown
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.protocols.base import Cell, Outcome, Protocol, Tuning
from vitbench.protocols.closed_form import HELD, Queries, class_counts, given_penalty, with_float64
from vitbench.protocols.knn import (
    TEMPERATURE,
    Weights,
    rows_of_zeros,
    vote_fields,
    vote_label,
    vote_parameters,
    zero_rows,
)
from vitbench.protocols.metrics import RANKED
from vitbench.protocols.options import distinct, items, known_options, penalty, seed_items, whole_number
from vitbench.solvers import ridge
from vitbench.solvers.episodes import (
    SAMPLER_VERSION,
    Classifier,
    Episodes,
    draw,
    eligible,
    neighbour_scores,
    prototype_scores,
    rankings,
    ridge_scores,
)
from vitbench.solvers.standardisation import EPSILON

if TYPE_CHECKING:
    from vitbench.backbones.base import Backbone
    from vitbench.tasks.task import Task

CLASSIFIERS = ("ridge", "prototype", "knn")
DISTANCES = ("cosine", "euclidean")
SCOPE = "support and query images are both drawn from the test split; the train split is not used"

_MOST_EPISODES = 1_000_000


@dataclass(frozen=True)
class EpisodeProtocol(Protocol):
    """W-way S-shot episodes. Fields also take the texts of a command line or a YAML file, as those of `FewShot` do.

    Attributes:
        way: Classes of an episode, W.
        shots: Labelled images per class, each at least 1. For one seed all shots have the same queries and nested support
            sets, where the same classes have enough images for them.
        queries: Images of each class that are classified, Q.
        episodes: How many episodes, E.
        seeds: Seeds of the draws; each is E other episodes. One record per shot and seed.
        classifier: `ridge` (the classifier of `fewshot`, fitted to each episode), `prototype` (nearest mean of a class's
            support) or `knn`.
        l2: Of ridge: the penalty λ; `"paper"` is 1024. Leave-one-out is not offered: it cannot be had from one image per class.
        distance: Of prototype: `cosine` (support features divided by their length, then averaged) or `euclidean`
            (prototypical networks).
        k: Of knn: neighbours among the support images, at most W·S.
        weights: Of knn: as in protocol `knn`.
        temperature: Of knn: as in protocol `knn`.
    """

    name: ClassVar[str] = "episodes"
    summary: ClassVar[str] = (
        "W-way S-shot episodes drawn from the test split's classes: ridge, nearest prototype or kNN"
    )

    way: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 15
    episodes: int = 600
    seeds: tuple[int, ...] = (0,)
    classifier: Literal["ridge", "prototype", "knn"] = "ridge"
    l2: Literal["paper"] | float = "paper"
    distance: Literal["cosine", "euclidean"] = "cosine"
    k: int = 1
    weights: Weights = "temperature"
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        """Bring every field to its type.

        Raises:
            UsageError: A value that cannot be meant.
        """
        for option, given, choices in (
            ("classifier", self.classifier, CLASSIFIERS),
            ("distance", self.distance, DISTANCES),
        ):
            if given not in choices:
                raise unknown(f"{option} of protocol 'episodes':", str(given), choices)
        values = {
            "way": whole_number("way", self.way, least=2),
            "shots": distinct("shots", [whole_number("shots", item, least=1) for item in items("shots", self.shots)]),
            "queries": whole_number("queries", self.queries, least=1),
            "episodes": whole_number("episodes", self.episodes, least=1, most=_MOST_EPISODES),
            "seeds": distinct("seeds", [whole_number("seeds", item, least=0) for item in seed_items(self.seeds)]),
            "l2": self.l2 if self.l2 == "paper" else penalty("l2", self.l2, "'paper' or "),
            "k": whole_number("k", self.k, least=1),
            **vote_fields(self.name, self.weights, self.temperature),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        support = self.way * min(self.shots)
        if self.classifier == "knn" and self.k > support:
            raise UsageError(
                f"protocol option: k is {self.k}, but a {self.way}-way {min(self.shots)}-shot episode has {support} support "
                f"images"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from the fields' names and values.

        Raises:
            UsageError: An option is unknown, its value cannot be meant, or it belongs to another classifier than the one chosen.
        """
        known_options(cls.name, options, [field.name for field in fields(cls)])
        own = {"l2": "ridge", "distance": "prototype", "k": "knn", "weights": "knn", "temperature": "knn"}
        classifier = options.get("classifier", cls.classifier)
        for name in options:
            if classifier in CLASSIFIERS and own.get(name, classifier) != classifier:
                raise UsageError(
                    f"protocol 'episodes': {name} is an option of the classifier {own[name]}, and the classifier is "
                    f"{classifier}: add --set classifier={own[name]}, or leave it out"
                )
        return cls(**options)

    def parameters(self) -> dict[str, Any]:
        """The parameters that can change a score, without those of other classifiers; see `Protocol.parameters`."""
        drawn = {"way": self.way, "queries": self.queries, "episodes": self.episodes, "sampler": SAMPLER_VERSION}
        return drawn | {"classifier": self.classifier} | self._own_parameters()

    def _own_parameters(self) -> dict[str, Any]:
        if self.classifier == "ridge":
            return {"l2": given_penalty(self.l2), "epsilon": EPSILON, "solver": ridge.SOLVER_VERSION}
        if self.classifier == "prototype":
            return {"distance": self.distance}
        return {"k": self.k, **vote_parameters(self.weights, self.temperature)}

    def label(self) -> str:
        """What is drawn and what classifies: `5-way, 600 episodes, 15 queries a class, ridge, l2 = 1024`."""
        how = {
            "ridge": f"ridge, l2 = {given_penalty(self.l2):g}",
            "prototype": f"nearest prototype, {self.distance}",
            "knn": f"knn, k = {self.k}, {vote_label(self.weights, self.temperature)}",
        }
        return f"{self.way}-way, {self.episodes} episodes, {self.queries} queries a class, {how[self.classifier]}"

    def choices(self, num_classes: int) -> int:
        """W: a query is classified among the classes of its episode."""
        return self.way

    def cells(self) -> list[Cell]:
        """Every shot with every seed."""
        return [Cell(shot, seed) for shot in self.shots for seed in self.seeds]

    def bind(self, backbone: Backbone, task: Task) -> Protocol:
        """Itself, once it is known that the test split has the images, before any of them is embedded; see `Protocol.bind`.

        Raises:
            DataError: It has too few classes with enough images.
        """
        for shot in self.shots:
            self._classes(task.test.labels, task.num_classes, shot)
        return self

    def train_rows(self, labels: IntArray, num_classes: int, cells: Sequence[Cell]) -> IntArray:
        """None: episodes are drawn from the test split; see `Protocol.train_rows`."""
        return np.empty(0, np.int64)

    def evaluate(
        self,
        train: FeatureSet,
        test: FeatureSet,
        name: str,
        num_classes: int,
        cells: Sequence[Cell],
        tuning: Tuning | None = None,
    ) -> Iterator[Outcome]:
        """Draw the episodes of each cell from the test rows and classify their queries; see `Protocol.evaluate`.

        Scores are float64 on the device that holds the features. Fewer classes are ranked than an episode has, so that 5-way
        episodes have no top-5 accuracy: it would be 1.

        Raises:
            DataError: Too few classes have enough images, a label is not one of the classes, or features are NaN or infinite.
        """
        labels = test.labels[test.rows]
        images = Queries.of(test, name, "test")
        counts = class_counts(labels, num_classes, "test")
        zeros = []
        if self.classifier != "ridge":
            count = 0
            for _, x in images.features.chunks(name):
                count += rows_of_zeros(x)
                del x  # or it would be held while the next is read
            zeros = zero_rows(count, len(labels), "test images")
        for cell in cells:
            able = self._classes(labels, num_classes, cell.shot)
            there = int(np.count_nonzero(counts))
            warnings = [SCOPE, *zeros]
            if there > len(able):
                warnings.append(
                    f"{there - len(able)} of {there} classes with images have fewer than {self.queries + cell.shot} and are in "
                    f"no episode"
                )
            drawn = draw(
                labels,
                num_classes,
                way=self.way,
                shot=cell.shot,
                queries=self.queries,
                episodes=self.episodes,
                seed=cell.seed,
            )
            parts = _with_features(images, drawn)
            ranking = np.concatenate(
                [rankings(x, part, self._classifier(), min(RANKED, self.way - 1)) for x, part in parts]
            )
            asked = drawn.queries.reshape(-1)
            each = (ranking[:, 0] == labels[asked]).reshape(self.episodes, -1).mean(axis=1)
            yield Outcome(
                cell=cell,
                ranking=ranking,
                n_support=self.way * cell.shot,
                n_test=len(asked),
                details={**self._shown(), **spread(each), "n_classes": len(able)},
                warnings=tuple(warnings),
                rows=test.rows[asked],
                episode=np.repeat(np.arange(self.episodes), self.way * self.queries),
            )

    def _shown(self) -> dict[str, Any]:
        """The parameters that are columns of `vitbench.load_results` too."""
        return {
            name: value
            for name, value in self.parameters().items()
            if name in ("way", "queries", "episodes", "classifier", "l2", "k")
        }

    def _classifier(self) -> Classifier:
        if self.classifier == "ridge":
            return partial(ridge_scores, l2=given_penalty(self.l2))
        if self.classifier == "prototype":
            return partial(prototype_scores, distance=self.distance)
        return partial(
            neighbour_scores, k=self.k, temperature=self.temperature if self.weights == "temperature" else None
        )

    def _classes(self, labels: IntArray, num_classes: int, shot: int) -> IntArray:
        """The classes that episodes are drawn from.

        Raises:
            DataError: They are fewer than an episode needs, or a label is not one of the classes.
        """
        counts = class_counts(labels, num_classes, "test")
        found = eligible(labels, num_classes, shot + self.queries)
        if len(found) < self.way:
            largest = int(np.sort(counts)[-min(self.way, num_classes)])
            hint = (
                f"the test images have {num_classes} classes in all: give a smaller --way"
                if num_classes < self.way
                else f"{self.way} classes have {largest}: give --shots and --queries that add up to no more, or a smaller --way"
            )
            raise DataError(
                f"{self.way}-way {shot}-shot episodes with {self.queries} queries take {shot + self.queries} test images of each "
                f"of {self.way} classes, and {len(found)} classes have as many; {hint}"
            )
        return found


def _with_features(test: Queries, drawn: Episodes) -> Iterator[tuple[Tensor, Episodes]]:
    """The episodes with the features that their rows are rows of: all of them, or some at a time where the features are many."""
    if test.held:
        yield test.features.representations[test.name], drawn
        return
    images = drawn.support[0].size + drawn.queries[0].size
    step = max(1, HELD // (images * test.features.dimension(test.name)))
    for start in range(0, len(drawn.classes), step):
        classes, support, queries = (x[start : start + step] for x in (drawn.classes, drawn.support, drawn.queries))
        rows = np.union1d(support, queries)
        part = Episodes(classes, np.searchsorted(rows, support), np.searchsorted(rows, queries))
        yield with_float64(test.features.part(test.name, test.features.rows[rows])), part


def spread(scores: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | None]:
    """How much the accuracy differs from episode to episode, for a record.

    Args:
        scores: `[E]`, the accuracy of each episode.

    Returns:
        `episode_std`, the standard deviation (n − 1), and `ci95`, half the width of the interval 1.96·s/√E, both fractions;
        None for one episode.
    """
    if len(scores) < 2:
        return {"episode_std": None, "ci95": None}
    deviation = float(np.std(scores, ddof=1))
    return {"episode_std": deviation, "ci95": 1.96 * deviation / math.sqrt(len(scores))}
