"""A recipe: everything that decides how a backbone is trained on a task, typed, shown, hashed and recorded whole."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vitbench.errors import UsageError, nearest, unknown
from vitbench.validation import line_of, problem_text, read_yaml

SUFFIX = ".yaml"
Fraction = float

_ONLY_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "resize": ("crop", ("resmall", "resize")),
    "pad": ("crop", ("pad",)),
    "crop_area": ("crop", ("inception", "random_resized")),
    "crop_aspect": ("crop", ("inception", "random_resized")),
    "momentum": ("optimizer", ("sgd", "nesterov")),
    "momentum_dtype": ("optimizer", ("sgd", "nesterov")),
    "decay_at": ("schedule", ("step",)),
    "decay_rate": ("schedule", ("step",)),
    "final_learning_rate": ("schedule", ("cosine", "linear")),
}
"""Field to another one and the values of it under which the first has a meaning."""

_NOT_WITH_HEAD_ONLY = ("from_scratch", "layer_decay", "dropout", "drop_path", "lora")
_OWN = ("name", "description", "tasks")
"""What decides no number by itself: the texts, and what is said of other tasks."""
_OF_ALL_TASKS = ("resolution", "positions", "from_scratch")
"""What the backbone is loaded with, which happens once for all tasks of a run."""


class Lora(BaseModel):
    """Low-rank adapters (peft) in the place of training every weight; they are merged into the weights at the end."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0)
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        (), description="ends of the names of the linear layers; empty is those of attention"
    )


class Grid(BaseModel):
    """What `--tune` tries on the dev split, every combination; the highest dev accuracy wins, of equals the first tried."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: tuple[float, ...] = Field((), description="learning rates to try")
    steps: tuple[int, ...] = Field((), description="numbers of steps to try")

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if any(value <= 0 for value in (*self.learning_rate, *self.steps)):
            raise ValueError("takes numbers above 0")
        return self


class Recipe(BaseModel):
    """How a backbone is trained on a task. `tasks` says what differs for the tasks that a glob names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field("", description="the file's name without its suffix")
    description: str = Field("", description="what it is, and where it is from")
    # The model
    resolution: int | None = Field(
        None, ge=1, le=8192, description="side of the input in px; null is the backbone's own"
    )
    positions: Literal["library", "jax"] = Field(
        "library",
        description="how position embeddings are resized: as timm or transformers does, or as the JAX code does",
    )
    from_scratch: bool = Field(
        False, description="begin with newly initialised weights; those of the spec are not read"
    )
    head_only: bool = Field(False, description="train the head alone: a linear probe by gradient descent")
    head_init: Literal["zeros", "trunc_normal", "checkpoint"] = Field(
        "zeros", description="zeros, a truncated normal (std 0.02), or the checkpoint's own head where its classes fit"
    )
    dropout: Fraction = Field(
        0.0, ge=0, lt=1, description="rate of the backbone's own dropout layers, not those of attention"
    )
    head_dropout: Fraction = Field(0.0, ge=0, lt=1, description="dropout before the head")
    drop_path: Fraction = Field(
        0.0, ge=0, lt=1, description="stochastic depth of the last block; linear from 0 at the first"
    )
    lora: Lora | None = Field(None, description="train low-rank adapters only")
    # The images
    preprocess: str = Field("auto", description="evaluation preprocessing; auto is the backbone's own")
    crop: Literal["inception", "random_resized", "resmall", "resize", "pad", "none"] = Field(
        "random_resized",
        description="inception is TensorFlow's sampler, random_resized torchvision's; resmall and resize enlarge, then crop at "
        "random; pad pads, then crops at random; none is the evaluation's own geometry",
    )
    crop_area: tuple[Fraction, Fraction] = Field(
        (0.05, 1.0), description="smallest and largest share of the image's area"
    )
    crop_aspect: tuple[float, float] = Field((0.75, 4 / 3), description="smallest and largest width / height")
    resize: int | None = Field(
        None, ge=1, le=8192, description="side before a random crop; null is 448/384 of the crop's"
    )
    pad: int | None = Field(
        None, ge=1, le=4096, description="pixels of padding on every side; null is 1/8 of the crop's side"
    )
    flip: bool = Field(True, description="mirror every other image")
    randaugment: str | None = Field(None, description="timm's RandAugment, such as rand-m9-n2-mstd0.5")
    erase: Fraction = Field(0.0, ge=0, le=1, description="probability of random erasing")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 is none")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0 is none")
    label_smoothing: Fraction = Field(0.0, ge=0, lt=1)
    # The optimisation
    optimizer: Literal["sgd", "nesterov", "adamw", "lamb"] = Field("sgd", description="sgd has plain momentum")
    learning_rate: float = Field(0.01, gt=0, description="the highest one")
    momentum: Fraction = Field(0.9, ge=0, lt=1)
    momentum_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="what momentum is rounded to between steps; the JAX recipes have bfloat16"
    )
    weight_decay: float = Field(0.0, ge=0, description="not on biases and norms")
    clip_norm: float | None = Field(1.0, gt=0, description="global norm that gradients are clipped to, before momentum")
    batch_size: int = Field(512, ge=1, description="images per update; how many go through at once is --batch-size")
    steps: int = Field(500, ge=1, le=10**8, description="updates")
    warmup_steps: int = Field(
        100, ge=0, description="the learning rate rises linearly from 0, which the first update has"
    )
    schedule: Literal["cosine", "linear", "step", "constant"] = Field("cosine", description="after the warm-up")
    final_learning_rate: float = Field(0.0, ge=0, description="where cosine or linear end")
    decay_at: tuple[Fraction, ...] = Field((0.3, 0.6, 0.9), description="shares of the steps at which the rate falls")
    decay_rate: float = Field(0.1, gt=0, lt=1, description="what it is multiplied by")
    layer_decay: float = Field(1.0, gt=0, le=1, description="each block's learning rate is this times that of the next")
    ema_decay: Fraction = Field(0.0, ge=0, lt=1, description="Polyak averaging of the weights; 0 is none")
    # The choice of hyper-parameters
    grid: Grid = Field(Grid(), description="what --tune tries")
    dev_fraction: Fraction = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of each class's train images that --tune chooses on, unless the task names them",
    )
    tasks: dict[str, dict[str, Any]] = Field({}, description="glob of task names to what differs there")

    @model_validator(mode="after")
    def _tasks_differ_in_training_alone(self) -> Self:
        for pattern, values in self.tasks.items():
            if wrong := next((name for name in (*_OWN, *_OF_ALL_TASKS) if name in values), None):
                why = "the backbone is loaded once for all tasks" if wrong in _OF_ALL_TASKS else "it is the recipe's"
                raise ValueError(f"tasks: '{pattern}' cannot have its own {wrong}: {why}")
        return self

    @model_validator(mode="after")
    def _all_used(self) -> Self:
        unused = _unused(vars(self))
        if wrong := next(
            (name for name in type(self).model_fields if name in self.model_fields_set & set(unused)), None
        ):
            raise ValueError(f"{wrong} is not used {unused[wrong]}")
        if self.lora and self.from_scratch:
            raise ValueError("lora adapts trained weights, and from_scratch has none")
        if self.from_scratch and self.head_init == "checkpoint":
            raise ValueError("head_init: checkpoint has no head to begin with under from_scratch")
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} takes two numbers above 0, the smaller one first, got {low:g} and {high:g}")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area is a share of the image and at most 1, got {self.crop_area[1]:g}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be fewer than steps ({self.steps})")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate:g} is above learning_rate {self.learning_rate:g}"
            )
        return self

    def for_task(self, task: str) -> Recipe:
        """The recipe as it is for a task: every matching entry of `tasks` applied in order, and none left.

        Args:
            task: Full name, such as `paper/cifar10`; a glob may also match its last part.

        Raises:
            UsageError: Several entries match, or the command line says otherwise, and together they cannot be meant.
        """
        merged = self.model_dump(exclude_unset=True, exclude={"tasks"})
        for pattern, values in self.tasks.items():
            if any(fnmatch.fnmatchcase(name, pattern) for name in (task, task.rpartition("/")[2])):
                merged = _over(merged, values)
        return validated(merged, f"recipe '{self.name}' for {task}")

    def parameters(self) -> dict[str, Any]:
        """Every field that can change a number, as JSON values, for the identity."""
        return self.model_dump(mode="json", exclude={*_OWN, *_unused(vars(self))})

    def trials(self) -> list[Recipe]:
        """The recipes that `--tune` tries, in order; this one alone when the grid is empty."""
        rates = self.grid.learning_rate or (self.learning_rate,)
        lengths = self.grid.steps or (self.steps,)
        return [self.changed(learning_rate=rate, steps=steps) for steps in lengths for rate in rates]

    def changed(self, **values: Any) -> Recipe:
        """A copy with other values, validated.

        Raises:
            UsageError: They cannot be meant.
        """
        return validated(self.model_dump(exclude_unset=True) | values, f"recipe '{self.name}'")


def load_recipe(given: str, folders: Sequence[Path], overrides: Mapping[str, Any]) -> Recipe:
    """The recipe that a user names, with what the command line overrides.

    Args:
        given: A recipe's name, or the path of a YAML file.
        folders: Where named recipes are, the first with the name wins.
        overrides: Field to value, or text to be read as YAML (`learning_rate` to `"0.03"`); `grid.learning_rate` and
            `lora.rank` name fields of fields. They go before the file and what it says of single tasks.

    Raises:
        UsageError: There is no such recipe, a field is unknown or unused, or a value cannot be meant.
    """
    path = _find(given, folders)
    data, root = read_yaml(path, UsageError)
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a recipe is a mapping of fields to values, such as `learning_rate: 0.03`")
    written = validated({"name": path.stem, **data}, str(path), root)
    for pattern, values in written.tasks.items():
        validated(_over({**data, "tasks": {}}, values), f"{path}: tasks: '{pattern}'")
    own = _nested(overrides)
    if fixed := next((name for name in _OWN if name in own), None):
        raise UsageError(f"recipe '{path.stem}': {fixed} is for the file, and no field to override")
    top = _over({"name": path.stem, **data}, own)
    kept = {pattern: _without(values, own) for pattern, values in written.tasks.items()}
    return validated({**top, "tasks": kept}, f"recipe '{path.stem}' with {', '.join(overrides)}" if own else str(path))


def recipe_names(folders: Sequence[Path]) -> list[str]:
    """The names of the recipes in some folders, in order."""
    return sorted({path.stem for folder in folders for path in folder.glob(f"*{SUFFIX}")})


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that `--recipe` takes back."""
    plain = recipe.model_dump(mode="json", exclude={"name", *_unused(vars(recipe))})
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def validated(values: Mapping[str, Any], where: str, root: yaml.Node | None = None) -> Recipe:
    """A recipe of these fields.

    Raises:
        UsageError: A field is unknown (the nearest is offered) or unused, or a value cannot be meant.
    """
    try:
        return Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        location = [str(part) for part in problem["loc"]]
        line = f"{where}:{line_of(root, location)}" if root is not None else where
        if problem["type"] == "extra_forbidden":
            models: dict[str, type[BaseModel]] = {"grid": Grid, "lora": Lora}
            fields = models.get(location[0], Recipe).model_fields
            close = nearest(location[-1], fields, count=1)
            hint = f"; did you mean {close[0]}?" if close else f" (it has {', '.join(fields)})"
            raise UsageError(f"{line}: a recipe has no field '{'.'.join(location)}'{hint}") from error
        name = f"{'.'.join(location)} " if location else ""
        raise UsageError(f"{line}: {name}{problem_text(problem)}") from error


def _unused(values: Mapping[str, Any]) -> dict[str, str]:
    """The fields that have no meaning beside the others, each with the reason."""
    found = {}
    for name, (other, meant) in _ONLY_WITH.items():
        value = values.get(other, Recipe.model_fields[other].default)
        if value not in meant:
            found[name] = f"with {other}: {value} (it belongs to {' or '.join(meant)})"
    if values.get("head_only") is True:
        found |= dict.fromkeys(_NOT_WITH_HEAD_ONLY, "with head_only, which trains no weight of the backbone")
    return found


def _find(given: str, folders: Sequence[Path]) -> Path:
    path = Path(given).expanduser()
    if path.suffix in (SUFFIX, ".yml") or len(path.parts) > 1:
        if path.is_file():
            return path
        near = nearest(path.name, [other.name for other in path.parent.glob("*.y*ml")], count=1)
        raise UsageError(f"there is no recipe {path}{f'; did you mean {path.parent / near[0]}?' if near else ''}")
    for folder in folders:
        if (found := folder / f"{given}{SUFFIX}").is_file():
            return found
    raise unknown("recipe", given, recipe_names(folders), hint="vitbench ls recipes, or a file: --recipe ./mine.yaml")


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"grid.steps": "100", "flip": "no"}` as `{"grid": {"steps": [100]}, "flip": False}`."""
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        outer, _, inner = name.partition(".")
        read = _read(value)
        if inner:
            found.setdefault(outer, {})[inner] = [read] if isinstance(read, int | float) and outer == "grid" else read
        else:
            found[outer] = read
    return found


def _read(value: Any) -> Any:
    """A text of the command line as YAML reads it, and commas as a list; `1e-3`, which YAML calls a text, as a number."""
    if not isinstance(value, str):
        return value
    if "," in value and "(" not in value and not value.startswith(("[", "{", "rand-")):
        return [_read(part.strip()) for part in value.split(",") if part.strip()]
    try:
        return (
            float(value) if value.lower().lstrip("+-")[:1].isdigit() and "e" in value.lower() else yaml.safe_load(value)
        )
    except (ValueError, yaml.YAMLError):
        return value


def _over(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with others laid over them. What the first say of a thing that the others do away with is no mistake: it goes."""
    merged = dict(values)
    for name, value in own.items():
        below = merged.get(name)
        merged[name] = {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
    return {name: value for name, value in merged.items() if name in own or name not in _unused(merged)}


def _without(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of single tasks, less what the command line says of all."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name not in own:
            kept[name] = value
        elif isinstance(value, dict) and isinstance(own[name], dict):
            kept[name] = {**value, **own[name]}
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]
