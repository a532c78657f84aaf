"""The pictures of a training run: its learning curve, and the confusion matrix of its test predictions with a table of counts."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vitbench.records.atomic import write_bytes, write_text
from vitbench.training.history import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

ANNOTATED = 20
"""Most classes whose numbers are written in the cells of a confusion matrix."""
NAMED = 100
"""Most classes whose names stand at its sides; of more, every tenth or hundredth has its number."""
SMOOTHED = 60
"""Number of points above which a curve also has its running mean."""

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#888888"
_NAME = 28


def save_learning_curve(history: Sequence[Entry], path: Path, title: str, *, resumed: Sequence[int] = ()) -> None:
    """Draw the learning curve and write it as PNG (150 dpi), whole or not at all.

    Args:
        history: The lines of the history, in order of step.
        path: The file.
        title: What was trained on what; lines that are too long are broken.
        resumed: Steps after which the run was interrupted and taken up again.

    Raises:
        ValueError: The history is empty.
        StoreError: The file cannot be written.
    """
    write_bytes(path, _png(learning_curve(history, title, resumed=resumed)))


def save_confusion(counts: IntArray, class_names: Sequence[str], path: Path, title: str) -> None:
    """Write a confusion matrix as a picture, PNG (150 dpi), and its counts as CSV beside it, each whole or not at all.

    The table has a row for each true class and a column for each predicted one, after the column `true`.

    Args:
        counts: `[K, K]`, as `confusion_counts` gives.
        class_names: K names, or none: then classes are their numbers.
        path: The picture; the table has its name with the suffix `.csv`.
        title: As for `save_learning_curve`; the number of images is added.

    Raises:
        ValueError: There are neither K names nor none.
        StoreError: A file cannot be written.
    """
    import pandas as pd

    names = _names(counts, class_names)
    table = pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=names)
    write_text(path.with_suffix(".csv"), table.to_csv(lineterminator="\n"))
    write_bytes(path, _png(confusion_figure(counts, class_names, title)))


def confusion_counts(labels: IntArray, predictions: IntArray, num_classes: int) -> IntArray:
    """How many images of each true class were taken for each class.

    Args:
        labels: `[N]` int64 in `[0, num_classes)`, N ≥ 1.
        predictions: `[N]` int64 in `[0, num_classes)`.
        num_classes: K.

    Returns:
        `[K, K]` int64: rows are true classes, columns predicted ones.

    Raises:
        ValueError: A label or a prediction is not one of the classes.
    """
    from sklearn.metrics import confusion_matrix

    both = np.concatenate([labels, predictions])
    if not 0 <= both.min() <= both.max() < num_classes:
        raise ValueError(f"labels and predictions must be from 0 to {num_classes - 1}")
    counts: IntArray = confusion_matrix(labels, predictions, labels=np.arange(num_classes)).astype(np.int64)
    return counts


def learning_curve(history: Sequence[Entry], title: str, *, resumed: Sequence[int] = ()) -> Figure:
    """Loss, training accuracy and learning rate against the step, one below the other.

    Where there are many points, they are faint and their running mean is drawn over them. A history without any accuracy, as with
    mixed labels, has no panel for it. Losses that are not finite are gaps, told below the title.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not history:
        raise ValueError("a learning curve needs a history of at least one step")
    steps = np.array([entry.step for entry in history])
    loss, accuracy, rate = (
        np.array([getattr(entry, name) for entry in history], dtype=np.float64)
        for name in ("loss", "accuracy", "learning_rate")
    )
    measured = bool(np.isfinite(accuracy).any())
    panels = 3 if measured else 2
    figure = Figure(figsize=(7.0, 1.4 + 1.9 * panels), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, height_ratios=[3, 2, 1.2] if measured else [3, 1.2])
    _curve(axes[0], steps, loss, _BLUE)
    axes[0].set_ylabel("training loss")
    axes[0].set_ylim(bottom=0)
    if measured:
        _curve(axes[1], steps, accuracy, _GREEN)
        axes[1].set_ylabel("training accuracy")
        axes[1].set_ylim(0, 1.03)
        axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes[-1].plot(steps, rate, color=_ORANGE, linewidth=1.4, marker="o" if len(history) == 1 else None)
    axes[-1].set(ylabel="learning rate", xlabel="step")
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlim(left=0)
    axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    for panel in axes:
        panel.grid(color="#e5e5e5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        for step in resumed:
            panel.axvline(step, color=_GREY, linestyle=":", linewidth=1.0)
    figure.align_ylabels()
    lines = [title, *_about(steps, loss, resumed)]
    axes[0].set_title("\n".join(_wrapped(lines, 92)), fontsize=10, loc="left", parse_math=False)
    return figure


def confusion_figure(counts: IntArray, class_names: Sequence[str], title: str, summary: str = "") -> Figure:
    """The confusion matrix in percent of the images of each true class.

    Up to `ANNOTATED` classes have their numbers written in the cells, up to `NAMED` their names at the sides. Colours grow with
    the square root, so that confusions of a few percent show beside a diagonal of 100. A class without an image is a grey row.

    Args:
        counts: `[K, K]`, rows true, columns predicted.
        class_names: K names, or none.
        title: What is shown.
        summary: A line below the title; the number of images if not given.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(counts)
    totals = counts.sum(axis=1, keepdims=True)
    percent = np.full(counts.shape, np.nan)
    np.divide(100.0 * counts, totals, out=percent, where=totals > 0)
    side = 4.2 + 0.45 * count if count <= ANNOTATED else min(4.2 + 0.18 * count, 13.0)
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#dddddd")
    image = axes.imshow(
        np.ma.masked_invalid(percent), cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest"
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("% of the images of the true class")
    if count <= ANNOTATED:
        _annotate(axes, percent)
    _name_classes(axes, _names(counts, class_names), bool(class_names))
    axes.set(xlabel="predicted", ylabel="true")
    lines = _wrapped([title, summary or f"{int(counts.sum()):,} images"], round(side * 9))
    axes.set_title("\n".join(lines), fontsize=10, loc="left", parse_math=False)
    return figure


def _curve(axes: Axes, steps: IntArray, values: FloatArray, colour: str) -> None:
    if len(steps) <= SMOOTHED:
        axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3)
        return
    import pandas as pd

    window = len(steps) // 30
    mean = pd.Series(values).rolling(window, center=True, min_periods=1).mean()
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8, label="logged")
    axes.plot(steps, mean, color=colour, linewidth=1.8, label=f"mean of {window}")
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _about(steps: IntArray, loss: FloatArray, resumed: Sequence[int]) -> list[str]:
    """What the curves do not say by themselves."""
    broken = steps[~np.isfinite(loss)]
    lines = [f"the loss is not finite at {len(broken)} logged steps, from step {broken[0]:,} on"] if len(broken) else []
    if resumed:
        lines.append(f"dotted: resumed after step {' and '.join(f'{step:,}' for step in resumed)}")
    return lines


def _annotate(axes: Axes, percent: FloatArray) -> None:
    for true, row in enumerate(percent):
        for predicted, value in enumerate(row):
            # Zeros stay blank: a reader looks for what is there. A colour of 45 % and more is dark.
            if value > 0:
                text = f"{value:.0f}" if value >= 0.95 else f"{value:.1f}"
                ink = "white" if value >= 45 else "black"
                axes.text(predicted, true, text, ha="center", va="center", color=ink, fontsize=8)


def _name_classes(axes: Axes, names: Sequence[str], named: bool) -> None:
    count = len(names)
    if count > NAMED or (count > ANNOTATED and not named):
        step = next(step for step in (5, 10, 20, 25, 50, 100, 200, 500, 10**9) if count / step <= 20)
        axes.set_xticks(range(0, count, step))
        axes.set_yticks(range(0, count, step))
        return
    shown = [textwrap.shorten(" ".join(name.split()), _NAME, placeholder="…") or "…" for name in names]
    size = 9.0 if count <= ANNOTATED else max(5.0, min(8.0, 420 / count))
    turned = {"rotation": 90} if count > ANNOTATED else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    # A name may hold dollar signs: they are no formula.
    axes.set_xticks(range(count), shown, fontsize=size, parse_math=False, **(turned if named else {}))
    axes.set_yticks(range(count), shown, fontsize=size, parse_math=False)


def _names(counts: IntArray, class_names: Sequence[str]) -> list[str]:
    if class_names and len(class_names) != len(counts):
        raise ValueError(f"{len(class_names)} names were given for {len(counts)} classes")
    return list(map(str, class_names)) or list(map(str, range(len(counts))))


def _wrapped(texts: Sequence[str], width: int) -> list[str]:
    """The texts' lines; one of more than `width` characters is broken between its parts, or in a part that is too long."""
    lines: list[str] = []
    for line in "\n".join(texts).splitlines():
        lines.append("")
        for part in line.split(" · "):
            longer = f"{lines[-1]} · {part}" if lines[-1] else part
            if len(longer) <= width:
                lines[-1] = longer
            else:
                lines += textwrap.wrap(part, width)
    return [line for line in lines if line]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()
