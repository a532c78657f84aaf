"""Parity on copies of tiny models, each made to differ in one known way."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessor, ViTModel

from tests.conftest import ImageFolderMaker
from vitbench.analysis.base import images_of_folder
from vitbench.analysis.parity import Pair, parity
from vitbench.analysis.parity_activations import block_outputs, find_blocks
from vitbench.analysis.parity_report import as_dict, sections
from vitbench.analysis.parity_scores import Scoring
from vitbench.analysis.parity_weights import compare_weights, find_resize
from vitbench.backbones.load import load_backbone
from vitbench.backbones.pixels import PixelsBackbone
from vitbench.errors import UsageError, WeightsError

OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 5, "num_heads": 3}
PREPROCESS = "resize(32x32,bilinear)|normalize(0.5,0.5)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity")
    torch.manual_seed(0)
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS).state_dict()
    save_file(
        {name: tensor + 0.2 * torch.randn_like(tensor) for name, tensor in weights.items()}, path / "vit.safetensors"
    )
    return path


def spec(path: Path, **changes: object) -> str:
    options = OPTIONS | changes
    given = ",".join(f"model.{name}={value}" for name, value in options.items())
    return f"timm:vit_tiny_patch16_224,checkpoint={path},preprocess={PREPROCESS},{given}"


def edited(folder: Path, name: str, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    weights = load_file(folder / "vit.safetensors")
    edit(weights)
    save_file(weights, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def compare(one: str, other: str) -> Pair:
    (pair,) = parity([one, other])
    return pair


@functools.cache
def hf_model() -> ViTModel:
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=32, patch_size=8
    )
    model = ViTModel(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def hf_copy(folder: Path, **changes: object) -> str:
    """The Hugging Face model saved with another config; `pooler=False` leaves the pooler out."""
    pooler = bool(changes.pop("pooler", True))
    config = ViTConfig.from_dict(hf_model().config.to_dict() | changes)
    model = ViTModel(config, add_pooling_layer=pooler)
    model.load_state_dict(hf_model().state_dict(), strict=pooler)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def test_a_copy_is_identical(folder: Path) -> None:
    pair = compare(spec(folder / "vit.safetensors"), spec(edited(folder, "copy", lambda weights: None)))
    assert (pair.outcome, pair.verdict, pair.first) == ("identical", "identical", "")
    assert pair.activations is not None
    assert [item.name for item in pair.activations.layers] == [f"@{layer}" for layer in range(6)]
    assert pair.activations.worst == 0
    assert {item.name for item in pair.activations.finals} == {"cls", "gap", "pooler"}
    assert list(pair.causes) == ["nothing differs"]


def test_a_swapped_gelu_is_named_and_undone(folder: Path) -> None:
    pair = compare(spec(folder / "vit.safetensors"), spec(folder / "vit.safetensors", act_layer="gelu_tanh"))
    assert pair.verdict == "same weights, different configuration (gelu)"
    assert pair.first == "@1"
    assert pair.activations is not None
    assert pair.activations.layers[0].largest == 0
    (trial,) = pair.trials
    assert trial.fields == ("gelu",)
    assert trial.remaining < 1e-6 < 1e-5 < pair.activations.worst
    assert any("gelu is erf in A and tanh in B" in line for line in pair.causes)


def test_a_changed_eps_is_named_and_undone(tmp_path: Path) -> None:
    pair = compare(hf_copy(tmp_path / "a"), hf_copy(tmp_path / "b", layer_norm_eps=1e-3))
    assert pair.verdict == "same weights, different configuration (eps)"
    assert pair.first == "@1"
    assert [trial.fields for trial in pair.trials] == [("eps",)]
    assert pair.trials[0].remaining == 0
    assert "eps is 1e-12 in A and 0.001 in B: it acts from the first LayerNorm on" in pair.causes


def test_gelu_and_eps_are_told_apart_by_trial(tmp_path: Path) -> None:
    one, other = hf_copy(tmp_path / "a"), hf_copy(tmp_path / "b", layer_norm_eps=1e-4, hidden_act="gelu_pytorch_tanh")
    pair = compare(one, other)
    assert pair.verdict == "same weights, different configuration (gelu, eps)"
    remaining = {trial.fields: trial.remaining for trial in pair.trials}
    assert remaining["gelu", "eps"] < 1e-6
    assert min(remaining["gelu",], remaining["eps",]) > 1e-6
    # What a trial changes is put back.
    backbone = load_backbone(other, device="cpu")
    pixels = torch.rand(1, 3, 32, 32)
    before = backbone.encode(pixels, ["cls"])["cls"]
    assert torch.equal(before, load_backbone(other, device="cpu").encode(pixels, ["cls"])["cls"])


def test_one_perturbed_tensor_in_block_3_is_named_and_its_layer_is_the_first_that_diverges(folder: Path) -> None:
    def perturb(weights: dict[str, Tensor]) -> None:
        weights["blocks.3.mlp.fc1.weight"][5, 7] += 0.5

    pair = compare(spec(folder / "vit.safetensors"), spec(edited(folder, "block3", perturb)))
    assert (pair.outcome, pair.verdict) == ("weights", "different weights (1 tensor)")
    assert pair.weights is not None
    (tensor,) = pair.weights.different
    assert tensor.name == "blocks.3.mlp.fc1.weight"
    assert tensor.largest == pytest.approx(0.5)
    assert pair.first == "@4"  # the output of blocks.3
    assert pair.activations is not None
    assert [item.largest for item in pair.activations.layers[:4]] == [0, 0, 0, 0]
    assert pair.causes[0].startswith(
        "weights differ first in blocks.3 (its output is layer @4): blocks.3.mlp.fc1.weight"
    )
    assert pair.causes[0].endswith("and there the activations part")


def test_one_third_of_a_fused_qkv_is_one_tensor(folder: Path) -> None:
    def perturb(weights: dict[str, Tensor]) -> None:
        weights["blocks.1.attn.qkv.weight"][24:48] *= 2  # the keys

    pair = compare(spec(folder / "vit.safetensors"), spec(edited(folder, "keys", perturb)))
    assert pair.weights is not None
    assert pair.weights.changed == ["blocks.1.attn.k.weight"]
    assert pair.first == "@2"


def test_a_difference_too_small_to_matter_is_said_to_be(folder: Path) -> None:
    def perturb(weights: dict[str, Tensor]) -> None:
        weights["blocks.2.mlp.fc2.bias"][0] += 1e-7

    pair = compare(spec(folder / "vit.safetensors"), spec(edited(folder, "tiny", perturb)))
    assert pair.outcome == "weights"
    assert pair.first == ""
    assert "which moves no activation beyond the tolerance" in pair.causes[0]


def test_a_missing_pooler_is_a_missing_part_and_not_a_weight(tmp_path: Path) -> None:
    pair = compare(hf_copy(tmp_path / "a"), hf_copy(tmp_path / "b", pooler=False))
    assert pair.verdict == "same weights, different configuration (pooler)"
    assert pair.weights is not None
    assert pair.weights.only_a == {"pooler": 2}
    assert pair.weights.only_b == {}
    assert pair.activations is not None
    assert [item.name for item in pair.activations.finals] == ["cls", "gap"]
    assert any(item.field == "pooler" and (item.a, item.b) == ("trained", "untrained") for item in pair.fields)
    assert any(line.startswith("B lacks pooler") for line in pair.causes)
    back = compare(f"hf:{tmp_path / 'b'}", f"hf:{tmp_path / 'a'}")
    assert back.verdict == pair.verdict
    assert back.weights is not None
    assert back.weights.only_b == {"pooler": 2}


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("bicubic, antialiased, as timm", {"mode": "bicubic", "antialias": True}),
        ("bilinear with corners aligned, as the JAX code", {"mode": "bilinear", "align_corners": True}),
    ],
)
def test_a_resized_position_embedding_is_explained(folder: Path, how: str, options: dict[str, object]) -> None:
    def resize(weights: dict[str, Tensor]) -> None:
        cls, grid = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        larger = functional.interpolate(grid, size=(6, 6), **options)  # type: ignore[arg-type]
        weights["pos_embed"] = torch.cat([cls, larger.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    there = spec(edited(folder, "resized", resize), img_size=48).replace("32x32", "48x48")
    pair = compare(spec(folder / "vit.safetensors"), there)
    assert pair.outcome == "configuration"
    assert pair.verdict.startswith("same weights, different configuration (resized position embedding, ")
    assert pair.weights is not None
    assert pair.weights.resized is not None
    assert (pair.weights.resized.a, pair.weights.resized.b, pair.weights.resized.how) == (4, 6, how)
    assert pair.weights.changed == []
    assert pair.activations is None
    assert "got 32x32" in pair.note
    assert "resized position embedding (4x4 in A, 6x6 in B" in pair.causes[0]


def test_a_table_stored_at_another_size_and_resized_back_at_load_is_the_same_table(folder: Path) -> None:
    def at_six(weights: dict[str, Tensor]) -> None:
        prefix, table = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
        grid = table.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        larger = functional.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True, align_corners=False)
        weights["pos_embed"] = torch.cat([prefix, larger.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    pair = compare(spec(folder / "vit.safetensors"), spec(edited(folder, "six", at_six)))
    assert pair.outcome == "configuration"
    assert pair.verdict.startswith("same weights, different configuration (resized position embedding")
    assert any(
        "stored at 6x6 (bicubic, antialiased, as timm), and resized back at load" in cause for cause in pair.causes
    )

    def noise(weights: dict[str, Tensor]) -> None:
        at_six(weights)
        weights["pos_embed"][:, 1:] += 0.1 * torch.randn_like(weights["pos_embed"][:, 1:])

    other = compare(spec(folder / "vit.safetensors"), spec(edited(folder, "noise", noise)))
    assert other.verdict == "different weights (1 tensor)"


def test_a_cause_that_cannot_be_tried_is_said_to_be_inferred(folder: Path) -> None:
    pair = compare(spec(folder / "vit.safetensors"), spec(folder / "vit.safetensors", num_heads=2))
    assert any(
        cause == "inferred, not measured: heads cannot be made equal in the loaded models" for cause in pair.causes
    )


def test_another_table_of_another_size_is_another_weight(folder: Path) -> None:
    def replace(weights: dict[str, Tensor]) -> None:
        weights["pos_embed"] = torch.randn(1, 37, 24, generator=torch.Generator().manual_seed(0))

    pair = compare(
        spec(folder / "vit.safetensors"), spec(edited(folder, "other", replace), img_size=48).replace("32x32", "48x48")
    )
    assert pair.outcome == "weights"
    assert pair.weights is not None
    assert [(item.name, item.a[1], item.b[1]) for item in pair.weights.shapes] == [("pos_embed", 16, 36)]


def test_preprocessing_alone(folder: Path, image_folder: ImageFolderMaker) -> None:
    path = folder / "vit.safetensors"
    images = images_of_folder(image_folder(), 5)
    (pair,) = parity([spec(path), spec(path).replace("0.5,0.5", "0.4,0.2")], images, source="shoes")
    assert pair.verdict == "same weights, different configuration (preprocessing)"
    assert pair.activations is not None
    assert pair.activations.worst == 0
    assert "5 images of shoes" in pair.activations.pixels
    assert pair.preparation is not None
    # (x - 0.4) / 0.2 - (x - 0.5) / 0.5 = 3x - 1, at most 2 for x = 1.
    assert pair.preparation.largest == pytest.approx(2, abs=0.2)
    assert pair.preparation.cosines["cls"] < 1 - 1e-6
    assert pair.first == ""
    assert "each prepares images in its own way" in pair.causes[-1]


def test_different_architectures_say_how(folder: Path, tiny_vit: str) -> None:
    pair = compare(spec(folder / "vit.safetensors"), tiny_vit)
    assert pair.outcome == "architecture"
    assert pair.verdict == "different architectures (depth 5 against 2, patch_size 8x8 against 16x16)"
    assert pair.weights is None
    assert pair.activations is None


def test_other_heads_on_equal_weights_are_configuration(folder: Path) -> None:
    pair = compare(spec(folder / "vit.safetensors"), spec(folder / "vit.safetensors", num_heads=4))
    assert pair.verdict == "same weights, different configuration (heads)"
    assert pair.first == "@1"


def test_a_vit_is_no_cnn(folder: Path) -> None:
    pair = compare(spec(folder / "vit.safetensors"), "pixels")
    assert pair.verdict == "different architectures (VisionTransformer against pixels)"


def cnn(
    folder: Path, name: str, edit: Callable[[dict[str, Tensor]], None] = lambda weights: None, model: str = ""
) -> str:
    torch.manual_seed(0)
    model = model or "mobilenetv2_035"
    weights = timm.create_model(model, num_classes=0).state_dict()
    edit(weights)
    save_file(weights, folder / f"{name}.safetensors")
    preprocess = PREPROCESS.replace("32x32", "64x64")
    return f"timm:{model},checkpoint={folder / name}.safetensors,resolution=64,preprocess={preprocess}"


def test_cnns_of_one_library_are_compared_by_name(folder: Path) -> None:
    def perturb(weights: dict[str, Tensor]) -> None:
        weights["blocks.3.1.conv_pw.weight"] += 0.1

    one, other = cnn(folder, "cnn"), cnn(folder, "cnn_edited", perturb)
    assert compare(one, one).verdict == "identical"
    pair = compare(one, other)
    assert pair.verdict == "different weights (1 tensor)"
    assert pair.weights is not None
    assert pair.weights.first == "blocks.3.1.conv_pw.weight"
    assert pair.activations is not None
    assert pair.first == "gap@4"
    assert pair.activations.layers[0].name == "gap@1"
    padded = compare(one, f"{one},model.pad_type=same")
    assert padded.verdict == "same weights, different configuration (architecture)"
    assert padded.first == "gap@1"
    assert padded.causes[0].startswith(
        "architecture is timm:mobilenetv2_035 in A and timm:mobilenetv2_035(pad_type=same)"
    )
    different = compare(one, cnn(folder, "wider", model="mobilenetv2_050"))
    assert different.verdict == "different architectures (timm:mobilenetv2_035 against timm:mobilenetv2_050)"


def test_cnns_of_two_libraries_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no common names for their tensors; give two of one library") as caught:
        compare(cnn(folder, "cnn"), f"hf:{tmp_path},preprocess=resize(64x64,bilinear)|normalize(0.5,0.5),resolution=64")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_and_a_lone_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_text("not a checkpoint")
    with pytest.raises(WeightsError):
        compare(spec(folder / "vit.safetensors"), spec(tmp_path / "notes.safetensors"))
    with pytest.raises(UsageError, match="two specs or more"):
        parity([spec(folder / "vit.safetensors")])
    with pytest.raises(UsageError, match="tolerance"):
        parity(["pixels", "pixels"], tolerance=2)


def test_scores_of_both_and_a_task_that_does_not_exist(tiny_vit: str) -> None:
    scoring = Scoring(("builtin/digits",), shots=(1,), seeds=1, limit=40)
    (pair,) = parity([tiny_vit, f"{tiny_vit},model.act_layer=gelu_tanh"], scoring=scoring)
    assert {(item.task, item.representation, item.shot) for item in pair.scores} >= {("builtin/digits", "cls", 1)}
    assert all(0 <= item.a <= 1 and abs(item.a - item.b) < 0.2 for item in pair.scores)
    assert pair.unscored == []
    with pytest.raises(UsageError, match="did you mean"):
        parity([tiny_vit, tiny_vit], scoring=Scoring(("builtin/digit",)))


def test_the_reports_end_in_the_verdict_and_the_json_is_finite(folder: Path) -> None:
    def spoil(weights: dict[str, Tensor]) -> None:
        weights["norm.bias"][0] = float("inf")

    pair = compare(spec(folder / "vit.safetensors"), spec(edited(folder, "infinite", spoil)))
    assert pair.verdict == "different weights (1 tensor)"
    assert pair.first == "cls"
    report = sections(pair, 1e-5)
    assert (report[-1].heading, report[-1].lines) == ("verdict", [pair.verdict])
    record = as_dict([pair], 1e-5)["pairs"][0]
    assert record["weights"]["different"][0]["largest"] is None
    assert record["activations"]["finals"][0]["relative"] is None
    json.dumps(record, allow_nan=False)


def test_what_is_no_number_is_a_difference() -> None:
    (item,) = compare_weights({"w": torch.ones(2)}, {"w": torch.tensor([1.0, float("nan")])}).different
    assert (item.largest, item.note) == (float("inf"), "not all elements are numbers")


def test_half_precision_copies_are_recognised() -> None:
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    (item,) = compare_weights({"w": values}, {"w": values.half().float()}).different
    assert item.note == "B is A rounded to float16"
    (item,) = compare_weights({"w": values.bfloat16().float()}, {"w": values}).different
    assert item.note == "A is B rounded to bfloat16"


@given(st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_every_tensor_is_counted_once(changed: set[int], lacking_a: set[int], lacking_b: set[int]) -> None:
    names = [f"blocks.{index}.norm1.weight" for index in range(8)]
    a = {name: torch.ones(3) for index, name in enumerate(names) if index not in lacking_a}
    b = {name: torch.ones(3) * (1 + (index in changed)) for index, name in enumerate(names) if index not in lacking_b}
    weights = compare_weights(a, b)
    shared = set(range(8)) - lacking_a - lacking_b
    assert weights.compared == len(shared)
    assert weights.equal == len(shared - changed)
    assert {item.name for item in weights.different} == {names[index] for index in shared & changed}
    assert weights.first == (names[min(shared & changed)] if shared & changed else "")
    assert set(weights.only_a) == {f"blocks.{index}" for index in lacking_b - lacking_a}
    assert set(weights.only_b) == {f"blocks.{index}" for index in lacking_a - lacking_b}


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(2, 7), st.booleans(), st.integers(0, 99))
def test_a_resize_is_found_in_either_direction_and_never_in_noise(
    old: int, new: int, antialias: bool, seed: int
) -> None:
    if old == new:
        return
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(1, 8, old, old, generator=generator)
    resized = functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=antialias)
    one, other = (table.permute(0, 2, 3, 1).flatten(1, 2) for table in (grid, resized))
    for a, b, sides in ((one, other, (old, new)), (other, one, (new, old))):
        found = find_resize(a, b)
        assert found is not None
        assert (found.a, found.b) == sides
    assert find_resize(one, torch.randn(1, new * new, 8, generator=generator)) is None


def test_layers_are_the_blocks_outputs(tiny_vit: str) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    blocks = find_blocks(backbone)
    assert blocks is not None
    pixels = torch.rand(2, 3, 32, 32)
    with block_outputs(blocks) as layers:
        features = backbone.encode(pixels, ["cls", "cls@0", "cls@1"])
    norm = backbone.modules[0].norm
    for layer, name in ((0, "cls@0"), (1, "cls@1"), (2, "cls")):
        assert torch.equal(norm(layers[layer])[:, 0], features[name])
    assert not blocks[0]._forward_hooks
    assert not blocks[0]._forward_pre_hooks


def test_a_program_without_visible_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PixelsBackbone, "is_floor", False)
    with pytest.raises(UsageError, match="a program whose weights cannot be seen"):
        compare("pixels", "pixels")
