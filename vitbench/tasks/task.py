"""A loaded task: verified labels, splits with an identity, images on demand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL.Image import Image

from vitbench.errors import DataError, listed, unknown
from vitbench.tasks.label_sets import imagenet_real
from vitbench.tasks.source_spec import HubSource
from vitbench.tasks.sources import SOURCES
from vitbench.tasks.sources.rows import IntArray, LabelSets, Rows, text_digest
from vitbench.tasks.spec import TaskSpec, check_disjoint
from vitbench.tasks.splits import RowSet, parse, resolve, whole


@dataclass(frozen=True)
class TaskOptions:
    """How a user wants tasks to be read.

    Attributes:
        data: Name of a task, as the user writes it, to the folder that its data is read from in place of its source.
        accept_sizes: Take data of another size than the task file expects, and record the deviation.
        train_split: Name or expression of what is learned from; empty for what the task file says.
        test_split: The same for what is scored.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    accept_sizes: bool = False
    train_split: str = ""
    test_split: str = ""


@dataclass(frozen=True)
class Split:
    """One split of a task: stored itself, or rows of stored splits.

    Attributes:
        task: Full name of the task.
        name: `train`, `train800val200`, or an expression such as `train[:800]`.
        labels: `[N]` int64.
        fingerprint: sha256 of what decides the split: the source's content, the rows taken, their order.
        base: `[N]` int64, which of `bases` a row is taken from.
        row: `[N]` int64, which row of that stored split.
        source: Labels and images of a stored split; None for a selection.
        selected: The stored splits that a selection takes its rows from; empty for a stored split.
    """

    task: str
    name: str
    labels: IntArray
    fingerprint: str
    base: IntArray
    row: IntArray
    source: Rows | None = None
    selected: tuple[Split, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bases(self) -> tuple[Split, ...]:
        """The stored splits that its rows are taken from; of a stored split, itself."""
        return self.selected or (self,)

    @property
    def is_stored(self) -> bool:
        """Whether its source holds it as it is."""
        return not self.selected

    def locate(self, row: int) -> tuple[Rows, int]:
        """The source that holds a row, and its row there."""
        source = self.bases[int(self.base[row])].source
        assert source is not None
        return source, int(self.row[row])

    def image(self, row: int) -> Image:
        """The image of one row, RGB. May be called from several threads.

        Raises:
            DataError: The image is broken; its row and file are named.
        """
        source, number = self.locate(row)
        return source.image(number)

    def where(self, row: int) -> str:
        """Where the image of a row is, for messages."""
        source, number = self.locate(row)
        return source.where(number)

    def take(self, rows: IntArray, name: str) -> Split:
        """Some of its rows as a split of its own.

        Args:
            rows: Which, in the order that they are to have.
            name: What it is called in records.
        """
        fingerprint = text_digest(["take", self.fingerprint, *map(str, rows.tolist())])
        return Split(self.task, name, self.labels[rows], fingerprint, self.base[rows], self.row[rows], None, self.bases)

    @property
    def hits(self) -> LabelSets | None:
        """Every right label of each row, where the source has them."""
        parts = [part.source.hits if part.source else None for part in self.bases]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return LabelSets.of(
            [known[number].take(np.array([row])).values for number, row in zip(self.base, self.row, strict=True)]
        )


class Task:
    """A named data set with verified splits.

    Loading reads the labels of the splits that its evaluation uses and compares their number and range with the task file.

    Attributes:
        name: Full name, such as `paper/cifar10`.
        spec: The task file.
        deviations: What differs from the task file and was accepted by `accept_sizes`, a line each.
    """

    def __init__(self, name: str, spec: TaskSpec, base: Path, options: TaskOptions | None = None) -> None:
        """Load the labels and verify them.

        Args:
            name: Full name.
            spec: The task file.
            base: The folder that local paths in the task file are relative to.
            options: How the user wants it to be read.

        Raises:
            DataError: The data is missing or is not what the task file says.
            UsageError: The options name a split that is not there.
        """
        self.name = name
        self.spec = spec
        self.deviations: list[str] = []
        self._base = base
        self._options = options or TaskOptions()
        self._splits: dict[str, Split] = {}
        self._rows: dict[str, RowSet] = {}
        self.train = self.split(self._options.train_split or spec.evaluation.train)
        self.test = self.split(self._options.test_split or spec.evaluation.test)
        self._check_apart(self.train, self.test)
        self._verify_labels(self.train, self.test)

    def split(self, name: str) -> Split:
        """One split, read when it is first asked for.

        Args:
            name: A split's name, or an expression such as `train[:800]+validation[:200]`.

        Raises:
            UsageError: The task has no such split.
            DataError: Its data is missing, has another size than the task file says, or a slice lies outside it.
        """
        if name not in self._splits:
            part = self.spec.splits.get(name)
            self._rows[name] = self._row_set(name)
            if part is not None and not part.select:
                return self._splits[name]
            self._splits[name] = self._selected(name, self._rows[name])
            if part is not None:
                self._check_size(name, len(self._splits[name]))
        return self._splits[name]

    def tuning_splits(self) -> tuple[Split, Split] | None:
        """What a hyper-parameter is learned on and chosen on; None when the task file names no such splits.

        Raises:
            DataError: They share images with each other or with the test split in use.
        """
        names = self.spec.evaluation
        if names.tune_train is None or names.tune_validation is None:
            return None
        train, validation = self.split(names.tune_train), self.split(names.tune_validation)
        for one, other in ((train, validation), (train, self.test), (validation, self.test)):
            self._check_apart(one, other)
        self._verify_labels(train, validation)
        return train, validation

    def _check_apart(self, one: Split, other: Split) -> None:
        """Refuse two splits that share rows of a stored split, or are stored in the same files.

        Raises:
            DataError: They do; a shared row or file is named.
        """
        check_disjoint(one.name, self._rows[one.name], other.name, self._rows[other.name])
        for first, second in itertools.product(one.bases, other.bases):
            if first.name == second.name or not first.source or not second.source:
                continue
            if shared := first.source.shared_files(second.source):
                names = f"'{first.name}' and '{second.name}'"
                raise DataError(f"task '{self.name}': the splits {names} are both read from {listed(shared, 1)}")

    def _row_set(self, name: str) -> RowSet:
        for term in parse(name):
            if term.name not in self.spec.splits:
                raise unknown(f"split of task '{self.name}':", term.name, self.spec.splits)
        return resolve(name, self.spec.selections, self._stored, self._narrow)

    def _narrow(self, name: str, rows: RowSet) -> RowSet:
        """The rows of a selection's expression that its index file names; all when it has none."""
        file = self.spec.splits[name].index
        return rows.take(self._index(file, len(rows), name)) if file else rows

    def _index(self, file: str, size: int, name: str) -> list[int]:
        """The row numbers of an index file."""
        path = self._base / file
        try:
            lines = path.read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"task '{self.name}': the index file {path} of split '{name}' cannot be read") from error
        for number, text in enumerate(lines, start=1):
            if not text.isdecimal() or int(text) >= size:
                raise DataError(
                    f"{path}: entry {number} is '{text}', where row numbers from 0 to {size - 1} are expected"
                )
        rows = [int(text) for text in lines]
        if len(set(rows)) < len(rows):
            raise DataError(f"{path}: a row number comes twice")
        if not rows:
            raise DataError(f"{path}: the index file is empty")
        return rows

    def _stored(self, name: str) -> RowSet | None:
        """Read a stored split, once."""
        if name not in self.spec.stored:
            return None
        if name not in self._splits:
            rows: Rows = SOURCES.load(self.spec.source.kind)(self.spec, name, self._base)
            count = len(rows.labels)
            if not count:
                raise DataError(f"task '{self.name}': split '{name}' has no images")
            self._check_size(name, count)
            fingerprint = text_digest([rows.fingerprint, self._split_rule(name)])
            every = np.arange(count, dtype=np.int64)
            self._splits[name] = Split(self.name, name, rows.labels, fingerprint, np.zeros_like(every), every, rows)
            self._rows[name] = whole(name, count)
        return self._rows[name]

    def _selected(self, name: str, rows: RowSet) -> Split:
        bases, numbers = rows.rows()
        names = list(dict.fromkeys(bases))
        parts = tuple(self._splits[base] for base in names)
        base = np.array([names.index(found) for found in bases], dtype=np.int64)
        labels = np.empty(len(numbers), dtype=np.int64)
        for number, part in enumerate(parts):
            labels[base == number] = part.labels[numbers[base == number]]
        segments = [f"{part.base} {part.start} {part.stop}" for part in rows.segments]
        fingerprint = text_digest(["select", *(part.fingerprint for part in parts), *segments])
        return Split(self.name, name, labels, fingerprint, base, numbers, None, parts)

    def _check_size(self, name: str, count: int) -> None:
        expected = self.spec.splits[name].size
        if expected is None or count == expected:
            return
        line = f"split '{name}' has {count:,} images where the task file expects {expected:,}"
        if not self._options.accept_sizes:
            raise DataError(
                f"task '{self.name}': {line}: the data is not the data set that the task names (--accept-sizes goes on "
                f"and records the deviation)"
            )
        self.deviations.append(line)

    def _split_rule(self, name: str) -> str:
        """The part of the task file that says which rows of the source make the split, as canonical text."""
        part = self.spec.splits[name]
        return f"rows={part.rows} fraction={part.fraction} seed={self.spec.split_seed if part.fraction else None}"

    @cached_property
    def num_classes(self) -> int:
        """K: as the task file says, else as the source's class names say, else one more than the largest train label."""
        return self.spec.num_classes or len(self.class_names) or int(self.train.labels.max()) + 1

    @property
    def class_names(self) -> Sequence[str]:
        """In order of label; empty when nobody knows them."""
        source = self.train.bases[0].source
        return self.spec.class_names or (source.class_names if source else ())

    @property
    def chance(self) -> float:
        """The expected score of a guess that is uniform over the classes, in the task's metric."""
        return self.spec.chance or min(1.0, (5 if self.spec.metric == "top5_accuracy" else 1) / self.num_classes)

    @property
    def source(self) -> str:
        """Where its data is from: repository and commit, or kind and path; and how its splits were drawn, where they were."""
        source = self.spec.source
        drawn = [f"{part.fraction:.0%} {name}" for name, part in self.spec.stored.items() if part.fraction]
        if drawn:
            return f"{source.kind}:{getattr(source, 'path', '')} ({', '.join(drawn)} of every class, seed {self.spec.split_seed})"
        if isinstance(source, HubSource):
            from vitbench.tasks.sources.hub_files import repository_of

            return f"{source.repo}@{repository_of(source).commit}"
        return ":".join(filter(None, (source.kind, getattr(source, "path", ""))))

    @cached_property
    def label_sets(self) -> LabelSets | None:
        """Every right label of each test image, where the task has a second set of labels.

        Raises:
            DataError: The set needs file names that the source does not have.
        """
        if self.spec.label_sets is None:
            return self.test.hits
        located = [self.test.locate(row) for row in range(len(self.test))]
        return imagenet_real([source.name(number) for source, number in located], self.name)

    def _verify_labels(self, train: Split, *others: Split) -> None:
        for split in (train, *others):
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                value = low if low < 0 else high
                row = int(np.flatnonzero(split.labels == value)[0])
                raise DataError(
                    f"task '{self.name}': label {value} at {split.where(row)} of split '{split.name}' is outside 0 to "
                    f"{self.num_classes - 1}"
                )
        observed = np.unique(train.labels)
        if self.num_classes < 2 or len(observed) < 2:
            raise DataError(
                f"task '{self.name}' has only one class in its train split ('{self._class_name(int(observed[0]))}'): "
                f"there is nothing to tell apart"
            )
        sources = [(split.name, part.source) for split in (train, *others) for part in split.bases if part.source]
        known = sources[0][1].class_names
        part = self.spec.splits.get(train.name)
        whole_split = part is not None and not part.partial
        counts = [
            len(known) or self.spec.num_classes or 0,
            len(observed) if whole_split else self.spec.num_classes or 0,
        ]
        for count in counts:
            if self.spec.num_classes and count != self.spec.num_classes:
                raise DataError(
                    f"task '{self.name}': the train split has {count} classes where the task file expects "
                    f"{self.spec.num_classes}: is '{getattr(self.spec.source, 'label', 'the label')}' the right label column?"
                )
        for name, source in sources:
            if source.class_names and source.class_names != known:
                raise DataError(
                    f"task '{self.name}': the classes of split '{name}' have other names or another order than train's"
                )

    def _class_name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)
