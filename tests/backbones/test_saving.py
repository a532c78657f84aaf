"""A saved model loads again as what it was: its representations, its classifier, its preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import Tensor

from tests.backbones.test_classifier import CLASSIFIED, hf_classifier
from tests.backbones.test_huggingface import CASES, shake
from tests.backbones.test_huggingface import save as save_hf
from tests.backbones.test_jax_npz import hybrid
from tests.backbones.test_jax_npz import vit as jax_vit
from tests.backbones.test_timm import FAMILIES, VIT, Family, make, save, spec
from vitbench.backbones import saving
from vitbench.backbones.base import Backbone
from vitbench.backbones.classifier import HEAD_FILE, Classifier
from vitbench.backbones.load import load_backbone
from vitbench.errors import RepresentationError, StoreError, UsageError, WeightsError
from vitbench.records.atomic import TEMPORARY_PREFIX


def head_on(backbone: Backbone, name: str, count: int = 3) -> Classifier:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(count, backbone.dim(name), generator=generator)
    return Classifier(name, weight, torch.randn(count, generator=generator), ("cat", "dög", "n01440764")[:count])


def trained(backbone: Backbone) -> Backbone:
    """As after a training: every weight has moved, and batch norms have counted."""
    shake(backbone.modules[0], seed=9)
    for name, buffer in backbone.modules[0].named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer += 7
    return backbone


def check_saved(backbone: Backbone, head: Classifier | None, folder: Path) -> str:
    """Save, load, compare; the spec of what was saved."""
    text = backbone.save(folder, head)
    again = load_backbone(text, device="cpu")
    size = backbone.input_size
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    assert again.input_size == size
    assert again.available() == backbone.available()
    assert {n: again.alias_of(n) for n in again.available()} == {n: backbone.alias_of(n) for n in backbone.available()}
    ours, theirs = (each.encode(pixels, each.available()) for each in (backbone, again))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-6)
    wanted = backbone.preprocessing if backbone.spec.preprocess == "auto" else backbone.spec.preprocess
    assert wanted in (again.preprocessing, again.spec.preprocess)
    found = again.classifier()
    if head is None:
        assert found is None
    else:
        assert found is not None
        assert found.representation == head.representation
        assert torch.equal(found.weight, head.weight)
        assert torch.equal(found.bias, head.bias)
        assert found.class_names == head.class_names
    assert not list(folder.parent.glob(f"{TEMPORARY_PREFIX}*"))
    return text


def timm_backbone(folder: Path, name: str = "vit_tiny_patch16_224", options: str = "", **given: Any) -> Backbone:
    path = save(make(name, **(given or VIT)).state_dict(), folder / f"{name}.safetensors")
    return trained(load_backbone(spec(name, path, None, **(given or VIT)) + options, device="cpu"))


@pytest.mark.parametrize("family", FAMILIES, ids=[f"{i}-{family}" for i, family in enumerate(FAMILIES)])
def test_every_family_of_timm(family: Family, tmp_path: Path) -> None:
    path = save(make(family.name, **family.options).state_dict(), tmp_path / "weights.safetensors")
    backbone = trained(load_backbone(spec(family.name, path, family.resolution, **family.options), device="cpu"))
    check_saved(backbone, None, tmp_path / "trunk")
    name = backbone.alias_of("pooler") or backbone.available()[-1]
    check_saved(backbone, head_on(backbone, name), tmp_path / "classifier")


def test_timm_itself_loads_it(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path)
    head = head_on(backbone, "cls")
    backbone.save(tmp_path / "out", head)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    expected = backbone.encode(pixels, "cls")["cls"] @ head.weight.T + head.bias
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), expected, rtol=1e-5, atol=1e-5)
    assert model.pretrained_cfg["label_names"] == list(head.class_names)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["gap", "cls+gap", "gap@1"])
def test_a_head_that_the_layout_has_no_place_for_lies_beside(name: str, tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path)
    check_saved(backbone, head_on(backbone, name), tmp_path / "out")
    assert (tmp_path / "out" / HEAD_FILE).is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_classes"] == 0


def test_a_saved_model_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path)
    check_saved(backbone, head_on(backbone, "gap"), tmp_path / "out")
    check_saved(backbone, head_on(backbone, "cls"), tmp_path / "out")
    assert not (tmp_path / "out" / HEAD_FILE).exists()


def test_saved_again_from_what_was_saved(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path)
    text = check_saved(backbone, head_on(backbone, "cls"), tmp_path / "one")
    again = load_backbone(text, device="cpu")
    check_saved(trained(again), again.classifier(), tmp_path / "two")


@pytest.mark.parametrize(
    "options",
    [",model.norm_eps=0.001", ",preprocess=resize(32x32,bilinear)|normalize(0.5,0.5)"],
)
def test_what_a_spec_says_is_kept(options: str, tmp_path: Path) -> None:
    check_saved(timm_backbone(tmp_path, options=options), None, tmp_path / "out")


NATIVE = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def test_a_model_at_another_resolution_is_built_for_it(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path, options=",resolution=64", **NATIVE)
    text = check_saved(backbone, head_on(backbone, "cls"), tmp_path / "out")
    assert "resolution" not in text
    assert load_backbone(f"{text},resolution=48", device="cpu").input_size == (48, 48)


def test_a_table_that_is_resized_at_every_pass_keeps_its_size(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path, options=",resolution=64", **NATIVE, dynamic_img_size=True)
    text = check_saved(backbone, None, tmp_path / "out")
    assert text.endswith("resolution=64")
    assert load_backbone(text, device="cpu").modules[0].pos_embed.shape[1] == 197


def test_preprocessing_of_the_run_goes_into_the_spec(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path)
    asked = "resize(40,bilinear)|center_crop(32)|normalize(0.4,0.3)"
    assert backbone.save(tmp_path / "timm", None, asked).endswith(f",preprocess={asked}")
    model = hf_classifier("vit", tmp_path / "vit")
    assert model is not None
    text = load_backbone(f"hf:{tmp_path / 'vit'}", device="cpu").save(
        tmp_path / "hf", None, "resize(32x32,bicubic)|normalize(0.4,0.3)"
    )
    assert load_backbone(text, device="cpu").spec.preprocess == "auto"
    assert load_backbone(text, device="cpu").preprocessing == "resize(32x32,bicubic)|normalize(0.4,0.3)"


@pytest.mark.parametrize("name", CASES)
def test_every_family_of_transformers(name: str, tmp_path: Path) -> None:
    save_hf(shake(getattr(transformers, CASES[name][1])(CASES[name][0])), tmp_path / "source")
    backbone = trained(load_backbone(f"hf:{tmp_path / 'source'}", device="cpu"))
    check_saved(backbone, None, tmp_path / "trunk")
    reads = CLASSIFIED.get(name, "gap")
    head = head_on(backbone, reads)
    check_saved(backbone, head, tmp_path / "classifier")
    assert (tmp_path / "classifier" / HEAD_FILE).exists() == (name not in CLASSIFIED)
    if name in CLASSIFIED:
        with torch.inference_mode():
            model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "classifier").eval()
            pixels = torch.randn(2, 3, *backbone.input_size, generator=torch.Generator().manual_seed(8))
            expected = backbone.encode(pixels, reads)[reads] @ head.weight.T + head.bias
            torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-5, atol=1e-5)
        assert model.config.id2label == dict(enumerate(head.class_names))


def test_an_untrained_pooler_stays_untrained(tmp_path: Path) -> None:
    hf_classifier("vit", tmp_path / "source")
    backbone = trained(load_backbone(f"hf:{tmp_path / 'source'}", device="cpu"))
    text = check_saved(backbone, head_on(backbone, "cls"), tmp_path / "out")
    with pytest.raises(RepresentationError, match="untrained"):
        load_backbone(text, device="cpu").encode(torch.zeros(1, 3, *backbone.input_size), "pooler")
    assert backbone.modules[0].pooler is not None


def test_hugging_face_at_another_resolution(tmp_path: Path) -> None:
    hf_classifier("vit", tmp_path / "source")
    backbone = trained(load_backbone(f"hf:{tmp_path / 'source'},resolution=64", device="cpu"))
    assert "resolution=64" in check_saved(backbone, head_on(backbone, "gap"), tmp_path / "out")


JAX = {
    "cls": {},
    "cls without position": {"cls": "bigvision"},
    "gap": {"cls": ""},
    "pre_logits": {"pre_logits": 16},
    "map": {"cls": "", "map_heads": 3, "mlp": 48},
}


@pytest.mark.parametrize("name", JAX)
@pytest.mark.parametrize("options", ["", ",resolution=20"])
def test_jax(name: str, options: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", **jax_vit(**JAX[name]))
    backbone = trained(load_backbone(f"jax:{tmp_path / 'vit.npz'}{options}", device="cpu"))
    check_saved(backbone, None, tmp_path / "trunk")
    for reads in ("gap", backbone.alias_of("pooler") or "pooler"):
        text = check_saved(backbone, head_on(backbone, reads), tmp_path / reads)
        assert text.startswith("hf:" if name == "pre_logits" else "timm:local-dir:")
        assert (tmp_path / reads / "model.safetensors").is_file()


def test_a_hybrid_goes_back_to_jaxs_layout(tmp_path: Path) -> None:
    np.savez(tmp_path / "hybrid.npz", **hybrid((1, 1)))
    backbone = trained(load_backbone(f"jax:{tmp_path / 'hybrid.npz'}", device="cpu"))
    text = check_saved(backbone, head_on(backbone, "cls"), tmp_path / "out")
    assert text == f"jax:{tmp_path / 'out' / 'model.npz'}"


def test_what_has_no_weights_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights"):
        load_backbone("pixels", device="cpu").save(tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        backbone.save(tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        backbone.save(tmp_path / "file")
    with pytest.raises(UsageError, match="comma"):
        backbone.save(tmp_path / "a,b")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path)
    with pytest.raises(UsageError, match="5 columns cannot read 'cls'"):
        backbone.save(tmp_path / "out", Classifier("cls", torch.zeros(3, 5), torch.zeros(3)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("I/O error: (os error 28) No space left")]
)
def test_a_full_disk_keeps_what_was_saved(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = timm_backbone(tmp_path)
    text = backbone.save(tmp_path / "out", head_on(backbone, "cls"))

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        backbone.save(tmp_path / "out", head_on(backbone, "gap"))
    assert "\n" not in str(caught.value)
    classifier = load_backbone(text, device="cpu").classifier()
    assert classifier is not None
    assert classifier.representation == "cls"
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_what_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = timm_backbone(tmp_path)
    original = saving.save_file

    def bent(tensors: dict[str, Tensor], *given: Any) -> None:
        original({name: tensor + 1 if name == "norm.bias" else tensor for name, tensor in tensors.items()}, *given)

    monkeypatch.setattr(saving, "save_file", bent)
    with pytest.raises(WeightsError, match=r"norm\.bias is not what was written"):
        backbone.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
