"""What a model's position embeddings say of places: which patch positions look alike, or how far attention is told to reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitbench.analysis.base import Images, Options, only, spread
from vitbench.analysis.output import Output
from vitbench.analysis.positions import Absolute, Relative, read_positions, refuse
from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

NEEDS_IMAGES = False

DEFAULTS: dict[str, Any] = {"tiles": 14}
"""Options.

* `tiles`: positions per side of the grid whose similarity to all others is drawn, evenly spread over a larger grid; the arrays
  have all.
"""


def cosine_similarity(table: FloatArray) -> FloatArray:
    """Cosine similarity of every position with every other.

    Args:
        table: `[h, w, D]`.

    Returns:
        `[h * w, h * w]`, in [-1, 1]; NaN for a position whose embedding is zero.
    """
    rows = table.reshape(-1, table.shape[-1])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, np.nan)
    similarity: FloatArray = (unit @ unit.T).clip(-1, 1)
    return similarity


def analyse(backbones: Sequence[Backbone], images: Images | None, output: Output, options: Options) -> list[str]:
    """Draw how alike a backbone's position embeddings are, or its relative position bias; see `DEFAULTS` for the options.

    For a table: the cosine similarity of each position with all others, as in figure 7 (centre) of the ViT paper (Dosovitskiy et
    al. 2021), and the matrix of dot products. Rows of class, distillation and register tokens are left out, by the model's own
    count. For a relative bias: its value by displacement, per layer and head.

    Raises:
        UsageError: The backbone has none to show (none at all, or rotary ones), or an option is no positive number.
    """
    backbone = only(backbones, "posembed")
    if options["tiles"] < 1:
        raise UsageError(f"option tiles is how many positions per side are drawn, at least 1, got {options['tiles']}")
    positions = read_positions(backbone)
    resized = [note for note in backbone.provenance_notes if "resized" in note and "pos" in note]
    if isinstance(positions, Absolute):
        return [*_show_table(backbone, positions, output, options["tiles"]), *resized, *_dynamic(backbone, positions)]
    return [*_show_bias(backbone, positions, output), *resized]


def _dynamic(backbone: Backbone, positions: Absolute) -> list[str]:
    """A line for a timm model that resizes its table in every forward pass."""
    model: Any = backbone.modules[0]
    if not getattr(model, "dynamic_img_size", False):
        return []
    stored, used = tuple(model.patch_embed.grid_size), positions.table.shape[:2]
    text = "position embeddings resized from {}x{} to {}x{} by the model in its forward pass"
    return [] if stored == used else [text.format(*stored, *used)]


def _show_table(backbone: Backbone, positions: Absolute, output: Output, tiles: int) -> list[str]:
    table = positions.table
    height, width, depth = table.shape
    if not table.any():
        refuse(backbone, "its table is all zeros")
    rows = table.reshape(-1, depth)
    cosine, dot = cosine_similarity(table), rows @ rows.T
    label = backbone.spec.label
    title = f"cosine similarity of position embeddings, {height}×{width} patches"
    output.figure("cosine", title.capitalize(), _tiles_figure(cosine, (height, width), tiles, f"{label}\n{title}"))
    title = f"dot products of position embeddings, {height}×{width} patches in rows"
    output.figure("dot-product", title.capitalize(), _matrix_figure(dot, f"{label}\n{title}"))
    single = {"table": table, "cosine": cosine, "dot": dot}
    output.arrays("posembed", {name: array.astype(np.float32) for name, array in single.items()})
    lines = [f"{backbone.spec.long_label}: a table of {height}×{width} positions, {depth} dimensions"]
    if positions.left_out:
        rows_of = "1 row, which is" if positions.left_out == 1 else f"{positions.left_out} rows, which are"
        lines.append(f"left out: {rows_of} not of patches")
    if getattr(backbone.modules[0], "rope", None) is not None:
        lines.append("besides the table it has rotary position embeddings (RoPE), which are not shown")
    return [*lines, *_neighbours(cosine, height, width)]


def _neighbours(cosine: FloatArray, height: int, width: int) -> list[str]:
    """The mean similarity of neighbours and of all pairs: whether the table knows places at all."""
    if height * width < 2:
        return []
    grid = cosine.reshape(height, width, height, width)
    y, x = np.mgrid[:height, :width]
    beside = [grid[y[:, :-1], x[:, :-1], y[:, 1:], x[:, 1:]].ravel(), grid[y[:-1], x[:-1], y[1:], x[1:]].ravel()]
    others = cosine[~np.eye(len(cosine), dtype=bool)]
    near, far = np.nanmean(np.concatenate(beside)), np.nanmean(others)
    return [f"mean cosine similarity: {near:.3f} of neighbours, {far:.3f} of all pairs"]


def _tiles_figure(cosine: FloatArray, grid: tuple[int, int], tiles: int, title: str) -> Figure:
    """A grid of grids: the tile at (row, column) is the similarity of the position there with all."""
    from matplotlib.figure import Figure

    height, width = grid
    rows, columns = spread(height, tiles), spread(width, tiles)
    gap = max(1, height // 14)
    canvas = np.full((len(rows) * (height + gap) - gap, len(columns) * (width + gap) - gap), np.nan)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            top, left = i * (height + gap), j * (width + gap)
            tile = cosine[row * width + column].reshape(height, width)
            canvas[top : top + height, left : left + width] = tile
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(canvas, cmap="viridis", vmin=np.nanmin(cosine), vmax=1)
    axis.set_xticks([(width + gap) * j + (width - 1) / 2 for j in range(len(columns))], [str(c + 1) for c in columns])
    axis.set_yticks([(height + gap) * i + (height - 1) / 2 for i in range(len(rows))], [str(r + 1) for r in rows])
    axis.tick_params(length=0, labelsize=7)
    axis.set_xlabel("column of the patch")
    axis.set_ylabel("row of the patch")
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.colorbar(shown, ax=axis, label="cosine similarity", shrink=0.85)
    figure.suptitle(title, fontsize=9)
    return figure


def _matrix_figure(dot: FloatArray, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axis = figure.subplots()
    last = len(dot) + 0.5
    shown = axis.imshow(dot, cmap="viridis", extent=(0.5, last, last, 0.5))
    axis.set_xlabel("patch, row by row")
    axis.set_ylabel("patch, row by row")
    figure.colorbar(shown, ax=axis, label="dot product", shrink=0.85)
    figure.suptitle(title, fontsize=9)
    return figure


def _show_bias(backbone: Backbone, layers: Sequence[Relative], output: Output) -> list[str]:
    label = backbone.spec.label
    heads = max(len(layer.maps) for layer in layers)
    title = f"relative position bias by displacement, {len(layers)} layers of up to {heads} heads"
    output.figure("bias", title.capitalize(), _bias_figure(layers, heads, f"{label}\n{title}"))
    output.arrays("posembed", {layer.layer: layer.maps.astype(np.float32) for layer in layers})
    records = [
        {"layer": number, "module": layer.layer, "head": head + 1, "least": values.min(), "greatest": values.max()}
        for number, layer in enumerate(layers, 1)
        for head, values in enumerate(layer.maps)
    ]
    output.table("bias", "Least and greatest bias per layer and head", pd.DataFrame(records))
    windows = sorted({f"{(layer.maps.shape[1] + 1) // 2}×{(layer.maps.shape[2] + 1) // 2}" for layer in layers})
    lines = [
        f"{backbone.spec.long_label}: a relative position bias in {len(layers)} layers, windows of {', '.join(windows)} patches; "
        "there is no table of absolute positions"
    ]
    if left_out := max(layer.left_out for layer in layers):
        lines.append(f"left out: the bias from and to tokens that are not patches ({left_out})")
    return lines


def _bias_figure(layers: Sequence[Relative], heads: int, title: str) -> Figure:
    """A row of maps per layer, a column per head; one colour scale for all, white at 0."""
    from matplotlib.figure import Figure

    limit = max(float(np.abs(layer.maps).max()) for layer in layers) or 1.0
    side = min(1.1, max(0.35, 7.5 / heads))
    figure = Figure(figsize=(max(heads * side, 3) + 1.2, len(layers) * side + 0.7), layout="constrained")
    axes = figure.subplots(len(layers), heads, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (row, layer) in enumerate(zip(axes, layers, strict=True), 1):
        row[0].text(-0.15, 0.5, str(number), transform=row[0].transAxes, ha="right", va="center", fontsize=7)
        for axis, values in zip(row, layer.maps, strict=False):
            shown = axis.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit)
    for head in range(heads):
        axes[0, head].set_title(str(head + 1), fontsize=7, pad=2)
    figure.colorbar(shown, ax=axes, label="bias on the attention logit", shrink=0.8, fraction=0.04, aspect=30)
    figure.supxlabel(
        "head, from 1; in each map dx runs to the right, dy down, no displacement in the middle", fontsize=8
    )
    figure.supylabel("layer with a bias", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure
