from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import StoreError, UsageError
from vitbench.records.identity import key
from vitbench.records.schema import Record
from vitbench.records.store import ResultStore
from vitbench.reporting.export import chosen, conflicts, export_frame, read_all, write_table
from vitbench.reporting.hub_card import card_yaml, model_index, of_backbone

COMMIT = "0b2714987fa478483af9968de7c934580d0bb9a2"


def made(**fields: Any) -> Record:
    """A record of a schema that is right; fields of the identity are kept in step."""
    score = fields.pop("score", 0.5)
    values: dict[str, Any] = {
        "backbone": "timm:vit_x,checkpoint=/a/w.safetensors",
        "backbone_name": "timm-vit_x-11111111",
        "representation": "cls",
        "representation_dim": 4,
        "representation_provenance": "trained",
        "alias_of": None,
        "num_parameters": 10,
        "task": "paper/cifar10",
        "num_classes": 10,
        "metric": "accuracy",
        "chance": 0.1,
        "splits": {"train": "train", "test": "test"},
        "source": f"uoft-cs/cifar10@{COMMIT}",
        "protocol": "fewshot",
        "protocol_label": "l2 = 1024",
        "parameters": {"l2": 1024.0},
        "shot": 5,
        "seed": 0,
        "limit": None,
        "preprocessing": "resize(8x8,bilinear)|normalize(0.5,0.5)",
        "dtype": "float32",
        "details": {"l2": 1024.0},
        "warnings": [],
        "n_support": 50,
        "n_test": 10000,
        "seconds": 0.1,
        "provenance": {
            "created": "2026-01-01T00:00:00+00:00",
            "command": "vitbench run",
            "host": "h",
            "device": "cpu",
            "python": "3.11",
            "versions": {"torch": "2.9"},
            "git_commit": None,
            "weights_notes": [],
        },
    } | fields
    values["scores"] = {values["metric"]: score}
    shared = (
        "dtype",
        "limit",
        "num_classes",
        "parameters",
        "preprocessing",
        "protocol",
        "representation",
        "seed",
        "shot",
    )
    identity = {name: values[name] for name in shared} | {
        "identity_version": 1,
        "architecture": fields.get("architecture", "vit_x"),
        "weights": fields.get("weights", "1" * 64),
        "train_fingerprint": values["task"],
        "test_fingerprint": values["task"],
    }
    values = {name: value for name, value in values.items() if name in Record.model_fields}
    return Record(key=key(identity), identity=identity, **values)


def stored(out: Path, *records: Record) -> Path:
    for record in records:
        ResultStore(out).write(record, {})
    return out


def test_a_real_run_in_every_format(image_folder: ImageFolderMaker, tiny_vit: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = f"imagefolder:{image_folder()}"
    vitbench.run([tiny_vit, "pixels"], [task, "digits"], representations="cls,pooler", shots=[1, 2], seeds=2, out=out)
    vitbench.run("pixels", task, shots=2, seeds=1, l2="loo", limit=5, out=out)
    found, notes = read_all(out)
    assert notes == []
    frame = export_frame(found)
    expected = vitbench.load_results(out)
    assert frame["key"].tolist() == expected["key"].tolist()
    for name, read in {"t.parquet": pd.read_parquet, "t.csv": pd.read_csv, "t.JSON": pd.read_json}.items():
        write_table(frame, tmp_path / name)
        back = read(tmp_path / name)
        assert list(back.columns) == list(frame.columns)
        assert back["file"].map(lambda file: (out / file).is_file()).all()
    for back in (
        pd.read_parquet(tmp_path / "t.parquet"),
        pd.read_csv(tmp_path / "t.csv", dtype={"key": str}),
        pd.DataFrame(json.loads((tmp_path / "t.JSON").read_text())),
    ):
        assert back["score"].tolist() == expected["score"].tolist()
        assert back["seed"].tolist() == expected["seed"].tolist()
        assert back["limit"].notna().sum() == 1
        assert {"identity.weights", "identity.parameters.l2", "identity.limit", "version.torch"} <= set(back.columns)
    assert pd.read_parquet(tmp_path / "t.parquet")["limit"].dtype == "Int64"
    for (file, record), row in zip(found, frame.to_dict("records"), strict=True):
        assert row["file"] == file
        for name, value in record.identity.items():
            if name not in ("parameters", "limit"):
                assert row[f"identity.{name}"] == value


def test_a_column_of_several_kinds_is_text_in_parquet(tmp_path: Path) -> None:
    grid = [1.0, 10.0]
    records = [
        made(),
        made(seed=1, parameters={"l2": "loo", "grid": grid}, warnings=["one", 'two, "2"']),
        made(seed=2, task='own/<b>"x",\nnew', backbone="hf:./a, b"),
    ]
    found, _ = read_all(stored(tmp_path / "out", *records))
    frame = export_frame(found)
    write_table(frame, tmp_path / "t.parquet")
    write_table(frame, tmp_path / "t.csv")
    for back in (pd.read_parquet(tmp_path / "t.parquet"), pd.read_csv(tmp_path / "t.csv")):
        rows = back.set_index("seed")
        assert rows.loc[0, "identity.parameters.l2"] == "1024.0"
        assert rows.loc[1, "identity.parameters.l2"] == "loo"
        assert json.loads(rows.loc[1, "identity.parameters.grid"]) == grid
        assert pd.isna(rows.loc[0, "identity.parameters.grid"])
        assert rows.loc[2, "task"] == 'own/<b>"x",\nnew'
        assert pd.isna(rows["limit"]).all()


def test_damaged_records_and_conflicts_are_told(tmp_path: Path) -> None:
    out = stored(tmp_path / "out", made(), made(seed=1))
    twin = out / "records" / "another" / "cifar10" / f"{made().key}.json"
    twin.parent.mkdir(parents=True)
    twin.write_text(made(score=0.9).model_dump_json())
    (out / "records" / "another" / "bad.json").write_text("{")
    found, notes = read_all(out)
    assert len(found) == 3
    assert len(export_frame(found)) == 3
    assert len(notes) == 2
    assert notes[0].startswith("left out: the record ")
    assert notes[1].startswith(f"conflict: 2 records of the identity {made().key} have different scores")
    assert conflicts([made(), made()]) == []


def test_no_records_and_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there are no results at"):
        read_all(tmp_path)
    (tmp_path / "records").mkdir()
    with pytest.raises(UsageError, match=r"there are no records in .*: make some with `vitbench run`"):
        read_all(tmp_path)
    frame = pd.DataFrame({"a": [1]})
    with pytest.raises(UsageError, match=r"unknown format of t\.parqet: '\.parqet'; did you mean '\.parquet'\?"):
        write_table(frame, tmp_path / "t.parqet")
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_table(frame, tmp_path / "t.csv")
    (tmp_path / "t.json").write_text("before")

    def full(self: Path, *given: object, **named: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="the disk is full; what was saved before is intact"):
        write_table(frame, tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text() == "before"
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_choice_of_records() -> None:
    found = [("a", made()), ("b", made(shot=10)), ("c", made(task="vtab/dtd", representation="gap"))]
    assert [file for file, _ in chosen(found)] == ["a", "b", "c"]
    assert [file for file, _ in chosen(found, shots=["10"])] == ["b"]
    assert [file for file, _ in chosen(found, tasks=["vtab"])] == ["c"]
    assert [file for file, _ in chosen(found, representations=["cls"], protocol="fewshot")] == ["a", "b"]
    with pytest.raises(UsageError, match=r"unknown representation among the records: 'glp'; .*gap"):
        chosen(found, representations=["glp"])
    with pytest.raises(UsageError, match="unknown shot among the records: '1'"):
        chosen(found, shots=["1"])
    with pytest.raises(UsageError, match="no record has all that is asked for"):
        chosen(found, shots=["10"], representations=["gap"])


def test_a_model_card_says_what_was_measured() -> None:
    scores = [0.5, 0.625, 0.75]
    records = [made(seed=seed, score=score) for seed, score in enumerate(scores)]
    index, notes = model_index(records)
    assert notes == []
    name, (result,) = model_index_to_eval_results(index)
    assert name == "vit_x"
    assert (result.task_type, result.dataset_name) == ("image-classification", "CIFAR-10 (paper/cifar10)")
    assert (result.dataset_type, result.dataset_revision, result.dataset_split) == ("uoft-cs/cifar10", COMMIT, "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", statistics.fmean(scores))
    assert result.metric_name == "Top-1 accuracy (fewshot, 5-shot, l2 = 1024, cls, mean of 3 seeds ± 0.1250)"
    assert result.metric_args["seeds"] == [0, 1, 2]
    assert result.metric_args["standard_deviation"] == 0.125
    assert result.metric_args["unit"] == "fraction"


def test_the_yaml_is_the_head_of_a_card_that_the_hub_reads() -> None:
    index, _ = model_index([made(), made(representation="gap", score=0.75)], name="mine: a <b>model</b>")
    text = card_yaml(index)
    assert "Values are fractions: 0.9 is 90 %" in text.splitlines()[0]
    assert yaml.safe_load(text)["model-index"] == index
    card = ModelCard(f"---\n{text}license: mit\n---\n# Mine\n")
    assert card.data.model_name == "mine: a <b>model</b>"
    assert [(result.metric_value, result.metric_args["representation"]) for result in card.data.eval_results] == [
        (0.5, "cls"),
        (0.75, "gap"),
    ]
    assert " ± " not in card.data.eval_results[0].metric_name


def test_two_tasks_of_one_repository_stay_two_data_sets() -> None:
    """huggingface_hub groups by repository, split and revision, and would show the first task's name for both."""
    source = f"dpdl-benchmark/clevr@{COMMIT}"
    index, _ = model_index(
        [made(task=f"vtab/structured/{name}", source=source) for name in ("clevr_count", "clevr_distance")]
    )
    (entry,) = index
    assert len({result["dataset"]["name"] for result in entry["results"]}) == 2
    assert [len(result["metrics"]) for result in entry["results"]] == [1, 1]


def test_data_from_a_folder_is_claimed_to_be_no_revision() -> None:
    index, _ = model_index([made(source="imagefolder:pictures"), made(source="sklearn", task="imagefolder/shoes")])
    datasets = [result["dataset"] for result in index[0]["results"]]
    assert datasets == [
        {"name": "CIFAR-10 (paper/cifar10)", "type": "paper-cifar10", "split": "test"},
        {"name": "imagefolder/shoes", "type": "imagefolder-shoes", "split": "test"},
    ]


@pytest.mark.parametrize(
    ("left", "note"),
    [
        ({"limit": 5}, "left out: 1 records of limited runs"),
        ({"deviations": ["size"]}, "left out: 1 records of data that is not as its task file says"),
        ({"synthetic": True}, r"left out: 1 records of rendered images \(--synthetic takes them\)"),
        ({"representation_provenance": "untrained"}, "left out: 1 records of untrained representations"),
        ({"representation": "pooler", "alias_of": "cls"}, "left out: 1 records under another name"),
        ({"seed": 1}, "left out: .*, fewshot, 5-shot: it lacks seed"),
    ],
)
def test_what_does_not_belong_on_a_card_is_left_out_with_a_note(left: dict[str, Any], note: str) -> None:
    whole = [made(), made(seed=1)] if "seed" in left else [made()]
    other = made(**{"task": "paper/cifar100", **left} if "alias_of" not in left else left)
    index, notes = model_index([*whole, other])
    assert len(index[0]["results"]) == 1
    assert len(index[0]["results"][0]["metrics"]) == 1
    (line,) = notes
    assert pd.Series([line]).str.contains(note).all(), line
    if "seed" not in left and "alias_of" not in left:
        with pytest.raises(UsageError, match=f"nothing to put on a model card: {note}"):
            model_index([other])


def test_synthetic_tasks_come_when_asked_for_and_an_alias_where_it_stands_alone() -> None:
    assert model_index([made(synthetic=True)], synthetic=True)[1] == []
    assert model_index([made(representation="pooler", alias_of="cls")])[1] == []


def test_a_conflict_is_not_averaged() -> None:
    with pytest.raises(UsageError, match="in conflict: one identity with different scores"):
        model_index([made(), made(score=0.9)])
    assert model_index([made(), made()])[0][0]["results"][0]["metrics"][0]["value"] == 0.5


def test_other_pixels_are_another_metric_whose_name_says_so() -> None:
    index, _ = model_index([made(), made(preprocessing="resize(9x9,bilinear)|normalize(0.5,0.5)")])
    names = [metric["name"] for metric in index[0]["results"][0]["metrics"]]
    assert len(set(names)) == 2
    assert "resize(9x9,bilinear)" in names[1]


def test_the_backbone_of_a_card_is_one_model() -> None:
    one, other = made(), made(backbone="timm:vit_x,checkpoint=/b/w.safetensors", weights="2" * 64)
    assert of_backbone([one, other], one.backbone) == [one]
    assert of_backbone([one], "timm:vit_x") == [one]
    assert of_backbone([one], "timm-vit_x-11111111") == [one]
    with pytest.raises(
        UsageError, match="2 models among the records are called 'timm:vit_x': timm:vit_x,checkpoint=/a"
    ):
        of_backbone([one, other], "timm:vit_x")
    replaced = made(weights="3" * 64, backbone_name="timm-vit_x-33333333")
    with pytest.raises(UsageError, match=r"are called .*: timm-vit_x-11111111, timm-vit_x-33333333"):
        of_backbone([one, replaced], one.backbone)
    with pytest.raises(UsageError, match="unknown backbone among the records: 'timm:vit_y'; did you mean 'timm:vit_x'"):
        of_backbone([one], "timm:vit_y")
