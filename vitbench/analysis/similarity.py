"""How alike the layers of backbones are (linear CKA), and how many directions each uses (spectrum, effective rank)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitbench.analysis.base import Images, Options
from vitbench.analysis.output import Output
from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

JOINT = True

DEFAULTS: dict[str, Any] = {"representation": "gap", "estimator": "biased", "max_images": 2000}
"""Options.

* `representation`: what is compared, by layer where the model gives it by layer: `gap`, `cls`, or another of its own.
* `estimator`: of HSIC: `biased` (Kornblith et al. 2019), or `unbiased` (Song et al. 2012), for few images.
* `max_images`: the features of this many are held in memory; of more images, these many are taken, evenly spread.
"""

ESTIMATORS = {"biased": 2, "unbiased": 4}
"""Estimators of HSIC, and the fewest images that each is defined for."""

# Features are float32: what remains of a constant one after centring is rounding, 1e-7 of its size, 1e-14 of its square.
_CONSTANT = 1e-12
_COLOURS, _MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"), "osD^vPX"


@dataclass(frozen=True)
class Layers:
    """The features of a backbone.

    Attributes:
        label: The backbone's name, with its options.
        short: A name for axes and legends; no two backbones of one analysis have the same.
        names: The representation of each layer, such as `gap@3`.
        numbers: The number of each layer.
        features: Per layer `[n, D]` float32.
    """

    label: str
    short: str
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    features: tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True)
class Centred:
    """A layer's features, prepared to be compared.

    Attributes:
        features: `[n, D]` float64, of mean 0; all zero when they were the same for every image.
        squares: `[n]`, the squared length of each row: the diagonal of the Gram matrix K = X X'.
        sums: `[n]`, the sum of each row of K without its diagonal.
    """

    features: FloatArray
    squares: FloatArray
    sums: FloatArray


def centre(features: npt.NDArray[np.floating[Any]]) -> Centred:
    """Subtract the mean over images from features `[n, D]`, in float64."""
    exact = features.astype(np.float64)
    centred = exact - exact.mean(axis=0)
    if (centred**2).sum() <= _CONSTANT * (exact**2).sum():
        centred = np.zeros_like(centred)
    squares = (centred**2).sum(axis=1)
    return Centred(centred, squares, centred @ centred.sum(axis=0) - squares)


def hsic(x: Centred, y: Centred, estimator: str = "biased") -> float:
    """The Hilbert-Schmidt independence criterion of two linear kernels, up to a factor that CKA divides out.

    `biased` (Kornblith et al. 2019, equation 4, for centred features): tr(K L) = ||X'Y||_F² with K = X X', L = Y Y'. So neither
    Gram matrix is needed, only the cross-covariance `[D_x, D_y]`.

    `unbiased` (Song et al. 2012, equation 5): with K~ and L~, the Gram matrices whose diagonals are set to 0,

        tr(K~ L~) + (1'K~1)(1'L~1) / ((n - 1)(n - 2)) - 2 (1'K~ L~1) / (n - 2),

    of which tr(K~ L~) = ||X'Y||_F² - sum_i K_ii L_ii, and K~1 are the `sums` of `Centred`.

    Args:
        x: Features of n images.
        y: Features of the same images.
        estimator: One of `ESTIMATORS`; `unbiased` needs n >= 4.
    """
    cross = float((np.square(x.features.T @ y.features)).sum())
    if estimator == "biased":
        return cross
    n = len(x.features)
    totals = float(x.sums.sum() * y.sums.sum()) / ((n - 1) * (n - 2))
    return cross - float(x.squares @ y.squares) + totals - 2 * float(x.sums @ y.sums) / (n - 2)


def cka(xs: Sequence[Centred], ys: Sequence[Centred], estimator: str = "biased") -> FloatArray:
    """Linear centred kernel alignment (Kornblith et al. 2019): HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)).

    It is 1 for features that are equal up to rotation and isotropic scaling. The biased estimate tends to 1 as the images become
    fewer than the dimensions, whatever the features are; the unbiased one does not, and may fall below 0.

    Returns:
        `[len(xs), len(ys)]`; NaN where a layer is the same for every image.
    """
    own = [np.array([hsic(layer, layer, estimator) for layer in layers]) for layers in (xs, ys)]
    scale = np.sqrt(np.outer(*(np.where(values > 0, values, np.nan) for values in own)))
    both = np.array([[hsic(x, y, estimator) for y in ys] for x in xs]).reshape(len(xs), len(ys))
    alignment: FloatArray = both / scale
    return alignment


def spectrum(layer: Centred) -> FloatArray:
    """Eigenvalues of the covariance matrix X'X / (n - 1) of a layer, `[min(n, D)]` in descending order.

    X'X and X X' have the same eigenvalues but for zeros: the smaller of the two is decomposed.
    """
    features = layer.features
    small = features.T @ features if features.shape[1] <= features.shape[0] else features @ features.T
    eigenvalues: FloatArray = np.linalg.eigvalsh(small)[::-1] / max(len(features) - 1, 1)
    return eigenvalues.clip(min=0)


def effective_rank(eigenvalues: FloatArray) -> float:
    """Effective rank (Roy & Vetterli 2007) of a covariance matrix: exp(-sum p_i ln p_i), p_i = eigenvalue_i / their sum.

    1 for one direction, D for D equally strong ones; never more than min(n - 1, D). NaN when all eigenvalues are 0.
    """
    total = eigenvalues.sum()
    if total <= 0:
        return float("nan")
    shares = eigenvalues / total
    shares = shares[shares > 0]  # after the division, in which a tiny eigenvalue may become 0: p ln p tends to 0 there
    return float(np.exp(-(shares * np.log(shares)).sum()))


def collect(backbone: Backbone, images: Images, representation: str, short: str = "") -> Layers:
    """One vector per image of every layer, in one pass over the images.

    Args:
        backbone: The backbone.
        images: The images; n * L * D float32 values are held in memory.
        representation: The pooling, compared by layer where the backbone gives it by layer, else at the output alone.
        short: A name for axes and legends; the backbone's label without options when empty.

    Raises:
        RepresentationError: The backbone lacks it.
        UsageError: It has a layer already.
    """
    if "@" in representation or "+" in representation:
        raise UsageError(
            f"option representation is one pooling without a layer, such as gap or cls, got '{representation}'"
        )
    backbone.resolve(representation)
    numbers: tuple[int, ...] = (backbone.depth,)
    names: tuple[str, ...] = (representation,)
    if backbone.depth and representation in backbone.layer_poolings:
        numbers = tuple(range(backbone.first_layer, backbone.depth + 1))
        names = tuple(f"{representation}@{number}" for number in numbers)
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    for _, pixels in images.batches(backbone):
        for name, values in backbone.encode(pixels, names).items():
            parts[name].append(values.cpu().numpy())
    return Layers(
        backbone.spec.long_label,
        short or backbone.spec.label,
        names,
        numbers,
        tuple(np.concatenate(parts[name]) for name in names),
    )


def analyse(backbones: Sequence[Backbone], images: Images, output: Output, options: Options) -> list[str]:
    """Compare all layers of one or more backbones on the same images; see `DEFAULTS` for the options.

    Linear CKA between the layers of each backbone and between those of every two backbones, the spectrum of each layer's centred
    features, and its effective rank by depth.

    Raises:
        UsageError: Too few images, or an unknown estimator.
        RepresentationError: A backbone lacks the representation.
    """
    estimator = options["estimator"]
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    given, limit = len(images), options["max_images"]
    images = images.subset(max(limit, 0))
    if len(images) < ESTIMATORS[estimator]:
        raise UsageError(
            f"similarity with the {estimator} estimator compares at least {ESTIMATORS[estimator]} images, got {len(images)}"
        )
    labels = [backbone.spec.label for backbone in backbones]
    if len(set(labels)) < len(labels):
        labels = [backbone.spec.long_label for backbone in backbones]
    if len(set(labels)) < len(labels):
        labels = [f"{number}: {label}" for number, label in enumerate(labels, 1)]
    layers = [
        collect(backbone, images, options["representation"], label)
        for backbone, label in zip(backbones, labels, strict=True)
    ]
    centred = [[centre(features) for features in item.features] for item in layers]
    lines = [
        f"{item.label}: {len(item.names)} {'layer' if len(item.names) == 1 else 'layers'} of {options['representation']}"
        for item in layers
    ]
    lines.append(f"linear CKA with the {estimator} HSIC estimator over {len(images)} images")
    if given > len(images):
        lines[-1] += f", evenly spread over the {given} given (option max_images)"
    width = max(features.shape[1] for item in layers for features in item.features)
    if estimator == "biased" and len(images) < width:
        lines.append(
            f"fewer images than dimensions ({width}): the biased estimate is too high; give more images, or estimator=unbiased"
        )
    lines += _constant_layers(layers, centred)
    lines += _show_similarities(layers, centred, estimator, output)
    lines += _show_spectra(layers, centred, output)
    return lines


def _constant_layers(layers: Sequence[Layers], centred: Sequence[Sequence[Centred]]) -> list[str]:
    lines = []
    for item, prepared in zip(layers, centred, strict=True):
        same = [name for name, layer in zip(item.names, prepared, strict=True) if not layer.features.any()]
        if same:
            lines.append(f"{item.label}: {', '.join(same)} is the same for every image, and so like nothing (grey)")
    return lines


def _show_similarities(
    layers: Sequence[Layers], centred: Sequence[Sequence[Centred]], estimator: str, output: Output
) -> list[str]:
    lines, tables = [], []
    arrays: dict[str, FloatArray] = {}
    pairs = [(index, index) for index in range(len(layers))] + list(combinations(range(len(layers)), 2))
    for a, b in pairs:
        values = cka(centred[a], centred[b], estimator)
        name = "similarity" if len(layers) == 1 else f"similarity-{a + 1}" if a == b else f"similarity-{a + 1}-{b + 1}"
        which = "between the layers" if a == b else "between the layers of two backbones"
        title = f"linear CKA {which} ({estimator} HSIC, {len(layers[a].features[0])} images)"
        output.figure(name, f"{layers[a].label}{'' if a == b else f' and {layers[b].label}'}: {title}",
                      _heat_map(values, layers[a], layers[b], title))  # fmt: skip
        arrays[name] = values
        first, second = np.meshgrid(layers[a].names, layers[b].names, indexing="ij")
        columns = {"backbone_a": layers[a].label, "layer_a": first.ravel(), "backbone_b": layers[b].label}
        tables.append(pd.DataFrame({**columns, "layer_b": second.ravel(), "cka": values.ravel()}))
        if a != b and np.isfinite(values).any():
            row, column = np.unravel_index(np.nanargmax(values), values.shape)
            lines.append(
                f"backbones {a + 1} and {b + 1} are most alike at {layers[a].names[row]} and {layers[b].names[column]}: "
                f"CKA {values[row, column]:.3f}; at their outputs {values[-1, -1]:.3f}"
            )
    output.arrays("similarity", arrays)
    output.table("similarity", "CKA of every pair of layers", pd.concat(tables))
    return lines


def _show_spectra(layers: Sequence[Layers], centred: Sequence[Sequence[Centred]], output: Output) -> list[str]:
    records, ranks = [], []
    arrays: dict[str, FloatArray] = {}
    for index, (item, prepared) in enumerate(zip(layers, centred, strict=True), 1):
        spectra = [spectrum(layer) for layer in prepared]
        ranks.append([effective_rank(values) for values in spectra])
        suffix = f"-{index}" if len(layers) > 1 else ""
        title = "spectrum of each layer's centred features"
        output.figure(f"spectrum{suffix}", f"{item.label}: {title}", _spectrum_figure(spectra, item, title))
        arrays |= {f"spectrum{suffix}-{name}": values for name, values in zip(item.names, spectra, strict=True)}
        records += [
            {"backbone": item.label, "layer": name, "dimensions": features.shape[1], "effective_rank": rank,
             "total_variance": values.sum()}
            for name, features, values, rank in zip(item.names, item.features, spectra, ranks[-1], strict=True)
        ]  # fmt: skip
    title = f"effective rank by layer ({len(layers[0].features[0])} images)"
    output.figure("effective-rank", title.capitalize(), _rank_figure(ranks, layers, title))
    output.arrays("spectra", arrays)
    output.table("layers", "Effective rank and total variance of every layer", pd.DataFrame(records))
    return [
        f"{item.label}: effective rank {values[0]:.1f} at {item.names[0]}, {values[-1]:.1f} at {item.names[-1]} "
        f"of at most {min(item.features[-1].shape[1], len(item.features[-1]) - 1)}"
        for item, values in zip(layers, ranks, strict=True)
    ]


def _heat_map(values: FloatArray, first: Layers, second: Layers, title: str) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows, columns = values.shape
    side = 4.2 / max(rows, columns, 5)
    figure = Figure(figsize=(max(columns * side, 1.2) + 1.8, max(rows * side, 1.2) + 1.1), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(values, cmap=colormaps["viridis"].with_extremes(bad="0.8"), vmin=0, vmax=1)
    for ticks, item, setter in ((columns, second, axis.set_xticks), (rows, first, axis.set_yticks)):
        step = -(-ticks // 14)
        setter(range(0, ticks, step), [str(number) for number in item.numbers[::step]])
    axis.tick_params(labelsize=8)
    axis.set_xlabel(f"layer of {second.short}", fontsize=8)
    axis.set_ylabel(f"layer of {first.short}", fontsize=8)
    figure.colorbar(shown, ax=axis, label="linear CKA", shrink=0.85)
    figure.suptitle(title, fontsize=9, wrap=True)
    return figure


def _spectrum_figure(spectra: Sequence[FloatArray], item: Layers, title: str) -> Figure:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    scale = Normalize(min(item.numbers), max(item.numbers))
    for number, values in zip(item.numbers, spectra, strict=True):
        # Below 1e-12 of the largest there is only rounding, as in the directions that n - 1 images leave empty.
        kept = values[values > values.max() * _CONSTANT]
        axis.plot(np.arange(1, len(kept) + 1), kept, color=colormaps["viridis"](scale(number)), linewidth=1.2)
    axis.set_yscale("log")
    axis.set_xlabel("principal direction, by strength")
    axis.set_ylabel("eigenvalue of the covariance (feature units²)")
    axis.grid(alpha=0.3)
    figure.colorbar(ScalarMappable(scale, colormaps["viridis"]), ax=axis, label="layer")
    figure.suptitle(f"{item.short}\n{title}", fontsize=9)
    return figure


def _rank_figure(ranks: Sequence[Sequence[float]], layers: Sequence[Layers], title: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for index, (item, values) in enumerate(zip(layers, ranks, strict=True)):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        axis.plot(item.numbers, values, color=colour, marker=marker, label=item.short, linewidth=1.4)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("layer")
    axis.set_ylabel("effective rank (directions)")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure
