"""The configuration of a run: what the command line, a YAML file and `vitbench.run` all become."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vitbench.backbones import BACKBONES
from vitbench.errors import UsageError, nearest
from vitbench.records.atomic import write_text
from vitbench.records.filesystem import url_in
from vitbench.records.remote import attach, mirror_of, url_of
from vitbench.records.store import DEFAULT_OUT
from vitbench.tasks.catalog import suite_spec
from vitbench.tasks.task import TaskOptions
from vitbench.validation import line_of, problem_text, read_yaml

AUTO = "auto"
TASK = "task"
COMMON_OPTIONS = ("shots", "seeds", "l2")
"""Options of protocols that the command line and `vitbench.run` take by their own names."""


def split_list(values: str | Iterable[str]) -> list[str]:
    """What a command line gives for a list: commas separate, but an item that names an existing path is whole."""
    parts: list[str] = []
    for value in [values] if isinstance(values, str) else values:
        whole = Path(value.removeprefix("imagefolder:")).expanduser()
        parts += [value] if "," in value and whole.exists() else value.split(",")
    return [part.strip() for part in parts if part.strip()]


def join_specs(values: str | Iterable[str]) -> list[str]:
    """What a command line gives for backbones: a comma belongs to a spec's options unless a kind (`timm:…`, `pixels`) follows."""
    specs: list[str] = []
    for value in [values] if isinstance(values, str) else values:
        for number, part in enumerate(value.split(",")):
            if number == 0 or part.split(":")[0].strip() in BACKBONES.names():
                specs.append(part)
            else:
                specs[-1] += f",{part}"
    return [spec.strip() for spec in specs if spec.strip()]


def seconds_of(text: str) -> float:
    """A duration such as `90`, `90s`, `30m`, `1h30m`, in seconds; a plain number is seconds.

    Raises:
        ValueError: It cannot be read, or is not above 0.
    """
    import pandas as pd

    plain = text.strip().removesuffix("s")
    try:
        seconds = float(plain) if plain.replace(".", "", 1).isdecimal() else float(pd.Timedelta(text).total_seconds())
    except ValueError as error:
        raise ValueError(f"is a duration such as 90s, 30m or 2h, not '{text}'") from error
    if not seconds > 0:
        raise ValueError(f"is a duration above 0, such as 90s, 30m or 2h, not '{text}'")
    return seconds


class RunConfig(BaseModel):
    """Everything that a run can be told. The defaults are the demo: they need no network and no weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbones: tuple[str, ...] = Field(
        ("demo", "pixels"), min_length=1, description="backbone specs, KIND:NAME[@REVISION][,key=value…]"
    )
    tasks: tuple[str, ...] = Field(("builtin",), min_length=1, description="task names, suites, globs, files")
    representations: tuple[str, ...] = Field(
        (AUTO,),
        min_length=1,
        description="such as cls, gap, pooler, cls+gap, gap@6; auto is all that a backbone has trained",
    )
    protocol: str = Field("fewshot", description="name of the protocol")
    options: dict[str, Any] = Field({}, description="options of the protocol, such as shots, seeds and l2")
    train_split: str = Field(
        "", description="what is learned from, such as train800 or train[:90%]; empty is the task's"
    )
    test_split: str = Field("", description="what is scored; empty is the task's own")
    task_data: dict[str, str] = Field(
        {}, description="task to the folder that its data is read from in place of its source"
    )
    accept_sizes: bool = Field(False, description="take splits of another size than expected, and record the deviation")
    offline: bool = Field(False, description="use only what has been fetched; ask the hub nothing")
    preprocess: str = Field(
        AUTO, description="auto (the backbone's own), task (the task's reference), a preset, or a preprocessing string"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = AUTO  # type: ignore[assignment]
    features_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="what features are kept as; float16 halves the store, and its records are records of their own",
    )
    device: str = Field(AUTO, description="auto, cpu, cuda, cuda:1, mps")
    batch_size: int | None = Field(
        None, ge=1, description="images per forward pass; null (auto) backs off when memory runs out"
    )
    workers: int | None = Field(
        None, ge=1, le=256, description="threads that decode images; null is one per core, at most 16"
    )
    limit: int | None = Field(
        None, ge=1, description="score only this many test images; such records never mix with full ones"
    )
    allow_untrained: bool = Field(False, description="score newly initialised weights too, marked as untrained")
    checkpoint_steps: int = Field(
        0, ge=0, description="updates between the checkpoints of a training; 0 goes by minutes alone"
    )
    checkpoint_minutes: float = Field(10.0, gt=0, description="minutes between the checkpoints of a training")
    keep_checkpoints: int = Field(2, ge=1, description="how many checkpoints of a training are kept while it lasts")
    trackers: tuple[Literal["auto", "none", "tensorboard", "wandb", "mlflow"], ...] = Field(
        ("auto",),
        description="where a training is logged beside its history; auto is TensorBoard where it is installed",
    )
    save_models: bool = Field(True, description="keep the weights that a training ends with, below models/")
    profile: bool = Field(False, description="write a trace of where the time goes below profile/")
    on_existing: Literal["skip", "rerun", "error"] = Field(
        "skip", description="what to do with records that are there already"
    )
    executor: Literal["auto", "local", "ray"] = Field(
        AUTO,  # type: ignore[arg-type]
        description="local (this process) or ray; auto is ray where this machine has several GPUs",
    )
    address: str = Field("", description="a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; empty is this machine")
    gpus_per_job: float | None = Field(
        None, ge=0, description="GPUs of one job under Ray; null is one where there are any"
    )
    cpus_per_job: int | None = Field(
        None,
        ge=1,
        description="CPU cores of one job under Ray; null is a GPU's share, else up to 4, or half where one would have all",
    )
    max_failures: int = Field(2, ge=0, description="how often a job whose worker was lost is given to another one")
    timeout_per_job: float | None = Field(
        None, gt=0, description="seconds that one piece of a job may take under Ray, or 90s, 30m, 2h; null is any"
    )
    writer: Literal["auto", "driver", "workers"] = Field(
        AUTO,  # type: ignore[arg-type]
        description="who writes features and trainings under Ray; auto is the workers where all see the output folder",
    )
    budget: float | None = Field(
        None, gt=0, description="seconds that the run may take, or 90s, 30m, 2h: what does not fit is left out"
    )
    out: Path = Field(DEFAULT_OUT, description="output folder, or a URL such as s3://bucket/runs")
    out_url: str = Field("", description="the URL that `out` mirrors; follows from `out`")

    @model_validator(mode="before")
    @classmethod
    def _mirrored(cls, data: Any) -> Any:
        """Let `out` be the folder of this machine that mirrors a URL, and `out_url` the URL; nothing is asked of it yet."""
        if not isinstance(data, dict):
            return data
        out, given = data.get("out"), str(data.get("out_url") or "")
        url = (url_in(out) or url_of(Path(out))) if isinstance(out, str | Path) else ""
        if not url and given:
            if (named := url_in(given)) is None:
                raise UsageError(f"out-url '{given}' is no URL: write such as s3://bucket/runs")
            # What another machine wrote: its mirror is elsewhere, by the same name.
            url = named if out is None or Path(out).name == mirror_of(named).name else ""
        return {**data, "out": mirror_of(url), "out_url": url} if url else {**data, "out_url": ""}

    @field_validator("timeout_per_job", "budget", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return seconds_of(value) if isinstance(value, str) else value

    @field_validator("gpus_per_job")
    @classmethod
    def _whole_or_part(cls, value: float | None) -> float | None:
        if value and value > 1 and not value.is_integer():
            raise ValueError(f"is a part of one GPU, such as 0.5, or a whole number, not {value:g}")
        return value

    @field_validator("tasks", "representations", "trackers", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return split_list(value) if isinstance(value, str) else value

    @field_validator("backbones", mode="before")
    @classmethod
    def _backbone_list(cls, value: Any) -> Any:
        return join_specs(value) if isinstance(value, str) else value

    @field_validator("backbones", "tasks", "representations")
    @classmethod
    def _no_empty_name(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip() for name in value):
            raise ValueError("has an empty name")
        return value

    @field_validator("task_data")
    @classmethod
    def _no_empty_place(cls, value: dict[str, str]) -> dict[str, str]:
        if empty := next((name for name, place in value.items() if not place.strip()), None):
            raise ValueError(f"names no folder for '{empty}'")
        return value

    @field_validator("out")
    @classmethod
    def _no_empty_path(cls, value: Path) -> Path:
        if not value.name and str(value) == ".":
            raise ValueError("is empty: name a folder, or ./ followed by one")
        return value

    @field_validator("batch_size", mode="before")
    @classmethod
    def _auto_is_none(cls, value: Any) -> Any:
        return None if value == AUTO else value

    @property
    def task_options(self) -> TaskOptions:
        """How tasks are to be read."""
        return TaskOptions(self.task_data, self.accept_sizes, self.train_split, self.test_split)

    def resolved_yaml(self) -> str:
        """The configuration as YAML that `--config` takes back."""
        fields = self.model_dump(mode="json")
        if self.out_url:
            fields["out"] = self.out_url
        return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)

    def attached(self) -> RunConfig:
        """The configuration as a process of another machine needs it: `out` is that machine's mirror, with what lies at the URL.

        Raises:
            StoreError: The URL cannot be read, or does not answer.
            UsageError: Its driver is not installed there.
        """
        return self.model_copy(update={"out": attach(self.out_url)}) if self.out_url else self

    def save(self) -> Path:
        """Write the resolved configuration below the output folder, named by its content; the file's path."""
        text = self.resolved_yaml()
        path = self.out / "configs" / f"run-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
        if not path.exists():
            write_text(path, text)
        return path


def make_config(values: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """Validate a run's configuration; values given in code or on the command line override those of the file.

    Args:
        values: Field to value; a value of None counts as not given. `options` are merged key by key. `suite`, here or in the
            file, is a suite's name: its tasks, protocol, options and preprocessing are what is not given otherwise.
        file: A YAML file with the fields of `RunConfig`.

    Raises:
        UsageError: A field is unknown or wrong; it is named, with the nearest valid one.
    """
    given = {name: value for name, value in values.items() if value is not None}
    base, root = _read_yaml(file) if file else ({}, None)
    if "out" in given:
        base.pop("out_url", None)
    suite = given.pop("suite", None) or base.pop("suite", None)
    suite_fields, suite_options = _suite(str(suite), {**base, **given}) if suite else ({}, {})
    written = base.get("options") or {}
    if not isinstance(written, dict):
        raise UsageError(f"{file}: options: a mapping of the protocol's options to values, such as `shots: [1, 5]`")
    options = {**suite_options, **written, **given.get("options", {})}
    try:
        return RunConfig.model_validate({**suite_fields, **base, **given, "options": options})
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        location = [part for part in problem["loc"] if part != "[key]"]
        name = str(location[0]) if location else ""
        place = f"{file}:{line_of(root, location)}: " if file and name not in given else ""
        if problem["type"] == "extra_forbidden":
            raise UsageError(f"{place}{_unknown_field(name)}") from error
        raise UsageError(f"{place}{name.replace('_', '-')} {problem_text(problem)}") from error


def _suite(name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a suite says of its evaluation: fields of the run, and options.

    Its options and its preprocessing belong to its own protocol: a recipe, say, has a preprocessing of its own.
    """
    spec = suite_spec(name)
    if given.get("protocol", spec.protocol) != spec.protocol:
        return {"tasks": (name,)}, {}
    return {"tasks": (name,), "protocol": spec.protocol, "preprocess": spec.preprocess}, spec.options


def _unknown_field(name: str) -> str:
    close = nearest(name, [*RunConfig.model_fields, *COMMON_OPTIONS], count=1)
    if close and close[0] in COMMON_OPTIONS:
        return f"unknown field '{name}': '{close[0]}' is an option of the protocol; in a file write it below `options:`"
    return f"unknown field '{name}'{f'; did you mean {close[0]!r}?' if close else ''}"


def _read_yaml(file: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """The fields of a file, and its document for the lines of messages."""
    try:
        data, root = read_yaml(file, UsageError)
    except FileNotFoundError as error:
        near = nearest(file.name, [path.name for path in file.parent.glob("*.y*ml")], count=1)
        raise UsageError(f"there is no file {file}{f'; did you mean {near[0]}?' if near else ''}") from error
    if not isinstance(data, dict | None):
        raise UsageError(f"{file}: a run's configuration is a mapping of fields to values, such as `tasks: [cifar10]`")
    return data or {}, root
