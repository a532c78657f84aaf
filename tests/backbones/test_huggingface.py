from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers as hf
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging as hf_logging

from vitbench.backbones import hf_loading
from vitbench.backbones.hf_families import FAMILIES
from vitbench.backbones.huggingface import HuggingFaceBackbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import RepresentationError, UsageError, VitbenchError, WeightsError

WIDTH, DEPTH, SIZE, PATCH = 32, 3, 32, 8
PLAIN = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
VIT = PLAIN | {"intermediate_size": 64}
SWIN = {
    "image_size": SIZE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 1, 2],
    "num_heads": [1, 2, 4],
    "window_size": 2,
}
TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
STAGES = {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1]}
Output = Any


def token_mean(prefix: int) -> Callable[[Any, Output], Tensor]:
    return lambda model, out: out.last_hidden_state[:, prefix:].mean(1)


def first_token(model: Any, out: Output) -> Tensor:
    return out.last_hidden_state[:, 0]


def pooler_output(model: Any, out: Output) -> Tensor:
    return out.pooler_output.flatten(1)


def map_mean(model: Any, out: Output) -> Tensor:
    return out.last_hidden_state.mean((2, 3))


def clip_mean(model: Any, out: Output) -> Tensor:
    return model.post_layernorm(out.last_hidden_state)[:, 1:].mean(1)


# model_type -> config, model class, gap, cls (None: absent), what the pooler equals ("": a layer of its own), blocks or stages.
CASES: dict[str, tuple[Any, str, Any, Any, str, str]] = {
    "vit": (hf.ViTConfig(**VIT), "ViTModel", token_mean(1), first_token, "", "layers"),
    "deit": (hf.DeiTConfig(**VIT), "DeiTModel", token_mean(2), first_token, "", "layers"),
    "dinov2": (hf.Dinov2Config(**PLAIN), "Dinov2Model", token_mean(1), first_token, "cls", "encoder.layer"),
    "dinov2_with_registers": (
        hf.Dinov2WithRegistersConfig(**PLAIN, num_register_tokens=3),
        "Dinov2WithRegistersModel",
        token_mean(4),
        first_token,
        "cls",
        "encoder.layer",
    ),
    "dinov3_vit": (
        hf.DINOv3ViTConfig(**VIT, num_register_tokens=4),
        "DINOv3ViTModel",
        token_mean(5),
        first_token,
        "cls",
        "model.layer",
    ),
    "clip_vision_model": (
        hf.CLIPVisionConfig(**VIT),
        "CLIPVisionModel",
        clip_mean,
        pooler_output,
        "cls",
        "encoder.layers",
    ),
    "siglip_vision_model": (
        hf.SiglipVisionConfig(**VIT),
        "SiglipVisionModel",
        token_mean(0),
        None,
        "",
        "encoder.layers",
    ),
    "swin": (hf.SwinConfig(**SWIN), "SwinModel", token_mean(0), None, "gap", "encoder.layers"),
    "swinv2": (
        hf.Swinv2Config(**SWIN, pretrained_window_sizes=[0, 0, 0]),
        "Swinv2Model",
        token_mean(0),
        None,
        "gap",
        "encoder.layers",
    ),
    "convnext": (
        hf.ConvNextConfig(**STAGES, num_stages=3, image_size=SIZE),
        "ConvNextModel",
        lambda model, out: model.layernorm(map_mean(model, out)),
        None,
        "gap",
        "encoder.stages",
    ),
    "convnextv2": (
        hf.ConvNextV2Config(**STAGES, num_stages=3, image_size=SIZE),
        "ConvNextV2Model",
        lambda model, out: model.layernorm(map_mean(model, out)),
        None,
        "gap",
        "encoder.stages",
    ),
    "dinov3_convnext": (
        hf.DINOv3ConvNextConfig(**STAGES, image_size=SIZE),
        "DINOv3ConvNextModel",
        first_token,
        None,
        "gap",
        "model.stages",
    ),
    "resnet": (hf.ResNetConfig(**STAGES, embedding_size=8), "ResNetModel", map_mean, None, "gap", "encoder.stages"),
    "bit": (
        hf.BitConfig(hidden_sizes=[32, 64, 96], depths=[1, 2, 1], embedding_size=8, num_groups=4),
        "BitModel",
        map_mean,
        None,
        "gap",
        "encoder.stages",
    ),
}


def shake(model: nn.Module, seed: int = 0) -> Any:
    """Move every weight off its initial value: with LayerNorms at identity, half of the traps could not be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save(model: Any, folder: Path, processor: Any = None) -> Path:
    """What a checkpoint folder holds: config, weights, image processor."""
    with hf_loading.quiet():
        model.save_pretrained(folder)
        (processor or hf.ViTImageProcessor(size={"height": SIZE, "width": SIZE})).save_pretrained(folder)
    return folder


def load(folder: Path, options: str = "") -> HuggingFaceBackbone:
    return HuggingFaceBackbone(parse_backbone_spec(f"hf:{folder}{options}"))


def edit_config(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny model of every family, saved as its base model, pooling layer included."""
    root = tmp_path_factory.mktemp("hf")
    return {
        name: save(shake(getattr(hf, case[1])(case[0])), root / name, hf.ViTImageProcessor(size=SIZE))
        for name, case in CASES.items()
    }


@pytest.fixture
def vit(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A ViT folder that a test may damage."""
    return Path(shutil.copytree(folders["vit"], tmp_path / "vit"))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def reference(folder: Path, name: str) -> Any:
    with hf_loading.quiet():
        return getattr(hf, CASES[name][1]).from_pretrained(folder).eval()


def test_every_family_of_the_table_is_tested() -> None:
    assert set(CASES) | {"clip", "siglip"} == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_representations_equal_what_the_model_itself_computes(
    name: str, folders: dict[str, Path], pixels: Tensor
) -> None:
    _, _, gap, cls, pooler, _ = CASES[name]
    backbone, model = load(folders[name]), reference(folders[name], name)
    with torch.no_grad():
        out = model(pixels)
        expected = {"gap": gap(model, out), "pooler": pooler_output(model, out)} | (
            {"cls": cls(model, out)} if cls else {}
        )
    assert backbone.available() == [key for key in ("cls", "gap", "pooler") if key in expected]
    assert backbone.alias_of("pooler") == (pooler or None)
    got = backbone.encode(pixels, expected)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=1e-6, rtol=1e-5)
        assert backbone.dim(key) == value.shape[1]
    others = {key: value for key, value in expected.items() if key != "pooler"}
    for key, value in others.items():  # an alias is exact, and a pooler that is none is something else
        same = got["pooler"].shape == value.shape and torch.allclose(got["pooler"], value, atol=1e-5)
        assert same == (key == pooler)


@pytest.mark.parametrize("name", CASES)
def test_layers(name: str, folders: dict[str, Path], pixels: Tensor) -> None:
    backbone, model = load(folders[name]), reference(folders[name], name)
    family = FAMILIES[name]
    blocks: Any = model.get_submodule(CASES[name][5])
    states: list[Tensor] = []
    blocks[0].register_forward_pre_hook(lambda module, args, kwargs: states.append(args[0]), with_kwargs=True)
    for block in blocks:
        last = block.blocks[-1] if name.startswith("swin") else block
        last.register_forward_hook(lambda module, args, out: states.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(pixels)
        norm = getattr(model, family.final_norm) if family.final_norm else nn.Identity()
        prefix = CASES[name][0].num_register_tokens + 1 if "num_register_tokens" in CASES[name][0] else family.prefix
        assert backbone.depth == len(blocks) == len(states) - 1
        for layer, state in enumerate(states[:-1]):
            normed = norm(state)
            gap = normed.mean((2, 3)) if state.ndim == 4 else normed[:, prefix:].mean(1)
            got = backbone.encode(pixels, [f"{pooling}@{layer}" for pooling in backbone.layer_poolings])
            torch.testing.assert_close(got[f"gap@{layer}"], gap, atol=1e-6, rtol=1e-5)
            assert backbone.dim(f"gap@{layer}") == gap.shape[1]
            if family.prefix:
                torch.testing.assert_close(got[f"cls@{layer}"], normed[:, 0], atol=1e-6, rtol=1e-5)
            if family.final_norm:  # the trap: block outputs are not normed
                assert not torch.allclose(state[:, prefix:].mean(1), gap, atol=1e-3)
    assert backbone.layer_poolings == (("cls", "gap") if family.prefix else ("gap",))
    for pooling in backbone.layer_poolings:
        got = backbone.encode(pixels, [pooling, f"{pooling}@{backbone.depth}", f"{pooling}@-1"])
        torch.testing.assert_close(got[f"{pooling}@{backbone.depth}"], got[pooling], atol=1e-6, rtol=0)
        torch.testing.assert_close(got[f"{pooling}@-1"], got[pooling], atol=1e-6, rtol=0)
        assert backbone.dim(f"{pooling}@-1") == backbone.dim(pooling)


def test_swin_stages_are_taken_before_the_merging_that_hidden_states_have(
    folders: dict[str, Path], pixels: Tensor
) -> None:
    for name in ("swin", "swinv2"):
        model = reference(folders[name], name)
        with torch.no_grad():
            states = model(pixels, output_hidden_states=True).hidden_states
        assert [state.shape[-1] for state in states] == [8, 16, 32, 32]
        assert load(folders[name]).layer_dims == [8, 8, 16, 32]


def test_clip_patch_tokens_are_normed_before_the_mean(folders: dict[str, Path], pixels: Tensor) -> None:
    model = reference(folders["clip_vision_model"], "clip_vision_model")
    with torch.no_grad():
        naive = model(pixels).last_hidden_state[:, 1:].mean(1)
    gap = load(folders["clip_vision_model"]).encode(pixels, ["gap"])["gap"]
    assert (gap - naive).abs().max() > 0.1


def test_registers_do_not_leak_into_gap(folders: dict[str, Path], pixels: Tensor) -> None:
    for name in ("dinov2_with_registers", "dinov3_vit"):
        model = reference(folders[name], name)
        with torch.no_grad():
            leaked = model(pixels).last_hidden_state[:, 1:].mean(1)
        assert (load(folders[name]).encode(pixels, ["gap"])["gap"] - leaked).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["vit", "clip_vision_model", "swin", "convnext"])
def test_everything_comes_from_one_pass(name: str, folders: dict[str, Path], pixels: Tensor) -> None:
    backbone = load(folders[name])
    block: Any = backbone.modules[0].get_submodule(CASES[name][5])
    calls: list[int] = []
    asked: list[bool] = []
    block[0].register_forward_hook(lambda *_: calls.append(1))
    backbone.modules[0].register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["output_hidden_states"]), with_kwargs=True
    )
    backbone.encode(pixels, [*backbone.available(), "gap@0", "gap@1", "gap+pooler", "gap@-1"])
    backbone.encode(pixels, ["gap", f"gap@{backbone.depth}"])
    assert len(calls) == 2
    assert asked == [True, False]


@pytest.mark.parametrize("name", CASES)
def test_autocast(name: str, folders: dict[str, Path], pixels: Tensor) -> None:
    backbone = load(folders[name])
    names = [*backbone.available(), *(f"{pooling}@1" for pooling in backbone.layer_poolings)]
    exact = backbone.to("cpu", "float32").encode(pixels, names)
    rough = backbone.to("cpu", "bfloat16").encode(pixels, names)
    for key, value in exact.items():
        assert rough[key].dtype == torch.float32
        assert not torch.equal(rough[key], value)
        torch.testing.assert_close(rough[key], value, atol=0.1 * float(value.abs().max()), rtol=0)


def test_model_is_frozen_float32_and_keeps_fused_attention(tmp_path: Path, folders: dict[str, Path]) -> None:
    half = save(reference(folders["vit"], "vit").half(), tmp_path / "half")
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    backbone = load(half)
    model: Any = backbone.modules[0]
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in (
        "vit",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "clip_vision_model",
        "siglip_vision_model",
    ):
        config: Any = load(folders[name]).modules[0].config
        assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_pooler_of_a_checkpoint_saved_from_a_classifier_is_untrained(name: str, tmp_path: Path, pixels: Tensor) -> None:
    head = {"vit": hf.ViTForImageClassification, "deit": hf.DeiTForImageClassificationWithTeacher}[name]
    model = shake(head(CASES[name][0]))
    folder = save(model, tmp_path)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    backbone = load(folder)
    assert torch.equal(torch.get_rng_state(), state), "loading must not move the caller's random numbers"
    assert backbone.provenance("cls") == "trained"
    with pytest.raises(RepresentationError, match="untrained"):
        backbone.encode(pixels, ["pooler"])
    torch.manual_seed(12)
    again = load(folder)
    backbone.allow_untrained = again.allow_untrained = True
    assert backbone.provenance("pooler") == "untrained"
    pooled = backbone.encode(pixels, ["pooler"])["pooler"]
    assert torch.equal(pooled, again.encode(pixels, ["pooler"])["pooler"])
    assert pooled.std() > 1e-3
    assert any("pooler.dense.weight" in note for note in backbone.provenance_notes)
    assert any("classifier" in note for note in backbone.provenance_notes)
    trunk = getattr(model, name)
    assert backbone.num_parameters == sum(parameter.numel() for parameter in trunk.parameters())


def test_digest_is_of_the_trunk_alone(tmp_path: Path, pixels: Tensor) -> None:
    config = hf.ViTConfig(**VIT)
    classifier = shake(hf.ViTForImageClassification(config))
    digest = load(save(classifier, tmp_path / "a")).weights_digest
    with torch.no_grad():
        classifier.classifier.weight.add_(1)
    assert load(save(classifier, tmp_path / "b")).weights_digest == digest
    with torch.no_grad():
        classifier.vit.layernorm.bias.add_(1)
    assert load(save(classifier, tmp_path / "c")).weights_digest != digest
    base = shake(hf.ViTModel(config))
    with_pooler = load(save(base, tmp_path / "d"))
    with torch.no_grad():
        base.pooler.dense.bias.add_(1)
    assert load(save(base, tmp_path / "e")).weights_digest != with_pooler.weights_digest


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vision_tower_of_a_two_tower_checkpoint(kind: str, tmp_path: Path, pixels: Tensor) -> None:
    config_class, model_class, tower_class = {
        "clip": (hf.CLIPConfig, hf.CLIPModel, hf.CLIPVisionModel),
        "siglip": (hf.SiglipConfig, hf.SiglipModel, hf.SiglipVisionModel),
    }[kind]
    model = shake(model_class(config_class(text_config=TEXT, vision_config=VIT)))
    both = load(save(model, tmp_path / "both"))
    tower: Any = tower_class(both.modules[0].config)
    tower.load_state_dict(model.vision_model.state_dict())
    alone = load(save(tower, tmp_path / "alone"))
    assert both.weights_digest == alone.weights_digest
    assert both.architecture == alone.architecture
    assert both.num_parameters == alone.num_parameters == sum(p.numel() for p in model.vision_model.parameters())
    assert any("text_model" in note for note in both.provenance_notes)
    with torch.no_grad():
        expected = model.vision_model(pixels).pooler_output
    torch.testing.assert_close(both.encode(pixels, ["pooler"])["pooler"], expected, atol=1e-6, rtol=1e-5)


def test_siglip_without_pooling_head(tmp_path: Path, pixels: Tensor) -> None:
    model = shake(hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT, vision_use_head=False)))
    backbone = load(save(model, tmp_path))
    assert backbone.available() == ["gap"]
    with pytest.raises(RepresentationError, match="vision_use_head"):
        backbone.encode(pixels, ["pooler"])
    with pytest.raises(RepresentationError, match="no CLS token"):
        backbone.encode(pixels, ["cls"])


# Damaged and unfit checkpoints.


def drop(key: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if key not in name}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def add(key: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors") | {key: torch.zeros(2)}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("ran_code"),))


def make_malicious(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.cls_token": Malicious()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("encoder.layer.1.output.dense.weight"), "lacks weights of the model: "),
        (drop("layernorm_before"), "and 2 more"),
        (add("encoder.strange"), "weights that the model of config.json lacks: encoder.strange"),
        (
            lambda folder: edit_config(folder, num_hidden_layers=2),
            "weights that the model of config.json lacks: ",
        ),
        (lambda folder: edit_config(folder, num_hidden_layers=4), "and 12 more"),
        (
            lambda folder: edit_config(folder, intermediate_size=48),
            "do not fit config.json; the first is ",
        ),
        (truncate, "damaged or incomplete"),
        (make_malicious, "pickle that runs code"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: edit_config(folder, num_hidden_layers="three"), "num_hidden_layers"),
        (lambda folder: edit_config(folder, model_type="beit"), "'beit' in config.json is not supported"),
        (lambda folder: edit_config(folder, model_type="vitt"), "did you mean 'vit'"),
        (lambda folder: edit_config(folder, model_type=None), "supported: vit, deit"),
        (lambda folder: edit_config(folder, num_channels=1), "1 channels, not RGB"),
    ],
)
def test_a_checkpoint_that_does_not_fit_stops_with_one_line(
    damage: Callable[[Path], Any], message: str, vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vit)
    damage(vit)
    with pytest.raises(VitbenchError) as caught:
        load(vit)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (vit / "ran_code").exists()


@pytest.mark.parametrize(
    "key", ["classifier.weight", "embeddings.mask_token", "decoder.0.weight", "text_model.x", "logit_scale"]
)
def test_heads_text_towers_and_mask_tokens_are_let_through_and_noted(key: str, vit: Path) -> None:
    add(key)(vit)
    assert any(key in note for note in load(vit).provenance_notes)


def test_pytorch_file_without_code_is_read(vit: Path, folders: dict[str, Path]) -> None:
    torch.save(load_file(vit / "model.safetensors"), vit / "pytorch_model.bin")
    (vit / "model.safetensors").unlink()
    assert load(vit).weights_digest == load(folders["vit"]).weights_digest


def test_batch_counts_of_a_resnet_may_be_absent(folders: dict[str, Path], tmp_path: Path, pixels: Tensor) -> None:
    folder = Path(shutil.copytree(folders["resnet"], tmp_path / "resnet"))
    drop("num_batches_tracked")(folder)
    assert torch.equal(
        load(folder).encode(pixels, ["gap"])["gap"], load(folders["resnet"]).encode(pixels, ["gap"])["gap"]
    )
    drop("running_var")(folder)
    with pytest.raises(WeightsError, match="running_var"):
        load(folder)


def test_code_in_the_checkpoint_is_never_run(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vit)
    (vit / "modeling.py").write_text(
        "import pathlib; pathlib.Path('ran_code').touch()\nclass Model: pass\nclass Config: pass\n"
    )
    edit_config(vit, auto_map={"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"})
    load(vit)
    edit_config(vit, model_type="custom")
    with pytest.raises(UsageError, match="custom"):
        load(vit)
    assert not (vit / "ran_code").exists()


def test_loading_prints_nothing_and_restores_the_settings(vit: Path, capfd: pytest.CaptureFixture[str]) -> None:
    drop("pooler")(vit)
    add("classifier.weight")(vit)
    logs: Any = hf_logging
    before = (logs.get_verbosity(), logs.is_progress_bar_enabled())
    logs.set_verbosity_info()
    logs.enable_progress_bar()
    load(vit)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert (logs.get_verbosity(), logs.is_progress_bar_enabled()) == (hf_logging.INFO, True)
    truncate(vit)
    with pytest.raises(WeightsError):
        load(vit)
    assert (logs.get_verbosity(), logs.is_progress_bar_enabled()) == (hf_logging.INFO, True)
    logs.set_verbosity(before[0])
    (logs.enable_progress_bar if before[1] else logs.disable_progress_bar)()


# Names.


def test_folders(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vit.parent)
    assert load(Path("vit")).weights_digest == load(vit).weights_digest
    vit.rename("vit@home")
    assert HuggingFaceBackbone(parse_backbone_spec("hf:./vit@home")).depth == DEPTH
    for name, message in [
        ("./vit@hom", "there is no folder 'vit@hom'; did you mean hf:vit@home?"),
        (f"{vit.parent}", "has no config.json; did you mean hf:"),
        ("./vit@home/config.json", "is a file; name the folder"),
        ("", "name a model after 'hf:'"),
        ("a b", "neither a folder nor the id of a model"),
    ]:
        with pytest.raises(UsageError) as caught:
            HuggingFaceBackbone(parse_backbone_spec(f"hf:{name}"))
        assert message in str(caught.value)
    Path("vit@home").rename("vit")
    for options, message in [
        ("@main", "has no revision"),
        (",checkpoint=x", "checkpoint= is not"),
        (",model.a=1", "timm only"),
    ]:
        with pytest.raises(UsageError, match=message):
            load(vit, options)


def unreachable(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError("no route")


def test_hub_model_out_of_reach_says_how_to_fetch_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hf_loading, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        HuggingFaceBackbone(parse_backbone_spec("hf:org/model@v2"))
    for part in ("'org/model' (revision 'v2')", "hf download org/model --revision v2", "HF_HOME", "hf:./folder"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_model_in_the_cache_needs_no_network(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    repository = tmp_path / "cache" / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(vit, repository / "snapshots" / commit)
    monkeypatch.setattr(hf_loading, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    backbone = HuggingFaceBackbone(parse_backbone_spec("hf:org/model"))
    assert backbone.weights_digest == load(vit).weights_digest
    assert backbone.preprocessing == load(vit).preprocessing
    assert f"hub commit {commit} of org/model" in backbone.provenance_notes
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="are not in the cache: run 'hf download org/model'"):
        HuggingFaceBackbone(parse_backbone_spec("hf:org/model"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "is gated"),
        (RepositoryNotFoundError, "the hub has no model 'org/model'"),
        (RevisionNotFoundError, "no such revision"),
        (RemoteEntryNotFoundError, "no config.json on the hub"),
    ],
)
def test_hub_answers(error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*args: Any, **kwargs: Any) -> None:
        raise error.__new__(error)

    monkeypatch.setattr(hf_loading, "get_hf_file_metadata", answer)
    with pytest.raises(WeightsError, match=message):
        HuggingFaceBackbone(parse_backbone_spec("hf:org/model@v2"))


# Resolution.


@pytest.mark.parametrize(
    "name", ["vit", "deit", "clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers"]
)
def test_off_size_resizes_position_embeddings_as_transformers_does_and_says_so(
    name: str, folders: dict[str, Path]
) -> None:
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    backbone, model = load(folders[name], ",resolution=48"), reference(folders[name], name)
    flag = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = CASES[name][2](model, model(images, **flag))
    torch.testing.assert_close(backbone.encode(images, ["gap"])["gap"], expected, atol=1e-6, rtol=1e-5)
    assert backbone.input_size == (48, 48)
    assert any("resized from 4x4 to 6x6 patches" in note for note in backbone.provenance_notes)
    assert "48x48" in backbone.preprocessing
    assert not any("resized" in note for note in load(folders[name]).provenance_notes)


@pytest.mark.parametrize("name", ["dinov3_vit", "swin", "swinv2", "convnext", "dinov3_convnext", "resnet", "bit"])
def test_off_size_of_families_without_position_table(name: str, folders: dict[str, Path]) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    model = reference(folders[name], name)
    with torch.no_grad():
        expected = model(images).pooler_output.flatten(1)
    backbone = load(folders[name], ",resolution=64")
    torch.testing.assert_close(backbone.encode(images, ["pooler"])["pooler"], expected, atol=1e-6, rtol=1e-5)


def test_swin_absolute_embeddings_are_resized(tmp_path: Path) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    model = shake(hf.SwinModel(hf.SwinConfig(**SWIN, use_absolute_embeddings=True)))
    backbone = load(save(model, tmp_path), ",resolution=64")
    with torch.no_grad():
        expected = model(images, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(backbone.encode(images, ["gap"])["gap"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "resolution", "message"),
    [
        ("vit", 36, "not a multiple of the patch size 8; nearest: 32 or 40"),
        ("siglip_vision_model", 47, "nearest: 40 or 48"),
        ("dinov3_vit", 5, "nearest: 8"),
        ("swin", 16, "the smallest that works is 20"),
        ("convnext", 15, "the smallest is 16"),
        ("dinov3_convnext", 8, "the smallest is 16"),
    ],
)
def test_a_resolution_that_cannot_be_is_refused(
    name: str, resolution: int, message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(UsageError) as caught:
        load(folders[name], f",resolution={resolution}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "resolution"), [("swin", 20), ("swinv2", 16), ("convnext", 16), ("dinov3_convnext", 16)]
)
def test_the_smallest_resolution_that_is_promised_works(name: str, resolution: int, folders: dict[str, Path]) -> None:
    backbone = load(folders[name], f",resolution={resolution}")
    features = backbone.encode(torch.randn(1, 3, resolution, resolution), ["gap", "gap@1"])
    assert all(torch.isfinite(value).all() for value in features.values())


def test_pixels_of_another_size_are_refused_where_positions_would_be_guessed(folders: dict[str, Path]) -> None:
    images = torch.randn(1, 3, 48, 48)
    for name in ("vit", "dinov2", "dinov3_vit", "swin"):
        with pytest.raises(UsageError, match="add the option resolution=48"):
            load(folders[name]).encode(images, ["gap"])
    assert load(folders["resnet"]).encode(images, ["gap"])["gap"].shape == (1, 24)


def test_dinov2_takes_the_size_of_its_image_processor_and_vit_must_agree_with_it(tmp_path: Path) -> None:
    processor = hf.BitImageProcessor(size={"shortest_edge": 64}, crop_size=48)
    dino = load(save(hf.Dinov2Model(CASES["dinov2"][0]), tmp_path / "dinov2", processor))
    assert dino.input_size == (48, 48)
    assert any("resized from 4x4 to 6x6" in note for note in dino.provenance_notes)
    vit = save(hf.ViTModel(CASES["vit"][0]), tmp_path / "vit", processor)
    with pytest.raises(UsageError, match="resolution=32 or resolution=48"):
        load(vit)
    assert load(vit, ",resolution=48").preprocessing == load(vit, ",resolution=32").preprocessing.replace(
        "resize(43,", "resize(64,"
    ).replace("central_crop(32)", "central_crop(48)")
    assert load(vit, ",preprocess=squash").input_size == (32, 32)


def test_pairs_of_sizes_are_one_number(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    edit_config(folder, image_size=[SIZE, SIZE], patch_size=[PATCH, PATCH])
    assert load(folder).architecture == load(folders["vit"]).architecture
    assert load(folder, ",resolution=48").encode(torch.zeros(1, 3, 48, 48), ["cls"])["cls"].shape == (1, WIDTH)


# Identity.


def test_architecture_changes_with_what_changes_a_feature_and_with_nothing_else(vit: Path) -> None:
    first = load(vit)
    assert first.architecture.startswith("hf:vit#")
    edit_config(
        vit, id2label={"0": "cat", "1": "dog", "2": "cow"}, _name_or_path="elsewhere", transformers_version="9.9"
    )
    edit_config(vit, dtype="float16", architectures=["ViTForImageClassification"], problem_type="regression")
    assert load(vit).architecture == first.architecture
    seen = {first.architecture}
    for field, value in [("layer_norm_eps", 1e-6), ("hidden_act", "gelu_pytorch_tanh"), ("pooler_act", "relu")]:
        edit_config(vit, **{field: value})
        seen.add(load(vit).architecture)
    assert len(seen) == 4
    assert load(vit).weights_digest == first.weights_digest


# Preprocessing.


def test_processor_nested_in_processor_config(vit: Path) -> None:
    nested = {
        "image_processor": json.loads((vit / "preprocessor_config.json").read_text()),
        "processor_class": "CLIPProcessor",
    }
    expected = load(vit).preprocessing
    (vit / "preprocessor_config.json").unlink()
    (vit / "processor_config.json").write_text(json.dumps(nested))
    assert load(vit).preprocessing == expected


def test_without_an_image_processor_nothing_is_guessed_silently(vit: Path) -> None:
    edit = json.loads((vit / "preprocessor_config.json").read_text())
    (vit / "preprocessor_config.json").write_text(json.dumps(edit | {"do_rescale": False}))
    with pytest.raises(UsageError, match=r"do_rescale is false.*preprocess=resize"):
        load(vit)
    (vit / "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"its image processor: .*preprocess=resize"):
        load(vit)
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"no preprocessor_config.json.*preprocess=resize"):
        load(vit)
    backbone = load(vit, ",preprocess=resize(32x32,bilinear)|normalize(0,1)")
    assert (backbone.preprocessing, backbone.input_size, backbone.mean) == ("", (SIZE, SIZE), (0.5, 0.5, 0.5))
    assert any("own preprocessing unknown" in note for note in backbone.provenance_notes)
    assert load(vit, ",resolution=48,preprocess=squash").input_size == (48, 48)


def test_input_size_that_no_file_says_is_noted(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["resnet"], tmp_path / "resnet"))
    (folder / "preprocessor_config.json").unlink()
    backbone = load(folder, ",preprocess=squash")
    assert backbone.input_size == (224, 224)
    assert "input size unknown, 224x224 assumed" in backbone.provenance_notes
    sized = load(folder, ",preprocess=squash,resolution=64")
    assert sized.input_size == (64, 64)
    assert not any("assumed" in note for note in sized.provenance_notes)
