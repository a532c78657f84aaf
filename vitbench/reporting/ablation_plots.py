"""The pictures of an ablation: differences as a forest plot; scores by depth, against λ, and against shots."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vitbench.errors import listed
from vitbench.execution.ablation_levels import LOO
from vitbench.records.atomic import slug, write_bytes
from vitbench.reporting.ablation import fixed_text, strata_columns
from vitbench.reporting.ablation_table import AblationReport, Row, Table, backbone_label
from vitbench.solvers.ridge import PAPER_L2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Okabe and Ito's colours, which the common colour blindnesses keep apart; yellow, too pale for a line, is brown here."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
KINDS = ("forest", "depth", "lambda", "shots")
MOST_LEVELS = 16
MOST_SERIES = 8
PANELS_WIDE = 3

_TITLES = {"layer": "Score by depth", "l2": "Score against λ", "shots": "Score against shots"}
_PLACES = {
    "layer": "layer (0: input of the first block)",
    "l2": "penalty λ, on weights of standardised features",
    "shots": "images per class",
}


def draw(report: AblationReport, folder: Path) -> list[Path]:
    """Draw every picture that the ablation has; each is a PNG, written whole or not at all.

    Args:
        report: What is shown.
        folder: Where the pictures go.

    Returns:
        The files, `BACKBONE-AXES-KIND.png`; what an earlier ablation of the same axes drew is replaced.

    Raises:
        StoreError: A picture cannot be written.
    """
    found: list[Path] = []
    bases: set[str] = set()
    for spec in dict.fromkeys(report.records["spec"]):
        mine = report.records[report.records["spec"] == spec]
        limit = mine["limit"].max()
        base = f"{slug(str(mine['backbone_name'].iloc[0]))}-{'-'.join(report.axes)}"
        base += "" if pd.isna(limit) else f"-limit{int(limit)}"
        if base in bases:
            # The same weights by two specs, such as two resolutions.
            base += f"-{hashlib.sha256(str(spec).encode()).hexdigest()[:6]}"
        bases.add(base)
        label = _short(backbone_label(spec)) + ("" if pd.isna(limit) else f"\nLIMITED to {int(limit)} test images")
        drawn = {folder / f"{base}-{kind}.png": figure for kind, figure in _figures(report, spec, mine, label)}
        for path, figure in drawn.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
            write_bytes(path, buffer.getvalue())
        for kind in KINDS:
            if (path := folder / f"{base}-{kind}.png") not in drawn:
                path.unlink(missing_ok=True)  # a picture of other numbers than those shown now
        found += drawn
    return found


def _figures(report: AblationReport, spec: str, records: pd.DataFrame, label: str) -> Iterator[tuple[str, Figure]]:
    tables = [table for table in report.tables if table.backbone == spec]
    compared = {row.level for table in tables for row in table.rows if row.comparison is not None}
    if 0 < len(compared) <= MOST_LEVELS:
        yield "forest", _forest(report, tables, label)
    for axis in ("layer", "l2", "shots"):
        curves = _curves(report, axis, records)
        if curves and max(len(panel.series) for panel in curves) <= MOST_SERIES:
            yield {"layer": "depth", "l2": "lambda", "shots": "shots"}[axis], _lines(axis, curves, label)


def _forest(report: AblationReport, tables: Sequence[Table], label: str) -> Figure:
    """Δ with its interval: a panel for each table, a line for each level and task, the mean over tasks on top."""
    tables = [table for table in tables if any(row.comparison is not None for row in table.rows)]
    lines = list(dict.fromkeys((row.task, row.shown) for table in tables for row in table.rows if row.comparison))
    levels = list(dict.fromkeys(level for _, level in lines))
    tasks = list(dict.fromkeys(task for task, _ in lines))
    heights = {line: -(place + 0.8 * tasks.index(line[0])) for place, line in enumerate(lines)}
    wide = min(len(tables), 4)
    figure = _figure(2.6 + 2.3 * wide, -(-len(tables) // wide) * (1.1 + 0.24 * (len(lines) + len(tasks))))
    axes = figure.subplots(-(-len(tables) // wide), wide, squeeze=False, sharex=True, sharey=True)
    for number, axis in enumerate(axes.flat):
        axis.set_visible(number < len(tables))
    for axis, table in zip(axes.flat, tables, strict=False):
        axis.axvline(0, color="#666666", linewidth=1)
        for row in table.rows:
            if row.comparison is not None:
                _whisker(axis, row, heights[row.task, row.shown], COLOURS[levels.index(row.shown) % len(COLOURS)])
        axis.set_title(_within(table), fontsize=9)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
    axes.flat[0].set_yticks(list(heights.values()), [_line_name(line, len(tasks)) for line in lines], fontsize=8)
    axes.flat[0].set_ylim(min(heights.values()) - 0.8, 0.8)
    reference = next(table.reference for table in tables)
    figure.suptitle(f"{report.compared.capitalize()}: difference to {reference}\n{label}", fontsize=10)
    figure.supxlabel(
        "Δ score in percentage points, with 95 % interval (paired; filled: corrected p < 0.05)", fontsize=9
    )
    return figure


def _whisker(axis: Axes, row: Row, height: float, colour: str) -> None:
    assert row.comparison is not None
    interval, mean = row.comparison.interval, row.task == ""
    if not math.isnan(interval.low):
        axis.hlines(height, 100 * interval.low, 100 * interval.high, color=colour, linewidth=2.4 if mean else 1.4)
    filled = colour if row.p_adjusted < 0.05 else "white"
    axis.plot(
        100 * interval.estimate,
        height,
        marker="D" if mean else "o",
        color=colour,
        markerfacecolor=filled,
        markersize=6 if mean else 5,
        zorder=3,
    )


def _line_name(line: tuple[str, str], tasks: int) -> str:
    task, level = line
    return f"{level} · {task.split('/')[-1] if task else f'mean of {tasks - 1} tasks'}"


def _within(table: Table) -> str:
    return fixed_text(table.at, table.alias_of) or table.setting


@dataclass(frozen=True)
class _Series:
    """One line: a score at every place of the axis, for every seed."""

    name: str
    scores: pd.DataFrame  # columns at, score, seed
    chosen: pd.DataFrame  # of leave-one-out: columns l2, score


@dataclass(frozen=True)
class _Panel:
    title: str
    metric: str
    series: list[_Series]


def _curves(report: AblationReport, axis: str, records: pd.DataFrame) -> list[_Panel]:
    """A panel for each task (and, against λ, each representation); empty where the axis has fewer than two places."""
    records = _placed(axis, records, report)
    if not len(records) or records[records["at"].notna()]["at"].nunique() < 2:
        return []
    records = records[~_is_alias(records)]
    panel_columns = ["task", "representation"] if axis == "l2" else ["task"]
    panels = []
    for _, part in records.groupby(panel_columns, sort=False):
        series = []
        for name, line in part.groupby("line", sort=False):
            chosen = line[line["at"].isna()]
            series.append(_Series(str(name), line[line["at"].notna()], chosen))
        title = str(part["task"].iloc[0]).split("/")[-1]
        title = f"{part['shown'].iloc[0]} · {title}" if axis == "l2" else title
        panels.append(_Panel(title, str(part["metric"].iloc[0]).replace("_", " "), series))
    return panels


def _placed(axis: str, records: pd.DataFrame, report: AblationReport) -> pd.DataFrame:
    """The records with `at`, the place on the axis, `shown`, the representation, and `line`, the name of the line."""
    at = f"at_{axis}"
    if axis != "shots" and at not in records:
        return records.iloc[:0].assign(at=[])
    if axis == "layer":
        parts = records[at].str.extract(r"^(\w+)@(\d+)$")
        records = records.assign(at=pd.to_numeric(parts[1]), pooling=parts[0])
        records = records[records["at"].notna()]
    elif axis == "l2":
        records = records.assign(at=pd.to_numeric(records[at].where(records[at] != LOO)))
    else:
        records = records[records["shot"] > 0]
        records = records.assign(at=records["shot"])
    records = records.assign(shown=_shown(records))
    names = [name for name in strata_columns(report.axes, axis) if name not in ("spec", "representation")]
    first = "pooling" if axis == "layer" else "shown"
    lines = [" · ".join(_part(name, row[name]) for name in names) for _, row in records.iterrows()]
    if axis == "l2":
        return records.assign(line=lines)
    joined = [" · ".join(filter(None, pair)) for pair in zip(records[first], lines, strict=True)]
    return records.assign(line=joined)


def _part(name: str, value: Any) -> str:
    return fixed_text({name: str(value)})


def _shown(records: pd.DataFrame) -> pd.Series:
    """Representations, with those that equal them by construction: `cls (= pooler)`."""
    aliases = records.dropna(subset="alias_of").groupby("alias_of")["representation"].unique()
    return records["representation"].map(
        lambda name: f"{name} (= {', '.join(aliases[name])})" if name in aliases.index else name
    )


def _is_alias(records: pd.DataFrame) -> pd.Series:
    return records["alias_of"].isin(set(records["representation"]))


def _lines(axis: str, panels: Sequence[_Panel], label: str) -> Figure:
    """Mean over seeds with a band of one standard deviation to either side."""
    wide = 2 if len(panels) == 4 else min(len(panels), PANELS_WIDE)
    tall = -(-len(panels) // wide)
    figure = _figure(1.0 + 3.7 * wide, 1.2 + 2.9 * tall)
    axes = figure.subplots(tall, wide, squeeze=False)
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    for number, place in enumerate(axes.flat):
        place.set_visible(number < len(panels))
    for place, panel in zip(axes.flat, panels, strict=False):
        for series in panel.series:
            _line(place, series, names.index(series.name))
        place.set_title(panel.title, fontsize=9)
        place.set_ylabel(f"{panel.metric} in %", fontsize=8)
        place.set_xlabel(_PLACES[axis], fontsize=8)
        place.tick_params(labelsize=8)
        place.grid(color="#dddddd", linewidth=0.6)
        _decorate(place, axis, panel)
    found = [place.get_legend_handles_labels() for place in axes.flat]
    legend = {text: handle for handles, texts in found for handle, text in zip(handles, texts, strict=True)}
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower center",
        ncols=min(len(legend), 2 * wide),
        fontsize=8,
        frameon=False,
    )
    figure.suptitle(f"{_TITLES[axis]}: mean over seeds, band of ± one standard deviation\n{label}", fontsize=10)
    return figure


def _line(axes: Axes, series: _Series, number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    by_place = series.scores.groupby("at")["score"]
    mean, spread = 100 * by_place.mean(), 100 * by_place.std().fillna(0)
    many = len(mean) > 20
    axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        mean.index,
        mean,
        color=colour,
        linestyle=LINES[number % len(LINES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        markevery=4 if many else 1,
        linewidth=1.6,
        label=series.name,
    )
    for _, choice in series.chosen.iterrows():
        axes.plot(
            choice["l2"],
            100 * choice["score"],
            marker="*",
            color=colour,
            markeredgecolor="black",
            markersize=11,
            zorder=4,
        )


def _decorate(axes: Axes, axis: str, panel: _Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    if axis == "l2":
        axes.set_xscale("log", base=2)
        axes.axvline(PAPER_L2, color="#333333", linewidth=1, linestyle=(0, (1, 2)), label="λ = 1024 (big_vision)")
        if any(len(series.chosen) for series in panel.series):
            star = axes.plot([], [], label="chosen by leave-one-out, per seed", marker="*", linestyle="none")[0]
            star.set(color="white", markeredgecolor="black", markersize=11)
    elif axis == "shots":
        places = sorted({int(place) for series in panel.series for place in series.scores["at"]})
        axes.set_xscale("log")
        axes.set_xticks(places, [str(place) for place in places])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _short(label: str, width: int = 90) -> str:
    """A backbone's label for a title: its options are cut where it is too long for the picture."""
    if len(label) <= width:
        return label
    head, *options = label.split(",")
    return f"{head}, {listed(options, most=1)}"[:width]


def _figure(width: float, height: float) -> Figure:
    """A figure that no window knows of, so that drawing many of them keeps none in memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
