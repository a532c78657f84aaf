from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import StoreError, UsageError, VitbenchError
from vitbench.execution.config import make_config
from vitbench.execution.replay import differences, find_record
from vitbench.execution.why import Missing, why_command, why_record
from vitbench.records import identity
from vitbench.records.identity import RECORD_FIELDS, key
from vitbench.solvers import ridge

ONE: dict[str, Any] = {"shots": 1, "seeds": 1}


@pytest.fixture
def shoes(image_folder: ImageFolderMaker) -> str:
    return f"imagefolder:{image_folder()}"


def only(out: Path) -> Path:
    (path,) = out.glob("records/**/*.json")
    return path


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def model(path: Path, seed: int) -> str:
    """A spec whose checkpoint is at `path`, with weights of `seed`."""
    torch.manual_seed(seed)
    options = {"img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 2}
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=3, **options).state_dict(), path)
    return f"timm:vit_tiny_patch16_224,checkpoint={path}," + ",".join(f"model.{k}={v}" for k, v in options.items())


def fields(missing: Missing) -> list[str]:
    return [difference.field for difference in missing.differences]


def test_an_unchanged_record_would_be_used_again_and_nothing_is_embedded_or_written(
    shoes: str, tmp_path: Path, encoded: list[int]
) -> None:
    vitbench.run("pixels", shoes, out=tmp_path / "out", **ONE)
    before = contents(tmp_path)
    encoded.clear()
    answer = why_record(find_record(str(only(tmp_path / "out")), tmp_path))
    assert answer.differences == ()
    assert answer.verdict == "would be used again: every field of its identity is the same today"
    assert answer.asked_by is not None
    assert answer.asked_by.parent == tmp_path / "out" / "configs"
    assert encoded == []
    assert contents(tmp_path) == before


def test_a_changed_checkpoint_is_named(shoes: str, tmp_path: Path) -> None:
    spec = model(tmp_path / "weights.safetensors", 0)
    vitbench.run(spec, shoes, representations="cls", out=tmp_path / "out", **ONE)
    found = find_record(str(only(tmp_path / "out")), tmp_path)
    assert not why_record(found).differences
    model(tmp_path / "weights.safetensors", 1)
    answer = why_record(found)
    (difference,) = answer.differences
    assert difference.field == "weights"
    assert difference.then == found.record.identity["weights"][:12] != difference.now
    assert "checkpoint" in difference.meaning
    assert answer.verdict == "would be made again: 1 of its identity's fields differ today (weights)"


@pytest.mark.parametrize(("split", "field"), [("train", "train_fingerprint"), ("test", "test_fingerprint")])
def test_changed_data_is_named(image_folder: ImageFolderMaker, tmp_path: Path, split: str, field: str) -> None:
    folder = image_folder()
    vitbench.run("pixels", f"imagefolder:{folder}", out=tmp_path / "out", **ONE)
    Image.new("RGB", (20, 20)).save(folder / split / "boot" / "zzz.png")
    answer = why_record(find_record(str(only(tmp_path / "out")), tmp_path))
    assert [difference.field for difference in answer.differences] == [field]
    assert f"the {split} data" in answer.differences[0].meaning
    assert answer.notes == (("the record scored 12 test images, today there would be 13",) if split == "test" else ())


def test_both_preprocessing_strings_are_told(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", shoes, out=tmp_path / "out", **ONE)
    answer = why_record(find_record(str(only(tmp_path / "out")), tmp_path), {"preprocess": "vit_jax"})
    (difference,) = answer.differences
    assert difference.field == "preprocessing"
    assert difference.then == "resize(32x32,bilinear)|normalize(0.5,0.5)"
    assert difference.now == "tf_resize(32x32,bilinear)|value_range(-1,1)"


def test_another_scheme_or_solver_of_vitbench_is_named(
    shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vitbench.run("pixels", shoes, out=tmp_path / "out", **ONE)
    found = find_record(str(only(tmp_path / "out")), tmp_path)
    monkeypatch.setattr(identity, "IDENTITY_VERSION", 99)
    monkeypatch.setattr(ridge, "SOLVER_VERSION", 77)
    told = why_record(found).differences
    assert [(part.field, part.now) for part in told] == [("identity_version", "99"), ("parameters.solver", "77")]
    assert "no older record is used again" in told[0].meaning


def test_of_several_runs_the_one_that_asks_for_the_record_is_found(shoes: str, tmp_path: Path) -> None:
    """Two preprocessings, two sets of shots, a limit: each record is what one of the saved configurations asks for."""
    variants: list[dict[str, Any]] = [
        {},
        {"preprocess": "vit_jax"},
        {"limit": 5},
        {"l2": "loo", "shots": 2},
        {"train_split": "train[:12]"},
        {"limit": 500, "l2": 3.0},
    ]
    for variant in variants:
        vitbench.run("pixels", shoes, out=tmp_path, **{**ONE, **variant})
    records = list(tmp_path.glob("records/**/*.json"))
    assert len(records) == len(variants)
    askers = set()
    for path in records:
        answer = why_record(find_record(str(path), tmp_path))
        assert not answer.differences, answer
        askers.add(answer.asked_by)
    assert len(askers) == len(variants)
    assert None not in askers


def test_without_a_configuration_the_record_itself_is_asked(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", [shoes, "digits"], out=tmp_path, preprocess="vit_jax", limit=7, **ONE)
    shutil.rmtree(tmp_path / "configs")
    (digits,) = tmp_path.glob("records/*/builtin/**/*.json")
    answer = why_record(find_record(str(digits), tmp_path))
    assert (answer.differences, answer.asked_by) == ((), None)
    (folder,) = tmp_path.glob("records/*/imagefolder/**/*.json")
    with pytest.raises(
        UsageError, match=r"unknown task of the record: 'imagefolder/shoes' .*imagefolder:PATH, with --task"
    ):
        why_record(find_record(str(folder), tmp_path))
    assert not why_record(find_record(str(folder), tmp_path), {"tasks": [shoes]}).differences


def test_a_configuration_of_another_limit_or_split_did_not_ask_for_a_record(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", shoes, out=tmp_path, **ONE)
    found = find_record(str(only(tmp_path)), tmp_path)
    shutil.rmtree(tmp_path / "configs")
    vitbench.run("pixels", shoes, out=tmp_path, limit=5, **ONE)
    vitbench.run("pixels", shoes, out=tmp_path, train_split="train[:12]", **ONE)
    answer = why_record(found)
    assert (answer.differences, answer.asked_by) == ((), None)


def test_what_is_gone_is_one_line(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    spec = model(tmp_path / "weights.safetensors", 0)
    vitbench.run(spec, f"imagefolder:{folder}", representations="cls", out=tmp_path / "out", **ONE)
    found = find_record(str(only(tmp_path / "out")), tmp_path)
    (tmp_path / "weights.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(VitbenchError, match=r"cannot be asked for today: .*weights\.safetensors.*--backbone") as told:
        why_record(found)
    assert "\n" not in str(told.value)
    moved = spec.replace("weights.safetensors", "moved.safetensors")
    assert not why_record(found, {"backbones": [moved]}).differences
    folder.rename(tmp_path / "boots")
    with pytest.raises(VitbenchError, match=r"cannot be asked for today: .*shoes.*--task"):
        why_record(found, {"backbones": [moved]})


def test_records_are_found_by_path_by_key_and_by_its_beginning(shoes: str, tmp_path: Path) -> None:
    frame = vitbench.run("pixels", shoes, out=tmp_path, shots=1, seeds=30)
    whole = frame["key"].iloc[0]
    assert find_record(whole, tmp_path).record.key == whole
    assert find_record(whole.upper()[:12], tmp_path).record.key == whole
    first = next(letter for letter in "0123456789abcdef" if sum(k.startswith(letter) for k in frame["key"]) > 1)
    with pytest.raises(UsageError, match=rf"records in .* have a key that begins with '{first}': .*; give more of it"):
        find_record(first, tmp_path)
    with pytest.raises(UsageError, match="has a key that begins with 'xyz'"):
        find_record("xyz", tmp_path)
    with pytest.raises(UsageError, match=r"there is no record nowhere/a\.json"):
        find_record("nowhere/a.json", tmp_path)
    with pytest.raises(UsageError, match="there is no record"):
        find_record("a" * 4000 + ".json", tmp_path)
    with pytest.raises(UsageError, match="there are no results at"):
        find_record("abc", tmp_path / "empty")


def test_a_damaged_record_and_an_edited_one_are_refused(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", shoes, out=tmp_path, **ONE)
    path = only(tmp_path)
    text = path.read_text()
    changed = json.loads(text)
    changed["identity"]["seed"] = 5
    path.write_text(json.dumps(changed))
    with pytest.raises(StoreError, match="its key is not that of its identity"):
        find_record(str(path), tmp_path)
    path.write_text(text[:-40])
    with pytest.raises(StoreError, match="cannot be read"):
        find_record(str(path), tmp_path)


def test_a_command_tells_the_nearest_record_of_each_that_is_missing(
    shoes: str, tmp_path: Path, encoded: list[int]
) -> None:
    vitbench.run("pixels", [shoes, "digits"], out=tmp_path, shots=[1, 2], seeds=2)
    before = contents(tmp_path)
    encoded.clear()
    asked: dict[str, Any] = {"backbones": "pixels", "tasks": [shoes, "digits"], "out": tmp_path}
    answer = why_command(make_config({**asked, "options": {"shots": [1, 2], "seeds": 3}}))
    assert answer.present == 8
    assert [missing.cell.seed for missing in answer.missing] == [2] * 4
    assert {tuple(fields(missing)) for missing in answer.missing} == {("seed",)}
    assert len(answer.groups()) == 2
    assert answer.verdict == "12 records: 8 there, 4 to be made"
    other = why_command(make_config({**asked, "preprocess": "vit_jax", "options": {"shots": [1, 2], "seeds": 2}}))
    assert other.present == 0
    assert {tuple(fields(missing)) for missing in other.missing} == {("preprocessing",)}
    for missing in other.missing:
        assert missing.nearest is not None
        near = missing.nearest.record
        assert (near.task, near.shot, near.seed) == (missing.task, missing.cell.shot, missing.cell.seed)
    assert encoded == []
    assert contents(tmp_path) == before


def test_a_changed_checkpoint_is_held_against_itself_and_not_against_a_sister(shoes: str, tmp_path: Path) -> None:
    """Both records differ by their weights alone; whichever is older, the name decides."""
    specs = [model(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate(("first", "second"))]
    vitbench.run(specs, shoes, representations="cls", out=tmp_path / "out", **ONE)
    for seed, name in enumerate(("first", "second"), start=2):
        model(tmp_path / f"{name}.safetensors", seed)
    config = make_config(
        {"backbones": specs, "tasks": [shoes], "representations": "cls", "out": tmp_path / "out", "options": ONE}
    )
    missing = why_command(config).missing
    assert [fields(one) for one in missing] == [["weights"]] * 2
    assert [one.nearest.record.backbone for one in missing if one.nearest] == specs


def test_the_nearest_has_the_fewest_other_fields(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", shoes, out=tmp_path, shots=1, seeds=1)
    vitbench.run("pixels", shoes, out=tmp_path, shots=2, seeds=1, preprocess="vit_jax", limit=5)
    asked = {"backbones": "pixels", "tasks": shoes, "preprocess": "vit_jax", "limit": 5, "options": ONE}
    (missing,) = why_command(make_config({**asked, "out": tmp_path})).missing
    assert fields(missing) == ["shot"]


def test_a_command_on_nothing_on_damage_and_on_what_fails(shoes: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"backbones": "pixels", "tasks": shoes, "out": tmp_path / "out", "options": ONE}
    (missing,) = why_command(make_config(asked)).missing
    assert (missing.nearest, missing.differences) == (None, ())
    assert not (tmp_path / "out").exists()
    vitbench.run("pixels", shoes, out=tmp_path / "out", **ONE)
    rerun = why_command(make_config({**asked, "on_existing": "rerun"}))
    assert rerun.verdict == "1 records: 1 there (--on-existing rerun makes them again), 0 to be made"
    path = only(tmp_path / "out")
    path.write_text("{")
    (missing,) = why_command(make_config(asked)).missing
    assert missing.damaged == path
    answer = why_command(make_config({**asked, "backbones": ["pixels", "timm:no_such_model"]}))
    assert len(answer.failures) == 1
    assert "no_such_model" in answer.failures[0]
    with pytest.raises(UsageError, match="unknown option of protocol"):
        why_command(make_config({**asked, "options": {"shot": 1}}))


VALUES = st.none() | st.integers(0, 3) | st.sampled_from(["a", "b"])
IDENTITIES = st.fixed_dictionaries(
    {name: VALUES for name in RECORD_FIELDS if name != "parameters"}
    | {"parameters": st.dictionaries(st.sampled_from(["l2", "bias", "tune_train_fingerprint"]), VALUES)}
)


@given(IDENTITIES, IDENTITIES)
def test_differences_are_exactly_what_makes_two_keys_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    told = differences(one, other)
    assert (not told) == (key(one) == key(other))
    assert [part.field for part in told] == [part.field for part in differences(other, one)]
    assert all(part.meaning and (part.then != part.now) for part in told)
    plain = {name for name in RECORD_FIELDS if name != "parameters" and one[name] != other[name]}
    assert {part.field for part in told if "." not in part.field} == plain
