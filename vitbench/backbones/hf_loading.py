"""Find a Hugging Face checkpoint and load its vision trunk, or say in one line why not."""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from vitbench.backbones.checkpoints import SAFETENSORS_SUFFIX, read_checkpoint, read_json
from vitbench.backbones.from_scratch import seeded
from vitbench.backbones.hf_families import Family, family_of, square_config
from vitbench.backbones.spec import BackboneSpec
from vitbench.errors import UsageError, VitbenchError, WeightsError, first_line, listed, nearest

_CONFIG = "config.json"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_TIMEOUT = 10  # seconds for the one request that finds out whether the hub can be reached

_POOLER_KEY = re.compile(r"(^|\.)pooler\.")
# What a checkpoint may hold besides the vision trunk: heads, a text tower, mask tokens, and buffers that the config determines.
_IGNORED_KEY = re.compile(
    r"^(\w+\.)?((\w+_)?classifier|decoder)\.|^(text_model|bert)\.|^(visual|text)_projection\.|^logit_(scale|bias)$"
    r"|(^|\.)mask_token$|(position_ids|relative_position_index|relative_coords_table|inv_freq|num_batches_tracked)$"
)
_READ_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, RuntimeError, KeyError, EOFError)
_READ_ERRORS += (pickle.UnpicklingError, SafetensorError, StrictDataclassError)


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is.

    Attributes:
        name: A folder or a hub id, as transformers takes it.
        config: The file `config.json`.
        arguments: What goes with `name` to every `from_pretrained`: the commit, whether to stay off the network.
        note: Which commit of the hub it is; empty for a folder.
    """

    name: str
    config: Path
    arguments: dict[str, Any]
    note: str = ""

    @property
    def local(self) -> bool:
        """It is a folder."""
        return not self.arguments


@dataclass(frozen=True)
class Loaded:
    """A vision trunk with its weights.

    Attributes:
        model: In float32, in eval mode, no parameter requires a gradient.
        untrained: The parameters that are not in the checkpoint; only a pooling layer's can be.
        ignored: The keys of the checkpoint that are no part of the trunk.
    """

    model: nn.Module
    untrained: tuple[str, ...]
    ignored: tuple[str, ...]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' and the hub's warnings, reports and progress bars off the terminal, and restore them after."""
    logs: Any = transformers_logging  # half of its functions have no types
    verbosity, bar, hub_bar = logs.get_verbosity(), logs.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logs.set_verbosity(logging.CRITICAL)
        logs.disable_progress_bar()
        disable_progress_bars()
        try:
            yield
        finally:
            logs.set_verbosity(verbosity)
            if bar:
                logs.enable_progress_bar()
            (enable_progress_bars if hub_bar else disable_progress_bars)()


def find_source(spec: BackboneSpec, where: str) -> Source:
    """The folder or the hub commit that a spec names.

    Raises:
        UsageError: There is no such folder, or the name can be neither a folder nor a hub id.
        WeightsError: The hub has no such model or cannot be reached, and the model is not in the cache.
    """
    if not spec.name:
        raise UsageError(f"{where}: name a model after 'hf:', as in hf:org/name, or a folder, as in hf:./folder")
    path = Path(spec.name).expanduser()
    if spec.revision:
        # What follows the last '@' may as well be part of a folder's name.
        whole = Path(f"{spec.name}@{spec.revision}").expanduser()
        if path.is_dir() and not whole.exists():
            raise UsageError(f"{where}: '{spec.name}' is a folder, which has no revision '{spec.revision}'")
        path = whole
    if path.is_dir():
        return _folder(path, where)
    if path.is_file():
        raise UsageError(f"{where}: '{path}' is a file; name the folder that holds config.json and the weights")
    if spec.name.startswith((".", "/", "~")) or spec.name.count("/") > 1:
        raise UsageError(f"{where}: there is no folder '{path}'{_nearest_folder(path)}")
    return _hub(spec, where)


def _folder(path: Path, where: str) -> Source:
    if not (path / _CONFIG).is_file():
        inside = sorted(child.parent for child in path.glob(f"*/{_CONFIG}"))
        hint = f"; did you mean hf:{inside[0]}?" if inside else ": it is no checkpoint of transformers"
        raise UsageError(f"{where}: folder '{path}' has no {_CONFIG}{hint}")
    return Source(str(path), path / _CONFIG, {})


def _nearest_folder(path: Path) -> str:
    siblings = [child.name for child in path.parent.iterdir() if child.is_dir()] if path.parent.is_dir() else []
    close = nearest(path.name, siblings, count=1)
    return f"; did you mean hf:{path.parent / close[0]}?" if close else ""


def _hub(spec: BackboneSpec, where: str) -> Source:
    revision = spec.revision or None
    model = f"model '{spec.name}'" + (f" (revision '{revision}')" if revision else "")
    try:
        # One request without retries: transformers' own would wait for half a minute for each file before giving up.
        get_hf_file_metadata(hf_hub_url(spec.name, _CONFIG, revision=revision), timeout=_HUB_TIMEOUT)
        config, local_only = Path(hf_hub_download(spec.name, _CONFIG, revision=revision)), False
    except HFValidationError as error:
        raise UsageError(
            f"{where}: '{spec.name}' is neither a folder nor the id of a model on the hub (org/name)"
        ) from error
    except GatedRepoError as error:
        raise WeightsError(f"{where}: {model} is gated: accept its terms on its page, then 'hf auth login'") from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"{where}: the hub has no {model}, or it is private ('hf auth login'){_nearest_folder(Path(spec.name))}"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{where}: {model} has no such revision on the hub") from error
    except RemoteEntryNotFoundError as error:
        raise WeightsError(
            f"{where}: {model} has no {_CONFIG} on the hub: it is no checkpoint of transformers"
        ) from error
    except Exception as error:  # the hub is out of reach; which exception says so depends on its HTTP library
        cached = try_to_load_from_cache(spec.name, _CONFIG, revision=revision)
        if not isinstance(cached, str):
            raise WeightsError(f"{where}: {model} is not in the cache, and {_how_to_fetch(spec, error)}") from error
        config, local_only = Path(cached), True
    # In the cache a file lies in snapshots/<commit>/. Everything else is then read from that one commit.
    commit = config.parent.name
    return Source(
        spec.name, config, {"revision": commit, "local_files_only": local_only}, f"hub commit {commit} of {spec.name}"
    )


def _how_to_fetch(spec: BackboneSpec, error: Exception) -> str:
    command = f"hf download {spec.name}" + (f" --revision {spec.revision}" if spec.revision else "")
    return (
        f"the hub cannot be reached ({first_line(error)[:80]}): run '{command}' where it can and set HF_HOME to that cache, "
        f"or name a local folder, as in hf:./folder{_nearest_folder(Path(spec.name))}"
    )


def load_config(source: Source, where: str) -> tuple[Family, Any]:
    """The family of a checkpoint and the config of its vision model.

    Raises:
        UsageError: The family is not supported.
        WeightsError: `config.json` cannot be read.
    """
    try:
        fields = json.loads(source.config.read_text(encoding="utf-8"))
        family = family_of(fields if isinstance(fields, dict) else {}, where)
        config_class = getattr(transformers, family.model_class).config_class
        config = square_config(config_class.from_pretrained(source.name, **source.arguments))
    except VitbenchError:
        raise
    except _READ_ERRORS as error:
        raise WeightsError(f"{where}: {source.config} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if config.num_channels != 3:
        raise UsageError(f"{where}: the model takes images of {config.num_channels} channels, not RGB")
    return family, config


def build(family: Family, config: Any, seed: int) -> nn.Module:
    """A model without a checkpoint, initialised by transformers as its family is; float32, eval mode, no gradients."""
    model_class = getattr(transformers, family.model_class)
    with seeded(seed):
        model: nn.Module = model_class(config)
    return model.float().eval().requires_grad_(False)


def load_weights(source: Source, family: Family, config: Any, where: str) -> Loaded:
    """Build the model and load every weight; only an untrained pooling layer may be missing.

    Raises:
        WeightsError: There are no weights, they cannot be read, or they do not fit the model.
    """
    model_class = getattr(transformers, family.model_class)
    try:
        # A missing pooling layer is newly initialised: the caller's random numbers must not depend on it.
        with torch.random.fork_rng(devices=[]):
            model, info = model_class.from_pretrained(
                source.name,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                weights_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
                **source.arguments,
            )
    except _READ_ERRORS as error:
        raise WeightsError(f"{where}: {_unreadable(error, source)}") from error
    unexpected = sorted(info["unexpected_keys"])
    # Only training reads the number of batches that a BatchNorm has seen; some files leave it out.
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("num_batches_tracked"))
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise WeightsError(
            f"{where}: {len(info['mismatched_keys'])} weights do not fit config.json; the first is {key}, "
            f"{list(found)} in the checkpoint and {list(expected)} in the model"
        )
    if lost := [key for key in missing if not _POOLER_KEY.search(key)]:
        raise WeightsError(f"{where}: the checkpoint lacks weights of the model: {listed(lost)}")
    if strange := [key for key in unexpected if not _IGNORED_KEY.search(key)]:
        raise WeightsError(
            f"{where}: the checkpoint has weights that the model of config.json lacks: {listed(strange)}"
        )
    return Loaded(model.eval().requires_grad_(False), tuple(missing), tuple(unexpected))


def stored_tensors(source: Source, names: Collection[str]) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, those that it has, in float32; only files that are already here are read.

    Raises:
        WeightsError: A file is damaged.
    """

    def find(name: str) -> Path | None:
        if source.local:
            path = Path(source.name) / name
        else:
            cached: Any = try_to_load_from_cache(source.name, name, revision=source.arguments["revision"])
            path = Path(cached) if isinstance(cached, str) else Path()
        return path if path.is_file() else None

    for file in _WEIGHT_FILES:
        if index := find(f"{file}.index.json"):
            shards: dict[str, str] = read_json(index).get("weight_map", {})
            files = sorted({shards[name] for name in names if name in shards})
        else:
            files = [file]
        if paths := [path for part in files if (path := find(part))]:
            found = [_some_tensors(path, names) for path in paths]
            return {name: tensor.float() for part in found for name, tensor in part.items()}
    return {}


def _some_tensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    if path.suffix != SAFETENSORS_SUFFIX:
        return {name: tensor for name, tensor in read_checkpoint(path).tensors.items() if name in names}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"'{path}' is damaged or incomplete ({first_line(error)}): fetch it again") from error


def _unreadable(error: BaseException, source: Source) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return f"the weights of '{source.name}' are a pickle that runs code, which is never loaded: convert it to safetensors"
    if isinstance(error, SafetensorError):
        return f"the safetensors file of '{source.name}' is damaged or incomplete ({first_line(error)}): fetch it again"
    if isinstance(error, OSError) and source.arguments.get("local_files_only"):
        return f"the weights of '{source.name}' are not in the cache: run 'hf download {source.name}' where there is network"
    return f"the weights of '{source.name}' cannot be loaded: {first_line(error)}"
