"""Conversions of real checkpoints: the ViT-Ti of the shared data, and JAX checkpoints with what Flax computes for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import vitbench
from vitbench.backbones.vit_convert import convert
from vitbench.backbones.vit_names import bit_equal, canonical_weights, configuration
from vitbench.tasks import transforms


@pytest.fixture(scope="module")
def pixels(test_data: Path) -> Tensor:
    """`[3, 3, 224, 224]`, real photographs."""
    split = vitbench.load_task(f"imagefolder:{test_data / 'images' / 'flowers12'}").split("test")
    prepare = transforms.parse("resize(224x224,bilinear)|normalize(0.5,0.5)")
    return prepare([split.image(row) for row in (0, 100, 200)])


@pytest.fixture(scope="module")
def chain(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hugging Face to timm, to the paper's npz, back to Hugging Face, and to big_vision's npz; the specs."""
    folder = tmp_path_factory.mktemp("chain")
    specs = {"hf": f"hf:{test_data / 'weights' / 'vit_tiny_hf'}"}
    steps = [("timm", "hf", "a.safetensors", ""), ("npz", "timm", "b.npz", ""), ("hf again", "npz", "c", "")]
    for name, source, target, form in [*steps, ("bigvision", "npz", "d.npz", "npz-bigvision")]:
        specs[name] = convert(specs[source], folder / target, form).spec
    return specs


def features(spec: str, pixels: Tensor) -> dict[str, Tensor]:
    return vitbench.load_backbone(spec, device="cpu").encode(pixels, ["cls", "gap"])


def largest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_every_tensor_is_exact_to_the_bit_all_the_way_round(test_data: Path, chain: dict[str, str]) -> None:
    weights = test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    expected = canonical_weights(
        vitbench.load_backbone(f"timm:vit_tiny_patch16_224,checkpoint={weights}", device="cpu")
    )
    for name, spec in chain.items():
        found = canonical_weights(vitbench.load_backbone(spec, device="cpu"))
        assert found.keys() == expected.keys(), name
        assert all(bit_equal(found[key], expected[key]) for key in expected), name
    original = {name: value.float() for name, value in load_file(weights).items()}
    written = load_file(chain["timm"].partition("checkpoint=")[2].partition(",")[0])
    assert original.keys() == written.keys()
    assert all(torch.equal(original[name], written[name]) for name in original)


def test_features_are_equal_where_eps_and_gelu_are_carried(chain: dict[str, str], pixels: Tensor) -> None:
    found = {name: features(spec, pixels) for name, spec in chain.items()}
    assert largest(found["hf"], found["timm"]) < 1e-5
    assert largest(found["npz"], found["hf again"]) < 1e-5
    assert largest(found["npz"], found["bigvision"]) < 1e-5
    assert 1e-4 < largest(found["timm"], found["npz"]) < 0.1  # JAX's GELU is the tanh approximation
    gelu = {name: configuration(vitbench.load_backbone(spec, device="cpu"))["gelu"] for name, spec in chain.items()}
    assert gelu == {"hf": "erf", "timm": "erf", "npz": "tanh", "hf again": "tanh", "bigvision": "tanh"}


def test_the_classifier_and_its_labels_go_along(
    test_data: Path, chain: dict[str, str], pixels: Tensor, tmp_path: Path
) -> None:
    source = test_data / "weights" / "vit_tiny_hf"
    done = convert(chain["timm"], tmp_path / "again")
    auto = transformers.AutoModelForImageClassification
    models = [auto.from_pretrained(path, dtype=torch.float32).eval() for path in (source, done.path)]
    with torch.inference_mode():
        assert float((models[0](pixels).logits - models[1](pixels).logits).abs().max()) < 1e-5
    labels = json.loads((source / "config.json").read_text())["id2label"]
    assert {str(key): value for key, value in models[1].config.id2label.items()} == labels
    assert done.spec == f"hf:{tmp_path / 'again'}"  # the same preprocessing, in its own file


@pytest.mark.parametrize("name", ["paper_pre_logits", "paper_augreg", "bigvision_tok", "bigvision_map"])
def test_converted_jax_checkpoints_compute_what_flax_computes(test_data: Path, name: str, tmp_path: Path) -> None:
    source = f"jax:{test_data / 'jax_vit' / f'{name}.npz'}"
    with np.load(test_data / "jax_vit" / f"{name}.expected.npz") as arrays:
        expected = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    pixels = expected["pixels"].permute(0, 3, 1, 2)
    keep = name == "paper_pre_logits"
    targets = ["x.safetensors", "x.npz"] + (["x"] if name != "bigvision_map" else [])
    for target in targets:
        form = "npz-bigvision" if target == "x.npz" else ""
        done = convert(source, tmp_path / target, form, keep_pooler=keep)
        backbone = vitbench.load_backbone(done.spec, device="cpu")
        names = [key for key in ("cls", "gap", "pooler") if key in expected and key in backbone.available()]
        assert "cls" in names or name == "bigvision_map"
        assert ("pooler" in names) is (keep or name == "bigvision_map" or ("pooler" in expected and target != "x"))
        found = backbone.encode(pixels, names)
        for key in names:
            assert torch.allclose(found[key], expected[key], atol=1e-4), (target, key)
        assert configuration(backbone)["gelu"] == "tanh"


@pytest.mark.parametrize("name", ["paper_pre_logits", "paper_augreg"])
def test_a_jax_file_comes_back_array_by_array(test_data: Path, name: str, tmp_path: Path) -> None:
    path = test_data / "jax_vit" / f"{name}.npz"
    spec = convert(f"jax:{path}", tmp_path / "x.safetensors", keep_pooler=name == "paper_pre_logits").spec
    done = convert(spec, tmp_path / "x.npz")
    assert done.spec == f"jax:{tmp_path / 'x.npz'}"
    with np.load(path) as ours, np.load(done.path) as theirs:
        assert set(ours.files) == set(theirs.files)
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours.files)
