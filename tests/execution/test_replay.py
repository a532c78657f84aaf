from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import StoreError, UsageError, VitbenchError
from vitbench.execution.replay import Replay, StoredRecord, find_record, replay
from vitbench.records.schema import Record

ONE: dict[str, Any] = {"shots": 1, "seeds": 1}
OPTIONS = {"img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 2}


@pytest.fixture
def shoes(image_folder: ImageFolderMaker) -> str:
    return f"imagefolder:{image_folder()}"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, so that a test sees what is left of them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def only(out: Path) -> StoredRecord:
    (path,) = out.glob("records/**/*.json")
    return find_record(str(path), out)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def model(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=3, **OPTIONS).state_dict(), path)
    return f"timm:vit_tiny_patch16_224,checkpoint={path}," + ",".join(f"model.{k}={v}" for k, v in OPTIONS.items())


def edit_predictions(found: StoredRecord, count: int) -> None:
    """Change the first `count` predictions of a record's file."""
    path = found.path.with_suffix(".parquet")
    table = pq.read_table(path)
    values = table.column("prediction").to_numpy().copy()
    values[:count] = (values[:count] + 1) % 3
    pq.write_table(table.set_column(table.column_names.index("prediction"), "prediction", pa.array(values)), path)


def test_a_record_is_embedded_again_and_stands_and_its_folder_is_only_read(
    tiny_vit: str, shoes: str, tmp_path: Path, temporary: Path, encoded: list[int]
) -> None:
    vitbench.run(tiny_vit, shoes, representations="cls,gap", shots=[1, 2], seeds=2, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    for path in sorted((tmp_path / "out").glob("records/**/*.json"))[:2]:
        found = find_record(str(path), tmp_path)
        encoded.clear()
        result = replay(found)
        assert result.agrees
        assert result.differences == result.versions == ()
        assert result.again.key == found.record.key
        assert result.again.scores == found.record.scores
        assert result.verdict == f"the same: accuracy {100 * found.record.score:.2f} %, all 12 predictions"
        assert sum(encoded) == 3 * found.record.shot + 12
    assert contents(tmp_path / "out") == before
    assert list(temporary.iterdir()) == []


def test_features_are_read_only_when_asked_for_and_never_written(
    shoes: str, tmp_path: Path, temporary: Path, encoded: list[int]
) -> None:
    vitbench.run("pixels", shoes, out=tmp_path / "out", **ONE)
    before = contents(tmp_path / "out")
    encoded.clear()
    assert replay(only(tmp_path / "out"), reuse_features=True).agrees
    assert encoded == []
    shard = next((tmp_path / "out").glob("features/**/*.safetensors"))
    shard.write_bytes(b"damaged")
    before = contents(tmp_path / "out")
    assert replay(only(tmp_path / "out"), reuse_features=True).agrees
    assert encoded
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "features").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="--reuse-features: there are no features at"):
        replay(only(tmp_path / "out"), reuse_features=True)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"l2": "loo", "options": {"criterion": "accuracy", "grid": "1,10,100"}, "shots": "3,", "seeds": [7]},
        {"limit": 5, **ONE},
        {"train_split": "train[:12]", "test_split": "test[50%:]", **ONE},
        {"dtype": "bfloat16", "preprocess": "vit_jax", **ONE},
        {"protocol": "ridge", "l2": 3.5},
        {"protocol": "ridge", "l2": "loo"},
    ],
    ids=["loo", "limit", "splits", "dtype", "ridge", "ridge-loo"],
)
def test_everything_that_a_run_was_told_is_told_again(
    settings: dict[str, Any], tiny_vit: str, shoes: str, tmp_path: Path
) -> None:
    vitbench.run(tiny_vit, shoes, representations="cls+gap@1", out=tmp_path / "out", **settings)
    found = only(tmp_path / "out")
    result = replay(found)
    assert result.differences == ()
    assert result.agrees
    assert result.again.splits == found.record.splits


def test_a_task_file_with_tuning_splits(tmp_path: Path) -> None:
    """The identity's parameters hold fingerprints of tuning splits, which are no options; the file is found by the run's YAML."""
    (tmp_path / "own.yaml").write_text(
        "title: Own\nsource: {kind: sklearn, dataset: digits}\nnum_classes: 10\n"
        "splits:\n  all: {rows: [0, 300]}\n  train: {select: 'all[:200]'}\n  test: {select: 'all[200:]'}\n"
        "  tuning: {select: 'all[:120]'}\n  choosing: {select: 'all[120:200]'}\n"
        "evaluation: {train: train, test: test, tune_train: tuning, tune_validation: choosing}\n"
    )
    vitbench.run("pixels", str(tmp_path / "own.yaml"), protocol="ridge", options={"tune": True}, out=tmp_path / "out")
    found = only(tmp_path / "out")
    assert "tune_train_fingerprint" in found.record.identity["parameters"]
    result = replay(found)
    assert result.agrees
    assert result.differences == ()


def test_data_of_a_folder_of_ones_own_and_of_another_size(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    """Where it lies is only in the run's configuration, that the size was accepted only in the record."""
    folder = image_folder()
    (tmp_path / "own.yaml").write_text(
        "title: Own\nsource: {kind: imagefolder, path: elsewhere}\nsplits:\n"
        "  train: {folder: train, size: 18}\n  test: {folder: test, size: 11}\n"
    )
    task = str(tmp_path / "own.yaml")
    vitbench.run("pixels", task, task_data={task: str(folder)}, accept_sizes=True, out=tmp_path / "out", **ONE)
    found = only(tmp_path / "out")
    assert found.record.deviations
    result = replay(found)
    assert (result.agrees, result.differences) == (True, ())
    for config in (tmp_path / "out" / "configs").iterdir():
        config.unlink()
    assert replay(found, changes={"tasks": [task], "task_data": {task: str(folder)}}).agrees


def test_an_untrained_pooler_that_was_let_through(shoes: str, tmp_path: Path) -> None:
    size = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=32, patch_size=16, **size)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    spec = f"hf:{tmp_path / 'vit'}"
    vitbench.run(spec, shoes, representations="pooler", allow_untrained=True, out=tmp_path / "out", **ONE)
    found = only(tmp_path / "out")
    assert found.record.representation_provenance == "untrained"
    assert replay(found).agrees


def test_another_checkpoint_is_seen_in_the_identity_and_the_predictions(shoes: str, tmp_path: Path) -> None:
    spec = model(tmp_path / "weights.safetensors", 0)
    vitbench.run(spec, "digits", representations="cls", out=tmp_path / "out", **ONE)
    model(tmp_path / "weights.safetensors", 1)
    result = replay(only(tmp_path / "out"))
    assert [difference.field for difference in result.differences] == ["weights"]
    assert not result.agrees
    assert result.changed
    assert result.verdict.startswith("not the same: accuracy ")


def test_changed_predictions_are_counted_and_a_tolerance_looks_at_the_score_alone(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", shoes, out=tmp_path / "out", **ONE)
    found = only(tmp_path / "out")
    edit_predictions(found, 4)
    result = replay(found)
    assert (result.changed, result.agrees, result.points) == (4, False, 0)
    assert result.verdict.endswith("4 of 12 predictions differ")
    assert replay(found, tolerance=0.1).agrees


def test_other_test_rows_are_not_compared(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    vitbench.run("pixels", f"imagefolder:{folder}", out=tmp_path / "out", **ONE)
    next((folder / "test" / "boot").glob("*.png")).unlink()
    result = replay(only(tmp_path / "out"), tolerance=100)
    assert (result.changed, result.agrees) == (None, False)
    assert result.verdict.startswith("not comparable: 11 test images")


def test_versions_that_differ_are_told(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", shoes, out=tmp_path / "out", **ONE)
    found = only(tmp_path / "out")
    today = found.record.provenance.versions["torch"]
    found.path.write_text(found.path.read_text().replace(f'"torch": "{today}"', '"torch": "1.0"'))
    assert replay(only(tmp_path / "out")).versions == (f"torch: 1.0 → {today}",)


def test_what_is_gone_or_damaged_is_one_line(
    image_folder: ImageFolderMaker, tmp_path: Path, temporary: Path, encoded: list[int]
) -> None:
    folder = image_folder()
    spec = model(tmp_path / "weights.safetensors", 0)
    vitbench.run(spec, f"imagefolder:{folder}", representations="cls", out=tmp_path / "out", **ONE)
    found = only(tmp_path / "out")
    encoded.clear()

    def refused(match: str, kind: type[VitbenchError] = VitbenchError) -> None:
        with pytest.raises(kind, match=match) as told:
            replay(found)
        assert "\n" not in str(told.value)

    (tmp_path / "weights.safetensors").rename(tmp_path / "moved.safetensors")
    refused(r"cannot be run again: .*weights\.safetensors.*\(--backbone, --task")
    moved = {"backbones": [spec.replace("weights.s", "moved.s")]}
    assert replay(found, changes=moved).agrees
    encoded.clear()
    folder.rename(tmp_path / "boots")
    refused(r"cannot be run again: .*shoes")
    renamed = replay(found, changes=moved | {"tasks": [f"imagefolder:{tmp_path / 'boots'}"]})
    assert renamed.agrees
    encoded.clear()
    for config in (tmp_path / "out" / "configs").iterdir():
        config.unlink()
    refused("unknown task of the record: 'imagefolder/shoes'", UsageError)
    predictions = found.path.with_suffix(".parquet")
    predictions.write_bytes(predictions.read_bytes()[:50])
    refused("predictions .* are damaged", StoreError)
    predictions.unlink()
    refused("predictions .* are missing", StoreError)
    assert encoded == []
    assert list(temporary.iterdir()) == []


def test_a_protocol_or_a_cell_that_is_no_more_is_one_line(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", shoes, out=tmp_path / "out", **ONE)
    found = only(tmp_path / "out")

    def other(**fields: Any) -> StoredRecord:
        return StoredRecord(found.path, found.record.model_copy(update=fields), found.out)

    with pytest.raises(UsageError, match="unknown protocol 'fewshots'; did you mean 'fewshot'"):
        replay(other(protocol="fewshots"))
    with pytest.raises(UsageError, match="makes no outcome of 'pixels' for shot 5 and seed 0 today"):
        replay(other(protocol="ridge", shot=5))


@given(
    then=st.integers(0, 1000),
    now=st.integers(0, 1000),
    changed=st.integers(0, 1000) | st.none(),
    tolerance=st.integers(0, 500),
)
def test_the_verdict_and_the_tolerance(then: int, now: int, changed: int | None, tolerance: int) -> None:
    """Scores in tenths of a percent, so that a difference may be exactly the tolerance."""

    def record(score: int) -> Record:
        return Record.model_construct(metric="accuracy", scores={"accuracy": score / 1000}, n_test=1000)

    result = Replay(StoredRecord(Path("r.json"), record(then), Path()), record(now), (), changed, (), tolerance / 10)
    same = then == now and changed == 0
    within = tolerance > 0 and abs(then - now) <= tolerance
    assert result.agrees == (changed is not None and (same or within))
    start = "not comparable" if changed is None else "the same" if result.agrees else "not the same"
    assert result.verdict.startswith(start)
    assert np.isclose(result.points, (now - then) / 10)
