"""The result store: `<out>/records/<backbone>/<task>/<key>.json`, and beside each record its predictions as parquet."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from vitbench.errors import StoreError, UsageError
from vitbench.records import remote
from vitbench.records.atomic import slug, write_file, write_text
from vitbench.records.identity import DEFAULTS
from vitbench.records.schema import SCHEMA_VERSION, Record

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

DEFAULT_OUT = Path("results/runs")


class ResultStore:
    """The records below one output folder.

    A record counts as present once its JSON file is there, and that is renamed into place after its predictions, so a
    killed process leaves whole records or none. The records' keys are read once, from the files' names, and kept up to date.
    """

    def __init__(self, out: Path) -> None:
        remote.ready(out)
        self.folder = out / "records"
        self._paths = {path.stem: path for path in self.folder.glob("*/**/*.json")}
        self._whole: dict[str, Record] = {}

    def __contains__(self, key: str) -> bool:
        """Whether there is such a record, whole: a damaged one counts as absent, so that it is made again."""
        if key not in self._whole and key in self._paths:
            try:
                self._whole[key] = read_record(self._paths[key])
            except StoreError:
                return False
        return key in self._whole

    def read(self, key: str) -> Record:
        """The record called `key`.

        Raises:
            KeyError: There is none, or it is damaged.
        """
        if key not in self:
            raise KeyError(key)
        return self._whole[key]

    def write(self, record: Record, predictions: Mapping[str, npt.NDArray[Any]]) -> Path:
        """Write a record and its predictions; the record last, whole or not at all.

        Args:
            record: What was measured.
            predictions: Columns of the predictions table, each `[n_test]`: `row`, `label`, `prediction` int64, `confidence`
                float32 where the protocol has one, and `episode` int64 where it draws episodes.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.place(record)
        write_file(
            path.with_suffix(".parquet"), lambda temporary: pq.write_table(pa.table(dict(predictions)), temporary)
        )
        write_text(path, record.model_dump_json(indent=2) + "\n")
        self._paths[record.key] = path
        self._whole[record.key] = record
        return path

    def place(self, record: Record) -> Path:
        """The file that a record has, or will have; what belongs to it lies beside it, by the same name with other suffixes."""
        folder = self.folder / slug(record.backbone_name) / Path(*map(slug, record.task.split("/")))
        return self._paths.get(record.key, folder / f"{record.key}.json")

    def take_up(self, path: Path) -> None:
        """Learn of the file of a record that another process has written."""
        self._paths[path.stem] = path
        self._whole.pop(path.stem, None)

    def refresh(self, record: Record) -> None:
        """Write a record that is there again, with what its identity says nothing of said anew; its predictions stay."""
        write_text(self._paths[record.key], record.model_dump_json(indent=2) + "\n")
        self._whole[record.key] = record


def read_record(path: Path) -> Record:
    """Read one record's file.

    Raises:
        StoreError: It is damaged, or of a schema that this version does not know.
    """
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return Record.model_validate_json(text)
    except (OSError, UnicodeDecodeError, pydantic.ValidationError) as error:
        reason: object = error
        if isinstance(error, pydantic.ValidationError):
            if problem := _foreign(text):
                raise StoreError(f"{path} {problem}") from error
            reason = error.errors()[0]["msg"]
        raise StoreError(
            f"the record {path} cannot be read ({reason}); move it away and run the same command again to remake it"
        ) from error


def _foreign(text: str) -> str:
    """What a JSON text is, when it is something else than a damaged record of this schema; else empty."""
    try:
        content = json.loads(text)
    except ValueError:
        return "" if text.lstrip().startswith("{") or not text.strip() else "is not a vitbench record"
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version is None:
        return "is not a vitbench record"
    newer = isinstance(version, int) and version > SCHEMA_VERSION
    return (
        ""
        if version == SCHEMA_VERSION
        else (
            f"has the schema version {version}, and this vitbench reads {SCHEMA_VERSION}: "
            f"{'upgrade vitbench' if newer else 'it was made by another program'}"
        )
    )


def find_records(path: Path) -> list[Path]:
    """The records' files of a run's output folder, of its `records` folder, or of any folder inside that; in order.

    Raises:
        UsageError: There is no such folder, or it holds no run.
    """
    if (path / "records").is_dir():
        return list(_json_files(path / "records"))
    if path.is_dir() and "records" in path.resolve().parts:
        return list(_json_files(path))
    inside = sorted(folder.parent for folder in path.glob("*/records") if folder.is_dir())
    hint = (
        f"did you mean {inside[0]}?" if inside else "make some with `vitbench run`, or name another folder with --out"
    )
    raise UsageError(f"there are no results at {remote.told(path)}: {hint}")


def _json_files(folder: Path) -> Iterator[Path]:
    """The JSON files below a folder in order of path, component by component; links to folders are not followed."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _json_files(folder / entry.name)
        elif entry.name.endswith(".json"):
            yield folder / entry.name


def load_results(path: str | Path = DEFAULT_OUT) -> pd.DataFrame:
    """Read every record below `path` into a table, one row per record.

    A damaged record is left out with a warning that names it; `frame.attrs["damaged"]` holds these lines.

    Args:
        path: A run's output folder or its URL, or a folder of records.

    Returns:
        A frame with at least `backbone, representation, task, protocol, shot, seed, l2, accuracy, n_support, n_test`; every
        score and detail of the protocol is a column too. Accuracies are fractions.

    Raises:
        UsageError: There is no such folder.
    """
    frame, damaged = read_results(remote.output_folder(path))
    for line in damaged:
        warnings.warn(line, stacklevel=2)
    frame.attrs["damaged"] = damaged
    return frame


def read_results(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """As `load_results`; the damaged records' lines are given back in place of warnings."""
    from vitbench.records.index import read_records  # which reads the records that it does not know by this module

    reading = read_records(path)
    return reading.frame.drop(columns="path"), list(reading.damaged)


def as_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Records as a table, one row each, in order of backbone, representation, task, protocol, shot and seed.

    The columns and their order depend on what fields the records have, not on the order of the records.
    """
    rows = [as_row(record) for record in records]
    names = dict.fromkeys(name for row in rows for name in row)
    every = np.arange(len(rows))
    frame = frame_of({name: (every, [row.get(name, float("nan")) for row in rows]) for name in names})
    return frame.take(sorted_rows(frame)).reset_index(drop=True)


_ORDER = ["backbone", "representation", "task", "protocol", "shot", "seed", "key"]
_COLUMNS = [*_ORDER[:-1], "l2", "score", "accuracy", "n_support", "n_test", "key"]
_NESTED = {
    *("scores", "splits", "deviations", "details", "identity", "provenance", "parameters", "warnings"),
    "schema_version",
}
_FIRST = [*(name for name in Record.model_fields if name not in _NESTED), "l2", "score"]
_IDENTITY = ["architecture", "weights", "train_fingerprint", "test_fingerprint", "identity_version"]
_LAST = [
    *_IDENTITY,
    *("parameters", "train_split", "test_split", "deviations", "warnings"),
    *("created", "command", "host", "device"),
]


def frame_of(columns: Mapping[str, tuple[npt.NDArray[Any], Sequence[Any]]]) -> pd.DataFrame:
    """A table of records from its columns, in the one order that columns have: scores and details in the middle, by name.

    Args:
        columns: Name to each row's number among the values (`[N]`, -1 where the record has no such field) and the values, each of
            which some row has: what kind of column it is depends on them.
    """
    import pandas as pd

    if not columns:
        return pd.DataFrame(columns=_COLUMNS)
    between = sorted(columns.keys() - {*_FIRST, *_LAST})
    series = {}
    for name in (*_FIRST, *between, *_LAST):
        if name not in columns:
            continue
        codes, values = columns[name]
        distinct = [*values, float("nan")] if (codes < 0).any() else values
        # By fromiter, or a list of equally long lists would become a matrix.
        objects = np.fromiter(distinct, dtype=object, count=len(distinct))
        series[name] = pd.Series(objects).infer_objects().array.take(codes)
    return pd.DataFrame(series)


def sorted_rows(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """The rows of a table of records in the order that `as_frame` has them."""
    if not len(frame):
        return np.empty(0, np.int64)
    order: npt.NDArray[np.int64] = frame.sort_values(_ORDER, kind="stable").index.to_numpy()
    return order


def as_row(record: Record) -> dict[str, Any]:
    """A record's row of the table, column to value."""
    row: dict[str, Any] = record.model_dump(exclude=_NESTED)
    row |= {"l2": None, "score": record.scores.get(record.metric), **record.scores, **record.details}
    row |= {name: record.identity[name] for name in _IDENTITY}
    if record.features_dtype != DEFAULTS["features_dtype"]:
        # Whatever tells rows of a table apart by their dtype must tell these apart too.
        row["dtype"] = f"{record.dtype} kept as {record.features_dtype}"
    row["parameters"] = ", ".join(f"{name}={value}" for name, value in record.parameters.items())
    row["train_split"], row["test_split"] = record.splits.get("train", "train"), record.splits.get("test", "test")
    row["deviations"] = "; ".join(record.deviations)
    row["warnings"] = "; ".join(record.warnings)
    row["created"] = record.provenance.created
    row["command"] = record.provenance.command
    row["host"] = record.provenance.host
    row["device"] = record.provenance.device
    return row
