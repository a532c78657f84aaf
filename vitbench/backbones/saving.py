"""Write a backbone with its weights as they are now, and a classifier on them, as a folder that its own library loads.

| adapter | what is written |
|---|---|
| timm | timm's `local-dir:` layout: `config.json`, `model.safetensors` |
| Hugging Face | `config.json`, `model.safetensors`, `preprocessor_config.json`; with a head a `ForImageClassification` |
| JAX | the Hugging Face layout for a model with `pre_logits` (its pooler), else timm's; a hybrid as `model.npz` |

A classifier that the layout has no place for, such as one on `gap` of a model that classifies by CLS, goes to a file beside it
(`vitbench.backbones.classifier.HEAD_FILE`). What was written is loaded and compared before it gets its name.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitbench.backbones.base import Backbone
from vitbench.backbones.classifier import HEAD_FILE, NPZ_FILE, Classifier, write_head
from vitbench.backbones.load import load_backbone
from vitbench.backbones.timm_heads import LinearHead
from vitbench.backbones.vit_names import canonical_weights
from vitbench.errors import StoreError, UsageError, VitbenchError, WeightsError
from vitbench.records.atomic import TEMPORARY_PREFIX, write_problem

_OURS = {"config.json", "model.safetensors", "preprocessor_config.json", HEAD_FILE, NPZ_FILE}
_COUNTER = "num_batches_tracked"
_PIXELS = ("interpolation", "crop_pct", "crop_mode", "mean", "std", "fixed_input_size", "first_conv", "classifier")
_JAX_PIXELS = {
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}


def save_timm(
    backbone: Backbone,
    folder: Path,
    head: Classifier | None,
    preprocessing: str,
    slot: LinearHead,
    model_args: Mapping[str, Any],
) -> str:
    """Write a model of timm; see `Backbone.save`.

    Args:
        backbone: The backbone.
        folder: Where to.
        head: The classifier, or None.
        preprocessing: How images were prepared; empty for the spec's way.
        slot: Where the model has its own classifier.
        model_args: The options that the model was built with, `norm_eps` among them where it was given.
    """
    model: Any = backbone.modules[0]
    own = backbone.alias_of("pooler") or "pooler" if backbone.representations["pooler"].dim else ""
    state = _cpu_state(model)
    inside = head if head is not None and slot.name and _reads(backbone, head) == own else None
    if inside is not None and not slot.bias and bool(inside.bias.any()):
        inside = None
    if inside is not None:
        weight = inside.weight[:, :, None, None] if slot.convolution else inside.weight
        state |= {f"{slot.name}.weight": weight.contiguous()}
        state |= {f"{slot.name}.bias": inside.bias} if slot.bias else {}
    arguments = dict(model_args)
    eps = arguments.pop("norm_eps", None)
    options = [] if eps is None else [f"model.norm_eps={eps}"]
    pixels = {key: model.pretrained_cfg[key] for key in _PIXELS if model.pretrained_cfg.get(key) is not None}
    size = tuple(backbone.input_size)
    if backbone.spec.resolution and (arguments.get("dynamic_img_size") or arguments.get("use_naflex")):
        # The table keeps its size, and is resized at every pass: so it must be built for that size again.
        size = tuple(model.pretrained_cfg["input_size"][1:])
        options.append(f"resolution={backbone.spec.resolution}")
    config = _timm_config(model.pretrained_cfg["architecture"], size, pixels, arguments, inside)
    wanted = _preprocessing(backbone, preprocessing)
    with _whole_folder(folder) as staged:
        _write_timm(staged, config, state)
        return _finish(backbone, staged, folder, wanted, "timm:local-dir:", options, head, inside is not None)


def save_huggingface(
    backbone: Backbone,
    folder: Path,
    head: Classifier | None,
    preprocessing: str,
    own: str,
    trunk: AbstractContextManager[None],
) -> str:
    """Write a model of transformers; see `Backbone.save`.

    Args:
        backbone: The backbone.
        folder: Where to.
        head: The classifier, or None.
        preprocessing: How images were prepared; empty for the spec's way.
        own: The representation that the family's own classifier reads; empty where it cannot be written.
        trunk: Inside it the model has no weights but those of the checkpoint.
    """
    from vitbench.backbones.hf_families import native_size
    from vitbench.backbones.hf_loading import quiet

    model: Any = backbone.modules[0]
    inside = head if head is not None and own and _reads(backbone, head) == own else None
    options = [] if native_size(model.config) == tuple(backbone.input_size) else [_resolution(backbone)]
    wanted = _preprocessing(backbone, preprocessing)
    with _whole_folder(folder) as staged, quiet():
        with trunk:
            whole = model if inside is None else _with_classifier(model, inside)
            whole.save_pretrained(staged)
        _write_processor(staged, wanted)
        return _finish(backbone, staged, folder, wanted, "hf:", options, head, inside is not None)


def save_jax(backbone: Backbone, folder: Path, head: Classifier | None, preprocessing: str) -> str:
    """Write a model that was read from a JAX file; see `Backbone.save`."""
    from vitbench.backbones import vit_export
    from vitbench.backbones.timm_build import parse_option
    from vitbench.backbones.vit_names import configuration, stored_weights

    model: Any = backbone.modules[0]
    if model.resnet is not None:
        return _save_hybrid(backbone, folder, head, preprocessing)
    weights, config = stored_weights(backbone), configuration(backbone)
    own = backbone.alias_of("pooler") or "pooler"
    as_hf = "pooler.weight" in weights and not vit_export.obstacle("hf", config, weights)
    if not as_hf and (what := vit_export.obstacle("timm", config, weights)):
        raise UsageError(f"backbone '{backbone.spec.text}' cannot be saved: neither layout has a place for {what}")
    reads = _reads(backbone, head) if head is not None else ""
    inside = head if head is not None and reads == ("cls" if as_hf else own) else None
    linear = None if inside is None else vit_export.Head(inside.weight, inside.bias, inside.class_names)
    wanted = _preprocessing(backbone, preprocessing)
    with _whole_folder(folder) as staged:
        if as_hf:
            _write_json(staged / "config.json", vit_export.hf_config(config, weights, linear))
            save_file(vit_export.hf_state(weights, config, linear), staged / "model.safetensors", {"format": "pt"})
            _write_processor(staged, wanted)
            return _finish(backbone, staged, folder, wanted, "hf:", [], head, inside is not None)
        name, options = vit_export.timm_model(config, weights)
        pairs = (option.removeprefix("model.").split("=", 1) for option in options)
        arguments = {key: parse_option(value) for key, value in pairs}
        fields = _timm_config(name, tuple(backbone.input_size), _JAX_PIXELS, arguments, inside)
        _write_timm(staged, fields, vit_export.timm_state(weights, config, linear))
        return _finish(backbone, staged, folder, wanted, "timm:local-dir:", [], head, inside is not None)


def _save_hybrid(backbone: Backbone, folder: Path, head: Classifier | None, preprocessing: str) -> str:
    from vitbench.backbones.jax_layout import Layout, slots

    model: Any = backbone.modules[0]
    state = _cpu_state(model)
    layout = Layout("", "paper", False, "Transformer/posembed_input/pos_embedding")
    arrays: dict[str, Any] = {}
    for slot in slots(model.config, layout):
        tensor = state[slot.names[0]]
        if slot.key.endswith("kernel"):
            tensor = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        arrays[slot.key] = tensor.reshape(slot.shape).contiguous().numpy()
    wanted = _preprocessing(backbone, preprocessing)
    with _whole_folder(folder) as staged:
        np.savez(staged / NPZ_FILE, **arrays)
        return _finish(backbone, staged, folder, wanted, "jax:", [], head, False)


def _with_classifier(model: Any, head: Classifier) -> Any:
    """The family's `ForImageClassification` with this trunk, its own pooling layer included, and this head."""
    import transformers

    config = copy.deepcopy(model.config)
    names = head.class_names or tuple(f"LABEL_{index}" for index in range(head.num_classes))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    kind = getattr(transformers, type(model).__name__.removesuffix("Model") + "ForImageClassification")
    with torch.device("meta"):
        whole = kind(config)
    setattr(whole, whole.base_model_prefix, model)
    linear = nn.Linear(head.weight.shape[1], head.num_classes, device="meta")
    linear.load_state_dict({"weight": head.weight, "bias": head.bias}, assign=True)
    whole.classifier = linear if isinstance(whole.classifier, nn.Linear) else nn.Sequential(nn.Flatten(), linear)
    return whole


def _reads(backbone: Backbone, head: Classifier) -> str:
    """What a head reads, by the one name that equal representations share."""
    name = backbone.canonical(head.representation)
    if head.weight.shape[1] != backbone.dim(name):
        raise UsageError(
            f"a classifier of {head.weight.shape[1]} columns cannot read '{name}' of backbone '{backbone.spec.text}', "
            f"which has {backbone.dim(name)} numbers"
        )
    return backbone.alias_of(name) or name


def _cpu_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def _timm_config(
    architecture: str,
    size: tuple[int, ...],
    pixels: Mapping[str, Any],
    arguments: dict[str, Any],
    head: Classifier | None,
) -> dict[str, Any]:
    count = 0 if head is None else head.num_classes
    fields: dict[str, Any] = {"architecture": architecture, "num_classes": count}
    if head is not None and head.class_names:
        fields["label_names"] = list(head.class_names)
    if arguments:
        fields["model_args"] = arguments
    fields["pretrained_cfg"] = {**pixels, "input_size": [3, *size], "num_classes": count, "custom_load": False}
    return fields


def _write_timm(staged: Path, config: Mapping[str, Any], state: dict[str, Tensor]) -> None:
    _write_json(staged / "config.json", config)
    save_file(state, staged / "model.safetensors", {"format": "pt"})


def _write_processor(staged: Path, preprocessing: str) -> None:
    from vitbench.backbones.vit_convert import image_processor

    if fields := image_processor(preprocessing):
        _write_json(staged / "preprocessor_config.json", fields)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _preprocessing(backbone: Backbone, asked: str) -> str:
    if asked:
        return asked
    return backbone.preprocessing if backbone.spec.preprocess == "auto" else backbone.spec.preprocess


def _resolution(backbone: Backbone) -> str:
    height, width = backbone.input_size
    if height != width:
        raise UsageError(f"backbone '{backbone.spec.text}' cannot be saved: no spec says {height}x{width} pixels")
    return f"resolution={height}"


def _finish(
    backbone: Backbone,
    staged: Path,
    folder: Path,
    wanted: str,
    kind: str,
    options: list[str],
    head: Classifier | None,
    inside: bool,
) -> str:
    """Write the head beside the weights where it is not among them, load it all, compare, and give the spec."""
    if head is not None and not inside:
        write_head(staged / HEAD_FILE, head)
    check = load_backbone(_spec(kind, staged, [*options, f"preprocess={wanted}"]), device="cpu")
    _compare(backbone, check, head)
    if check.preprocessing != wanted:
        options = [*options, f"preprocess={wanted}"]
    return _spec(kind, folder, options)


def _spec(kind: str, folder: Path, options: list[str]) -> str:
    path = folder / NPZ_FILE if kind == "jax:" else folder
    plain = str(path) if path.is_absolute() or kind != "hf:" else f"./{path}"
    return ",".join([kind + plain, *options])


def _compare(backbone: Backbone, check: Backbone, head: Classifier | None) -> None:
    """Compare what was read back with what is in memory, weight by weight, to the bit.

    Raises:
        WeightsError: They differ.
    """
    if type(check) is type(backbone):
        now, found = backbone.modules[0].state_dict(), check.modules[0].state_dict()
    else:
        now, found = canonical_weights(backbone), canonical_weights(check)
    wrong = [
        name
        for name, tensor in now.items()
        if not name.endswith(_COUNTER)
        and not _untrained(backbone, name)
        and (name not in found or not torch.equal(found[name], tensor.detach().cpu().to(found[name].dtype)))
    ]
    stored = check.classifier() if head is not None else None
    if head is not None and (stored is None or not torch.equal(stored.weight, head.weight.detach().float().cpu())):
        wrong.append("the classifier")
    if wrong or check.input_size != backbone.input_size:
        what = wrong[0] if wrong else f"the input size {check.input_size}"
        raise WeightsError(
            f"backbone '{backbone.spec.text}': read back, {what} is not what was written; nothing is kept: report it if the "
            "disk is sound"
        )


def _untrained(backbone: Backbone, name: str) -> bool:
    return name.startswith("pooler.") and backbone.representations["pooler"].provenance == "untrained"


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to beside `folder`, which takes its place at the end; without a trace where something goes wrong.

    Raises:
        UsageError: `folder` holds something that was not saved here, or has a comma in its name.
        StoreError: It cannot be written.
    """
    if "," in str(folder):
        raise UsageError(f"'{folder}' has a comma, which ends a name in a backbone spec: choose another folder")
    if folder.is_dir():
        others = sorted(child.name for child in folder.iterdir() if child.name not in _OURS)
        if others:
            raise UsageError(
                f"'{folder}' holds more than a saved model ({others[0]}), and is not replaced: choose another"
            )
    elif folder.exists():
        raise UsageError(f"'{folder}' is a file, and a saved model is a folder: choose another name")
    place = folder.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    staged, old = place / "new", place / "old"
    try:
        staged.mkdir(parents=True)
        yield staged
        usual = place / "usual"
        usual.touch()
        for file in staged.iterdir():
            file.chmod(usual.stat().st_mode)  # safetensors lets nobody else read its files
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            folder.replace(old)
        try:
            staged.replace(folder)
        except OSError:
            if old.exists():
                old.replace(folder)
            raise
    except VitbenchError:
        raise
    except Exception as error:
        # safetensors wraps a full disk in an error of its own.
        if isinstance(error, OSError) or "os error" in str(error).lower():
            raise StoreError(f"cannot write {folder}: {write_problem(error)}") from error
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
