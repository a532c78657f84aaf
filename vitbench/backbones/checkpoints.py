"""Weight files: read without running anything that is inside them, and fetched from the Hub only when they are not cached."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitbench.errors import WeightsError, nearest, one_line
from vitbench.hub import check_reachable

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WRAPPER_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "encoder")
"""Where training scripts keep the weights inside their checkpoints; the first that is there is taken."""
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file.

    Attributes:
        path: The file.
        tensors: Name to tensor, on the CPU; every floating tensor is float32, whatever the file has.
        notes: What was done to the file's content, as lines for `Backbone.provenance_notes`.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def find_file(path: str | Path, where: str) -> Path:
    """The local file `path`, with `~` expanded.

    Args:
        path: A file, absolute or relative to the working directory.
        where: What names it, for the error message (`"backbone 'timm:…'"`).

    Raises:
        WeightsError: There is no such file (the nearest in its folder are offered), or it is a folder.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        names = sorted(child.name for child in file.iterdir() if child.suffix in (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))
        inside = f" (it has {', '.join(names[:4])})" if names else ""
        raise WeightsError(f"{where}: checkpoint '{path}' is a folder: name the file in it{inside}")
    if file.is_file():
        return file
    if not file.parent.is_dir():
        raise WeightsError(f"{where}: checkpoint '{path}' does not exist, nor does the folder '{file.parent}'")
    close = nearest(file.name, (child.name for child in file.parent.iterdir() if child.is_file()))
    hint = f"; did you mean {' or '.join(repr(str(file.with_name(name))) for name in close)}?" if close else ""
    raise WeightsError(f"{where}: checkpoint '{path}' does not exist{hint}")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `.safetensors` file, or a torch file of tensors (`.pt`, `.pth`, `.bin`, `.ckpt`, `.tar`).

    A torch file is read with `weights_only=True`: it can hold no code that would run. Of a training checkpoint the weights are
    taken (see `WRAPPER_KEYS`), and `WRAPPER_PREFIXES` are removed where every name has them.

    Raises:
        WeightsError: The file is damaged, is no checkpoint, or holds more than tensors and plain values.
    """
    if path.suffix == SAFETENSORS_SUFFIX:
        content: Any = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
    else:
        suffixes = ", ".join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))
        raise WeightsError(
            f"checkpoint '{path}' has an unknown suffix '{path.suffix}': weights are read from {suffixes}"
        )
    found, notes = _unwrap(content, path)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
    return Checkpoint(path, tensors, notes)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, "safetensors file", error) from error
    return tensors


def _read_torch(path: Path) -> Any:
    try:
        # timm's training script stores its arguments as a Namespace, a plain bag of values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file's bytes torch makes errors of any kind
        if isinstance(error, pickle.UnpicklingError) and (blocked := re.search(r"GLOBAL (\S+)", str(error))):
            raise WeightsError(
                f"checkpoint '{path}' holds more than tensors (a pickled {blocked[1]}) and is not unpickled, as that could "
                "run any code: save its state dict as safetensors, on a machine that trusts it"
            ) from error
        if "TorchScript" in str(error):
            raise WeightsError(f"checkpoint '{path}' is a TorchScript program: save its state dict instead") from error
        raise _damaged(path, "torch checkpoint", error) from error


def _damaged(path: Path, kind: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"checkpoint '{path}' ({path.stat().st_size} bytes) is no {kind} that can be read, or is truncated or damaged "
        f"({one_line(error)}): fetch it again, or see what it is"
    )


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The named tensors of what a file holds, and notes on where they were."""
    notes = []
    if isinstance(content, Mapping):
        wrapper = next((key for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if wrapper is not None:
            notes.append(f"the weights are '{wrapper}' of the checkpoint (it has: {', '.join(map(str, content))})")
            content = content[wrapper]
    tensors = (
        {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        holds = f"keys {', '.join(map(str, content))}"[:120] if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"checkpoint '{path}' holds no state dict (it has: {holds})")
    stripped = True
    while stripped:
        stripped = False
        for prefix in WRAPPER_PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                notes.append(f"the prefix '{prefix}' was removed from every name")
                stripped = True
    return tensors, tuple(notes)


def fetch_from_hub(repository: str, filenames: Sequence[str], revision: str = "") -> Path:
    """The first of `filenames` that the Hub's `repository` has, from the cache if it is there.

    A cached file is taken as it is, without a look at the network. Where the Hub cannot be reached the error comes within
    seconds: huggingface_hub itself would retry for half a minute.

    Args:
        repository: `organisation/name`.
        filenames: Names to try, the most wanted first.
        revision: A branch, tag or commit; empty for the default branch.

    Raises:
        WeightsError: It is neither cached nor can it be fetched, or there is no such repository or file.
    """
    wanted = f"'{repository}'" + (f" at revision '{revision}'" if revision else "")
    try:
        for filename in filenames:
            try:
                return Path(hf_hub_download(repository, filename, revision=revision or None, local_files_only=True))
            except LocalEntryNotFoundError:
                continue
        check_reachable()
        for filename in filenames:
            try:
                return Path(hf_hub_download(repository, filename, revision=revision or None))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
    except HFValidationError as error:
        raise WeightsError(f"{wanted} is no Hub repository: write organisation/name ({one_line(error)})") from error
    except HfHubHTTPError as error:
        raise WeightsError(
            f"the Hub does not give {wanted}: {one_line(error)}; check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # of OSError, requests or httpx, as the version of huggingface_hub has it
        option = f" --revision {revision}" if revision else ""
        raise WeightsError(
            f"{wanted} is not in the local cache and the Hub cannot be reached: run `hf download {repository}{option}` on a "
            f"machine with network and copy its HF_HOME cache here, or give the weights by checkpoint=FILE ({one_line(error)})"
        ) from error
    raise WeightsError(f"{wanted} on the Hub has none of the files {', '.join(filenames)}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, such as a model's `config.json`.

    Raises:
        WeightsError: The file does not exist, or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"there is no file '{path}'") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"'{path}' cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"'{path}' is not a JSON object")
    return content
