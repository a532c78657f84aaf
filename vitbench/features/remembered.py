"""What a backbone was when it was last loaded, so that a run whose records are all there need not load it.

A record's identity takes the digest of the loaded weights, and to have it the library must be imported, the model built and every
byte of its weights read: seconds, for a run that then finds everything done. A backbone that says which files decided what it is
(`Backbone.files`) is therefore described in a small JSON file in vitbench's cache folder: identity, representations,
preprocessing. The description counts only while everything that decided it is the same: the spec and the folder it is relative
to, the versions of the libraries, the code of the adapters, and of every file its size, both times of change (in nanoseconds)
and inode. A file that was changed within the last two seconds is not trusted to have changed its stamp, and nothing is kept.

What is remembered is only asked whether records are there. Whatever has to be embedded goes through the loaded backbone, whose
own digest is in the record: a description that were wrong could show an old record, and could not make a wrong one. A model of
the hub is remembered where loading it would take the cached file unseen (timm), and not where loading it asks the hub for its
newest commit (`hf:` without a folder).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import vitbench
from vitbench.backbones.base import Backbone, Representation
from vitbench.backbones.classifier import Classifier
from vitbench.backbones.load import device_name
from vitbench.backbones.spec import Atom, BackboneSpec, parse_backbone_spec
from vitbench.errors import StoreError
from vitbench.features.load import AUTO, preprocessing_of
from vitbench.records.atomic import write_text
from vitbench.records.identity import canonical_json
from vitbench.tasks.sources.digests import SETTLED_SECONDS, cache_folder

FOLDER = "backbones"
PLACES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME")
"""Variables that say where fetched weights lie."""
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "safetensors", "huggingface_hub", "numpy", "jax", "jaxlib")
_PLAIN = ("depth", "first_layer", "architecture", "weights_digest", "num_parameters")
_TUPLES = ("layer_poolings", "layer_dims", "input_size", "mean", "std", "provenance_notes")


class RememberedBackbone(Backbone):
    """A backbone without its weights: it can be asked what it is, and encodes nothing.

    Args:
        spec: Its spec.
        content: As `described` gives it.
        classifier: The checkpoint's own classifier, or a clause why there is none; None where nobody has looked.
    """

    def __init__(
        self, spec: BackboneSpec, content: Mapping[str, Any], classifier: Classifier | str | None = None
    ) -> None:
        self.spec, self._classifier = spec, classifier
        for name in _PLAIN:
            setattr(self, name, content[name])
        for name in _TUPLES:
            setattr(self, name, tuple(content[name]))
        self.preprocessing = str(content["preprocessing"])
        self.representations = {name: Representation(**item) for name, item in content["representations"].items()}

    @property
    def modules(self) -> Sequence[nn.Module]:
        """None: the weights are not loaded."""
        return ()

    def _stored_classifier(self) -> Classifier | str:
        if self._classifier is None:
            raise RuntimeError(f"backbone '{self.spec.text}' is only remembered: load it to look at its classifier")
        return self._classifier

    def _forward(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        raise RuntimeError(f"backbone '{self.spec.text}' is only remembered: load it to encode")


def remember(backbone: Backbone) -> None:
    """Keep what a loaded backbone is, if it says which files decided that and none of them changed a moment ago."""
    stamps = _stamps(backbone.files)
    if not stamps or stamps != _stamps(backbone.files, settled=True):
        return
    content = described(backbone) | {"files": [str(path) for path in backbone.files], "stamps": stamps}
    # Without it the next run loads the backbone, which is slower, not wrong.
    with suppress(StoreError):
        write_text(_place(backbone.spec.text), json.dumps(content))


def described(backbone: Backbone) -> dict[str, Any]:
    """What a backbone is apart from its weights, as JSON values, from which a `RememberedBackbone` is made."""
    plain = {name: getattr(backbone, name) for name in _PLAIN}
    return plain | {
        **{name: list(getattr(backbone, name)) for name in _TUPLES},
        "preprocessing": backbone.preprocessing,
        "representations": {name: asdict(item) for name, item in backbone.representations.items()},
    }


def without_weights(backbone: Backbone, classifier: bool = False) -> RememberedBackbone:
    """What a loaded backbone is, on its device and in its dtype, when its weights are not needed any more.

    Args:
        backbone: The backbone.
        classifier: Whether the checkpoint's own classifier is to be kept with it.
    """
    head = (backbone.classifier() or backbone.no_classifier) if classifier else None
    known = RememberedBackbone(backbone.spec, described(backbone), head)
    known.device, known.dtype, known.allow_untrained = backbone.device, backbone.dtype, backbone.allow_untrained
    return known


def recall(spec: str, *, device: str = "auto", allow_untrained: bool = False) -> RememberedBackbone | None:
    """The backbone of a spec as it was, on the device asked for; None where it is not known, or something changed since.

    Raises:
        UsageError: The spec cannot be read, or the device cannot be used.
    """
    parsed = parse_backbone_spec(spec)
    try:
        content = json.loads(_place(parsed.text).read_text(encoding="utf-8"))
        if not content["stamps"] or _stamps([Path(name) for name in content["files"]]) != content["stamps"]:
            return None
        backbone = RememberedBackbone(parsed, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    backbone.allow_untrained = allow_untrained
    backbone.to(device_name(device), parsed.dtype)
    if parsed.preprocess != AUTO:
        backbone.preprocessing = str(preprocessing_of(backbone))
    return backbone


def _place(spec: str) -> Path:
    """Where the description lies; its name is a digest of what, besides files, decides what a spec loads to."""
    decides = {"spec": spec, "folder": str(Path.cwd()), "home": str(Path.home()), "code": _code(), **_versions()}
    decides |= {name: os.environ.get(name, "") for name in PLACES}
    return cache_folder() / FOLDER / f"{hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:20]}.json"


@cache
def _versions() -> dict[str, str]:
    found = {"vitbench": vitbench.__version__}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


@cache
def _code() -> str:
    """Stamps of the modules that load backbones: in a checkout they change without the version."""
    folder = Path(__file__).parent.parent / "backbones"
    return canonical_json(_stamps([folder, Path(__file__)]))


def _stamps(files: Sequence[Path], settled: bool = False) -> dict[str, str]:
    """Path to stamp, of files and of every file in folders; empty where one cannot be asked, or has just changed."""
    unsettled = time.time_ns() - SETTLED_SECONDS * 1e9
    found = {}
    try:
        for path in _files(files):
            state = path.stat()
            if settled and max(state.st_mtime_ns, state.st_ctime_ns) > unsettled:
                return {}
            stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
            found[str(path.absolute())] = stamp
    except OSError:
        return {}
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        # In the hub's cache a branch's commit is a file in refs, and the commit's files lie in snapshots/<commit>.
        if path.parent.name == "snapshots":
            yield from _files([path.parent.parent / "refs"])
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if entry.is_file():
                yield path / entry.name
