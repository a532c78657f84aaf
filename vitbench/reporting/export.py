"""All records of a folder as one table, in a file that other tools read: parquet, csv or json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitbench.errors import StoreError, UsageError, unknown
from vitbench.records.atomic import write_file
from vitbench.records.identity import canonical_json
from vitbench.records.schema import Record
from vitbench.records.store import as_frame, find_records, read_record
from vitbench.reporting.leaderboard import match_tasks

SUFFIXES = (".parquet", ".csv", ".json")


def read_all(out: Path) -> tuple[list[tuple[str, Record]], list[str]]:
    """Every record of a folder, in the order of `load_results`, each with its file's path below the folder.

    Args:
        out: A run's output folder, or a folder of records.

    Returns:
        The records, and a line for what a reader must know: a damaged record that is left out, a conflict.

    Raises:
        UsageError: There is no such folder, or no record in it that can be read.
    """
    found, notes = [], []
    for path in find_records(out):
        try:
            found.append((path.relative_to(out).as_posix(), read_record(path)))
        except StoreError as error:
            notes.append(f"left out: {error}")
    if not found:
        raise UsageError(
            f"there are no records in {out}{f': {notes[0]}' if notes else ': make some with `vitbench run`'}"
        )
    found.sort(key=lambda pair: _order(pair[1]))
    return found, notes + conflicts([record for _, record in found])


def _order(record: Record) -> tuple[Any, ...]:
    named = (record.backbone, record.representation, record.task, record.protocol)
    return (*named, record.shot, record.seed, record.key)


def chosen(
    found: Sequence[tuple[str, Record]],
    *,
    tasks: Sequence[str] = (),
    representations: Sequence[str] = (),
    protocol: str | None = None,
    shots: Sequence[str] = (),
) -> list[tuple[str, Record]]:
    """The records that are asked for; what is left empty is not asked about.

    Raises:
        UsageError: A name means none of the records (the nearest is offered), or no record has all that is asked for.
    """
    names = match_tasks(tasks, pd.DataFrame({"task": [record.task for _, record in found]}))
    wanted: dict[str, tuple[Sequence[str], Callable[[Record], str]]] = {
        "task": (names, lambda record: record.task),
        "representation": (representations, lambda record: record.representation),
        "protocol": ([protocol] if protocol else [], lambda record: record.protocol),
        "shot": (shots, lambda record: str(record.shot)),
    }
    kept = list(found)
    for noun, (values, field) in wanted.items():
        there = {field(record) for _, record in found}
        for value in values:
            if value not in there:
                raise unknown(f"{noun} among the records:", value, there)
        kept = [pair for pair in kept if not values or field(pair[1]) in values]
    if not kept:
        raise UsageError(
            "no record has all that is asked for: leave out one of --tasks, --representations, --protocol, --shots"
        )
    return kept


def conflicts(records: Sequence[Record]) -> list[str]:
    """A line for each identity that has records of different scores: one of them is wrong."""
    by_key: dict[str, list[Record]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    return [
        f"conflict: {len(same)} records of the identity {name} have different scores ({same[0].backbone} · "
        f"{same[0].representation} · {same[0].task}); `vitbench replay` tells which one stands"
        for name, same in by_key.items()
        if len({record.score for record in same}) > 1
    ]


def export_frame(found: Sequence[tuple[str, Record]]) -> pd.DataFrame:
    """The table: the columns of `vitbench.load_results`, then `file`, and in full `identity.…` and `version.…`.

    Args:
        found: What `read_all` gives.

    Returns:
        A row per record. Scores are fractions. Lists are JSON texts; so is a column whose values are of several kinds, such as a
        penalty that is a number here and a rule there.
    """
    frame = as_frame([record for _, record in found])
    extra = pd.DataFrame([_extra(file, record) for file, record in found])
    # The rows of both are in the order of `read_all`, which is that of `as_frame`.
    assert frame["key"].tolist() == extra.pop("record").tolist()
    table = pd.concat([frame, extra], axis=1)
    for name in table.columns:
        table[name] = _one_kind(table[name])
    return table


def _extra(file: str, record: Record) -> dict[str, Any]:
    identity = {name: value for name, value in record.identity.items() if name != "parameters"}
    return {
        "record": record.key,
        "file": file,
        **{f"identity.{name}": value for name, value in identity.items()},
        **{f"identity.parameters.{name}": value for name, value in record.identity.get("parameters", {}).items()},
        **{f"version.{name}": value for name, value in record.provenance.versions.items()},
    }


def _one_kind(column: pd.Series) -> pd.Series:
    """A column that every format can hold: numbers as they are, whole ones also where some are missing, else texts."""
    if column.name in ("limit", "identity.limit"):
        return column.astype("Int64")
    if column.dtype != object:
        return column
    kinds = {type(value) for value in column[column.notna()]}
    if kinds <= {str} or kinds <= {bool} or kinds <= {int, float}:
        return column
    return column.map(lambda value: value if isinstance(value, str) else canonical_json(value), na_action="ignore")


def check_file(path: Path) -> None:
    """Refuse a file of a format that is not known, before anything is read.

    Raises:
        UsageError: It is one; the nearest ending is offered.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise unknown(f"format of {path.name}:", path.suffix or "no ending", SUFFIXES)
    if path.is_dir():
        raise UsageError(f"--out-file {path} is a folder: name a file in it, such as {path / 'results.parquet'}")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write the table in the format of the file's ending, whole or not at all.

    Raises:
        UsageError: The ending is not one of `SUFFIXES`.
        StoreError: It cannot be written.
    """
    check_file(path)
    writers = {
        ".parquet": lambda target: frame.to_parquet(target, index=False),
        ".csv": lambda target: frame.to_csv(target, index=False),
        ".json": lambda target: target.write_text(_json(frame), encoding="utf-8"),
    }
    write_file(path, writers[path.suffix.lower()])


def _json(frame: pd.DataFrame) -> str:
    # Not DataFrame.to_json, which rounds to 15 digits: a score read back must be the score.
    rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
