"""A page per task, and a page per backbone and task with the records themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from vitbench.reporting.diagnostics import is_of
from vitbench.reporting.labels import ROW_LABELS, in_episodes, shot_label
from vitbench.reporting.site import diagnosis
from vitbench.reporting.site.content import Beside, Block, Cell, Column, Facts, Lines, Page, Section, Table
from vitbench.reporting.site.evidence import Evidence
from vitbench.reporting.site.pages import USUAL_SHOT, Report, mean_lines, setting_facts
from vitbench.reporting.site.plots import MOST_LINES, shots_plot
from vitbench.reporting.site.tables import (
    MISSING,
    measurement,
    model_page,
    number,
    percent,
    protocol_text,
    record_page,
    span,
    task_page,
)
from vitbench.tasks.task import Task

MOST_CLASSES = 400
"""A heat map of more classes than this has cells smaller than a pixel: it is left out."""

MOST_DIAGNOSED = 500
"""Backbones × tasks up to which every page of records looks at its predictions too; beyond, the task pages alone do, or a report
would take minutes."""


def task_pages(report: Report) -> Iterator[Page]:
    """The page of every task that has records."""
    for task, page in report.collection.tasks.items():
        records = report.collection.records[report.collection.records["task"] == task]
        loaded = report.tasks.get(task, "its data was not asked for")
        sections = [Section("", _about(records, loaded))]
        for _, same in records.groupby(["setting", "column"], sort=False):
            sections.append(
                Section(_setting_name(same), [*_against_shots(same, report.evidence), _scores(same, report.evidence)])
            )
        sections.append(_best(records, loaded))
        title = loaded.spec.title if isinstance(loaded, Task) and loaded.spec.title else task
        lead = loaded.spec.description if isinstance(loaded, Task) else ""
        yield Page(task_page(page), title, sections, lead=lead, area="Tasks", crumbs=[Cell("Tasks", href="tasks.html")])


def _setting_name(records: pd.DataFrame) -> str:
    first = records.iloc[0]
    return protocol_text(first) + str(first["column"]).removeprefix(str(first["task"]))


def _about(records: pd.DataFrame, loaded: Task | str) -> list[Block]:
    first = records.iloc[0]
    facts: list[tuple[str, Sequence[Cell]]] = [("name", [Cell(str(first["task"]), code=True)]), *setting_facts(records)]
    if isinstance(loaded, Task):
        spec = loaded.spec
        facts.append(("licence", [Cell(spec.licence or "not stated")]))
        if spec.citation:
            facts.append(("citation", [Cell(spec.citation, href=spec.homepage)]))
    blocks: list[Block] = [Facts(facts)]
    said = []
    if bool(records["synthetic"].any()):
        said.append("synthetic: the images were rendered by a program, not photographed")
    said += [f"not as its task file says: {text}" for text in records["deviations"].unique() if text]
    if said:
        blocks.append(Lines(said, "warning"))
    if isinstance(loaded, Task) and loaded.spec.notes:
        blocks.append(Lines(loaded.spec.notes))
    return blocks


def _against_shots(records: pd.DataFrame, evidence: Evidence) -> list[Block]:
    drawn = records[records["shot"] > 0]
    lines = mean_lines(drawn, evidence, 1) if len(drawn) else []
    if not lines:
        return []
    caption = (
        f"Score ({records['metric'].iloc[0]}) against images per class. The bands are 95 % intervals over "
        + ("episodes." if in_episodes(drawn).all() else "support sets and test images.")
        + ("" if len(lines) <= MOST_LINES else " The ten best are drawn: choose others in the legend.")
    )
    best = lines[0]
    return [shots_plot(lines, caption, f"Score against shots for {len(lines)} rows. Best at the end: {best.name}.")]


def _scores(records: pd.DataFrame, evidence: Evidence) -> Table:
    """Every row at every shot with its interval."""
    shots = sorted(records["shot"].unique(), key=lambda shot: (shot == 0, shot))
    variants = bool((records["variant"] != "").any())
    cells = records.groupby([*ROW_LABELS, "shot"], sort=False).agg(
        score=("score", "mean"), **{name: (name, "first") for name in ("cell", "model", "task_page")}
    )
    best = cells["score"].groupby(level="shot").max()
    order = cells["score"].groupby(level=ROW_LABELS).max().sort_values(ascending=False, kind="stable").index
    rows = []
    for labels in order:
        model = cells.loc[labels]["model"].iloc[0]
        row = [Cell(labels[0], href=model_page(model)), Cell(labels[1]), *([Cell(labels[2])] if variants else [])]
        for shot in shots:
            if (*labels, shot) not in cells.index:
                row.append(Cell(MISSING))
                continue
            found = cells.loc[(*labels, shot)]
            row.append(
                Cell(
                    percent(found["score"]),
                    href=measurement(found),
                    aside=span(evidence.intervals.get(int(found["cell"]))),
                    strong=bool(found["score"] == best[shot]),
                )
            )
        rows.append(row)
    columns = [Column("backbone"), Column("representation", choices=True), *([Column("variant")] if variants else [])]
    notes = [
        f"{records['metric'].iloc[0]} in %, mean over seeds, with its interval: {_interval_method(records, evidence)}"
    ]
    guess = [
        Cell("chance"),
        Cell(""),
        *([Cell("")] if variants else []),
        *[Cell(percent(records["chance"].iloc[0]))] * len(shots),
    ]
    names = [Column(shot_label(int(shot)), numeric=True) for shot in shots]
    return Table("Scores of all backbones", [*columns, *names], rows, below=[guess], notes=notes, anchor="")


def _interval_method(records: pd.DataFrame, evidence: Evidence) -> str:
    methods = [evidence.intervals[cell].method for cell in records["cell"].unique() if cell in evidence.intervals]
    if not methods:
        return "none, for the predictions cannot be read"
    several = "" if len(set(methods)) == 1 else "; others differ in their numbers of seeds or images"
    return f"95 %, {max(set(methods), key=methods.count)}{several}"


def _best_measurement(records: pd.DataFrame) -> pd.DataFrame:
    """The records of the best row at the usual shot, or at the most shots that there are."""
    full = records[records["limit"].isna()] if records["limit"].isna().any() else records
    shots = set(full["shot"])
    at = full[full["shot"] == (USUAL_SHOT if USUAL_SHOT in shots else max(shots))]
    scores = at.groupby("cell")["score"].mean()
    return at[at["cell"] == (scores.idxmax() if scores.notna().any() else scores.index[0])]


def _best(records: pd.DataFrame, loaded: Task | str) -> Section:
    """What the best row gets right and wrong."""
    best = _best_measurement(records)
    first = best.iloc[0]
    shot = shot_label(int(first["shot"]), first["n_support"])
    heading = f"Right and wrong: {first['backbone']} · {first['shown']}, the best at {shot}"
    task = loaded if isinstance(loaded, Task) else None
    found = diagnosis.diagnosis(best, task)
    if isinstance(found, str):
        return Section(heading, [Lines([found], "warning")], anchor="diagnosis")
    blocks = diagnosis.overview(found)
    if len(found.class_names) <= MOST_CLASSES:
        blocks.append(diagnosis.confusion(found, "Confusion matrix"))
    pairs = [diagnosis.pairs_table(found)] if len(found.pairs) else []
    blocks.append(Beside([diagnosis.classes_table(found), *pairs]))
    if calibration := diagnosis.calibration(found):
        blocks.append(calibration)
    if task is None:
        blocks.append(Lines([f"no test images are shown: {loaded}"]))
    elif is_of(task, first):
        blocks += diagnosis.galleries(found, task.test)
    return Section(heading, blocks, anchor="diagnosis")


def record_pages(report: Report) -> Iterator[Page]:
    """The records of every backbone on every task."""
    for (model, page), records in report.collection.records.groupby(["model", "task_page"], sort=False):
        first = records.iloc[0]
        label = report.collection.models[str(model)]
        facts: list[tuple[str, Sequence[Cell]]] = [
            ("backbone", [Cell(label, href=model_page(str(model)))]),
            ("task", [Cell(str(first["task"]), href=task_page(str(page)))]),
            ("preprocessing", [Cell(str(text), code=True) for text in records["preprocessing"].unique()]),
            ("compute dtype", [Cell(str(text)) for text in records["dtype"].unique()]),
            *setting_facts(records),
            ("made by", [Cell(f"run {run + 1}", href=f"runs.html#run-{run + 1}") for run in records["run"].unique()]),
        ]
        said = [text for text in [*records["deviations"].unique(), *records["warnings"].unique()] if text]
        sections = [
            Section("", [Facts(facts), *([Lines(said, "warning")] if said else [])]),
            Section("Measurements", [_measurements(records, report.evidence)]),
            Section("Records", [_records(records)]),
            Section("Identity", [_identity(records)]),
        ]
        if len(report.collection.models) * len(report.collection.tasks) <= MOST_DIAGNOSED:
            sections.append(_in_short(records))
        yield Page(
            record_page(first),
            f"{label} on {first['task']}",
            sections,
            area="Runs",
            crumbs=[Cell("Backbones", href="backbones.html"), Cell(label, href=model_page(str(model)))],
        )


def _measurements(records: pd.DataFrame, evidence: Evidence) -> Table:
    rows, problems = [], []
    for _, own in records.groupby("cell", sort=False):
        first = own.iloc[0]
        cell = int(first["cell"])
        interval = evidence.intervals.get(cell)
        problems += [evidence.problems[cell]] if cell in evidence.problems else []
        spread = own["score"].std(ddof=1)
        rows.append(
            [
                Cell(" ".join(filter(None, (str(first["shown"]), str(first["variant"])))), anchor=f"m{cell}"),
                Cell(protocol_text(first)),
                number(first["shot"], shot_label(int(first["shot"]), first["n_support"])),
                number(len(own)),
                Cell(percent(own["score"].mean(), 2), aside="" if pd.isna(spread) else f"± {100 * spread:.2f}"),
                Cell(span(interval)),
            ]
        )
    columns = [
        *[Column("representation", choices=True), Column("protocol", choices=True), Column("shot", numeric=True)],
        *[Column("seeds", numeric=True), Column("score %", numeric=True), Column("95 % interval", whole=True)],
    ]
    notes = [
        "score: mean over seeds ± standard deviation over seeds (n − 1)",
        f"interval: {_interval_method(records, evidence)}",
    ]
    return Table(
        "A measurement is one representation at one shot, over its seeds",
        columns,
        rows,
        notes=[*notes, *dict.fromkeys(problems)],
    )


def _records(records: pd.DataFrame) -> Table:
    metrics = [
        name
        for name in ("accuracy", "top5_accuracy", "mean_per_class_accuracy", "macro_f1", "multilabel_hit")
        if name in records
    ]
    metrics = [name for name in metrics if records[name].notna().any()]
    rows = [
        [
            Cell(str(record["key"]), code=True, anchor=f"r-{record['path'].stem}"),
            Cell(str(record["representation"])),
            number(record["shot"]),
            number(record["seed"]),
            *(Cell(percent(record[name], 2), strong=name == record["metric"]) for name in metrics),
            Cell(MISSING) if pd.isna(record.get("l2")) else Cell(f"{record['l2']:g}", value=float(record["l2"])),
            number(record["n_support"]),
            number(record["seconds"], f"{record['seconds']:.3f}"),
            Cell(str(record["created"]).replace("T", " ")[:16]),
        ]
        for _, record in records.iterrows()
    ]
    columns = [
        *[
            Column("record"),
            Column("representation", choices=True),
            Column("shot", numeric=True),
            Column("seed", numeric=True),
        ],
        *(Column(f"{name.replace('_', ' ')} %", numeric=True) for name in metrics),
        *[
            Column("λ", numeric=True),
            Column("learned from", numeric=True),
            Column("seconds", numeric=True),
            Column("made (UTC)", whole=True),
        ],
    ]
    return Table("One record per seed; its name is its file's below the output folder", columns, rows)


def _identity(records: pd.DataFrame) -> Facts:
    """What must be equal for a result to be used again; one value where all records of the page agree."""
    names = {
        "architecture": "architecture",
        "weights": "weights (sha256)",
        "train_fingerprint": "train split",
        "test_fingerprint": "test split",
        "parameters": "parameters of the protocol",
        "identity_version": "version of the scheme",
    }
    return Facts(
        [(text, [Cell(str(value), code=True) for value in records[name].unique()]) for name, text in names.items()]
    )


def _in_short(records: pd.DataFrame) -> Section:
    """Confusions and classes of the backbone's best measurement, without images."""
    best = _best_measurement(records)
    first = best.iloc[0]
    heading = f"Right and wrong: {first['shown']} · {shot_label(int(first['shot']), first['n_support'])}"
    found = diagnosis.diagnosis(best, None)
    if isinstance(found, str):
        return Section(heading, [Lines([found], "warning")])
    pairs = [diagnosis.pairs_table(found)] if len(found.pairs) else []
    return Section(heading, [*diagnosis.overview(found), Beside([diagnosis.classes_table(found), *pairs])], folded=True)
