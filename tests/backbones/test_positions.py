from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import timm
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.models import vision_transformer

from vitbench.analysis.positions import Absolute, read_positions
from vitbench.backbones import hf_loading
from vitbench.backbones.base import Backbone
from vitbench.backbones.jax_vit import AttentionShape, JaxViTConfig
from vitbench.backbones.load import load_backbone
from vitbench.backbones.positions import resize_note, resize_positions, scipy_zeroes_the_edge
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError, WeightsError

Array = npt.NDArray[Any]
SIZE, PATCH, WIDTH = 32, 8, 24
HF = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": PATCH,
    "intermediate_size": 32,
}
FAMILIES: dict[str, tuple[Any, str]] = {
    "vit": (hf.ViTConfig(**HF), "ViTModel"),
    "deit": (hf.DeiTConfig(**HF), "DeiTModel"),
    "clip": (hf.CLIPVisionConfig(**HF), "CLIPVisionModel"),
    "siglip": (hf.SiglipVisionConfig(**HF), "SiglipVisionModel"),
    "dinov2": (hf.Dinov2Config(**HF), "Dinov2Model"),
    "registers": (hf.Dinov2WithRegistersConfig(**HF, num_register_tokens=3), "Dinov2WithRegistersModel"),
}


def align_corners(old: Array, grid: tuple[int, int]) -> Array:
    """Bilinear interpolation of `[h, w, D]` with the corners of both grids in the same places, cell by cell."""
    height, width = old.shape[:2]
    new = np.zeros((*grid, old.shape[2]))
    for i in range(grid[0]):
        for j in range(grid[1]):
            y = i * (height - 1) / (grid[0] - 1) if grid[0] > 1 else 0.0
            x = j * (width - 1) / (grid[1] - 1) if grid[1] > 1 else 0.0
            top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = old[top, left] * (1 - (x - left)) + old[top, right] * (x - left)
            lower = old[below, left] * (1 - (x - left)) + old[below, right] * (x - left)
            new[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return new


def square(rows: torch.Tensor) -> Array:
    side = round(len(rows) ** 0.5)
    return rows.double().numpy().reshape(side, side, -1)


def added(backbone: Backbone) -> Array:
    """The table as the model adds it to its patches."""
    table = read_positions(backbone)
    assert isinstance(table, Absolute)
    return table.table


def one_line(kind: type[Exception], make: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(spec: str, **options: Any) -> Backbone:
    return load_backbone(spec, device="cpu", **options)


def shaken(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    for name, (config, kind) in FAMILIES.items():
        with hf_loading.quiet():
            shaken(getattr(hf, kind)(config)).save_pretrained(root / name)
            hf.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture(scope="module")
def timm_vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("timm") / "vit.safetensors"
    options = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 1, "num_heads": 3}
    save_file(shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)).state_dict(), path)
    given = ",".join(f"model.{key}={value}" for key, value in options.items() if key != "img_size")
    return f"timm:vit_tiny_patch16_224,checkpoint={path},{given}", path


# The resize itself


@settings(max_examples=60, deadline=None)
@given(old=st.integers(1, 33), new=st.integers(1, 33), cls=st.booleans(), seed=st.integers(0, 2**16))
def test_positions_are_resized_as_scipy_zooms(old: int, new: int, cls: bool, seed: int) -> None:
    table = np.random.default_rng(seed).standard_normal((1, old**2 + cls, 2)).astype(np.float32)
    got = resize_positions(torch.from_numpy(table), new, cls).numpy()
    zoomed = scipy.ndimage.zoom(table[0, int(cls) :].reshape(old, old, 2), (new / old, new / old, 1), order=1)
    grid = got[0, int(cls) :].reshape(new, new, 2)
    sound = np.s_[:-1, :-1] if scipy_zeroes_the_edge(old, new) else np.s_[:, :]
    np.testing.assert_allclose(grid[sound], zoomed[sound], atol=1e-6)
    np.testing.assert_array_equal(got[:, : int(cls)], table[:, : int(cls)])


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("grid", [(24, 24), (5, 9), (1, 3), (14, 14)])
def test_bilinear_with_aligned_corners(grid: tuple[int, int], prefix: int) -> None:
    table = torch.randn(1, prefix + 14**2, 3, generator=torch.Generator().manual_seed(0))
    got = resize_positions(table, grid, prefix)
    assert got.dtype == torch.float32
    assert torch.equal(got[:, :prefix], table[:, :prefix])
    expected = align_corners(square(table[0, prefix:]), grid)
    np.testing.assert_allclose(got[0, prefix:].reshape(*grid, 3), expected, rtol=0, atol=1e-6)


def test_scipys_zeroed_edge_is_not_copied() -> None:
    assert scipy_zeroes_the_edge(8, 26)
    assert not scipy_zeroes_the_edge(14, 24)
    assert torch.equal(resize_positions(torch.ones(1, 64, 1), 26, 0), torch.ones(1, 26 * 26, 1))
    assert "rounding fault" in resize_note((8, 8), (26, 26))
    assert "rounding fault" not in resize_note((14, 14), (24, 24))


def test_a_table_that_is_no_square_is_refused() -> None:
    assert "no square grid" in one_line(WeightsError, lambda: resize_positions(torch.zeros(1, 7, 2), 3, 1))


# positions= in a spec


def test_the_spec_names_it() -> None:
    spec = parse_backbone_spec("hf:org/name,resolution=384,positions=jax")
    assert (spec.positions, spec.initialise) == ("jax", False)
    assert spec.long_label == "hf:org/name,resolution=384,positions=jax"
    assert parse_backbone_spec("hf:org/name").positions == ""
    message = one_line(UsageError, lambda: parse_backbone_spec("hf:org/name,positions=jaks"))
    assert "'jax'" in message
    assert "initialise" in one_line(UsageError, lambda: parse_backbone_spec("hf:org/name,initialise=true"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("side", [48, 16])
def test_hugging_face(name: str, side: int, folders: dict[str, Path]) -> None:
    plain = load(f"hf:{folders[name]}")
    library = load(f"hf:{folders[name]},resolution={side}")
    jax = load(f"hf:{folders[name]},resolution={side},positions=jax")
    expected = align_corners(added(plain), (side // PATCH,) * 2)
    np.testing.assert_allclose(added(jax), expected, rtol=0, atol=1e-6)
    assert np.abs(added(library) - expected).max() > 1e-2
    assert jax.architecture == f"{plain.architecture},positions=jax"
    assert library.architecture == plain.architecture
    assert jax.weights_digest != plain.weights_digest == library.weights_digest
    old, new = SIZE // PATCH, side // PATCH
    assert f"from {old}x{old} to {new}x{new} (bilinear, corners aligned" in "\n".join(jax.provenance_notes)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    got, other = (backbone.encode(pixels, ["gap"])["gap"] for backbone in (jax, library))
    assert got.shape == (2, WIDTH)
    assert not torch.allclose(got, other, atol=1e-4)


@pytest.mark.parametrize(("name", "rows"), [("vit", 1), ("deit", 2), ("clip", 1)])
def test_rows_of_other_tokens_are_kept(name: str, rows: int, folders: dict[str, Path]) -> None:
    plain, jax = (load(f"hf:{folders[name]}{options}") for options in ("", ",resolution=48,positions=jax"))
    tables = [
        next(value for key, value in backbone.modules[0].state_dict().items() if "position_embedding" in key)
        for backbone in (plain, jax)
    ]
    first, second = (table.reshape(-1, WIDTH)[:rows] for table in tables)
    assert torch.equal(first, second)


def test_everything_but_the_table_is_the_checkpoints(folders: dict[str, Path]) -> None:
    plain, jax = (load(f"hf:{folders['vit']}{options}") for options in ("", ",resolution=48,positions=jax"))
    own = plain.modules[0].state_dict()
    differing = [name for name, value in jax.modules[0].state_dict().items() if not torch.equal(value, own[name])]
    assert differing == ["embeddings.position_embeddings"]
    assert not any(parameter.requires_grad for parameter in jax.modules[0].parameters())
    assert not jax.modules[0].training


def test_at_the_models_own_size_nothing_differs(folders: dict[str, Path], timm_vit: tuple[str, Path]) -> None:
    for spec in (f"hf:{folders['vit']}", f"{timm_vit[0]},model.img_size={SIZE}"):
        plain, jax = load(spec), load(f"{spec},positions=jax")
        assert (jax.architecture, jax.weights_digest) == (plain.architecture, plain.weights_digest)


@pytest.mark.parametrize("side", [48, 16])
def test_timm(side: int, timm_vit: tuple[str, Path]) -> None:
    spec, path = timm_vit
    stored = load_file(path)["pos_embed"]
    library, jax = (load(f"{spec},resolution={side}{option}") for option in ("", ",positions=jax"))
    table = jax.modules[0].state_dict()["pos_embed"]
    assert torch.equal(table[:, :1], stored[:, :1])
    expected = align_corners(square(stored[0, 1:]), (side // PATCH,) * 2)
    np.testing.assert_allclose(square(table[0, 1:]), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(added(jax), expected, rtol=0, atol=1e-6)
    assert np.abs(added(library) - expected).max() > 1e-2
    assert jax.architecture == f"{library.architecture},positions=jax"
    notes = "\n".join(jax.provenance_notes)
    assert "(bilinear, corners aligned" in notes
    assert "pos_embed [" not in notes
    assert jax.encode(torch.zeros(1, 3, side, side), ["cls"])["cls"].shape == (1, WIDTH)


def test_timm_reading_a_jax_file_agrees_with_the_jax_adapter(tmp_path: Path) -> None:
    config = JaxViTConfig(24, 1, AttentionShape(3, 8, 96), PATCH, 4, cls=True, cls_has_position=True)
    arrays = _npz(config)
    np.savez(tmp_path / "vit.npz", **arrays)
    given = "model.patch_size=8,model.embed_dim=24,model.depth=1,model.num_heads=3"
    base = f"timm:vit_tiny_patch16_224,checkpoint={tmp_path / 'vit.npz'},{given}"
    jax = load(f"jax:{tmp_path / 'vit.npz'},resolution=48")
    aligned = load(f"{base},resolution=48,positions=jax")
    assert torch.allclose(jax.modules[0].pos_embedding, aligned.modules[0].pos_embed, atol=1e-6)  # type: ignore[arg-type]
    assert "without aligned corners" not in "\n".join(aligned.provenance_notes)
    library = load(f"{base},resolution=48")
    assert "without aligned corners" in "\n".join(library.provenance_notes)
    assert not torch.allclose(library.modules[0].pos_embed, aligned.modules[0].pos_embed, atol=1e-2)  # type: ignore[arg-type]
    assert (
        load(f"jax:{tmp_path / 'vit.npz'},positions=jax").architecture
        == load(f"jax:{tmp_path / 'vit.npz'}").architecture
    )
    message = one_line(UsageError, lambda: load(f"jax:{tmp_path / 'vit.npz'},positions=library"))
    assert "positions=jax" in message


def _npz(config: JaxViTConfig) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    width, heads, mlp, patch = config.width, config.block.heads, config.block.mlp, config.patch
    block = "Transformer/encoderblock_0/"
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (patch, patch, 3, width),
        "embedding/bias": (width,),
        "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, 1 + config.grid**2, width),
        f"{block}MlpBlock_3/Dense_0/kernel": (width, mlp),
        f"{block}MlpBlock_3/Dense_0/bias": (mlp,),
        f"{block}MlpBlock_3/Dense_1/kernel": (mlp, width),
        f"{block}MlpBlock_3/Dense_1/bias": (width,),
    }
    for norm in (f"{block}LayerNorm_0", f"{block}LayerNorm_2", "Transformer/encoder_norm"):
        shapes |= {f"{norm}/scale": (width,), f"{norm}/bias": (width,)}
    attention = f"{block}MultiHeadDotProductAttention_1/"
    for part in ("query", "key", "value"):
        shapes |= {f"{attention}{part}/kernel": (width, heads, width // heads)}
        shapes |= {f"{attention}{part}/bias": (heads, width // heads)}
    shapes |= {f"{attention}out/kernel": (heads, width // heads, width), f"{attention}out/bias": (width,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_timm_is_left_as_it_was(timm_vit: tuple[str, Path]) -> None:
    original = vision_transformer.resample_abs_pos_embed
    load(f"{timm_vit[0]},resolution=48,positions=jax")
    assert vision_transformer.resample_abs_pos_embed is original
    with pytest.raises(WeightsError):
        load(f"{timm_vit[0].replace(f'embed_dim={WIDTH}', 'embed_dim=48')},resolution=48,positions=jax")
    assert vision_transformer.resample_abs_pos_embed is original


@pytest.mark.parametrize(
    "spec",
    [
        "timm:resnet18",
        "timm:swin_tiny_patch4_window7_224",
        "timm:vit_tiny_patch16_224,model.dynamic_img_size=true",
        "timm:cait_xxs24_224",
    ],
)
def test_timm_models_without_such_a_table_are_refused(spec: str) -> None:
    message = one_line(UsageError, lambda: load(f"{spec},positions=jax", from_scratch=True))
    assert "drop" in message


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (hf.DINOv3ViTConfig(**HF), "rotary"),
        (hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIZE), "convolutional"),
        (
            hf.SwinConfig(image_size=SIZE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2),
            "windows",
        ),
    ],
)
def test_hugging_face_families_without_such_a_table_are_refused(config: Any, reason: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    assert reason in one_line(UsageError, lambda: load(f"hf:{tmp_path},positions=jax", from_scratch=True))


def test_images_that_are_not_square_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    hf.ViTImageProcessor(size={"height": SIZE, "width": 2 * SIZE}).save_pretrained(tmp_path)
    FAMILIES["dinov2"][0].save_pretrained(tmp_path)
    assert "square" in one_line(UsageError, lambda: load(f"hf:{tmp_path},positions=jax", from_scratch=True))


# The arguments of load_backbone


def test_the_caller_may_ask_for_what_the_spec_leaves_open(folders: dict[str, Path]) -> None:
    asked = load(f"hf:{folders['vit']}", resolution=48, positions="jax")
    written = load(f"hf:{folders['vit']},resolution=48,positions=jax")
    assert (asked.weights_digest, asked.architecture) == (written.weights_digest, written.architecture)
    assert load(f"hf:{folders['vit']},resolution=48", resolution=48).input_size == (48, 48)
    assert load("pixels", positions="library").architecture == "pixels"


@pytest.mark.parametrize(
    ("spec", "options", "part"),
    [
        (",resolution=48", {"resolution": 64}, "resolution=48, and resolution=64"),
        (",positions=jax", {"positions": "library"}, "positions=jax, and positions=library"),
        ("", {"positions": "Jax"}, "'jax'"),
        ("", {"resolution": 0}, "above 0"),
        ("", {"resolution": 44}, "40 or 48"),
    ],
)
def test_a_disagreement_or_a_value_that_cannot_be_meant(
    spec: str, options: dict[str, Any], part: str, folders: dict[str, Path]
) -> None:
    assert part in one_line(UsageError, lambda: load(f"hf:{folders['vit']}{spec}", **options))


@pytest.mark.parametrize("spec", ["pixels,positions=jax", "pixels,positions=library"])
def test_a_backbone_without_weights_has_no_positions(spec: str) -> None:
    assert "no position embeddings" in one_line(UsageError, lambda: load(spec))
