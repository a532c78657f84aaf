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

from vitbench.errors import DataError, UsageError, unknown
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.protocols.base import Cell, Outcome, Protocol, accuracy
from vitbench.protocols.options import items, penalty, seed_items, whole_number
from vitbench.solvers import ridge
from vitbench.solvers.leave_one_out import Criterion, choose
from vitbench.solvers.sampling import class_permutations, support_set

if TYPE_CHECKING:
    import pandas as pd

GRID = tuple(2.0**power for power in range(-9, 21))
"""The penalties that leave-one-out chooses from: 30 powers of two, big_vision's 1024 among them."""

CRITERIA: tuple[Criterion, ...] = ("squared_error", "accuracy")

_LARGEST_FEATURE = 1e150
_MOST_CLASSES = 1_000_000  # labels beyond it are identifiers of some other kind, and would fill the memory with classes


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
        if self.criterion not in CRITERIA:
            raise unknown("criterion of protocol 'fewshot':", str(self.criterion), CRITERIA)
        values = {
            "shots": tuple(whole_number("shots", item, least=1) for item in items("shots", self.shots)),
            "seeds": tuple(whole_number("seeds", item, least=0) for item in seed_items(self.seeds)),
            "l2": self.l2 if self.l2 in ("paper", "loo") else penalty("l2", self.l2, "'paper', 'loo' or "),
            "grid": tuple(sorted(penalty("grid", item) for item in items("grid", self.grid))),
        }
        for name, value in values.items():
            if isinstance(value, tuple) and len(set(value)) < len(value):
                raise UsageError(f"protocol 'fewshot': {name} has a value twice: {', '.join(map(str, value))}")
            object.__setattr__(self, name, value)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from the fields' names and values; see `Protocol.from_options`."""
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                raise unknown("option of protocol 'fewshot':", str(name), names)
        return cls(**options)

    def parameters(self) -> dict[str, Any]:
        """The parameters that can change a score; `"paper"` and 1024 are the same score, and so the same parameters."""
        solver = {"bias": ridge.BIAS, "epsilon": ridge.EPSILON, "solver": ridge.SOLVER_VERSION}
        if self.l2 == "loo":
            return {"l2": "loo", "criterion": self.criterion, "grid": list(self.grid), **solver}
        return {"l2": ridge.PAPER_L2 if self.l2 == "paper" else self.l2, **solver}

    def label(self) -> str:
        """What is done about the penalty: `l2 = 1024`, `l2 by leave-one-out error`."""
        if self.l2 != "loo":
            return f"l2 = {self.parameters()['l2']:g}"
        by = "error" if self.criterion == "squared_error" else self.criterion
        values = "" if self.grid == GRID else f" from {len(self.grid)} values, {self.grid[0]:g} to {self.grid[-1]:g}"
        return f"l2 by leave-one-out {by}{values}"

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
        counts = _class_counts(labels, num_classes, "train")
        return list(dict.fromkeys(line for shot in self.shots for line in _shortages(counts, shot)))

    def train_rows(self, labels: IntArray, num_classes: int, cells: Sequence[Cell]) -> IntArray:
        """The union of the support sets of the cells, increasing; see `Protocol.train_rows`."""
        largest: dict[int, int] = {}
        for cell in cells:
            largest[cell.seed] = max(cell.shot, largest.get(cell.seed, 0))
        rows = [support_set(class_permutations(labels, num_classes, seed), shot) for seed, shot in largest.items()]
        return np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)

    def evaluate(
        self, train: FeatureSet, test: FeatureSet, name: str, num_classes: int, cells: Sequence[Cell]
    ) -> Iterator[Outcome]:
        """Fit and score every cell; see `Protocol.evaluate`.

        The solve is float64 on the device that holds the features. No work is shared between cells but the checks and the draws:
        each support set is standardised with its own statistics, so that one's Gram matrix is no part of another's.

        Raises:
            DataError: No labelled image, a label that is not one of the classes, or features that are NaN or infinite.
        """
        counts = _class_counts(train.labels, num_classes, "train")
        test_labels = test.labels[test.rows]
        _class_counts(test_labels, num_classes, "test")
        queries = _finite(test.representations[name], "test")
        permutations: dict[int, list[IntArray]] = {}
        for cell in cells:
            if cell.seed not in permutations:
                permutations[cell.seed] = class_permutations(train.labels, num_classes, cell.seed)
            rows = support_set(permutations[cell.seed], cell.shot)
            support = _finite(train.select(name, rows), "train")
            labels = torch.from_numpy(train.labels[rows]).to(support.device)
            model, details, warnings = self._fit(support, labels, num_classes)
            predictions: IntArray = model.predict(queries).cpu().numpy()
            if bool(torch.isinf(model.standardisation.scale).all()):
                warnings = [*warnings, "every feature is constant over the support set: the score is a guess"]
            per_class = np.minimum(counts, cell.shot)
            sizes = {"n_per_class_min": int(per_class.min()), "n_per_class_max": int(per_class.max())}
            yield Outcome(
                cell=cell,
                scores={"accuracy": accuracy(predictions, test_labels)},
                predictions=predictions,
                n_support=len(rows),
                n_test=len(test_labels),
                details={**details, **sizes},
                warnings=(*_shortages(counts, cell.shot), *warnings),
            )

    def _fit(
        self, support: Tensor, labels: Tensor, num_classes: int
    ) -> tuple[ridge.RidgeClassifier, dict[str, Any], list[str]]:
        """A classifier, what to record about its penalty, and what to warn of."""
        if self.l2 != "loo":
            l2 = ridge.PAPER_L2 if self.l2 == "paper" else self.l2
            return ridge.fit(support, labels, num_classes, l2), {"l2": l2}, []
        spectrum = ridge.decompose(ridge.prepare(support, labels, num_classes))
        choice = choose(spectrum, self.grid, self.criterion)
        l2 = choice.l2
        on_edge = len(self.grid) > 1 and l2 in (self.grid[0], self.grid[-1])
        warnings = []
        if on_edge:
            end = "smallest" if l2 == self.grid[0] else "largest"
            warnings.append(f"leave-one-out chose the {end} l2 of the grid, {l2:g}: a value beyond it may be better")
        if int(spectrum.problem.counts.max()) == 1:
            warnings.append(
                "leave-one-out chose l2 from one image per class: the class of an image left out is never seen, "
                "so the choice says little; l2=paper is the safer one"
            )
        details = {
            "l2": l2,
            "loo_error": choice.squared_error,
            "loo_accuracy": choice.accuracy,
            "l2_on_edge": on_edge,
        }
        return ridge.RidgeClassifier(spectrum.problem.standardisation, ridge.weights(spectrum, l2)), details, warnings


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
    return pd.DataFrame([_table_row(outcome) for outcome in outcomes])


def _table_row(outcome: Outcome) -> dict[str, Any]:
    details = dict(outcome.details)
    return {
        "shot": outcome.cell.shot,
        "seed": outcome.cell.seed,
        "l2": details.pop("l2"),
        **outcome.scores,
        "n_support": outcome.n_support,
        "n_test": outcome.n_test,
        "n_per_class_min": details.pop("n_per_class_min"),
        "n_per_class_max": details.pop("n_per_class_max"),
        **details,
        "warnings": "; ".join(outcome.warnings),
    }


def _class_counts(labels: IntArray, num_classes: int, split: str) -> IntArray:
    """Number of images of every class, `[num_classes]`."""
    if not len(labels):
        raise DataError(f"the {split} split has no image of any class")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"the {split} split has label {wrong}, which is none of the {num_classes} classes 0 to {num_classes - 1}"
        )
    return np.bincount(labels, minlength=num_classes)


def _shortages(counts: IntArray, shot: int) -> list[str]:
    lines = []
    missing = np.flatnonzero(counts == 0)
    if len(missing):
        lines.append(
            f"{len(missing)} of {len(counts)} classes have no train image (the first is class {missing[0]}): "
            "their test images cannot be recognised"
        )
    short = counts[(counts > 0) & (counts < shot)]
    if len(short):
        lines.append(
            f"{shot}-shot: {len(short)} of {len(counts)} classes have fewer than {shot} train images "
            f"(the fewest: {short.min()}); each of them gives all it has"
        )
    return lines


def _finite(features: Tensor, split: str) -> Tensor:
    """The features, where float64 exists, once they are known to be finite."""
    # NaN and infinity survive a sum, which is many times faster than a look at every value; a sum can also overflow by itself.
    suspects = features[~torch.isfinite(features.sum(dim=1))]
    bad = int((~torch.isfinite(suspects).all(dim=1)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(features)} {split} rows have NaN or infinite features; a half-precision overflow looks like this"
        )
    if features.dtype == torch.float64 and float(features.abs().max()) > _LARGEST_FEATURE:
        raise DataError(
            f"the {split} features go up to {float(features.abs().max()):.2g}, whose squares float64 cannot hold"
        )
    return features.cpu() if features.device.type == "mps" else features


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
