"""The configuration of a run: what the command line, a YAML file and `vitbench.run` all become."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from vitbench.backbones import BACKBONES
from vitbench.errors import UsageError, nearest, unknown
from vitbench.records.atomic import write_text
from vitbench.records.store import DEFAULT_OUT

AUTO = "auto"


def split_list(value: Any) -> Any:
    """`"a,b"`, `["a,b", "c"]` and `["a", "b", "c"]` are all lists; a comma inside parentheses or before `key=` does not split."""
    if isinstance(value, str | int | float):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())


class RunConfig(BaseModel):
    """Everything that a run can be told. The defaults are the demo: they need no network and no weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbones: tuple[str, ...] = Field(
        ("pixels",), min_length=1, description="backbone specs, KIND:NAME[@REVISION][,key=value…]"
    )
    tasks: tuple[str, ...] = Field(("builtin/digits",), min_length=1, description="task names, suites, globs, files")
    representations: tuple[str, ...] = Field(
        (AUTO,),
        min_length=1,
        description="such as cls, gap, pooler, cls+gap, gap@6; auto is all that a backbone has trained",
    )
    protocol: str = Field("fewshot", description="name of the protocol")
    options: dict[str, Any] = Field({}, description="options of the protocol, such as shots, seeds and l2")
    preprocess: str = Field(AUTO, description="auto (the backbone's own), a preset, or a preprocessing string")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = AUTO  # type: ignore[assignment]
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
    on_existing: Literal["skip", "rerun", "error"] = Field(
        "skip", description="what to do with records that are there already"
    )
    out: Path = Field(DEFAULT_OUT, description="output folder")

    @field_validator("tasks", "representations", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("backbones", mode="before")
    @classmethod
    def _backbone_list(cls, value: Any) -> Any:
        """A comma belongs to a spec's options, so only a part that begins with a kind (`timm:…`, `pixels`) starts a new spec."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple):
            return value
        specs: list[str] = []
        for item in value:
            first = True
            for part in str(item).split(","):
                if first or part.split(":")[0].strip() in BACKBONES.names():
                    specs.append(part)
                else:
                    specs[-1] += f",{part}"
                first = False
        return tuple(spec.strip() for spec in specs if spec.strip())

    @field_validator("batch_size", mode="before")
    @classmethod
    def _auto_is_none(cls, value: Any) -> Any:
        return None if value == AUTO else value

    def resolved_yaml(self) -> str:
        """The configuration as YAML that `--config` takes back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

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
        values: Field to value; a value of None counts as not given. `options` are merged key by key.
        file: A YAML file with the fields of `RunConfig`.

    Raises:
        UsageError: A field is unknown or wrong; it is named, with the nearest valid one.
    """
    given = {name: value for name, value in values.items() if value is not None}
    base = _read_yaml(file) if file else {}
    options = {**base.get("options", {}), **given.get("options", {})}
    try:
        return RunConfig.model_validate({**base, **given, **({"options": options} if options else {})})
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        place = f"{file}: " if file and problem["loc"] and problem["loc"][0] not in given else ""
        if problem["type"] == "extra_forbidden":
            raise UsageError(f"{place}{unknown('field', name, RunConfig.model_fields)}") from error
        raise UsageError(f"{place}{name.replace('_', '-')}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        near = nearest(file.name, [path.name for path in file.parent.glob("*.y*ml")], count=1)
        raise UsageError(f"there is no file {file}{f'; did you mean {near[0]}?' if near else ''}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{file}: a run's configuration is a mapping of fields to values, such as `tasks: [cifar10]`")
    return data
