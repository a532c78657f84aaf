from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from vitbench.analysis.base import Options
from vitbench.analysis.filters import DEFAULTS, analyse, as_rgb, first_convolution, principal_components
from vitbench.analysis.output import Output
from vitbench.backbones.base import Backbone
from vitbench.backbones.jax_npz import JaxBackbone
from vitbench.backbones.jax_vit import AttentionShape, JaxViT, JaxViTConfig
from vitbench.backbones.load import load_backbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError


def timm_backbone(folder: Path, name: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    save_file(timm.create_model(name, num_classes=0, **options).state_dict(), folder / "model.safetensors")
    given = "".join(f",model.{key}={value}" for key, value in options.items())
    return load_backbone(f"timm:{name},checkpoint={folder / 'model.safetensors'}{given}", device="cpu")


class JaxModel(JaxBackbone):
    """The adapter around a model that was not read from a file."""

    def __init__(self, config: JaxViTConfig) -> None:
        self.spec = parse_backbone_spec("jax:model.npz")
        self._model = JaxViT(config).eval()
        self._describe(config)


HEADS = AttentionShape(heads=2, head_dim=8, mlp=16)


def show(backbone: Backbone, folder: Path, **options: str) -> list[str]:
    return analyse([backbone], None, Output(folder), Options(options, DEFAULTS))


def test_components_are_numpys_eigenvectors() -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(40, 3, 2, 2)) * generator.uniform(0.1, 3, (3, 2, 2))
    found = principal_components(weight)
    values, vectors = np.linalg.eigh(np.cov(weight.reshape(40, -1).T, ddof=0))
    np.testing.assert_allclose(found.explained, values[::-1] / values.sum(), rtol=1e-10)
    aligned = np.abs((found.directions.reshape(12, -1) * vectors.T[::-1]).sum(axis=1))
    np.testing.assert_allclose(aligned, 1, rtol=1e-10)
    np.testing.assert_allclose(found.mean, weight.mean(axis=0))
    assert (np.abs(found.directions).max(axis=(1, 2, 3)) == found.directions.max(axis=(1, 2, 3))).all()


def test_two_directions_are_found_and_rebuild_the_filters() -> None:
    generator = np.random.default_rng(1)
    basis = np.linalg.qr(generator.normal(size=(27, 2)))[0].T
    scores = generator.normal(size=(50, 2)) * [3, 1]
    weight = (scores @ basis + generator.normal(size=27)).reshape(50, 3, 3, 3)
    found = principal_components(weight)
    assert found.explained[:2].sum() == pytest.approx(1)
    flat = (weight - found.mean).reshape(50, -1)
    directions = found.directions[:2].reshape(2, -1)
    np.testing.assert_allclose(flat @ directions.T @ directions, flat, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 6), side=st.integers(1, 3), seed=st.integers(0, 99))
def test_components_of_any_number_of_filters(count: int, side: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(count, 3, side, side))
    found = principal_components(weight)
    assert found.directions.shape == (min(count, 3 * side * side), 3, side, side)
    if count == 1:
        assert np.isnan(found.explained).all()
    else:
        assert found.explained.sum() == pytest.approx(1)
        assert (np.diff(found.explained) <= 1e-12).all()


def test_as_rgb_uses_each_filters_own_range() -> None:
    filters = np.stack([np.arange(12.0).reshape(3, 2, 2), np.full((3, 2, 2), 5.0)])
    rgb = as_rgb(filters)
    assert rgb.shape == (2, 2, 2, 3)
    np.testing.assert_allclose(rgb[0], np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0) / 11)
    assert (rgb[1] == 0.5).all()


def test_of_a_vit(tiny_vit: str, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    lines = show(backbone, tmp_path, filters="10", components="5")
    arrays = np.load(tmp_path / "filters.npz", allow_pickle=False)
    proj: Any = backbone.modules[0].patch_embed.proj  # type: ignore[union-attr]
    np.testing.assert_array_equal(arrays["weight"], proj.weight.numpy())
    assert arrays["components"].shape == (24, 3, 16, 16)
    assert "24 filters of 16×16 pixels on RGB" in lines[0]
    share = arrays["explained_variance_ratio"][:5].sum()
    assert lines[1].startswith(f"the first 5 principal components explain {share:.1%} of the variance")
    for name in ("filters.png", "components.png"):
        assert min(Image.open(tmp_path / name).size) > 100


@pytest.mark.parametrize(
    ("name", "options", "module"),
    [
        ("resnet18", {}, "conv1"),
        ("vit_tiny_r_s16_p8_224", {"depth": 1, "img_size": 64}, "patch_embed.backbone.conv"),
    ],
)
def test_of_a_stem(name: str, options: dict[str, Any], module: str, tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path, name, **options)
    assert first_convolution(backbone) is backbone.modules[0].get_submodule(module)
    assert not any(layer._forward_pre_hooks for layer in backbone.modules[0].modules())


@pytest.mark.parametrize("hybrid", [False, True])
def test_of_jax(hybrid: bool) -> None:
    config = JaxViTConfig(
        16, 1, HEADS, 2, 2, True, True, resnet=(1,) if hybrid else None, root_width=32 if hybrid else 0
    )
    backbone = JaxModel(config)
    expected = "resnet.conv_root" if hybrid else "embedding"
    assert first_convolution(backbone) is backbone.modules[0].get_submodule(expected)


def test_filters_that_are_all_alike(tmp_path: Path) -> None:
    backbone = JaxModel(JaxViTConfig(16, 1, HEADS, 4, 2, True, True))
    convolution: Any = first_convolution(backbone)
    with torch.no_grad():
        convolution.weight.zero_()
    lines = show(backbone, tmp_path)
    assert lines[1:] == [
        "the filters are all alike: there is no variance to explain",
        "16 filters have one weight everywhere, and are drawn grey",
    ]


def test_what_has_no_filters_on_rgb_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'pixels' has no weights that can be looked at: there are no filters to show"
    ):
        show(load_backbone("pixels", device="cpu"), tmp_path)
    with pytest.raises(UsageError, match="its first convolution is on 48 channels, not on RGB"):
        show(timm_backbone(tmp_path, "tresnet_m"), tmp_path)
    with pytest.raises(UsageError, match="option components is how many are drawn, at least 1, got 0"):
        show(load_backbone("pixels", device="cpu"), tmp_path, components="0")
