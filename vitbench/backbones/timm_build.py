"""Building a timm model from a backbone spec: which model, with which options, and which file its weights are in."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import _builder, get_arch_pretrained_cfgs, get_deprecated_models, get_pretrained_cfg, model_entrypoint
from torch import nn

from vitbench.backbones.checkpoints import fetch_from_hub, find_file, read_json
from vitbench.backbones.from_scratch import FIRST_SEED, seeded
from vitbench.backbones.spec import BackboneSpec
from vitbench.errors import UsageError, WeightsError, nearest, one_line, unknown

HUB_PREFIXES = ("hf-hub:", "hf_hub:")
FOLDER_PREFIX = "local-dir:"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a timm model's weights are called on the Hub and in a folder, the most wanted first."""

# Options that would change what a backbone is given or gives, or where its weights come from.
_OWN_OPTIONS = {
    "num_classes",
    "in_chans",
    "features_only",
    "out_indices",
    "feature_cls",
    "pretrained",
    "pretrained_cfg",
}
_OWN_OPTIONS |= {"pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn", "checkpoint_path", "cache_dir"}
_OWN_OPTIONS |= {"scriptable", "exportable", "no_jit", "pruned", "device", "dtype"}

NORM_EPS = "norm_eps"
"""The one `model.KEY` that is ours: the eps of every LayerNorm. timm's constructors take it only inside a Python object."""

_LOADER_LOCK = threading.Lock()


@dataclass(frozen=True)
class Source:
    """Which model a spec names.

    Attributes:
        create_name: The name for `timm.create_model`.
        architecture: The architecture without a tag.
        model_args: Constructor arguments from the model's `config.json`; empty for a model of timm's registry.
        pretrained: Find the pretrained weights, fetching them where they are not cached; None when there are none.
    """

    create_name: str
    architecture: str
    model_args: dict[str, Any]
    pretrained: Callable[[], Path] | None


@dataclass(frozen=True)
class Built:
    """A model with random weights, and what timm would load its weights with.

    Attributes:
        model: The model, in eval mode.
        architecture: What decides the computation apart from the weights: `timm:NAME(option=value,…)`.
        input_size: Height and width in pixels.
        filter_fn: timm's conversion of a checkpoint to this model (names, resized embeddings), or None.
        strict: Whether timm expects this model's pretrained weights to have no tensors beyond those of the model.
        model_args: The options that it was built with, `norm_eps` among them.
    """

    model: Any
    architecture: str
    input_size: tuple[int, int]
    filter_fn: Callable[..., dict[str, Any]] | None
    strict: bool
    model_args: dict[str, Any]


def find_source(spec: BackboneSpec) -> Source:
    """Which model the spec's name means; the weights are not looked for yet.

    Raises:
        UsageError: timm has no such model or tag (the nearest are offered).
        WeightsError: A Hub model's or folder's `config.json` cannot be had, or is not timm's.
    """
    where = f"backbone '{spec.text}'"
    if spec.name.startswith(HUB_PREFIXES):
        repository, _, revision = spec.name.partition(":")[2].partition("@")
        config = fetch_from_hub(repository, ["config.json"], revision)
        return _folder_source(config.parent, where, lambda: fetch_from_hub(repository, WEIGHT_FILES, revision))
    if spec.name.startswith(FOLDER_PREFIX):
        folder = Path(spec.name.removeprefix(FOLDER_PREFIX)).expanduser()
        if not folder.is_dir():
            siblings = (
                (child.name for child in folder.parent.iterdir() if child.is_dir()) if folder.parent.is_dir() else ()
            )
            close = nearest(folder.name, siblings)
            hint = f"; did you mean {' or '.join(repr(str(folder.parent / name)) for name in close)}?" if close else ""
            raise WeightsError(f"{where}: there is no folder '{folder}'{hint}")
        return _folder_source(folder, where, lambda: _weights_in(folder, where))
    if "/" in spec.name:
        raise UsageError(
            f"{where}: '{spec.name}' is no name of a timm model: write timm:hf-hub:{spec.name} for a model on the Hub, "
            f"timm:{FOLDER_PREFIX}{spec.name} for a local folder"
        )
    return _registry_source(spec, where)


def _folder_source(folder: Path, where: str, pretrained: Callable[[], Path]) -> Source:
    config = read_json(folder / "config.json")
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise WeightsError(f"{where}: '{folder / 'config.json'}' names no 'architecture', so it is not a timm model's")
    if not timm.is_model(architecture):
        raise unknown(f"timm model in '{folder / 'config.json'}':", architecture, timm.list_models())
    return Source(f"{FOLDER_PREFIX}{folder}", architecture, dict(config.get("model_args") or {}), pretrained)


def _weights_in(folder: Path, where: str) -> Path:
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    files += sorted(folder.glob("*.safetensors")) or sorted([*folder.glob("*.pth"), *folder.glob("*.bin")])
    if not files:
        raise WeightsError(f"{where}: the folder '{folder}' has no {' or '.join(WEIGHT_FILES)}")
    if files[0].name not in WEIGHT_FILES and len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise WeightsError(
            f"{where}: the folder '{folder}' has several weight files ({names}): choose by checkpoint=FILE"
        )
    return files[0]


def _registry_source(spec: BackboneSpec, where: str) -> Source:
    name, (architecture, _, tag) = spec.name, spec.name.partition(".")
    deprecated = get_deprecated_models()
    if architecture in deprecated and (current := deprecated[architecture]):
        name, (architecture, _, tag) = current, current.partition(".")
    if not timm.is_model(architecture) or architecture in deprecated:
        raise unknown("timm model", spec.name, timm.list_models(), hint=f"in {where}; timm.list_models() has them all")
    configs = get_arch_pretrained_cfgs(architecture)
    tags = [full.partition(".")[2] for full, config in configs.items() if config.has_weights]
    if tag and name not in configs:
        raise unknown(f"tag of timm model '{architecture}':", tag, filter(None, tags), hint=f"in {where}")
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.has_weights:
        return Source(name, architecture, {}, None)
    return Source(name, architecture, {}, lambda: _fetch(config))


def _fetch(config: Any) -> Path:
    """The pretrained weights that an entry of timm's registry names."""
    if config.hf_hub_id:
        repository, _, revision = str(config.hf_hub_id).partition("@")
        filename = config.hf_hub_filename
        names = [str(Path(filename).with_suffix(".safetensors")), filename] if filename else list(WEIGHT_FILES)
        return fetch_from_hub(repository, names, revision)
    if config.file:
        return find_file(config.file, f"timm's entry for '{config.architecture}'")
    url = config.url if isinstance(config.url, str) else config.url[0]
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"the weights of '{config.architecture}' are at {url}, which cannot be reached, and not cached as '{target}': "
                f"fetch them on a machine with network and give them by checkpoint=FILE"
            ) from error
    return target


def parse_option(text: str) -> Any:
    """The value of a `model.KEY=VALUE` option: a Python literal, `true`, `false` or `none` in any case, else the text itself."""
    lowered = text.lower()
    if lowered in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lowered]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def build(spec: BackboneSpec, source: Source, seed: int = FIRST_SEED) -> Built:
    """Build the model of `source` with the spec's options, without its weights.

    The random initialisation, timm's own, is seeded: what a checkpoint lacks and a user lets through is the same in every run.

    Raises:
        UsageError: An option that the model does not take, or a value or resolution that it cannot be built with.
    """
    where = f"backbone '{spec.text}'"
    given = {key: parse_option(value) for key, value in spec.model_options}
    for key in given:
        if key in _OWN_OPTIONS:
            raise UsageError(f"{where}: option 'model.{key}' is not for users: vitbench sets it")
    options = _sized(spec, source, given)
    constructor = {key: value for key, value in options.items() if key != NORM_EPS}
    try:
        with _captured_loader() as calls, seeded(seed):
            model: Any = timm.create_model(source.create_name, pretrained=True, **constructor)
    except Exception as error:
        if not constructor and not source.model_args:
            raise
        raise _build_error(where, source, constructor, error) from error
    if NORM_EPS in options:
        _set_norm_eps(model, options[NORM_EPS], where)
    call = next((call for call in calls if call["model"] is model), {})
    size = _pair(options.get("img_size")) or _pair(source.model_args.get("img_size"))
    if spec.resolution is not None:
        size = (spec.resolution, spec.resolution)
    channels, *native = model.pretrained_cfg.get("input_size", (3, 224, 224))
    if getattr(model, "in_chans", channels) != 3:
        raise UsageError(f"{where}: the model takes images of {channels} channels, and images here have 3")
    size = size or (int(native[0]), int(native[1]))
    _check_patches(where, model, size)
    kept = {key: value for key, value in source.model_args.items() if key not in _OWN_OPTIONS} | options
    model_args = dict(kept)
    if side := _pair(kept.pop("img_size", None)):
        kept["img_size"] = None if side == tuple(native) else side[0] if side[0] == side[1] else side
    arguments = ",".join(f"{key}={_canonical(value)}" for key, value in sorted(kept.items()) if value is not None)
    return Built(
        model=model.eval(),
        architecture=f"timm:{source.architecture}" + (f"({arguments})" if arguments else ""),
        input_size=size,
        filter_fn=call.get("filter_fn"),
        strict=bool(call.get("strict", True)),
        model_args=model_args,
    )


def _set_norm_eps(model: Any, eps: Any, where: str) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    if not norms or isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        problem = f"'{eps}' is no number between 0 and 1" if norms else "the model has no LayerNorm"
        raise UsageError(f"{where}: model.{NORM_EPS} is the eps of every LayerNorm: {problem}")
    for norm in norms:
        norm.eps = float(eps)


@contextmanager
def _captured_loader() -> Iterator[list[dict[str, Any]]]:
    """Stand in for timm's weight loader while a model is built, and keep the arguments it was called with.

    timm gives a family's checkpoint filter to that one function and shows it nowhere else. It is needed for the strict load of
    `vitbench.backbones.timm_weights`: timm's own load is lenient in some families, and silent about what it left out.
    """
    calls: list[dict[str, Any]] = []

    def keep(model: Any, **arguments: Any) -> None:
        calls.append({"model": model, **arguments})

    builder: Any = _builder
    with _LOADER_LOCK:
        original = builder.load_pretrained
        builder.load_pretrained = keep
        try:
            yield calls
        finally:
            builder.load_pretrained = original


def _sized(spec: BackboneSpec, source: Source, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with `img_size` for the spec's resolution where the model is built for one size."""
    if spec.resolution is None:
        return options
    side = spec.resolution
    if _pair(options.get("img_size")) not in (None, (side, side)):
        raise UsageError(f"backbone '{spec.text}': resolution={side} and model.img_size={options['img_size']} disagree")
    built_with = source.model_args | options
    if built_with.get("dynamic_img_size") or built_with.get("use_naflex"):
        return options
    if source.create_name.startswith(FOLDER_PREFIX):
        config = read_json(Path(source.create_name.removeprefix(FOLDER_PREFIX)) / "config.json")
        fixed = config.get("pretrained_cfg", config).get("fixed_input_size", False) or "img_size" in source.model_args
    else:
        entry = get_pretrained_cfg(source.create_name, allow_unregistered=True)
        fixed = entry is not None and entry.fixed_input_size
    return {**options, "img_size": (side, side)} if fixed else options


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return None


def _check_patches(where: str, model: Any, size: tuple[int, int]) -> None:
    """The patch embedding of timm drops the rows and columns beyond the last whole patch, without a word."""
    embed = getattr(model, "patch_embed", None)
    patch = _pair(getattr(embed, "patch_size", None))
    if patch is None or getattr(embed, "dynamic_img_pad", False):
        return
    for side, length in zip(size, patch, strict=True):
        if side % length:
            choices = [str(count * length) for count in (side // length, side // length + 1) if count]
            raise UsageError(
                f"{where}: {side} pixels are no multiple of the patch size {length}; the nearest that are: {', '.join(choices)}"
            )


def _build_error(where: str, source: Source, options: dict[str, Any], error: Exception) -> UsageError:
    match = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match and match[2] == "img_size":
        return UsageError(
            f"{where}: timm's '{source.architecture}' has no img_size: it cannot be built for another resolution"
        )
    if match and match[2] in options:
        module = sys.modules[model_entrypoint(source.architecture).__module__]
        known: list[str] = []
        if (owner := getattr(module, match[1], None)) is not None:
            known = [name for name in inspect.signature(owner).parameters if name not in _OWN_OPTIONS]
        close = nearest(match[2], known)
        hint = f"; did you mean {' or '.join(f'model.{name}' for name in close)}?" if close else ""
        return UsageError(f"{where}: timm's '{source.architecture}' takes no option 'model.{match[2]}'{hint}")
    if fixed := re.search(r"got multiple values for keyword argument '(\w+)'", str(error)):
        return UsageError(f"{where}: timm's '{source.architecture}' sets '{fixed[1]}' itself: drop model.{fixed[1]}")
    given = ", ".join(f"{key}={_canonical(value)}" for key, value in options.items())
    return UsageError(
        f"{where}: timm cannot build '{source.architecture}' with {given or 'its config.json'} ({one_line(error)})"
    )


def _canonical(value: Any) -> str:
    """One spelling per value: `same`, `0.1`, `true`, `[32,32]`."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
