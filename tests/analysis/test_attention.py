from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vitbench.analysis.attention import (
    TokenLayout,
    attention_weights,
    batch_size,
    capture_attention,
    one_backbone,
    token_layout,
)
from vitbench.backbones.base import Backbone
from vitbench.backbones.jax_vit import AttentionShape, JaxViT, JaxViTConfig
from vitbench.backbones.load import load_backbone
from vitbench.backbones.pixels import PixelsBackbone
from vitbench.errors import UsageError

DEPTH, SIZE, PATCH = 3, 32, 8
GRID = SIZE // PATCH
PREPROCESS = f"preprocess=resize({SIZE}x{SIZE},bilinear)|normalize(0.5,0.5)"


def pixels(count: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def captured(backbone: Backbone, images: Tensor) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    capture_attention(backbone, images, found.__setitem__)
    assert list(found) == list(range(1, backbone.depth + 1))
    return list(found.values())


def assert_equal(ours: list[Tensor], theirs: list[Tensor], heads: int) -> None:
    assert len(ours) == len(theirs) == DEPTH
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.shape[1] == heads
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    # Weights of a new model are nearly uniform: they must differ from it by far more than the tolerance.
    assert max((one - 1 / one.shape[-1]).abs().max().item() for one in ours) > 1e-3


def shaken(model: Any) -> Any:
    """Large random weights, position embeddings and biases included, so that every part of the computation shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


TIMM = {
    "vit_tiny_patch16_224": (1, True, {"patch_size": 8}),
    "deit_tiny_distilled_patch16_224": (2, True, {"patch_size": 8}),
    "vit_small_patch14_reg4_dinov2": (5, True, {"patch_size": 8}),
    "vit_base_patch16_clip_224": (1, True, {"patch_size": 8}),
    "vit_base_patch16_siglip_224": (0, False, {"patch_size": 8}),
    "vit_medium_patch16_reg4_gap_256": (4, False, {"patch_size": 8}),
    "vit_base_patch16_gap_224": (0, False, {"patch_size": 8, "qk_norm": True}),
    "beit_base_patch16_224": (1, True, {"patch_size": 8}),
    "vit_relpos_small_patch16_224": (0, False, {"patch_size": 8}),
    "vit_srelpos_small_patch16_224": (0, False, {"patch_size": 8}),
    "eva02_tiny_patch14_224": (1, True, {"patch_size": 8}),
    "vit_small_patch16_dinov3": (5, True, {"patch_size": 8}),
    "vit_small_patch16_rope_mixed_224": (1, True, {"patch_size": 8}),
}


def timm_backbone(folder: Path, name: str, **options: Any) -> Backbone:
    options = {"img_size": SIZE, "embed_dim": 48, "depth": DEPTH, "num_heads": 3} | options
    model = shaken(timm.create_model(name, **options))
    save_file(model.state_dict(), folder / "model.safetensors")
    given = ",".join(f"model.{key}={value}" for key, value in options.items())
    return load_backbone(f"timm:{name},checkpoint={folder / 'model.safetensors'},{given}", device="cpu")


@contextmanager
def explicit(model: Any) -> Iterator[list[Tensor]]:
    """timm's own weights: with fused attention off, they pass through the attention's dropout."""
    seen: list[Tensor] = []
    dropouts = [module for name, module in model.named_modules() if name.endswith("attn.attn_drop")]
    attentions = [module for module in model.modules() if hasattr(module, "fused_attn")]
    handles = [dropout.register_forward_hook(lambda _, __, output: seen.append(output)) for dropout in dropouts]
    for module in attentions:
        module.fused_attn = False
    yield seen
    for handle in handles:
        handle.remove()
    for module in attentions:
        module.fused_attn = True


@pytest.mark.parametrize("name", TIMM)
def test_equals_timm_without_fused_attention(tmp_path: Path, name: str) -> None:
    prefix, has_cls, options = TIMM[name]
    backbone = timm_backbone(tmp_path, name, **options)
    model: Any = backbone.modules[0]
    images = pixels()
    with torch.inference_mode(), explicit(model) as theirs:
        model.forward_features(images)
    theirs = list(theirs)
    assert_equal(captured(backbone, images), theirs, heads=3)
    assert token_layout(backbone) == TokenLayout(prefix, GRID, GRID, PATCH, PATCH, has_cls)


def test_a_timm_model_that_is_not_fused_is_left_as_it_was(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path, "vit_tiny_patch16_224", patch_size=8)
    fused = captured(backbone, pixels())
    attentions = [module for module in backbone.modules[0].modules() if hasattr(module, "fused_attn")]
    for module in attentions:
        module.fused_attn = False  # type: ignore[assignment]
    torch.testing.assert_close(captured(backbone, pixels()), fused)
    assert [module.fused_attn for module in attentions] == [False] * DEPTH


PLAIN = {
    "hidden_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": PATCH,
}
MLP = PLAIN | {"intermediate_size": 64}
HF: dict[str, tuple[Callable[[], Any], int, bool]] = {
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**MLP)), 1, True),
    "deit": (lambda: hf.DeiTModel(hf.DeiTConfig(**MLP)), 2, True),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**PLAIN)), 1, True),
    "registers": (lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**PLAIN)), 5, True),
    "dinov3": (lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**MLP, num_register_tokens=4)), 5, True),
    "clip": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**MLP)), 1, True),
    "siglip": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**MLP)), 0, False),
}


@pytest.mark.parametrize("name", HF)
def test_equals_eager_attention_of_transformers(tmp_path: Path, name: str) -> None:
    build, prefix, has_cls = HF[name]
    shaken(build()).save_pretrained(tmp_path)
    backbone = load_backbone(f"hf:{tmp_path},{PREPROCESS}", device="cpu")
    eager = type(backbone.modules[0]).from_pretrained(tmp_path, attn_implementation="eager").eval()  # type: ignore[attr-defined]
    with torch.inference_mode():
        theirs = list(eager(pixels(), output_attentions=True).attentions)
    assert_equal(captured(backbone, pixels()), theirs, heads=3)
    assert token_layout(backbone) == TokenLayout(prefix, GRID, GRID, PATCH, PATCH, has_cls)


def test_a_transformers_model_set_to_eager_is_left_as_it_was(tmp_path: Path) -> None:
    shaken(hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**PLAIN))).save_pretrained(tmp_path)
    backbone = load_backbone(f"hf:{tmp_path},{PREPROCESS}", device="cpu")
    fused = captured(backbone, pixels())
    model: Any = backbone.modules[0]
    model.set_attn_implementation("eager")
    torch.testing.assert_close(captured(backbone, pixels()), fused)
    assert model.config._attn_implementation == "eager"


def test_at_another_resolution(tmp_path: Path) -> None:
    shaken(hf.ViTModel(hf.ViTConfig(**MLP))).save_pretrained(tmp_path)
    backbone = load_backbone(f"hf:{tmp_path},{PREPROCESS.replace('32', '48')},resolution=48", device="cpu")
    assert token_layout(backbone) == TokenLayout(1, 6, 6, PATCH, PATCH, True)
    assert captured(backbone, pixels(size=48))[0].shape == (2, 3, 37, 37)


class JaxStub(PixelsBackbone):
    """A `JaxViT` as a backbone, without a file."""

    def __init__(self, config: JaxViTConfig) -> None:
        self.model = shaken(JaxViT(config))
        self.depth = config.depth

    @property
    def modules(self) -> list[JaxViT]:
        return [self.model]

    def encode(self, images: Tensor, names: Any) -> dict[str, Tensor]:
        with torch.inference_mode():
            return {"gap": self.model.pool(self.model(images), "pooler")}


def explicit_jax(model: JaxViT, images: Tensor) -> list[Tensor]:
    """As Flax says it: softmax of the products of queries / sqrt(d) and keys."""
    found = []
    inputs = [tokens for _, tokens in model.layers(images)][:-1]
    for block, tokens in zip(model.blocks, inputs, strict=True):
        attention: Any = block.attention
        y = block.norm1(tokens)
        query, key = (layer(y).unflatten(-1, (attention.heads, -1)) for layer in (attention.query, attention.key))
        scores = torch.einsum("nqhd,nkhd->nhqk", query / query.shape[-1] ** 0.5, key)
        found.append(scores.softmax(-1))
    return found


@pytest.mark.parametrize("cls", [True, False])
def test_equals_jax_vit_written_out(cls: bool) -> None:
    shape = AttentionShape(heads=3, head_dim=16, mlp=64)
    config = JaxViTConfig(48, DEPTH, shape, PATCH, GRID, cls, map_head=None if cls else shape)
    backbone = JaxStub(config)
    with torch.inference_mode():
        theirs = explicit_jax(backbone.model, pixels())
    assert_equal(captured(backbone, pixels()), theirs, heads=3)
    assert token_layout(backbone) == TokenLayout(int(cls), GRID, GRID, PATCH, PATCH, cls)


def test_only_the_layers_asked_for(tiny_vit: str) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    every = captured(backbone, pixels())
    found: dict[int, Tensor] = {}
    capture_attention(backbone, pixels(), found.__setitem__, layers=[-1])
    assert list(found) == [2]
    torch.testing.assert_close(found[2], every[1])
    with pytest.raises(UsageError, match="no block 3: blocks go from 1 to 2, or from -2 to -1"):
        capture_attention(backbone, pixels(), found.__setitem__, layers=[3])
    with pytest.raises(UsageError, match="no block 0"):
        capture_attention(backbone, pixels(), found.__setitem__, layers=[0])


def test_one_block_is_held_at_a_time(tiny_vit: str) -> None:
    held: list[weakref.ref[Tensor]] = []

    def visit(layer: int, attention: Tensor) -> None:
        assert all(reference() is None for reference in held)
        held.append(weakref.ref(attention))

    capture_attention(load_backbone(tiny_vit, device="cpu"), pixels(), visit)
    assert len(held) == 2


def test_nothing_is_left_behind_after_an_error(tiny_vit: str) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    attentions = [module for module in backbone.modules[0].modules() if hasattr(module, "fused_attn")]
    for module in attentions:
        module.fused_attn = False  # type: ignore[assignment]

    visited = []

    def fail(layer: int, attention: Tensor) -> None:
        visited.append(layer)
        raise KeyError(layer)

    with pytest.raises(KeyError):
        capture_attention(backbone, pixels(), fail)
    assert not any(module.fused_attn for module in attentions)
    for module in attentions:
        module.fused_attn = True  # type: ignore[assignment]
    backbone.encode(pixels(), ["cls"])
    assert visited == [1]


def test_in_bfloat16_the_weights_are_float32_and_sum_to_one(tiny_vit: str) -> None:
    backbone = load_backbone(f"{tiny_vit},dtype=bfloat16", device="cpu")
    for attention in captured(backbone, pixels()):
        assert attention.dtype == torch.float32
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 0.7},
        {"is_causal": True},
        {"attn_mask": torch.linspace(-2, 2, 36).view(6, 6)},
        {"attn_mask": torch.eye(6).flip(0).bool() | torch.eye(6).bool()},
    ],
    ids=["plain", "scale", "causal", "bias", "mask"],
)
def test_weights_are_those_inside_the_fused_function(arguments: dict[str, Any]) -> None:
    query, key = torch.randn(2, 2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(6).expand(2, 4, 6, 6)
    fused = functional.scaled_dot_product_attention(query, key, identity, **arguments)
    torch.testing.assert_close(attention_weights(query, key, **arguments), fused)


def test_weights_with_fewer_heads_of_keys() -> None:
    query, key = torch.randn(1, 4, 6, 5), torch.randn(1, 2, 6, 5)
    grouped = attention_weights(query, key, enable_gqa=True)
    torch.testing.assert_close(grouped, attention_weights(query, key[:, [0, 0, 1, 1]]))


def test_to_patches_reads_cls_or_the_mean_patch() -> None:
    attention = torch.arange(36.0).view(6, 6)
    with_cls = TokenLayout(2, 2, 2, 8, 8, True).to_patches(attention)
    without = TokenLayout(2, 2, 2, 8, 8, False).to_patches(attention)
    assert with_cls.tolist() == [[2, 3], [4, 5]]
    assert without.tolist() == [[23, 24], [25, 26]]


def test_batches_shrink_with_the_square_of_the_tokens() -> None:
    sizes = [batch_size(TokenLayout(1, side, side, 16, 16, True)) for side in (14, 37, 200)]
    assert sizes == [16, 2, 1]


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "mixer_s32_224", "convnext_atto"])
def test_models_without_plain_attention_are_refused(tmp_path: Path, name: str) -> None:
    model = timm.create_model(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = load_backbone(f"timm:{name},checkpoint={tmp_path / 'model.safetensors'}", device="cpu")
    with pytest.raises(
        UsageError, match=f"'timm:{name}.*no row of patch tokens.*attention is read from plain ViTs"
    ) as error:
        token_layout(backbone)
    assert "\n" not in str(error.value)


def test_transformers_pyramids_and_pixels_are_refused(tmp_path: Path) -> None:
    config = hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    hf.ConvNextModel(config).save_pretrained(tmp_path)
    for spec in (f"hf:{tmp_path},{PREPROCESS}", "pixels"):
        with pytest.raises(UsageError, match="no row of patch tokens"):
            token_layout(load_backbone(spec, device="cpu"))


def test_two_attentions_in_a_block_are_refused(tmp_path: Path) -> None:
    name = "vit_small_patch16_36x1_224"
    options: dict[str, Any] = {"patch_size": 8, "num_heads": 3, "embed_dim": 48, "depth": 2, "img_size": 32}
    block = timm.models.vision_transformer.ParallelThingsBlock
    model = timm.create_model(name, block_fn=block, **options)
    backbone = timm_backbone(tmp_path, name, **options)
    backbone._model = model.eval()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="attends 4 times over all its 17 tokens in 2 blocks"):
        capture_attention(backbone, pixels(), lambda layer, attention: None)


def test_one_backbone_at_a_time(tiny_vit: str) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    with pytest.raises(UsageError, match="rollout takes one backbone, got 2: run it once for each"):
        one_backbone([backbone, backbone], "rollout")
    assert one_backbone([backbone], "rollout")[1].tokens == np.square(SIZE // 16) + 1
