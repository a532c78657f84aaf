"""Leaderboards: rows are backbone × representation, columns are tasks, cells are accuracy in percent over seeds.

Records that do not measure the same thing never share a column: one table is one protocol with one set of parameters, over full
test splits or over equally limited ones, at one shot; where there is a single task, its shots are the columns.
"""

from __future__ import annotations

import fnmatch
import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import pandas as pd

from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError, unknown

ROW_FIELDS = ["architecture", "weights", "preprocessing", "dtype", "representation"]
"""What makes two records the same row; how a backbone's spec was spelled does not."""

DATA_FIELDS = ["train_fingerprint", "test_fingerprint", "num_classes", "identity_version"]
"""What makes two records of one task's name the same column."""

FLOOR_ARCHITECTURE = "pixels"
MEAN = "mean"


@dataclass(frozen=True)
class Leaderboard:
    """One table.

    Attributes:
        title: Protocol, parameters, shot, limit.
        cells: Index (backbone, representation, variant), columns tasks and `mean`; accuracy in percent, mean over seeds; NaN
            where a record is missing.
        spread: The same shape: standard deviation over seeds (n - 1) in percentage points, NaN for a single seed.
        notes: What a reader must know, a line each.
        records: The records behind the cells.
    """

    title: str
    cells: pd.DataFrame
    spread: pd.DataFrame
    notes: Sequence[str]
    records: pd.DataFrame


def leaderboards(
    frame: pd.DataFrame,
    *,
    shots: Sequence[int] = (),
    tasks: Sequence[str] = (),
    protocol: str | None = None,
    limited: bool = False,
) -> list[Leaderboard]:
    """Make every leaderboard that the records allow, in order of protocol, parameters and shot.

    Args:
        frame: What `vitbench.load_results` gives.
        shots: Only these; all if empty.
        tasks: Only these (full names); all if empty.
        protocol: Only this; all if None.
        limited: Show records of limited runs in place of full ones.

    Raises:
        UsageError: No record is left; what there is is named.
    """
    chosen = frame
    if len(frame):
        chosen = frame[frame["limit"].notna() if limited else frame["limit"].isna()]
        for column, wanted in (
            ("shot", list(shots)),
            ("task", list(tasks)),
            ("protocol", [protocol] if protocol else []),
        ):
            chosen = chosen[chosen[column].isin(wanted)] if wanted else chosen
    if not len(chosen):
        raise UsageError(_nothing_left(frame, shots, tasks, protocol, limited))
    hidden = int((frame["limit"].isna() if limited else frame["limit"].notna()).sum())
    notes = (
        [f"{hidden} {'full' if limited else 'limited'} records are left out: they are never mixed"] if hidden else []
    )
    chosen = _labelled(chosen)
    boards = []
    for _, group in chosen.groupby(["protocol", "parameters", "limit"], dropna=False, sort=True):
        if group["column"].nunique() == 1 and group["shot"].nunique() > 1:
            columns = group.sort_values("shot")["shot"].map("{}-shot".format)
            boards.append(_leaderboard(group.assign(column=columns), group["column"].iloc[0], notes, mean=False))
        else:
            boards += [
                _leaderboard(part, f"{shot}-shot", notes, mean=True) for shot, part in group.groupby("shot", sort=True)
            ]
    return boards


def _leaderboard(records: pd.DataFrame, subject: str, notes: Sequence[str], *, mean: bool) -> Leaderboard:
    index = ["backbone", "shown", "variant"]
    columns = list(dict.fromkeys(records.sort_values(["shot", "column"])["column"]))
    # `pivot` refuses two records in one place, where a mean would hide them.
    by_seed = records.pivot(index=[*index, "seed"], columns="column", values="accuracy")[columns] * 100
    grouped = by_seed.groupby(level=index, sort=False)
    cells, spread = grouped.mean(), grouped.std(ddof=1)
    cells.index.names = spread.index.names = ["backbone", "representation", "variant"]
    if mean and len(columns) > 1:
        # Within each seed first: a mean is over the seeds that every task of the row has, and its spread is over these seeds.
        means = by_seed.mean(axis=1, skipna=False).groupby(level=index, sort=False)
        cells[MEAN], spread[MEAN] = means.mean().set_axis(cells.index), means.std(ddof=1).set_axis(cells.index)
    order = cells[cells.columns[-1]].sort_values(ascending=False, na_position="last", kind="stable").index
    first = records.iloc[0]
    limit = "" if pd.isna(first["limit"]) else f" · LIMITED to {int(first['limit'])} test images"
    return Leaderboard(
        title=f"{first['protocol']} · {first['protocol_label']} · {subject}{limit}",
        cells=pd.concat([cells.loc[order], _chance_row(records, cells)]),
        spread=spread.loc[order],
        notes=[*notes, *_notes(records, cells)],
        records=records,
    )


def _labelled(records: pd.DataFrame) -> pd.DataFrame:
    """Add the labels of rows and columns: short, but never the same for two things that differ."""
    letters = {
        text: string.ascii_uppercase[number % 26] for number, text in enumerate(sorted(set(records["preprocessing"])))
    }
    records = records.assign(
        backbone=_backbone_labels(records), variant="", letter="preprocessing " + records["preprocessing"].map(letters)
    )
    for _, same in records.groupby(["backbone", "representation"]):
        for name in ("preprocessing", "dtype", "architecture", "weights"):
            if same[name].nunique() > 1:
                text = {"preprocessing": same["letter"], "weights": same["weights"].str[:8]}.get(name, same[name])
                records.loc[same.index, "variant"] += " " + text
    records["variant"] = records["variant"].str.strip()
    alias = records["alias_of"].map(lambda name: f" (= {name})" if isinstance(name, str) else "")
    untrained = records["representation_provenance"].map(lambda value: " (untrained)" if value == "untrained" else "")
    records["shown"] = records["representation"] + alias + untrained
    records["column"] = records["task"]
    data = records[DATA_FIELDS].astype(str).agg(" ".join, axis=1)
    marks = data.map(lambda text: hashlib.sha256(text.encode()).hexdigest()[:6])
    several = marks.groupby(records["task"]).transform("nunique") > 1
    records["column"] = records["task"].where(~several, records["task"] + "#" + marks)
    return records


def _backbone_labels(records: pd.DataFrame) -> pd.Series:
    """The spec without its options where that names one set of weights, else with them; one spelling for each row."""
    specs = records.groupby(ROW_FIELDS, sort=False)["backbone"].transform("first").map(parse_backbone_spec)
    short, long = specs.map(lambda spec: spec.label), specs.map(lambda spec: spec.long_label)
    model = records["architecture"] + records["weights"]
    return short.where(model.groupby(short).transform("nunique") == 1, long)


def _chance_row(records: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    chance = records.groupby("column")["chance"].first() * 100
    values = chance.reindex(cells.columns)
    if MEAN in cells.columns:
        values[MEAN] = chance.mean()
    index = pd.MultiIndex.from_tuples([("chance", "", "")], names=cells.index.names)
    return pd.DataFrame([values.to_numpy()], index=index, columns=cells.columns)


def _notes(records: pd.DataFrame, shown: pd.DataFrame) -> list[str]:
    seeds = {tuple(sorted(group)) for _, group in records.groupby([*ROW_FIELDS, "column"])["seed"]}
    if len(seeds) == 1:
        (only,) = seeds
        used = f"{len(only)} seed{'s' if len(only) > 1 else ''}"
    else:
        used = "NOT the same seeds everywhere: such cells are not paired, and a mean is over the seeds that a row's tasks share"
    notes = [f"accuracy in %, mean over seeds ± standard deviation over seeds ({used})"]
    if MEAN in shown and shown[MEAN].isna().any():
        notes.append("rows without a mean lack a task, or have no seed that all their tasks share")
    lettered = records[records["variant"].str.contains("preprocessing ")].groupby("letter")["preprocessing"].first()
    notes += [f"{letter}: {text}" for letter, text in lettered.items()]
    for column, same in records[records["column"].str.contains("#")].groupby("column"):
        first = same.iloc[0]
        notes.append(
            f"{column}: {first['n_test']:,} test images, {first['num_classes']} classes, first made by `{first['command']}`"
        )
    missing = sorted(set(records["task"]) - set(records[records["architecture"] == FLOOR_ARCHITECTURE]["task"]))
    if missing:
        notes.append(f"no pixels floor for {', '.join(missing)}: vitbench run --backbone pixels --tasks … makes it")
    warnings = records[records["warnings"] != ""].groupby("column")["warnings"].first()
    notes += [f"{column}: {text}" for column, text in warnings.items()]
    if (records["representation_provenance"] == "untrained").any():
        notes.append("untrained: newly initialised weights, scored because --allow-untrained was given")
    return notes


def _nothing_left(
    frame: pd.DataFrame, shots: Sequence[int], tasks: Sequence[str], protocol: str | None, limited: bool
) -> str:
    if not len(frame):
        return "there are no records yet: make some with `vitbench run`"
    full, part = int(frame["limit"].isna().sum()), int(frame["limit"].notna().sum())
    if (limited and not part) or (not limited and not full):
        return f"all {full + part} records are {'full' if limited else 'limited; show them with --limited'}"
    there = (
        f"shots {', '.join(map(str, sorted(frame['shot'].unique())))}; tasks {', '.join(sorted(frame['task'].unique()))}; "
        f"protocols {', '.join(sorted(frame['protocol'].unique()))}"
    )
    asked = [f"shots {', '.join(map(str, shots))}" if shots else "", f"tasks {', '.join(tasks)}" if tasks else ""]
    asked.append(f"protocol {protocol}" if protocol else "")
    return f"no record has {' and '.join(part for part in asked if part)}; there are {there}"


def match_tasks(patterns: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """The tasks among the records that a name, a suite or a glob means; also tasks that are no longer installed.

    Raises:
        UsageError: A pattern means none of them; the nearest is offered.
    """
    there = sorted(frame["task"].unique()) if len(frame) else []
    found: list[str] = []
    for asked in patterns:
        # A folder of images is recorded by its name, and may be asked for as it was run: imagefolder:PATH.
        kind, _, path = asked.partition(":")
        pattern = f"imagefolder/{PurePath(path).name}" if kind == "imagefolder" and path else asked
        matches = [
            name
            for name in there
            if pattern in (name, name.split("/")[-1])
            or name.startswith(f"{pattern}/")
            or fnmatch.fnmatchcase(name, pattern)
        ]
        if not matches:
            raise unknown("task among the records:", pattern, [*there, *(name.split("/")[-1] for name in there)])
        found += matches
    return list(dict.fromkeys(found))
