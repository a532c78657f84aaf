"""What is remembered of a backbone is what loading it gives, or nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.backbones.base import Backbone
from vitbench.execution import job
from vitbench.features import remembered
from vitbench.features.load import load_backbone
from vitbench.features.remembered import recall, remember
from vitbench.records.store import ResultStore


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, and files that count as settled as soon as they are written."""
    monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", -3600.0)


@pytest.fixture
def own_vit(tiny_vit: str, tmp_path: Path) -> tuple[str, Path]:
    """The tiny ViT with a checkpoint file that a test may change: its spec and the file."""
    original = tiny_vit.partition("checkpoint=")[2].partition(",")[0]
    copy = Path(shutil.copy(original, tmp_path / "weights.safetensors"))
    return tiny_vit.replace(original, str(copy)), copy


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The specs of the backbones that are really loaded from here on."""
    found: list[str] = []
    original = job.load_backbone

    def counting(spec: str, **options: object) -> Backbone:
        found.append(spec)
        return original(spec, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "load_backbone", counting)
    return found


def described(backbone: Backbone) -> dict[str, object]:
    names = ("architecture", "weights_digest", "num_parameters", "preprocessing", "input_size", "mean", "std", "dtype")
    said = {name: getattr(backbone, name) for name in (*names, "depth", "first_layer", "device", "spec")}
    lists = {name: list(getattr(backbone, name)) for name in ("layer_poolings", "layer_dims", "provenance_notes")}
    parts = {"representations": dict(backbone.representations), "available": backbone.available()}
    return said | lists | parts


def local_specs(tmp_path: Path) -> dict[str, str]:
    """A local checkpoint of every kind that is remembered."""
    import transformers

    torch.manual_seed(0)
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **config))
    model.save_pretrained(tmp_path / "hf")
    transformers.ViTImageProcessorFast(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "hf")
    folder = tmp_path / "timm"
    folder.mkdir()
    options = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 3}
    save_file(
        timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).state_dict(), folder / "model.safetensors"
    )
    content = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": options}
    (folder / "config.json").write_text(json.dumps({**content, "pretrained_cfg": {"input_size": [3, 32, 32]}}))
    return {"hf": f"hf:{tmp_path / 'hf'}", "local-dir": f"timm:local-dir:{folder}"}


@pytest.mark.parametrize("options", ["", ",dtype=bfloat16", ",preprocess=bigvision_fewshot"])
def test_what_is_recalled_is_what_was_loaded(own_vit: tuple[str, Path], options: str) -> None:
    spec = own_vit[0] + options
    assert recall(spec, device="cpu") is None
    loaded = load_backbone(spec, device="cpu")
    remember(loaded)
    found = recall(spec, device="cpu")
    assert found is not None
    assert described(found) == described(loaded)
    for name in ("cls", "gap@-1", "cls+gap", "pooler"):
        assert found.canonical(name) == loaded.canonical(name)
        assert (found.dim(name), found.provenance(name), found.alias_of(name)) == (
            loaded.dim(name),
            loaded.provenance(name),
            loaded.alias_of(name),
        )
    with pytest.raises(RuntimeError, match="only remembered"):
        found.encode(torch.zeros(1, 3, 32, 32), ["cls"])


def test_folders_of_hugging_face_and_timm(tmp_path: Path) -> None:
    for kind, spec in local_specs(tmp_path).items():
        loaded = load_backbone(spec, device="cpu")
        remember(loaded)
        found = recall(spec, device="cpu")
        assert found is not None, kind
        assert described(found) == described(loaded)
        folder = Path(spec.rpartition(":")[2])
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
        assert recall(spec, device="cpu") is None, kind


@pytest.mark.parametrize("change", ["content", "touch", "swap", "delete", "add"])
def test_any_change_of_the_files_is_noticed(own_vit: tuple[str, Path], change: str, tmp_path: Path) -> None:
    spec, file = own_vit
    remember(load_backbone(spec, device="cpu"))
    before = file.stat()
    content = file.read_bytes()
    if change == "content":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "touch":
        os.utime(file)
    elif change == "swap":
        (tmp_path / "other").write_bytes(content)
        os.utime(tmp_path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "other").replace(file)
    elif change == "delete":
        file.unlink()
    else:
        (file.parent / "beside.safetensors").write_bytes(b"")
    assert (recall(spec, device="cpu") is None) == (change != "add"), (
        "a file beside the one that is named decides nothing"
    )


def test_other_versions_other_code_and_another_working_folder_know_nothing(
    own_vit: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec, _ = own_vit
    remember(load_backbone(spec, device="cpu"))
    assert recall(spec, device="cpu") is not None
    with monkeypatch.context() as patch:
        patch.setattr(remembered, "_versions", lambda: {"timm": "0"})
        assert recall(spec, device="cpu") is None
    with monkeypatch.context() as patch:
        patch.setattr(remembered, "_code", lambda: "another")
        assert recall(spec, device="cpu") is None
    monkeypatch.chdir(tmp_path)
    assert recall(spec, device="cpu") is None


def test_a_file_that_changed_a_moment_ago_is_not_remembered(
    own_vit: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 3600.0)
    remember(load_backbone(own_vit[0], device="cpu"))
    assert recall(own_vit[0], device="cpu") is None


def test_a_damaged_memory_is_none(own_vit: tuple[str, Path], tmp_path: Path) -> None:
    spec, _ = own_vit
    remember(load_backbone(spec, device="cpu"))
    (place,) = (tmp_path / "cache" / "backbones").iterdir()
    whole = place.read_text()
    for text in ("", "[]", "{}", whole[:100], whole.replace('"depth"', '"width"')):
        place.write_text(text)
        assert recall(spec, device="cpu") is None


def test_pixels_and_backbones_that_name_no_files_are_not_remembered(tmp_path: Path) -> None:
    remember(load_backbone("pixels", device="cpu"))
    assert recall("pixels", device="cpu") is None
    assert not (tmp_path / "cache").exists()


def test_a_run_whose_records_are_there_loads_nothing_and_says_the_same(
    own_vit: tuple[str, Path], image_folder: ImageFolderMaker, tmp_path: Path, loads: list[str]
) -> None:
    arguments = {"shots": [1, 2], "seeds": 2, "out": tmp_path / "out"}
    task, spec = f"imagefolder:{image_folder()}", own_vit[0]
    first = vitbench.run([spec, "pixels"], task, **arguments)
    assert loads == [spec, "pixels"]
    again = vitbench.run([spec, "pixels"], task, **arguments)
    assert loads == [spec, "pixels", "pixels"]
    assert again.equals(first)
    more = vitbench.run(spec, task, **arguments | {"seeds": 3})
    assert loads[-1] == spec
    assert len(more) > len(first) / 2
    vitbench.run(spec, task, **arguments, on_existing="rerun")
    assert loads[-2:] == [spec, spec]


def test_other_weights_in_the_same_file_are_other_records(
    own_vit: tuple[str, Path], image_folder: ImageFolderMaker, tmp_path: Path, loads: list[str]
) -> None:
    spec, file = own_vit
    arguments = {"shots": [1], "seeds": 1, "out": tmp_path / "out"}
    task = f"imagefolder:{image_folder()}"
    first = vitbench.run(spec, task, **arguments)
    state = {name: value + 0.01 for name, value in load_file(file).items()}
    save_file(state, file)
    second = vitbench.run(spec, task, **arguments)
    assert loads == [spec, spec]
    assert set(first["weights"]).isdisjoint(second["weights"])
    assert set(first["key"]).isdisjoint(second["key"])


def test_a_memory_that_were_wrong_could_make_no_wrong_record(
    own_vit: tuple[str, Path], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    """Of what is remembered only the presence of records is asked; what is made has the digest of what was loaded."""
    spec, _ = own_vit
    task, out = f"imagefolder:{image_folder()}", tmp_path / "out"
    loaded = load_backbone(spec, device="cpu")
    remember(loaded)
    (place,) = (tmp_path / "cache" / "backbones").iterdir()
    place.write_text(place.read_text().replace(loaded.weights_digest, "0" * 64))
    frame = vitbench.run(spec, task, shots=[1], seeds=1, out=out)
    assert set(frame["weights"]) == {loaded.weights_digest}
    assert {ResultStore(out).read(key).identity["weights"] for key in frame["key"]} == {loaded.weights_digest}


def test_a_missing_record_or_a_representation_that_is_lacking_is_told_by_the_loaded_backbone(
    own_vit: tuple[str, Path], image_folder: ImageFolderMaker, tmp_path: Path, loads: list[str]
) -> None:
    spec, _ = own_vit
    task, out = f"imagefolder:{image_folder()}", tmp_path / "out"
    vitbench.run(spec, task, shots=[1], seeds=1, out=out)
    with pytest.raises(vitbench.VitbenchError, match="layers go from 0 to 2"):
        vitbench.run(spec, task, representations="cls@7", shots=[1], seeds=1, out=out)
    assert loads == [spec, spec]
