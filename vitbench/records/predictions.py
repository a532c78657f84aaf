"""The predictions that lie beside each record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitbench.errors import StoreError
from vitbench.records import remote

IntArray = npt.NDArray[np.int64]

_REMEDY = "run the record's command again with --on-existing rerun"


@dataclass(frozen=True)
class Predictions:
    """What one record's classifier said of every test row.

    Attributes:
        row: `[N]` int64, row numbers of the test split, increasing; of a protocol that draws episodes, episode by episode, so
            that a row may come several times.
        label: `[N]` int64.
        prediction: `[N]` int64.
        confidence: `[N]` float32, the estimated probability that the prediction is right; None where the protocol has none or
            the record is older than the column.
        episode: `[N]` int64, the episode of each prediction; None for a protocol that has one prediction for each test row.
    """

    row: IntArray
    label: IntArray
    prediction: IntArray
    confidence: npt.NDArray[np.float32] | None
    episode: IntArray | None = None

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """`[N]` bool, whether the prediction is the label."""
        return np.equal(self.prediction, self.label)


def read_predictions(record: Path) -> Predictions:
    """Read the predictions of the record whose JSON file is `record`.

    Raises:
        StoreError: They are missing or damaged; the record's own score is not touched by that.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = record.with_suffix(".parquet")
    remote.fetch(path, siblings=True)
    try:
        table = pq.read_table(path)
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        confidence = columns.get("confidence")
        found = Predictions(
            columns["row"].astype(np.int64),
            columns["label"].astype(np.int64),
            columns["prediction"].astype(np.int64),
            None if confidence is None else confidence.astype(np.float32),
            columns["episode"].astype(np.int64) if "episode" in columns else None,
        )
    except FileNotFoundError as error:
        raise StoreError(
            f"the predictions {path} are missing; run the record's command again with --on-existing rerun"
        ) from error
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise StoreError(f"the predictions {path} are damaged; {_REMEDY}") from error
    return found
