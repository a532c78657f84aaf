"""What backbones cost: `<out>/costs/<backbone>-<device>-<size>-<dtype>.json`, a file per measurement.

A measurement is identified by what the computation is (architecture, input size, dtype) and where it was done (device, version of
torch). Weights are no part of that: two checkpoints of one architecture cost the same. A new measurement with another version of
torch takes the place of the old one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from vitbench.errors import StoreError
from vitbench.records.atomic import slug, write_text
from vitbench.records.schema import Provenance

COST_SCHEMA_VERSION: Literal[1] = 1
FOLDER = "costs"


class Cost(BaseModel):
    """What one backbone costs on one device: one JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = COST_SCHEMA_VERSION
    backbone: str = Field(description="the backbone's spec as it was written")
    backbone_name: str = Field(description="short name of backbone and weights, as in the records' folders")
    architecture: str = Field(description="what decides the computation apart from the weights")
    input_size: tuple[int, int] = Field(description="height and width of the images, pixels")
    dtype: str = Field(description="of the computation: float32, bfloat16 or float16")
    device: str = Field(description="kind and model, on a CPU with the number of threads: cuda (NVIDIA H200)")
    num_parameters: int = Field(ge=0, description="parameters of the backbone, without any classifier")
    representations: dict[str, int] = Field(
        description="every representation that was computed in the one pass, and the length of its vector"
    )
    flops: int | None = Field(
        ge=0,
        description="floating point operations for one image in matrix products, convolutions and attention, a multiply-add "
        "counted as two; null where they cannot be counted",
    )
    images_per_second: float = Field(gt=0, description="batch size / median seconds of a batch; decoding not included")
    batch_size: int = Field(ge=1)
    batch_seconds: list[float] = Field(min_length=1, description="seconds of each batch that was timed, in order")
    memory_bytes: int | None = Field(
        ge=0, description="peak memory of a forward pass; null where it cannot be measured"
    )
    memory_method: str = Field(description="what that number is, or why there is none")
    provenance: Provenance


def cost_path(out: Path, cost: Cost) -> Path:
    """Where a measurement is kept below the output folder `out`."""
    size = "x".join(map(str, cost.input_size))
    return out / FOLDER / f"{slug(cost.backbone_name)}-{slug(cost.device, 60)}-{size}-{slug(cost.dtype)}.json"


def write_cost(out: Path, cost: Cost) -> Path:
    """Write a measurement below the output folder, whole or not at all; its file.

    Raises:
        StoreError: The folder cannot be written to.
    """
    path = cost_path(out, cost)
    write_text(path, cost.model_dump_json(indent=2) + "\n")
    return path


def read_cost(path: Path) -> Cost:
    """Read one measurement.

    Raises:
        StoreError: The file is damaged, or of a schema that this version does not know.
    """
    try:
        return Cost.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
        reason = str(error)
        if isinstance(error, pydantic.ValidationError):
            problem = error.errors()[0]
            reason = ": ".join([*map(str, problem["loc"]), problem["msg"]])
        raise StoreError(
            f"the measurement {path} cannot be read ({reason}); move it away and make it again with `vitbench cost`"
        ) from error


def read_costs(out: Path) -> tuple[list[Cost], list[str]]:
    """Read every measurement of an output folder, in order of file name.

    Args:
        out: A run's output folder, or a folder of records inside it.

    Returns:
        The measurements, none where nothing was measured; and a line for each file that cannot be read.
    """
    found, damaged = [], []
    for path in sorted(_folder(out).glob("*.json")):
        try:
            found.append(read_cost(path))
        except StoreError as error:
            damaged.append(str(error))
    return found, damaged


def _folder(out: Path) -> Path:
    """The costs that belong to the records at `out`, which may be the output folder, its `records`, or a folder inside that."""
    if (out / FOLDER).is_dir() or "records" not in out.resolve().parts:
        return out / FOLDER
    inside = out.resolve()
    while inside.name != "records":
        inside = inside.parent
    return inside.parent / FOLDER
