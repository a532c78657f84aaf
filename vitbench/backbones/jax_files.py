"""The kind `jax`: the file that a spec names, and the adapter that its ending asks for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import BackboneSpec
from vitbench.errors import UsageError, WeightsError, nearest

ADAPTERS = {
    ".npz": "vitbench.backbones.jax_npz:JaxBackbone",
    ".jaxexport": "vitbench.backbones.jax_export:JaxExportBackbone",
}


def load_jax(spec: BackboneSpec) -> Backbone:
    """Load `jax:FILE.npz`, a ViT checkpoint, or `jax:FILE.jaxexport`, an exported program.

    Raises:
        UsageError: An option that does not apply, or no file is named.
        WeightsError: The file is missing or damaged, or its ending is neither.
    """
    module, _, attribute = ADAPTERS[find_file(spec).suffix].partition(":")
    backbone: Backbone = getattr(import_module(module), attribute)(spec)
    return backbone


def find_file(spec: BackboneSpec) -> Path:
    """The file that the spec names, checked to exist and to have one of the endings that are read.

    Raises:
        UsageError: A checkpoint or constructor option, or no name.
        WeightsError: A remote file, another ending, or no such file; the nearest one there is offered.
    """
    if spec.checkpoint or spec.model_options:
        option = "checkpoint" if spec.checkpoint else f"model.{spec.model_options[0][0]}"
        raise UsageError(
            f"backbone '{spec.text}': option '{option}' does not apply to jax: the file decides everything"
        )
    if not spec.name:
        raise UsageError(f"backbone '{spec.text}' names no file: write {' or '.join(f'jax:FILE{s}' for s in ADAPTERS)}")
    path = Path(spec.name).expanduser()
    if "://" in spec.name or path.suffix not in ADAPTERS:
        raise WeightsError(
            f"backbone '{spec.text}': only local .npz checkpoints and .jaxexport programs are read: download a remote "
            "file first, and name it as jax:path/to/FILE.npz"
        )
    if path.is_file():
        return path
    if not path.parent.is_dir():
        raise WeightsError(f"backbone '{spec.text}': there is no folder '{path.parent}'")
    if path.is_dir():
        raise WeightsError(f"backbone '{spec.text}': '{path}' is a folder, not a {path.suffix} file")
    there = sorted(file.name for file in path.parent.iterdir() if file.suffix in ADAPTERS)
    offered = nearest(path.name, there) or there[:5]
    nothing = f"'{path.parent}' holds no {' or '.join(ADAPTERS)} file"
    hint = f"did you mean {' or '.join(map(repr, offered))}?" if offered else nothing
    raise WeightsError(f"backbone '{spec.text}': there is no file '{path}'; {hint}")
