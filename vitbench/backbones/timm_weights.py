"""Loading weights into a timm model, strictly: every tensor of the trunk comes from the checkpoint, or the run stops."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitbench.backbones.checkpoints import read_checkpoint
from vitbench.backbones.from_scratch import NOTE
from vitbench.backbones.timm_build import Built
from vitbench.backbones.timm_heads import (
    DensePooler,
    Layout,
    classifier_names,
    head_modules,
    random_features,
    remove_classifier,
)
from vitbench.backbones.timm_positions import TABLE, aligned_corners
from vitbench.errors import WeightsError, listed, one_line

NPZ_SUFFIX = ".npz"
POOLER_KEY = "pooler.dense.weight"
_JAX_ROOTS = ("opt/target/", "params/", "params/img/", "")
_COUNTER = "num_batches_tracked"
_NAMED = 4
_FILTER_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Loaded:
    """What a load did.

    Attributes:
        untrained_head: Tensors of the model's own pooling that the checkpoint lacks: they are newly initialised.
        notes: Lines for `Backbone.provenance_notes`.
        pooler: The dense pooler that the checkpoint brings along, now `model.pooler`, or None.
        classifier: The tensors of the checkpoint's classifier, under the names that the model has for them.
        no_classifier: Why a classifier of the checkpoint cannot be used, as a clause.
        aligned: A line, also in `notes`, on each table of position embeddings that was resized as JAX does.
    """

    untrained_head: tuple[str, ...]
    notes: tuple[str, ...]
    pooler: DensePooler | None = None
    classifier: Mapping[str, Tensor] = field(default_factory=dict)
    no_classifier: str = ""
    aligned: tuple[str, ...] = ()


def load_weights(built: Built, layout: Layout, path: Path, align: bool = False) -> Loaded:
    """Load a weights file into a model, and take the model's classifier away.

    Args:
        built: The model, as built.
        layout: Its layout.
        path: A file for `read_checkpoint`, or a JAX `.npz` for a `VisionTransformer`.
        align: Resize position embeddings as JAX does and not as timm does.

    Raises:
        WeightsError: The file cannot be read, or does not fit the model; the message names the tensors.
    """
    where = f"checkpoint '{path}' does not fit {built.architecture}"
    names = classifier_names(built.model)
    with aligned_corners(align) as aligned:
        if path.suffix == NPZ_SUFFIX:
            remove_classifier(built.model, names)
            notes = _load_npz(built.model, path, where, aligned)
            loaded = Loaded((), notes, None, *_npz_classifier(path, names))
        else:
            loaded = _load_state(built, layout, path, names, where, aligned)
    # Batch norm's counter of training steps decides nothing, and some files lack it: one value, so that digests agree.
    for name, buffer in built.model.named_buffers():
        if name.endswith(_COUNTER):
            buffer.zero_()
    broken = [name for name, tensor in built.model.state_dict().items() if _has_nan(tensor)]
    if broken:
        raise WeightsError(
            f"checkpoint '{path}' holds NaN in {listed(broken)}: the file is damaged, or training diverged"
        )
    return replace(loaded, aligned=tuple(aligned))


def without_weights(built: Built) -> Loaded:
    """Take the classifier of a model away that keeps the weights it was initialised with, to train it from scratch."""
    remove_classifier(built.model, classifier_names(built.model))
    return Loaded((), (NOTE,))


def _load_state(
    built: Built, layout: Layout, path: Path, classifiers: list[str], where: str, aligned: list[str]
) -> Loaded:
    checkpoint = read_checkpoint(path)
    model = built.model
    state = _filtered(built, checkpoint.tensors, where)
    resized = [
        f"{name} {_shape(tensor)} resized to {_shape(state[name])} by timm's checkpoint filter"
        for name, tensor in checkpoint.tensors.items()
        if name in state and isinstance(state[name], Tensor) and state[name].shape != tensor.shape
        if not (aligned and name == TABLE)
    ]
    if len(resized) > 1:
        resized = [f"{resized[0]}, and {len(resized) - 1} more"]
    ignored = [name for name in state if _under(name, classifiers)]
    classifier = {name: state[name] for name in ignored if isinstance(state[name], Tensor)}
    state = {name: tensor for name, tensor in state.items() if not _under(name, classifiers)}
    remove_classifier(model, classifiers)
    pooler = _add_pooler(model, layout, state)
    own = model.state_dict()
    for name in state.keys() & own.keys():
        if state[name].shape != own[name].shape:
            raise WeightsError(
                f"{where}: tensor '{name}' is {_shape(state[name])} in the file and {_shape(own[name])} in the model; "
                "check the model's name, its model.* options and resolution"
            )
    unexpected = [name for name in state if name not in own and not name.endswith(_COUNTER)]
    missing = [name for name in own if name not in state and not name.endswith(_COUNTER)]
    head = head_modules(model, random_features(model, layout, built.input_size)) if missing else set()
    # A norm after the pooling belongs to the trunk: `cls` and `gap` pass through it. What else a head has, only `pooler` needs.
    untrained = [name for name in missing if name.rpartition(".")[0] in head - {"fc_norm"}]
    missing = [name for name in missing if name not in untrained]
    if missing or (unexpected and (built.strict or untrained)):
        raise WeightsError(_misfit(where, missing, unexpected))
    model.load_state_dict(state, strict=False)
    notes = [*checkpoint.notes, *resized, *aligned]
    if ignored:
        notes.append(f"the classifier is left in the file: {listed(ignored)}")
    if unexpected:
        notes.append(f"timm does not use {len(unexpected)} tensors of the file: {listed(unexpected)}")
    if untrained:
        notes.append(
            f"the file lacks tensors of the model's own pooling, which are newly initialised: {listed(untrained)}"
        )
    return Loaded(tuple(untrained), tuple(notes), pooler, classifier)


def _add_pooler(model: Any, layout: Layout, state: Mapping[str, Any]) -> DensePooler | None:
    """Give the model the dense pooler that the checkpoint has, where its class token is plainly the pooler's input."""
    weight = state.get(POOLER_KEY)
    if weight is None or weight.ndim != 2 or hasattr(model, "pooler") or not (layout.plain and layout.has_class_token):
        return None
    pooler = DensePooler(int(model.num_features), weight.shape[0]).eval()
    model.pooler = pooler
    return pooler


def _filtered(built: Built, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The tensors after timm's own filter for the model, which renames keys and resizes position and patch embeddings."""
    if built.filter_fn is None:
        return dict(tensors)
    try:
        try:
            state = built.filter_fn(dict(tensors), built.model)
        except TypeError:
            state = built.filter_fn(dict(tensors))  # filters of one argument, as timm itself calls them
    except _FILTER_ERRORS as error:
        raise WeightsError(
            f"{where}: timm's filter for this model cannot convert it ({one_line(error)}); "
            "check the model's name and its model.* options"
        ) from error
    return dict(state)


def _misfit(where: str, missing: list[str], unexpected: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing)} tensors ({listed(missing)})")
    if unexpected:
        parts.append(f"it has {len(unexpected)} that the model has not ({listed(unexpected)})")
    hint = "check the model's name and its model.* options"
    if "fc_norm.weight" in missing and "norm.weight" in unexpected:
        hint = "the norm comes before the pooling in the file and after it in the model: add model.fc_norm=false"
    elif "norm.weight" in missing and "fc_norm.weight" in unexpected:
        hint = "the norm comes after the pooling in the file and before it in the model: add model.global_pool=avg"
    return f"{where}: {' and '.join(parts)}; {hint}"


def _load_npz(model: Any, path: Path, where: str, aligned: list[str]) -> tuple[str, ...]:
    """Load a JAX ViT by timm's own loader, and check afterwards what that loader does not.

    timm's loader says nothing of tensors that it does not set (a model with `global_pool='avg'` keeps its newly initialised
    `fc_norm`) or arrays that it does not read (blocks beyond the model's depth). So the model is filled with NaN first, and
    what is NaN afterwards was not set; and the names of the arrays are compared with what the loader reads.
    """
    families = {kind.__name__ for kind in type(model).__mro__}
    if "VisionTransformer" not in families:
        raise WeightsError(f"{where}: timm loads {NPZ_SUFFIX} files into its VisionTransformer models only")
    shapes = _npz_shapes(path)
    root = next((root for root in _JAX_ROOTS if f"{root}embedding/kernel" in shapes), None)
    if root is None:
        raise WeightsError(
            f"checkpoint '{path}' has no 'embedding/kernel': it is no ViT in a JAX layout that timm reads"
        )
    shapes = {name.removeprefix(root): shape for name, shape in shapes.items() if name.startswith(root)}
    unread = _unread_arrays(model, shapes)
    if unread:
        raise WeightsError(f"{where}: the model has no place for {len(unread)} of its arrays ({listed(unread)})")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    try:
        model.load_pretrained(str(path))
    except _FILTER_ERRORS as error:
        raise WeightsError(f"{where}: timm's loader fails on it ({one_line(error)})") from error
    unset = [name for name, tensor in model.state_dict().items() if _has_nan(tensor)]
    if unset:
        raise WeightsError(
            f"{where}: timm's loader does not set {len(unset)} tensors ({listed(unset)}); "
            "the pooling or the norms differ: drop model.global_pool and model.fc_norm, or read the file by jax:"
        )
    return (*_npz_notes(model, shapes, bool(aligned)), *aligned)


def _npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name].shape for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"checkpoint '{path}' is no readable {NPZ_SUFFIX} file, truncated or damaged ({one_line(error)})"
        ) from error


def _npz_classifier(path: Path, names: list[str]) -> tuple[dict[str, Tensor], str]:
    """The file's classifier as tensors of the model's, or a clause why it is of no use to timm's model."""
    with np.load(path, allow_pickle=False) as arrays:
        root = next(root for root in _JAX_ROOTS if f"{root}embedding/kernel" in arrays.files)
        if f"{root}head/kernel" not in arrays.files or len(names) != 1:
            return {}, ""
        if any(name.startswith(f"{root}pre_logits/") for name in arrays.files):
            return {}, "the file's classifier reads its pre_logits layer, which timm leaves out (jax: has it)"
        kernel, bias = arrays[f"{root}head/kernel"], arrays[f"{root}head/bias"]
    tensors = {f"{names[0]}.weight": torch.from_numpy(kernel).T, f"{names[0]}.bias": torch.from_numpy(bias)}
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}, ""


def _unread_arrays(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The arrays that timm's loader would pass over, but for the classifier and `pre_logits`."""
    depth = len(model.blocks)
    read = r"embedding/|Transformer/encoder_norm/|(Transformer/posembed_input/)?pos_embedding$|head/|pre_logits/"
    if model.cls_token is not None:
        read += r"|cls$"
    if model.attn_pool is not None:
        read += r"|MAPHead_0/"
    if hasattr(model.patch_embed, "backbone"):
        read += r"|conv_root/|gn_root/|block\d+/"
    unread = []
    for name, shape in shapes.items():
        block = re.match(r"Transformer/encoderblock(?:_(\d+))?/", name)
        fits = re.match(read, name) if block is None else (int(block[1]) < depth if block[1] else shape[0] == depth)
        if not fits:
            unread.append(name)
    return unread


def _npz_notes(model: Any, shapes: Mapping[str, tuple[int, ...]], aligned: bool) -> tuple[str, ...]:
    notes = []
    if any(name.startswith("pre_logits/") for name in shapes):
        notes.append(
            "the file's pre_logits layer is ignored by timm: pooler is what comes before it (jax: has the layer)"
        )
    if "head/kernel" in shapes:
        notes.append("the classifier is left in the file: head/kernel, head/bias")
    notes += [
        f"{name} {list(shape)} resized to {_shape(model.pos_embed)} by timm's loader, bilinear without aligned corners "
        "(JAX, and jax: here, align them; so does positions=jax)"
        for name, shape in shapes.items()
        if name.endswith("pos_embedding") and shape != tuple(model.pos_embed.shape) and not aligned
    ]
    return tuple(notes)


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isnan().any())


def _under(name: str, modules: Iterable[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
