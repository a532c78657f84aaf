from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed

from vitbench.analysis.base import Options
from vitbench.analysis.output import Output
from vitbench.analysis.posembed import DEFAULTS, analyse, cosine_similarity
from vitbench.analysis.positions import Absolute, displacement_maps, read_positions
from vitbench.backbones.base import Backbone
from vitbench.backbones.jax_npz import JaxBackbone
from vitbench.backbones.jax_vit import AttentionShape, JaxViT, JaxViTConfig
from vitbench.backbones.load import load_backbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError

SIZE, PATCH = 32, 8
PREPROCESS = f"preprocess=resize({SIZE}x{SIZE},bilinear)|normalize(0.5,0.5)"


def shaken(model: Any) -> Any:
    """Random weights everywhere: new tables are often zero, and a wrong row would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def timm_backbone(folder: Path, name: str, extra: str = "", **options: Any) -> Backbone:
    save_file(shaken(timm.create_model(name, num_classes=0, **options)).state_dict(), folder / "model.safetensors")
    given = "".join(f",model.{key}={value}" for key, value in options.items())
    return load_backbone(f"timm:{name},checkpoint={folder / 'model.safetensors'}{given}{extra}", device="cpu")


def table(backbone: Backbone) -> np.ndarray[Any, Any]:
    positions = read_positions(backbone)
    assert isinstance(positions, Absolute)
    return positions.table


def show(backbone: Backbone, folder: Path, **options: str) -> list[str]:
    return analyse([backbone], None, Output(folder), Options(options, DEFAULTS))


def test_cosine_similarity() -> None:
    grid = np.array([[[1.0, 0], [0, 2]], [[-3, 0], [5, 5]]])
    half = np.sqrt(0.5)
    expected = [[1, 0, -1, half], [0, 1, 0, half], [-1, 0, 1, -half], [half, half, -half, 1]]
    np.testing.assert_allclose(cosine_similarity(grid), expected, atol=1e-15)
    assert np.isnan(cosine_similarity(np.zeros((1, 2, 3)))).all()


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 4), width=st.integers(1, 4), heads=st.integers(1, 3), seed=st.integers(0, 99))
def test_displacement_maps_undo_the_spreading_of_a_table(height: int, width: int, heads: int, seed: int) -> None:
    maps = np.random.default_rng(seed).normal(size=(heads, 2 * height - 1, 2 * width - 1))
    cells = [(y, x) for y in range(height) for x in range(width)]
    bias = np.array(
        [[[head[ky - qy + height - 1, kx - qx + width - 1] for ky, kx in cells] for qy, qx in cells] for head in maps]
    )
    np.testing.assert_allclose(displacement_maps(bias, (height, width)), maps, rtol=1e-12)


SMALL = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 48, "depth": 1, "num_heads": 3}
# name -> rows before the patches in the table
TIMM = {
    "vit_tiny_patch16_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "deit3_small_patch16_224": 0,
    "vit_small_patch14_reg4_dinov2": 0,
    "vit_base_patch16_clip_224": 1,
    "eva02_tiny_patch14_224": 1,
    "cait_xxs24_224": 0,
    "convit_tiny": 0,
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_tables_without_the_rows_of_other_tokens(name: str, tmp_path: Path) -> None:
    options = SMALL | ({"depth": 11} if name == "convit_tiny" else {})
    backbone = timm_backbone(tmp_path, name, **options)
    stored: Any = backbone.modules[0].pos_embed
    positions = read_positions(backbone)
    assert isinstance(positions, Absolute)
    assert positions.left_out == TIMM[name]
    assert positions.table.shape[:2] == (4, 4)
    # In float32 a patch's own 0 is added and no other number: equal to the bit.
    np.testing.assert_array_equal(positions.table.reshape(16, -1), stored[0, TIMM[name] :].numpy())


def test_a_rectangular_grid_is_row_by_row(tmp_path: Path) -> None:
    model = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL | {"img_size": (16, 32)}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    given = ",".join(f"model.{key}={value}" for key, value in SMALL.items() if key != "img_size")
    spec = f"timm:vit_tiny_patch16_224,checkpoint={tmp_path / 'model.safetensors'},{given},model.img_size=(16,32)"
    backbone = load_backbone(f"{spec},preprocess=resize(16x32,bilinear)|normalize(0.5,0.5)", device="cpu")
    found = table(backbone)
    assert found.shape == (2, 4, 48)
    np.testing.assert_array_equal(found[1, 2], model.pos_embed[0, 1 + 4 + 2].detach().numpy())


@pytest.mark.parametrize("dynamic", [False, True])
def test_after_a_resize_the_resized_table_is_shown_and_said(dynamic: bool, tmp_path: Path) -> None:
    options = SMALL | ({"dynamic_img_size": True} if dynamic else {})
    del options["img_size"]
    backbone = timm_backbone(tmp_path, "vit_tiny_patch16_224", ",resolution=48", **options)
    lines = show(backbone, tmp_path / "out")
    assert "a table of 6×6 positions" in lines[0]
    assert any("resized" in line for line in lines)
    raw = load_file(tmp_path / "model.safetensors")["pos_embed"]
    expected = resample_abs_pos_embed(raw, new_size=[6, 6], num_prefix_tokens=1)[0, 1:]
    np.testing.assert_allclose(table(backbone).reshape(36, -1), expected.numpy(), atol=1e-6)


PLAIN = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": SIZE, "patch_size": PATCH}
MLP = PLAIN | {"intermediate_size": 32}
SWIN = {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
# The table and the number of its first rows that are not of patches.
HF: dict[str, tuple[Callable[[], Any], int]] = {
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**MLP)), 1),
    "deit": (lambda: hf.DeiTModel(hf.DeiTConfig(**MLP)), 2),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**PLAIN)), 1),
    "registers": (lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**PLAIN)), 1),
    "clip": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**MLP)), 1),
    "siglip": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**MLP)), 0),
}


def stored_table(model: Any) -> torch.Tensor:
    (found,) = (value for name, value in model.named_parameters() if "position_embedding" in name)
    return found.detach().reshape(-1, 48)


def hf_backbone(model: Any, folder: Path, size: int = SIZE) -> Backbone:
    shaken(model).save_pretrained(folder)
    extra = f",resolution={size}" if size != SIZE else ""
    return load_backbone(f"hf:{folder},{PREPROCESS.replace(str(SIZE), str(size))}{extra}", device="cpu")


@pytest.mark.parametrize("name", HF)
def test_huggingface_tables_without_the_rows_of_other_tokens(name: str, tmp_path: Path) -> None:
    build, rows = HF[name]
    backbone = hf_backbone(build(), tmp_path)
    positions = read_positions(backbone)
    assert isinstance(positions, Absolute)
    assert positions.left_out == rows
    expected = stored_table(backbone.modules[0])[rows:]
    np.testing.assert_allclose(positions.table.reshape(16, -1), expected.numpy(), atol=1e-6)
    assert not any(module._forward_hooks for module in backbone.modules[0].modules())


@pytest.mark.parametrize("name", ["vit", "registers"])
def test_huggingface_resizes_as_the_model_does(name: str, tmp_path: Path) -> None:
    build, rows = HF[name]
    backbone = hf_backbone(build(), tmp_path, 48)
    grid = stored_table(backbone.modules[0])[rows:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        grid, (6, 6), mode="bicubic", align_corners=False, antialias=name == "registers"
    )
    np.testing.assert_allclose(table(backbone), expected[0].permute(1, 2, 0).numpy(), atol=1e-5)
    lines = show(backbone, tmp_path / "out")
    assert any("resized from 4x4 to 6x6" in line for line in lines)


class JaxModel(JaxBackbone):
    """The adapter around a model that was not read from a file."""

    def __init__(self, config: JaxViTConfig) -> None:
        self.spec = parse_backbone_spec("jax:model.npz")
        self._model = shaken(JaxViT(config)).requires_grad_(False)
        self._describe(config)


@pytest.mark.parametrize(("cls", "cls_has_position"), [(True, True), (True, False), (False, False)])
def test_jax_tables(cls: bool, cls_has_position: bool) -> None:
    # 2x2 patches and a class row are 5 rows; 2x2 without are 4: only the config tells which of them is a patch.
    backbone = JaxModel(JaxViTConfig(16, 1, AttentionShape(2, 8, 16), 4, 2, cls, cls_has_position))
    positions = read_positions(backbone)
    assert isinstance(positions, Absolute)
    assert positions.left_out == int(cls_has_position)
    stored: Any = backbone.modules[0].pos_embedding
    np.testing.assert_array_equal(positions.table.reshape(4, 16), stored[0, int(cls_has_position) :].numpy())


def test_files_and_summary_of_a_table(tiny_vit: str, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    lines = show(backbone, tmp_path, tiles="1")
    arrays = np.load(tmp_path / "posembed.npz", allow_pickle=False)
    assert arrays["table"].shape == (2, 2, 24)
    rows = arrays["table"].reshape(4, 24)
    np.testing.assert_allclose(arrays["dot"], rows @ rows.T, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(np.diag(arrays["cosine"]), 1, rtol=1e-6)
    assert lines[1] == "left out: 1 row, which is not of patches"
    others = arrays["cosine"][~np.eye(4, dtype=bool)].mean()
    near = np.mean([arrays["cosine"][a, b] for a, b in [(0, 1), (2, 3), (0, 2), (1, 3)]])
    assert lines[2] == f"mean cosine similarity: {near:.3f} of neighbours, {others:.3f} of all pairs"
    for name in ("cosine.png", "dot-product.png"):
        assert min(Image.open(tmp_path / name).size) > 300


def test_swins_bias_is_its_table_by_displacement(tmp_path: Path) -> None:
    options = {"img_size": 16, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    given = ",".join(f"model.{key}={value}" for key, value in options.items())
    save_file(
        shaken(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **options)).state_dict(),
        tmp_path / "model.safetensors",
    )
    spec = f"timm:swin_tiny_patch4_window7_224,checkpoint={tmp_path / 'model.safetensors'},{given}"
    backbone = load_backbone(spec, device="cpu")
    layers = read_positions(backbone)
    assert isinstance(layers, list)
    assert [layer.maps.shape for layer in layers] == [(1, 3, 3), (2, 3, 3)]
    for layer in layers:
        module: Any = backbone.modules[0].get_submodule(layer.layer)
        # Swin indexes its table by query minus key, and a map here by key minus query: turned by half a circle.
        stored = module.relative_position_bias_table.numpy().T.reshape(-1, 3, 3)
        np.testing.assert_allclose(layer.maps, stored[:, ::-1, ::-1], rtol=1e-6)
    lines = show(backbone, tmp_path / "out")
    assert "a relative position bias in 2 layers, windows of 2×2 patches" in lines[0]
    assert (tmp_path / "out" / "bias.png").stat().st_size > 1000


@pytest.mark.parametrize("build", [hf.SwinModel, hf.Swinv2Model])
def test_huggingfaces_windows(build: Any, tmp_path: Path) -> None:
    extra = {"pretrained_window_sizes": [0, 0]} if build is hf.Swinv2Model else {}
    backbone = hf_backbone(build(build.config_class(**SWIN, **extra)), tmp_path)
    layers = read_positions(backbone)
    assert isinstance(layers, list)
    assert [layer.maps.shape for layer in layers] == [(1, 3, 3), (2, 3, 3)]
    if build is hf.Swinv2Model:
        assert all((layer.maps > 0).all() and (layer.maps < 16).all() for layer in layers)


@pytest.mark.parametrize(("name", "left_out"), [("beit_base_patch16_224", 1), ("vit_relpos_small_patch16_224", 0)])
def test_bias_of_plain_vits_without_other_tokens(name: str, left_out: int, tmp_path: Path) -> None:
    layers = read_positions(timm_backbone(tmp_path, name, **SMALL))
    assert isinstance(layers, list)
    assert [(layer.maps.shape, layer.left_out) for layer in layers] == [((3, 7, 7), left_out)]


def test_what_has_none_says_so_in_one_line(tmp_path: Path) -> None:
    def told(backbone: Backbone) -> str:
        with pytest.raises(UsageError) as caught:
            show(backbone, tmp_path / "out")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    rope = hf_backbone(hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**MLP, num_register_tokens=4)), tmp_path / "a")
    assert "cannot be shown: they are rotary (RoPE)" in told(rope)
    assert "they are rotary (RoPE)" in told(timm_backbone(tmp_path, "vit_small_patch16_dinov3", **SMALL))
    assert "it has none" in told(timm_backbone(tmp_path, "resnet10t"))
    assert "it has no weights that can be looked at" in told(load_backbone("pixels", device="cpu"))
    convolutional = hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=SIZE))
    assert "it is convolutional, and has none" in told(hf_backbone(convolutional, tmp_path / "b"))
    assert not (tmp_path / "out").exists()


def test_a_layout_that_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    backbone = timm_backbone(tmp_path, "levit_128s")
    with pytest.raises(UsageError, match=r"how it lays out its .*attention_biases is not known"):
        read_positions(backbone)


def test_a_table_of_zeros_and_a_bad_option(tiny_vit: str, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    with pytest.raises(UsageError, match="at least 1, got 0"):
        show(backbone, tmp_path, tiles="0")
    stored: Any = backbone.modules[0].pos_embed
    with torch.no_grad():
        stored.zero_()
    with pytest.raises(UsageError, match="all zeros"):
        show(backbone, tmp_path)
