"""The timm adapter on real weights, and on JAX checkpoints against what JAX computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone
from vitbench.errors import WeightsError
from vitbench.tasks import transforms

VIT_TINY = "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
MOBILENET = "mobilenetv2_100.imagenet1k.fp16.safetensors"
VIT_CIFAR = "vit_patch4_32_dim128.cifar10.safetensors"
CIFAR_OPTIONS = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 2}


def load(name: str, file: Path, options: dict[str, object] | None = None) -> Backbone:
    given = "".join(f",model.{key}={value}" for key, value in (options or {}).items())
    return load_backbone(f"timm:{name}{given},checkpoint={file}", device="cpu")


def photographs(test_data: Path, backbone: Backbone, count: int = 4) -> torch.Tensor:
    files = sorted((test_data / "images" / "imagenette160" / "val").rglob("*.jpg"))[:: 300 // count][:count]
    preprocessing = transforms.parse(backbone.preprocessing)
    return preprocessing([Image.open(file) for file in files])


def test_vit_tiny(test_data: Path) -> None:
    file = test_data / "weights" / VIT_TINY
    backbone = load("vit_tiny_patch16_224", file)
    assert backbone.preprocessing == "resize(248,bicubic)|center_crop(224)|normalize(0.5,0.5)"
    assert backbone.depth == 12
    assert backbone.num_parameters == 5_524_416
    assert backbone.representations["pooler"].alias_of == "cls"
    assert any("head.weight" in note for note in backbone.provenance_notes)

    model = timm.create_model("vit_tiny_patch16_224", num_classes=200).eval()
    model.load_state_dict(load_file(file), strict=True)
    names = {name.partition(".")[0] for name in model.state_dict()} - {"head"}
    assert {name.partition(".")[0] for name in backbone.modules[0].state_dict()} == names
    pixels = photographs(test_data, backbone)
    with torch.inference_mode():
        features = model.forward_features(pixels)
        expected = model.forward_head(features, pre_logits=True)
    computed = backbone.encode(pixels, ["cls", "gap", "pooler", "cls@12", "gap@0", "gap@6"])
    assert all(value.isfinite().all() for value in computed.values())
    for name in ("cls", "pooler", "cls@12"):
        assert torch.equal(computed[name], expected)
    torch.testing.assert_close(computed["gap"], features[:, 1:].mean(1), rtol=1e-6, atol=1e-6)
    assert (computed["gap"] - features.mean(1)).abs().max() > 1e-3  # the class token is not in it


def test_vit_tiny_at_another_resolution(test_data: Path) -> None:
    backbone = load_backbone(
        f"timm:vit_tiny_patch16_224,resolution=160,checkpoint={test_data / 'weights' / VIT_TINY}", device="cpu"
    )
    assert any("[1, 197, 192] resized to [1, 101, 192]" in note for note in backbone.provenance_notes)
    assert backbone.encode(photographs(test_data, backbone), ["cls"])["cls"].isfinite().all()


def test_mobilenetv2(test_data: Path) -> None:
    file = test_data / "weights" / MOBILENET
    backbone = load("mobilenetv2_100", file, {"pad_type": "same"})
    assert backbone.architecture == "timm:mobilenetv2_100(pad_type=same)"
    assert backbone.num_parameters == 2_223_872
    assert backbone.representations["cls"].provenance == "absent"
    assert backbone.representations["pooler"].alias_of == "gap"
    assert not any(name.endswith("num_batches_tracked") for name in load_file(file))

    model = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    loaded = model.load_state_dict(load_file(file), strict=False)
    assert not loaded.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in loaded.missing_keys)
    pixels = photographs(test_data, backbone)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    computed = backbone.encode(pixels, ["gap", "pooler", "gap@1", "gap@5"])
    assert all(value.isfinite().all() for value in computed.values())
    assert torch.equal(computed["pooler"], expected)
    torch.testing.assert_close(computed["gap"], expected, rtol=1e-5, atol=1e-5)
    plain = load("mobilenetv2_100", file).encode(pixels, ["gap"])["gap"]
    assert (plain - computed["gap"]).abs().max() > 1e-2


def test_vit_cifar(test_data: Path) -> None:
    backbone = load("vit_tiny_patch16_224", test_data / "weights" / VIT_CIFAR, CIFAR_OPTIONS)
    assert backbone.input_size == (32, 32)
    assert backbone.encode(photographs(test_data, backbone), ["gap"])["gap"].isfinite().all()


@pytest.mark.parametrize(("name", "file"), [("vit_tiny_patch16_384", VIT_CIFAR), ("vit_small_patch16_224", VIT_TINY)])
def test_real_weights_do_not_load_into_another_model(test_data: Path, name: str, file: str) -> None:
    with pytest.raises(WeightsError, match="does not fit"):
        load(name, test_data / "weights" / file)


JAX_MODELS = {
    "paper_augreg": {"img_size": 48, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "paper_pre_logits": {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4},
    "bigvision_tok": {
        "img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "no_embed_class": True,
    },
    "bigvision_map": {
        "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "class_token": False,
        "global_pool": "map",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", JAX_MODELS)
def test_jax_checkpoints_through_timms_loader(test_data: Path, name: str) -> None:
    """With flax's tanh GELU the tokens are JAX's; `pre_logits` is what timm leaves out."""
    options = {**JAX_MODELS[name], "mlp_ratio": 2, "act_layer": "gelu_tanh"}
    backbone = load("vit_tiny_patch16_224", test_data / "jax_vit" / f"{name}.npz", options)
    expected = np.load(test_data / "jax_vit" / f"{name}.expected.npz")
    pixels = torch.from_numpy(expected["pixels"]).permute(0, 3, 1, 2)
    computed = backbone.encode(pixels, backbone.available())
    names = [item for item in computed if item in expected.files]
    if name == "paper_pre_logits":
        names.remove("pooler")
        assert any("pre_logits" in note for note in backbone.provenance_notes)
    assert names
    for item in names:
        np.testing.assert_allclose(computed[item].numpy(), expected[item], rtol=1e-4, atol=1e-4)


def test_trap_b_on_a_real_layout(test_data: Path) -> None:
    options = {**JAX_MODELS["paper_augreg"], "mlp_ratio": 2, "global_pool": "avg"}
    with pytest.raises(WeightsError, match=r"fc_norm\.weight, fc_norm\.bias"):
        load("vit_tiny_patch16_224", test_data / "jax_vit" / "paper_augreg.npz", options)
