"""A page per backbone, and the ablations of all."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vitbench.reporting.labels import shot_label
from vitbench.reporting.site.content import Block, Cell, Column, Facts, Lines, Page, Section, Table
from vitbench.reporting.site.evidence import Ablation
from vitbench.reporting.site.pages import USUAL_SHOT, Report
from vitbench.reporting.site.plots import Difference, forest_plot
from vitbench.reporting.site.tables import (
    MISSING,
    measurement,
    model_page,
    number,
    p_text,
    percent,
    points,
    protocol_text,
    span,
    task_page,
)
from vitbench.reporting.statistics import Comparison, OverTasks, adjust, mean_over_tasks, paired_over_tasks

MOST_ROWS = 40
"""Of a forest plot; the table holds the others."""


def model_pages(report: Report) -> Iterator[Page]:
    """The page of every backbone that has records."""
    for model, label in report.collection.models.items():
        records = report.collection.records[report.collection.records["model"] == model]
        sections = [Section("", _about(records)), Section("Representations", [_representations(records)])]
        sections.append(Section("Scores", [_scores(records, report)], anchor="scores"))
        own = set(records["cell"])
        ablations = [ablation for ablation in report.evidence.ablations if ablation.cell in own]
        if ablations:
            sections.append(
                Section("One representation against another", _by_task(ablations, records), anchor="ablation")
            )
        yield Page(
            model_page(model), label, sections, area="Backbones", crumbs=[Cell("Backbones", href="backbones.html")]
        )


def _about(records: pd.DataFrame) -> list[Block]:
    first = records.iloc[0]
    notes = list(dict.fromkeys(note for noted in records["weights_notes"] for note in noted))
    facts: list[tuple[str, Sequence[Cell]]] = [
        ("written as", [Cell(text, code=True) for text in records["spec"].unique()]),
        ("architecture", [Cell(str(first["architecture"]), code=True)]),
        ("parameters", [Cell(f"{first['num_parameters']:,}", aside="without any classifier")]),
        ("weights (sha256)", [Cell(str(first["weights"]), code=True)]),
        ("preprocessing", [Cell(text, code=True) for text in records["preprocessing"].unique()]),
        ("compute dtype", [Cell(text) for text in records["dtype"].unique()]),
        ("device", [Cell(text) for text in records["device"].unique()]),
    ]
    blocks: list[Block] = [Facts(facts)]
    return [*blocks, Lines([f"when the weights were loaded: {note}" for note in notes])] if notes else blocks


def _representations(records: pd.DataFrame) -> Table:
    rows = []
    for name, own in records.groupby("representation", sort=False):
        first = own.iloc[0]
        alias = f"equals {first['alias_of']} on this backbone" if isinstance(first["alias_of"], str) else ""
        pooling, _, layer = str(name).partition("@")
        rows.append(
            [
                Cell(str(name)),
                number(first["representation_dim"]),
                Cell(" and ".join(own["representation_provenance"].unique())),
                Cell(alias),
                Cell(f"output of block {layer}" if layer and "+" not in pooling else "output"),
                number(own["task"].nunique()),
                number(len(own)),
            ]
        )
    columns = [
        *[Column("representation"), Column("dimensions", numeric=True), Column("weights"), Column("alias")],
        *[Column("layer"), Column("tasks", numeric=True), Column("records", numeric=True)],
    ]
    return Table("What was scored", columns, rows)


def _scores(records: pd.DataFrame, report: Report) -> Table:
    """Every task × representation, at every shot."""
    shots = sorted(records["shot"].unique(), key=lambda shot: (shot == 0, shot))
    intervals = report.evidence.intervals
    rows = []
    keys = ["column", "shown", "variant", "protocol", "protocol_label", "parameters", "limit"]
    for _, row in records.groupby(keys, dropna=False, sort=False):
        first = row.iloc[0]
        cells = [
            Cell(str(first["column"]), href=task_page(str(first["task_page"]))),
            Cell(f"{first['shown']} {first['variant']}".strip()),
            Cell(protocol_text(first)),
        ]
        for shot in shots:
            own = row[row["shot"] == shot]
            if not len(own):
                cells.append(Cell(MISSING))
                continue
            interval = intervals.get(int(own["cell"].iloc[0]))
            cells.append(Cell(percent(own["score"].mean()), href=measurement(own.iloc[0]), aside=span(interval)))
        rows.append(cells)
    columns = [Column("task", choices=True), Column("representation", choices=True), Column("protocol", choices=True)]
    notes = ["each task's own metric in %, mean over seeds, with its 95 % interval over support sets and test images"]
    return Table(
        "Scores", [*columns, *(Column(shot_label(int(shot)), numeric=True) for shot in shots)], rows, notes=notes
    )


def _by_task(ablations: Sequence[Ablation], records: pd.DataFrame) -> list[Block]:
    """The differences of one backbone: a plot of one shot, a table of all."""
    firsts = _firsts(records)
    shots = {firsts[ablation.cell]["shot"] for ablation in ablations}
    drawn = USUAL_SHOT if USUAL_SHOT in shots else max(shots)
    rows: list[list[Cell]] = []
    differences: list[Difference] = []
    for ablation in ablations:
        first, reference = firsts[ablation.cell], firsts[ablation.reference_cell]
        name = f"{first['column']} · {first['representation']}"
        rows.append(
            [
                Cell(str(first["column"]), href=task_page(str(first["task_page"]))),
                Cell(f"{first['shown']} − {reference['shown']}"),
                number(first["shot"], shot_label(int(first["shot"]), first["n_support"])),
                Cell(
                    points(ablation.comparison.difference),
                    href=measurement(first),
                    value=ablation.comparison.difference,
                ),
                Cell(_ends(ablation.comparison)),
                Cell(p_text(ablation.adjusted), value=ablation.adjusted),
            ]
        )
        if first["shot"] == drawn and len(differences) < MOST_ROWS:
            differences.append(_difference(name, ablation.comparison, ablation.adjusted))
    columns = [
        Column("task", choices=True),
        Column("difference of", choices=True),
        Column("shot", numeric=True, choices=True),
    ]
    names = [Column("Δ points", numeric=True), Column("95 % interval", whole=True), Column("p (Holm)", numeric=True)]
    against = firsts[ablations[0].reference_cell]["representation"]
    caption = (
        f"Difference to {against} at {shot_label(int(drawn))}, task by task, with 95 % intervals. A filled mark is a difference "
        "that stays clear after Holm's correction, an open one does not."
    )
    summary = "; ".join(f"{one.name} {one.said}" for one in differences[:6])
    notes = list(dict.fromkeys(ablation.comparison.method for ablation in ablations))[:3]
    plot = forest_plot(differences, caption, summary)
    return [plot, Table("Paired differences", [*columns, *names], rows, notes=[f"method: {note}" for note in notes])]


def _difference(name: str, comparison: Comparison, p_value: float) -> Difference:
    low, high = comparison.interval.low, comparison.interval.high
    said = f"{points(comparison.difference)} points, {_ends(comparison)}, p {p_text(p_value)}"
    return Difference(name, 100 * comparison.difference, 100 * low, 100 * high, bool(p_value < 0.05), said)


def _ends(comparison: Comparison) -> str:
    low, high = comparison.interval.low, comparison.interval.high
    return MISSING if low != low else f"{points(low)} to {points(high)}"


@dataclass(frozen=True)
class _OverTasks:
    """One representation of one backbone against its reference, over tasks, at one setting.

    Attributes:
        first: A record of the representation.
        reference: A record of what it is compared with.
        mean: The mean difference over these tasks.
        over: What the tasks say one by one, and as a sample.
    """

    first: Mapping[Hashable, Any]
    reference: Mapping[Hashable, Any]
    mean: Comparison
    over: OverTasks

    @property
    def setting(self) -> tuple[str, int]:
        """Protocol in words, and shot: the family within which p-values are corrected."""
        return protocol_text(self.first), int(self.first["shot"])


def ablations_page(report: Report) -> Page:
    """The question of the house: which representation is best? Every backbone's own against its reference, over tasks."""
    records = report.collection.records
    found = list(_over_tasks(report.evidence.ablations, records))
    aliases = _aliases(records)
    if not found:
        lines = [
            "no backbone has two representations that were scored on the same support sets: vitbench run -r cls,gap,…"
        ]
        return Page("ablations.html", "Ablations", [Section("", [Lines([*lines, *aliases])])], area="Ablations")
    settings = [row.setting for row in found]
    p_values = dict.fromkeys(range(len(found)), float("nan"))
    for setting in set(settings):
        members = [place for place, own in enumerate(settings) if own == setting]
        p_values |= dict(zip(members, adjust([found[place].mean.p_value for place in members]).tolist(), strict=True))
    labels = report.collection.models
    drawn = max(set(settings), key=lambda setting: (settings.count(setting), setting[1] == USUAL_SHOT, setting))
    differences = [
        _difference(f"{labels[row.first['model']]} · {row.first['representation']}", row.mean, p_values[place])
        for place, row in enumerate(found)
        if row.setting == drawn
    ]
    differences.sort(key=lambda one: -one.estimate)
    plot = forest_plot(
        differences[:MOST_ROWS],
        f"Mean difference over tasks to the backbone's reference (cls where it has one, else gap), {drawn[0]} · "
        f"{shot_label(drawn[1])}, with 95 % intervals. A filled mark is a difference that stays clear after Holm's correction, "
        "an open one does not."
        + (
            f" The first {MOST_ROWS} of {len(differences)}; the table holds all."
            if len(differences) > MOST_ROWS
            else ""
        ),
        "; ".join(f"{one.name} {one.said}" for one in differences[:6]),
    )
    protocols = len({setting[0] for setting in settings}) > 1
    rows = [_ablation_row(row, p_values[place], labels, protocols) for place, row in enumerate(found)]
    columns = [
        *[Column("backbone"), Column("representation", choices=True), Column("against", choices=True)],
        *[Column("weights", choices=True), *([Column("protocol", choices=True)] if protocols else [])],
        *[Column("shot", numeric=True, choices=True), Column("mean Δ points", numeric=True)],
        *[Column("95 % interval", whole=True), Column("p (Holm)", numeric=True)],
        *[Column("won · tied · lost", numeric=True), Column("p over tasks", numeric=True)],
    ]
    caption = "Representations against each other, over tasks" + ("" if protocols else f" · {drawn[0]}")
    return Page(
        "ablations.html",
        "Ablations",
        [Section("", [plot, Table(caption, columns, rows, notes=[*_NOTES, *aliases])])],
        lead="Which representation is best: CLS, GAP, or what the backbone's own pooler makes? Differences, not scores.",
        area="Ablations",
    )


_NOTES = (
    "paired: the same support sets and the same test images on both sides; Δ in percentage points, above 0 where the "
    "representation is better than what it is compared with",
    "interval and p are of the mean over these very tasks (seeds and test images, two-way random effects); p is corrected "
    "for the number of rows of the same protocol and shot (Holm), bold below 0.05",
    "won, lost: tasks whose own 95 % interval does not hold 0; p over tasks takes the tasks as a sample of tasks like these (t "
    "test, not corrected)",
)


def _over_tasks(ablations: Sequence[Ablation], records: pd.DataFrame) -> Iterator[_OverTasks]:
    firsts = _firsts(records)
    keys = ["model", "preprocessing", "dtype", "representation", "setting", "shot"]
    groups: dict[tuple[object, ...], list[Ablation]] = {}
    for ablation in ablations:
        own, against = firsts[ablation.cell], firsts[ablation.reference_cell]["representation"]
        groups.setdefault((*(own[name] for name in keys), against), []).append(ablation)
    for members in groups.values():
        comparisons = [member.comparison for member in members]
        over = paired_over_tasks([one.difference for one in comparisons], [one.interval for one in comparisons])
        yield _OverTasks(firsts[members[0].cell], firsts[members[0].reference_cell], mean_over_tasks(comparisons), over)


def _firsts(records: pd.DataFrame) -> dict[int, Mapping[Hashable, Any]]:
    """Number of a measurement to its first record."""
    return {row["cell"]: row for row in records.drop_duplicates("cell").to_dict("records")}


def _ablation_row(row: _OverTasks, p_value: float, labels: Mapping[str, str], protocols: bool) -> list[Cell]:
    first, over = row.first, row.over
    return [
        Cell(labels[first["model"]], href=f"{model_page(first['model'])}#ablation"),
        Cell(f"{first['shown']} {first['variant']}".strip()),
        Cell(str(row.reference["shown"])),
        Cell(str(first["representation_provenance"])),
        *([Cell(protocol_text(first))] if protocols else []),
        number(first["shot"], shot_label(int(first["shot"]), first["n_support"])),
        Cell(points(row.mean.difference), value=row.mean.difference, strong=p_value < 0.05),
        Cell(_ends(row.mean)),
        Cell(p_text(p_value), value=p_value),
        Cell(f"{over.wins} · {over.ties} · {over.losses}", value=float(over.wins - over.losses)),
        Cell(p_text(over.t_p_value), value=None if math.isnan(over.t_p_value) else over.t_p_value),
    ]


def _aliases(records: pd.DataFrame) -> list[str]:
    named = records[records["alias_of"].map(lambda name: isinstance(name, str))]
    pairs = named[["backbone", "representation", "alias_of"]].drop_duplicates()
    return [
        f"{one.backbone}: {one.representation} equals {one.alias_of}, so there is no difference to show"
        for one in pairs.itertuples()
    ]
