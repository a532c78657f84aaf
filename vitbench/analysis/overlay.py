"""Pictures of images with weights of patches drawn over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vitbench.analysis.base import Images
from vitbench.backbones.base import Backbone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = "viridis"
_OPACITY = 0.65
_CAPTION = 24


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Attributes:
        picture: `[H, W, 3]` in [0, 1].
        caption: What is written above it.
        weights: `[grid_h, grid_w]`, drawn over it, or None for the picture alone. 1 is what a patch has when all are equal.
    """

    picture: npt.NDArray[np.float32]
    caption: str
    weights: npt.NDArray[np.float32] | None = None


def relative(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Weights of patches `[..., grid_h, grid_w]` as multiples of their mean: 1 is uniform. All 0 stays 0."""
    mean = weights.mean(axis=(-2, -1), keepdims=True)
    scaled: npt.NDArray[np.float32] = np.divide(weights, mean, out=np.zeros_like(weights), where=mean > 0)
    return scaled


def concentration(weights: npt.NDArray[np.float32], share: float = 0.1) -> float:
    """The part of the weight that is on the heaviest `share` of the patches (at least one)."""
    ordered = np.sort(weights, axis=None)[::-1]
    total = float(ordered.sum())
    return float(ordered[: max(1, round(share * ordered.size))].sum()) / total if total else 0.0


def view(backbone: Backbone, images: Images, index: int) -> npt.NDArray[np.float32]:
    """The image as the backbone sees it, `[H, W, 3]` in [0, 1]."""
    pixels: npt.NDArray[np.float32] = images.crop(backbone, index).numpy()
    return pixels


def panels_figure(panels: Sequence[Panel], columns: int, title: str) -> Figure:
    """A grid of panels with one colour bar.

    Every panel has its own scale, from its least to its largest weight, which are written under it as multiples of uniform
    weight: the weights of heads and images differ by orders of magnitude, and on one scale most panels would be blank.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(1.9 * columns + 0.9, 4.2), 2.25 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        height, width = panel.picture.shape[:2]
        axes.set_title(shortened(panel.caption), fontsize=8)
        if panel.weights is None:
            axes.imshow(panel.picture, interpolation="nearest")
            continue
        grey = panel.picture @ np.array([0.299, 0.587, 0.114], dtype=panel.picture.dtype)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        axes.imshow(
            panel.weights, cmap=_COLOURS, alpha=_OPACITY, interpolation="bilinear", extent=(0, width, height, 0)
        )
        span = f"{_multiple(panel.weights.min())} to {_multiple(panel.weights.max())} × uniform"
        axes.text(0.5, -0.03, span, transform=axes.transAxes, ha="center", va="top", fontsize=7)
    scale = ScalarMappable(Normalize(0, 1), cmap=_COLOURS)
    bar = figure.colorbar(scale, ax=grid, shrink=min(1.0, 3 / (2.25 * rows)), fraction=0.05, pad=0.02)
    bar.set_ticks([0, 1], labels=["least", "most"], fontsize=8)
    bar.set_label("weight of the patch, per panel", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def shortened(text: str) -> str:
    """`text` in at most 24 characters, so that captions of neighbours do not run into each other."""
    return text if len(text) <= _CAPTION else f"{text[: _CAPTION // 2 - 1]}…{text[-_CAPTION // 2 :]}"


def _multiple(value: float) -> str:
    if value < 0.01:
        return "<0.01" if value else "0"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
