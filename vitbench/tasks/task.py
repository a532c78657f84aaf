"""A loaded task: verified labels, splits with an identity, images on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL.Image import Image

from vitbench.errors import DataError, unknown
from vitbench.tasks.sources import SOURCES
from vitbench.tasks.sources.rows import IntArray, Rows, text_digest
from vitbench.tasks.spec import TaskSpec


@dataclass(frozen=True)
class Split:
    """One split of a task.

    Attributes:
        task: Full name of the task.
        name: `train`, `validation` or `test`.
        rows: Where its labels and images come from.
        fingerprint: sha256 of what decides the split: the source's content, the rows taken, their order.
    """

    task: str
    name: str
    rows: Rows
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows.labels)

    @property
    def labels(self) -> IntArray:
        """`[N]` int64."""
        return self.rows.labels

    def image(self, row: int) -> Image:
        """The image of one row, RGB. May be called from several threads.

        Raises:
            DataError: The image is broken; its row and file are named.
        """
        return self.rows.image(row)


class Task:
    """A named data set with verified splits.

    Loading reads the labels of train and test and compares their number and range with the task file.

    Attributes:
        name: Full name, such as `paper/cifar10`.
        spec: The task file.
    """

    def __init__(self, name: str, spec: TaskSpec, base: Path) -> None:
        """Load the labels and verify them.

        Args:
            name: Full name.
            spec: The task file.
            base: The folder that local paths in the task file are relative to.

        Raises:
            DataError: The data is missing or is not what the task file says.
        """
        self.name = name
        self.spec = spec
        self._base = base
        self._splits: dict[str, Split] = {}
        for split in ("train", "test"):
            self.split(split)
        self._verify_labels()

    def split(self, name: str) -> Split:
        """One split, read when it is first asked for.

        Raises:
            UsageError: The task has no such split.
            DataError: Its data is missing, or has another size than the task file says.
        """
        if name not in self.spec.splits:
            raise unknown(f"split of task '{self.name}':", name, self.spec.splits)
        if name not in self._splits:
            part = self.spec.splits[name]
            rows: Rows = SOURCES.load(self.spec.source.kind)(self.spec, name, self._base)
            if not len(rows.labels):
                raise DataError(f"task '{self.name}': split '{name}' has no images")
            if part.size is not None and len(rows.labels) != part.size:
                raise DataError(
                    f"task '{self.name}': split '{name}' has {len(rows.labels):,} images where the task file expects "
                    f"{part.size:,}: the data is not the data set that the task names"
                )
            self._splits[name] = Split(self.name, name, rows, text_digest([rows.fingerprint, self._split_rule(name)]))
        return self._splits[name]

    def _split_rule(self, name: str) -> str:
        """The part of the task file that says which rows of the source make the split, as canonical text."""
        part = self.spec.splits[name]  # type: ignore[index]
        return f"rows={part.rows} fraction={part.fraction} seed={self.spec.split_seed if part.fraction else None}"

    @cached_property
    def num_classes(self) -> int:
        """K: as the task file says, else as the source's class names say, else one more than the largest train label."""
        names = self.class_names
        return self.spec.num_classes or len(names) or int(self.split("train").labels.max()) + 1

    @property
    def class_names(self) -> Sequence[str]:
        """In order of label; empty when nobody knows them."""
        return self.spec.class_names or self.split("train").rows.class_names

    @property
    def chance(self) -> float:
        """The expected accuracy of a guess that is uniform over the classes."""
        return 1 / self.num_classes

    def _verify_labels(self) -> None:
        for name, split in self._splits.items():
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                value = low if low < 0 else high
                row = int(np.flatnonzero(split.labels == value)[0])
                raise DataError(
                    f"task '{self.name}': label {value} at {split.rows.where(row)} of split '{name}' is outside 0 to "
                    f"{self.num_classes - 1}"
                )
        observed = np.unique(self.split("train").labels)
        if self.num_classes < 2 or len(observed) < 2:
            raise DataError(
                f"task '{self.name}' has only one class in its train split ('{self._class_name(int(observed[0]))}'): "
                f"there is nothing to tell apart"
            )
        known = self.split("train").rows.class_names
        for count in (len(known) or len(observed), len(observed)):
            if self.spec.num_classes and count != self.spec.num_classes:
                raise DataError(
                    f"task '{self.name}': the train split has {count} classes where the task file expects "
                    f"{self.spec.num_classes}: is '{getattr(self.spec.source, 'label', 'the label')}' the right label column?"
                )
        for name, split in self._splits.items():
            if split.rows.class_names and split.rows.class_names != known:
                raise DataError(
                    f"task '{self.name}': the classes of split '{name}' have other names or another order than train's"
                )

    def _class_name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)
