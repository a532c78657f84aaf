"""The linear classifier that a checkpoint brings along, which no backbone computes: what it reads, its weights, its classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitbench.errors import WeightsError, one_line

HEAD_FILE = "vitbench_head.safetensors"
"""Beside the weights, a classifier that the library's own layout has no place for."""

NPZ_FILE = "model.npz"
"""The weights of a saved model that only the JAX layout has a place for."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A linear classifier: logits = features @ weight' + bias.

    Attributes:
        representation: Canonical name of the representation that it reads: `cls`, `gap`, `pooler`, `cls+gap`.
        weight: `[K, D]` float32, on the CPU.
        bias: `[K]` float32, on the CPU.
        class_names: Names of the K classes in order, or empty where nobody knows them.
        source: Where the weights, and the names, are from, in a line.
    """

    representation: str
    weight: Tensor
    bias: Tensor
    class_names: tuple[str, ...] = ()
    source: str = ""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.weight)

    def digest(self) -> str:
        """sha256 over what decides its logits: the representation, and shape and bytes of weight and bias."""
        found = hashlib.sha256(self.representation.encode())
        for tensor in (self.weight, self.bias):
            found.update(f"{list(tensor.shape)}".encode())
            found.update(tensor.detach().float().cpu().contiguous().numpy().data)
        return found.hexdigest()


def make_classifier(
    representation: str,
    dim: int,
    weight: Tensor | None,
    bias: Tensor | None,
    class_names: Sequence[str] = (),
    source: str = "",
) -> Classifier | str:
    """A classifier from the tensors of a file, or a clause why they are none.

    Args:
        representation: What it reads.
        dim: Length of that representation.
        weight: `[K, dim]`, or `[K, dim, 1, 1]` of a 1x1 convolution; None where the file has none.
        bias: `[K]`; None for a layer without bias.
        class_names: Names of its classes; left out where their number is another.
        source: A line on where it is from.
    """
    if weight is None:
        return "the checkpoint holds no classifier"
    kernel = weight.detach().float().cpu()
    if kernel.ndim == 4 and kernel.shape[2:] == (1, 1):
        kernel = kernel.flatten(1)
    offset = torch.zeros(len(kernel)) if bias is None else bias.detach().float().cpu()
    if kernel.ndim != 2 or kernel.shape[1] != dim or offset.shape != kernel.shape[:1] or not len(kernel):
        return f"its classifier {list(weight.shape)} is no linear layer on '{representation}' ({dim} numbers)"
    names = tuple(map(str, class_names))
    names = names if len(names) == len(kernel) else ()
    return Classifier(representation, kernel.contiguous(), offset.contiguous(), names, source)


def write_head(path: Path, head: Classifier) -> None:
    """Write a classifier as a safetensors file of its own, with what it reads and its classes in the file's header."""
    metadata = {
        "format": "pt",
        "representation": head.representation,
        "class_names": json.dumps(list(head.class_names), ensure_ascii=False),
    }
    save_file({"weight": head.weight.float().contiguous(), "bias": head.bias.float().contiguous()}, path, metadata)


def read_head_file(folder: Path) -> Classifier | None:
    """The classifier that `write_head` wrote as `HEAD_FILE` in a folder of weights; None where there is no such file.

    Raises:
        WeightsError: The file is damaged, or was not written by `write_head`.
    """
    path = folder / HEAD_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        names = json.loads(metadata["class_names"])
        found = make_classifier(metadata["representation"], weight.shape[-1], weight, bias, names, f"'{HEAD_FILE}'")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"'{path}' is damaged, or no classifier of vitbench ({one_line(error)})") from error
    if isinstance(found, str):
        raise WeightsError(f"'{path}' is damaged: {found}")
    return found


def _timm_data() -> Any:
    import timm.data

    return timm.data


@cache
def _words() -> Any:
    return _timm_data().ImageNetInfo()


def imagenet_classes(count: int) -> tuple[tuple[str, ...], str]:
    """The WordNet ids of the ImageNet that has `count` classes, in the order of classifiers, and its name; empty where none has.

    No two of the sets that classifiers are trained on have equally many (1,000, 11,221, 11,821, 21,841, 21,843).
    """
    data = _timm_data()
    subset = data.infer_imagenet_subset({"num_classes": count})
    return (tuple(data.ImageNetInfo(subset).label_names()), subset) if subset else ((), "")


def wordnet_words(identifier: str) -> tuple[str, ...]:
    """The words of a WordNet id, the most usual first: `n01440764` is `tench`, `Tinca tinca`; empty for an unknown id."""
    try:
        return tuple(word.strip() for word in _words().label_name_to_description(identifier).split(","))
    except KeyError:
        return ()
