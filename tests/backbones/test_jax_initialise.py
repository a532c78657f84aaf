from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vitbench.backbones.jax_initialise import CUT_NORMAL_STD, initialise
from vitbench.backbones.jax_vit import AttentionShape, JaxViT, JaxViTConfig, ResidualUnit

WIDTH, MLP, PATCH, GRID, HEADS = 96, 384, 8, 6, 4
BLOCK = AttentionShape(HEADS, WIDTH // HEADS, MLP)
PAPER = JaxViTConfig(WIDTH, 2, BLOCK, PATCH, GRID, cls=True, cls_has_position=True, pre_logits=128)
BIG_VISION = JaxViTConfig(WIDTH, 2, BLOCK, PATCH, GRID, cls=False, map_head=BLOCK)
HYBRID = JaxViTConfig(WIDTH, 1, BLOCK, 1, GRID, cls=True, cls_has_position=True, resnet=(1, 1), root_width=32)


def made(config: JaxViTConfig, seed: int = 0) -> JaxViT:
    model = JaxViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialise(model, seed)
    assert all(parameter.isfinite().all() for parameter in model.parameters()), "every weight is drawn"
    return model.requires_grad_(False)


def is_constant(tensor: Tensor | None, value: float) -> bool:
    return tensor is not None and bool((tensor == value).all())


def check_xavier_uniform(weight: Tensor) -> None:
    limit = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
    assert limit * 0.98 < weight.abs().max() <= limit
    assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=0.03)


def check_lecun_normal(weight: Tensor) -> None:
    std = 1 / math.sqrt(weight[0].numel())
    assert weight.std() == pytest.approx(std, rel=0.03)
    assert weight.abs().max() <= 2 * std / CUT_NORMAL_STD
    assert weight.mean().abs() < 4 * std / math.sqrt(weight.numel())


def test_the_deviation_of_a_normal_cut_at_two() -> None:
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    inside = math.erf(2 / math.sqrt(2))
    assert math.isclose(CUT_NORMAL_STD, math.sqrt(1 - 4 * density / inside), rel_tol=1e-12)


@pytest.mark.parametrize("config", [PAPER, BIG_VISION])
def test_blocks(config: JaxViTConfig) -> None:
    model = made(config)
    for block in model.blocks:
        for part in ("query", "key", "value", "out"):
            layer = block.get_submodule(f"attention.{part}")
            check_xavier_uniform(layer.weight)  # type: ignore[arg-type]
            assert is_constant(layer.bias, 0.0)  # type: ignore[arg-type]
        for part in ("dense0", "dense1"):
            layer = block.get_submodule(f"mlp.{part}")
            check_xavier_uniform(layer.weight)  # type: ignore[arg-type]
            assert layer.bias.std() == pytest.approx(1e-6, rel=0.2)  # type: ignore[operator, union-attr]
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert is_constant(module.weight, 1.0)
            assert is_constant(module.bias, 0.0)
    check_lecun_normal(model.embedding.weight)
    assert is_constant(model.embedding.bias, 0.0)


def test_position_embeddings() -> None:
    paper, big_vision = made(PAPER), made(BIG_VISION)
    assert paper.pos_embedding.std() == pytest.approx(0.02, rel=0.05)
    assert big_vision.pos_embedding.std() == pytest.approx(1 / math.sqrt(WIDTH), rel=0.05)
    assert is_constant(paper.cls, 0.0)


def test_pre_logits_and_map_head() -> None:
    paper, big_vision = made(PAPER), made(BIG_VISION)
    assert paper.pre_logits is not None
    check_lecun_normal(paper.pre_logits.weight)
    assert is_constant(paper.pre_logits.bias, 0.0)
    assert big_vision.map_head is not None
    limit = math.sqrt(6 / (1 + WIDTH))
    assert limit * 0.9 < big_vision.map_head.probe.abs().max() <= limit
    check_xavier_uniform(big_vision.map_head.attention.query.weight)
    check_xavier_uniform(big_vision.map_head.mlp.dense0.weight)


def test_residual_units_begin_as_their_shortcuts() -> None:
    model = made(HYBRID)
    assert model.resnet is not None
    check_lecun_normal(model.resnet.conv_root.weight)
    units = [module for module in model.modules() if isinstance(module, ResidualUnit)]
    assert len(units) == 2
    for unit in units:
        assert is_constant(unit.gn3.weight, 0.0)
        assert is_constant(unit.gn1.weight, 1.0)
        x = torch.randn(1, unit.conv1.weight.shape[1], 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(unit(x), unit.gn_proj(unit.conv_proj(x)).relu())


def test_a_seed_decides_and_the_process_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = made(PAPER, 1), made(PAPER, 1), made(PAPER, 2)
    model = JaxViT(PAPER)
    torch.random.set_rng_state(before)
    initialise(model, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, model.state_dict()[name])
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
