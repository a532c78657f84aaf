"""Mean attention distance: how far, in pixels, each head of each block looks (ViT paper, figure 7 and appendix D.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from vitbench.analysis.attention import TokenLayout, batch_size, capture_attention, one_backbone
from vitbench.analysis.base import Images, Options
from vitbench.analysis.output import Output
from vitbench.backbones.base import Backbone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULTS: dict[str, Any] = {}
"""There are no options."""


def analyse(backbones: Sequence[Backbone], images: Images, output: Output, options: Options) -> list[str]:
    """Mean attention distance per block and head, averaged over images: a scatter by depth, a CSV, and the npz.

    The npz has `distance` `[depth, heads]` in pixels and `uniform`, the distance of a head that attends to all patches equally.

    Raises:
        UsageError: There are two backbones, or one that is no plain ViT.
        DataError: An image is broken.
    """
    backbone, layout = one_backbone(backbones, "attention-distance")
    between = patch_distances(layout)
    distances = measure(backbone, images, layout, between)
    uniform = float(between.mean())
    blocks, heads = np.indices(distances.shape) + 1
    frame = pd.DataFrame({"layer": blocks.ravel(), "head": heads.ravel(), "distance": distances.ravel()})
    output.figure(
        "attention-distance",
        f"Mean attention distance of every head, in pixels, over {_count(images)}",
        _scatter(distances, uniform, f"{backbone.spec.label}, {_count(images)}"),
    )
    output.table("attention-distance", "Mean attention distance in pixels, by layer and head", frame)
    output.arrays("attention-distance", {"distance": distances, "uniform": np.array(uniform)})
    blocks_shown = ", ".join(
        f"{np.nanmean(distances[row]):.1f} px in block {row % len(distances) + 1} "
        f"(heads {np.nanmin(distances[row]):.1f} to {np.nanmax(distances[row]):.1f})"
        for row in (0, -1)
    )
    return [f"mean attention distance over {_count(images)}: {blocks_shown}; uniform attention: {uniform:.1f} px"]


def measure(backbone: Backbone, images: Images, layout: TokenLayout, between: Tensor) -> npt.NDArray[np.float64]:
    """Mean attention distance in pixels over images, `[depth, heads]`; NaN for a head that never attends to a patch."""
    sums: dict[int, Tensor] = {}
    seen: dict[int, Tensor] = {}
    between = between.to(backbone.device)

    def visit(layer: int, attention: Tensor) -> None:
        distance = mean_distances(attention, layout.prefix, between).cpu().double()
        sums[layer] = sums.get(layer, 0) + distance.nansum(dim=0)
        seen[layer] = seen.get(layer, 0) + (~distance.isnan()).sum(dim=0)

    for _, pixels in images.batches(backbone, batch_size(layout)):
        capture_attention(backbone, pixels, visit)
    return torch.stack([sums[layer] / seen[layer] for layer in sorted(sums)]).numpy()


def patch_distances(layout: TokenLayout) -> Tensor:
    """Euclidean distances in pixels between the centres of patches, `[P, P]` float32."""
    rows, columns = torch.meshgrid(
        torch.arange(layout.grid_h) * float(layout.patch_h),
        torch.arange(layout.grid_w) * float(layout.patch_w),
        indexing="ij",
    )
    y, x = rows.flatten(), columns.flatten()
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def mean_distances(attention: Tensor, prefix: int, between: Tensor) -> Tensor:
    """Attention-weighted mean distance from query patch to key patch, averaged over query patches.

    With a the weights from patch q to patches k, d(q) = sum_k a(q, k) |q - k| / sum_k a(q, k). Prefix tokens are no place in
    the image: their rows and columns are left out, and the division makes the rest of each row sum to 1 again. A query whose
    attention goes to prefix tokens to the last bit has no distance and is left out of the average.

    Args:
        attention: `[N, heads, T, T]`, rows are queries.
        prefix: Tokens before the patches.
        between: `[P, P]`, distances between patches.

    Returns:
        `[N, heads]`, in the unit of `between`; NaN where no query patch attends to any patch.
    """
    patches = attention[..., prefix:, prefix:]
    total = patches.sum(dim=-1)
    return ((patches * between).sum(dim=-1) / total).nanmean(dim=-1)


def _count(images: Images) -> str:
    return f"{len(images)} image{'s' if len(images) != 1 else ''}"


def _scatter(distances: npt.NDArray[np.float64], uniform: float, subtitle: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    depth, heads = distances.shape
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    blocks = np.arange(1, depth + 1)
    axes.scatter(
        np.repeat(blocks, heads), distances.ravel(), s=30, color="#0072B2", alpha=0.75, linewidths=0, label="one head"
    )
    axes.plot(
        blocks, np.nanmean(distances, axis=1), color="#D55E00", marker="D", markersize=4, label="mean of the heads"
    )
    axes.axhline(uniform, color="black", linestyle="--", linewidth=1, label=f"uniform attention ({uniform:.0f} px)")
    axes.set(
        xlabel="network depth (block)", ylabel="mean attention distance (pixels)", ylim=(0, None),
        title=f"Mean attention distance\n{subtitle}",
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure
