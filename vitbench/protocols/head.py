"""The checkpoint's own classifier, scored as it is: nothing is learned.

The classifier is a linear layer on one representation, z = W x + b over the checkpoint's K classes. A task's class c stands for
a set G(c) of them, most often one (`vitbench.protocols.label_mapping`). Among the task's classes alone, as ImageNet-A and
ImageNet-R are scored, the model's probability of c is

    P(c) = Σ_{k in G(c)} exp z_k / Σ_{c'} Σ_{k in G(c')} exp z_k,

because the softmax's denominator over all K classes cancels. So the score of c is logsumexp over G(c), its confidence P(c). What
the classifier says when it may choose among all K classes is in the details, as `accuracy_all_classes`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vitbench.backbones.classifier import Classifier, wordnet_words
from vitbench.errors import DataError, UsageError
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.protocols.base import Cell, Outcome, Protocol, Tuning
from vitbench.protocols.closed_form import check_finite, class_counts, with_float64
from vitbench.protocols.label_mapping import LabelMapping, Labels, check_mode, map_labels, missing_text
from vitbench.protocols.metrics import RANKED
from vitbench.protocols.options import known_options, switch
from vitbench.solvers.ridge import best_first

if TYPE_CHECKING:
    from vitbench.backbones.base import Backbone
    from vitbench.tasks.task import Task

_BLOCK = 1 << 24
"""Logits that are held at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Head(Protocol):
    """The checkpoint's own classifier on a task's test images.

    Attributes:
        labels: How the checkpoint's classes are matched with the task's: `auto`, `name`, `index`, or a JSON or CSV file.
        partial: Whether to go on where the checkpoint lacks classes of the task, and to score the images of the others alone.
        classifier: The classifier; set by `bind`.
        mapping: Which of its classes stand for which of the task's; set by `bind`.
    """

    name: ClassVar[str] = "head"
    summary: ClassVar[str] = "the checkpoint's own classifier as it is, its classes matched with the task's"

    labels: str = "auto"
    partial: bool = False
    classifier: Classifier | None = field(default=None, repr=False, compare=False)
    mapping: LabelMapping | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from `labels` and `partial`; see `Protocol.from_options`.

        Raises:
            UsageError: An option is unknown, or its value is neither a way to match classes nor a file.
        """
        names = [item.name for item in fields(cls) if item.compare]
        known_options(cls.name, options, names, hint="it learns nothing, so it has no shots, seeds or l2")
        return cls(check_mode(str(options.get("labels", "auto"))), switch("partial", options.get("partial", False)))

    def bind(self, backbone: Backbone, task: Task) -> Self:
        """The protocol with this checkpoint's classifier and its classes matched with this task's; see `Protocol.bind`.

        Raises:
            UsageError: The checkpoint has no classifier, or its classes cannot be matched, or lack some of the task's.
        """
        classifier = backbone.classifier()
        if classifier is None:
            raise UsageError(
                f"protocol 'head' scores a checkpoint's own classifier, and backbone '{backbone.spec.text}' has none that can be "
                f"used: {backbone.no_classifier}; --protocol ridge or finetune learns one"
            )
        checkpoint = Labels("the checkpoint", classifier.class_names, classifier.num_classes)
        wanted = Labels(f"task '{task.name}'", tuple(task.class_names), task.num_classes)
        try:
            mapping = map_labels(self.labels, checkpoint, wanted, wordnet_words)
            lacking = missing_text(mapping, checkpoint, wanted, wordnet_words)
            if not mapping.known:
                raise UsageError(f"{lacking}: --set labels=FILE says which stands for which")
            if lacking and not self.partial:
                raise UsageError(
                    f"{lacking}: --set labels=FILE says which stands for which, --set partial=true scores the images of the "
                    f"other {len(mapping.known)} alone"
                )
        except UsageError as error:
            raise UsageError(f"protocol 'head' of backbone '{backbone.spec.text}': {error}") from error
        return replace(self, classifier=classifier, mapping=mapping)

    @property
    def reads(self) -> str:
        """What the classifier reads; empty before `bind`. See `Protocol.reads`."""
        return "" if self.classifier is None else self.classifier.representation

    @property
    def _lacking(self) -> int:
        """Number of classes of the task that the checkpoint has not."""
        return 0 if self.mapping is None else len(self.mapping.groups) - len(self.mapping.known)

    def parameters(self) -> dict[str, Any]:
        """Whether only some classes are scored, and which: records over different images share no table."""
        if not self._lacking:
            return {"partial": False}
        assert self.mapping is not None
        return {"partial": True, "known": _digest(self.mapping.known)}

    def fingerprints(self) -> dict[str, str]:
        """Of the classifier and of the mapping, which differ from checkpoint to checkpoint; see `Protocol.fingerprints`."""
        if self.classifier is None or self.mapping is None:
            return {}
        return {"classifier": self.classifier.digest(), "mapping": _digest(self.mapping.groups)}

    def label(self) -> str:
        """What is scored: `the checkpoint's own classifier`."""
        if not self._lacking:
            return "the checkpoint's own classifier"
        assert self.mapping is not None
        return f"the checkpoint's own classifier, images of {len(self.mapping.known)} of {len(self.mapping.groups)} classes"

    def choices(self, num_classes: int) -> int:
        """The classes that the checkpoint has; see `Protocol.choices`."""
        return num_classes if self.mapping is None else len(self.mapping.known)

    def cells(self) -> list[Cell]:
        """The one cell: nothing is learned, so nothing is drawn."""
        return [Cell(shot=0, seed=0)]

    def train_rows(self, labels: IntArray, num_classes: int, cells: Sequence[Cell]) -> IntArray:
        """None; see `Protocol.train_rows`."""
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
        """Rank the task's classes by the classifier; see `Protocol.evaluate`. float32 on the device that holds the features.

        Raises:
            UsageError: The classifier reads another representation, or `bind` has not been called.
            DataError: No test image is of a class that the checkpoint has, or features are NaN or infinite.
        """
        if self.classifier is None or self.mapping is None:
            raise UsageError("protocol 'head' has no classifier yet: bind(backbone, task) gives it the checkpoint's")
        if name != self.classifier.representation:
            raise UsageError(f"the checkpoint's own classifier reads '{self.reads}': leave --representations out")
        labels = test.labels[test.rows]
        class_counts(labels, num_classes, "test")
        known = np.isin(labels, self.mapping.known)
        if not known.any():
            raise DataError(f"none of the {len(labels)} test images is of a class that the checkpoint has")
        check_finite(test, name, "test")
        labels, rows = labels[known], test.rows[known]
        # Not `chunks`: float32 logits depend on how rows are cut, and so that must not depend on how they are read.
        step = max(1, _BLOCK // _logits_of_a_row(self.classifier, self.mapping))
        blocks = (test.part(name, rows[start : start + step]) for start in range(0, len(rows), step))
        ranking, confidence, best = _ranked(blocks, self.classifier, self.mapping)
        owner = np.full(self.classifier.num_classes, -1)
        for label, group in enumerate(self.mapping.groups):
            owner[list(group)] = label
        by_index = _index_warning(self.mapping, self.labels, float(np.mean(ranking[:, 0] == labels)))
        details = {
            "labels": self.mapping.how,
            "classes_known": len(self.mapping.known),
            "checkpoint_classes": self.classifier.num_classes,
            "accuracy_all_classes": float(np.mean(owner[best] == labels)),
            "classifier": self.classifier.source,
        }
        for cell in cells:
            yield Outcome(
                cell=cell,
                ranking=ranking,
                n_support=0,
                n_test=len(labels),
                details=details,
                warnings=(*self._left_out(int((~known).sum())), *by_index),
                confidence=confidence,
                rows=None if known.all() else rows,
            )

    def _left_out(self, images: int) -> tuple[str, ...]:
        """The line about classes that the checkpoint lacks, and how many test images are theirs; none where it has all."""
        if not self._lacking:
            return ()
        assert self.mapping is not None
        count = len(self.mapping.groups)
        return (f"the checkpoint lacks {self._lacking} of {count} classes: their {images:,} test images are left out",)


def _index_warning(mapping: LabelMapping, mode: str, accuracy: float) -> tuple[str, ...]:
    """The line about a mapping by index that nobody asked for, or that makes a score no better than a guess."""
    if mapping.how != "by index":
        return ()
    if accuracy < 2 / len(mapping.known):
        return (
            "matched by index, the checkpoint's classes are no better than a guess: their order is most likely another; "
            "--set labels=FILE says which is which",
        )
    return (
        ()
        if mode == "index"
        else ("the checkpoint's classes were matched with the task's by index: names are not known",)
    )


def _logits_of_a_row(classifier: Classifier, mapping: LabelMapping) -> int:
    """Of one image: those of all K classes, and those that stand for the task's."""
    return classifier.num_classes + len(mapping.groups) * max(map(len, mapping.groups))


def _ranked(
    blocks: Iterable[Tensor], classifier: Classifier, mapping: LabelMapping
) -> tuple[IntArray, np.ndarray[Any, np.dtype[np.float32]], IntArray]:
    """The task's best classes `[M, R]`, -1 behind the last known one; P of the first `[M]`; the best of all K classes `[M]`."""
    # Groups of unequal size are padded with a column of -inf behind the last logit.
    longest, padding = max(map(len, mapping.groups)), classifier.num_classes
    columns = torch.tensor([[*group, *[padding] * (longest - len(group))] for group in mapping.groups])
    rankings, confidences, bests = [], [], []
    for block in map(with_float64, blocks):
        weight, bias, columns = (x.to(block.device) for x in (classifier.weight, classifier.bias, columns))
        logits = torch.addmm(bias, block.float(), weight.T)
        bests.append(logits.argmax(dim=1))
        logits = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)
        scores = logits[:, columns].logsumexp(dim=2)
        ranking = best_first(scores, RANKED)
        rankings.append(ranking.masked_fill(scores.gather(1, ranking).isneginf(), -1))
        confidences.append((scores.amax(dim=1) - scores.logsumexp(dim=1)).exp())
    ranked, sure, best = (torch.cat(parts).cpu().numpy() for parts in (rankings, confidences, bests))
    return ranked, sure, best


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
