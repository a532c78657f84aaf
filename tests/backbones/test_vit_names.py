"""One naming for the weights of every library's ViT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from vitbench.backbones.load import load_backbone
from vitbench.backbones.vit_names import (
    PREFIX_TOKENS,
    bit_equal,
    canonical_names,
    canonical_weights,
    configuration,
    stored_weights,
)
from vitbench.errors import UsageError

TIMM = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
HF = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 16}
PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights of which no two are equal, so that one in the wrong place is seen."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.2 * noise + (1.0 if parameter.ndim == 1 else 0.0)


def timm_spec(folder: Path, name: str = "vit_tiny_patch16_224", **options: Any) -> str:
    options = TIMM | options
    model = timm.create_model(name, num_classes=5, **options)
    randomise(model)
    path = folder / "weights.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return ",".join([f"timm:{name}", f"checkpoint={path}", *(f"model.{k}={v}" for k, v in options.items())])


def hf_spec(folder: Path, model_class: str = "ViTModel", processor: bool = True, **options: Any) -> str:
    kind = getattr(transformers, model_class)
    model = kind(kind.config_class(**(HF | options)))
    randomise(model)
    model.save_pretrained(folder / model_class)
    if processor:
        text = json.dumps({"image_processor_type": "ViTImageProcessor", **PROCESSOR})
        (folder / model_class / "preprocessor_config.json").write_text(text)
    return f"hf:{folder / model_class}"


def load(spec: str) -> Any:
    return load_backbone(spec, device="cpu")


TIMM_KINDS: list[tuple[str, dict[str, Any], int]] = [
    ("vit_tiny_patch16_224", {}, 1),
    ("vit_tiny_patch16_224", {"class_token": "false", "global_pool": "avg", "fc_norm": "false"}, 0),
    ("vit_tiny_patch16_224", {"global_pool": "avg"}, 1),
    ("deit_tiny_distilled_patch16_224", {}, 2),
    ("deit3_small_patch16_224", {}, 1),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28}, 5),
    ("vit_base_patch16_siglip_224", {}, 0),
    ("vit_base_patch16_clip_quickgelu_224", {}, 1),
]
HF_KINDS: list[tuple[str, dict[str, Any], int]] = [
    ("ViTModel", {"intermediate_size": 40}, 1),
    ("DeiTModel", {"intermediate_size": 40}, 2),
    ("Dinov2Model", {"mlp_ratio": 2}, 1),
    ("Dinov2Model", {"mlp_ratio": 2, "use_swiglu_ffn": True}, 1),
    ("Dinov2WithRegistersModel", {"mlp_ratio": 2}, 5),
    ("CLIPVisionModel", {"intermediate_size": 40}, 1),
    ("SiglipVisionModel", {"intermediate_size": 40}, 0),
]


def python_options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value == "true" if value in ("true", "false") else value for key, value in options.items()}


def embed_by_hand(weights: dict[str, Tensor], config: dict[str, Any], pixels: Tensor) -> Tensor:
    """The input of the first block, computed from the canonical weights alone."""
    patches = nn.functional.conv2d(
        pixels, weights["patch_embed.weight"], weights.get("patch_embed.bias"), stride=config["patch_size"]
    )
    tokens = patches.flatten(2).transpose(1, 2) + weights["pos_embed"]
    prefix = [weights[name].expand(len(pixels), -1, -1) for name in PREFIX_TOKENS if name in weights]
    tokens = torch.cat([*prefix, tokens], dim=1)
    if config["pre_norm"]:
        norm = (weights["norm_pre.weight"], weights["norm_pre.bias"])
        tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:], *norm, config["layer_norm_eps"])
    return tokens


def check_first_block(spec: str, prefix: int) -> None:
    backbone = load(spec)
    weights, config = canonical_weights(backbone), configuration(backbone)
    assert config["prefix_tokens"] == prefix
    assert config["depth"] == backbone.depth == 2
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    pixels = torch.randn(2, 3, *backbone.input_size, generator=torch.Generator().manual_seed(1))
    tokens = embed_by_hand(weights, config, pixels)
    if config["final_norm"] == "tokens":
        norm = (weights["norm.weight"], weights["norm.bias"])
        tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:], *norm, config["layer_norm_eps"])
        expected = tokens[:, prefix:].mean(1)
        assert torch.allclose(backbone.encode(pixels, ["gap@0"])["gap@0"], expected, atol=1e-5)
        if config["cls_token"]:
            assert torch.allclose(backbone.encode(pixels, ["cls@0"])["cls@0"], tokens[:, 0], atol=1e-5)


@pytest.mark.parametrize(("name", "options", "prefix"), TIMM_KINDS, ids=lambda value: str(value)[:40])
def test_timm(tmp_path: Path, name: str, options: dict[str, Any], prefix: int) -> None:
    spec = timm_spec(tmp_path, name, **python_options(options))
    check_first_block(spec, prefix)


@pytest.mark.parametrize(("name", "options", "prefix"), HF_KINDS, ids=lambda value: str(value)[:40])
def test_hugging_face(tmp_path: Path, name: str, options: dict[str, Any], prefix: int) -> None:
    check_first_block(hf_spec(tmp_path, name, **options), prefix)


def test_fused_and_split_attention_are_the_same_tensors(tmp_path: Path) -> None:
    backbone = load(timm_spec(tmp_path))
    weights, qkv = canonical_weights(backbone), backbone.modules[0].blocks[1].attn.qkv
    for index, part in enumerate("qkv"):
        rows = slice(24 * index, 24 * (index + 1))
        assert bit_equal(weights[f"blocks.1.attn.{part}.weight"], qkv.weight[rows])
        assert bit_equal(weights[f"blocks.1.attn.{part}.bias"], qkv.bias[rows])


def test_swiglu_in_one_tensor_and_in_two(tmp_path: Path) -> None:
    there = load(hf_spec(tmp_path, "Dinov2Model", mlp_ratio=2, use_swiglu_ffn=True))
    here = load(timm_spec(tmp_path, "vit_giant_patch14_dinov2", img_size=28))
    weights, mlp = canonical_weights(here), here.modules[0].blocks[1].mlp
    assert bit_equal(torch.cat([weights["blocks.1.mlp.gate.bias"], weights["blocks.1.mlp.fc1.bias"]]), mlp.fc1.bias)
    assert canonical_weights(there).keys() == weights.keys()
    assert [configuration(backbone)["gelu"] for backbone in (here, there)] == ["silu", "silu"]


def test_a_position_of_cls_in_the_token_or_in_the_table_is_the_same(tmp_path: Path) -> None:
    """DINOv2 with registers: Hugging Face has a row for CLS, timm's conversion adds it to the token."""
    there = load(hf_spec(tmp_path, "Dinov2WithRegistersModel", mlp_ratio=2))
    stored, canonical = stored_weights(there), canonical_weights(there)
    assert stored["pos_embed"].shape == (1, 5, 24)
    assert canonical["pos_embed"].shape == (1, 4, 24)
    assert bit_equal(canonical["cls_token"], stored["cls_token"] + stored["pos_embed"][:, :1])
    assert bit_equal(canonical["reg_token"], stored["reg_token"])
    assert configuration(there)["position_embedding"] == "CLS and patches"


def test_every_prefix_token_takes_its_own_row(tmp_path: Path) -> None:
    backbone = load(timm_spec(tmp_path, reg_tokens=2))
    stored, canonical = stored_weights(backbone), canonical_weights(backbone)
    assert stored["pos_embed"].shape[1] == 3 + 4
    assert bit_equal(canonical["reg_token"], stored["reg_token"] + stored["pos_embed"][:, 1:3])


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"act_layer": "gelu_tanh"}, "gelu", "tanh"),
        ({"act_layer": "quick_gelu"}, "gelu", "quick"),
        ({}, "gelu", "erf"),
        ({"norm_eps": "1e-12"}, "layer_norm_eps", 1e-12),
        ({}, "layer_norm_eps", 1e-6),
        ({"qkv_bias": "false"}, "qkv_bias", False),
        ({"init_values": 0.5}, "layer_scale", True),
        ({"global_pool": "avg"}, "final_norm", "pooled"),
        ({"no_embed_class": "true"}, "position_embedding", "patches"),
        ({"patch_size": 8}, "patch_size", (8, 8)),
        ({"proj_drop_rate": 0.1}, "dropout", 0.1),
        ({}, "pooling", "cls"),
    ],
)
def test_configuration_of_timm(tmp_path: Path, options: dict[str, Any], key: str, value: Any) -> None:
    kept = {name: option for name, option in options.items() if name != "norm_eps"}
    spec = timm_spec(tmp_path, **python_options(kept))
    spec += f",model.norm_eps={options['norm_eps']}" if "norm_eps" in options else ""
    assert configuration(load(spec))[key] == value


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({}, "layer_norm_eps", 1e-12),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps", 1e-6),
        ({"hidden_act": "gelu_pytorch_tanh"}, "gelu", "tanh"),
        ({"qkv_bias": False}, "qkv_bias", False),
        ({"hidden_dropout_prob": 0.1}, "dropout", 0.1),
        ({}, "pooling", "cls+dense"),
    ],
)
def test_configuration_of_hugging_face(tmp_path: Path, options: dict[str, Any], key: str, value: Any) -> None:
    assert configuration(load(hf_spec(tmp_path, intermediate_size=40, **options)))[key] == value


def test_a_pooler_that_was_never_trained_is_no_weight_of_the_checkpoint(tmp_path: Path) -> None:
    backbone = load(hf_spec(tmp_path, "ViTForImageClassification", intermediate_size=40))
    assert not any(name.startswith("pooler") for name in canonical_weights(backbone))
    assert configuration(backbone)["pooling"] == "cls"
    assert "pooler.weight" in canonical_weights(load(hf_spec(tmp_path, "ViTModel", intermediate_size=40)))


def test_both_spellings_of_transformers() -> None:
    """The modules of 5.23, and those of 5.0, which the files still have."""
    for name in ("layers.3.attention.k_proj.bias", "encoder.layer.3.attention.attention.key.bias"):
        assert canonical_names("hf", name) == ("blocks.3.attn.k.bias",)
    for name in ("layers.3.mlp.fc2.bias", "encoder.layer.3.output.dense.bias"):
        assert canonical_names("hf", name) == ("blocks.3.mlp.fc2.bias",)
    assert canonical_names("hf", "encoder.layer.3.attention.output.dense.bias") == ("blocks.3.attn.proj.bias",)
    assert canonical_names("hf", "vision_model.head.attention.in_proj_bias") == tuple(
        f"map_head.attn.{part}.bias" for part in "qkv"
    )
    assert canonical_names("timm", "blocks.0.attn.q_norm.weight") is None


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("resnet18", {}, "it is ResNet"),
        ("vit_tiny_patch16_224", TIMM | {"qk_norm": True}, r"'blocks\.0\.attn\.q_norm\.weight' has no place"),
        ("vit_tiny_r_s16_p8_224", TIMM | {"img_size": 64}, r"'patch_embed\.backbone"),
        ("vit_small_patch16_36x1_224", TIMM, None),
    ],
)
def test_what_is_no_plain_vit_is_refused_in_one_line(
    tmp_path: Path, name: str, options: dict[str, Any], reason: str | None
) -> None:
    model = timm.create_model(name, **options)
    path = tmp_path / "weights.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    given = "".join(f",model.{key}={value}" for key, value in options.items())
    backbone = load(f"timm:{name},checkpoint={path}{given}")
    if reason is None:
        assert canonical_weights(backbone)
        return
    with pytest.raises(UsageError, match=reason) as caught:
        canonical_weights(backbone)
    assert "\n" not in str(caught.value)
    assert "what works is" in str(caught.value)


def test_pixels_have_no_weights() -> None:
    with pytest.raises(UsageError, match="it has no weights"):
        configuration(load("pixels"))
