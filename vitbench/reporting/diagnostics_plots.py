"""The pictures of a diagnosis: its confusion matrix and its reliability diagram."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from vitbench.errors import UsageError
from vitbench.reporting.diagnostics import Diagnostics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANNOTATED = 20
NAMED = 60

_COLOURS = "Blues"
_BLUE, _GREY = "#0072b2", "#888888"


def confusion_figure(diagnostics: Diagnostics) -> Figure:
    """The confusion matrix in percent of each true class.

    Up to `ANNOTATED` classes have their numbers written in the cells, up to `NAMED` their names at the sides; beyond that labels
    are at round numbers. Colours grow with the square root, so that confusions of a few percent show beside a diagonal of 100.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(diagnostics.class_names)
    side = 4.2 + 0.45 * count if count <= ANNOTATED else 4.2 + 0.18 * count if count <= NAMED else 11.0
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axes = figure.add_subplot()
    percent = 100 * diagnostics.normalised
    axes.set_facecolor("#dddddd")
    image = axes.imshow(
        np.ma.masked_invalid(percent), cmap=_COLOURS, norm=PowerNorm(0.5, 0, 100), interpolation="nearest"
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("% of the images of the true class")
    if count <= ANNOTATED:
        _annotate(axes, percent)
    _ticks(axes, diagnostics)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    _title(axes, diagnostics.title, _summary(diagnostics), width=round(side * 9))
    return figure


def reliability_figure(diagnostics: Diagnostics) -> Figure:
    """Accuracy against confidence, and how often each confidence was given.

    Raises:
        UsageError: The records hold no confidence.
    """
    from matplotlib.figure import Figure

    found = diagnostics.reliability
    if found is None:
        raise UsageError(
            "a reliability diagram needs records with a confidence: run them again with --on-existing rerun"
        )
    figure = Figure(figsize=(6.0, 7.2), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    width = float(found.edges[1] - found.edges[0])
    centres = found.edges[:-1] + width / 2
    there = found.counts > 0
    bars = {"width": 0.92 * width, "color": _BLUE, "alpha": 0.35, "edgecolor": _BLUE}
    axes.bar(centres[there], found.accuracy[there], label="accuracy", **bars)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="calibrated")
    axes.plot(
        found.confidence[there], found.accuracy[there], "o", color=_BLUE, label="at mean confidence", clip_on=False
    )
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    below.bar(centres, 100 * found.counts / found.counts.sum(), 0.92 * width, color=_GREY)
    below.set(xlabel="confidence (estimated probability that the prediction is right)", ylabel="% of predictions")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    error = f"expected calibration error {100 * found.ece:.1f} %"
    _title(axes, diagnostics.title, f"{error} · {_sizes(diagnostics)}", width=66)
    return figure


def _annotate(axes: Axes, percent: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    for true, row in enumerate(percent):
        for predicted, value in enumerate(row):
            # Zeros stay blank: a reader looks for what is there. A colour of 45 % and more is dark.
            if value > 0:
                text = f"{value:.0f}" if value >= 0.95 else f"{value:.1f}"
                ink = "white" if value >= 45 else "black"
                axes.text(predicted, true, text, ha="center", va="center", color=ink, fontsize=8)


def _ticks(axes: Axes, diagnostics: Diagnostics) -> None:
    count = len(diagnostics.class_names)
    if count > NAMED:
        step = next(step for step in (10, 20, 25, 50, 100, 200, 500, 10**9) if count / step <= 20)
        axes.set_xticks(range(0, count, step))
        axes.set_yticks(range(0, count, step))
        return
    names = [textwrap.shorten(" ".join(name.split()), 28, placeholder="…") or "…" for name in diagnostics.class_names]
    size = 9 if count <= ANNOTATED else 7
    # A name may hold dollar signs: they are no formula.
    axes.set_xticks(
        range(count), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size, parse_math=False
    )
    axes.set_yticks(range(count), names, fontsize=size, parse_math=False)


def _summary(diagnostics: Diagnostics) -> str:
    scores = f"accuracy {100 * diagnostics.accuracy:.1f} % · macro F1 {100 * diagnostics.macro_f1:.1f} %"
    return f"{scores} · {_sizes(diagnostics)}"


def _sizes(diagnostics: Diagnostics) -> str:
    seeds = len(diagnostics.seeds)
    pooled = f"{seeds} seeds pooled" if seeds > 1 else f"seed {diagnostics.seeds[0]}"
    return f"{diagnostics.n_test:,} test images, {pooled}"


def _title(axes: Axes, *texts: str, width: int) -> None:
    """A title of lines that are broken between their parts; a part that is too long by itself is cut."""
    lines: list[str] = []
    for text in texts:
        lines.append("")
        for part in text.split(" · "):
            longer = f"{lines[-1]} · {part}" if lines[-1] else part
            if lines[-1] and len(longer) > width:
                lines.append("")
                longer = part
            lines[-1] = longer if len(longer) <= width else f"{longer[: width - 1]}…"
    axes.set_title("\n".join(lines), fontsize=10, loc="left", parse_math=False)
