"""The linear classifier that a checkpoint of a plain ViT brings along, which no backbone loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.backbones.checkpoints import SAFETENSORS_SUFFIX, find_file, read_checkpoint, read_json
from vitbench.backbones.jax_arrays import open_npz
from vitbench.backbones.jax_layout import find_layout
from vitbench.backbones.vit_export import Head
from vitbench.backbones.vit_names import family

METADATA_KEY = "vitbench"
"""Where `vitbench convert` puts the spec and the labels in the header of a timm checkpoint."""

_HF_INDEX = "model.safetensors.index.json"
_HF_FILES = ("model.safetensors", "pytorch_model.bin")
_WEIGHT, _BIAS = "classifier.weight", "classifier.bias"


def read_head(backbone: Backbone) -> Head | None:
    """The classifier in the file that a backbone was loaded from, or None where there is none to be had.

    Only files that are already here are read. A classifier on something else than one vector of the model's width (DINOv2's, on
    CLS and the mean) is none of these.

    Raises:
        WeightsError: The file, which was loaded before, can no longer be read.
    """
    readers: dict[str, Callable[[Backbone], Head | None]] = {"timm": _timm, "hf": _hf, "jax": _jax}
    head = readers[family(backbone)](backbone)
    if head is None or head.weight.ndim != 2 or head.bias.shape != head.weight.shape[:1]:
        return None
    pooler = backbone.representations["pooler"]
    widths = {backbone.layer_dims[-1], pooler.dim if pooler.provenance == "trained" else 0}
    return head if head.weight.shape[1] in widths else None


def _timm(backbone: Backbone) -> Head | None:
    from vitbench.backbones.timm_build import find_source

    spec = backbone.spec
    source = find_source(spec)
    if spec.checkpoint:
        path = find_file(spec.checkpoint, f"backbone '{spec.text}'")
    else:
        path = source.pretrained() if source.pretrained else Path()
    if path.suffix == ".npz":
        return _npz(path)
    tensors = read_checkpoint(path).tensors
    return _linear(tensors, "head.weight", "head.bias", _labels(path, len(tensors.get("head.bias", ()))))


def _labels(path: Path, count: int) -> tuple[str, ...]:
    if path.suffix != SAFETENSORS_SUFFIX:
        return ()
    try:
        with safe_open(path, framework="pt") as file:
            labels = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}")).get("labels", [])
    except (SafetensorError, OSError, ValueError, AttributeError):
        return ()
    return tuple(map(str, labels)) if isinstance(labels, list) and len(labels) == count else ()


def _linear(tensors: Mapping[str, Tensor], weight: str, bias: str, labels: tuple[str, ...]) -> Head | None:
    if weight not in tensors:
        return None
    kernel = tensors[weight].float()
    return Head(kernel, tensors[bias].float() if bias in tensors else torch.zeros(len(kernel)), labels)


def _jax(backbone: Backbone) -> Head | None:
    return _npz(Path(backbone.spec.name).expanduser())


def _npz(path: Path) -> Head | None:
    with open_npz(path) as arrays:
        prefix = find_layout(arrays).prefix
        keys = [f"{prefix}head/kernel", f"{prefix}head/bias"]
        if not arrays.keys.issuperset(keys):
            return None
        kernel, bias = (torch.from_numpy(arrays.read(key)) for key in keys)
    return Head(kernel.T.contiguous(), bias)


def _hf(backbone: Backbone) -> Head | None:
    from vitbench.backbones.hf_loading import find_source, quiet

    with quiet():
        source = find_source(backbone.spec, f"backbone '{backbone.spec.text}'")

    def find(name: str) -> Path | None:
        if source.local:
            path = Path(source.name) / name
        else:
            cached: Any = try_to_load_from_cache(source.name, name, revision=source.arguments["revision"])
            path = Path(cached) if isinstance(cached, str) else Path()
        return path if path.is_file() else None

    files = list(_HF_FILES)
    if index := find(_HF_INDEX):
        shards = read_json(index).get("weight_map", {})
        files = [str(shards[_WEIGHT])] if _WEIGHT in shards else []
    path = next((path for name in files if (path := find(name))), None)
    if path is None:
        return None
    tensors = read_checkpoint(path).tensors
    names: Mapping[Any, str] = backbone.modules[0].config.id2label or {}  # type: ignore[union-attr,assignment]
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    head = _linear(tensors, _WEIGHT, _BIAS, labels)
    return head if head is None or len(labels) == len(head.bias) else Head(head.weight, head.bias)
