"""One model three ways: the same real weights through timm, Hugging Face and a JAX npz."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vitbench
from vitbench.tasks import transforms

HEADS, WIDTH = 3, 192


def write_npz(weights: dict[str, Tensor], path: Path) -> None:
    """timm's names and shapes to the paper's: kernels are [in, out], attention is split by head, the patch kernel is HWIO."""
    arrays = {
        "cls": weights["cls_token"],
        "Transformer/posembed_input/pos_embedding": weights["pos_embed"],
        "embedding/kernel": weights["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": weights["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": weights["norm.weight"],
        "Transformer/encoder_norm/bias": weights["norm.bias"],
        "head/kernel": weights["head.weight"].T,
        "head/bias": weights["head.bias"],
    }
    for index in range(12):
        block, there = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{there}{theirs}/scale"] = weights[f"{block}{ours}.weight"]
            arrays[f"{there}{theirs}/bias"] = weights[f"{block}{ours}.bias"]
        for ours, theirs in (("mlp.fc1", "MlpBlock_3/Dense_0"), ("mlp.fc2", "MlpBlock_3/Dense_1")):
            arrays[f"{there}{theirs}/kernel"] = weights[f"{block}{ours}.weight"].T
            arrays[f"{there}{theirs}/bias"] = weights[f"{block}{ours}.bias"]
        attention = f"{there}MultiHeadDotProductAttention_1/"
        kernels = weights[f"{block}attn.qkv.weight"].chunk(3)
        biases = weights[f"{block}attn.qkv.bias"].chunk(3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{attention}{name}/kernel"] = kernel.T.reshape(WIDTH, HEADS, -1)
            arrays[f"{attention}{name}/bias"] = bias.reshape(HEADS, -1)
        arrays[f"{attention}out/kernel"] = weights[f"{block}attn.proj.weight"].T.reshape(HEADS, -1, WIDTH)
        arrays[f"{attention}out/bias"] = weights[f"{block}attn.proj.bias"]
    np.savez(path, **{name: value.float().numpy() for name, value in arrays.items()})


@pytest.fixture(scope="module")
def specs(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """timm and Hugging Face with erf GELU (as shipped) and with tanh GELU, and the npz, which is tanh GELU by nature."""
    folder = tmp_path_factory.mktemp("parity")
    weights = test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    write_npz(load_file(weights), folder / "vit_tiny.npz")
    for name, changes in (
        ("eps", {"layer_norm_eps": 1e-6}),
        ("tanh", {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}),
    ):
        shutil.copytree(test_data / "weights" / "vit_tiny_hf", folder / name, copy_function=shutil.copyfile)
        (folder / name).chmod(0o755)
        config = json.loads((folder / name / "config.json").read_text()) | changes
        (folder / name / "config.json").unlink()
        (folder / name / "config.json").write_text(json.dumps(config))
    timm = f"timm:vit_tiny_patch16_224,checkpoint={weights}"
    return {
        "timm": timm,
        "timm tanh": f"{timm},model.act_layer=gelu_tanh",
        "hf": f"hf:{test_data / 'weights' / 'vit_tiny_hf'}",
        "hf eps": f"hf:{folder / 'eps'}",
        "hf tanh": f"hf:{folder / 'tanh'}",
        "jax": f"jax:{folder / 'vit_tiny.npz'}",
    }


@pytest.fixture(scope="module")
def features(specs: dict[str, str], test_data: Path) -> dict[str, dict[str, Tensor]]:
    """CLS and GAP of the same pixels of real photographs, by every way."""
    split = vitbench.load_task(f"imagefolder:{test_data / 'images' / 'flowers12'}").split("test")
    backbones = {name: vitbench.load_backbone(spec, device="cpu") for name, spec in specs.items()}
    pixels = transforms.parse(backbones["timm"].preprocessing)([split.image(row) for row in range(0, 240, 60)])
    return {name: backbone.encode(pixels, ["cls", "gap"]) for name, backbone in backbones.items()}


def difference(features: dict[str, dict[str, Tensor]], one: str, other: str) -> float:
    return max(float((features[one][name] - features[other][name]).abs().max()) for name in ("cls", "gap"))


@pytest.mark.parametrize(
    ("one", "other"), [("timm", "hf eps"), ("timm tanh", "hf tanh"), ("timm tanh", "jax"), ("hf tanh", "jax")]
)
def test_equal_once_eps_and_gelu_agree(features: dict[str, dict[str, Tensor]], one: str, other: str) -> None:
    assert difference(features, one, other) < 1e-5


def test_the_documented_differences_when_they_do_not(features: dict[str, dict[str, Tensor]]) -> None:
    """eps 1e-12 against 1e-6 moves features by some 1e-5; erf against tanh GELU by a hundred times more."""
    eps, gelu = difference(features, "timm", "hf"), difference(features, "timm", "jax")
    assert 1e-6 < eps < 6e-5
    assert 1e-4 < gelu < 0.1
    assert gelu > 10 * eps


def test_the_three_are_told_apart_and_the_pooler_of_the_classifier_is_refused(specs: dict[str, str]) -> None:
    backbones = {name: vitbench.load_backbone(spec, device="cpu") for name, spec in specs.items()}
    assert len({backbone.architecture for backbone in backbones.values()}) == len(backbones)
    assert backbones["hf"].representations["pooler"].provenance == "untrained"
    assert backbones["timm"].alias_of("pooler") == backbones["jax"].alias_of("pooler") == "cls"
    with pytest.raises(vitbench.VitbenchError, match=r"the 'pooler' of .* is untrained"):
        backbones["hf"].resolve("pooler")
    assert torch.is_tensor(backbones["jax"].encode(torch.zeros(1, 3, 224, 224), ["pooler"])["pooler"])
