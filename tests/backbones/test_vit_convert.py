"""Conversions between the formats: exact weights, equal features, and plain words where something is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.backbones.test_vit_names import hf_spec, load, python_options, timm_spec
from vitbench.backbones import vit_convert
from vitbench.backbones.hf_preprocessing import image_preprocessing
from vitbench.backbones.vit_convert import Conversion, choose_format, convert, image_processor
from vitbench.backbones.vit_export import timm_model
from vitbench.backbones.vit_names import bit_equal, canonical_weights, configuration, stored_weights
from vitbench.errors import StoreError, UsageError, VitbenchError, WeightsError
from vitbench.records.atomic import TEMPORARY_PREFIX

TARGETS = {"hf": "folder", "timm": "file.safetensors", "npz": "paper.npz", "npz-bigvision": "bigvision.npz"}
TANH = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 40}


def to(form: str, spec: str, folder: Path, **options: Any) -> Conversion:
    folder.mkdir(exist_ok=True)
    return convert(spec, folder / TARGETS[form], form, **options)


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(bit_equal(one[name], other[name]) for name in one)


def distance(one: str, other: str, names: tuple[str, ...] = ("cls", "gap")) -> float:
    first, second = load(one), load(other)
    pixels = torch.randn(2, 3, *first.input_size, generator=torch.Generator().manual_seed(2))
    names = tuple(name for name in names if name in first.available())
    ours, theirs = first.encode(pixels, names), second.encode(pixels, names)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in names)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One ViT, tanh GELU and eps 1e-6 so that every format can say it, as each format's own library would have it."""
    folder = tmp_path_factory.mktemp("sources")
    spec = hf_spec(folder, "ViTModel", **TANH)
    made = {"hf": spec}
    for form in ("timm", "npz", "npz-bigvision"):
        made[form] = to(form, spec, folder, keep_pooler=form == "timm").spec
    return made


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
def test_every_format_to_every_other(sources: dict[str, str], tmp_path: Path, first: str, second: str) -> None:
    done = to(second, sources[first], tmp_path, keep_pooler=True)
    assert same_weights(canonical_weights(load(sources[first])), canonical_weights(load(done.spec)))
    assert distance(sources[first], done.spec, ("cls", "gap", "pooler")) < 1e-5
    assert done.tensors == len(canonical_weights(load(done.spec)))
    assert load(done.spec).representations["pooler"].provenance == "trained"


def test_round_trip_is_exact_with_every_tensor_as_it_was_stored(sources: dict[str, str], tmp_path: Path) -> None:
    spec = sources["hf"]
    for index, form in enumerate(("timm", "npz", "hf", "npz", "timm", "hf")):
        spec = to(form, spec, tmp_path / str(index), keep_pooler=True).spec
    assert same_weights(stored_weights(load(sources["hf"])), stored_weights(load(spec)))
    original = load_file(f"{sources['hf'].removeprefix('hf:')}/model.safetensors")
    final = load_file(Path(spec.removeprefix("hf:").partition(",")[0]) / "model.safetensors")
    assert {name: value.shape for name, value in original.items()} == {name: v.shape for name, v in final.items()}
    assert all(torch.equal(original[name], final[name]) for name in original)


def test_big_vision_stores_the_sum_and_says_so(sources: dict[str, str], tmp_path: Path) -> None:
    done = to("npz-bigvision", sources["hf"], tmp_path)
    assert any("cannot be told apart again" in note for note in done.notes)
    stored, back = stored_weights(load(sources["hf"])), stored_weights(load(done.spec))
    assert bit_equal(back["cls_token"], stored["cls_token"] + stored["pos_embed"][:, :1])
    with np.load(tmp_path / TARGETS["npz-bigvision"]) as arrays:
        assert arrays["params/pos_embedding"].shape == (1, 4, 24)
        assert all(name.startswith("params/") for name in arrays.files)
    again = to("npz", done.spec, tmp_path)
    with np.load(tmp_path / TARGETS["npz"]) as arrays:
        assert not arrays["Transformer/posembed_input/pos_embedding"][:, 0].any()
    assert not any("told apart" in note for note in again.notes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViTModel", {"intermediate_size": 40, "qkv_bias": False, "hidden_act": "quick_gelu"}),
        ("DeiTModel", {"intermediate_size": 40}),
        ("Dinov2Model", {"mlp_ratio": 2}),
        ("Dinov2WithRegistersModel", {"mlp_ratio": 2}),
        ("CLIPVisionModel", {"intermediate_size": 41, "layer_norm_eps": 1e-5}),
        ("SiglipVisionModel", {"intermediate_size": 40}),
    ],
)
def test_hugging_face_families_to_timm(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """eps, activation, registers, layer scale, norms and MAP head all come along as options of the spec."""
    spec = hf_spec(tmp_path, name, **options)
    done = to("timm", spec, tmp_path)
    assert distance(spec, done.spec) < 1e-5
    assert load(done.spec).preprocessing != load(spec).preprocessing
    assert load(done.spec).spec.preprocess == load(spec).preprocessing
    if name == "SiglipVisionModel":
        assert distance(spec, done.spec, ("pooler",)) < 1e-5
        jax = to("npz-bigvision", done.spec, tmp_path)
        assert distance(spec, jax.spec, ("gap", "pooler")) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"norm_eps": "1e-05"},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": "false"},
        {"class_token": "false", "global_pool": "avg", "fc_norm": "false"},
        {"reg_tokens": 2, "init_values": 0.1},
        {"no_embed_class": "true", "reg_tokens": 1},
        {"proj_bias": "false", "pre_norm": "true"},
        {"patch_size": 8, "mlp_ratio": 1.7},
    ],
    ids=str,
)
def test_timm_to_timm_finds_the_same_model(tmp_path: Path, options: dict[str, Any]) -> None:
    kept = {key: value for key, value in options.items() if key != "norm_eps"}
    spec = timm_spec(tmp_path, **python_options(kept))
    spec += ",model.norm_eps=1e-05" if "norm_eps" in options else ""
    done = to("timm", spec, tmp_path)
    assert distance(spec, done.spec) < 1e-6
    ours, theirs = configuration(load(spec)), configuration(load(done.spec))
    assert {key: value for key, value in ours.items() if key != "preprocessing"} == {
        key: value for key, value in theirs.items() if key != "preprocessing"
    }
    assert same_weights(stored_weights(load(spec)), stored_weights(load(done.spec)))


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((192, 12, 3, 16, 224), "vit_tiny_patch16_224"),
        ((384, 12, 6, 32, 384), "vit_small_patch32_384"),
        ((768, 12, 12, 8, 224), "vit_base_patch8_224"),
        ((1024, 24, 16, 14, 224), "vit_large_patch14_224"),
        ((1280, 32, 16, 14, 224), "vit_huge_patch14_224"),
    ],
)
def test_the_papers_models_have_their_own_names_in_timm(sizes: tuple[int, ...], name: str) -> None:
    width, depth, heads, patch, side = sizes
    config = {"width": width, "depth": depth, "heads": heads, "mlp": 4 * width, "patch_size": (patch, patch)}
    config |= {"image_size": (side, side), "dist_token": False, "cls_token": True, "pooling": "cls", "gelu": "erf"}
    config |= {"final_norm": "tokens", "position_embedding": "prefix and patches", "register_tokens": 0}
    config |= {"layer_scale": False, "pre_norm": False, "qkv_bias": True, "layer_norm_eps": 1e-6, "prefix_tokens": 1}
    assert timm_model(config, {"blocks.0.attn.proj.bias": torch.zeros(width)}) == (name, [])


def test_the_pooler_of_timm_is_kept_on_demand_and_its_loss_is_told(sources: dict[str, str], tmp_path: Path) -> None:
    lost = to("timm", sources["hf"], tmp_path)
    assert any("--keep-pooler carries it" in note for note in lost.notes)
    assert load(lost.spec).alias_of("pooler") == "cls"
    kept = to("timm", sources["hf"], tmp_path, keep_pooler=True, overwrite=True)
    backbone = load(kept.spec)
    assert backbone.alias_of("pooler") is None
    assert backbone.dim("pooler") == 24
    features = backbone.encode(torch.randn(2, 3, 32, 32), ["cls", "pooler"])
    dense = backbone.modules[0].pooler.dense
    assert torch.allclose(features["pooler"], torch.tanh(dense(features["cls"])), atol=1e-6)
    assert 0.0 < float(features["pooler"].abs().max()) <= 1.0


def test_a_timm_checkpoint_with_a_damaged_pooler_is_refused(sources: dict[str, str], tmp_path: Path) -> None:
    done = to("timm", sources["hf"], tmp_path, keep_pooler=True)
    state = load_file(done.path)
    del state["pooler.dense.bias"]
    save_file(state, done.path)
    with pytest.raises(WeightsError, match=r"lacks 1 tensors \(pooler\.dense\.bias\)"):
        load(done.spec)


@pytest.mark.parametrize(
    ("name", "eps", "message"),
    [
        ("vit_tiny_patch16_224", "small", "'small' is no number between 0 and 1"),
        ("vit_tiny_patch16_224", "0", "'0' is no number between 0 and 1"),
        ("resnet18", "1e-5", "the model has no LayerNorm"),
    ],
)
def test_an_eps_that_cannot_be_meant(tmp_path: Path, name: str, eps: str, message: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=rf"model\.norm_eps is the eps of every LayerNorm: {message}"):
        load(f"timm:{name},checkpoint={tmp_path / 'w.safetensors'},model.norm_eps={eps}")


def test_the_eps_of_a_timm_model_is_part_of_its_identity(tmp_path: Path) -> None:
    spec = timm_spec(tmp_path)
    plain, other = load(spec), load(f"{spec},model.norm_eps=0.1")
    assert plain.weights_digest == other.weights_digest
    assert other.architecture == plain.architecture.replace("num_heads=3", "norm_eps=0.1,num_heads=3")
    assert distance(spec, f"{spec},model.norm_eps=0.1") > 0.01


def test_no_pooler_to_keep(tmp_path: Path) -> None:
    spec = hf_spec(tmp_path, "ViTForImageClassification", intermediate_size=40)
    with pytest.raises(UsageError, match="no trained pooler to keep"):
        to("timm", spec, tmp_path, keep_pooler=True)


def test_the_classifier_goes_along_and_other_libraries_load_the_result(tmp_path: Path) -> None:
    labels = {index: f"class {index}" for index in range(5)}
    spec = hf_spec(tmp_path, "ViTForImageClassification", intermediate_size=40, id2label=labels)
    pixels = torch.randn(2, 3, 32, 32)
    original = transformers.AutoModelForImageClassification.from_pretrained(spec.removeprefix("hf:")).eval()
    with torch.inference_mode():
        logits = original(pixels).logits

    middle = to("timm", spec, tmp_path)
    with safe_open(middle.path, framework="pt") as file:
        told = json.loads(file.metadata()["vitbench"])
    assert told["labels"] == list(labels.values())
    assert told["spec"].startswith("timm:vit_tiny_patch16_224,checkpoint=file.safetensors,model.")
    options = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 40 / 24 + 1e-6}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **options).eval()
    model.load_state_dict(load_file(middle.path), strict=True)
    with torch.inference_mode():
        assert torch.allclose(model(pixels), logits, atol=1e-3)  # eps is 1e-12 there

    last = to("hf", middle.spec, tmp_path)
    back = transformers.AutoModelForImageClassification.from_pretrained(last.path).eval()
    assert back.config.id2label == labels
    with torch.inference_mode():
        assert torch.equal(back(pixels).logits, logits)

    npz = to("npz", spec, tmp_path)
    with np.load(npz.path) as arrays:
        assert np.array_equal(arrays["head/kernel"].T, original.classifier.weight.detach().numpy())
    assert any("layer_norm_eps 1e-12 became 1e-06, gelu erf became tanh" in note for note in npz.notes)


def test_a_classifier_behind_a_pooler_does_not_go_where_it_would_read_something_else(
    sources: dict[str, str], tmp_path: Path
) -> None:
    with np.load(sources["npz"].removeprefix("jax:").partition(",")[0]) as arrays:
        content = dict(arrays)
    rng = np.random.default_rng(0)
    content["head/kernel"] = rng.standard_normal((24, 3)).astype(np.float32)
    content["head/bias"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "headed.npz", **content)
    spec = f"jax:{tmp_path / 'headed.npz'}"
    for form in ("hf", "timm"):
        notes = to(form, spec, tmp_path).notes
        assert any("it reads cls+dense, and there it would read cls" in note for note in notes)
    assert "classifier.weight" not in load_file(tmp_path / "folder" / "model.safetensors")
    kept = to("timm", spec, tmp_path, keep_pooler=True, overwrite=True)
    again = to("npz", kept.spec, tmp_path)
    with np.load(again.path) as arrays:
        assert set(arrays.files) == set(content)
        assert all(np.array_equal(arrays[name], content[name]) for name in content)


@pytest.mark.parametrize(
    ("make", "form", "reason"),
    [
        (("Dinov2WithRegistersModel", {"mlp_ratio": 2}), "npz", "register tokens"),
        (("Dinov2Model", {"mlp_ratio": 2}), "npz-bigvision", "layer scale"),
        (("Dinov2Model", {"mlp_ratio": 2}), "hf", "layer scale"),
        (("Dinov2Model", {"mlp_ratio": 2, "use_swiglu_ffn": True}), "timm", "a SwiGLU MLP"),
        (("DeiTModel", {"intermediate_size": 40}), "hf", "a distillation token"),
        (("CLIPVisionModel", {"intermediate_size": 40}), "hf", "a norm before the first block"),
        (("SiglipVisionModel", {"intermediate_size": 40}), "hf", "a MAP head"),
        (("SiglipVisionModel", {"intermediate_size": 40}), "npz", "a MAP head"),
        (("ViTModel", {"intermediate_size": 40, "qkv_bias": False}), "npz", "queries, keys and values without bias"),
        (("ViTModel", {"intermediate_size": 40, "hidden_act": "quick_gelu"}), "npz", "the activation 'quick'"),
        (("ViTModel", {"intermediate_size": 40, "pooler_act": "relu"}), "npz", "its pooler (relu"),
    ],
    ids=str,
)
def test_what_a_format_has_no_place_for_is_refused(
    tmp_path: Path, make: tuple[str, dict[str, Any]], form: str, reason: str
) -> None:
    with pytest.raises(UsageError) as caught:
        to(form, hf_spec(tmp_path, make[0], **make[1]), tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / TARGETS[form]).exists()


def test_timm_models_that_others_have_no_place_for(tmp_path: Path) -> None:
    spec = timm_spec(tmp_path, global_pool="avg")
    for form in ("hf", "npz"):
        with pytest.raises(UsageError, match="a final norm after the pooling"):
            to(form, spec, tmp_path)
    with pytest.raises(UsageError, match="without a CLS token"):
        to("hf", timm_spec(tmp_path, class_token=False, global_pool="avg", fc_norm=False), tmp_path)


def test_a_resized_source(sources: dict[str, str], tmp_path: Path) -> None:
    """JAX and timm resize at load, so the resized model is written; transformers at every pass, so there is none."""
    done = to("hf", f"{sources['npz'].partition(',')[0]},resolution=64", tmp_path)
    assert load(done.spec).input_size == (64, 64)
    assert distance(f"{sources['npz'].partition(',')[0]},resolution=64", done.spec) < 1e-5
    with pytest.raises(UsageError, match="convert it without resolution="):
        to("timm", f"{sources['hf']},resolution=64", tmp_path)


def test_a_source_run_at_another_size_than_its_positions_are_for(tmp_path: Path) -> None:
    done = to("timm", hf_spec(tmp_path, "Dinov2Model", mlp_ratio=2, image_size=64), tmp_path)
    assert ",resolution=32," in done.spec
    assert load(done.spec).input_size == (32, 32)
    assert any("run at 32 pixels with positions for 64" in note for note in done.notes)


def test_existing_targets(sources: dict[str, str], tmp_path: Path) -> None:
    for form in ("timm", "hf"):
        first = to(form, sources["npz"], tmp_path, keep_pooler=True)
        with pytest.raises(UsageError, match="exists: choose another name, or --overwrite"):
            to(form, sources["npz"], tmp_path)
        again = to(form, sources["npz"], tmp_path, keep_pooler=True, overwrite=True)
        assert again == first
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds more than a converted model \(thesis\.tex\)"):
        to("hf", sources["npz"], tmp_path, overwrite=True)
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(UsageError, match="is a folder, and a JAX"):
        convert(sources["hf"], tmp_path / "x.npz", overwrite=True)
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_a_file_can_be_converted_onto_itself(sources: dict[str, str], tmp_path: Path) -> None:
    first = to("npz", sources["hf"], tmp_path)
    before = canonical_weights(load(first.spec))
    again = to("npz", first.spec, tmp_path, overwrite=True)
    assert same_weights(before, canonical_weights(load(again.spec)))


@pytest.mark.parametrize(
    ("target", "form", "message"),
    [
        ("x.pt", "", r"'x\.pt' names no known format"),
        ("x.npz", "onnx", "unknown format 'onnx'"),
        ("x.npz", "bigvision", "did you mean 'npz-bigvision'"),
        ("x.npz", "timm", r"does not fit --to timm: end it in \.safetensors"),
        ("x.safetensors", "hf", "does not fit --to hf: name a folder"),
        ("x", "npz", r"end it in \.npz"),
        ("a,b", "", "has a comma"),
    ],
)
def test_targets_that_cannot_be_meant(target: str, form: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_format(Path(target), form)
    assert choose_format(Path("vit.v2"), "hf") == "hf"


def test_a_target_that_cannot_be_written(sources: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*Not a directory"):
        convert(sources["hf"], tmp_path / "file" / "x.npz")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vit_convert, "save_file", full)
    with pytest.raises(StoreError, match=r"cannot write .*x\.safetensors: the disk is full") as caught:
        convert(sources["hf"], tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_what_reads_back_differently_is_not_kept(sources: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    original = vit_convert.npz_arrays

    def flipped(*arguments: Any, **options: Any) -> Any:
        arrays = original(*arguments, **options)
        key = "Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias"
        return arrays | {key: np.nextafter(arrays[key], np.float32(9))}

    monkeypatch.setattr(vit_convert, "npz_arrays", flipped)
    with pytest.raises(WeightsError, match=r"tensor 'blocks\.1\.mlp\.fc1\.bias' is not what was written \(1 in all\)"):
        to("npz", sources["hf"], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("resize(224x224,bilinear)|normalize(0.5,0.5)", True),
        ("resize(256,bicubic)|central_crop(224)|normalize(0.485/0.456/0.406,0.229/0.224/0.225)", True),
        ("resize(256x256,lanczos)|central_crop(224x192)|normalize(0,1)", True),
        ("resize(248,bicubic)|center_crop(224)|normalize(0.5,0.5)", False),
        ("tf_resize(224x224,bilinear)|value_range(-1,1)", False),
    ],
)
def test_image_processors(tmp_path: Path, text: str, exact: bool) -> None:
    fields = image_processor(text)
    assert fields is not None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    processor: Any = transformers.AutoImageProcessor
    assert (image_preprocessing(processor.from_pretrained(tmp_path)).text == text) is exact


@pytest.mark.parametrize("text", ["bigvision_fewshot", "resize(224,bicubic)|normalize(0.5,0.5)", ""])
def test_preprocessing_without_a_processor(text: str) -> None:
    assert image_processor(text) is None


def test_a_folder_without_a_processor_is_loaded_by_its_spec(sources: dict[str, str], tmp_path: Path) -> None:
    source = f"{sources['npz'].partition(',')[0]},preprocess=vit_jax"
    done = to("hf", source, tmp_path)
    assert not (done.path / "preprocessor_config.json").exists()
    assert done.spec.endswith(",preprocess=vit_jax")
    assert done.spec.count("preprocess=") == 1
    assert distance(source, done.spec) < 1e-5


@settings(max_examples=8, deadline=None)
@given(
    heads=st.integers(1, 4),
    head_width=st.sampled_from([4, 8]),
    depth=st.integers(1, 3),
    mlp=st.integers(3, 70),
    patch=st.sampled_from([4, 7, 8]),
    grid=st.integers(1, 4),
    classes=st.integers(0, 4),
)
def test_any_sizes_go_round(
    tmp_path_factory: pytest.TempPathFactory,
    heads: int,
    head_width: int,
    depth: int,
    mlp: int,
    patch: int,
    grid: int,
    classes: int,
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    sizes = {"hidden_size": heads * head_width, "num_hidden_layers": depth, "num_attention_heads": heads}
    sizes |= {"intermediate_size": mlp, "patch_size": patch, "image_size": patch * grid}
    kind = {"num_labels": classes} if classes else {}
    name = "ViTForImageClassification" if classes else "ViTModel"
    source = hf_spec(folder, name, **sizes, **kind)
    side = patch * grid
    source += f",preprocess=resize({side}x{side},bicubic)|normalize(0.5,0.5),resolution={side}"
    original = load(source)
    spec = source.rpartition(",")[0]
    for index, form in enumerate(("timm", "npz", "hf")):
        spec = to(form, spec, folder / str(index), keep_pooler=not classes and form == "timm").spec
    assert same_weights(stored_weights(original), stored_weights(load(spec)))


def test_every_refusal_is_a_vitbench_error() -> None:
    with pytest.raises(VitbenchError):
        convert("pixels", "x.npz")


def test_a_classifier_on_a_pooling_of_timms_own_stays(tmp_path: Path) -> None:
    done = to("timm", timm_spec(tmp_path, global_pool="avgmax", fc_norm=False), tmp_path)
    assert "head.weight" not in load_file(done.path)
    assert any("a pooling of timm's own" in note for note in done.notes)
    assert any("pooling own became cls" in note for note in done.notes)
