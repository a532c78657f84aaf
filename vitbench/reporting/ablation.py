"""The table of an ablation: every level against a reference, on the same support sets and the same test images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from vitbench.errors import StoreError, UsageError
from vitbench.execution.ablation import Ablation
from vitbench.execution.ablation_levels import Subject
from vitbench.records.store import ResultStore, as_frame, find_records
from vitbench.reporting import statistics
from vitbench.reporting.ablation_table import CORRECTIONS, AblationReport, Correction, Row, Table, backbone_label
from vitbench.reporting.hits import PAIRING_FIELDS, Hits, hits, shared_seeds
from vitbench.reporting.labels import shot_label

_OF_FEATURES = ("representation", "layer")
_UNPAIRED = {
    "train_fingerprint": "other train images, so other support sets",
    "test_fingerprint": "other test images",
    "limit": "another --limit, so other test images",
    "shot": "other support sets",
    "num_classes": "another number of classes",
    "identity_version": "another scheme of identities",
}
"""Field in which two levels differ to the reason why they cannot be paired."""


def report(ablation: Ablation, correction: Correction = "holm") -> AblationReport:
    """Compare every level with the reference.

    Args:
        ablation: What was run.
        correction: For the number of comparisons; the rows over tasks are one family, those of single tasks another.

    Raises:
        UsageError: There is no record.
    """
    records = measured(ablation)
    subjects = {subject.backbone: subject for subject in ablation.subjects}
    tables = []
    for at, part in _strata(records, ablation):
        tables.append(_table(at, part, subjects[at["spec"]], ablation.compared))
    tables = _adjusted(tables, correction)
    notes = (*_methods(tables, ablation, correction), *_lacking(ablation), *_remarks(tables))
    return AblationReport(ablation.axes, ablation.compared, correction, tuple(tables), notes, records)


def measured(ablation: Ablation) -> pd.DataFrame:
    """The records of an ablation with the levels at which each was measured: columns `spec`, `at_AXIS` and `path`.

    Raises:
        UsageError: There is none.
    """
    if not ablation.measurements:
        raise UsageError("the ablation has no record: every level failed, for the reasons above")
    store = ResultStore(ablation.out)
    paths = {path.stem: path for path in find_records(ablation.out)}
    frame = as_frame(store.read(key) for key in dict.fromkeys(one.key for one in ablation.measurements))
    levels = pd.DataFrame(
        [
            {"key": one.key, "spec": one.backbone, **{f"at_{axis}": level for axis, level in one.levels.items()}}
            for one in ablation.measurements
        ]
    ).drop_duplicates()
    return levels.merge(frame, on="key").assign(path=lambda found: found["key"].map(paths))


def strata_columns(axes: Sequence[str], compared: str) -> list[str]:
    """The columns of `measured` that are fixed within one table."""
    fixed = ["spec"]
    if compared not in _OF_FEATURES:
        fixed.append("representation")
    if compared != "shots":
        fixed.append("shot")
    return fixed + [f"at_{axis}" for axis in axes if axis not in (compared, "shots", *_OF_FEATURES)]


def _strata(records: pd.DataFrame, ablation: Ablation) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    columns = strata_columns(ablation.axes, ablation.compared)
    for values, part in records.groupby(columns, sort=False, dropna=False):
        yield {name: str(value) for name, value in zip(columns, values, strict=True)}, part


def fixed_text(at: Mapping[str, str], alias: str = "") -> str:
    """What is fixed, in words: `pooler (= cls) · 5-shot · dtype float32`."""
    parts = []
    for name, value in at.items():
        if name == "shot":
            parts.append(shot_label(int(value)))
        elif name != "spec":
            text = f"{value} (= {alias})" if name == "representation" and alias else value
            parts.append(f"{name.removeprefix('at_')} {value}" if name.startswith("at_") else text)
    return " · ".join(parts)


def _table(at: dict[str, str], part: pd.DataFrame, subject: Subject, compared: str) -> Table:
    rows: list[Row] = []
    reference = subject.reference
    for task, same in part.groupby("task", sort=False):
        rows += _task_rows(str(task), same, subject, compared, reference)
    tasks = list(dict.fromkeys(row.task for row in rows))
    if len(tasks) > 1:
        rows = [*_mean_rows(rows, tasks, subject, compared), *rows]
    first = part.iloc[0]
    limit = "" if pd.isna(first["limit"]) else f" · LIMITED to {int(first['limit'])} test images"
    how = "" if compared == "l2" else f" · {first['protocol_label']}"
    alias = "" if compared in _OF_FEATURES else _alias(part)
    label = " · ".join(filter(None, (backbone_label(at["spec"]), fixed_text(at, alias))))
    return Table(at["spec"], at, alias, label, f"{first['protocol']}{how}{limit}", reference, tuple(rows))


def _task_rows(task: str, part: pd.DataFrame, subject: Subject, compared: str, reference: str | None) -> list[Row]:
    groups = {str(level): group for level, group in part.groupby(f"at_{compared}", sort=False)}
    found: dict[str, Hits | str] = {level: _hits(group) for level, group in groups.items()}
    rows = []
    for level in subject.levels[compared]:
        if level not in groups:
            why = subject.lacking.get((compared, level))
            rows.append(
                Row(task, level, why.provenance if why else "failed", remark=why.reason if why else "no record")
            )
            continue
        group, mine = groups[level], found[level]
        row = Row(
            task,
            level,
            str(group["representation_provenance"].iloc[0]),
            _alias(group) if compared in _OF_FEATURES else "",
            score=float(group["score"].mean()),
            interval=None if isinstance(mine, str) else statistics.combined_interval(mine.values, unit=mine.unit),
            n_seeds=group["seed"].nunique(),
            n_images=int(group["n_test"].max()),
        )
        if reference is None or reference not in groups:
            rows.append(replace(row, remark="the reference has no record here"))
        elif level == reference:
            rows.append(replace(row, remark="reference"))
        else:
            same = compared in _OF_FEATURES and _meant(groups[reference]) == _meant(group)
            if same or set(groups[reference]["key"]) == set(group["key"]):
                rows.append(replace(row, remark="equals the reference"))
            else:
                rows.append(_compared(row, groups[reference], group, found[reference], mine))
    return rows


def _hits(group: pd.DataFrame) -> Hits | str:
    """The hits of a level on a task, or why there are none."""
    try:
        found = hits(group, group["path"].tolist())
    except (StoreError, UsageError) as error:
        return str(error)
    scores = group.set_index("seed")["score"].reindex(list(found.seeds)).to_numpy()
    if not np.allclose(found.values.mean(axis=1), scores, atol=1e-6):
        return "its stored predictions do not give its record's score: run its command again with --on-existing rerun"
    return found


def _compared(row: Row, base: pd.DataFrame, group: pd.DataFrame, theirs: Hits | str, mine: Hits | str) -> Row:
    """A row with its comparison, or with the reason why it has none."""
    first, other = base.iloc[0], group.iloc[0]
    differs = [
        reason for name, reason in _UNPAIRED.items() if not _equal(first[name], other[name]) and name in PAIRING_FIELDS
    ]
    if differs:
        return replace(row, remark=f"not paired: {' and '.join(dict.fromkeys(differs))}")
    for problem in (mine, theirs):
        if isinstance(problem, str):
            return replace(row, remark=f"not compared: {problem}")
    assert isinstance(mine, Hits)
    assert isinstance(theirs, Hits)
    a, b, seeds = shared_seeds(mine, theirs)
    if not seeds:
        return replace(row, remark="not paired: no seed that both have")
    return replace(row, comparison=statistics.paired_difference(a, b, unit=mine.unit))


def _alias(group: pd.DataFrame) -> str:
    name = group["alias_of"].iloc[0]
    return name if isinstance(name, str) else ""


def _meant(group: pd.DataFrame) -> str:
    """The representation that a level's one equals by construction, else its own."""
    return _alias(group) or str(group["representation"].iloc[0])


def _equal(one: object, other: object) -> bool:
    return bool(one == other or (pd.isna(one) and pd.isna(other)))  # type: ignore[call-overload]


def _mean_rows(rows: Sequence[Row], tasks: Sequence[str], subject: Subject, compared: str) -> list[Row]:
    means = []
    for level in subject.levels[compared]:
        mine = [row for row in rows if row.level == level]
        scored = [row for row in mine if not math.isnan(row.score)]
        mean = replace(scored[0] if scored else mine[0], task="", interval=None, comparison=None, score=math.nan)
        if len(scored) < len(tasks):
            absent = not scored
            text = mine[0].remark if absent else f"{len(scored)} of {len(tasks)} tasks"
            means.append(replace(mean, remark=text))
            continue
        mean = replace(
            mean,
            score=float(np.mean([row.score for row in mine])),
            n_seeds=min(row.n_seeds for row in mine),
            n_images=sum(row.n_images for row in mine),
        )
        differences = [row.comparison for row in mine if row.comparison is not None]
        if len(differences) < len(tasks):
            odd = next(row.remark for row in mine if row.comparison is None)
            same = all(row.remark == odd for row in mine)
            means.append(replace(mean, remark=odd if same else f"compared on {len(differences)} of {len(tasks)} tasks"))
            continue
        over = statistics.paired_over_tasks(
            [one.difference for one in differences], [one.interval for one in differences]
        )
        means.append(
            replace(
                mean,
                comparison=statistics.mean_over_tasks(differences),
                counts=(over.wins, over.ties, over.losses),
                remark="",
            )
        )
    return means


def _families(tables: Sequence[Table], mean: bool) -> list[list[tuple[int, int]]]:
    """The comparisons of one family, each with the (table, row) places where it stands.

    What equals another representation by construction is the same comparison: it is counted once.
    """
    family: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for number, table in enumerate(tables):
        fixed = table.at | ({"representation": table.alias_of} if table.alias_of else {})
        for place, row in enumerate(table.rows):
            if row.comparison is not None and (row.task == "") == mean:
                name = (*fixed.items(), row.task, row.alias_of or row.level)
                family.setdefault(name, []).append((number, place))
    return list(family.values())


def _adjusted(tables: Sequence[Table], correction: Correction) -> list[Table]:
    """Correct the p-values: those of the means are one family, those of single tasks another."""
    values: dict[tuple[int, int], float] = {}
    for mean in (True, False):
        family = _families(tables, mean)
        raw = [tables[places[0][0]].rows[places[0][1]].p_value for places in family]
        for places, value in zip(family, statistics.adjust(raw, method=correction), strict=True):
            values |= dict.fromkeys(places, float(value))
    return [
        replace(
            table,
            rows=tuple(
                replace(row, p_adjusted=values.get((number, place), math.nan)) for place, row in enumerate(table.rows)
            ),
        )
        for number, table in enumerate(tables)
    ]


def _methods(tables: Sequence[Table], ablation: Ablation, correction: Correction) -> Iterator[str]:
    compared = [row.comparison for table in tables for row in table.rows if row.comparison is not None]
    of_scores = [row.interval.method for table in tables for row in table.rows if row.interval is not None]
    drawn = bool(of_scores) and all("episodes" in method for method in of_scores)
    covered = "other draws of episodes from the same images" if drawn else "other support sets and other test images"
    yield f"score: in %, mean over seeds; its 95 % interval covers {covered}"
    if not compared:
        return
    yield (
        "Δ: level minus reference in percentage points with its 95 % interval, on the same support sets and test images; "
        f"the reference is the {ablation.compared} that each title names"
    )
    for method in dict.fromkeys(one.method for one in compared):
        yield f"Δ, its interval and p: {method}"
    means, singles = (len(_families(tables, mean)) for mean in (True, False))
    counted = {"over tasks": means, "on single tasks": singles}
    families = " and, apart, ".join(
        f"{size} comparison{'s' if size > 1 else ''} {where}" for where, size in counted.items() if size
    )
    name = CORRECTIONS[correction]
    yield f"p ({name}): corrected by {name} for {families}; what is equal by construction counts once"
    if means:
        yield "wins/ties/losses: tasks whose interval lies above 0, holds 0, lies below 0 (each at 95 %, not corrected)"


def _lacking(ablation: Ablation) -> Iterator[str]:
    for subject in ablation.subjects:
        for (_, level), why in subject.lacking.items():
            yield f"{level} of {backbone_label(subject.backbone)} is not scored: {why.provenance} ({why.reason})"


def _remarks(tables: Sequence[Table]) -> Iterator[str]:
    """Refusals, each reason once with the levels that it holds for."""
    reasons: dict[str, dict[str, None]] = {}
    untrained: dict[str, None] = {}
    for table in tables:
        for row in table.rows:
            if row.remark.startswith(("not ", "the reference has")):
                reasons.setdefault(row.remark, {})[row.level] = None
            if row.provenance == "untrained" and not math.isnan(row.score):
                untrained[row.level] = None
    for reason, levels in reasons.items():
        yield f"{', '.join(levels)}: {reason}"
    if untrained:
        yield f"{', '.join(untrained)}: untrained, newly initialised weights, scored because --allow-untrained was given"
