from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
import transformers as hf
from torch import Tensor

from vitbench.backbones import from_scratch
from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError, WeightsError
from vitbench.features.load import load_backbone

SIZE, WIDTH = 32, 24
HF = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": SIZE,
    "patch_size": 4,
}
TIMM = f"model.img_size={SIZE},model.embed_dim={WIDTH},model.depth=2,model.num_heads=3"
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
CONFIGS = {
    "vit": hf.ViTConfig(**HF),
    "deit": hf.DeiTConfig(**HF),
    "dinov2": hf.Dinov2Config(**HF),
    "dinov3": hf.DINOv3ViTConfig(**HF),
    "clip": hf.CLIPVisionConfig(**HF),
    "siglip": hf.SiglipVisionConfig(**HF),
    "swin": hf.SwinConfig(image_size=SIZE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2),
    "convnext": hf.ConvNextConfig(**STAGES, num_stages=2, image_size=SIZE),
    "resnet": hf.ResNetConfig(**STAGES, embedding_size=8),
}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """A folder with a config and an image processor, and no weights."""

    def make(name: str) -> Path:
        CONFIGS[name].save_pretrained(tmp_path / name)
        hf.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def npz(tmp_path: Path) -> str:
    """A JAX checkpoint of zeros: only its shapes are of use."""
    block, width = "Transformer/encoderblock_0/", WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (8, 8, 3, width),
        "embedding/bias": (width,),
        "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, 17, width),
        f"{block}MlpBlock_3/Dense_0/kernel": (width, 40),
        f"{block}MlpBlock_3/Dense_0/bias": (40,),
        f"{block}MlpBlock_3/Dense_1/kernel": (40, width),
        f"{block}MlpBlock_3/Dense_1/bias": (width,),
        "pre_logits/kernel": (width, 12),
        "pre_logits/bias": (12,),
    }
    for norm in (f"{block}LayerNorm_0", f"{block}LayerNorm_2", "Transformer/encoder_norm"):
        shapes |= {f"{norm}/scale": (width,), f"{norm}/bias": (width,)}
    for part in ("query", "key", "value"):
        key = f"{block}MultiHeadDotProductAttention_1/{part}"
        shapes |= {f"{key}/kernel": (width, 3, 8), f"{key}/bias": (3, 8)}
    out = f"{block}MultiHeadDotProductAttention_1/out"
    shapes |= {f"{out}/kernel": (3, 8, width), f"{out}/bias": (width,)}
    np.savez(tmp_path / "vit.npz", **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    return f"jax:{tmp_path / 'vit.npz'}"


def scratch(spec: str, **options: Any) -> Backbone:
    return load_backbone(spec, device="cpu", from_scratch=True, **options)


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.modules[0].state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numpy_state() -> npt.NDArray[Any]:
    state: Any = np.random.get_state()  # noqa: NPY002  the global generator is what is looked after here
    return np.array(state[1])


def check(backbone: Backbone) -> None:
    """What holds for every backbone that is to be trained from scratch."""
    assert backbone.weights_digest == from_scratch.WEIGHTS_DIGEST
    assert from_scratch.NOTE in backbone.provenance_notes
    assert "untrained" not in {item.provenance for item in backbone.representations.values()}
    states = torch.random.get_rng_state(), numpy_state(), random.getstate()
    module = backbone.modules[0]
    before = [(parameter, parameter.data_ptr()) for parameter in module.parameters()]
    at_load = weights(backbone)
    backbone.initialise(1)
    first = weights(backbone)
    backbone.initialise(2)
    second = weights(backbone)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    backbone.initialise(1)
    assert same(weights(backbone), first), "a seed decides every weight"
    backbone.initialise(from_scratch.FIRST_SEED)
    assert same(weights(backbone), at_load)
    drawn = {
        name for name, value in first.items() if value.is_floating_point() and value.numel() > 1 and value.std() > 0
    }
    assert any("weight" in name for name in drawn)
    constant = {name for name in drawn if torch.equal(first[name], second[name])}
    assert not {name for name in constant if first[name].std() > 1e-4}, "another seed, other weights"
    for parameter, (old, address) in zip(module.parameters(), before, strict=True):
        assert parameter is old
        assert parameter.data_ptr() == address
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(numpy_state(), states[1])
    assert random.getstate() == states[2]
    pixels = torch.randn(2, 3, *backbone.input_size, generator=torch.Generator().manual_seed(0))
    module.requires_grad_(True)
    for name in backbone.available():
        vector = backbone.differentiable(pixels, name)
        assert vector.shape == (2, backbone.dim(name))
        assert vector.isfinite().all()
        vector.square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_hugging_face(name: str, folder: Callable[[str], Path]) -> None:
    options = ",preprocess=resize(32x32,bilinear)|normalize(0.5,0.5)" if name == "convnext" else ""
    backbone = scratch(f"hf:{folder(name)}{options}")
    check(backbone)
    assert backbone.input_size == (SIZE, SIZE)


def test_a_vits_three_representations_are_trained(folder: Callable[[str], Path]) -> None:
    backbone = scratch(f"hf:{folder('vit')}")
    assert backbone.available() == ["cls", "gap", "pooler"]
    assert backbone.alias_of("pooler") is None
    assert backbone.provenance("pooler") == "trained"
    backbone.initialise(3)
    table = backbone.modules[0].state_dict()["embeddings.position_embeddings"]
    assert table.std() == pytest.approx(CONFIGS["vit"].initializer_range, rel=0.1)


def test_hugging_faces_own_scheme(folder: Callable[[str], Path]) -> None:
    backbone = scratch(f"hf:{folder('vit')}")
    backbone.initialise(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = hf.ViTModel(CONFIGS["vit"])
    assert same(weights(backbone), model.state_dict())


def test_a_model_is_built_for_the_resolution_asked_for(folder: Callable[[str], Path]) -> None:
    vit = folder("vit")
    own, larger = scratch(f"hf:{vit}"), scratch(f"hf:{vit}", resolution=48)
    assert larger.modules[0].state_dict()["embeddings.position_embeddings"].shape == (1, 1 + 12**2, WIDTH)
    assert larger.architecture != own.architecture
    assert "resized" not in "\n".join(larger.provenance_notes)
    check(larger)
    aligned = scratch(f"hf:{vit}", resolution=48, positions="jax")
    assert aligned.architecture == larger.architecture
    vit_timm = scratch(f"timm:vit_tiny_patch16_224,{TIMM}".replace(f"model.img_size={SIZE},", ""), resolution=48)
    assert vit_timm.modules[0].state_dict()["pos_embed"].shape == (1, 1 + 3**2, WIDTH)


@pytest.mark.parametrize(
    "spec",
    [
        f"timm:vit_tiny_patch16_224,{TIMM}",
        f"timm:vit_tiny_patch16_224.augreg_in21k,{TIMM},model.weight_init=jax",
        f"timm:vit_base_patch16_siglip_224,{TIMM}",
        f"timm:deit_tiny_distilled_patch16_224,{TIMM}",
        "timm:resnet10t,resolution=64",
        "timm:convnext_atto,resolution=64",
    ],
)
def test_timm(spec: str) -> None:
    check(scratch(spec))


def test_timm_folder_without_weights(tmp_path: Path) -> None:
    given = {"img_size": SIZE, "embed_dim": WIDTH, "depth": 2, "num_heads": 3}
    pixels = {"input_size": [3, SIZE, SIZE], "mean": [0.5] * 3, "std": [0.5] * 3, "classifier": "head"}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": given,
        "pretrained_cfg": pixels | {"fixed_input_size": True, "first_conv": "patch_embed.proj"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError):
        load_backbone(f"timm:local-dir:{tmp_path}", device="cpu")
    backbone = scratch(f"timm:local-dir:{tmp_path}")
    check(backbone)
    assert backbone.input_size == (SIZE, SIZE)


def test_timms_own_scheme() -> None:
    backbone = scratch(f"timm:vit_tiny_patch16_224,{TIMM}")
    backbone.initialise(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, embed_dim=WIDTH, depth=2, num_heads=3)
    own = weights(backbone)
    assert own.keys() == {name for name in model.state_dict() if not name.startswith("head.")}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in own.items())


def test_jax(npz: str) -> None:
    backbone = scratch(npz)
    check(backbone)
    assert backbone.available() == ["cls", "gap", "pooler"]
    assert scratch(f"{npz},resolution=64").modules[0].state_dict()["pos_embedding"].shape == (1, 1 + 8**2, WIDTH)
    assert "resized" not in "\n".join(scratch(f"{npz},resolution=64").provenance_notes)


def test_a_loaded_model_is_not_overwritten(tiny_vit: str) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    with pytest.raises(UsageError, match="from_scratch"):
        backbone.initialise(0)


def test_weights_are_not_asked_for(tiny_vit: str) -> None:
    with pytest.raises(UsageError, match="drop checkpoint="):
        scratch(tiny_vit)


def test_pixels_have_no_weights() -> None:
    with pytest.raises(UsageError, match="cannot be trained from scratch"):
        scratch("pixels")
    with pytest.raises(UsageError, match="cannot be trained from scratch"):
        load_backbone("pixels").initialise(0)


@pytest.mark.parametrize("spec", ["hf:{folder}", "timm:vit_tiny_patch16_224,{options}"])
def test_a_folder_or_model_without_weights_is_not_scored(spec: str, folder: Callable[[str], Path]) -> None:
    with pytest.raises(WeightsError) as caught:
        load_backbone(spec.format(folder=folder("vit"), options=TIMM), device="cpu")
    assert "\n" not in str(caught.value)


def test_the_seeds_of_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with from_scratch.seeded(3):
        drawn = torch.rand(4)
    assert not seeds
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))
