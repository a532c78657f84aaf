"""Ridge regression on every image of the train split, in closed form: few-shot's classifier where nothing is drawn.

The standardisation, the bias feature, the targets ±1 and the float64 solve are those of `vitbench.protocols.fewshot`. It is the
frozen-feature score of tasks with a train split of their own, such as VTAB-1k's 800 + 200 images; `l2="validation"` (`--tune`)
chooses the penalty on the task's tuning splits, `l2="gcv"` by generalised cross-validation.

Memory does not grow with the number of images: train features are read a part at a time (`vitbench.protocols.streamed`), and
test features too where they are many (`vitbench.protocols.closed_form.Queries`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from vitbench.errors import DataError, UsageError
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.protocols.base import Cell, Outcome, Protocol, Tuning
from vitbench.protocols.closed_form import (
    GRID,
    Fitted,
    Queries,
    Rule,
    class_counts,
    edge,
    missing_classes,
    outcome,
    penalty_fields,
    penalty_label,
    penalty_parameters,
)
from vitbench.protocols.metrics import accuracy
from vitbench.protocols.options import known_options, switch
from vitbench.protocols.streamed import fit_streamed, problem_of
from vitbench.solvers import ridge
from vitbench.solvers.leave_one_out import Criterion


@dataclass(frozen=True)
class Ridge(Protocol):
    """Ridge regression on the whole train split. Fields also take the texts of a command line or a YAML file.

    Attributes:
        l2: The penalty λ on weights of standardised features, not divided by the number of images; `"paper"` is 1024, `"loo"` has
            leave-one-out on the train split choose from `grid`, `"gcv"` generalised cross-validation (of equals, the smallest),
            `"validation"` has the task's tuning splits choose: fitted to the one, the λ of highest top-1 accuracy on the other
            is taken (of equals, the largest), as it is, for the whole train split.
        criterion: What leave-one-out compares: `squared_error` of the targets ±1, or `accuracy` (of equals, the largest λ).
        grid: The penalties to choose from, kept in increasing order.
    """

    name: ClassVar[str] = "ridge"
    summary: ClassVar[str] = (
        "ridge regression on every train image, in closed form; --tune chooses l2 on validation images"
    )

    l2: Rule = "paper"
    criterion: Criterion = "squared_error"
    grid: tuple[float, ...] = GRID

    def __post_init__(self) -> None:
        """Bring every field to its type.

        Raises:
            UsageError: A value that cannot be meant.
        """
        rules = ("paper", "loo", "gcv", "validation")
        for name, value in penalty_fields(self.name, rules, self.l2, self.criterion, self.grid).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from the fields' names and values, and `tune`, which means `l2="validation"`.

        Raises:
            UsageError: An unknown option, a value that cannot be meant, or `tune` beside another `l2`.
        """
        values = dict(options)
        names = [field.name for field in fields(cls)]
        known_options(cls.name, values, [*names, "tune"], hint="it learns from every train image")
        if switch("tune", values.pop("tune", False)):
            if str(values.get("l2", "validation")) != "validation":
                raise UsageError(
                    f"protocol 'ridge': --tune and l2 = {values['l2']} both say how l2 is found: give one of them"
                )
            values["l2"] = "validation"
        return cls(**values)

    @property
    def tunes(self) -> bool:
        """Whether l2 is chosen on the task's tuning splits."""
        return self.l2 == "validation"

    def parameters(self) -> dict[str, Any]:
        """The parameters that can change a score; see `Protocol.parameters`."""
        return penalty_parameters(self.l2, self.criterion, self.grid)

    def label(self) -> str:
        """What is done about the penalty: `l2 = 1024`, `l2 chosen on validation`."""
        return penalty_label(self.l2, self.criterion, self.grid)

    def cells(self) -> list[Cell]:
        """The one cell: nothing is drawn."""
        return [Cell(shot=0, seed=0)]

    def check(self, labels: IntArray, num_classes: int) -> list[str]:
        """Says how many classes have no train image, as in a small draw; see `Protocol.check`.

        Raises:
            DataError: No class has an image, or a label is not one of the classes.
        """
        return missing_classes(class_counts(labels, num_classes, "train"))

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
        """Fit and rank; see `Protocol.evaluate`. The solve is float64 on the device that holds the features.

        Raises:
            UsageError: The penalty is to be chosen on tuning splits, and there are none.
            DataError: No image, a label that is not one of the classes, features that are NaN or infinite, or a tuning split of
                one class.
        """
        counts = class_counts(train.labels, num_classes, "train")
        class_counts(test.labels[test.rows], num_classes, "test")
        for cell in cells:
            if len(train.rows) < len(train.labels):
                raise UsageError(
                    f"{len(train.labels) - len(train.rows)} of the {len(train.labels)} train rows have no features"
                )
            queries = Queries.of(test, name, "test")
            if self.l2 == "validation":
                l2, details, warnings = self._choose(tuning, name, num_classes)
                model = self._fit(train, name, num_classes, l2).model
                fitted = Fitted(model, details, warnings)
            else:
                fitted = self._fit(train, name, num_classes, self.l2)
            yield outcome(cell, fitted, queries, counts, missing_classes(counts), "train split")

    def _fit(self, train: FeatureSet, name: str, num_classes: int, l2: Rule) -> Fitted:
        return fit_streamed(train, name, num_classes, l2, self.criterion, self.grid, "train")

    def _choose(self, tuning: Tuning | None, name: str, num_classes: int) -> tuple[float, dict[str, Any], list[str]]:
        """The penalty that the tuning splits choose, what to record of it, and what to warn of."""
        if tuning is None:
            raise UsageError(
                "protocol 'ridge': l2 is to be chosen on tuning splits, and the task names none (evaluation.tune_train and "
                "tune_validation in its task file); --l2 loo chooses without them"
            )
        _check_tuning_part(tuning.train, "tune_train", num_classes)
        answers = _check_tuning_part(tuning.validation, "tune_validation", num_classes)
        spectrum = ridge.decompose(problem_of(tuning.train, name, num_classes, "tune_train"))
        queries = Queries.of(tuning.validation, name, "tune_validation")
        found = {}
        for l2 in self.grid:
            model = ridge.RidgeClassifier(spectrum.problem.standardisation, ridge.weights(spectrum, l2))
            found[l2] = accuracy(queries.ranked(model, 1)[0][:, 0], answers)
        best = max(self.grid, key=lambda l2: (found[l2], l2))
        on_edge, warnings = edge(best, self.grid, "the validation split")
        details = {"l2": best, "validation_accuracy": found[best], "n_validation": len(answers), **on_edge}
        return best, details, warnings


def _check_tuning_part(part: FeatureSet, split: str, num_classes: int) -> IntArray:
    """Labels `[N]` of a tuning split, checked."""
    labels = part.labels[part.rows]
    present = np.flatnonzero(class_counts(labels, num_classes, split))
    if len(present) == 1:
        raise DataError(
            f"the {split} split has images of class {present[0]} alone, so it cannot choose l2; --l2 loo chooses without it"
        )
    return labels
