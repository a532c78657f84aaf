"""The head that a checkpoint brings along, with its classes in the order of a task's: what a fine-tune may begin with."""

from __future__ import annotations

import torch

from vitbench.backbones.base import Backbone
from vitbench.backbones.classifier import Classifier, wordnet_words
from vitbench.errors import UsageError
from vitbench.protocols.label_mapping import Labels, map_labels, missing_text
from vitbench.tasks.task import Task


def own_head(backbone: Backbone, task: Task) -> Classifier:
    """The checkpoint's classifier, one row for each class of the task, matched by name.

    Raises:
        UsageError: There is none, or its classes are not the task's: one lacks, has another name, or stands for several.
    """
    classifier = backbone.classifier()
    if classifier is None:
        raise UsageError(f"backbone '{backbone.spec.text}' has no head to begin with: {backbone.no_classifier}")
    if not classifier.class_names:
        raise UsageError(
            f"the head of backbone '{backbone.spec.text}' names no classes: they cannot be the task's for sure"
        )
    checkpoint = Labels("the checkpoint", classifier.class_names, classifier.num_classes)
    wanted = Labels(f"task '{task.name}'", tuple(task.class_names), task.num_classes)
    mapping = map_labels("name", checkpoint, wanted, wordnet_words)
    if lacking := missing_text(mapping, checkpoint, wanted, wordnet_words):
        raise UsageError(f"the head of backbone '{backbone.spec.text}' is not for this task: {lacking}")
    several = next((number for number, group in enumerate(mapping.groups) if len(group) > 1), None)
    if several is not None:
        raise UsageError(
            f"the head of backbone '{backbone.spec.text}' has {len(mapping.groups[several])} classes for class {several} of task "
            f"'{task.name}': it cannot be trained as it is"
        )
    rows = torch.tensor([group[0] for group in mapping.groups])
    names = tuple(classifier.class_names[int(row)] for row in rows)
    return Classifier(
        classifier.representation, classifier.weight[rows], classifier.bias[rows], names, classifier.source
    )
