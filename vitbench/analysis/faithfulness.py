"""Faithfulness of heatmaps: deletion and insertion curves (Petsiuk, Das and Saenko, 2018, arXiv:1806.07421)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from vitbench.analysis.attention import TokenLayout, batch_size, capture_attention, one_backbone
from vitbench.analysis.base import Images, Options
from vitbench.analysis.output import Output
from vitbench.analysis.rollout import check_heads, rollout_step
from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError, unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = ("rollout", "attention", "random")
FILLS = ("mean", "blur")
DEFAULTS: dict[str, Any] = {
    "representation": None, "steps": 14, "fill": "mean", "heads": "mean", "draws": 3, "seed": 0,
}  # fmt: skip
"""Options.

* `representation`: whose similarity is the score; `cls` by default, `gap` for models without it.
* `steps`: in how many steps the patches go.
* `fill`: what a deleted patch becomes: `mean`, the image's own mean pixel, or `blur`, the image blurred (a Gaussian with a
  standard deviation of 1/16 of the image's side).
* `heads`: how rollout makes one matrix of a block's heads: `mean`, `max` or `min`.
* `draws`: random orders per image; their curves are averaged.
* `seed`: of the random orders.
"""

Curves = dict[str, npt.NDArray[np.float64]]
"""Method to similarities `[images, steps + 1]`."""

_COLOURS = {"rollout": "#0072B2", "attention": "#D55E00", "random": "#555555"}
_STYLES = {"rollout": ("o", "-"), "attention": ("s", "-"), "random": ("^", "--")}
_NAMES = {"rollout": "rollout", "attention": "last-layer attention", "random": "random order"}
_BATCH = 32
_SURE = 2.0  # standard errors


def analyse(backbones: Sequence[Backbone], images: Images, output: Output, options: Options) -> list[str]:
    """Deletion and insertion curves of rollout, of the last block's attention and of random order.

    There is no classifier at hand, so the score is not the probability of a class, as in the paper, but the cosine similarity of
    the image's representation to that of the undisturbed image.

    Figures, `faithfulness.csv` (curves: method, curve, fraction, similarity, standard_error), `faithfulness-auc.csv` (method,
    curve, auc, standard_error, gain over random, its standard error), and the npz with all curves by image.

    Raises:
        UsageError: There are two backbones, or one that is no plain ViT, or an option cannot be meant.
        RepresentationError: The backbone lacks the representation.
        DataError: An image is broken.
    """
    backbone, layout = one_backbone(backbones, "faithfulness")
    name = options["representation"] or ("cls" if "cls" in backbone.available() else "gap")
    backbone.resolve(name)
    counts = _counts(options["steps"], layout)
    deletion, insertion = measure(backbone, images, layout, name, counts, options)
    fraction = counts / counts[-1]
    curves, areas = _tables(deletion, insertion, fraction)
    subtitle = f"{backbone.spec.label}, {len(images)} image{'s' if len(images) != 1 else ''}, fill: {options['fill']}"
    output.figure(
        "faithfulness",
        "Deletion and insertion curves; the score is the cosine similarity to the undisturbed image, not a class's probability",
        _figure(deletion, insertion, fraction, areas, name, subtitle),
    )
    output.table("faithfulness", "Mean curves", curves)
    output.table("faithfulness-auc", "Areas under the curves", areas)
    output.arrays(
        "faithfulness",
        {
            "fraction": fraction,
            **{f"deletion_{method}": deletion[method] for method in METHODS},
            **{f"insertion_{method}": insertion[method] for method in METHODS},
            "names": np.array(images.names),
        },
    )
    return [_line(areas, "deletion", "lower"), _line(areas, "insertion", "higher")]


def measure(
    backbone: Backbone,
    images: Images,
    layout: TokenLayout,
    name: str,
    counts: npt.NDArray[np.int64],
    options: Options,
) -> tuple[Curves, Curves]:
    """Deletion and insertion curves of every method, image by image.

    Args:
        backbone: A plain ViT.
        images: What to disturb.
        layout: The layout of its tokens.
        name: The representation that is compared.
        counts: How many patches are gone, or there, at each step: 0, …, all of them.
        options: As in `DEFAULTS`.
    """
    heads, draws, seed = check_heads(options["heads"]), options["draws"], options["seed"]
    fill = options["fill"]
    if fill not in FILLS:
        raise unknown("value of option fill", fill, FILLS)
    if draws < 1 or seed < 0:
        raise UsageError(f"options draws and seed must be at least 1 and 0, got {draws} and {seed}")
    deletion: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    insertion: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    for indices, pixels in images.batches(backbone, batch_size(layout)):
        background = filled(pixels, fill)
        orders = {method: [weights.flatten(1).argsort(dim=1, descending=True, stable=True)]
                  for method, weights in explain(backbone, pixels, heads).items()}  # fmt: skip
        orders["random"] = [_random_orders(indices, layout, (seed, draw)).to(pixels.device) for draw in range(draws)]
        for method in METHODS:
            both = [curves(backbone, pixels, background, order, counts, name, layout) for order in orders[method]]
            deletion[method].append(torch.stack([deleted for deleted, _ in both]).mean(dim=0))
            insertion[method].append(torch.stack([inserted for _, inserted in both]).mean(dim=0))
    return (
        {method: torch.cat(parts).numpy() for method, parts in deletion.items()},
        {method: torch.cat(parts).numpy() for method, parts in insertion.items()},
    )


def explain(backbone: Backbone, pixels: Tensor, heads: str = "mean") -> dict[str, Tensor]:
    """The weights that are judged, from one forward pass: `rollout`, and `attention`, the last block's, its heads averaged.

    Returns:
        Method to `[N, grid_h, grid_w]`: from CLS, or from the mean patch where there is none.
    """
    rolled: Tensor | None = None
    last: Tensor | None = None

    def visit(layer: int, attention: Tensor) -> None:
        nonlocal rolled, last
        rolled = rollout_step(rolled, attention, heads)
        if layer == backbone.depth:
            last = attention.mean(dim=1)

    layout = capture_attention(backbone, pixels, visit)
    assert rolled is not None
    assert last is not None
    return {"rollout": layout.to_patches(rolled), "attention": layout.to_patches(last)}


def filled(pixels: Tensor, fill: str) -> Tensor:
    """What the deleted patches of a batch become, `[N, 3, H, W]`: see the option `fill`."""
    if fill == "mean":
        return pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
    from torchvision.transforms.functional import gaussian_blur

    sigma = max(pixels.shape[-2:]) / 16
    radius = min(int(2 * sigma + 0.5), min(pixels.shape[-2:]) - 1)
    blurred: Tensor = gaussian_blur(pixels, [2 * radius + 1, 2 * radius + 1], [sigma, sigma])
    return blurred


def curves(
    backbone: Backbone,
    pixels: Tensor,
    background: Tensor,
    order: Tensor,
    counts: npt.NDArray[np.int64],
    name: str,
    layout: TokenLayout,
) -> tuple[Tensor, Tensor]:
    """Similarity to the undisturbed image while patches are deleted, and while they are inserted, in a given order.

    Args:
        backbone: The model.
        pixels: `[N, 3, H, W]`, preprocessed.
        background: `[N, 3, H, W]`, what a deleted patch becomes.
        order: `[N, P]`, the patches of each image, the first to go first.
        counts: `[S + 1]`, patches gone (or inserted) at each step, from 0 to P.
        name: The representation that is compared.
        layout: The layout of the tokens.

    Returns:
        Deletion and insertion, each `[N, S + 1]` float64 on the CPU: cosines.
    """
    rank = order.argsort(dim=1)
    steps = torch.as_tensor(counts, device=rank.device)
    # Nothing deleted is all inserted, and the other way round: those two are computed once.
    gone = rank[:, None, :] < steps[None, :, None]
    left = rank[:, None, :] >= steps[None, 1:-1, None]
    masks = torch.cat([gone, left], dim=1)  # [N, V, P], true where a patch is the background's
    whole = backbone.encode(pixels, [name])[name].cpu().double()
    count, variants = masks.shape[:2]
    similar = []
    for first in range(0, count * variants, _BATCH):
        flat = torch.arange(first, min(first + _BATCH, count * variants), device=pixels.device)
        image, variant = flat // variants, flat % variants
        mask = _pixel_mask(masks[image, variant], layout, pixels)
        seen = backbone.encode(torch.where(mask, background[image], pixels[image]), [name])[name].cpu().double()
        similar.append(functional.cosine_similarity(seen, whole[image.cpu()], dim=1))
    both = torch.cat(similar).reshape(count, variants)
    deletion = both[:, : len(counts)]
    insertion = torch.cat([deletion[:, -1:], both[:, len(counts) :], deletion[:, :1]], dim=1)
    return deletion, insertion


def area(similarity: npt.NDArray[np.float64], fraction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Area under curves `[..., S + 1]` over fractions `[S + 1]`, by the trapezoidal rule."""
    heights = (similarity[..., 1:] + similarity[..., :-1]) / 2
    total: npt.NDArray[np.float64] = (heights * np.diff(fraction)).sum(axis=-1)
    return total


def _pixel_mask(masks: Tensor, layout: TokenLayout, pixels: Tensor) -> Tensor:
    """Masks of patches `[B, P]` as masks of pixels `[B, 1, H, W]`; what is no patch's stays as it is."""
    mask = masks.reshape(-1, 1, layout.grid_h, layout.grid_w)
    mask = mask.repeat_interleave(layout.patch_h, dim=2).repeat_interleave(layout.patch_w, dim=3)
    spare_h, spare_w = pixels.shape[-2] - mask.shape[-2], pixels.shape[-1] - mask.shape[-1]
    return functional.pad(mask, (0, spare_w, 0, spare_h))


def _random_orders(indices: Sequence[int], layout: TokenLayout, seed: tuple[int, int]) -> Tensor:
    # By the image's index and not by its place in a batch: the batch size must not change a result.
    patches = layout.grid_h * layout.grid_w
    return torch.stack([torch.from_numpy(np.random.default_rng((*seed, i)).permutation(patches)) for i in indices])


def _counts(steps: int, layout: TokenLayout) -> npt.NDArray[np.int64]:
    patches = layout.grid_h * layout.grid_w
    if not 1 <= steps <= patches:
        raise UsageError(f"option steps must be from 1 to {patches}, the number of patches, got {steps}")
    return np.linspace(0, patches, steps + 1).round().astype(np.int64)


def _mean_and_error(values: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """Mean over images (axis 0) and its standard error, NaN for one image."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(values.shape[1:], np.nan)
    return values.mean(axis=0), error


def _tables(
    deletion: Curves, insertion: Curves, fraction: npt.NDArray[np.float64]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean curves, and their areas. A gain is the mean over images of the difference to random, positive where better."""
    points, areas = [], []
    for curve, by_method, sign in (("deletion", deletion, -1), ("insertion", insertion, 1)):
        reference = area(by_method["random"], fraction)
        for method, similarity in by_method.items():
            mean, error = _mean_and_error(similarity)
            points.append(
                pd.DataFrame(
                    {
                        "method": method,
                        "curve": curve,
                        "fraction": fraction,
                        "similarity": mean,
                        "standard_error": error,
                    }
                )
            )
            own = area(similarity, fraction)
            gain, gain_error = _mean_and_error(sign * (own - reference))
            areas.append((method, curve, *_mean_and_error(own), gain, gain_error))
    columns = ["method", "curve", "auc", "standard_error", "gain_over_random", "gain_standard_error"]
    return pd.concat(points, ignore_index=True), pd.DataFrame(areas, columns=columns)


def _line(areas: pd.DataFrame, curve: str, better: str) -> str:
    parts, verdicts = [], []
    rows = areas[areas["curve"] == curve].drop(columns=["method", "curve"]).to_numpy(dtype=np.float64)
    for method, (auc, error, gain, gain_error) in zip(METHODS, rows, strict=True):
        parts.append(f"{_NAMES[method]} {auc:.3f}{'' if np.isnan(error) else f' ± {error:.3f}'}")
        if method != "random":
            verdicts.append(f"{_NAMES[method]} is {verdict(gain, gain_error)}")
    return f"{curve} AUC ({better} is better): {', '.join(parts)}; {', '.join(verdicts)}"


def verdict(gain: float, error: float) -> str:
    """What a gain over random order, and its standard error, allow to be said."""
    if np.isnan(error):
        return f"{'better' if gain > 0 else 'no better'} than random on this one image, which proves nothing"
    if abs(gain) <= _SURE * error:
        return "no better than random, within two standard errors"
    return "better than random" if gain > 0 else "worse than random"


def _figure(
    deletion: Curves,
    insertion: Curves,
    fraction: npt.NDArray[np.float64],
    areas: pd.DataFrame,
    name: str,
    subtitle: str,
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, deletion, fraction, areas[areas["curve"] == "deletion"])
    left.set(
        title="deletion: lower is better", xlabel="fraction of the patches deleted",
        ylabel=f"cosine similarity of {name}\nto the undisturbed image",
    )  # fmt: skip
    _draw(right, insertion, fraction, areas[areas["curve"] == "insertion"])
    right.set(title="insertion: higher is better", xlabel="fraction of the patches inserted")
    figure.suptitle(
        f"Faithfulness of attention: {subtitle}\nno classifier is used; bands are ± one standard error over images",
        fontsize=10,
    )
    return figure


def _draw(axes: Axes, by_method: Curves, fraction: npt.NDArray[np.float64], areas: pd.DataFrame) -> None:
    for method, similarity in by_method.items():
        mean, error = _mean_and_error(similarity)
        auc = areas.loc[areas["method"] == method, "auc"].item()
        marker, line = _STYLES[method]
        axes.plot(
            fraction, mean, color=_COLOURS[method], marker=marker, linestyle=line, markersize=4,
            label=f"{_NAMES[method]} (AUC {auc:.3f})",
        )  # fmt: skip
        axes.fill_between(fraction, mean - error, mean + error, color=_COLOURS[method], alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
