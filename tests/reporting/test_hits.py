from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.records.test_store import make_record
from vitbench.errors import StoreError, UsageError
from vitbench.records.predictions import read_predictions
from vitbench.records.store import as_frame
from vitbench.reporting.hits import hits, shared_seeds

LABELS = [0, 0, 0, 1]


def stored(folder: Path, seed: int, predictions: list[int], labels: list[int] = LABELS) -> Path:
    folder.mkdir(exist_ok=True)
    table = {"row": range(len(labels)), "label": labels, "prediction": predictions}
    pq.write_table(pa.table({name: list(values) for name, values in table.items()}), folder / f"{seed}.parquet")
    return folder / f"{seed}.json"


def test_hits_are_seeds_by_images_in_order_of_seed(tmp_path: Path) -> None:
    frame = as_frame([make_record(seed=2), make_record(seed=0)])
    paths = {0: stored(tmp_path, 0, [0, 0, 1, 1]), 2: stored(tmp_path, 2, [1, 0, 0, 0])}
    found = hits(frame, [paths[seed] for seed in frame["seed"]])
    assert found.seeds == (0, 2)
    assert found.values.tolist() == [[1, 1, 0, 1], [0, 1, 1, 0]]
    one, other, seeds = shared_seeds(found, hits(frame[frame["seed"] == 2], [paths[2]]))
    assert (seeds, one.tolist(), other.tolist()) == ((2,), [[0, 1, 1, 0]], [[0, 1, 1, 0]])


def test_the_mean_is_the_tasks_own_metric(tmp_path: Path) -> None:
    record = make_record(metric="mean_per_class_accuracy", scores={"mean_per_class_accuracy": 5 / 6})
    found = hits(as_frame([record]), [stored(tmp_path, 0, [0, 0, 1, 1])])
    assert found.values.mean() == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(UsageError, match="the metric top5_accuracy of task 'paper/cifar10' cannot be told"):
        hits(as_frame([make_record(metric="top5_accuracy")]), [stored(tmp_path, 0, LABELS)])


def test_missing_damaged_and_foreign_predictions_are_named(tmp_path: Path) -> None:
    path = stored(tmp_path, 0, LABELS)
    assert read_predictions(path).confidence is None
    frame = as_frame([make_record(seed=0), make_record(seed=1)])
    with pytest.raises(StoreError, match=r"1.json are of other test images than those of its other seeds"):
        hits(frame, [path, stored(tmp_path, 1, [0, 1, 1, 1], [0, 1, 1, 1])])
    path.with_suffix(".parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match=r"0.parquet are damaged; run the record's command again"):
        read_predictions(path)
    path.with_suffix(".parquet").unlink()
    with pytest.raises(StoreError, match=r"0.parquet are missing; run the record's command again"):
        read_predictions(path)
