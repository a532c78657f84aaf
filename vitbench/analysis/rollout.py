"""Attention rollout: which patches reach the output through all blocks (Abnar and Zuidema, 2020, arXiv:2005.00928)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitbench.analysis.attention import TokenLayout, batch_size, capture_attention, one_backbone
from vitbench.analysis.base import Images, Options
from vitbench.analysis.output import Output
from vitbench.analysis.overlay import Panel, concentration, panels_figure, relative, view
from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError, unknown

HEADS = ("mean", "max", "min")
DEFAULTS: dict[str, Any] = {"heads": "mean", "discard": 0.0, "shown": 12, "files": 8}
"""Options.

* `heads`: how the heads of a block become one matrix: `mean`, as in the paper, `max` or `min`.
* `discard`: this share of each matrix, its smallest weights, is set to 0 before the identity is added, as some do to sharpen
  the picture; 0 is the paper's way.
* `shown`: how many images, the first ones, are in the figure of many; the arrays have all.
* `files`: how many images, the first ones, have a figure of their own.
"""


def analyse(backbones: Sequence[Backbone], images: Images, output: Output, options: Options) -> list[str]:
    """Rollout of every image: overlays, and the npz with `rollout` `[images, grid_h, grid_w]` and `names`.

    Raises:
        UsageError: There are two backbones, or one that is no plain ViT, or an option cannot be meant.
        DataError: An image is broken.
    """
    backbone, layout = one_backbone(backbones, "rollout")
    heads, discard = check_heads(options["heads"]), check_discard(options["discard"])
    maps = np.concatenate(
        [
            rollout(backbone, pixels, heads, discard).cpu().numpy()
            for _, pixels in images.batches(backbone, batch_size(layout))
        ]
    )
    output.arrays("rollout", {"rollout": maps, "names": np.array(images.names)})
    scaled = relative(maps)

    def panels(index: int) -> list[Panel]:
        picture = view(backbone, images, index)
        return [Panel(picture, images.names[index]), Panel(picture, "rollout", scaled[index])]

    title = f"Attention rollout, {heads} of the heads\n{backbone.spec.label}, {layout.reader}"
    if shown := min(len(images), max(options["shown"], 0)):
        many = [panel for index in range(shown) for panel in panels(index)]
        more = f" (the first {shown} of {len(images)})" if shown < len(images) else ""
        output.figure("rollout", f"Attention rollout{more}", panels_figure(many, 6, title))
    for index in range(min(len(images), options["files"])) if len(images) > 1 else ():
        name = images.names[index]
        output.figure(f"rollout-{name}", f"Attention rollout of {name}", panels_figure(panels(index), 2, title))
    top = float(np.mean([concentration(weights) for weights in maps]))
    note = "" if layout.has_cls else "; the model has no CLS token: rows are averaged over patches"
    return [
        f"rollout ({heads} of the heads) of {len(images)} image{'s' if len(images) != 1 else ''}: the top tenth of the patches "
        f"holds {top:.0%} of the weight on average (uniform: 10%){note}"
    ]


def rollout(backbone: Backbone, pixels: Tensor, heads: str = "mean", discard: float = 0.0) -> Tensor:
    """Rollout from the output's CLS token (the mean patch where there is none) to the patches of a batch.

    Args:
        backbone: A plain ViT.
        pixels: `[N, 3, H, W]` float32, preprocessed.
        heads: `mean`, `max` or `min`.
        discard: Share of the smallest weights of each matrix that is set to 0.

    Returns:
        `[N, grid_h, grid_w]` float32 on the backbone's device.

    Raises:
        UsageError: The backbone is no plain ViT.
    """
    rolled: Tensor | None = None

    def visit(layer: int, attention: Tensor) -> None:
        nonlocal rolled
        rolled = rollout_step(rolled, attention, heads, discard)

    layout: TokenLayout = capture_attention(backbone, pixels, visit)
    assert rolled is not None
    return layout.to_patches(rolled)


def rollout_step(rolled: Tensor | None, attention: Tensor, heads: str = "mean", discard: float = 0.0) -> Tensor:
    """One block of rollout.

    The residual connection passes every token on as it is, so the block is taken to mix tokens by A' = (A + I) / 2, rows
    normalised to sum to 1 again (the mean over heads does already; max and min do not), and what block L sees of the input is
    R_L = A'_L R_{L-1}, with R_0 = I.

    Args:
        rolled: R of the blocks before, `[N, T, T]`, or None before the first.
        attention: `[N, heads, T, T]`, rows are queries.
        heads: `mean`, `max` or `min`.
        discard: Share of the smallest weights of the matrix that is set to 0.

    Returns:
        `[N, T, T]`, rows sum to 1.
    """
    reduced = attention.mean(dim=1) if heads == "mean" else getattr(attention, f"a{heads}")(dim=1)
    if count := int(discard * reduced[0].numel()):
        limit = reduced.flatten(1).kthvalue(count, dim=1).values
        reduced = reduced.masked_fill(reduced <= limit[:, None, None], 0.0)
    mixed = (reduced + torch.eye(reduced.shape[-1], device=reduced.device)) / 2
    mixed = mixed / mixed.sum(dim=-1, keepdim=True)
    return mixed if rolled is None else mixed @ rolled


def check_heads(heads: str) -> str:
    """`heads`, one of `HEADS`.

    Raises:
        UsageError: It is another.
    """
    if heads not in HEADS:
        raise unknown("value of option heads", heads, HEADS)
    return heads


def check_discard(discard: float) -> float:
    """`discard`, in [0, 1).

    Raises:
        UsageError: It is not.
    """
    if not 0 <= discard < 1:
        raise UsageError(f"option discard is a share from 0 to below 1, got {discard:g}")
    return discard
