"""The index of an output folder's records: `<out>/records/index.parquet`, so that many records become a table at once.

To read 100,000 JSON files takes most of a minute, and a leaderboard is asked for often. The index holds, for every record's file,
the row that `as_frame` makes of it, what a report tells of its provenance, and the file's stamp: size, both times of change and
inode. It is no source of truth. Every reading lists the folder and takes a row from the index only where the stamp is that of the
file; a file that was changed or added is read itself, and one that is gone has no row. An index that is damaged, or that another
version of the code wrote, is done without and written anew. Deleting it loses nothing.

Its columns are JSON texts, because a field may be a number in one record and a word in the next. Two processes may read and write
at once: it is renamed into place whole, and whoever reads it holds it against the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitbench.errors import StoreError
from vitbench.records import identity, schema, store
from vitbench.records.atomic import write_file
from vitbench.records.schema import Record
from vitbench.records.store import as_row, find_records, frame_of, read_record, sorted_rows

if TYPE_CHECKING:
    import pandas as pd

INDEX = "index.parquet"
SMALLEST = 256
"""Records below which the files themselves are read as fast."""
WORTH_WRITING = 64
"""Files that must be unknown to an index, and one in `SHARE` of all, before it is written anew."""
SHARE = 50
SETTLED_SECONDS = 2.0
"""A file changed so recently could change again within one tick of its clock: it is read itself the next time, too."""
PATH, STAMP, PROVENANCE = "_path", "_stamp", "provenance."
DIGEST, CODE = b"vitbench.digest", b"vitbench.code"


@dataclass(frozen=True)
class Column:
    """One column: every distinct value once, as JSON, and each row's number among them; -1 where the row has no such field."""

    codes: npt.NDArray[np.int32]
    texts: Sequence[str]

    def take(self, rows: npt.NDArray[Any]) -> Column:
        """The column of some rows; values that no row has any more are left out."""
        codes = self.codes[rows]
        there = codes >= 0
        used, first, inverse = np.unique(codes[there], return_index=True, return_inverse=True)
        # In order of appearance, which is the order in which a parquet file gives them back.
        order = np.argsort(first)
        renumbered = np.empty(len(order), np.int32)
        renumbered[order] = np.arange(len(order))
        fresh = np.full(len(codes), -1, np.int32)
        fresh[there] = renumbered[inverse]
        return Column(fresh, [self.texts[number] for number in used[order]])

    def values(self) -> list[Any]:
        """The distinct values."""
        decoded: list[Any] = json.loads(f"[{','.join(self.texts)}]")
        return decoded

    def plain(self) -> list[Any]:
        """Each row's value; every row must have one."""
        values = self.values()
        return [values[code] for code in self.codes]


Table = dict[str, Column]


@dataclass(frozen=True)
class Reading:
    """Every record below a folder.

    Attributes:
        frame: As `vitbench.records.store.as_frame` gives it, and `path`, each record's JSON file.
        provenance: `git_commit`, `python`, `versions` (name to version) and `weights_notes` of each row of `frame`.
        damaged: A line for each file that cannot be read.
    """

    frame: pd.DataFrame
    provenance: pd.DataFrame
    damaged: tuple[str, ...]


def read_records(path: Path) -> Reading:
    """Read every record of a run's output folder, or of a folder of records; copies of a record are rows of their own.

    Raises:
        UsageError: There is no such folder, or it holds no run.
    """
    files = find_records(path)
    place = _place(path)
    known = _read_index(place) if place is not None and len(files) >= SMALLEST else {}
    names, stamps = _stamps(files, place.parent if place is not None else path)
    row_of = {}
    if known:
        stamped = zip(known[PATH].plain(), known[STAMP].plain(), strict=True)
        row_of = {name: (row, stamp) for row, (name, stamp) in enumerate(stamped)}
    kept: list[int] = []
    fresh: list[tuple[str, str, Record]] = []
    damaged = []
    for file, name, stamp in zip(files, names, stamps, strict=True):
        row, known_stamp = row_of.get(name, (-1, ""))
        if stamp and stamp == known_stamp:
            kept.append(row)
            continue
        try:
            fresh.append((name, stamp, read_record(file)))
        except StoreError as error:
            damaged.append(str(error))
    changed = len(fresh) + len(row_of) - len(kept)
    table = known if len(kept) == len(row_of) else _rows(known, np.sort(np.array(kept, np.int64))) if kept else {}
    if fresh:
        table = _joined([table, _table(fresh)] if table else [_table(fresh)])
        # Copies of one record stay in the order of their files, and every other row has its place in the table.
        table = _rows(table, np.argsort(_positions(table, names)))
        table = _rows(table, sorted_rows(_frame(table)))
    whole = place is not None and path.resolve() in (place.parent.resolve(), place.parent.parent.resolve())
    if place is not None and whole and len(files) >= SMALLEST and changed >= max(WORTH_WRITING, len(files) // SHARE):
        _write_index(place, table)
    return _reading(table, dict(zip(names, files, strict=True)), tuple(damaged))


def _place(path: Path) -> Path | None:
    """Where the index of the records at `path` lies: in the folder `records` that they are in."""
    if (path / "records").is_dir():
        return path / "records" / INDEX
    # By the path as it was given: what is read from the index must have the same paths as what is read from the files.
    for folder in (path, *path.parents):
        if folder.name == "records":
            return folder / INDEX
    return None


def _stamps(files: Sequence[Path], root: Path) -> tuple[list[str], list[str]]:
    """Each file's path below the folder of records, and its stamp; empty for what cannot be asked, or changed a moment ago."""
    names, stamps = [], []
    above = f"{root}{os.sep}"
    unsettled = time.time_ns() - SETTLED_SECONDS * 1e9
    for file in files:
        text = str(file)
        names.append(text.removeprefix(above))
        try:
            state = os.stat(text)  # noqa: PTH116 - of 100,000 files, a Path's own stat costs twice as much
        except OSError:
            stamps.append("")
            continue
        settled = max(state.st_mtime_ns, state.st_ctime_ns) <= unsettled
        found = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
        stamps.append(found if settled else "")
    return names, stamps


def _table(records: Sequence[tuple[str, str, Record]]) -> Table:
    """The table of records that were read just now, each with its path and its stamp."""
    rows = []
    for name, stamp, record in records:
        origin = record.provenance
        told = {
            f"{PROVENANCE}git_commit": origin.git_commit,
            f"{PROVENANCE}python": origin.python,
            f"{PROVENANCE}versions": origin.versions,
            f"{PROVENANCE}weights_notes": origin.weights_notes,
        }
        rows.append({**as_row(record), **told, PATH: name, STAMP: stamp})
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name, _ABSENT) for row in rows]) for name in names}


_ABSENT = object()


def _column(values: Iterable[Any]) -> Column:
    numbers: dict[Any, int] = {}
    texts: list[str] = []
    codes = []
    for value in values:
        if value is _ABSENT:
            codes.append(-1)
            continue
        # 1, 1.0 and True are equal and not the same; what cannot be a key of a dictionary is told apart by its text.
        known: Any = (type(value), value) if isinstance(value, str | int | float | None) else json.dumps(value)
        if known not in numbers:
            numbers[known] = len(texts)
            texts.append(json.dumps(value))
        codes.append(numbers[known])
    return Column(np.array(codes, np.int32), texts)


def _joined(tables: Sequence[Table]) -> Table:
    """Tables below each other; a field that one of them lacks is absent there."""
    lengths = [len(table[PATH].codes) for table in tables]
    joined = {}
    for name in dict.fromkeys(name for table in tables for name in table):
        numbers: dict[str, int] = {}
        parts = []
        for table, length in zip(tables, lengths, strict=True):
            column = table.get(name, Column(np.full(length, -1, np.int32), ()))
            renumbered = [numbers.setdefault(text, len(numbers)) for text in column.texts]
            parts.append(np.array([*renumbered, -1], np.int32)[column.codes])
        joined[name] = Column(np.concatenate(parts), list(numbers))
    return joined


def _rows(table: Table, rows: npt.NDArray[Any]) -> Table:
    return {name: column.take(rows) for name, column in table.items()}


def _positions(table: Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    order = {name: number for number, name in enumerate(names)}
    return np.array([order[name] for name in table[PATH].plain()])


def _frame(table: Table) -> pd.DataFrame:
    shown = {name: column for name, column in table.items() if not name.startswith((PATH, STAMP, PROVENANCE))}
    return frame_of({name: (column.codes, column.values()) for name, column in shown.items() if column.texts})


def _reading(table: Table, files: Mapping[str, Path], damaged: tuple[str, ...]) -> Reading:
    import pandas as pd

    frame = _frame(table)
    paths = [files[name] for name in table[PATH].plain()] if table else []
    frame["path"] = pd.Series(paths, index=frame.index, dtype=object)
    origin = {
        name.removeprefix(PROVENANCE): pd.Series(column.plain(), index=frame.index, dtype=object)
        for name, column in table.items()
        if name.startswith(PROVENANCE)
    }
    return Reading(frame, pd.DataFrame(origin, index=frame.index), damaged)


@cache
def _code() -> bytes:
    """A digest of the code that makes a row of a record: other code might make another."""
    digest = hashlib.sha256()
    for module in (schema, identity, store):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest().encode()


def _digest(table: Mapping[str, Column]) -> bytes:
    """A digest of all that the index holds, as it is used: a file that is damaged within its data still reads as a table."""
    digest = hashlib.sha256()
    for name, column in table.items():
        digest.update(json.dumps([name, len(column.codes), len(column.texts)]).encode())
        digest.update(column.codes.astype("<i4").tobytes())
        digest.update("\n".join(column.texts).encode())
    return digest.hexdigest().encode()


def _read_index(place: Path) -> Table:
    """The index; empty where there is none that can be used."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(place, read_dictionary=_columns_of(place)) as file:
            found = file.read()
        metadata = found.schema.metadata or {}
        if metadata.get(CODE) != _code():
            return {}
        table = {name: _decoded(found.column(name)) for name in found.column_names}
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return {}
    return table if {PATH, STAMP} <= table.keys() and _digest(table) == metadata.get(DIGEST) else {}


def _columns_of(place: Path) -> list[str]:
    import pyarrow.parquet as pq

    names: list[str] = pq.read_schema(place).names
    return names


def _decoded(column: Any) -> Column:
    whole = column.combine_chunks()
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Column(codes, whole.dictionary.to_pylist())


def _write_index(place: Path, table: Table) -> None:
    """Write the index, without what may still change. A folder that cannot be written to does without."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    settled = [number for number, stamp in enumerate(table[STAMP].plain()) if stamp] if table else []
    if len(settled) < max(1, SMALLEST):
        return
    kept = {name: column for name, column in _rows(table, np.array(settled)).items() if column.texts}
    arrays = {
        name: pa.DictionaryArray.from_arrays(
            pa.array(column.codes, mask=column.codes < 0), pa.array(column.texts, pa.string())
        )
        for name, column in kept.items()
    }
    found = pa.table(arrays).replace_schema_metadata({CODE: _code(), DIGEST: _digest(kept)})
    with suppress(StoreError):
        write_file(place, lambda temporary: pq.write_table(found, temporary, row_group_size=max(1, len(settled))))
