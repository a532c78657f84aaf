"""What there is to choose from, and what one thing is, as plain rows: tasks, suites, backbones, protocols, representations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitbench.errors import unknown

KINDS = ("tasks", "suites", "backbones", "protocols", "representations")

BACKBONE_FORMS = {
    "timm": (
        "timm:vit_base_patch16_224.augreg_in21k",
        "any timm model; also hf-hub: and local-dir: names, checkpoint=FILE",
    ),
    "hf": ("hf:google/vit-base-patch16-224-in21k@main", "a Hugging Face vision model: hub id or local folder"),
    "jax": (
        "jax:B_16.npz",
        "a JAX ViT checkpoint in either numbering, hybrids included; or FILE.jaxexport, any program of jax.export",
    ),
    "pixels": ("pixels", "raw resized pixels: the floor of every leaderboard"),
}

REPRESENTATIONS = {
    "cls": "the class token after the final norm",
    "gap": "the mean of the patch tokens (or of the feature map): never class, distillation or register tokens",
    "pooler": "the model's own trained pooling layer; an alias where that is plain CLS or a plain mean",
    "cls+gap": "concatenation; any terms can be joined by +",
    "cls@6, gap@-2": "output of block 6, of the last block but one, passed through the final norm; @0 is the first block's input",
    "pixels": "the pixels baseline's only representation",
}


def listing(kind: str) -> list[dict[str, Any]]:
    """The rows of `vitbench ls KIND`.

    Raises:
        UsageError: No such kind.
    """
    if kind not in KINDS:
        raise unknown("thing to list:", kind, KINDS)
    rows: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "tasks": _tasks,
        "suites": _suites,
        "backbones": _backbones,
        "protocols": _protocols,
        "representations": _representations,
    }
    return rows[kind]()


def _tasks() -> list[dict[str, Any]]:
    from vitbench.tasks.catalog import task_files
    from vitbench.tasks.spec import read_task_file

    rows = []
    for name, path in task_files().items():
        spec = read_task_file(path)
        rows.append(
            {
                "name": name,
                "title": spec.title,
                "classes": spec.num_classes or 0,
                "train": spec.splits["train"].size or 0,
                "test": spec.splits["test"].size or 0,
                "source": getattr(spec.source, "repo", None) or spec.source.kind,
                "download_MB": round((spec.download_bytes or 0) / 1e6),
            }
        )
    return rows


def _suites() -> list[dict[str, Any]]:
    from vitbench.tasks.catalog import suites

    return [{"name": name, "tasks": ", ".join(tasks)} for name, tasks in suites().items()]


def _backbones() -> list[dict[str, Any]]:
    from vitbench.backbones import BACKBONES

    forms = {name: BACKBONE_FORMS.get(name, (f"{name}:NAME", "added by another package")) for name in BACKBONES.names()}
    return [{"kind": name, "example": form, "what": what} for name, (form, what) in forms.items()]


def _protocols() -> list[dict[str, Any]]:
    from vitbench.protocols import PROTOCOLS

    return [{"name": name, "summary": PROTOCOLS.load(name).summary} for name in PROTOCOLS.names()]


def _representations() -> list[dict[str, Any]]:
    return [{"name": name, "meaning": text} for name, text in REPRESENTATIONS.items()]


def task_fields(name: str) -> dict[str, Any]:
    """What a task file says, without loading its data.

    Raises:
        UsageError: No task is called that.
    """
    from vitbench.tasks.catalog import find_task

    full, path, spec = find_task(name)
    fields = spec.model_dump(mode="json", exclude={"class_names", "splits", "source"})
    rest = {key: value for key, value in fields.items() if key not in ("title", "description")}
    return {
        "name": full,
        "title": spec.title,
        "description": spec.description,
        "source": spec.source.model_dump(mode="json"),
        "splits": {
            split: {key: value for key, value in part.model_dump(mode="json").items() if value not in (None, [], "")}
            for split, part in spec.splits.items()
        },
        **rest,
        "class_names": ", ".join(spec.class_names),
        "file": str(path) if path else None,
    }


def backbone_fields(spec: str, device: str = "auto") -> dict[str, Any]:
    """Load a backbone and describe it.

    Raises:
        VitbenchError: It cannot be loaded.
    """
    from vitbench.features.load import load_backbone

    return describe_backbone(load_backbone(spec, device=device, allow_untrained=True))


def describe_backbone(backbone: Any) -> dict[str, Any]:
    """What a loaded backbone is: preprocessing, representations with provenance, layers, parameters, weights."""
    layered = ", ".join(
        f"{pooling}@{backbone.first_layer} … {pooling}@{backbone.depth}" for pooling in backbone.layer_poolings
    )
    return {
        "backbone": backbone.spec.text,
        "architecture": backbone.architecture,
        "parameters": backbone.num_parameters,
        "weights_sha256": backbone.weights_digest,
        "weights_notes": list(backbone.provenance_notes),
        "input": f"{backbone.input_size[0]} x {backbone.input_size[1]} pixels",
        "preprocessing": backbone.preprocessing,
        "representations": {name: _describe(item) for name, item in backbone.representations.items()},
        "layers": layered or None,
        "device": str(backbone.device),
        "dtype": backbone.dtype,
    }


def _describe(item: Any) -> str:
    if item.provenance == "absent":
        return f"absent: {item.reason}"
    alias = f", an alias of {item.alias_of}" if item.alias_of else ""
    reason = f": {item.reason}" if item.provenance == "untrained" and item.reason else ""
    return f"{item.dim:,} dimensions, {item.provenance}{reason}{alias}"
