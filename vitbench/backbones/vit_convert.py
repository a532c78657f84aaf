"""Write a plain ViT in another library's format, weights exact to the bit, and prove it by reading the file back.

What each format can say apart from the weights:

| | eps and GELU | position of CLS | pooler | preprocessing |
|---|---|---|---|---|
| Hugging Face folder | `config.json` | a row of the table | as it is | where its image processor can say it |
| timm `.safetensors` | options of the spec | a row, or in the token | by `keep_pooler` | an option of the spec |
| `.npz`, the paper's | always 1e-6 and tanh | a row of the table | `pre_logits` | an option of the spec |
| `.npz`, big_vision's | always 1e-6 and tanh | in the token | `pre_logits` | an option of the spec |

A classifier goes along where the target's reads the same vector: Hugging Face's is on CLS, and has no pooler before it.

A model adds the CLS row of its position embedding to the CLS token and uses only the sum; the formats with the position in the
token store that float32 sum. The computation stays the same to the bit, and so do `canonical_weights`; but the two summands
cannot be told apart again, so the way back gives the sum as the token, and a row of zeros.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone
from vitbench.backbones.vit_export import (
    FORMATS,
    Head,
    hf_config,
    hf_state,
    npz_arrays,
    obstacle,
    timm_model,
    timm_state,
)
from vitbench.backbones.vit_head import METADATA_KEY, read_head
from vitbench.backbones.vit_names import bit_equal, canonical_weights, configuration, family, stored_weights
from vitbench.errors import StoreError, UsageError, VitbenchError, WeightsError, unknown
from vitbench.records.atomic import TEMPORARY_PREFIX, write_problem

_SUFFIXES = {".safetensors": "timm", ".npz": "npz", "": "hf"}
_HF_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}
_PIL_NUMBERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
# What is compared and told after a conversion; the rest is the same by construction, or another library's way.
_TOLD = ("layer_norm_eps", "gelu", "pooling", "final_norm", "dropout", "attention_dropout")


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        path: The folder or file.
        form: One of `vit_export.FORMATS`.
        spec: The backbone spec that loads it as the same model.
        tensors: Number of tensors that were read back and found equal, bit for bit.
        notes: What is not as in the source, a line each.
    """

    path: Path
    form: str
    spec: str
    tensors: int
    notes: tuple[str, ...]


def convert(
    source: str, target: str | Path, to: str = "", *, keep_pooler: bool = False, overwrite: bool = False
) -> Conversion:
    """Write the backbone `source` as `target`, read it back, compare every tensor, and only then give it its name.

    Args:
        source: A backbone spec: `timm:…`, `hf:…` or `jax:….npz`, a plain ViT.
        target: A folder (Hugging Face), a `.safetensors` file (timm) or an `.npz` file (JAX, the paper's layout).
        to: One of `vit_export.FORMATS`; empty to go by `target`.
        keep_pooler: For timm, which has no pooler: store it as `pooler.dense`, which vitbench's timm adapter reads.
        overwrite: Replace what is there.

    Raises:
        UsageError: The target's format is unknown or has no place for something in the model, or the target exists.
        WeightsError: The source cannot be loaded.
        StoreError: The target cannot be written.
    """
    path = Path(target).expanduser()
    form = choose_format(path, to)
    _check_target(path, form, overwrite)
    backbone = load_backbone(source, device="cpu")
    if family(backbone) == "hf" and backbone.spec.resolution:
        raise UsageError(
            f"backbone '{source}': transformers resizes position embeddings at every pass, so there is no model of that "
            "resolution to write: convert it without resolution=, and load the result with it"
        )
    weights, config = stored_weights(backbone), configuration(backbone)
    if what := obstacle(form, config, weights):
        raise UsageError(f"backbone '{source}' cannot be written as {FORMATS[form]}, which has no place for {what}")
    weights, notes = _with_pooler(backbone, weights, config, form, keep_pooler)
    head, head_note = _fitting_head(backbone, config, form, pooler="pooler.weight" in weights)
    weights, fold_note = _folded(backbone, weights, config, form)
    notes += [note for note in (head_note, fold_note) if note]
    with _staged(path) as staged:
        options = _write(staged, form, weights, config, head, _preprocessing(backbone))
        check = _read_back(backbone, _spec(form, staged, options), weights)
        _place(staged, path)
    extra, told = _differences(backbone, config, check, form)
    if any(option.startswith("resolution=") for option in extra):
        options = [option for option in options if not option.startswith("model.img_size=")]
    spec = _spec(form, path, [*options, *extra])
    return Conversion(path, form, spec, len(weights), (*notes, *told))


def choose_format(target: Path, to: str) -> str:
    """The format for a target: `to` if given, else by the target's suffix.

    Raises:
        UsageError: There is no such format, or the suffix is not that of the format.
    """
    if to and to not in FORMATS:
        raise unknown("format", to, FORMATS, hint="--to")
    by_suffix = _SUFFIXES.get(target.suffix.lower())
    form = to or by_suffix
    if form is None:
        raise UsageError(
            f"'{target}' names no known format: end it in .safetensors (timm) or .npz (JAX), or give --to hf for a folder"
        )
    suffix = {"timm": ".safetensors", "hf": ""}.get(form, ".npz")
    if (form == "hf" and target.suffix in (".safetensors", ".npz")) or (form != "hf" and target.suffix != suffix):
        raise UsageError(f"'{target}' does not fit --to {form}: {f'end it in {suffix}' if suffix else 'name a folder'}")
    if "," in str(target):
        raise UsageError(f"'{target}' has a comma, which ends a name in a backbone spec: choose another name")
    return form


def _check_target(path: Path, form: str, overwrite: bool) -> None:
    if not path.exists():
        return
    if path.is_dir() != (form == "hf"):
        raise UsageError(
            f"'{path}' is a {'folder' if path.is_dir() else 'file'}, and {FORMATS[form]} cannot take its place"
        )
    if not overwrite:
        raise UsageError(f"'{path}' exists: choose another name, or --overwrite")
    if form == "hf" and (others := sorted({child.name for child in path.iterdir()} - _HF_FILES)):
        raise UsageError(f"'{path}' holds more than a converted model ({others[0]}), and is not overwritten")


def _with_pooler(
    backbone: Backbone, weights: dict[str, Tensor], config: Mapping[str, Any], form: str, keep: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights with or without the pooler, and what to say about it."""
    where = f"backbone '{backbone.spec.text}'"
    if "pooler.weight" not in weights:
        if keep:
            raise UsageError(f"{where} has no trained pooler to keep: drop --keep-pooler")
        return weights, []
    activation = getattr(getattr(backbone.modules[0], "config", None), "pooler_act", "tanh")
    reads = config["pooling"].removesuffix("+dense")
    if form != "timm" or keep:
        if activation != "tanh" or (reads != "cls" and not form.startswith("npz")):
            raise UsageError(
                f"{where}: its pooler ({activation} of a dense layer on {reads}) has no place in {FORMATS[form]}"
            )
        return weights, []
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    return kept, ["the pooler (pooler.weight, pooler.bias) is left behind: timm has none; --keep-pooler carries it"]


def _fitting_head(backbone: Backbone, config: Mapping[str, Any], form: str, pooler: bool) -> tuple[Head | None, str]:
    """The source's classifier where the target's classifier reads the same vector, else None and why."""
    head = read_head(backbone)
    if head is None:
        return None, ""
    reads = config["pooling"]
    own = "cls" if config["cls_token"] else "gap"
    would = {"hf": "cls", "timm": reads.removesuffix("+dense")}.get(form, "map" if config["map_heads"] else own)
    would += "+dense" if pooler else ""
    if config["dist_token"]:
        return None, "the classifiers are left behind: there are two, on CLS and on the distillation token"
    if reads.startswith("own"):
        return None, "the classifier is left behind: it reads a pooling of timm's own"
    if would != reads or (form == "hf" and pooler):
        return (
            None,
            f"the classifier is left behind: it reads {reads}, and there it would read {'cls' if form == 'hf' else would}",
        )
    if form == "timm" and pooler:
        return head, "the classifier reads the pooler: timm without vitbench would give other logits"
    return head, ""


def _folded(
    backbone: Backbone, weights: dict[str, Tensor], config: Mapping[str, Any], form: str
) -> tuple[dict[str, Tensor], str]:
    """The weights with the positions of prefix tokens in the tokens, for the formats that have no rows for them."""
    positions = config["position_embedding"]
    if form == "npz-bigvision":
        needed = positions == "prefix and patches" and config["cls_token"]
    else:
        needed = form == "timm" and positions == "CLS and patches"
    if not needed:
        return weights, ""
    canonical = canonical_weights(backbone)
    folded = {name: canonical[name] for name in weights}
    if bit_equal(folded["cls_token"], weights["cls_token"]):
        return folded, ""
    return folded, (
        "CLS has no row in the position embedding there: the token is stored with its position added, as the model adds them "
        "(the same to the bit; the two cannot be told apart again)"
    )


def _preprocessing(backbone: Backbone) -> str:
    return backbone.preprocessing if backbone.spec.preprocess == "auto" else backbone.spec.preprocess


def _write(
    staged: Path,
    form: str,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    head: Head | None,
    preprocessing: str,
) -> list[str]:
    """Write the file or folder; returns the spec's name for a timm architecture and its options."""
    if form == "hf":
        staged.mkdir()
        fields = hf_config(config, weights, head)
        (staged / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        save_file(hf_state(weights, config, head), staged / "model.safetensors", {"format": "pt"})
        if processor := image_processor(preprocessing):
            text = json.dumps(processor, indent=2) + "\n"
            (staged / "preprocessor_config.json").write_text(text, encoding="utf-8")
        return []
    if form == "timm":
        name, options = timm_model(config, weights)
        spec = _spec(form, Path(staged.name), [name, *options, f"preprocess={preprocessing}"])
        told: dict[str, Any] = {"spec": spec, "architecture": name}
        if head is not None and head.labels:
            told["labels"] = list(head.labels)
        save_file(timm_state(weights, config, head), staged, {"format": "pt", METADATA_KEY: json.dumps(told)})
        return [name, *options]
    with staged.open("wb") as handle:
        arrays: dict[str, Any] = dict(npz_arrays(weights, config, head, big_vision=form == "npz-bigvision"))
        np.savez(handle, **arrays)
    return []


def _spec(form: str, path: Path, options: list[str]) -> str:
    if form == "timm":
        return ",".join([f"timm:{options[0]}", f"checkpoint={path}", *options[1:]])
    kind = "hf" if form == "hf" else "jax"
    plain = str(path) if path.is_absolute() or form != "hf" else f"./{path}"
    return ",".join([f"{kind}:{plain}", *options])


def image_processor(preprocessing: str) -> dict[str, Any] | None:
    """The `preprocessor_config.json` of transformers that is, or is nearest to, a preprocessing string; None where none is.

    transformers resizes by Pillow with antialias, and rounds the offset of a crop down. For TensorFlow's resize, which does not
    antialias, and for torchvision's rounding this is the nearest, not the same: the caller compares what is read back.
    """
    number = r"[\d.e+-]+"
    match = re.fullmatch(
        rf"(?:tf_)?resize\((\d+)(?:x(\d+))?,(\w+)\)(?:\|uint8)?(?:\|cent(?:er|ral)_crop\((\d+)(?:x(\d+))?\))?"
        rf"\|(?:normalize\(({number}(?:/{number})*),({number}(?:/{number})*)\)|value_range\((-1|0),1\))",
        preprocessing,
    )
    if match is None or match[3] not in _PIL_NUMBERS or not (match[2] or match[4]):
        return None
    first = int(match[1])
    size = {"height": first, "width": int(match[2])} if match[2] else {"shortest_edge": first}
    fields: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor" if match[4] else "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": _PIL_NUMBERS[match[3]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    if match[4]:
        fields |= {"do_center_crop": True, "crop_size": {"height": int(match[4]), "width": int(match[5] or match[4])}}
    if match[8]:
        mean, std = ([0.5] * 3, [0.5] * 3) if match[8] == "-1" else ([0.0] * 3, [1.0] * 3)
    else:
        mean, std = (_channels(match[group]) for group in (6, 7))
    return fields | {"image_mean": mean, "image_std": std}


def _channels(text: str) -> list[float]:
    values = [float(part) for part in text.split("/")]
    return values * 3 if len(values) == 1 else values


def _read_back(source: Backbone, spec: str, weights: Mapping[str, Tensor]) -> Backbone:
    """Load what was written and compare every tensor with what the source computes with.

    Raises:
        WeightsError: They differ, which a sound disk and this module do not do.
    """
    check = load_backbone(f"{spec},preprocess={_preprocessing(source)}", device="cpu")
    expected = {name: tensor for name, tensor in canonical_weights(source).items() if name in weights}
    found = canonical_weights(check)
    wrong = [name for name in expected if name not in found or not bit_equal(expected[name], found[name])]
    wrong += [name for name in found if name not in expected]
    if wrong:
        raise WeightsError(
            f"backbone '{source.spec.text}': read back, tensor '{wrong[0]}' is not what was written ({len(wrong)} in all); "
            "nothing is kept: check the disk, and report it if the disk is sound"
        )
    return check


def _differences(
    source: Backbone, config: Mapping[str, Any], check: Backbone, form: str
) -> tuple[list[str], list[str]]:
    """The options that the spec still needs for the same features, and lines on what is not the same."""
    options, notes = [], []
    now = configuration(check)
    if "pooler.weight" not in stored_weights(check):
        config = {**config, "pooling": config["pooling"].removesuffix("+dense")}  # that was told already
    changed = [f"{key} {config[key]} became {now[key]}" for key in _TOLD if config[key] != now[key]]
    if changed:
        always = " (JAX code always has eps 1e-6 and tanh GELU)" if form.startswith("npz") else ""
        notes.append(f"the computation differs: {', '.join(changed)}{always}")
    if source.input_size != config["image_size"] and len(set(source.input_size)) == 1:
        options.append(f"resolution={source.input_size[0]}")
        notes.append(
            f"the source is run at {source.input_size[0]} pixels with positions for {config['image_size'][0]}; "
            "each library resizes them in its own way"
        )
    wanted = _preprocessing(source)
    if check.preprocessing != wanted or len(set(source.input_size)) > 1:
        options.append(f"preprocess={wanted}")
        own = f"its own would be {check.preprocessing}" if check.preprocessing != wanted else "it has none of its own"
        notes.append(f"preprocessing is an option of the spec ({own})")
    return options, notes


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, gone afterwards; a fault of the disk becomes one line."""
    folder = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
        yield folder / path.name
    except VitbenchError:
        raise
    except Exception as error:
        # safetensors wraps a full disk in an error of its own.
        if isinstance(error, OSError) or "os error" in str(error).lower():
            raise StoreError(f"cannot write {path}: {write_problem(error)}") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(staged: Path, path: Path) -> None:
    """Flush what was written to disk and give it its name, in the place of what had it."""
    usual = staged.with_name(f"{staged.name}.usual")
    usual.touch()
    for file in [*staged.iterdir()] if staged.is_dir() else [staged]:
        file.chmod(usual.stat().st_mode)  # safetensors lets nobody else read its files
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    if staged.is_dir() and path.exists():
        path.replace(staged.with_name(f"{staged.name}.old"))
    staged.replace(path)
