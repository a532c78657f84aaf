"""The pictures of a diagnosis: its confusion matrix and its reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitbench.errors import UsageError
from vitbench.reporting.diagnostics import Diagnostics
from vitbench.training import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY = "#0072b2", "#888888"


def confusion_figure(diagnostics: Diagnostics) -> Figure:
    """The confusion matrix in percent of each true class; see `vitbench.training.pictures.confusion_figure`."""
    return pictures.confusion_figure(
        diagnostics.confusion, diagnostics.class_names, diagnostics.title, _summary(diagnostics)
    )


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
