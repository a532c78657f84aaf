"""Whether a task's data is what it should be: sizes, labels, images, and what comes twice."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitbench.analysis.audit_images import ImageFacts, look_at
from vitbench.analysis.audit_verdict import Finding, verdict
from vitbench.analysis.base import spread
from vitbench.analysis.duplicates import IntArray, Overlap, Part, find_copies, overlap
from vitbench.errors import UsageError
from vitbench.execution.reporter import Reporter
from vitbench.records.atomic import write_text
from vitbench.tasks.task import Split, Task

AUDIT_FILE = "audit.json"
SHEET_FILE = "sheet.png"
_NAMED = 5


@dataclass(frozen=True)
class LabelFacts:
    """The labels of one split, all of them, whatever the limit.

    Attributes:
        lowest: The lowest label.
        highest: The highest label.
        classes: Number of classes.
        histogram: Label to number of images, of the labels that any image has, in order.
        checksum: sha256 of the histogram as `label:images`, joined by commas.
        min: Images of the smallest class that has any.
        median: Median over the classes that have any.
        max: Images of the largest class.
        missing: Number of classes that have none.
        missing_examples: Names (or numbers) of the first few of them.
        majority_class: Name (or number) of the largest class.
        majority_share: Its share of the images: what answering it always would score as accuracy.
    """

    lowest: int
    highest: int
    classes: int
    histogram: dict[int, int]
    checksum: str
    min: int
    median: float
    max: int
    missing: int
    missing_examples: tuple[str, ...]
    majority_class: str
    majority_share: float


@dataclass(frozen=True)
class SplitAudit:
    """One split.

    Attributes:
        name: Its name, or an expression.
        expected: Number of images by the task file; None when it says none.
        found: Number of images.
        partial: Whether the task file says that it may lack classes.
        labels: Its labels.
        images: Its images; when limited, those that were looked at.
    """

    name: str
    expected: int | None
    found: int
    partial: bool
    labels: LabelFacts
    images: ImageFacts


@dataclass(frozen=True)
class Audit:
    """What an audit of a task found.

    Attributes:
        task: Full name.
        title: The data set's name as its authors write it.
        synthetic: Whether a program rendered the images.
        unverified: Whether the task file says that nobody has seen its source.
        num_classes: Number of classes.
        limit: At most this many images of each split were looked at; None for all.
        splits: Each split.
        overlaps: Copies within each split and between every two.
        near_counted: False when the images look too much alike for near duplicates to be counted.
        deviations: What differs from the task file and was accepted.
        findings: What is wrong or worth knowing, the worst first.
    """

    task: str
    title: str
    synthetic: bool
    unverified: bool
    num_classes: int
    limit: int | None
    splits: tuple[SplitAudit, ...]
    overlaps: tuple[Overlap, ...]
    near_counted: bool
    deviations: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether nothing was found that makes numbers untrustworthy."""
        return not any(finding.level == "problem" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {"trusted": self.trusted} | dataclasses.asdict(self)


def audit_task(
    task: Task,
    splits: Sequence[str] = (),
    *,
    limit: int | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Audit:
    """Look at every image of some splits of a task, once.

    Args:
        task: The loaded task.
        splits: Names or expressions of splits; those that are learned from and scored when none are given.
        limit: Look at this many images of each split, spread evenly over it.
        workers: Threads that read and decode images.
        reporter: Hears of the progress.

    Raises:
        UsageError: The task has no such split, one is named twice, or the limit is below 1.
        DataError: A split cannot be read. A broken image raises nothing: it is counted.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is a number of images, at least 1, got {limit}")
    if twice := next((name for name in splits if list(splits).count(name) > 1), None):
        raise UsageError(f"the split '{twice}' is named twice")
    parts = [task.split(name) for name in splits] or [task.train, task.test]
    rows = [np.array(spread(len(part), limit), dtype=np.int64) for part in parts]
    images, numbers = _pool(parts, rows)
    reporter = reporter or Reporter()
    with reporter.track(f"audit   {task.name}", len(images), "images") as advance:
        table = look_at(images, workers, advance)
    copies = find_copies(table.prints)
    places = [
        Part(part.name, row, number, part.labels[row], part.where)
        for part, row, number in zip(parts, rows, numbers, strict=True)
    ]
    pairs = [*((part, part) for part in places), *itertools.combinations(places, 2)]
    audit = Audit(
        task=task.name,
        title=task.spec.title,
        synthetic=task.spec.synthetic,
        unverified=task.spec.unverified,
        num_classes=task.num_classes,
        limit=limit if limit is not None and any(limit < len(part) for part in parts) else None,
        splits=tuple(
            _split_audit(task, part, table.facts(number)) for part, number in zip(parts, numbers, strict=True)
        ),
        overlaps=tuple(overlap(one, other, copies) for one, other in pairs),
        near_counted=not copies.gave_up,
        deviations=tuple(task.deviations),
    )
    return dataclasses.replace(audit, findings=tuple(verdict(audit, scored=task.test.name)))


def write_audit(audit: Audit, folder: Path) -> None:
    """Write an audit as JSON into a folder, whole or not at all.

    Raises:
        StoreError: It cannot be written.
    """
    write_text(folder / AUDIT_FILE, json.dumps(audit.as_dict(), indent=2, ensure_ascii=False) + "\n")


def _pool(parts: Sequence[Split], rows: Sequence[IntArray]) -> tuple[list[tuple[Any, int]], list[IntArray]]:
    """Every stored image behind some rows of some splits, each once; and for each split the number of each row's image."""
    sources: list[tuple[Any, int]] = []
    known: dict[tuple[str, int], int] = {}
    numbers = []
    for part, chosen in zip(parts, rows, strict=True):
        names = [base.name for base in part.bases]
        mine = []
        for row in chosen.tolist():
            key = (names[int(part.base[row])], int(part.row[row]))
            if key not in known:
                known[key] = len(sources)
                sources.append(part.locate(row))
            mine.append(known[key])
        numbers.append(np.array(mine, dtype=np.int64))
    return sources, numbers


def _split_audit(task: Task, split: Split, images: ImageFacts) -> SplitAudit:
    declared = task.spec.splits.get(split.name)
    return SplitAudit(
        name=split.name,
        expected=declared.size if declared else None,
        found=len(split),
        partial=declared is None or declared.partial,
        labels=label_facts(split.labels, task.num_classes, task.class_names),
        images=images,
    )


def label_facts(labels: IntArray, num_classes: int, names: Sequence[str]) -> LabelFacts:
    """What there is to say of labels.

    Args:
        labels: `[N]` int64, at least one.
        num_classes: K; a label outside 0 to K - 1 shows in the range and in the histogram.
        names: Class names in order of label; may be empty.
    """
    # Only labels that are there: K may be absurd, such as one more than a label that is an identifier of 18 digits.
    values, there = np.unique(labels, return_counts=True)
    histogram = dict(zip(values.tolist(), there.tolist(), strict=True))

    def name(label: int) -> str:
        return names[label] if 0 <= label < len(names) else str(label)

    missing = (label for label in range(num_classes) if label not in histogram)
    largest = int(there.argmax())
    return LabelFacts(
        lowest=int(labels.min()),
        highest=int(labels.max()),
        classes=num_classes,
        histogram=histogram,
        checksum=hashlib.sha256(
            ",".join(f"{label}:{count}" for label, count in histogram.items()).encode()
        ).hexdigest(),
        min=int(there.min()),
        median=float(np.median(there)),
        max=int(there.max()),
        missing=num_classes - sum(0 <= label < num_classes for label in histogram),
        missing_examples=tuple(map(name, itertools.islice(missing, _NAMED))),
        majority_class=name(int(values[largest])),
        majority_share=float(there[largest] / len(labels)),
    )
