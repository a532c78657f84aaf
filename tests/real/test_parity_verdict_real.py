"""The verdicts on real weights, and on JAX checkpoints against copies of them in the other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitbench.analysis.base import images_of_folder
from vitbench.analysis.parity import Pair, parity
from vitbench.backbones.vit_convert import convert

JAX_MODELS = ("paper_pre_logits", "paper_augreg", "bigvision_tok")


@pytest.fixture(scope="module")
def vit_tiny(test_data: Path) -> str:
    weights = test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    return f"timm:vit_tiny_patch16_224,checkpoint={weights}"


def compare(one: str, other: str) -> Pair:
    (pair,) = parity([one, other])
    return pair


def as_transformers_defaults(folder: Path) -> None:
    """What a conversion without care leaves in config.json: erf GELU, eps 1e-12."""
    config = json.loads((folder / "config.json").read_text()) | {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", JAX_MODELS)
def test_jax_against_its_copies(test_data: Path, tmp_path: Path, name: str) -> None:
    source = f"jax:{test_data / 'jax_vit' / name}.npz"
    hf = convert(source, tmp_path / "hf")
    timm = convert(source, tmp_path / "copy.safetensors", keep_pooler=name == "paper_pre_logits")
    for copy in (hf, timm):
        pair = compare(source, copy.spec)
        assert pair.verdict == "identical"
        assert pair.activations is not None
        assert pair.activations.worst < 1e-6
    as_transformers_defaults(hf.path)
    pair = compare(source, hf.spec)
    assert pair.verdict == "same weights, different configuration (gelu, eps)"
    assert pair.weights is not None
    assert pair.weights.equal == pair.weights.compared > 30
    assert pair.first == "@1"
    assert pair.activations is not None
    assert 1e-5 < pair.activations.worst < 1e-2
    assert pair.activations.layers[0].largest == 0
    remaining = {trial.fields: trial.remaining for trial in pair.trials}
    assert remaining["gelu", "eps"] < 1e-6 < 1e-5 < min(remaining["gelu",], remaining["eps",])
    erf = compare(source, timm.spec.replace(",model.act_layer=gelu_tanh", ""))
    assert erf.verdict == "same weights, different configuration (gelu)"
    assert erf.trials[0].remaining < 1e-6


def test_vit_tiny_of_timm_and_hugging_face(test_data: Path, vit_tiny: str) -> None:
    images = images_of_folder(test_data / "images" / "imagenet_sample200", 2)
    (pair,) = parity([vit_tiny, f"hf:{test_data / 'weights' / 'vit_tiny_hf'}"], images, source="photographs")
    assert pair.verdict == "same weights, different configuration (eps, preprocessing)"
    assert pair.weights is not None
    assert pair.weights.equal == pair.weights.compared == 198
    assert not pair.weights.only_a
    accounts = {item.field: (item.a, item.b) for item in pair.fields}
    assert accounts["eps"] == ("1e-06", "1e-12")
    assert accounts["pooler"] == ("trained, equal to cls", "untrained")
    assert "center_crop" in accounts["preprocessing"][0]
    assert "resize(224x224,bilinear)" in accounts["preprocessing"][1]
    assert pair.activations is not None
    assert 1e-7 < pair.activations.worst < 2e-5
    assert all(item.cosine is not None and item.cosine > 0.999999 for item in pair.activations.finals)
    assert pair.trials[0].remaining < 1e-7
    assert pair.preparation is not None
    assert pair.preparation.cosines["cls"] < 0.999  # what the other preparation of the images does is far more


def test_position_embeddings_resized_at_load_in_two_ways(vit_tiny: str, tmp_path: Path) -> None:
    npz = convert(vit_tiny, tmp_path / "vit_tiny.npz")
    preprocess = "preprocess=resize(256x256,bicubic)|normalize(0.5,0.5)"
    one = f"{vit_tiny},model.act_layer=gelu_tanh,resolution=256,{preprocess}"
    pair = compare(one, f"jax:{npz.path},resolution=256,{preprocess}")
    assert pair.verdict == "same weights, different configuration (resized position embedding, position_resize)"
    assert pair.weights is not None
    assert pair.weights.resized is not None
    assert pair.weights.resized.how == "both from one table of 14x14, in two ways"
    assert pair.first == "@0"


def test_real_architectures_that_differ(test_data: Path, vit_tiny: str) -> None:
    weights = test_data / "weights" / "mobilenetv2_100.imagenet1k.fp16.safetensors"
    cnn = f"timm:mobilenetv2_100,model.pad_type=same,checkpoint={weights}"
    assert compare(vit_tiny, cnn).verdict == "different architectures (VisionTransformer against EfficientNet)"
    small = compare(vit_tiny, f"jax:{test_data / 'jax_vit' / 'paper_augreg.npz'}")
    assert small.verdict == "different architectures (width 192 against 48, depth 12 against 2, mlp 768 against 96)"
