"""What a model's first layer looks for: its filters on RGB pixels, and their principal components."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from vitbench.analysis.base import Images, Options, only
from vitbench.analysis.output import Output
from vitbench.backbones.base import Backbone
from vitbench.backbones.jax_vit import StdConv
from vitbench.backbones.spec import Atom
from vitbench.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

NEEDS_IMAGES = False

DEFAULTS: dict[str, Any] = {"filters": 128, "components": 28}
"""Options.

* `filters`: how many filters are drawn, the first ones; the arrays have all.
* `components`: how many principal components are drawn, the strongest ones; the arrays have all.
"""

_COLUMNS, _COMPONENT_COLUMNS = 16, 7


class Stop(Exception):  # noqa: N818 - not an error: it ends a forward pass that has given what it was run for
    """Raised by a hook to end a forward pass early."""


def run_until_stopped(backbone: Backbone) -> None:
    """Run one black image through the model, until a hook raises `Stop` or the model is through."""
    pixels = torch.zeros(1, 3, *backbone.input_size)
    name = next(name for name, item in backbone.representations.items() if item.provenance != "absent")
    with suppress(Stop):
        backbone.encode_atoms(pixels, frozenset({Atom(name)}))


def first_convolution(backbone: Backbone) -> nn.Module:
    """The convolution that meets the pixels: the first that is called in a forward pass, which ends there.

    It is the patch embedding of a ViT, and the first convolution of the stem of a CNN or a hybrid.

    Raises:
        UsageError: The model has no weights or no convolution, or its first one is not on three channels.
    """
    where = f"backbone '{backbone.spec.text}'"
    convolutions = [
        module for root in backbone.modules for module in root.modules() if isinstance(module, nn.Conv2d | StdConv)
    ]
    if not convolutions:
        reason = "no convolution on pixels" if backbone.modules else "no weights that can be looked at"
        raise UsageError(f"{where} has {reason}: there are no filters to show")
    called: list[nn.Module] = []

    def stop(module: nn.Module, arguments: Any) -> None:
        called.append(module)
        raise Stop

    handles = [module.register_forward_pre_hook(stop) for module in convolutions]
    try:
        run_until_stopped(backbone)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise UsageError(
            f"{where} does not use its convolutions on the way to its features: there are no filters to show"
        )
    channels = int(called[0].weight.shape[1])  # type: ignore[index]
    if channels != 3:
        raise UsageError(
            f"{where}: its first convolution is on {channels} channels, not on RGB: there are no filters to show"
        )
    return called[0]


@dataclass(frozen=True)
class Components:
    """Principal components of a set of filters.

    Attributes:
        directions: `[K, 3, h, w]` float64, unit length, the strongest first; signed so that each one's largest entry is positive.
        explained: `[K]` float64, the share of the variance that each explains, in descending order; NaN when there is none.
        mean: `[3, h, w]` float64, the mean filter.
    """

    directions: FloatArray
    explained: FloatArray
    mean: FloatArray


def principal_components(weight: FloatArray) -> Components:
    """Principal components of filters, as in figure 7 (left) of the ViT paper (Dosovitskiy et al. 2021).

    With the filters as the rows of W `[D, 3hw]` and W - mean = U S V', the rows of V' are the components: the first K of them
    rebuild every filter with the least squared error that K directions allow. Component k explains s_k² / sum(s²).

    Args:
        weight: `[D, 3, h, w]`.

    Returns:
        All min(D, 3hw) components.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    _, singular, directions = np.linalg.svd(flat - mean, full_matrices=False)
    # SVD leaves the sign of a component open; this choice makes the pictures of one model equal everywhere.
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.where(directions[np.arange(len(directions)), largest] < 0, -1.0, 1.0)[:, None]
    total = float((singular**2).sum())
    explained = singular**2 / total if total > 0 else np.full_like(singular, np.nan)
    return Components(directions.reshape(-1, *weight.shape[1:]), explained, mean.reshape(weight.shape[1:]))


def as_rgb(filters: FloatArray) -> FloatArray:
    """Each filter `[3, h, w]` of `[K, 3, h, w]` scaled to [0, 1] by its own least and greatest weight; `[K, h, w, 3]`."""
    low = filters.min(axis=(1, 2, 3), keepdims=True)
    high = filters.max(axis=(1, 2, 3), keepdims=True)
    span = np.where(high > low, high - low, 1)
    scaled: FloatArray = np.where(high > low, (filters - low) / span, 0.5).transpose(0, 2, 3, 1)
    return scaled


def analyse(backbones: Sequence[Backbone], images: Images | None, output: Output, options: Options) -> list[str]:
    """Draw the first filters of a backbone's first layer and their principal components; see `DEFAULTS` for the options.

    Weights are shown as they are stored, on normalised pixels; where a model standardises them at run time (BiT, hybrids), that
    scales and shifts each filter as a whole, which its picture does not show.

    Raises:
        UsageError: The backbone has no filters on RGB, or an option is no positive number.
    """
    backbone = only(backbones, "filters")
    counts = {key: options[key] for key in DEFAULTS}
    for key, count in counts.items():
        if count < 1:
            raise UsageError(f"option {key} is how many are drawn, at least 1, got {count}")
    module: Any = first_convolution(backbone)
    weight = module.weight.detach().cpu().double().numpy()
    components = principal_components(weight)
    label = backbone.spec.label
    number, _, height, width = weight.shape
    size = f"{height}×{width} pixels"
    drawn = as_rgb(weight[: counts["filters"]])
    title = f"first {len(drawn)} of {number} filters, {size}, each scaled to its own range"
    output.figure("filters", title.capitalize(), _filters_figure(drawn, f"{label}\n{title}"))
    rgb = as_rgb(components.directions[: counts["components"]])
    title = f"first {len(rgb)} principal components of all {number} filters, with the variance that each explains"
    figure = _components_figure(rgb, components.explained, f"{label}\n{title}")
    output.figure("components", title.capitalize(), figure)
    output.arrays(
        "filters",
        {
            "weight": weight.astype(np.float32),
            "components": components.directions.astype(np.float32),
            "explained_variance_ratio": components.explained,
            "mean": components.mean.astype(np.float32),
        },
    )
    cumulative = components.explained.cumsum()
    ranks = np.arange(1, len(cumulative) + 1)
    table = {"component": ranks, "explained_variance_ratio": components.explained, "cumulative": cumulative}
    output.table("explained-variance", "Variance explained by each component", pd.DataFrame(table))
    flat = int((weight.max(axis=(1, 2, 3)) == weight.min(axis=(1, 2, 3))).sum())
    lines = [f"{backbone.spec.long_label}: {number} filters of {size} on RGB", _explained(cumulative, len(rgb))]
    return [*lines, f"{flat} filters have one weight everywhere, and are drawn grey"] if flat else lines


def _explained(cumulative: FloatArray, drawn: int) -> str:
    if not np.isfinite(cumulative[0]):
        return "the filters are all alike: there is no variance to explain"
    # Rounding may leave the last sum below 1; it is never below 0.9.
    half, most = (int((cumulative < share).sum()) + 1 for share in (0.5, 0.9))
    return (
        f"the first {drawn} principal components explain {cumulative[drawn - 1]:.1%} of the variance of the filters; "
        f"half of it takes {half}, and 90% takes {most}"
    )


def _filters_figure(tiles: FloatArray, title: str) -> Figure:
    """Tiles `[K, h, w, 3]` row by row, a white line between them, as one image: a hundred axes take seconds to draw."""
    from matplotlib.figure import Figure

    count, height, width, _ = tiles.shape
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    gap = max(1, width // 8)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    breadth = max(7.5 * columns / _COLUMNS, 3.5)
    figure = Figure(figsize=(breadth, breadth * canvas.shape[0] / canvas.shape[1] + 0.5), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure


def _components_figure(tiles: FloatArray, explained: FloatArray, title: str) -> Figure:
    """Tiles `[K, h, w, 3]`, each under its number and the share of the variance that it explains."""
    from matplotlib.figure import Figure

    columns = min(_COMPONENT_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(max(7.5 * columns / _COMPONENT_COLUMNS, 3.5), 1.25 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (axis, tile) in enumerate(zip(axes.flat, tiles, strict=False)):
        axis.imshow(tile, interpolation="nearest")
        axis.set_title(f"{index + 1}: {explained[index]:.1%}", fontsize=7, pad=2)
    figure.suptitle(title, fontsize=9)
    return figure
