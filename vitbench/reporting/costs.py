"""Measurements of cost beside the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError, VitbenchError, listed
from vitbench.records.costs import Cost
from vitbench.reporting.labels import ROW_LABELS

PARAMETERS, GFLOPS, DIMENSION = "params (M)", "GFLOPs", "dim"
SPEED, MEMORY = "images/s", "memory (MB)"
AXES: Mapping[str, str] = {"params": PARAMETERS, "gflops": GFLOPS, "images_per_second": SPEED, "memory": MEMORY}
"""Name of a cost on the command line to its column."""

DIGITS: Mapping[str, int] = {PARAMETERS: 2, GFLOPS: 2, DIMENSION: 0, SPEED: 1, MEMORY: 0}
"""Digits behind the point; a name may have a device behind it."""

FLOPS_ARE = "GFLOPs: billions of operations for one image, counted, a multiply-add as two"


def cost_columns(records: pd.DataFrame, costs: Sequence[Cost], device: str = "") -> tuple[pd.DataFrame, list[str]]:
    """The cost of every row of a table.

    A measurement belongs to a row if architecture, number of parameters, size of the preprocessed images and dtype are the row's;
    of several on one device that of the same weights is taken, then the newest. Speed and memory are of one device, so that
    each device has columns of its own.

    Args:
        records: Labelled records.
        costs: What was measured.
        device: Take only devices whose name has this in it, such as `cuda`; all if empty.

    Returns:
        Rows (backbone, representation, variant) × `params (M)`, `GFLOPs`, `dim`, `images/s`, `memory (MB)` (10⁶ bytes); NaN where
        nothing was measured. And notes, a line each.

    Raises:
        UsageError: There are measurements, but none on such a device.
    """
    there = sorted({cost.device for cost in costs})
    devices = [name for name in there if device.lower() in name.lower()]
    if device and not devices:
        raise UsageError(
            f"no cost was measured on '{device}' (there is {listed(there) or 'none at all'}): vitbench cost --device … does"
        )
    rows = records.drop_duplicates(ROW_LABELS).set_index(ROW_LABELS)
    matched = {labels: _matching(row, costs) for labels, row in rows.iterrows()}
    used = [name for name in devices if any(cost.device == name for found in matched.values() for cost in found)]
    frame = pd.DataFrame(
        {
            PARAMETERS: rows["num_parameters"] / 1e6,
            GFLOPS: [_flops(found) for found in matched.values()],
            DIMENSION: rows["representation_dim"],
        },
        index=rows.index,
        dtype=float,
    )
    for name in used or [""]:
        best = {
            labels: next((cost for cost in found if cost.device == name), None) for labels, found in matched.items()
        }
        several = f" [{name}]" if len(used) > 1 else ""
        frame[SPEED + several] = [cost.images_per_second if cost else float("nan") for cost in best.values()]
        frame[MEMORY + several] = [_megabytes(cost) for cost in best.values()]
    shown = [cost for found in matched.values() for cost in found if cost.device in used]
    lacking = [row for labels, row in rows.iterrows() if not any(cost.device in used for cost in matched[labels])]
    return frame, [*cost_notes(shown), *_remedy(lacking)]


def cost_rows(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    """Measurements as rows of a table."""
    return [
        {
            "backbone": parse_backbone_spec(cost.backbone).long_label,
            "pixels": "x".join(map(str, cost.input_size)),
            "dtype": cost.dtype,
            PARAMETERS: f"{cost.num_parameters / 1e6:,.2f}",
            GFLOPS: "—" if cost.flops is None else f"{cost.flops / 1e9:,.2f}",
            SPEED: f"{cost.images_per_second:,.1f}",
            MEMORY: "—" if cost.memory_bytes is None else f"{cost.memory_bytes / 1e6:,.0f}",
            "dimensions": ", ".join(f"{name} {dim}" for name, dim in cost.representations.items()),
        }
        for cost in costs
    ]


def cost_notes(costs: Sequence[Cost]) -> list[str]:
    """What the numbers of these measurements are, a line each."""
    if not costs:
        return []
    where = dict.fromkeys(
        f"{cost.device}, batches of {cost.batch_size}, torch {cost.provenance.versions.get('torch', 'unknown')}"
        for cost in costs
    )
    methods = dict.fromkeys(cost.memory_method for cost in costs)
    return [
        FLOPS_ARE,
        f"images/s: median over batches, all representations in one pass, without decoding; {'; '.join(where)}",
        f"memory: {'; '.join(methods)}",
    ]


def _matching(row: pd.Series, costs: Sequence[Cost]) -> list[Cost]:
    """The measurements of a row, those of its own weights first, then the newest first."""
    from vitbench.tasks import transforms  # which brings torch, and only a table with costs needs it

    try:
        size = transforms.parse(row["preprocessing"]).output_size
    except VitbenchError:
        return []
    same = [
        cost
        for cost in costs
        if (cost.architecture, cost.num_parameters, cost.dtype)
        == (row["architecture"], row["num_parameters"], _computed_in(row))
        and tuple(cost.input_size) == tuple(size)
    ]
    newest = sorted(same, key=lambda cost: cost.provenance.created, reverse=True)
    return sorted(newest, key=lambda cost: cost.backbone_name != row["backbone_name"])


def _computed_in(row: pd.Series) -> str:
    """The dtype of a row's forward pass, whatever its features were kept as."""
    return str(row["dtype"]).partition(" ")[0]


def _flops(found: Sequence[Cost]) -> float:
    """Of any device: they are counted the same way everywhere."""
    return next((cost.flops / 1e9 for cost in found if cost.flops is not None), float("nan"))


def _megabytes(cost: Cost | None) -> float:
    return float("nan") if cost is None or cost.memory_bytes is None else cost.memory_bytes / 1e6


def _remedy(rows: Sequence[pd.Series]) -> list[str]:
    """The commands that measure what is lacking."""
    missing: dict[str, list[str]] = {}
    for row in rows:
        specs = missing.setdefault(_computed_in(row), [])
        specs += [spec] if (spec := str(row["spec"])) not in specs else []
    lines = []
    for dtype, specs in missing.items():
        asked = " ".join(f"--backbone {spec}" for spec in specs[:3])
        more = f" (and {len(specs) - 3} more backbones)" if len(specs) > 3 else ""
        lines.append(f"not measured: vitbench cost {asked} --dtype {dtype} makes it{more}")
    return lines
