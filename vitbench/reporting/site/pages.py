"""The pages of all backbones and tasks at once: leaderboards, lists, runs, methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import pandas as pd

from vitbench.errors import UsageError
from vitbench.reporting.boards import Leaderboard
from vitbench.reporting.labels import ROW_LABELS, in_episodes, shot_label
from vitbench.reporting.leaderboard import leaderboards
from vitbench.reporting.site.collection import Collection, page_names
from vitbench.reporting.site.content import Block, Cell, Column, Facts, Lines, Links, Page, Plot, Section, Table
from vitbench.reporting.site.evidence import Evidence
from vitbench.reporting.site.plots import MOST_LINES, Line, shots_plot
from vitbench.reporting.site.tables import (
    board_table,
    measurement,
    models_table,
    number,
    protocol_text,
    shortened,
    tasks_table,
    unique,
)
from vitbench.reporting.statistics import Interval
from vitbench.tasks.task import Task

AREAS = (
    ("Leaderboards", "index.html"),
    ("Tasks", "tasks.html"),
    ("Backbones", "backbones.html"),
    ("Ablations", "ablations.html"),
    ("Cost", "cost.html"),
    ("Runs", "runs.html"),
    ("Methods", "methods.html"),
)

USUAL_SHOT = 10


@dataclass(frozen=True)
class Setting:
    """The leaderboards of one protocol with one set of parameters at one shot.

    Attributes:
        name: Protocol, parameters and limit in words.
        shot: What tells it from the others of that name.
        boards: Its tables.
        path: The page that they are on.
    """

    name: str
    shot: str
    boards: Sequence[Leaderboard]
    path: str

    @property
    def records(self) -> pd.DataFrame:
        """The records behind its tables."""
        return pd.concat([board.records for board in self.boards])


@dataclass(frozen=True)
class Report:
    """Everything that pages are made of.

    Attributes:
        collection: The records.
        evidence: Intervals and paired differences.
        settings: The leaderboards, page by page; the first is the front page.
        tasks: Full name to the loaded task, or to why it could not be loaded.
        without: What is left out of every leaderboard, a line each.
    """

    collection: Collection
    evidence: Evidence
    settings: Sequence[Setting]
    tasks: Mapping[str, Task | str] = field(default_factory=dict)
    without: Sequence[str] = ()

    @property
    def headline(self) -> Setting | None:
        """The front page's leaderboards; None where no record has a score."""
        return self.settings[0] if self.settings else None


def settings(
    collection: Collection, suites: Mapping[str, Sequence[str]], published: pd.DataFrame
) -> tuple[list[Setting], list[str]]:
    """Every leaderboard that the records allow, by page, and what is left out.

    The front page has the setting with the most measurements; of equals 10 shots, else the most.
    """
    records = pd.concat([collection.records, collection.contradicting])
    records = records.assign(backbone=records["spec"])
    names = setting_names(records)
    found: dict[tuple[str, str], list[Leaderboard]] = {}
    without = []
    for limited in (False, True):
        if not (records["limit"].notna() if limited else records["limit"].isna()).any():
            continue
        try:
            boards = leaderboards(records, limited=limited, suites=suites, published=published)
        except UsageError as error:
            without.append(str(error))
            continue
        for board in boards:
            first, shots = board.records.iloc[0], board.records["shot"].unique()
            shot = shot_label(int(shots[0]), first["n_support"]) if len(shots) == 1 else f"all shots, {first['task']}"
            found.setdefault((names[first["setting"]], shot), []).append(board)

    def rank(key: tuple[str, str]) -> tuple[bool, int, bool, int]:
        shown = pd.concat([board.records for board in found[key]])
        shots = shown["shot"].tolist()
        return bool(shown["limit"].isna().all()), shown["cell"].nunique(), USUAL_SHOT in shots, max(shots)

    front = max(found, key=rank) if found else None
    files = page_names(" ".join(key) for key in found)
    ordered = sorted(found, key=lambda key: key != front)
    return [
        Setting(*key, found[key], "index.html" if key == front else f"boards/{files[' '.join(key)]}.html")
        for key in ordered
    ], without


def setting_names(records: pd.DataFrame) -> dict[int, str]:
    """Number of a setting to its protocol in words, with all parameters where the words alone would be another's too."""
    firsts = records.drop_duplicates("setting")
    words = [protocol_text(row) for _, row in firsts.iterrows()]
    return {
        setting: text if words.count(text) == 1 else f"{text} ({parameters})"
        for setting, text, parameters in zip(firsts["setting"], words, firsts["parameters"], strict=True)
    }


def board_pages(report: Report) -> Iterator[Page]:
    """The leaderboards; the front page first."""
    collection, records = report.collection, report.collection.records
    if not report.settings:
        yield Page("index.html", "Leaderboards", [*_problems(report)], area="Leaderboards")
    for setting in report.settings:
        front = setting is report.headline
        facts = Facts(
            [
                ("backbones", [Cell(f"{len(collection.models):,}", href="backbones.html")]),
                ("tasks", [Cell(f"{len(collection.tasks):,}", href="tasks.html")]),
                ("records", [Cell(f"{len(records):,}", href="runs.html")]),
                ("newest record", [Cell(records["created"].max()[:10])]),
            ]
        )
        tables: list[Block] = [board_table(board, collection) for board in setting.boards]
        top: list[Block] = [facts] if front else []
        sections = [Section("", [*top, *_other_settings(report, setting)])]
        sections += _problems(report) if front else []
        sections.append(Section("", tables))
        if plot := _mean_against_shots(report, setting):
            sections.append(Section("Against shots", [plot]))
        yield Page(
            setting.path,
            "Leaderboards" if front else f"{setting.name} · {setting.shot}",
            sections,
            lead="How good are the features of each backbone? Every number leads to the records behind it."
            if front
            else "",
            area="Leaderboards",
            crumbs=() if front else [Cell("Leaderboards", href="index.html")],
        )


_MOST_REASONS = 8


def _problems(report: Report) -> list[Section]:
    lines = [*report.collection.problems, *report.without]
    blocks: list[Block] = [Lines(lines, "problem")] if lines else []
    if report.evidence.problems:
        counts = Counter(report.evidence.problems.values()).most_common(_MOST_REASONS)
        told = [
            f"{count} measurement{'s' if count > 1 else ''} without an interval over test images and without comparisons: {text}"
            for text, count in counts
        ]
        blocks.append(Lines(told, "warning"))
    return [Section("What is wrong with these records", blocks, anchor="problems")] if blocks else []


def _other_settings(report: Report, current: Setting) -> list[Links]:
    """A row of links for each protocol: its shots."""
    if len(report.settings) < 2:
        return []
    names = sorted({setting.name for setting in report.settings})
    rows = []
    for name in names:
        same = [setting for setting in report.settings if setting.name == name]
        same.sort(key=lambda setting: (len(setting.shot.split("-")[0]), setting.shot))
        cells = [Cell(setting.shot, href=setting.path) for setting in same]
        rows.append(Links(name, cells, current.shot if name == current.name else ""))
    return rows


def _mean_against_shots(report: Report, setting: Setting) -> Plot | None:
    """The mean over the setting's tasks against shots, for rows that have all of them."""
    records = report.collection.records
    same = records[(records["setting"] == setting.records["setting"].iloc[0]) & (records["shot"] > 0)]
    columns = same["column"].nunique()
    if same["shot"].nunique() < 2:
        return None
    lines = mean_lines(same, report.evidence, columns)
    if not lines:
        return None
    what = f"mean of {columns} tasks" if columns > 1 else str(same["column"].iloc[0])
    caption = (
        f"Score against images per class: {what}, {setting.name}. The bands are 95 % intervals over "
        + ("episodes" if in_episodes(same).all() else "support sets and test images")
        + ("; those of the tasks are independent, so half widths add as squares." if columns > 1 else ".")
        + ("" if len(lines) <= MOST_LINES else " The ten best are drawn: choose others in the legend.")
    )
    best = lines[0]
    summary = f"Score against shots for {len(lines)} rows. Best at the end: {best.name} with {best.scores[-1]:.1f} %."
    return shots_plot(lines, caption, summary)


def mean_lines(records: pd.DataFrame, evidence: Evidence, columns: int) -> list[Line]:
    """For every row that has all of `columns` tasks at two shots or more, its mean over them against shots; best first."""
    if records["shot"].nunique() < 2:
        return []
    cells = records.groupby([*ROW_LABELS, "shot", "cell"], sort=False)["score"].mean().reset_index()
    lines = []
    for _, row in cells.groupby(ROW_LABELS, sort=False):
        whole = [(int(part["shot"].iloc[0]), part) for _, part in row.groupby("shot") if len(part) == columns]
        if len(whole) < 2:
            continue
        middle = [100 * float(part["score"].mean()) for _, part in whole]
        intervals = [[evidence.intervals.get(cell) for cell in part["cell"].tolist()] for _, part in whole]
        ends = [_mean_ends(found, centre) for found, centre in zip(intervals, middle, strict=True)]
        name = " · ".join(label for label in row.iloc[0][ROW_LABELS].tolist() if label)
        lines.append(
            Line(name, [shot for shot, _ in whole], middle, [low for low, _ in ends], [high for _, high in ends])
        )
    return sorted(lines, key=lambda line: -line.scores[-1])


def _mean_ends(intervals: Sequence[Interval | None], middle: float) -> tuple[float, float]:
    """The ends of a mean's interval, in percent: independent errors add as squares."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return float("nan"), float("nan")
    below = sqrt(sum((100 * (one.estimate - one.low)) ** 2 for one in known)) / len(known)
    above = sqrt(sum((100 * (one.high - one.estimate)) ** 2 for one in known)) / len(known)
    return middle - below, middle + above


def tasks_page(report: Report) -> Page:
    """The list of tasks."""
    titles = {name: task.spec.title for name, task in report.tasks.items() if isinstance(task, Task)}
    best = {}
    records = report.collection.records
    for task, own in records.dropna(subset="score").groupby("task"):
        scores = own.groupby("cell")["score"].mean()
        first = own[own["cell"] == scores.idxmax()].iloc[0]
        about = (
            f"{first['backbone']} · {first['representation']} · {shot_label(int(first['shot']), first['n_support'])}"
        )
        best[str(task)] = Cell(f"{100 * scores.max():.1f}", href=measurement(first)), Cell(about)
    table = tasks_table(report.collection, titles, best)
    return Page("tasks.html", "Tasks", [Section("", [table])], area="Tasks")


def models_page(report: Report) -> Page:
    """The list of backbones, with the best row of each on the front page's first table."""
    scores: dict[str, Cell] = {}
    name = "score %"
    if report.headline:
        board = report.headline.boards[0]
        name = f"{board.cells.columns[-1]} % ({report.headline.shot})"
        rows = board.records[ROW_LABELS].itertuples(index=False, name=None)
        models = dict(zip(rows, board.records["model"], strict=True))
        ranked = board.cells[board.cells.columns[-1]].iloc[:-1].dropna()
        labels: Any
        for labels, value in zip(ranked.index.tolist(), ranked.tolist(), strict=True):
            scores.setdefault(models[labels], Cell(f"{value:.1f}", href="index.html", aside=labels[1]))
    table = models_table(report.collection, scores, name)
    return Page("backbones.html", "Backbones", [Section("", [table])], area="Backbones")


def runs_page(report: Report) -> Page:
    """Where the records come from: commands, code, machines, time; and what was noted on the way."""
    records, runs = report.collection.records, report.collection.runs
    rows, sections = [], []
    for place, run in enumerate(runs):
        own = records[records["run"] == place]
        rows.append(
            [
                Cell(f"run {place + 1}", href=f"#run-{place + 1}"),
                Cell(shortened(run.command), code=True),
                number(len(own)),
                Cell(_minute(own["created"].min())),
                Cell(run.git_commit),
                number(own["seconds"].sum(), f"{own['seconds'].sum():.1f}"),
            ]
        )
        facts = [
            ("command", [Cell(run.command, code=True)]),
            (
                "records",
                [
                    Cell(
                        f"{len(own):,}",
                        aside=f"made {_minute(own['created'].min())} to {_minute(own['created'].max())} UTC",
                    )
                ],
            ),
            ("vitbench checkout", [Cell(run.git_commit)]),
            ("machine", [Cell(run.host), Cell(run.device), Cell(f"Python {run.python}")]),
            ("versions", [Cell(" · ".join(run.versions))]),
            ("evaluation", [Cell(f"{own['seconds'].sum():.1f} s", aside="without extraction of features")]),
        ]
        sections.append(Section(f"Run {place + 1}", [Facts(facts)], anchor=f"run-{place + 1}", folded=len(runs) > 3))
    columns = [
        *[Column("run"), Column("command"), Column("records", numeric=True), Column("begun (UTC)", whole=True)],
        *[Column("vitbench checkout"), Column("evaluation s", numeric=True)],
    ]
    overview = Table("Runs: records that one command made with the same code on one machine", columns, rows)
    return Page(
        "runs.html", "Runs", [Section("", [overview]), *_noted(records), *_problems(report), *sections], area="Runs"
    )


def _minute(created: str) -> str:
    return created[:16].replace("T", " ")


def _noted(records: pd.DataFrame) -> list[Section]:
    """Warnings, deviations from task files, and notes on weights."""
    lines = [
        *(
            f"{task}: {text}"
            for task, text in records.loc[records["deviations"] != "", ["task", "deviations"]].value_counts().index
        ),
        *(
            f"{task}: {text}"
            for task, text in records.loc[records["warnings"] != "", ["task", "warnings"]].value_counts().index
        ),
    ]
    notes = records[["backbone", "weights_notes"]].explode("weights_notes").dropna().drop_duplicates()
    blocks: list[Block] = [Lines(lines, "warning")] if lines else []
    if len(notes):
        blocks.append(Lines([f"{label}: {note}" for label, note in notes.itertuples(index=False)]))
    return [Section("Warnings, deviations and notes", blocks, folded=len(lines) + len(notes) > 12)] if blocks else []


def setting_facts(records: pd.DataFrame) -> list[tuple[str, list[Cell]]]:
    """What the records of one task say of their data, in facts."""
    first, drawn = records.iloc[0], in_episodes(records)
    facts = [
        ("metric", unique(records["metric"].tolist())),
        ("chance", [Cell(f"{100 * first['chance']:.1f} %")]),
        ("classes", unique([f"{count:,}" for count in records["num_classes"]])),
        ("test images", unique([f"{count:,}" for count in records["n_test"][~drawn]])),
        ("queries of all episodes", unique([f"{count:,}" for count in records["n_test"][drawn]])),
        ("splits", unique((records["train_split"] + " → " + records["test_split"]).tolist())),
        ("source", unique(records["source"].tolist())),
    ]
    return [(name, cells) for name, cells in facts if cells]
