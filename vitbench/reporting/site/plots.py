"""Plots of the report, as plotly figures without colours of the theme: the page's script adds those."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from plotly import graph_objects

from vitbench.reporting.site.content import Plot

COLOURS = ("#3f7fd9", "#d97706", "#1f9d72", "#a66bd4", "#dc4c5a", "#1495ab", "#c85a9d", "#8a8d24")
"""Told apart on white and on black, each at least 3:1 against both."""

DASHES = ("solid", "dash", "dot", "dashdot")
MOST_LINES = 10
MOST_BANDS = 4
MOST_NAMES = 6
"""Points of a front that are labelled in the plot: of more, the labels would lie on each other."""

ON_FRONT = "on the front"


@dataclass(frozen=True)
class Line:
    """Scores of one row against shots.

    Attributes:
        name: What the legend says.
        shots: Increasing; 0 stands for all train images.
        scores: In percent.
        low: Lower ends of the intervals, in percent; NaN where there is none.
        high: Upper ends.
    """

    name: str
    shots: Sequence[int]
    scores: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Difference:
    """One row of a forest plot, in percentage points; `clear` for a difference that is one."""

    name: str
    estimate: float
    low: float
    high: float
    clear: bool
    said: str


def shots_plot(lines: Sequence[Line], caption: str, summary: str) -> Plot:
    """Accuracy against shots on a logarithmic axis, with a band for each interval.

    Args:
        lines: Best first; those beyond `MOST_LINES` wait in the legend, to be switched on.
        caption: What is shown.
        summary: The same for whoever cannot see it.
    """
    figure = graph_objects.Figure()
    ticks = sorted({shot for line in lines for shot in line.shots})
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        shown: bool | str = True if number < MOST_LINES else "legendonly"
        x, group = [float(shot) for shot in line.shots], f"line{number}"
        known = [place for place, low in enumerate(line.low) if low == low]
        if known:
            figure.add_scatter(
                x=[*(x[place] for place in known), *(x[place] for place in reversed(known))],
                y=[*(line.high[place] for place in known), *(line.low[place] for place in reversed(known))],
                fill="toself",
                # Many bands on each other would hide the lines.
                fillcolor=_faded(colour, 0.16 if len(lines) <= MOST_BANDS else 0.1),
                line={"width": 0, "color": colour},
                mode="lines",
                hoverinfo="skip",
                legendgroup=group,
                showlegend=False,
                visible=shown,
            )
        figure.add_scatter(
            x=x,
            y=list(line.scores),
            name=literal(line.name),
            legendgroup=group,
            visible=shown,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": DASHES[number // len(COLOURS) % len(DASHES)]},
            marker={"size": 7, "symbol": number % 8},
            customdata=[_between(low, high) for low, high in zip(line.low, line.high, strict=True)],
            hovertemplate="%{y:.1f} % %{customdata}",
        )
    figure.update_layout(
        xaxis={
            "type": "log",
            "title": {"text": "images per class"},
            "tickvals": ticks,
            "ticktext": [str(tick) for tick in ticks],
        },
        yaxis={"title": {"text": "score, %"}, "automargin": True},
        hovermode="x unified",
        legend={"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0, "xanchor": "left"},
        margin={"l": 55, "r": 10, "t": 15, "b": 45},
    )
    return _plot(figure, caption, summary, 400 + 22 * min(len(lines), 16))


def forest_plot(differences: Sequence[Difference], caption: str, summary: str) -> Plot:
    """Differences with their intervals, one below the other, around a line at none.

    A filled mark is a difference that is clear after correction, an open one is not.
    """
    figure = graph_objects.Figure()
    places = list(range(len(differences)))
    figure.add_scatter(
        x=[row.estimate for row in differences],
        y=places,
        mode="markers",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [row.high - row.estimate for row in differences],
            "arrayminus": [row.estimate - row.low for row in differences],
            "color": COLOURS[0],
            "thickness": 1.5,
            "width": 4,
        },
        marker={
            "size": 10,
            "color": COLOURS[0],
            "line": {"width": 2, "color": COLOURS[0]},
            "symbol": ["circle" if row.clear else "circle-open" for row in differences],
        },
        customdata=[f"{literal(row.name)}: {literal(row.said)}" for row in differences],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(
        xaxis={"title": {"text": "difference, percentage points"}, "zeroline": True, "zerolinewidth": 2},
        yaxis={
            "tickvals": places,
            "ticktext": [row.name for row in differences],
            "range": [len(differences) - 0.4, -0.6],
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
        },
        margin={"l": 20, "r": 15, "t": 10, "b": 45},
    )
    return _plot(figure, caption, summary, 110 + 34 * len(differences))


def cost_plot(
    points: Sequence[tuple[str, float, float]], front: Sequence[int], axis: str, caption: str, summary: str
) -> Plot:
    """Score against cost, the front drawn through the points that no other one beats.

    Args:
        points: Name, cost, score in percent.
        front: Places in `points` of those on the front, in order of cost.
        axis: What the cost is.
        caption: What is shown.
        summary: The same for whoever cannot see it.
    """
    figure = graph_objects.Figure()
    names = [literal(name) for name, _, _ in points]
    ends = [points[place] for place in front]
    named = len(front) <= MOST_NAMES
    middle = sqrt(min(cost for _, cost, _ in points) * max(cost for _, cost, _ in points))
    figure.add_scatter(
        x=[cost for _, cost, _ in ends],
        y=[score for _, _, score in ends],
        mode="lines",
        line={"color": COLOURS[1], "width": 2, "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for label, chosen, colour, symbol in (
        (ON_FRONT, [place for place in range(len(points)) if place in set(front)], COLOURS[1], "diamond"),
        ("behind it", [place for place in range(len(points)) if place not in set(front)], COLOURS[0], "circle"),
    ):
        if chosen:
            figure.add_scatter(
                x=[points[place][1] for place in chosen],
                y=[points[place][2] for place in chosen],
                mode="markers+text" if named and label == ON_FRONT else "markers",
                text=[names[place] for place in chosen],
                textposition=["top right" if points[place][1] < middle else "top left" for place in chosen],
                name=label,
                marker={"size": 10, "color": colour, "symbol": symbol},
                customdata=[names[place] for place in chosen],
                hovertemplate="%{customdata}<br>%{x:,} · %{y:.1f} %<extra></extra>",
            )
    figure.update_layout(
        xaxis={"type": "log", "title": {"text": axis}, "showgrid": True},
        yaxis={"title": {"text": "score, %"}, "automargin": True},
        legend={"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0, "xanchor": "left"},
        margin={"l": 55, "r": 15, "t": 15, "b": 45},
    )
    return _plot(figure, caption, summary, 460)


def confusion_plot(names: Sequence[str], shares: Sequence[Sequence[float]], caption: str, summary: str) -> Plot:
    """A confusion matrix of many classes as a heat map: rows are labels, columns predictions, colours shares of the row."""
    texts = [literal(name) for name in names]
    figure = graph_objects.Figure()
    figure.add_heatmap(
        z=[[round(share, 1) if share == share else None for share in row] for row in shares],
        zmin=0,
        zmax=100,
        colorscale="Viridis",
        colorbar={"title": {"text": "%"}, "thickness": 12},
        customdata=texts,
        hovertemplate="label %{y}, prediction %{x}: %{z} %<extra></extra>",
    )
    step = max(1, len(names) // 20)
    ticks = {"tickvals": list(range(0, len(names), step)), "ticktext": list(names[::step])}
    figure.update_layout(
        xaxis={"title": {"text": "prediction"}, **ticks, "automargin": True, "showgrid": False, "tickangle": -90},
        yaxis={
            "title": {"text": "label"},
            **ticks,
            "automargin": True,
            "showgrid": False,
            "range": [len(names) - 0.5, -0.5],
        },
        margin={"l": 60, "r": 10, "t": 10, "b": 60},
    )
    return _plot(figure, caption, summary, 620)


def reliability_plot(
    confidence: Sequence[float], accuracy: Sequence[float], share: Sequence[float], caption: str, summary: str
) -> Plot:
    """Accuracy against confidence, bin by bin, in percent; a bar below each shows the share of images in it."""
    figure = graph_objects.Figure()
    figure.add_bar(
        x=list(confidence),
        y=list(share),
        name="share of images",
        marker={"color": _faded(COLOURS[0], 0.3)},
        width=3,
        hovertemplate="%{y:.0f} % of the images<extra></extra>",
    )
    figure.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        line={"dash": "dot", "color": COLOURS[1]},
        name="perfect",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=list(confidence),
        y=list(accuracy),
        mode="lines+markers",
        name="measured",
        line={"color": COLOURS[0], "width": 2},
        marker={"size": 8},
        hovertemplate="confidence %{x:.0f} %, right %{y:.0f} %<extra></extra>",
    )
    figure.update_layout(
        xaxis={"title": {"text": "confidence, %"}, "range": [0, 102]},
        yaxis={"title": {"text": "right, %"}, "range": [0, 102], "automargin": True},
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0, "xanchor": "left"},
        margin={"l": 55, "r": 10, "t": 10, "b": 45},
    )
    return _plot(figure, caption, summary, 380)


def literal(text: str) -> str:
    """`text` such that plotly, which reads a little HTML in every text, shows it as it is."""
    return html.escape(text, quote=False)


def _plot(figure: graph_objects.Figure, caption: str, summary: str, height: int) -> Plot:
    figure.update_layout(template="none")
    spec: Mapping[str, Any] = json.loads(figure.to_json())
    layout = {key: value for key, value in spec["layout"].items() if key != "template"}
    return Plot(caption, summary, {"data": spec["data"], "layout": layout}, height)


def _between(low: float, high: float) -> str:
    return "" if low != low else f"[{low:.1f}, {high:.1f}]"


def _faded(colour: str, strength: float) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{strength})"
