"""A suite's own file, `tasks/<suite>/suite.yaml`: how its authors evaluate it, for `vitbench run --suite NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field

from vitbench.errors import DataError
from vitbench.tasks.source_spec import Strict
from vitbench.validation import line_of, problem_text, read_yaml


class SuiteSpec(Strict):
    """How the tasks of a folder are evaluated together."""

    title: str = Field(description="the benchmark's name as its authors write it")
    description: str = ""
    protocol: str = Field("fewshot", description="name of the protocol")
    options: dict[str, Any] = Field({}, description="options of that protocol")
    preprocess: str = Field("auto", description="a preset, a preprocessing string, or auto for each backbone's own")
    citation: str = ""
    notes: tuple[str, ...] = Field((), description="where it differs from what the authors do")


def read_suite_file(path: Path) -> SuiteSpec:
    """Read and validate a suite's file.

    Raises:
        DataError: It cannot be read, or a field is unknown, missing or wrong.
    """
    data, root = read_yaml(path, DataError)
    try:
        return SuiteSpec.model_validate(data)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        line = line_of(root, problem["loc"])
        raise DataError(f"{path}:{line}: {f'{field}: ' if field else ''}{problem_text(problem)}") from error
