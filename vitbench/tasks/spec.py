"""The typed model of a task file: every field is documented here, and an unknown one is an error that names its line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from vitbench.errors import DataError, nearest


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class HubSource(_Model):
    """Parquet files of a dataset repository on the Hugging Face hub, read without its loading script."""

    kind: Literal["hub"]
    repo: str = Field(description="repository id, such as uoft-cs/cifar10", pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(description="full commit hash, so that the data cannot change", pattern=r"^[0-9a-f]{40}$")
    image: str = Field("image", description="name of the image column")
    label: str = Field("label", description="name of the label column")


class FileSource(_Model):
    """Local parquet or arrow files."""

    kind: Literal["parquet", "arrow"]
    path: str = Field(
        "", description="the files' folder: absolute, or relative to the task file; empty for the task file's own"
    )
    image: str = Field("image", description="name of the image column")
    label: str = Field("label", description="name of the label column")


class FolderSource(_Model):
    """A folder of images: one folder per split if `splits` name them, and in it one folder per class."""

    kind: Literal["imagefolder"]
    path: str = Field(description="the folder: absolute, or relative to the task file")


class SklearnSource(_Model):
    """A data set that ships with scikit-learn."""

    kind: Literal["sklearn"]
    dataset: Literal["digits"]


Source = Annotated[HubSource | FileSource | FolderSource | SklearnSource, Field(discriminator="kind")]


class SplitSpec(_Model):
    """One split of a task."""

    files: tuple[str, ...] = Field((), description="file names or globs (hub, parquet, arrow), in order")
    folder: str = Field("", description="subfolder of an imagefolder; empty for the folder itself")
    rows: tuple[int, int] | None = Field(
        None, description="first row and the row after the last, of what is read (sklearn)"
    )
    fraction: float | None = Field(
        None, gt=0, lt=1, description="share of every class that goes to this split, by a seeded draw (imagefolder)"
    )
    size: int | None = Field(None, ge=1, description="expected number of images; another number stops the run")


class TaskSpec(_Model):
    """A task file."""

    title: str = Field(description="the data set's name as its authors write it")
    description: str = ""
    source: Source
    splits: dict[Literal["train", "validation", "test"], SplitSpec]
    num_classes: int | None = Field(None, ge=2, description="expected number of classes; another number stops the run")
    class_names: tuple[str, ...] = Field((), description="in order of label; empty when the source knows them")
    metric: Literal["accuracy"] = "accuracy"
    split_seed: int = Field(0, description="seed of the draw behind `fraction`")
    licence: str = ""
    citation: str = ""
    homepage: str = ""
    download_bytes: int | None = Field(None, ge=0, description="how much is fetched for train and test")
    notes: tuple[str, ...] = Field((), description="known traps")

    @pydantic.model_validator(mode="after")
    def _has_train_and_test(self) -> TaskSpec:
        if missing := {"train", "test"} - set(self.splits):
            raise ValueError(f"splits lack {' and '.join(sorted(missing))}")
        if self.class_names and self.num_classes not in (None, len(self.class_names)):
            raise ValueError(f"num_classes is {self.num_classes} but class_names has {len(self.class_names)} names")
        if self.source.kind in ("hub", "parquet", "arrow"):
            for name, split in self.splits.items():
                if not split.files:
                    raise ValueError(f"splits.{name} names no files")
        if isinstance(self.source, FileSource | FolderSource) and ".." in Path(self.source.path).parts:
            raise ValueError(f"source.path: '{self.source.path}' climbs out of its folder; write an absolute path")
        for name, split in self.splits.items():
            for file in (*split.files, split.folder):
                if Path(file).is_absolute() or ".." in Path(file).parts:
                    raise ValueError(f"splits.{name}: '{file}' climbs out of its folder")
        return self


def read_task_file(path: Path) -> TaskSpec:
    """Read and validate a task file.

    Raises:
        DataError: It is no YAML, or a field is unknown, missing or wrong; the file, the line and the nearest valid field are
            named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicate_keys(root, path)
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the task file {path}: {error}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{_yaml_place(error, path)}: not valid YAML: {_yaml_problem(error)}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: a task file is a mapping of fields to values, starting with `title:`")
    try:
        return TaskSpec.model_validate(data)
    except pydantic.ValidationError as error:
        raise DataError(_first_problem(error, root, path)) from error


def _first_problem(error: pydantic.ValidationError, root: yaml.Node | None, path: Path) -> str:
    problem = error.errors()[0]
    location = [part for part in problem["loc"] if part not in ("hub", "parquet", "arrow", "imagefolder", "sklearn")]
    line = _line_of(root, location)
    field = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        close = nearest(str(location[-1]), _field_names(), count=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{path}:{line}: unknown field '{field}'{hint}"
    if problem["type"] == "missing":
        return f"{path}:{line}: the field '{field}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}:{line}: {f'{field}: ' if field else ''}{message[0].lower()}{message[1:]}"


def _field_names() -> list[str]:
    models: tuple[type[BaseModel], ...] = (TaskSpec, SplitSpec, HubSource, FileSource, FolderSource, SklearnSource)
    return sorted({name for model in models for name in model.model_fields})


def _line_of(node: yaml.Node | None, location: list[Any]) -> int:
    """The 1-based line of the deepest part of `location` that the document has."""
    line = node.start_mark.line + 1 if node else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            match = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if match is None:
                break
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _refuse_duplicate_keys(node: yaml.Node | None, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise DataError(f"{path}:{key.start_mark.line + 1}: the field '{key.value}' is given twice")
            seen.add(key.value)
            _refuse_duplicate_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicate_keys(value, path)


def _yaml_place(error: yaml.YAMLError, path: Path) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _yaml_problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]
