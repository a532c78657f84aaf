from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import GroupNormAct, HybridEmbed, StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitbench.backbones.base import Backbone
from vitbench.backbones.jax_arrays import decode_bfloat16
from vitbench.backbones.jax_vit import (
    AttentionShape,
    JaxViT,
    JaxViTConfig,
    pad_same,
    standardize,
)
from vitbench.backbones.load import load_backbone
from vitbench.errors import RepresentationError, UsageError, VitbenchError, WeightsError

Arrays = dict[str, np.ndarray]
MODULES = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}


# Checkpoints invented array by array, in Linen numbering without a prefix


def vit(
    *,
    width: int = 24,
    depth: int = 3,
    heads: int = 3,
    mlp: int = 40,
    patch: int = 4,
    grid: int = 3,
    channels: int = 3,
    cls: str = "paper",
    pre_logits: int = 0,
    map_heads: int = 0,
    head: int = 5,
    seed: int = 0,
) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}

    def put(key: str, *shape: int, scale: float = 0.3, centre: float = 0.0) -> None:
        arrays[key] = (centre + scale * rng.standard_normal(shape)).astype(np.float32)

    def norm(key: str) -> None:
        put(f"{key}/scale", width, centre=1.0)
        put(f"{key}/bias", width)

    def dense(key: str, inputs: int, outputs: int) -> None:
        put(f"{key}/kernel", inputs, outputs)
        put(f"{key}/bias", outputs)

    def attention(key: str, count: int) -> None:
        for part in ("query", "key", "value"):
            put(f"{key}/{part}/kernel", width, count, width // count)
            put(f"{key}/{part}/bias", count, width // count)
        put(f"{key}/out/kernel", count, width // count, width)
        put(f"{key}/out/bias", width)

    put("embedding/kernel", patch, patch, channels, width)
    put("embedding/bias", width)
    if cls:
        put("cls", 1, 1, width)
    key = "Transformer/posembed_input/pos_embedding" if cls == "paper" else "pos_embedding"
    put(key, 1, grid**2 + (cls == "paper"), width)
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}/"
        norm(f"{block}LayerNorm_0")
        attention(f"{block}MultiHeadDotProductAttention_0", heads)
        norm(f"{block}LayerNorm_1")
        dense(f"{block}MlpBlock_0/Dense_0", width, mlp)
        dense(f"{block}MlpBlock_0/Dense_1", mlp, width)
    norm("Transformer/encoder_norm")
    if map_heads:
        put("MAPHead_0/probe", 1, 1, width)
        attention("MAPHead_0/MultiHeadDotProductAttention_0", map_heads)
        norm("MAPHead_0/LayerNorm_0")
        dense("MAPHead_0/MlpBlock_0/Dense_0", width, 2 * width)
        dense("MAPHead_0/MlpBlock_0/Dense_1", 2 * width, width)
    if pre_logits:
        dense("pre_logits", width, pre_logits)
    if head:
        dense("head", pre_logits or width, head)
    return arrays


def resnet(units: tuple[int, ...], *, root: int = 32, scale: float = 1.0, seed: int = 7) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}

    def conv(key: str, suffix: str, kernel: int, inputs: int, outputs: int) -> None:
        shape = (kernel, kernel, inputs, outputs)
        arrays[f"{key}conv{suffix}/kernel"] = (scale * (rng.standard_normal(shape) + 0.2)).astype(np.float32)
        for part, centre in (("scale", 1.0), ("bias", 0.0)):
            values = centre + 0.3 * rng.standard_normal((1, 1, 1, outputs))
            arrays[f"{key}gn{suffix}/{part}"] = values.astype(np.float32)

    conv("", "_root", 7, 3, root)
    inputs = root
    for block, count in enumerate(units):
        features = root * 2**block
        for unit in range(count):
            key = f"block{block + 1}/unit{unit + 1}/"
            if unit == 0:
                conv(key, "_proj", 1, inputs, 4 * features)
            conv(key, "1", 1, inputs, features)
            conv(key, "2", 3, features, features)
            conv(key, "3", 1, features, 4 * features)
            inputs = 4 * features
    return arrays


def hybrid(units: tuple[int, ...], *, patch: int = 1, scale: float = 1.0, **options: Any) -> Arrays:
    channels = 128 * 2 ** (len(units) - 1) if units else 32
    return resnet(units, scale=scale) | vit(patch=patch, channels=channels, **options)


def paper(arrays: Arrays) -> Arrays:
    renamed = {}
    for key, array in arrays.items():
        for linen, old in MODULES.items():
            if key.startswith("Transformer/encoderblock_"):
                key = key.replace(f"/{linen}/", f"/{old}/")
        renamed[key] = array
    return renamed


def scanned(arrays: Arrays) -> Arrays:
    first = "Transformer/encoderblock_0/"
    depth = sum(key.endswith("/LayerNorm_0/scale") and "encoderblock" in key for key in arrays)
    stacked = {
        f"Transformer/encoderblock/{key.removeprefix(first)}": np.stack(
            [arrays[key.replace("_0/", f"_{i}/", 1)] for i in range(depth)]
        )
        for key in arrays
        if key.startswith(first)
    }
    return {key: array for key, array in arrays.items() if "encoderblock_" not in key} | stacked


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + key: array for key, array in arrays.items()}


def rounded(arrays: Arrays) -> Arrays:
    return {key: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for key, array in arrays.items()}


def bfloat16(arrays: Arrays) -> Arrays:
    return {key: (array.view(np.uint32) >> 16).astype(np.uint16).view("V2") for key, array in arrays.items()}


def save(path: Path, arrays: Arrays) -> str:
    np.savez(path, **arrays)
    return f"jax:{path}"


def load(path: Path, arrays: Arrays, options: str = "") -> Backbone:
    return load_backbone(save(path, arrays) + options, device="cpu")


def pixels_for(backbone: Backbone, count: int = 2, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, *backbone.input_size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def one_line_error(kind: type[VitbenchError], make: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    return message


# The same model in plain NumPy and float64, written from the Flax source


def np_norm(x: np.ndarray, arrays: Arrays, key: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * arrays[f"{key}/scale"] + arrays[f"{key}/bias"]


def np_attention(q: np.ndarray, x: np.ndarray, arrays: Arrays, key: str) -> np.ndarray:
    query, keys, values = (
        np.einsum("ntd,dhe->nhte", tokens, arrays[f"{key}/{part}/kernel"]) + arrays[f"{key}/{part}/bias"][:, None]
        for part, tokens in (("query", q), ("key", x), ("value", x))
    )
    scores = np.einsum("nhqe,nhke->nhqk", query / np.sqrt(query.shape[-1]), keys)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("nhqk,nhke->nhqe", weights / weights.sum(-1, keepdims=True), values)
    return np.einsum("nhqe,hed->nqd", mixed, arrays[f"{key}/out/kernel"]) + arrays[f"{key}/out/bias"]


def np_mlp(x: np.ndarray, arrays: Arrays, key: str) -> np.ndarray:
    x = x @ arrays[f"{key}/Dense_0/kernel"] + arrays[f"{key}/Dense_0/bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ arrays[f"{key}/Dense_1/kernel"] + arrays[f"{key}/Dense_1/bias"]


def np_windows(x: np.ndarray, kernel: int, stride: int, fill: float) -> np.ndarray:
    """SAME windows of `[N, H, W, C]`: `[N, H', W', kernel, kernel, C]`."""
    n, height, width, channels = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    top = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2
    canvas = np.full((n, height + 2 * kernel, width + 2 * kernel, channels), fill)
    canvas[:, top : top + height, left : left + width] = x
    windows = np.empty((n, rows, columns, kernel, kernel, channels))
    for i in range(rows):
        for j in range(columns):
            windows[:, i, j] = canvas[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
    return windows


def np_conv_norm(x: np.ndarray, arrays: Arrays, key: str, suffix: str, stride: int = 1) -> np.ndarray:
    kernel = arrays[f"{key}conv{suffix}/kernel"].astype(np.float64)
    kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
    x = np.einsum("nijklc,klco->nijo", np_windows(x, len(kernel), stride, 0.0), kernel)
    groups = x.reshape(*x.shape[:3], 32, -1)
    mean, variance = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
    x = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    return x * arrays[f"{key}gn{suffix}/scale"].reshape(-1) + arrays[f"{key}gn{suffix}/bias"].reshape(-1)


def np_resnet(x: np.ndarray, arrays: Arrays, units: tuple[int, ...]) -> np.ndarray:
    x = np.maximum(np_conv_norm(x, arrays, "", "_root", 2), 0)
    x = np_windows(x, 3, 2, -np.inf).max((3, 4))
    for block, count in enumerate(units):
        for unit in range(count):
            key, stride = f"block{block + 1}/unit{unit + 1}/", 2 if block and not unit else 1
            shortcut = x if unit else np_conv_norm(x, arrays, key, "_proj", stride)
            y = np.maximum(np_conv_norm(x, arrays, key, "1"), 0)
            y = np.maximum(np_conv_norm(y, arrays, key, "2", stride), 0)
            x = np.maximum(shortcut + np_conv_norm(y, arrays, key, "3"), 0)
    return x


def np_vit(pixels: Tensor, arrays: Arrays, units: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens after the final norm, and the pooled vector, of a checkpoint in Linen numbering."""
    arrays = {key: array.astype(np.float64) for key, array in arrays.items()}
    x = pixels.permute(0, 2, 3, 1).double().numpy()
    if units is not None:
        x = np_resnet(x, arrays, units)
    kernel = arrays["embedding/kernel"]
    patch = len(kernel)
    n, side = len(x), x.shape[1] // patch
    patches = x.reshape(n, side, patch, side, patch, -1).transpose(0, 1, 3, 2, 4, 5).reshape(n, side * side, -1)
    x = patches @ kernel.reshape(patches.shape[-1], -1) + arrays["embedding/bias"]
    cls = np.repeat(arrays["cls"], n, 0) if "cls" in arrays else x[:, :0]
    if "pos_embedding" in arrays:
        x = np.concatenate([cls, x + arrays["pos_embedding"]], 1)
    else:
        x = np.concatenate([cls, x], 1) + arrays["Transformer/posembed_input/pos_embedding"]
    depth = sum(key.startswith("Transformer/encoderblock") and key.endswith("LayerNorm_0/bias") for key in arrays)
    for i in range(depth):
        key = f"Transformer/encoderblock_{i}/"
        y = np_norm(x, arrays, f"{key}LayerNorm_0")
        x = x + np_attention(y, y, arrays, f"{key}MultiHeadDotProductAttention_0")
        x = x + np_mlp(np_norm(x, arrays, f"{key}LayerNorm_1"), arrays, f"{key}MlpBlock_0")
    tokens = np_norm(x, arrays, "Transformer/encoder_norm")
    pooled = tokens[:, 0] if "cls" in arrays else tokens.mean(1)
    if "MAPHead_0/probe" in arrays:
        probe = np.repeat(arrays["MAPHead_0/probe"], n, 0)
        y = np_attention(probe, tokens, arrays, "MAPHead_0/MultiHeadDotProductAttention_0")
        pooled = (y + np_mlp(np_norm(y, arrays, "MAPHead_0/LayerNorm_0"), arrays, "MAPHead_0/MlpBlock_0"))[:, 0]
    if "pre_logits/kernel" in arrays:
        pooled = np.tanh(pooled @ arrays["pre_logits/kernel"] + arrays["pre_logits/bias"])
    return tokens, pooled


MODELS: dict[str, tuple[Arrays, tuple[int, ...] | None]] = {
    "paper": (vit(), None),
    "paper pre_logits": (vit(pre_logits=16), None),
    "big_vision tok": (vit(cls="bigvision"), None),
    "gap": (vit(cls=""), None),
    "gap pre_logits": (vit(cls="", pre_logits=16), None),
    "map": (vit(cls="", map_heads=2), None),
    "map pre_logits": (vit(cls="", map_heads=2, pre_logits=16), None),
    "map over cls": (vit(cls="bigvision", map_heads=2), None),
    "hybrid": (hybrid((1, 2)), (1, 2)),
    "hybrid root": (hybrid((), patch=4, grid=2), ()),
    "hybrid small kernels": (hybrid((1,), scale=1e-4, cls="bigvision"), (1,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_computes_what_flax_computes(name: str, tmp_path: Path) -> None:
    arrays, units = MODELS[name]
    backbone = load(tmp_path / "model.npz", arrays)
    pixels = pixels_for(backbone)
    tokens, pooled = np_vit(pixels, arrays, units)
    has_cls = "cls" in arrays
    expected = {"gap": tokens[:, int(has_cls) :].mean(1), "pooler": pooled} | ({"cls": tokens[:, 0]} if has_cls else {})
    assert sorted(backbone.available()) == sorted(expected)
    got = backbone.encode(pixels, expected)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key].numpy(), value, atol=1e-5, rtol=1e-5)
        assert backbone.dim(key) == value.shape[1]
    np.testing.assert_allclose(backbone.modules[0](pixels).numpy(), tokens, atol=1e-5, rtol=1e-5)
    model = backbone.modules[0].double()  # in float64 an eps of another value, or in another place, shows
    assert isinstance(model, JaxViT)
    exact = model(pixels.double())
    np.testing.assert_allclose(exact.numpy(), tokens, atol=1e-10)
    np.testing.assert_allclose(model.pool(exact, "pooler").numpy(), pooled, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"cls": "bigvision"}, {"cls": "", "map_heads": 2, "pre_logits": 16}])
def test_every_naming_of_the_same_weights_is_one_model(options: dict[str, Any], tmp_path: Path) -> None:
    arrays = rounded(vit(**options))
    reference = load(tmp_path / "reference.npz", arrays)
    pixels = pixels_for(reference)
    expected = reference.encode(pixels, reference.available())
    text_tower = {"params/txt/Encoder_0/kernel": np.ones((2, 2), np.float32), "params/t": np.ones(1, np.float32)}
    old = {key.replace("Transformer/posembed_input/", ""): array for key, array in arrays.items()}
    copies = {
        "paper": paper(arrays),
        "params": prefixed("params/", arrays),
        "two towers": prefixed("params/img/", arrays) | text_tower,
        "old trainer": prefixed("opt/target/", paper(arrays)) | {"opt/state/step": np.array(7)},
        "scanned": scanned(arrays),
        "scanned, prefixed": prefixed("params/", scanned(arrays)),
        "bfloat16": bfloat16(prefixed("params/", scanned(arrays))),
        "position at the root": old,
        "position in the encoder": {
            key.replace("pos_embedding", "Transformer/pos_embedding"): a for key, a in old.items()
        },
    }
    for name, copy in copies.items():
        backbone = load(tmp_path / "copy.npz", copy)
        assert backbone.weights_digest == reference.weights_digest, name
        assert backbone.architecture == reference.architecture, name
        got = backbone.encode(pixels, expected)
        assert all(torch.equal(got[key], expected[key]) for key in expected), name


def test_bfloat16_is_decoded_exactly_and_noted(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5, 0.0], [3.0e38, 1.0e-38, -0.15625]], np.float32)
    values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    stored = (values.view(np.uint32) >> 16).astype(np.uint16).view("V2")
    np.testing.assert_array_equal(decode_bfloat16(stored), values)
    np.testing.assert_array_equal(decode_bfloat16(np.asfortranarray(stored)), values)
    assert any("bfloat16" in note for note in load(tmp_path / "model.npz", bfloat16(vit())).provenance_notes)


def test_half_and_double_precision_files_are_read(tmp_path: Path) -> None:
    arrays = vit()
    halves = {key: array.astype(np.float16) for key, array in arrays.items()}
    doubles = {key: array.astype(np.float64) for key, array in halves.items()}
    digests = {load(tmp_path / "model.npz", copy).weights_digest for copy in (halves, doubles)}
    assert len(digests) == 1


def test_layers_pass_through_the_final_norm(tmp_path: Path) -> None:
    arrays = vit(pre_logits=16)
    backbone = load(tmp_path / "model.npz", arrays)
    pixels = pixels_for(backbone)
    got = backbone.encode(pixels, ["cls", "cls@3", "gap", "gap@-1", "gap@0", "cls@1", "pooler"])
    assert torch.equal(got["cls"], got["cls@3"])
    assert torch.equal(got["gap"], got["gap@-1"])
    no_blocks = {k: a for k, a in arrays.items() if "encoderblock" not in k}
    tokens, _ = np_vit(pixels, no_blocks)
    np.testing.assert_allclose(got["gap@0"].numpy(), tokens[:, 1:].mean(1), atol=1e-5)
    one_block = {k: a for k, a in arrays.items() if "encoderblock_1" not in k and "encoderblock_2" not in k}
    np.testing.assert_allclose(got["cls@1"].numpy(), np_vit(pixels, one_block)[0][:, 0], atol=1e-5)
    assert backbone.depth == 3
    assert list(backbone.layer_dims) == [24] * 4
    assert "no 'pooler' by layer" in one_line_error(RepresentationError, lambda: backbone.encode(pixels, ["pooler@1"]))


def test_describes_itself(tmp_path: Path) -> None:
    arrays = vit(pre_logits=16)
    backbone = load(tmp_path / "model.npz", paper(arrays))
    assert (
        backbone.architecture == "jax-vit(width=24,depth=3,heads=3,mlp=40,patch=4,posemb=paper,pool=tok,pre_logits=16)"
    )
    assert backbone.preprocessing == "tf_resize(12x12,bilinear)|value_range(-1,1)"
    assert backbone.input_size == (12, 12)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert backbone.num_parameters == sum(a.size for key, a in arrays.items() if not key.startswith("head/"))
    assert backbone.alias_of("pooler") is None
    (module,) = backbone.modules
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    headless = {key: array for key, array in arrays.items() if not key.startswith("head/")}
    assert load(tmp_path / "headless.npz", headless).weights_digest == backbone.weights_digest
    hybrids = load(tmp_path / "hybrid.npz", MODELS["hybrid"][0])
    assert hybrids.architecture.endswith("resnet=1-2,root_width=32)")
    assert hybrids.input_size == (24, 24)


@pytest.mark.parametrize(("cls", "alias"), [("paper", "cls"), ("bigvision", "cls"), ("", "gap")])
def test_pooler_without_a_layer_of_its_own_is_an_alias(cls: str, alias: str, tmp_path: Path) -> None:
    backbone = load(tmp_path / "model.npz", vit(cls=cls))
    pixels = pixels_for(backbone)
    assert backbone.alias_of("pooler") == alias
    got = backbone.encode(pixels, ["pooler", alias])
    assert torch.equal(got["pooler"], got[alias])
    if alias == "gap":
        message = one_line_error(RepresentationError, lambda: backbone.encode(pixels, ["cls"]))
        assert "the checkpoint has no CLS token" in message


def test_arrays_outside_the_model_are_noted(tmp_path: Path) -> None:
    extra = {"opt/mu": np.zeros(3), "extra/step": np.array(5), "params/t": np.zeros(1), "params/txt/a": np.zeros(2)}
    notes = "\n".join(load(tmp_path / "model.npz", prefixed("params/", vit()) | extra).provenance_notes)
    assert "classifier head not used: 'params/head/kernel' [24, 5]" in notes
    assert "arrays not used: extra (1), opt (1), params/t (1), params/txt (1)" in notes


# Position embeddings


def test_scipys_zeroed_edge_is_noted(tmp_path: Path) -> None:
    backbone = load(tmp_path / "model.npz", vit(patch=1, grid=8, depth=1), ",resolution=26")
    assert any("rounding fault" in note for note in backbone.provenance_notes)


@pytest.mark.parametrize("cls", ["paper", "bigvision", ""])
def test_resolution_resizes_the_positions(cls: str, tmp_path: Path) -> None:
    arrays = vit(cls=cls)
    backbone = load(tmp_path / "model.npz", arrays, ",resolution=20")
    key = "Transformer/posembed_input/pos_embedding" if cls == "paper" else "pos_embedding"
    table, first = arrays[key], int(cls == "paper")
    grid = scipy.ndimage.zoom(table[0, first:].reshape(3, 3, -1), (5 / 3, 5 / 3, 1), order=1).reshape(1, 25, -1)
    pixels = pixels_for(backbone)
    tokens, _ = np_vit(pixels, arrays | {key: np.concatenate([table[:, :first], grid], 1)})
    np.testing.assert_allclose(backbone.modules[0](pixels).numpy(), tokens, atol=1e-5)
    assert backbone.input_size == (20, 20)
    assert backbone.preprocessing == "tf_resize(20x20,bilinear)|value_range(-1,1)"
    assert any("from 3x3 to 5x5" in note for note in backbone.provenance_notes)
    native = load(tmp_path / "model.npz", arrays)
    assert native.weights_digest != backbone.weights_digest
    assert not any("resized" in note for note in native.provenance_notes)


@pytest.mark.parametrize(("resolution", "nearest"), [(18, "16, 20"), (3, "4")])
def test_resolution_must_be_whole_patches(resolution: int, nearest: str, tmp_path: Path) -> None:
    message = one_line_error(UsageError, lambda: load(tmp_path / "model.npz", vit(), f",resolution={resolution}"))
    assert message.endswith(nearest)


def test_hybrid_resolution_counts_the_resnet(tmp_path: Path) -> None:
    assert load(tmp_path / "model.npz", hybrid((1, 1)), ",resolution=16").input_size == (16, 16)
    message = one_line_error(UsageError, lambda: load(tmp_path / "model.npz", hybrid((1, 1)), ",resolution=28"))
    assert message.endswith("24, 32")


def test_pixels_of_another_size_are_refused(tmp_path: Path) -> None:
    backbone = load(tmp_path / "model.npz", vit())
    assert "12x12" in one_line_error(UsageError, lambda: backbone.encode(torch.zeros(1, 3, 16, 16), ["gap"]))


# The ResNet of a hybrid


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 16), kernel=st.sampled_from([1, 3, 7]), stride=st.integers(1, 2), seed=st.integers(0, 99))
def test_same_padding_is_xlas(size: int, kernel: int, stride: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((1, size, size + 1, 2))
    windows = np_windows(x, kernel, stride, 0.0)
    padded = pad_same(torch.from_numpy(x).permute(0, 3, 1, 2), kernel, stride)
    got = padded.unfold(2, kernel, stride).unfold(3, kernel, stride).permute(0, 2, 3, 4, 5, 1)
    np.testing.assert_array_equal(got.numpy(), windows)


def test_std_conv_adds_its_eps_to_the_std() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=generator) * 1e-4 + 1
    got = standardize(weight)
    array = weight.numpy()
    expected = (array - array.mean((1, 2, 3), keepdims=True)) / (array.std((1, 2, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)
    assert torch.equal(standardize(torch.ones(1, 1, 1, 1)), torch.zeros(1, 1, 1, 1))


def timm_hybrid(units: tuple[int, ...], size: int) -> VisionTransformer:
    """timm's hybrid with the JAX values of every eps, and the tanh GELU."""
    resnet_v2 = ResNetV2(
        layers=units,
        channels=tuple(128 * 2**i for i in range(len(units))),
        stem_chs=32,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-5),
        norm_layer=partial(GroupNormAct, num_groups=32, eps=1e-6),
    )
    return VisionTransformer(
        img_size=size,
        patch_size=1,
        embed_dim=24,
        depth=3,
        num_heads=3,
        mlp_ratio=40 / 24,
        num_classes=0,
        embed_layer=partial(HybridEmbed, backbone=resnet_v2),
        act_layer=partial(nn.GELU, approximate="tanh"),
    ).eval()


@pytest.mark.parametrize("units", [(1, 2), (2, 1, 1)])
def test_hybrid_agrees_with_timm(units: tuple[int, ...], tmp_path: Path) -> None:
    # timm adds its eps to the variance, JAX to the std: kernels far larger than both make them one
    backbone = load(tmp_path / "model.npz", paper(hybrid(units, grid=2, scale=100.0)))
    peer = timm_hybrid(units, backbone.input_size[0])
    peer.load_pretrained(str(tmp_path / "model.npz"))
    pixels = pixels_for(backbone).double()
    model = backbone.modules[0].double()
    assert isinstance(model, JaxViT)
    assert model.resnet is not None
    with torch.inference_mode():
        maps = peer.double().patch_embed.backbone(pixels)
        tokens = peer.forward_features(pixels)
    torch.testing.assert_close(model.resnet(pixels), maps, atol=1e-6, rtol=0)
    torch.testing.assert_close(model(pixels), tokens, atol=1e-6, rtol=0)


TI, S, B, L = ((192, 12, 3, 768), (384, 12, 6, 1536), (768, 12, 12, 3072), (1024, 24, 16, 4096))


@pytest.mark.parametrize(
    ("size", "patch", "units", "grid", "parameters"),
    [
        (TI, 16, None, 14, 5_717_416),
        (S, 32, None, 7, 22_878_952),
        (B, 8, None, 28, 86_576_872),
        (B, 16, None, 14, 86_567_656),
        (L, 16, None, 14, 304_326_632),
        (TI, 8, (), 7, 6_337_704),
        (S, 1, (2, 2, 2, 2), 7, 36_431_912),
        (B, 1, (2, 2, 2, 2), 7, 101_383_976),
        (B, 1, (3, 4, 9), 14, 98_659_112),
        (L, 1, (3, 4, 6, 3), 7, 328_994_856),
    ],
)
def test_sizes_are_those_of_vit_jaxs_own_test(
    size: tuple[int, int, int, int], patch: int, units: tuple[int, ...] | None, grid: int, parameters: int
) -> None:
    width, depth, heads, mlp = size
    shape = AttentionShape(heads, width // heads, mlp)
    root = 0 if units is None else 64
    config = JaxViTConfig(width, depth, shape, patch, grid, True, True, resnet=units, root_width=root)
    with torch.device("meta"):
        model = JaxViT(config)
    head = 1000 * (width + 1)
    assert sum(p.numel() for p in model.parameters()) + head == parameters
    assert config.stride * grid == 224


# What can be wrong with a file


def without(key: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {k: a for k, a in arrays.items() if k != key}


def with_array(key: str, array: np.ndarray) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {key: array}


F32 = partial(np.zeros, dtype=np.float32)
BLOCK = "Transformer/encoderblock_1/"
BROKEN: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "missing array": (without(f"{BLOCK}LayerNorm_1/bias"), f"lacks array '{BLOCK}LayerNorm_1/bias'"),
    "missing kernel": (without("embedding/kernel"), "lacks array 'embedding/kernel'"),
    "missing position": (without("Transformer/posembed_input/pos_embedding"), "lacks array 'pos_embedding'"),
    "missing bias of the pooler": (without("pre_logits/bias"), "lacks array 'pre_logits/bias'"),
    "missing block": (lambda a: {k: v for k, v in a.items() if "_1/" not in k[:27]}, f"lacks array '{BLOCK}"),
    "wrong shape": (with_array(f"{BLOCK}LayerNorm_1/bias", F32(23)), "has shape [23], expected [24]"),
    "transposed": (with_array(f"{BLOCK}MlpBlock_0/Dense_0/kernel", F32((40, 24))), "[40, 24], expected [24, 40]"),
    "wrong heads": (
        with_array("Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel", F32((24, 3, 7))),
        "has shape [24, 3, 7]: heads times their length must be 24",
    ),
    "flat patches": (with_array("embedding/kernel", F32((48, 24))), "[48, 24], expected [P, P, C, D]"),
    "oblong patches": (with_array("embedding/kernel", F32((4, 2, 3, 24))), "[4, 2, 3, 24], expected [4, 4, 3, 24]"),
    "grey patches": (with_array("embedding/kernel", F32((4, 4, 1, 24))), "[4, 4, 1, 24], expected [4, 4, 3, 24]"),
    "oblong grid": (with_array("Transformer/posembed_input/pos_embedding", F32((1, 7, 24))), "has 7 rows"),
    "CLS row without CLS": (without("cls"), "not G² for a model without 'cls'"),
    "extra norm": (with_array(f"{BLOCK}LayerScale/scale", F32(24)), f"array '{BLOCK}LayerScale/scale' belongs to"),
    "both numberings": (with_array(f"{BLOCK}MlpBlock_3/Dense_0/bias", F32(40)), "lacks array"),
    "two position embeddings": (
        with_array("pos_embedding", F32((1, 10, 24))),
        "posembed_input/pos_embedding' belongs to",
    ),
    "register tokens": (with_array("reg", F32((1, 4, 24))), "array 'reg' belongs to the model"),
    "whole numbers": (with_array("cls", np.zeros((1, 1, 24), np.int32)), "array 'cls' holds int32"),
    "not finite": (with_array("cls", np.full((1, 1, 24), np.nan, np.float32)), "not finite"),
    "pickled objects": (with_array("cls", np.array([[[None] * 24]])), "array 'cls' holds pickled objects"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints_name_the_array(name: str, tmp_path: Path) -> None:
    change, expected = BROKEN[name]
    message = one_line_error(WeightsError, lambda: load(tmp_path / "model.npz", change(vit(pre_logits=16))))
    assert expected in message
    assert "model.npz" in message


def test_broken_hybrids_and_scanned_models_name_the_array(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    lacking = without("block2/unit1/gn2/bias")(hybrid((1, 2)))
    assert "lacks array 'block2/unit1/gn2/bias'" in one_line_error(WeightsError, lambda: load(path, lacking))
    narrow = hybrid((1,)) | {"conv_root/kernel": F32((7, 7, 3, 24))}
    assert "multiple of 32" in one_line_error(WeightsError, lambda: load(path, narrow))
    beyond = hybrid((1,)) | {"block1/unit1/conv4/kernel": F32((1, 1, 32, 32))}
    assert "'block1/unit1/conv4/kernel' belongs to" in one_line_error(WeightsError, lambda: load(path, beyond))
    key = "Transformer/encoderblock/LayerNorm_1/bias"
    short = scanned(vit()) | {key: F32((2, 24))}
    assert f"'{key}' has shape [2, 24], expected [3, 24]" in one_line_error(WeightsError, lambda: load(path, short))


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    mixer = {"stem/kernel": F32((4, 4, 3, 8)), "MixerBlock_0/LayerNorm_0/scale": F32(8)}
    assert "MLP-Mixer" in one_line_error(WeightsError, lambda: load(tmp_path / "mixer.npz", mixer))
    message = one_line_error(WeightsError, lambda: load(tmp_path / "other.npz", {"weights": F32(3), "bias": F32(1)}))
    assert "holds no ViT: looked for 'embedding/kernel'" in message
    assert message.endswith("found bias, weights")
    assert message.count("params/img/") == 1
    assert "found nothing" in one_line_error(WeightsError, lambda: load(tmp_path / "empty.npz", {}))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    spec = save(path, vit())
    whole = path.read_bytes()
    for content, expected in (
        (whole[: len(whole) // 2], "no complete .npz archive"),
        (b"", "it begins with b''"),
        (pickle.dumps({"a": 1}), "a pickle, which is never read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    ):
        path.write_bytes(content)
        message = one_line_error(WeightsError, lambda: load_backbone(spec, device="cpu"))
        assert expected in message
        assert "fetch" in message


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_arrays_are_refused(write: Callable[..., None], tmp_path: Path) -> None:
    path, kernel = tmp_path / "model.npz", vit()["embedding/kernel"]
    write(path, **vit())
    whole = bytearray(path.read_bytes())
    start = whole.index(b"embedding/kernel.npy") + 200
    whole[start : start + 64] = bytes(255 - byte for byte in whole[start : start + 64])
    path.write_bytes(whole)
    message = one_line_error(WeightsError, lambda: load_backbone(f"jax:{path}", device="cpu"))
    assert "is damaged at array 'embedding/kernel'" in message
    assert kernel.nbytes > 264


def test_missing_files_offer_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "holds no .npz or .jaxexport file" in one_line_error(WeightsError, lambda: load_backbone("jax:B_16.npz"))
    save(tmp_path / "B_16.npz", vit())
    assert load_backbone("jax:B_16.npz", device="cpu").input_size == (12, 12)
    assert "did you mean 'B_16.npz'?" in one_line_error(WeightsError, lambda: load_backbone("jax:B16.npz"))
    assert "did you mean 'B_16.npz'?" in one_line_error(WeightsError, lambda: load_backbone("jax:unlike.npz"))
    assert "no folder 'away'" in one_line_error(WeightsError, lambda: load_backbone("jax:away/B_16.npz"))
    (tmp_path / "folder.npz").mkdir()
    assert "is a folder" in one_line_error(WeightsError, lambda: load_backbone("jax:folder.npz"))


@pytest.mark.parametrize("name", ["model.bin", "model.msgpack", "gs://vit_models/B_16.npz", "https://host/B_16.npz"])
def test_only_local_npz_files_are_read(name: str) -> None:
    message = one_line_error(WeightsError, lambda: load_backbone(f"jax:{name}"))
    assert "only local .npz checkpoints and .jaxexport programs are read" in message
    assert "download" in message


@pytest.mark.parametrize("option", ["checkpoint=x.npz", "model.depth=3"])
def test_options_of_other_adapters_are_refused(option: str, tmp_path: Path) -> None:
    message = one_line_error(UsageError, lambda: load(tmp_path / "model.npz", vit(), f",{option}"))
    assert f"'{option.split('=')[0]}' does not apply" in message
    assert "names no file" in one_line_error(UsageError, lambda: load_backbone("jax:"))
