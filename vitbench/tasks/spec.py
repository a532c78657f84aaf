"""The typed model of a task file: every field is documented here, and an unknown one is an error that names its line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, Field

from vitbench.errors import DataError, VitbenchError, nearest
from vitbench.tasks.source_spec import RULE_MODELS, SOURCE_MODELS, HubSource, Source, Strict, Threshold
from vitbench.tasks.splits import RowSet, parse, resolve, whole
from vitbench.validation import line_of, problem_text, read_yaml

Metric = Literal["accuracy", "top5_accuracy", "mean_per_class_accuracy", "multilabel_hit"]
SplitName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class SplitSpec(Strict):
    """One split of a task: stored (`files`, `folder`, `fraction` or `rows` say where), or selected from other splits."""

    files: tuple[str, ...] = Field((), description="file names or globs, in order (sources that are made of files)")
    folder: str = Field("", description="subfolder of an imagefolder; empty for the folder itself")
    rows: tuple[int, int] | None = Field(
        None, description="first row and the row after the last, of what is read (sklearn, synthetic)"
    )
    fraction: float | None = Field(
        None, gt=0, lt=1, description="share of every class that goes to this split, by a seeded draw (imagefolder)"
    )
    select: str = Field("", description="rows of other splits, such as train[:800]+validation[:200] or train[90%:]")
    index: str = Field(
        "",
        description="text file with one row number a line: these rows of `select`, in that order; beside the task file",
    )
    size: int | None = Field(None, ge=1, description="expected number of images; another number stops the run")
    partial: bool = Field(False, description="a small draw that may lack some classes, such as VTAB-1k's train800")


class Evaluation(Strict):
    """Which splits a protocol reads, by name; `--train-split` and `--test-split` take others."""

    train: SplitName = Field("train", description="what is learned from")
    test: SplitName = Field("test", description="what is scored")
    tune_train: SplitName | None = Field(None, description="what is learned from while a hyper-parameter is chosen")
    tune_validation: SplitName | None = Field(None, description="what chooses a hyper-parameter: never test images")


class TaskSpec(Strict):
    """A task file."""

    title: str = Field(description="the data set's name as its authors write it")
    description: str = ""
    source: Source
    splits: dict[SplitName, SplitSpec] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    num_classes: int | None = Field(None, ge=2, description="expected number of classes; another number stops the run")
    class_names: tuple[str, ...] = Field((), description="in order of label; empty when the source knows them")
    metric: Metric = Field("accuracy", description="the score that tables show")
    label_sets: Literal["imagenet_real"] | None = Field(
        None,
        description="a second set of labels for the test images: several right ones each, scored by multilabel_hit",
    )
    chance: float | None = Field(None, gt=0, lt=1, description="expected score of a guess; 1 / num_classes if left out")
    preprocess: str = Field("", description="the preset of the task's reference protocol; used by --preprocess task")
    split_seed: int = Field(0, ge=0, description="seed of the draw behind `fraction`")
    unverified: bool = Field(False, description="nobody has seen this source on the hub: the first fetch will tell")
    synthetic: bool = Field(
        False, description="rendered by a program, not photographed: said wherever a score is shown"
    )
    licence: str = ""
    citation: str = ""
    homepage: str = ""
    download_bytes: int | None = Field(
        None, ge=0, description="size of what the train and test splits in use fetch; null when nobody has measured it"
    )
    notes: tuple[str, ...] = Field((), description="known traps")

    @property
    def selections(self) -> dict[str, str]:
        """Name to expression, of the splits that are selected from others."""
        return {name: split.select for name, split in self.splits.items() if split.select}

    @property
    def stored(self) -> dict[str, SplitSpec]:
        """The splits that are stored themselves."""
        return {name: split for name, split in self.splits.items() if not split.select}

    def used(self) -> list[str]:
        """The names of the splits that its evaluation reads, those for tuning last."""
        names = self.evaluation
        return [name for name in (names.train, names.test, names.tune_train, names.tune_validation) if name is not None]

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> TaskSpec:
        if missing := set(self.used()) - set(self.splits):
            raise ValueError(f"splits lack {' and '.join(sorted(missing))}")
        if (self.evaluation.tune_train is None) != (self.evaluation.tune_validation is None):
            raise ValueError("evaluation: tune_train and tune_validation are given together or not at all")
        if self.class_names and self.num_classes not in (None, len(self.class_names)):
            raise ValueError(f"num_classes is {self.num_classes} but class_names has {len(self.class_names)} names")
        if twice := next((name for name in self.class_names if self.class_names.count(name) > 1), None):
            raise ValueError(f"class_names has '{twice}' twice")
        if self.metric == "top5_accuracy" and (self.num_classes or 5) < 5:
            raise ValueError(f"metric: top5_accuracy means nothing for {self.num_classes} classes")
        if isinstance(self.source, HubSource) and not self.source.revision and not self.unverified:
            raise ValueError("source.revision is missing: pin the full commit hash")
        rule = getattr(self.source, "label_rule", None)
        if isinstance(rule, Threshold) and self.num_classes not in (None, rule.buckets):
            raise ValueError(f"num_classes is {self.num_classes} but the thresholds make {rule.buckets} buckets")
        self._check_keys()
        self._check_paths()
        self._check_stored()
        self._check_selected()
        return self

    def _check_paths(self) -> None:
        if ".." in Path(getattr(self.source, "path", "")).parts:
            raise ValueError(
                f"source.path: '{getattr(self.source, 'path', '')}' climbs out of its folder; write an absolute path"
            )
        named = [("source.class_names_file", getattr(self.source, "class_names_file", ""))]
        named += [
            (f"splits.{name}", file)
            for name, split in self.splits.items()
            for file in (*split.files, split.folder, split.index)
        ]
        for field, file in named:
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise ValueError(f"{field}: '{file}' climbs out of its folder")

    def _check_keys(self) -> None:
        """Refuse a key that the source would not read: one that is silently ignored has cost this field many numbers."""
        for name, split in self.splits.items():
            given = {
                key for key in ("files", "folder", "rows", "fraction") if getattr(split, key) not in (None, "", ())
            }
            own = self.source.own_keys
            if split.select and given:
                raise ValueError(
                    f"splits.{name}: 'select' takes rows of other splits, so '{min(given)}' has no meaning"
                )
            if split.index and not split.select:
                raise ValueError(f"splits.{name}: 'index' numbers the rows of a split that 'select' names")
            if wrong := sorted(given - own):
                raise ValueError(
                    f"splits.{name}: '{wrong[0]}' means nothing for a source of kind {self.source.kind}, which takes "
                    f"{' and '.join(sorted(own))}"
                )
            if "files" in own and not split.files and not split.select:
                raise ValueError(f"splits.{name} names no files")

    def _check_stored(self) -> None:
        """Refuse stored splits that share images, as far as the task file tells."""
        for (one, first), (other, second) in itertools.combinations(self.stored.items(), 2):
            shared = sorted(set(first.files) & set(second.files))
            per_split_arrays = "{split}" in getattr(self.source, "image", "")
            if shared and not per_split_arrays:
                raise ValueError(f"splits.{one} and splits.{other} share the file '{shared[0]}'")
            if "rows" in self.source.own_keys:
                (start, stop), (begin, end) = first.rows or (0, 1 << 60), second.rows or (0, 1 << 60)
                if max(start, begin) < min(stop, end):
                    raise ValueError(f"splits.{one} and splits.{other} share rows")
            undrawn = first.fraction is None or second.fraction is None
            if self.source.kind == "imagefolder" and first.folder == second.folder and undrawn:
                raise ValueError(
                    f"splits.{one} and splits.{other} are the same folder: give each its folder, or each a fraction"
                )
        for folder in {split.folder for split in self.stored.values()}:
            total = sum(split.fraction or 0 for split in self.stored.values() if split.folder == folder)
            if total > 1 + 1e-9:
                raise ValueError(f"the fractions of the splits of one folder sum to {total:g}, which is above 1")

    def _check_selected(self) -> None:
        """Resolve what the sizes in the file allow; refuse slices outside their split, and train images among the test's."""
        rows: dict[str, RowSet | None] = {}
        for name, split in self.splits.items():
            try:
                rows[name] = self._declared_rows(name)
            except VitbenchError as error:
                raise ValueError(f"splits.{name}: {error}") from error
            known = rows[name]
            if known is None or split.size is None:
                continue
            if len(known) != split.size:
                raise ValueError(f"splits.{name}: size is {split.size} but '{split.select}' takes {len(known)} rows")
        for one, other in self.disjoint():
            first, second = rows[one], rows[other]
            if first and second:
                check_disjoint(one, first, other, second, ValueError)

    def disjoint(self) -> Iterator[tuple[str, str]]:
        """The pairs of splits that must share no image: train and test, and what tunes with what it is chosen on or tested on."""
        names = self.evaluation
        yield names.train, names.test
        if names.tune_train is not None and names.tune_validation is not None:
            yield names.tune_train, names.tune_validation
            yield names.tune_train, names.test
            yield names.tune_validation, names.test

    def _declared_rows(self, name: str) -> RowSet | None:
        """The rows of a split by the sizes that the file declares; None when a size that is needed, or an index, is not."""
        if any(self.splits[part].index for part in self._parts(name) if part in self.splits):
            return None
        unknown_size = False

        def stored(base: str) -> RowSet | None:
            nonlocal unknown_size
            split = self.stored.get(base)
            if split is None:
                return None
            unknown_size = unknown_size or split.size is None
            return whole(base, split.size or 1 << 40)

        try:
            found = resolve(name, self.selections, stored)
        except DataError:
            if unknown_size:
                return None  # where a slice ends is known when the data is read
            raise
        return None if unknown_size else found

    def _parts(self, name: str) -> set[str]:
        """The names of the splits that a split is made of, itself included."""
        named, waiting = {name}, [name]
        while waiting:
            expression = self.selections.get(waiting.pop())
            new = {term.name for term in parse(expression)} - named if expression else set()
            named |= new
            waiting += new
        return named

    def stored_parts(self, expression: str) -> set[str]:
        """The names of the stored splits that an expression takes rows of.

        Raises:
            UsageError: The expression cannot be read.
        """
        return {part for term in parse(expression) for part in self._parts(term.name) if part in self.stored}


def check_disjoint(one: str, first: RowSet, other: str, second: RowSet, error: type[Exception] = DataError) -> None:
    """Refuse two splits that share rows.

    Raises:
        DataError: They do (or `error`, where one is given); a shared row is named.
    """
    count, base, row = first.shared(second)
    if count:
        raise error(f"the splits '{one}' and '{other}' share {count:,} images, such as row {row} of '{base}'")


def read_task_file(path: Path) -> TaskSpec:
    """Read and validate a task file.

    Raises:
        DataError: It is no YAML, or a field is unknown, missing or wrong; the file, the line and the nearest valid field are
            named.
    """
    try:
        data, root = read_yaml(path, DataError)
    except FileNotFoundError as error:
        raise DataError(f"there is no task file {path}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: a task file is a mapping of fields to values, starting with `title:`")
    try:
        return TaskSpec.model_validate(data)
    except pydantic.ValidationError as error:
        raise DataError(_first_problem(error, root, path)) from error


def _first_problem(error: pydantic.ValidationError, root: yaml.Node | None, path: Path) -> str:
    problem = error.errors()[0]
    location: list[Any] = [part for part in problem["loc"] if part not in _TAGS]
    # The checks of the whole file start their message with the field they are about.
    told = None if location else re.match(r"Value error, ([\w.]+)", problem["msg"])
    line = line_of(root, told[1].split(".") if told else location)
    names = [str(part) for part in location if part != "[key]"]
    field = ".".join(names)
    if problem["type"] == "extra_forbidden":
        close = nearest(names[-1], _field_names(), count=1)
        return f"{path}:{line}: unknown field '{field}'{f'; did you mean {close[0]!r}?' if close else ''}"
    if problem["type"] == "missing":
        return f"{path}:{line}: the field '{field}' is missing"
    return f"{path}:{line}: {f'{field}: ' if field else ''}{problem_text(problem)}"


def _field_names() -> list[str]:
    models: tuple[type[BaseModel], ...] = (TaskSpec, SplitSpec, Evaluation, *SOURCE_MODELS, *RULE_MODELS)
    return sorted({name for model in models for name in model.model_fields})


_TAGS = frozenset(
    tag
    for model in (*SOURCE_MODELS, *RULE_MODELS)
    for tag in model.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
)
"""What pydantic adds to the path of a field inside a part that has kinds."""
