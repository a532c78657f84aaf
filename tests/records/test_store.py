from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import vitbench
from vitbench.errors import StoreError, UsageError
from vitbench.records.identity import RECORD_FIELDS, identity, key
from vitbench.records.provenance import provenance
from vitbench.records.schema import Record
from vitbench.records.store import ResultStore, read_record


def make_record(**changes: Any) -> Record:
    """A record with plausible values; `changes` go into the record and, where they decide the result, into its identity."""
    fields: dict[str, Any] = {
        "backbone": "timm:vit_tiny_patch16_224",
        "backbone_name": "timm-vit_tiny_patch16_224-abcd",
        "representation": "cls",
        "representation_dim": 192,
        "representation_provenance": "trained",
        "alias_of": None,
        "num_parameters": 5_500_000,
        "task": "paper/cifar10",
        "num_classes": 10,
        "metric": "accuracy",
        "chance": 0.1,
        "protocol": "fewshot",
        "protocol_label": "l2 = 1024",
        "parameters": {"l2": "paper"},
        "shot": 5,
        "seed": 0,
        "limit": None,
        "preprocessing": "resize(224x224,bicubic)|normalize(0.5,0.5)",
        "dtype": "float32",
        "scores": {"accuracy": 0.5},
        "details": {"l2": 1024.0},
        "warnings": [],
        "n_support": 50,
        "n_test": 4,
        "seconds": 0.1,
        "provenance": provenance("a test", "cpu", []),
    }
    task = changes.get("task", fields["task"])
    hidden = {
        "architecture": "timm:vit",
        "weights": "abcd",
        "train_fingerprint": f"11 {task}",
        "test_fingerprint": f"22 {task}",
    }
    hidden |= {name: changes.pop(name) for name in list(changes) if name in hidden}
    fields |= changes
    found = identity(RECORD_FIELDS, {name: (hidden | fields)[name] for name in RECORD_FIELDS})
    return Record(key=key(found), identity=found, **fields)


PREDICTIONS = {name: np.arange(4) for name in ("row", "label", "prediction")}


def test_a_record_comes_back_as_it_was_with_its_predictions(tmp_path: Path) -> None:
    record = make_record()
    path = ResultStore(tmp_path).write(record, PREDICTIONS)
    assert path == tmp_path / "records/timm-vit_tiny_patch16_224-abcd/paper/cifar10" / f"{record.key}.json"
    assert read_record(path) == record
    assert record.key in ResultStore(tmp_path)
    assert pq.read_table(path.with_suffix(".parquet")).column_names == ["row", "label", "prediction"]


def test_a_record_is_found_by_its_identity_however_its_backbone_was_called(tmp_path: Path) -> None:
    record = make_record()
    ResultStore(tmp_path).write(record, PREDICTIONS)
    renamed = make_record(backbone="timm:vit_tiny_patch16_224.tag", backbone_name="another-folder")
    assert renamed.key == record.key
    ResultStore(tmp_path).write(renamed, PREDICTIONS)
    assert len(vitbench.load_results(tmp_path)) == 1


def test_load_results_has_a_row_per_record_and_the_promised_columns(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for seed in (2, 0, 1):
        store.write(make_record(seed=seed, scores={"accuracy": seed / 10}), PREDICTIONS)
    frame = vitbench.load_results(tmp_path)
    promised = [
        "backbone",
        "representation",
        "task",
        "protocol",
        "shot",
        "seed",
        "l2",
        "accuracy",
        "n_support",
        "n_test",
    ]
    assert set(promised) <= set(frame.columns)
    assert frame["seed"].tolist() == [0, 1, 2]
    assert frame["accuracy"].tolist() == [0.0, 0.1, 0.2]
    assert frame["l2"].tolist() == [1024.0] * 3


def test_no_folder_and_no_records(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no results at"):
        vitbench.load_results(tmp_path / "nowhere")
    (tmp_path / "records").mkdir()
    frame = vitbench.load_results(tmp_path)
    assert len(frame) == 0
    assert "accuracy" in frame.columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read .* move it away"),
        ("{", "cannot be read .* move it away"),
        ('{"schema_version": 1}', "cannot be read .* move it away"),
        ('{"schema_version": 99}', "has the schema version 99, and this vitbench reads 1: upgrade vitbench"),
        ("[1]", "is not a vitbench record"),
        ("root:x:0:0", "is not a vitbench record"),
    ],
)
def test_a_damaged_record_is_named_left_out_and_counts_as_absent(tmp_path: Path, text: str, message: str) -> None:
    store = ResultStore(tmp_path)
    whole, damaged = make_record(), make_record(seed=1)
    store.write(whole, PREDICTIONS)
    path = store.write(damaged, PREDICTIONS)
    path.write_text(text)
    with pytest.warns(UserWarning, match=rf"{path.name} {message}"):
        frame = vitbench.load_results(tmp_path)
    assert frame["key"].tolist() == [whole.key]
    assert len(frame.attrs["damaged"]) == 1
    assert damaged.key not in ResultStore(tmp_path)
    with pytest.raises(StoreError, match=message):
        read_record(path)


def test_the_folder_above_a_run_is_no_run_and_the_run_in_it_is_offered(tmp_path: Path) -> None:
    ResultStore(tmp_path / "runs").write(make_record(), PREDICTIONS)
    (tmp_path / "runs" / "features").mkdir()
    (tmp_path / "runs" / "features" / "identity.json").write_text("{}")
    with pytest.raises(UsageError, match=r"there are no results at .*: did you mean .*runs\?"):
        vitbench.load_results(tmp_path)
    assert len(vitbench.load_results(tmp_path / "runs" / "records" / "timm-vit_tiny_patch16_224-abcd")) == 1


def test_a_record_without_its_json_does_not_count(tmp_path: Path) -> None:
    record = make_record()
    path = ResultStore(tmp_path).write(record, PREDICTIONS)
    path.unlink()
    assert record.key not in ResultStore(tmp_path)
