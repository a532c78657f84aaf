"""The records of an output folder, each with its file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vitbench.errors import StoreError
from vitbench.records.schema import Record
from vitbench.records.store import as_frame, find_records, read_record


def read_with_paths(out: Path) -> tuple[pd.DataFrame, list[str]]:
    """As `vitbench.records.store.read_results`, with one more column: `path`, the record's JSON file.

    Copies of a record, as of two folders that were put together, are rows of their own.

    Raises:
        UsageError: There is no such folder, or it holds no run.
    """
    records: list[Record] = []
    paths: dict[str, list[Path]] = {}
    damaged = []
    for file in find_records(out):
        try:
            record = read_record(file)
        except StoreError as error:
            damaged.append(str(error))
            continue
        records.append(record)
        paths.setdefault(record.key, []).append(file)
    frame = as_frame(records)
    # The order is stable, so that copies of one key stay in the order in which they were read.
    left = {key: iter(files) for key, files in paths.items()}
    found = [next(left[key]) for key in frame["key"]]
    return frame.assign(path=pd.Series(found, index=frame.index, dtype=object)), damaged
