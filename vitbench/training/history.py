"""The history of a training run: one JSON line for each step that is logged, in a file beside the record.

A line is appended and flushed as its step is done, so that a run that is killed has lost at most the line it was writing. A run
that is taken up at a step first cuts what lies beyond it: the history is then the one an uninterrupted run would have had.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vitbench.errors import StoreError
from vitbench.records.atomic import write_problem, write_text
from vitbench.validation import problem_text

# JSON has no NaN and no infinity: both are null in the file.
_Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Entry(BaseModel):
    """What was logged after one step; `loss`, `accuracy` and `images_per_second` are over the steps since the line before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=1, description="number of updates that were made, this one included")
    loss: _Number = Field(description="mean training loss; NaN where it is not finite")
    accuracy: _Number = Field(description="training accuracy, a fraction; NaN where labels are mixed and there is none")
    learning_rate: _Number = Field(description="of the update that this step made; of the head where layers differ")
    images_per_second: _Number
    seconds: _Number = Field(description="since the run began, time before an interruption included")


def append(path: Path, entry: Entry) -> None:
    """Add a line and flush it.

    Args:
        path: The history; made where it is missing, with its folder.
        entry: What the line says.

    Raises:
        StoreError: The disk is full or the file cannot be written; the lines before are intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as handle:
                handle.write(_line(entry).encode())
        except OSError:
            # A full disk may have taken half of the line, which would spoil the next one.
            with suppress(OSError):
                os.truncate(path, size)
            raise
    except OSError as error:
        raise StoreError(
            f"cannot write the history {path}: {write_problem(error)}; what was saved before is intact"
        ) from error


def cut_after(path: Path, step: int) -> list[Entry]:
    """Leave the lines up to a step, as they were after it: atomically, and without a line that was half written.

    Args:
        path: The history; nothing happens where there is none.
        step: The last step to keep, that of the checkpoint which is taken up; 0 to begin anew.

    Returns:
        The lines that are left.

    Raises:
        StoreError: A line that is kept cannot be read, or the file cannot be written.
    """
    if not path.exists():
        return []
    kept = list(takewhile(lambda entry: entry.step <= step, _entries(path)))
    write_text(path, "".join(map(_line, kept)))
    return kept


def read_history(path: Path) -> list[Entry]:
    """The lines of a history, those of a run that is still writing included; a last line without its end is left out.

    Raises:
        StoreError: There is no such file, or a line of it cannot be read.
    """
    if not path.exists():
        raise StoreError(f"there is no history at {path}: it is written while a run trains")
    return list(_entries(path))


def _line(entry: Entry) -> str:
    return f"{entry.model_dump_json()}\n"


def _entries(path: Path) -> Iterator[Entry]:
    try:
        # What is behind the last line break is a line that a killed process did not end.
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise StoreError(f"cannot read the history {path}: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        try:
            yield Entry.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            told = " ".join([*map(str, problem["loc"]), problem_text(problem)])
            raise StoreError(
                f"line {number} of the history {path} cannot be read ({told}): move the file away"
            ) from error
