"""An ablation's table: its rows, and the table as text for the terminal, as markdown, csv and json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from vitbench.backbones.spec import parse_backbone_spec
from vitbench.reporting.statistics import Comparison, Interval

if TYPE_CHECKING:
    from rich.console import Group

Correction = Literal["holm", "fdr_bh"]
CORRECTIONS: dict[Correction, str] = {"holm": "Holm", "fdr_bh": "Benjamini-Hochberg"}
FORMATS = ("table", "markdown", "csv", "json")
MISSING = "—"

_LACKING = ("absent", "untrained", "failed", "unknown")
_MINUS = "\u2212"


@dataclass(frozen=True)
class Row:
    """A level on one task, or on the mean of all.

    Attributes:
        task: Full name; empty for the mean over tasks.
        level: The level.
        provenance: `trained` or `untrained`; `absent` or `failed` where there is nothing to show.
        alias_of: The representation that this one equals by construction; empty if there is none.
        score: A fraction, the mean over seeds (and tasks); NaN without records or, for a mean, without all tasks.
        interval: Of the score; None for a mean over tasks and where predictions are missing.
        n_seeds: Support sets.
        n_images: Test images.
        comparison: With the reference; None where there is none.
        p_adjusted: Corrected for the number of comparisons.
        counts: Wins, ties and losses over tasks; None for a task.
        remark: Why there is no comparison: it is the reference, equals it, or cannot be paired.
    """

    task: str
    level: str
    provenance: str = ""
    alias_of: str = ""
    score: float = math.nan
    interval: Interval | None = None
    n_seeds: int = 0
    n_images: int = 0
    comparison: Comparison | None = None
    p_adjusted: float = math.nan
    counts: tuple[int, int, int] | None = None
    remark: str = ""

    @property
    def p_value(self) -> float:
        """Of no difference, not corrected; NaN without a comparison."""
        return self.comparison.p_value if self.comparison is not None else math.nan

    @property
    def shown(self) -> str:
        """The level, with what it equals by construction."""
        return f"{self.level} (= {self.alias_of})" if self.alias_of else self.level


@dataclass(frozen=True)
class Table:
    """One backbone at fixed levels of everything but the compared axis.

    Attributes:
        backbone: Its spec.
        at: What is fixed: `spec`, `shot`, `representation`, and further axes, each to its value as text.
        alias_of: The representation that the fixed one equals by construction; empty if there is none.
        label: Backbone and what is fixed, in words.
        setting: The protocol and its parameters, in words.
        reference: The level that others are compared with; None when it has no records.
        rows: Means over tasks first (where there are several tasks), then task by task.
    """

    backbone: str
    at: dict[str, str]
    alias_of: str
    label: str
    setting: str
    reference: str | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class AblationReport:
    """Everything that is shown of an ablation.

    Attributes:
        axes: What was varied.
        compared: The axis of the levels.
        correction: How p-values were corrected for their number.
        tables: In order of backbone and levels.
        notes: Methods, provenances and refusals, a line each.
        records: One row per record, with the level of every axis in a column `at_AXIS` and the backbone's spec in `spec`.
    """

    axes: tuple[str, ...]
    compared: str
    correction: Correction
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    records: pd.DataFrame = field(repr=False)


def backbone_label(spec: str) -> str:
    """A spec for a title: without the folders of its paths."""
    return parse_backbone_spec(spec).long_label


def render(report: AblationReport, form: str) -> str:
    """The report as markdown, csv or json."""
    if form == "markdown":
        return _markdown(report)
    frame = long_table(report)
    if form == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    rows = json.loads(frame.to_json(orient="records"))
    return json.dumps({"notes": list(report.notes), "rows": rows}, indent=2, ensure_ascii=False)


def rich_tables(report: AblationReport) -> Group:
    """The report for the terminal; what a corrected p-value below 0.05 tells apart is bold."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group, RenderableType
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[RenderableType] = []
    for table in report.tables:
        names = _columns(report, table)
        drawn = RichTable(title=escape(_title(report, table)), title_justify="left", box=SIMPLE_HEAD)
        for number, name in enumerate(names):
            drawn.add_column(escape(name), justify="left" if number < _labels(names) else "right", overflow="fold")
        rows = list(_rows(report, table))
        for number, (row, texts) in enumerate(rows):
            last = number + 1 == len(rows) or rows[number + 1][0].task != row.task
            style = (
                "bold"
                if row.p_adjusted < 0.05
                else "dim"
                if row.provenance in _LACKING and math.isnan(row.score)
                else ""
            )
            drawn.add_row(*(Text(texts[name]) for name in names), style=style, end_section=last)
        parts += [drawn]
    notes = [Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in report.notes]
    return Group(*parts, *notes)


def long_table(report: AblationReport) -> pd.DataFrame:
    """One row per level and task, with numbers, for other programs; the mean over tasks has the task `(mean)`."""
    rows = []
    for table in report.tables:
        fixed = {name.removeprefix("at_"): value for name, value in table.at.items() if name != "spec"}
        for row in table.rows:
            rows.append({"backbone": table.backbone, **fixed, **_numbers(report, table, row)})  # noqa: PERF401
    frame = pd.DataFrame(rows)
    counts = ["seeds", "images", "wins", "ties", "losses"]
    return frame.astype(dict.fromkeys(counts, "Int64"))


def _numbers(report: AblationReport, table: Table, row: Row) -> dict[str, Any]:
    one = row.comparison
    wins, ties, losses = row.counts or (None, None, None)
    return {
        "protocol": table.setting,
        "compared": report.compared,
        "task": row.task or "(mean)",
        "level": row.level,
        "reference": table.reference,
        "provenance": row.provenance,
        "alias_of": row.alias_of or None,
        "score": _number(row.score),
        "score_low": _number(row.interval.low) if row.interval else None,
        "score_high": _number(row.interval.high) if row.interval else None,
        "difference": one.difference if one else None,
        "low": _number(one.interval.low) if one else None,
        "high": _number(one.interval.high) if one else None,
        "p_value": _number(one.p_value) if one else None,
        f"p_{report.correction}": _number(row.p_adjusted),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "seeds": row.n_seeds or None,
        "images": row.n_images or None,
        "remark": row.remark or None,
        "method": one.method if one else None,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _title(report: AblationReport, table: Table) -> str:
    against = f" against {table.reference}" if table.reference else ""
    return f"{report.compared}{against} · {table.label} · {table.setting}"


def _columns(report: AblationReport, table: Table) -> list[str]:
    several = any(row.counts for row in table.rows)
    provenance = ["provenance"] if report.compared in ("representation", "layer") else []
    name = CORRECTIONS[report.correction]
    counts = ["wins/ties/losses"] if several else []
    return ["task", report.compared, *provenance, "score [95 %]", "Δ [95 %]", "p", f"p ({name})", *counts]


def _labels(names: list[str]) -> int:
    return names.index("score [95 %]")


def _rows(report: AblationReport, table: Table) -> Iterator[tuple[Row, dict[str, str]]]:
    """Each row with its texts by column; a task's name stands once."""
    tasks = len({row.task for row in table.rows if row.task})
    before = None
    for row in table.rows:
        task = row.task or f"mean of {tasks} tasks"
        yield (
            row,
            {
                "task": task if task != before else "",
                report.compared: row.shown,
                "provenance": row.provenance,
                "score [95 %]": _score(row),
                "Δ [95 %]": _difference(row),
                "p": _p(row.p_value),
                f"p ({CORRECTIONS[report.correction]})": _p(row.p_adjusted),
                "wins/ties/losses": "/".join(map(str, row.counts)) if row.counts else "",
            },
        )
        before = task


def _score(row: Row) -> str:
    if math.isnan(row.score):
        return "not scored" if row.provenance in _LACKING else MISSING
    text = f"{100 * row.score:.1f}"
    if row.interval is None or math.isnan(row.interval.low):
        return text
    return f"{text} [{100 * row.interval.low:.1f}, {100 * row.interval.high:.1f}]"


def _difference(row: Row) -> str:
    if row.comparison is None:
        short = {"reference": "reference", "equals the reference": "0, by construction"}
        return short.get(row.remark, "not paired" if row.remark.startswith("not paired") else MISSING)
    interval = row.comparison.interval
    low, high = ("?" if math.isnan(end) else f"{100 * end:+.1f}" for end in (interval.low, interval.high))
    return f"{100 * interval.estimate:+.1f} [{low}, {high}]".replace("-", _MINUS)


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _markdown(report: AblationReport) -> str:
    parts = []
    for table in report.tables:
        names = _columns(report, table)
        rows = [[texts[name].replace("|", "\\|") for name in names] for _, texts in _rows(report, table)]
        aligned = ["left" if number < _labels(names) else "right" for number in range(len(names))]
        body = pd.DataFrame(rows, columns=names).to_markdown(index=False, colalign=aligned, disable_numparse=True)
        parts += [f"**{_title(report, table)}**", body]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in report.notes)])
