"""The typed model of a task file: every field is documented here, and an unknown one is an error that names its line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from vitbench.errors import DataError, nearest
from vitbench.validation import first_duplicate, line_of, problem_text, yaml_problem


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
        self._check_keys()
        self._check_overlap()
        if isinstance(self.source, FileSource | FolderSource) and ".." in Path(self.source.path).parts:
            raise ValueError(f"source.path: '{self.source.path}' climbs out of its folder; write an absolute path")
        for name, split in self.splits.items():
            for file in (*split.files, split.folder):
                if Path(file).is_absolute() or ".." in Path(file).parts:
                    raise ValueError(f"splits.{name}: '{file}' climbs out of its folder")
        return self

    def _check_keys(self) -> None:
        """Refuse a key that the source would not read: one that is silently ignored has cost this field many numbers."""
        own = {"imagefolder": {"folder", "fraction"}, "sklearn": {"rows"}}.get(self.source.kind, {"files"})
        for name, split in self.splits.items():
            given = {
                key for key in ("files", "folder", "rows", "fraction") if getattr(split, key) not in (None, "", ())
            }
            if wrong := sorted(given - own):
                raise ValueError(
                    f"splits.{name}: '{wrong[0]}' means nothing for a source of kind {self.source.kind}, which takes "
                    f"{' and '.join(sorted(own))}"
                )
            if "files" in own and not split.files:
                raise ValueError(f"splits.{name} names no files")

    def _check_overlap(self) -> None:
        """Refuse splits that share images, as far as the task file tells."""
        for (one, first), (other, second) in itertools.combinations(self.splits.items(), 2):
            shared = sorted(set(first.files) & set(second.files))
            if shared:
                raise ValueError(f"splits.{one} and splits.{other} share the file '{shared[0]}'")
            if self.source.kind == "sklearn":
                (start, stop), (begin, end) = first.rows or (0, 1 << 60), second.rows or (0, 1 << 60)
                if max(start, begin) < min(stop, end):
                    raise ValueError(f"splits.{one} and splits.{other} share rows")
            whole = first.fraction is None or second.fraction is None
            if self.source.kind == "imagefolder" and first.folder == second.folder and whole:
                raise ValueError(
                    f"splits.{one} and splits.{other} are the same folder: give each its folder, or each a fraction"
                )
        for folder in {split.folder for split in self.splits.values()}:
            total = sum(split.fraction or 0 for split in self.splits.values() if split.folder == folder)
            if total > 1 + 1e-9:
                raise ValueError(f"the fractions of the splits of one folder sum to {total:g}, which is above 1")


def read_task_file(path: Path) -> TaskSpec:
    """Read and validate a task file.

    Raises:
        DataError: It is no YAML, or a field is unknown, missing or wrong; the file, the line and the nearest valid field are
            named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if twice := first_duplicate(root):
            raise DataError(f"{path}:{twice[1]}: the field '{twice[0]}' is given twice")
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the task file {path}: {error}") from error
    except yaml.YAMLError as error:
        problem, line = yaml_problem(error)
        raise DataError(f"{path}{f':{line}' if line else ''}: not valid YAML: {problem}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: a task file is a mapping of fields to values, starting with `title:`")
    try:
        return TaskSpec.model_validate(data)
    except pydantic.ValidationError as error:
        raise DataError(_first_problem(error, root, path)) from error


def _first_problem(error: pydantic.ValidationError, root: yaml.Node | None, path: Path) -> str:
    problem = error.errors()[0]
    location = [part for part in problem["loc"] if part not in ("hub", "parquet", "arrow", "imagefolder", "sklearn")]
    line = line_of(root, location)
    names = [str(part) for part in location if part != "[key]"]
    field = ".".join(names)
    if problem["type"] == "extra_forbidden":
        close = nearest(names[-1], _field_names(), count=1)
        return f"{path}:{line}: unknown field '{field}'{f'; did you mean {close[0]!r}?' if close else ''}"
    if problem["type"] == "missing":
        return f"{path}:{line}: the field '{field}' is missing"
    return f"{path}:{line}: {f'{field}: ' if field else ''}{problem_text(problem)}"


def _field_names() -> list[str]:
    models: tuple[type[BaseModel], ...] = (TaskSpec, SplitSpec, HubSource, FileSource, FolderSource, SklearnSource)
    return sorted({name for model in models for name in model.model_fields})
