"""Attention heatmaps: where the CLS token of one block looks, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitbench.analysis.attention import TokenLayout, batch_size, block_number, capture_attention, one_backbone
from vitbench.analysis.base import Images, Options
from vitbench.analysis.output import Output
from vitbench.analysis.overlay import Panel, concentration, panels_figure, relative, view
from vitbench.backbones.base import Backbone

DEFAULTS: dict[str, Any] = {"layer": -1, "files": 8}
"""Options.

* `layer`: the block, from 1 to the model's depth, or counted from the end: -1 is the last.
* `files`: how many images, the first ones, have a figure; the arrays have all.
"""

_COLUMNS = 6


def analyse(backbones: Sequence[Backbone], images: Images, output: Output, options: Options) -> list[str]:
    """A figure per image with one overlay for each head, and the npz with `attention` `[images, heads, grid_h, grid_w]`.

    Raises:
        UsageError: There are two backbones, or one that is no plain ViT, or there is no such block.
        DataError: An image is broken.
    """
    backbone, layout = one_backbone(backbones, "heatmap")
    number = block_number(backbone, options["layer"])
    maps = np.concatenate(
        [heatmaps(backbone, pixels, number) for _, pixels in images.batches(backbone, batch_size(layout))]
    )
    output.arrays("heatmap", {"attention": maps, "names": np.array(images.names)})
    for index in range(min(len(images), options["files"])):
        name = images.names[index]
        picture = view(backbone, images, index)
        panels = [Panel(picture, name), Panel(picture, "mean of the heads", relative(maps[index].mean(axis=0)))]
        panels += [Panel(picture, f"head {head}", relative(weights)) for head, weights in enumerate(maps[index], 1)]
        title = f"Attention to the patches, block {number} of {backbone.depth}\n{backbone.spec.label}, {layout.reader}"
        output.figure(f"heatmap-{name}", f"Attention of block {number}: {name}", panels_figure(panels, _COLUMNS, title))
    return [_summary(maps, number, layout)]


def heatmaps(backbone: Backbone, pixels: Tensor, layer: int = -1) -> npt.NDArray[np.float32]:
    """Attention of CLS (of the mean patch where there is none) to the patches in one block.

    Args:
        backbone: A plain ViT.
        pixels: `[N, 3, H, W]` float32, preprocessed.
        layer: The block, from 1, or counted from the end.

    Returns:
        `[N, heads, grid_h, grid_w]`; what is missing to 1 went to the prefix tokens.

    Raises:
        UsageError: The backbone is no plain ViT, or has no such block.
    """
    kept: dict[int, Tensor] = {}
    layout = capture_attention(backbone, pixels, kept.__setitem__, [layer])
    (attention,) = kept.values()
    weights: npt.NDArray[np.float32] = layout.to_patches(attention).cpu().numpy()
    return weights


def _summary(maps: npt.NDArray[np.float32], number: int, layout: TokenLayout) -> str:
    to_patches = maps.sum(axis=(2, 3)).mean(axis=0)
    tops = [np.mean([concentration(weights) for weights in maps[:, head]]) for head in range(maps.shape[1])]
    note = "" if layout.has_cls else "; the model has no CLS token: rows are averaged over patches"
    return (
        f"block {number}: {to_patches.mean():.0%} of the attention goes to patches; of that, the top tenth of the patches gets "
        f"{min(tops):.0%} to {max(tops):.0%} by head (uniform: 10%){note}"
    )
