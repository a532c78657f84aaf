"""The records of an output folder, each with its file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vitbench.records.index import read_records


def read_with_paths(out: Path) -> tuple[pd.DataFrame, list[str]]:
    """As `vitbench.records.store.read_results`, with one more column: `path`, the record's JSON file.

    Copies of a record, as of two folders that were put together, are rows of their own.

    Raises:
        UsageError: There is no such folder, or it holds no run.
    """
    reading = read_records(out)
    return reading.frame, list(reading.damaged)
