"""What there is to choose from, and what one thing is, as plain rows: tasks, suites, backbones, protocols, representations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vitbench.errors import UsageError, listed, unknown

if TYPE_CHECKING:
    from vitbench.tasks.spec import SplitSpec

KINDS = ("tasks", "suites", "backbones", "protocols", "recipes", "representations")

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
    "demo": ("demo", "a small ViT for 32 px that ships with vitbench: for a first run, not for research"),
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
        "recipes": _recipes,
        "representations": _representations,
    }
    return rows[kind]()


def _tasks() -> list[dict[str, Any]]:
    from vitbench.tasks.catalog import task_files
    from vitbench.tasks.spec import read_task_file

    rows = []
    for name, path in task_files().items():
        spec = read_task_file(path)
        marks = {"unverified": spec.unverified, "synthetic": spec.synthetic, spec.metric: spec.metric != "accuracy"}
        rows.append(
            {
                "name": name,
                "title": spec.title,
                "classes": spec.num_classes or 0,
                "train": spec.splits[spec.evaluation.train].size or 0,
                "test": spec.splits[spec.evaluation.test].size or 0,
                "MB": "?" if spec.download_bytes is None else round(spec.download_bytes / 1e6),
                "notes": ", ".join(mark for mark, holds in marks.items() if holds),
            }
        )
    return rows


def _recipes() -> list[dict[str, Any]]:
    from vitbench.training.recipe import load_recipe, recipe_names
    from vitbench.training.recipe_files import recipe_folders

    rows = []
    for name in recipe_names(recipe_folders()):
        recipe = load_recipe(name, recipe_folders(), {})
        rows.append(
            {
                "name": name,
                "optimizer": recipe.optimizer,
                "learning rate": f"{recipe.learning_rate:g}",
                "batch": recipe.batch_size,
                "steps": recipe.steps,
                "px": recipe.resolution or "own",
                "--tune tries": len(recipe.trials()) if len(recipe.trials()) > 1 else "",
                "what it is": recipe.description,
            }
        )
    return rows


def recipe_fields(name: str, task: str = "", overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that a recipe says, field by field.

    Args:
        name: A recipe's name or file.
        task: A task, for which the recipe is shown; empty for the recipe as it is written.
        overrides: Fields that are set otherwise.

    Raises:
        UsageError: There is no such recipe, or a field cannot be meant.
    """
    from vitbench.tasks.catalog import expand_tasks, own_name
    from vitbench.training.recipe import load_recipe
    from vitbench.training.recipe_files import recipe_folders

    recipe = load_recipe(name, recipe_folders(), overrides or {})
    found = {"name": recipe.name, "description": recipe.description}
    if task:
        names = expand_tasks([task])
        if len(names) > 1:
            raise UsageError(f"'{task}' means {len(names)} tasks, and a recipe is shown for one: {listed(names)}")
        full = own_name(names[0])
        return found | {"task": full} | recipe.for_task(full).parameters()
    return found | recipe.parameters() | {"tasks": recipe.tasks}


def _suites() -> list[dict[str, Any]]:
    from vitbench.tasks.catalog import SUITE_FILE, suite_spec, suites, task_folder

    rows = []
    for name, tasks in suites().items():
        own = suite_spec(name) if (task_folder() / name / SUITE_FILE).is_file() else None
        rows.append(
            {
                "name": name,
                "title": own.title if own else "",
                "tasks": len(tasks),
                "--suite runs": f"{own.protocol}, preprocess {own.preprocess}" if own else "",
            }
        )
    return rows


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
    source = spec.source.model_dump(mode="json", exclude_defaults=True, exclude_none=True) | {"kind": spec.source.kind}
    if spec.source.kind == "hub":
        source["revision"] = spec.source.revision or "not pinned: the first fetch pins it"
    rest = spec.model_dump(
        mode="json", exclude={"title", "description", "source", "splits", "class_names", "evaluation"}
    )
    rest["download_bytes"] = "not measured" if spec.download_bytes is None else spec.download_bytes
    hidden = () if any(split.fraction for split in spec.splits.values()) else ("split_seed",)
    return {
        "name": full,
        "title": spec.title,
        "description": spec.description,
        "source": source,
        "splits": {split: _split_text(part) for split, part in spec.splits.items()},
        "evaluation": ", ".join(f"{role} {split}" for role, split in spec.evaluation if split),
        **{key: value for key, value in rest.items() if key not in hidden},
        "class_names": ", ".join(spec.class_names),
        "file": str(path) if path else None,
    }


def _split_text(part: SplitSpec) -> str:
    """One split on one line: where it is from, and how many images it should have."""
    parts = [
        ", ".join(part.files),
        part.folder and f"folder {part.folder}",
        part.rows and f"rows {part.rows[0]} to {part.rows[1]}",
        part.fraction and f"{part.fraction:.0%} of every class",
        part.select,
        part.index and f"rows listed in {part.index}",
        part.size and f"{part.size:,} images",
        "may lack classes" if part.partial else "",
    ]
    return " · ".join(str(text) for text in parts if text)


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
