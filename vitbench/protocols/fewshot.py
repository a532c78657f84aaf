"""Few-shot classification by closed-form ridge regression: the metric of the ViT paper, as big_vision computes it.

Frozen features, K images per class, targets ±1, one penalty. Everything that decides a number is in `vitbench.solvers`: the
sampler (which images), the standardisation, the bias feature, the solve. The default penalty is big_vision's fixed 1024;
`l2="loo"` chooses one for each support set by exact leave-one-out, which sees no test label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitbench.errors import UsageError
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.protocols.base import Cell, Outcome, Protocol, Tuning
from vitbench.protocols.closed_form import (
    GRID,
    Queries,
    class_counts,
    finite,
    fit,
    missing_classes,
    outcome,
    penalty_fields,
    penalty_label,
    penalty_parameters,
)
from vitbench.protocols.metrics import accuracy
from vitbench.protocols.options import distinct, items, known_options, seed_items, switch, whole_number
from vitbench.solvers.leave_one_out import Criterion
from vitbench.solvers.moments import Moments
from vitbench.solvers.sampling import class_permutations, support_set

if TYPE_CHECKING:
    import pandas as pd

_MOST_CLASSES = 1_000_000  # labels beyond it are identifiers of some other kind, and would fill the memory with classes

_SHARED = (
    1 << 26
)  # elements of the scatter matrices that are kept for larger support sets: 512 MiB, 64 seeds of 1,024 features


@dataclass(frozen=True)
class FewShot(Protocol):
    """Ridge few-shot with nested, seeded support sets.

    Every field also takes what a command line or a YAML file gives: `"1,5,10"`, `[1, 5]`, `5`, `"0.1"`. A plain whole number of
    seeds, 3 or `"3"`, means the seeds 0, 1, 2; a list, `[3]` or `"3,"`, means those seeds.

    Attributes:
        shots: Images per class, each at least 1.
        seeds: Seeds of the draws, each at least 0.
        l2: The penalty λ on weights of standardised features, not divided by the number of images; `"paper"` is 1024, `"loo"` has
            leave-one-out choose from `grid` in every cell.
        criterion: What leave-one-out compares: `squared_error` of the targets ±1, or `accuracy` (of equals, the largest λ).
        grid: The penalties to choose from, kept in increasing order.
    """

    name: ClassVar[str] = "fewshot"
    summary: ClassVar[str] = "ridge regression on a few images per class, in closed form (big_vision)"

    shots: tuple[int, ...] = (1, 5, 10, 25)
    seeds: tuple[int, ...] = (0, 1, 2)
    l2: Literal["paper", "loo"] | float = "paper"
    criterion: Criterion = "squared_error"
    grid: tuple[float, ...] = GRID

    def __post_init__(self) -> None:
        """Bring every field to its type.

        Raises:
            UsageError: A value that cannot be meant.
        """
        values = {
            "shots": distinct("shots", [whole_number("shots", item, least=1) for item in items("shots", self.shots)]),
            "seeds": distinct("seeds", [whole_number("seeds", item, least=0) for item in seed_items(self.seeds)]),
            **penalty_fields(self.name, ("paper", "loo"), self.l2, self.criterion, self.grid),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from the fields' names and values; see `Protocol.from_options`."""
        values = dict(options)
        if switch("tune", values.pop("tune", False)):
            raise UsageError(
                "protocol 'fewshot' reads no tuning splits: --l2 loo chooses l2 on each support set, and "
                "--protocol ridge --tune chooses it on the task's tuning splits"
            )
        known_options(cls.name, values, [field.name for field in fields(cls)])
        return cls(**values)

    def parameters(self) -> dict[str, Any]:
        """The parameters that can change a score; see `Protocol.parameters`."""
        return penalty_parameters(self.l2, self.criterion, self.grid)

    def label(self) -> str:
        """What is done about the penalty: `l2 = 1024`, `l2 by leave-one-out error`."""
        return penalty_label(self.l2, self.criterion, self.grid)

    def cells(self) -> list[Cell]:
        """Every shot with every seed."""
        return [Cell(shot, seed) for shot in self.shots for seed in self.seeds]

    def check(self, labels: IntArray, num_classes: int) -> list[str]:
        """What a reader of the scores should know about a train split, one line each, before anything is computed.

        Args:
            labels: `[N]` int64, the labels of the whole train split.
            num_classes: Number of classes that the task declares.

        Raises:
            DataError: No class has an image, or a label is not one of the classes.
        """
        counts = class_counts(labels, num_classes, "train")
        return list(dict.fromkeys(line for shot in self.shots for line in _shortages(counts, shot)))

    def train_rows(self, labels: IntArray, num_classes: int, cells: Sequence[Cell]) -> IntArray:
        """The union of the support sets of the cells, increasing; see `Protocol.train_rows`."""
        largest: dict[int, int] = {}
        for cell in cells:
            largest[cell.seed] = max(cell.shot, largest.get(cell.seed, 0))
        rows = [support_set(class_permutations(labels, num_classes, seed), shot) for seed, shot in largest.items()]
        return np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)

    def evaluate(
        self,
        train: FeatureSet,
        test: FeatureSet,
        name: str,
        num_classes: int,
        cells: Sequence[Cell],
        tuning: Tuning | None = None,
    ) -> Iterator[Outcome]:
        """Fit every cell and rank its test rows; see `Protocol.evaluate`.

        The solve is float64 on the device that holds the features. The support sets of one seed are nested, and share what can
        be shared exactly: the scatter matrix of a larger one is that of a smaller one and of the rows that are new, joined
        (`vitbench.solvers.moments`), and each is then standardised with its own statistics, which scales rows and columns. That
        is so where the D × D matrix is the one that is solved, N > D+1. In the dual, ZZ' sums over features that each set
        divides by scales of its own, and is formed anew. The eigenvectors, and what is scored with them, are each set's own.

        Raises:
            DataError: No labelled image, a label that is not one of the classes, or features that are NaN or infinite.
        """
        counts = class_counts(train.labels, num_classes, "train")
        class_counts(test.labels[test.rows], num_classes, "test")
        queries = Queries.of(test, name, "test")
        permutations: dict[int, list[IntArray]] = {}
        shared: dict[int, _Nested] = {}
        for number, cell in enumerate(cells):
            if cell.seed not in permutations:
                permutations[cell.seed] = class_permutations(train.labels, num_classes, cell.seed)
            rows = support_set(permutations[cell.seed], cell.shot)
            support = finite(train.select(name, rows), "train")
            grown = _grown(
                shared.pop(cell.seed, None),
                support,
                train.labels[rows],
                num_classes,
                cell.shot,
                permutations[cell.seed],
            )
            larger = any(later.seed == cell.seed and later.shot >= cell.shot for later in cells[number + 1 :])
            if grown and larger and (len(shared) + 1) * support.shape[1] ** 2 <= _SHARED:
                shared[cell.seed] = grown
            moments = grown.moments if grown else None
            fitted = fit(support, train.labels[rows], num_classes, self.l2, self.criterion, self.grid, moments)
            per_class = np.minimum(counts, cell.shot)
            yield outcome(cell, fitted, queries, per_class, _shortages(counts, cell.shot), "support set")


@dataclass(frozen=True)
class _Nested:
    """The moments of the support set of one seed with so many images per class."""

    shot: int
    moments: Moments


def _grown(
    smaller: _Nested | None,
    support: Tensor,
    labels: IntArray,
    num_classes: int,
    shot: int,
    permutations: Sequence[IntArray],
) -> _Nested | None:
    """The moments of a support set, from those of a smaller one of the same seed if there is one; None where they are no use.

    Args:
        smaller: The smaller one; its moments are changed.
        support: `[N, D]`, class by class.
        labels: `[N]`.
        num_classes: K.
        shot: Images per class.
        permutations: The order in which the rows of each class are drawn.
    """
    if len(support) <= support.shape[1] + 1:
        return None
    before = (
        smaller
        if smaller and smaller.shot <= shot
        else _Nested(0, Moments(support.shape[1], num_classes, support.device))
    )
    targets = torch.from_numpy(labels).to(support.device)
    if not before.shot:
        return _Nested(shot, before.moments.add(support, targets))
    # A set is class by class, and of each class the first rows are those of the smaller set.
    place = np.concatenate([np.arange(min(shot, len(rows))) for rows in permutations])
    new = torch.from_numpy(place >= before.shot).to(support.device)
    return _Nested(shot, before.moments.add(support[new], targets[new]))


def fewshot(
    train_features: Tensor | npt.ArrayLike,
    train_labels: Tensor | npt.ArrayLike,
    test_features: Tensor | npt.ArrayLike,
    test_labels: Tensor | npt.ArrayLike,
    *,
    num_classes: int | None = None,
    shots: Sequence[int] | int = (1, 5, 10, 25),
    seeds: Sequence[int] | int = 3,
    l2: Literal["paper", "loo"] | float = "paper",
    criterion: Criterion = "squared_error",
    grid: Sequence[float] = GRID,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Few-shot accuracy of features that were computed elsewhere.

    Args:
        train_features: `[N, D]` numbers, a torch tensor, a numpy array or nested lists; any float dtype.
        train_labels: `[N]` whole numbers from 0.
        test_features: `[M, D]`.
        test_labels: `[M]`.
        num_classes: Number of classes; by default the largest label plus 1.
        shots: Images per class.
        seeds: A number of seeds, 3 for the seeds 0, 1, 2, or the seeds themselves.
        l2: The penalty: `"paper"` (1024), `"loo"` (chosen by exact leave-one-out on the support set), or a number.
        criterion: What `"loo"` compares: `"squared_error"` or `"accuracy"`.
        grid: What `"loo"` chooses from.
        device: Where to compute; by default where `train_features` is.

    Returns:
        One row per shot and seed: `shot`, `seed`, `l2`, `accuracy` (a fraction), `n_support`, `n_test`, `n_per_class_min`,
        `n_per_class_max`; for `"loo"` also `loo_error`, `loo_accuracy`, `l2_on_edge`; and `warnings`, one string.

    Raises:
        UsageError: Arrays that do not fit each other, or an option that cannot be meant.
        DataError: NaN or infinite features, or labels outside the classes.
    """
    import pandas as pd

    protocol = FewShot.from_options({"shots": shots, "seeds": seeds, "l2": l2, "criterion": criterion, "grid": grid})
    train_x = _as_features(train_features, "train_features", device)
    test_x = _as_features(test_features, "test_features", train_x.device)
    train_y, test_y = _as_labels(train_labels, "train_labels"), _as_labels(test_labels, "test_labels")
    for x, y, split in ((train_x, train_y, "train"), (test_x, test_y, "test")):
        if len(x) != len(y):
            raise UsageError(f"{split}_features has {len(x)} rows, but {split}_labels has {len(y)}")
    if train_x.shape[1] != test_x.shape[1]:
        raise UsageError(
            f"train_features has {train_x.shape[1]} columns, but test_features has {test_x.shape[1]}: "
            "they come from different representations"
        )
    if num_classes is None:
        num_classes = 1 + max(0, int(train_y.max()), int(test_y.max()))
        if num_classes > _MOST_CLASSES:
            raise UsageError(f"labels go up to {num_classes - 1}: number the classes 0, 1, 2, …, or give num_classes")
    num_classes = whole_number("num_classes", num_classes, least=1)
    if num_classes < 2 and min(train_y.min(), test_y.min()) >= 0:
        raise UsageError("every label is 0: with one class there is nothing to tell apart (or give num_classes)")
    train, test = (
        FeatureSet(labels=y, rows=np.arange(len(y)), representations={"features": x})
        for x, y in ((train_x, train_y), (test_x, test_y))
    )
    outcomes = protocol.evaluate(train, test, "features", num_classes, protocol.cells())
    return pd.DataFrame([_table_row(found, test_y) for found in outcomes])


def _table_row(outcome: Outcome, labels: IntArray) -> dict[str, Any]:
    details = dict(outcome.details)
    return {
        "shot": outcome.cell.shot,
        "seed": outcome.cell.seed,
        "l2": details.pop("l2"),
        "accuracy": accuracy(outcome.predictions, labels),
        "n_support": outcome.n_support,
        "n_test": outcome.n_test,
        "n_per_class_min": details.pop("n_per_class_min"),
        "n_per_class_max": details.pop("n_per_class_max"),
        **details,
        "warnings": "; ".join(outcome.warnings),
    }


def _shortages(counts: IntArray, shot: int) -> list[str]:
    lines = missing_classes(counts)
    short = counts[(counts > 0) & (counts < shot)]
    if len(short):
        lines.append(
            f"{shot}-shot: {len(short)} of {len(counts)} classes have fewer than {shot} train images "
            f"(the fewest: {short.min()}); each of them gives all it has"
        )
    return lines


def _as_features(value: Any, name: str, device: str | torch.device | None) -> Tensor:
    """A float tensor `[N, D]` on `device`, with at least one row and one column."""
    try:
        if not isinstance(value, Tensor):
            array = np.asarray(value)
            if array.dtype not in (np.float16, np.float32, np.float64):
                array = array.astype(np.float64, casting="same_kind" if array.dtype.kind in "fiu" else "no")
            value = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        value = value.detach()
        tensor: Tensor = value if value.is_floating_point() else value.to(torch.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a [rows, columns] array of real numbers") from None
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise UsageError(f"{name} must be a [rows, columns] array with at least one of each, got {list(tensor.shape)}")
    try:
        return tensor if device is None else tensor.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from None


def _as_labels(value: Any, name: str) -> IntArray:
    """An int64 array `[N]`."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except ValueError:
        raise UsageError(f"{name} must be a flat array of whole numbers") from None
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise UsageError(
            f"{name} must be a flat array of at least one whole number, got {array.dtype} {list(array.shape)}"
        )
    return array.astype(np.int64)
