"""Accuracy against cost, and the Pareto front: the rows that no other row beats at both."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitbench.errors import UsageError, listed, unknown
from vitbench.records.atomic import write_bytes
from vitbench.reporting.boards import Leaderboard
from vitbench.reporting.costs import AXES, SPEED
from vitbench.reporting.footnotes import FLOOR_ARCHITECTURE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MORE_IS_BETTER = (SPEED,)
LABELLED = 24
"""Most points that all have a label; of more, only those on the front do."""
LONG_LABEL = 44
"""Characters; a longer label is told below the plot, and its number stands beside the point."""

_POINT, _FRONT, _FLOOR = "#0072B2", "#D55E00", "#595959"


def front(cost: npt.ArrayLike, score: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points lie on the Pareto front: no other costs at most as much and scores at least as high, one of them strictly.

    Args:
        cost: `[N]`, lower is better; for a speed give its negative.
        score: `[N]`, higher is better.

    Returns:
        `[N]` bool; equal points are on the front together; a point with a NaN is never on it.

    Raises:
        ValueError: The shapes differ.
    """
    costs, scores = np.asarray(cost, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if costs.ndim != 1 or costs.shape != scores.shape:
        raise ValueError(f"a front needs a cost for each score, got shapes {costs.shape} and {scores.shape}")
    found = np.zeros(len(costs), dtype=bool)
    best = -np.inf
    known = np.flatnonzero(~(np.isnan(costs) | np.isnan(scores)))
    # By cost, the best score of each cost first: a point is on the front if it scores higher than all that are cheaper.
    order = known[np.lexsort((-scores[known], costs[known]))]
    for start, stop in _runs(costs[order]):
        top = scores[order[start]]
        if top > best:
            found[[place for place in order[start:stop] if scores[place] == top]] = True
            best = top
    return found


def _runs(values: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """First and past-the-last place of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(edges)) if len(values) else []


@dataclass(frozen=True)
class Points:
    """What a Pareto plot shows.

    Attributes:
        axis: The column of the cost, such as `GFLOPs`.
        column: The column of the score.
        table: A row each: `label`, `cost`, `score` and `spread` (both percent; NaN for none), `front`. Representations of one
            backbone that score the same are one point.
        floors: As `table`, the rows that are no model or cost nothing, which a logarithmic axis has no place for.
        missing: Labels of the rows without a measurement or without a score.
    """

    axis: str
    column: str
    table: pd.DataFrame
    floors: pd.DataFrame
    missing: Sequence[str]


def points(board: Leaderboard, cost: str) -> Points:
    """The points of a board that was made with costs, scored by the column that its rows are ranked by.

    Args:
        board: The table.
        cost: `params`, `gflops`, `images_per_second` or `memory`.

    Raises:
        UsageError: There is no such cost, it was measured on several devices, or nothing has it.
    """
    if cost not in AXES:
        raise unknown("cost", cost, AXES)
    found = [name for name in board.extras if name.split(" [")[0] == AXES[cost]]
    if len(found) > 1:
        devices = listed(name.split(" [")[1].rstrip("]") for name in found)
        raise UsageError(f"{AXES[cost]} was measured on several devices ({devices}): name one with --device")
    own = board.cells.iloc[:-1]
    floors = board.records[board.records["architecture"] == FLOOR_ARCHITECTURE][list(board.rows)]
    table = pd.DataFrame(
        {
            "name": [str(labels[0]) for labels in own.index],
            "detail": [" ".join(str(text) for text in labels[1:] if text) for labels in own.index],
            "cost": board.extras[found[0]].values.reindex(own.index).to_numpy(dtype=float),
            "score": own[board.ranked_by].to_numpy(dtype=float),
            "spread": board.spread[board.ranked_by].reindex(own.index).to_numpy(dtype=float),
            "floor": own.index.isin(list(floors.itertuples(index=False, name=None))),
        }
    )
    table["floor"] |= table["cost"] <= 0
    whole = table[table["score"].notna() & (table["cost"].notna() | table["floor"])]
    missing = (table["name"] + " " + table["detail"]).drop(index=whole.index)
    dear = _merged(whole[~whole["floor"]])
    if not len(dear):
        raise UsageError(
            f"no row of '{board.title}' has both a score in '{board.ranked_by}' and {AXES[cost]}: measure with vitbench cost"
        )
    sign = -1 if AXES[cost] in MORE_IS_BETTER else 1
    dear = dear.assign(front=front(sign * dear["cost"], dear["score"]))
    return Points(found[0], board.ranked_by, dear, _merged(whole[whole["floor"]]), list(missing))


def _merged(table: pd.DataFrame) -> pd.DataFrame:
    """One row for those of one backbone at one place, with a `label` that names them all."""
    places = table.groupby(["name", "cost", "score"], sort=False, dropna=False)
    found = places.agg(detail=("detail", ", ".join), spread=("spread", "first")).reset_index()
    same = found["name"] == found["detail"]
    return found.assign(label=found["name"].where(same, found["name"] + " " + found["detail"]).str.strip())


def save_pareto(board: Leaderboard, cost: str, path: Path) -> Points:
    """Draw accuracy against cost and write the PNG (150 dpi), whole or not at all.

    Args:
        board: A table that was made with costs.
        cost: As for `points`.
        path: The file.

    Raises:
        UsageError: As for `points`, or the file is no PNG.
        StoreError: The file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"the plot is a PNG: name it {path.with_suffix('.png').name}")
    shown = points(board, cost)
    told = AXES[cost].split(" (")[0]
    notes = [note for note in board.notes if note.startswith(f"{told}:")]
    buffer = io.BytesIO()
    _figure(shown, board.title, notes).savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    write_bytes(path, buffer.getvalue())
    return shown


def _figure(shown: Points, title: str, notes: Sequence[str]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(9, 6))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    table = shown.table
    backward = shown.axis.startswith(MORE_IS_BETTER)
    axes.set_xscale("log")
    axes.errorbar(
        table["cost"],
        table["score"],
        yerr=table["spread"].fillna(0),
        fmt="none",
        ecolor="#B0B0B0",
        elinewidth=1,
        zorder=1,
    )
    on = table[table["front"]].sort_values("cost")
    off = table[~table["front"]]
    steps = "steps-pre" if backward else "steps-post"
    axes.plot(on["cost"], on["score"], color=_FRONT, linewidth=1.4, drawstyle=steps, zorder=2)
    axes.scatter(on["cost"], on["score"], color=_FRONT, marker="D", s=36, zorder=3, label="Pareto front")
    if len(off):
        axes.scatter(off["cost"], off["score"], color=_POINT, marker="o", s=30, zorder=3, label="not on the front")
    for _, row in shown.floors.iterrows():
        axes.axhline(
            row["score"], color=_FLOOR, linewidth=1, linestyle=":", label=f"{row['label']}, at no cost to speak of"
        )
    better = "more is better" if backward else "less is better"
    axes.set_xlabel(f"{shown.axis}, logarithmic ({better})")
    axes.set_ylabel(f"{shown.column}, %")
    axes.set_title(_wrapped(title, 90), loc="left", fontsize=10)
    axes.grid(visible=True, which="major", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = float(table["cost"].min()), float(table["cost"].max())
    axes.set_xlim(low / (high / low) ** 0.08 / 1.12, high * (high / low) ** 0.25 * 1.35)
    axes.margins(y=0.12)
    # One power of ten may hold no point between two of its ticks: the narrower the range, the more ticks are named.
    named_ticks = (
        (1.0,) if high / low > 100 else (1.0, 2.0, 5.0) if high / low > 4 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    )
    axes.xaxis.set_major_locator(LogLocator(subs=named_ticks, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    named = table if len(table) <= LABELLED else on
    key = _name_points(figure, axes, table, named, _line_boxes(figure, axes, on, backward))
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3, frameon=False, fontsize=8)
    lines = [*key, *notes, *(["error bars: standard deviation over seeds"] if table["spread"].notna().any() else [])]
    lines += [f"not shown, without a score or a measurement: {listed(shown.missing)}"] if shown.missing else []
    lines += [f"{len(table) - len(on)} points off the front have no label"] if len(named) < len(table) else []
    text = "\n".join(_wrapped(line, 115) for line in lines)
    axes.annotate(text, (0, -0.2), xycoords="axes fraction", fontsize=8, color=_FLOOR, va="top")
    return figure


def _line_boxes(figure: Figure, axes: Axes, on: pd.DataFrame, backward: bool) -> list[Bbox]:
    """Where the level parts of the front's line are, in pixels of the figure."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    at = axes.transData.transform(on[["cost", "score"]].to_numpy())
    pairs = pairwise(at.tolist())
    return [
        Bbox.from_extents(x, (end if backward else start) - 2, next_x, (end if backward else start) + 2)
        for (x, start), (next_x, end) in pairs
    ]


def _name_points(
    figure: Figure, axes: Axes, table: pd.DataFrame, named: pd.DataFrame, lines: Sequence[Bbox]
) -> list[str]:
    """A label beside each point of `named`, moved up or down until it covers no other label, no point and no line.

    Returns:
        What the numbers stand for that take the place of long labels, a line each.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    at = axes.transData.transform(table[["cost", "score"]].to_numpy())
    taken = [*lines, *(Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in at)]
    middle = axes.transAxes.transform((0.8, 0))[0]
    key: list[str] = []
    for _, row in named.sort_values("score", ascending=False).iterrows():
        text = row["label"]
        if len(text) > LONG_LABEL:
            key.append(f"{len(key) + 1}: {text}")
            text = str(len(key))
        left = axes.transData.transform((row["cost"], row["score"]))[0] < middle
        label = axes.annotate(
            text,
            (row["cost"], row["score"]),
            xytext=(8 if left else -8, 0),
            textcoords="offset points",
            fontsize=8,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            va="center",
            ha="left" if left else "right",
            arrowprops={
                "arrowstyle": "-",
                "color": "#A0A0A0",
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 3,
                "relpos": (0.0 if left else 1.0, 0.5),
            },
        )
        for step in range(2 * len(table) + 8):
            label.set_position((8 if left else -8, _away(step)))
            label.update_positions(renderer)
            # Of the text alone: an annotation's own extent holds its line too.
            box = Text.get_window_extent(label, renderer).padded(1)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
    return key


def _away(step: int) -> float:
    """Points up or down: 0, -6, 6, -12, 12 and so on."""
    return 6.0 * ((step + 1) // 2) * (-1 if step % 2 else 1)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_long_words=True, break_on_hyphens=False))
