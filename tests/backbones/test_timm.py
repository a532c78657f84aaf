"""The timm adapter, on tiny random models of many families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone
from vitbench.backbones.timm import preprocessing_string
from vitbench.backbones.timm_build import parse_option
from vitbench.errors import RepresentationError, UsageError, VitbenchError, WeightsError
from vitbench.tasks import transforms

VIT = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
Formula = Callable[[Any, Tensor], Tensor]


def tokens(prefix: int) -> Formula:
    return lambda model, features: features[:, prefix:].mean(1)


def first(model: Any, features: Tensor) -> Tensor:
    return features[:, 0]


def nchw(model: Any, features: Tensor) -> Tensor:
    return features.mean((2, 3))


def nhwc(model: Any, features: Tensor) -> Tensor:
    return features.mean((1, 2))


def normed_map(model: Any, features: Tensor) -> Tensor:
    return model.head.norm(features.mean((2, 3), keepdim=True)).flatten(1)


@dataclass(frozen=True)
class Family:
    """A tiny model, and what its representations are, written out by hand."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    cls: Formula | None = None
    gap: Formula | None = None
    alias: str | None = None
    depth: int = 2
    resolution: int | None = None

    def __str__(self) -> str:
        return self.name


FAMILIES = [
    Family("vit_tiny_patch16_224", VIT, cls=first, gap=tokens(1), alias="cls"),
    Family("deit_tiny_distilled_patch16_224", VIT, cls=first, gap=tokens(2)),
    Family("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 28}, 28, first, tokens(5), "cls"),
    Family("vit_small_patch16_dinov3", {**VIT, "embed_dim": 32}, 32, first, tokens(5), "gap"),
    Family("vit_base_patch16_siglip_224", VIT, gap=tokens(0)),
    Family("flexivit_small", VIT, cls=first, gap=tokens(1), alias="cls"),
    Family("deit3_small_patch16_224", VIT, cls=first, gap=tokens(1), alias="cls"),
    Family("eva02_base_patch16_clip_224", {**VIT, "embed_dim": 32}, cls=first, gap=tokens(1), alias="cls"),
    Family(
        "beit_base_patch16_224",
        VIT,
        cls=lambda model, features: model.fc_norm(features[:, 0]),
        gap=lambda model, features: model.fc_norm(features[:, 1:].mean(1)),
        alias="gap",
    ),
    Family(  # as a MAE fine-tune is built
        "vit_tiny_patch16_224",
        {**VIT, "global_pool": "avg"},
        cls=lambda model, features: model.fc_norm(features[:, 0]),
        gap=lambda model, features: model.fc_norm(features[:, 1:].mean(1)),
        alias="gap",
    ),
    Family("mixer_s32_224", {"img_size": 64}, 64, gap=tokens(0), alias="gap", depth=8),
    Family("cait_xxs24_224", {**VIT}, cls=first, gap=tokens(1), alias="cls", depth=0),
    Family("xcit_nano_12_p16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}, 32, first, tokens(1), "cls", 0, 32),
    Family("convnext_atto", {"depths": (1, 1, 1, 1)}, 32, gap=normed_map, alias="gap", depth=4, resolution=32),
    Family("swin_tiny_patch4_window7_224", {"img_size": 64, "depths": (1, 1, 1, 1)}, 64, None, nhwc, "gap", 4),
    Family("resnet18", {}, 32, gap=nchw, alias="gap", depth=5, resolution=32),
    Family("mobilenetv3_small_050", {}, 32, gap=nchw, depth=5, resolution=32),
    Family("test_efficientnet", {}, 32, gap=nchw, alias="gap", depth=5, resolution=32),
    Family("hiera_tiny_224", {"img_size": 64}, 64, None, lambda m, f: m.head.norm(f.mean(1)), "gap", 4),
    Family("levit_128s", {"img_size": 64}, 64, gap=tokens(0), alias="gap", depth=3),
    Family("levit_conv_128s", {"img_size": 64}, 64, gap=nchw, alias="gap", depth=3),
    Family("vit_tiny_r_s16_p8_224", {**VIT, "img_size": 64}, 64, first, tokens(1), "cls"),
    Family("coat_tiny", {"img_size": 64}, 64, depth=0),
    Family("volo_d1_224", {"img_size": 64}, 64, depth=0),
    Family("pit_ti_224", {"img_size": 64}, 64, depth=0),
]


def make(name: str, **options: Any) -> Any:
    """A model with random weights, its norms no longer at the identity."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer += 0.1 * torch.randn_like(buffer)
    return model


def save(state: dict[str, Tensor], path: Path) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def spec(name: str, checkpoint: Path | None = None, resolution: int | None = None, **options: Any) -> str:
    parts = [f"timm:{name}", *(f"model.{key}={value}" for key, value in options.items())]
    parts += [f"resolution={resolution}"] if resolution else []
    parts += [f"checkpoint={checkpoint}"] if checkpoint else []
    return ",".join(parts)


def load(text: str, **options: Any) -> Backbone:
    return load_backbone(text, device="cpu", **options)


def refusal(kind: type[VitbenchError], text: str) -> str:
    with pytest.raises(kind) as caught:
        load(text)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("timm")


@pytest.fixture(scope="module")
def vit(folder: Path) -> tuple[Any, Path]:
    model = make("vit_tiny_patch16_224", **VIT)
    return model, save(model.state_dict(), folder / "vit.safetensors")


@contextmanager
def counted(modules: dict[str, nn.Module]) -> Iterator[dict[str, int]]:
    calls = dict.fromkeys(modules, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in modules.items()]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES, ids=[f"{i}-{family}" for i, family in enumerate(FAMILIES)])
def test_every_family(family: Family, folder: Path) -> None:
    model = make(family.name, **family.options)
    path = save(model.state_dict(), folder / "family.safetensors")
    backbone = load(spec(family.name, path, family.resolution, **family.options))
    pixels = torch.randn(2, 3, family.size, family.size)
    with torch.inference_mode():
        features = model.forward_features(pixels)
        expected = {"pooler": model.forward_head(features, pre_logits=True)}
        if family.cls:
            expected["cls"] = family.cls(model, features)
        if family.gap:
            expected["gap"] = family.gap(model, features)

    assert list(backbone.representations) == ["cls", "gap", "pooler"]
    assert set(backbone.available()) == set(expected)
    for name in {"cls", "gap", "pooler"} - set(expected):
        assert backbone.representations[name].provenance == "absent"
        with pytest.raises(RepresentationError, match=backbone.representations[name].reason):
            backbone.encode(pixels, [name])
    computed = backbone.encode(pixels, expected)
    for name, value in expected.items():
        assert backbone.dim(name) == value.shape[1]
        torch.testing.assert_close(computed[name], value, rtol=1e-6, atol=1e-6)

    assert backbone.representations["pooler"].alias_of == family.alias
    if family.alias:
        torch.testing.assert_close(computed["pooler"], computed[family.alias], rtol=1e-5, atol=1e-5)
    else:
        for name in expected.keys() - {"pooler"}:
            same = computed[name].shape == computed["pooler"].shape
            assert not same or (computed[name] - computed["pooler"]).abs().max() > 1e-2

    assert backbone.depth == family.depth
    assert len(backbone.layer_dims) == (family.depth + 1 if family.depth else 0)
    names = [f"{pooling}@{layer}" for pooling in backbone.layer_poolings for layer in range(1, family.depth + 1)]
    layers = backbone.encode(pixels, names)
    for name, value in layers.items():
        assert value.shape == (2, backbone.dim(name))
        assert value.isfinite().all()
    for pooling in backbone.layer_poolings:
        torch.testing.assert_close(layers[f"{pooling}@{family.depth}"], computed[pooling], rtol=1e-6, atol=1e-6)
    assert backbone.input_size == (family.size, family.size)
    assert not any(parameter.requires_grad for parameter in backbone.modules[0].parameters())
    assert not any(module.training for module in backbone.modules[0].modules())


def test_layers_of_a_vit_are_its_blocks_by_hand(vit: tuple[Any, Path]) -> None:
    model, path = vit
    backbone = load(spec("vit_tiny_patch16_224", path, **VIT))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        hidden = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels))))
        by_hand = [model.norm(hidden)]
        for block in model.blocks:
            hidden = block(hidden)
            by_hand.append(model.norm(hidden))
    computed = backbone.encode(pixels, ["cls@0", "gap@0", "cls@1", "gap@1", "cls@-1", "gap@-2"])
    for name, layer in {"cls@0": 0, "cls@1": 1, "cls@-1": 2}.items():
        torch.testing.assert_close(computed[name], by_hand[layer][:, 0], rtol=1e-6, atol=1e-6)
    for name, layer in {"gap@0": 0, "gap@1": 1, "gap@-2": 1}.items():
        torch.testing.assert_close(computed[name], by_hand[layer][:, 1:].mean(1), rtol=1e-6, atol=1e-6)


def test_layers_pass_a_norm_that_comes_after_the_pooling(folder: Path) -> None:
    options = {**VIT, "global_pool": "avg"}
    model = make("vit_tiny_patch16_224", **options)
    backbone = load(spec("vit_tiny_patch16_224", save(model.state_dict(), folder / "avg.safetensors"), **options))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        hidden = model.blocks[0](model._pos_embed(model.patch_embed(pixels)))
        by_hand = model.fc_norm(hidden[:, 1:].mean(1))
    torch.testing.assert_close(backbone.encode(pixels, ["gap@1"])["gap@1"], by_hand, rtol=1e-6, atol=1e-6)


def test_layers_of_a_resnet_are_its_stages_by_hand(folder: Path) -> None:
    model = make("resnet18")
    backbone = load(spec("resnet18", save(model.state_dict(), folder / "resnet.safetensors"), 64))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        stem = model.act1(model.bn1(model.conv1(pixels)))
        stage = model.layer1(model.maxpool(stem))
    computed = backbone.encode(pixels, ["gap@1", "gap@2", "gap@-1", "gap"])
    torch.testing.assert_close(computed["gap@1"], stem.mean((2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(computed["gap@2"], stage.mean((2, 3)), rtol=1e-6, atol=1e-6)
    for name in ("gap@0", "gap@-6"):
        with pytest.raises(RepresentationError, match="layers go from 1 to 5"):
            backbone.resolve(name)


def test_one_pass_gives_everything(vit: tuple[Any, Path]) -> None:
    backbone = load(spec("vit_tiny_patch16_224", vit[1], **VIT))
    blocks = dict(backbone.modules[0].blocks.named_children())
    with counted(blocks) as calls:
        backbone.encode(torch.randn(1, 3, 32, 32), ["cls", "gap", "pooler", "cls@0", "gap@1", "cls@2", "cls+gap@-2"])
    assert calls == {"0": 1, "1": 1}
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in backbone.modules[0].blocks)


def test_one_pass_through_stages(folder: Path) -> None:
    path = save(make("resnet18").state_dict(), folder / "resnet.safetensors")
    backbone = load(spec("resnet18", path, 32))
    stages = {name: getattr(backbone.modules[0], name) for name in ("conv1", "layer1", "layer4")}
    with counted(stages) as calls:
        backbone.encode(torch.randn(1, 3, 32, 32), ["gap", "pooler", "gap@1", "gap@3", "gap@5"])
    assert set(calls.values()) == {1}


def test_the_trunk_does_not_run_at_load(vit: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the trunk ran")

    monkeypatch.setattr("timm.models.vision_transformer.Block.forward", forbidden)
    assert load(spec("vit_tiny_patch16_224", vit[1], **VIT)).representations["pooler"].alias_of == "cls"


def test_attention_is_not_changed_by_reading_layers(vit: tuple[Any, Path]) -> None:
    backbone = load(spec("vit_tiny_patch16_224", vit[1], **VIT))
    pixels = torch.randn(1, 3, 32, 32)
    plain = backbone.encode(pixels, ["cls"])["cls"]
    assert torch.equal(backbone.encode(pixels, ["cls", "cls@1", "gap@0"])["cls"], plain)
    assert all(block.attn.fused_attn for block in backbone.modules[0].blocks)


# Traps of the reference protocols, section 5.1.


def test_trap_a_class_token_checkpoint_in_a_gap_model_is_refused(vit: tuple[Any, Path]) -> None:
    message = refusal(WeightsError, spec("vit_tiny_patch16_224", vit[1], **VIT, global_pool="avg"))
    for word in ("fc_norm.weight", "fc_norm.bias", "norm.weight", "norm.bias", "model.fc_norm=false"):
        assert word in message


def test_trap_a_the_other_way_round(folder: Path, vit: tuple[Any, Path]) -> None:
    state = make("vit_tiny_patch16_224", **VIT, global_pool="avg").state_dict()
    message = refusal(WeightsError, spec("vit_tiny_patch16_224", save(state, folder / "avg.safetensors"), **VIT))
    assert "model.global_pool=avg" in message


def test_trap_c_gap_of_a_class_token_checkpoint_is_the_mean_of_normed_patches(vit: tuple[Any, Path]) -> None:
    model, path = vit
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model.forward_features(pixels)[:, 1:].mean(1)
    for options in ({}, {"global_pool": "avg", "fc_norm": "false"}):
        backbone = load(spec("vit_tiny_patch16_224", path, **{**VIT, **options}))
        torch.testing.assert_close(backbone.encode(pixels, ["gap"])["gap"], expected, rtol=1e-6, atol=1e-6)
    assert backbone.representations["pooler"].alias_of == "gap"


def jax_arrays(model: Any) -> dict[str, np.ndarray]:
    """The weights of a timm ViT in the paper's layout, with a `pre_logits` layer."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "pre_logits/kernel": np.eye(width, dtype=np.float32),
        "pre_logits/bias": np.zeros(width, np.float32),
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        theirs, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        for norm, name in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{theirs}{norm}/scale"] = state[f"{ours}{name}.weight"]
            arrays[f"{theirs}{norm}/bias"] = state[f"{ours}{name}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        weights = np.split(state[f"{ours}attn.qkv.weight"], 3)
        biases = np.split(state[f"{ours}attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for number in (0, 1):
            arrays[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}mlp.fc{number + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}mlp.fc{number + 1}.bias"]
    return arrays


@pytest.fixture(scope="module")
def npz(vit: tuple[Any, Path], folder: Path) -> Path:
    np.savez(folder / "vit.npz", **jax_arrays(vit[0]))
    return folder / "vit.npz"


def test_npz_gives_the_same_model_as_the_state_dict(vit: tuple[Any, Path], npz: Path) -> None:
    backbone = load(spec("vit_tiny_patch16_224", npz, **VIT))
    assert backbone.weights_digest == load(spec("vit_tiny_patch16_224", vit[1], **VIT)).weights_digest
    assert any("pre_logits" in note and "ignored" in note for note in backbone.provenance_notes)


def test_trap_b_npz_in_a_gap_model_is_refused(npz: Path) -> None:
    message = refusal(WeightsError, spec("vit_tiny_patch16_224", npz, **VIT, global_pool="avg"))
    assert "fc_norm.weight" in message
    assert "fc_norm.bias" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depth": 1}, "encoderblock_1"),
        ({"depth": 3}, "encoderblock_2"),
        ({"embed_dim": 12}, "fails"),
        ({"class_token": "false", "global_pool": "avg"}, "cls"),
    ],
)
def test_npz_of_another_shape_is_refused(npz: Path, change: dict[str, Any], said: str) -> None:
    assert said in refusal(WeightsError, spec("vit_tiny_patch16_224", npz, **{**VIT, **change}))


def test_npz_position_embeddings_are_resized_and_noted(npz: Path) -> None:
    backbone = load(spec("vit_tiny_patch16_224", npz, **{**VIT, "img_size": 64}))
    assert any("[1, 5, 24] resized to [1, 17, 24]" in note for note in backbone.provenance_notes)


def test_npz_that_is_none_is_refused(folder: Path) -> None:
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 no")
    assert "damaged" in refusal(WeightsError, spec("vit_tiny_patch16_224", folder / "broken.npz", **VIT))
    np.savez(folder / "other.npz", x=np.zeros(3))
    assert "embedding/kernel" in refusal(WeightsError, spec("vit_tiny_patch16_224", folder / "other.npz", **VIT))
    assert "VisionTransformer" in refusal(WeightsError, spec("resnet18", folder / "other.npz"))


# Strict loading.


def test_wrong_depths_and_widths_are_refused(vit: tuple[Any, Path], folder: Path) -> None:
    path = vit[1]
    message = refusal(WeightsError, spec("vit_tiny_patch16_224", path, **{**VIT, "depth": 1}))
    assert "it has 12 that the model has not" in message
    assert "blocks.1." in message
    message = refusal(WeightsError, spec("vit_tiny_patch16_224", path, **{**VIT, "depth": 3}))
    assert "it lacks 12 tensors" in message
    assert "blocks.2.norm1.weight" in message
    message = refusal(WeightsError, spec("vit_tiny_patch16_224", path, **{**VIT, "embed_dim": 12}))
    assert "[24] in the file and [12] in the model" in message or "24" in message
    distilled = make("deit_tiny_distilled_patch16_224", **VIT).state_dict()
    refusal(WeightsError, spec("vit_tiny_patch16_224", save(distilled, folder / "distilled.safetensors"), **VIT))
    assert "it lacks" in refusal(WeightsError, spec("resnet18", path))


def test_one_missing_tensor_is_named(vit: tuple[Any, Path], folder: Path) -> None:
    state = vit[0].state_dict()
    del state["blocks.1.mlp.fc2.bias"]
    message = refusal(WeightsError, spec("vit_tiny_patch16_224", save(state, folder / "x.safetensors"), **VIT))
    assert "it lacks 1 tensors (blocks.1.mlp.fc2.bias)" in message


def test_nan_is_refused(vit: tuple[Any, Path], folder: Path) -> None:
    state = {name: tensor.clone() for name, tensor in vit[0].state_dict().items()}
    state["blocks.1.norm2.bias"][3] = torch.nan
    message = refusal(WeightsError, spec("vit_tiny_patch16_224", save(state, folder / "x.safetensors"), **VIT))
    assert "NaN in blocks.1.norm2.bias" in message


def test_the_classifier_is_no_part_of_the_model(folder: Path) -> None:
    """Heads of any size, or none, and half precision: one model, one digest."""
    backbones = []
    for classes in (0, 7, 1000):
        state = make("vit_tiny_patch16_224", **VIT, num_classes=classes).state_dict()
        state = {name: tensor.half().float() for name, tensor in state.items()}
        trunk = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        torch.manual_seed(0)
        path = save({name: tensor.half() for name, tensor in state.items()}, folder / f"{classes}.safetensors")
        backbones.append(load(spec("vit_tiny_patch16_224", path, **VIT)))
        assert backbones[-1].num_parameters == sum(tensor.numel() for tensor in trunk.values())
    state = load_file(folder / "1000.safetensors")
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    headless = load(spec("vit_tiny_patch16_224", save(headless, folder / "headless.safetensors"), **VIT))
    assert headless.weights_digest == backbones[-1].weights_digest
    assert not any("classifier" in note for note in headless.provenance_notes)
    assert any("head.weight" in note for note in backbones[-1].provenance_notes)
    assert {parameter.dtype for parameter in headless.modules[0].parameters()} == {torch.float32}


def test_counters_of_batch_norm_may_be_absent_and_do_not_count(folder: Path) -> None:
    state = make("resnet18").state_dict()
    bare = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    counted_state = {
        name: tensor + 1000 if name.endswith("num_batches_tracked") else tensor for name, tensor in state.items()
    }
    assert len(bare) < len(state)
    digests = {
        load(spec("resnet18", save(version, folder / "x.safetensors"), 32)).weights_digest
        for version in (state, bare, counted_state)
    }
    assert len(digests) == 1
    changed = {**bare, "layer1.0.bn1.running_mean": bare["layer1.0.bn1.running_mean"] + 1}
    assert load(spec("resnet18", save(changed, folder / "x.safetensors"), 32)).weights_digest not in digests


def test_training_checkpoints_load(vit: tuple[Any, Path], folder: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in vit[0].state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, folder / "x.pth.tar")
    backbone = load(spec("vit_tiny_patch16_224", folder / "x.pth.tar", **VIT))
    assert backbone.weights_digest == load(spec("vit_tiny_patch16_224", vit[1], **VIT)).weights_digest
    assert any("state_dict" in note for note in backbone.provenance_notes)


def test_a_pooling_without_weights_is_untrained_and_the_rest_is_not(folder: Path) -> None:
    name = "vit_base_patch16_siglip_224"
    model = make(name, **VIT)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("attn_pool.")}
    path = save(state, folder / "x.safetensors")
    backbone = load(spec(name, path, **VIT))
    pixels = torch.randn(1, 3, 32, 32)
    assert backbone.representations["pooler"].provenance == "untrained"
    assert "attn_pool.latent" in backbone.representations["pooler"].reason
    assert backbone.available() == ["gap"]
    with pytest.raises(RepresentationError, match="untrained"):
        backbone.encode(pixels, ["pooler"])
    with torch.inference_mode():
        gap = model.forward_features(pixels).mean(1)
    torch.testing.assert_close(backbone.encode(pixels, ["gap"])["gap"], gap, rtol=1e-6, atol=1e-6)
    # Let through, it is the same noise in every run.
    first_run = load(spec(name, path, **VIT), allow_untrained=True)
    torch.manual_seed(12345)
    second_run = load(spec(name, path, **VIT), allow_untrained=True)
    assert first_run.weights_digest == second_run.weights_digest
    assert torch.equal(first_run.encode(pixels, ["pooler"])["pooler"], second_run.encode(pixels, ["pooler"])["pooler"])
    del state["norm.bias"]
    assert "norm.bias" in refusal(WeightsError, spec(name, save(state, folder / "x.safetensors"), **VIT))


def test_a_head_norm_without_weights_is_left_out_of_gap(folder: Path) -> None:
    """As the FCMAE checkpoints of ConvNeXt V2 are: pretraining ends before the head."""
    options = {"depths": (1, 1, 1, 1)}
    model = make("convnextv2_atto", **options)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    backbone = load(spec("convnextv2_atto", save(state, folder / "x.safetensors"), 32, **options))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        plain = model.forward_features(pixels).mean((2, 3))
    assert backbone.representations["pooler"].provenance == "untrained"
    torch.testing.assert_close(backbone.encode(pixels, ["gap"])["gap"], plain, rtol=1e-6, atol=1e-6)


def test_no_global_pooling_means_no_pooler(vit: tuple[Any, Path]) -> None:
    backbone = load(spec("vit_tiny_patch16_224", vit[1], **VIT, global_pool="''"))
    assert backbone.available() == ["cls", "gap"]


def test_the_hidden_layer_of_a_head_is_kept(folder: Path) -> None:
    """EfficientViT's classifier is the last of five layers of its head; the other four make its pooler."""
    model = make("efficientvit_b0")
    backbone = load(spec("efficientvit_b0", save(model.state_dict(), folder / "x.safetensors"), 64))
    assert backbone.dim("pooler") == 1280
    assert backbone.dim("gap") == 128
    assert any("head.classifier.4" in note for note in backbone.provenance_notes)


# Resolution and identity.


def test_resolution_resizes_position_embeddings_and_says_so(folder: Path) -> None:
    options = {key: value for key, value in VIT.items() if key != "img_size"}
    native = make("vit_tiny_patch16_224", **options)
    path = save(native.state_dict(), folder / "native.safetensors")
    backbone = load(spec("vit_tiny_patch16_224", path, 96, **options))
    assert backbone.input_size == (96, 96)
    assert backbone.preprocessing == "resize(106,bicubic)|center_crop(96)|normalize(0.5,0.5)"
    assert backbone.modules[0].pos_embed.shape == (1, 37, 24)
    assert any("pos_embed [1, 197, 24] resized to [1, 37, 24]" in note for note in backbone.provenance_notes)
    assert backbone.architecture == "timm:vit_tiny_patch16_224(depth=2,embed_dim=24,img_size=96,num_heads=2)"
    same = load(spec("vit_tiny_patch16_224", path, **options, img_size=96))
    assert (same.architecture, same.weights_digest) == (backbone.architecture, backbone.weights_digest)
    as_is = load(spec("vit_tiny_patch16_224", path, 224, **options))
    assert as_is.architecture == "timm:vit_tiny_patch16_224(depth=2,embed_dim=24,num_heads=2)"
    assert torch.equal(as_is.modules[0].pos_embed, native.pos_embed)
    with pytest.raises(UsageError, match="takes images of 96x96"):
        backbone.encode(torch.randn(1, 3, 32, 32), ["cls"])
    assert "96, 112" in refusal(UsageError, spec("vit_tiny_patch16_224", path, 100, **options))
    assert "disagree" in refusal(UsageError, spec("vit_tiny_patch16_224", path, 96, **options, img_size=64))


def test_resolution_of_a_cnn_changes_its_input_only(folder: Path) -> None:
    path = save(make("resnet18").state_dict(), folder / "resnet.safetensors")
    backbone = load(spec("resnet18", path, 96))
    assert backbone.architecture == "timm:resnet18"
    assert backbone.weights_digest == load(spec("resnet18", path)).weights_digest
    assert backbone.preprocessing.startswith("resize(101,bicubic)|center_crop(96)|")


def test_options_that_decide_the_computation_are_in_the_architecture(folder: Path) -> None:
    path = save(make("mobilenetv2_050").state_dict(), folder / "x.safetensors")
    plain, same = load(spec("mobilenetv2_050", path, 64)), load(spec("mobilenetv2_050", path, 64, pad_type="same"))
    assert plain.architecture == "timm:mobilenetv2_050"
    assert same.architecture == "timm:mobilenetv2_050(pad_type=same)"
    assert plain.weights_digest == same.weights_digest
    pixels = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(plain.encode(pixels, ["gap"])["gap"], same.encode(pixels, ["gap"])["gap"])


def test_loading_leaves_the_random_state_alone(vit: tuple[Any, Path]) -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    load(spec("vit_tiny_patch16_224", vit[1], **VIT))
    assert torch.equal(torch.randn(3), expected)


# Names and options.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("timm:vit_tiny_patch16_22", "'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224.augreg", "'augreg_in21k'"),
        ("timm:vit_tiny_patch16_224.nothing_alike", "augreg_in21k"),
        ("timm:google/vit-base", "timm:hf-hub:google/vit-base"),
        ("timm:", "unknown timm model"),
    ],
)
def test_unknown_names_offer_the_nearest(text: str, said: str) -> None:
    assert said in refusal(UsageError, text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dept": 3}, "model.depth"),
        ({"depth": "two"}, "depth=two"),
        ({"num_heads": 5}, "divisible"),
        ({"num_classes": 5}, "model.num_classes"),
        ({"in_chans": 1}, "model.in_chans"),
        ({"features_only": "true"}, "model.features_only"),
        ({"global_pool": "median"}, "median"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(vit: tuple[Any, Path], options: dict[str, Any], said: str) -> None:
    assert said in refusal(UsageError, spec("vit_tiny_patch16_224", vit[1], **{**VIT, **options}))


def test_options_of_a_cnn_are_checked_too(folder: Path) -> None:
    path = save(make("mobilenetv2_050").state_dict(), folder / "x.safetensors")
    assert "model.pad_type" in refusal(UsageError, spec("mobilenetv2_050", path, pad_typ="same"))


def test_an_option_that_the_architecture_fixes_is_refused(folder: Path) -> None:
    path = save(make("mixer_s32_224", img_size=64).state_dict(), folder / "mixer.safetensors")
    assert "sets 'embed_dim' itself" in refusal(UsageError, spec("mixer_s32_224", path, img_size=64, embed_dim=16))


def test_a_model_without_img_size_says_so(folder: Path) -> None:
    path = save(make("resnet18").state_dict(), folder / "resnet.safetensors")
    assert "has no img_size" in refusal(UsageError, spec("resnet18", path, img_size=64))


def test_an_untrained_model_is_refused(vit: tuple[Any, Path]) -> None:
    message = refusal(WeightsError, "timm:vit_small_patch16_36x1_224")
    assert "no pretrained weights" in message
    assert "checkpoint=FILE" in message
    refusal(WeightsError, spec("vit_tiny_patch16_224", Path("random"), **VIT))


def test_a_missing_checkpoint_offers_the_nearest(vit: tuple[Any, Path], folder: Path) -> None:
    assert "vit.safetensors" in refusal(WeightsError, spec("vit_tiny_patch16_224", folder / "vti.safetensors", **VIT))


@given(
    st.one_of(
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.none(),
        st.tuples(st.integers(1, 9)),
    )
)
def test_options_are_read_as_python_literals(value: Any) -> None:
    assert parse_option(repr(value)) == value
    assert type(parse_option(repr(value))) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("same", "same"), ("true", True), ("False", False), ("none", None), ("__import__('os')", "__import__('os')")],
)
def test_options_that_are_no_literals_are_text(text: str, value: Any) -> None:
    assert parse_option(text) == value


# The Hub and folders.


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cache_on_hub(cache: Path, repository: str, files: dict[str, bytes]) -> None:
    """A cached repository, laid out as huggingface_hub lays it out."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("timm:vit_tiny_patch16_224.augreg_in21k", "timm/vit_tiny_patch16_224.augreg_in21k"),
        ("timm:vit_tiny_patch16_224", "timm/vit_tiny_patch16_224."),
        ("timm:hf-hub:org/my_model@v2", "org/my_model --revision v2"),
    ],
)
def test_weights_that_are_not_cached_are_named_with_how_to_get_them(
    no_network: Path, text: str, repository: str
) -> None:
    message = refusal(WeightsError, text)
    assert f"hf download {repository}" in message
    assert "checkpoint=FILE" in message


CONFIG = """{"architecture": "vit_tiny_patch16_224", "num_classes": 7, "global_pool": "token",
 "model_args": {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 7},
 "pretrained_cfg": {"input_size": [3, 32, 32], "fixed_input_size": true, "interpolation": "bilinear", "crop_pct": 0.5,
 "crop_mode": "squash", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "num_classes": 7, "classifier": "head"}}"""


def test_hub_models_and_folders_give_the_same(no_network: Path, vit: tuple[Any, Path], tmp_path: Path) -> None:
    state = make("vit_tiny_patch16_224", **VIT, num_classes=7).state_dict()
    weights = save(state, tmp_path / "w.safetensors").read_bytes()
    cache_on_hub(no_network, "org/my_model", {"config.json": CONFIG.encode(), "model.safetensors": weights})
    local = tmp_path / "local"
    local.mkdir()
    (local / "config.json").write_text(CONFIG)
    (local / "model.safetensors").write_bytes(weights)
    hub, here = load("timm:hf-hub:org/my_model"), load(f"timm:local-dir:{local}")
    direct = load(spec("vit_tiny_patch16_224", local / "model.safetensors", **VIT))
    assert hub.weights_digest == here.weights_digest == direct.weights_digest
    assert hub.architecture == here.architecture
    assert hub.architecture == "timm:vit_tiny_patch16_224(depth=2,embed_dim=24,num_heads=2)"
    assert hub.preprocessing == "resize(64x64,bilinear)|center_crop(32)|normalize(0.1/0.2/0.3,0.5)"
    assert hub.mean == (0.1, 0.2, 0.3)
    bigger = load(f"timm:local-dir:{local},resolution=64")
    assert bigger.architecture == "timm:vit_tiny_patch16_224(depth=2,embed_dim=24,img_size=64,num_heads=2)"
    assert bigger.modules[0].pos_embed.shape == (1, 17, 24)


def test_cached_weights_of_a_registered_model_load_without_network(no_network: Path, tmp_path: Path) -> None:
    model = make("test_vit")
    repository = timm.models.get_pretrained_cfg("test_vit").hf_hub_id
    weights = save(model.state_dict(), tmp_path / "w.safetensors").read_bytes()
    cache_on_hub(no_network, repository, {"model.safetensors": weights})
    backbone = load("timm:test_vit")
    pixels = torch.randn(1, 3, *backbone.input_size)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(backbone.encode(pixels, ["pooler"])["pooler"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "config.json"),
        ("{", "config.json"),
        ('{"model_type": "vit"}', "not a timm model"),
        ('{"architecture": "vit_tyny_patch16_224"}', "vit_tiny_patch16_224"),
        ('{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}', "model.safetensors"),
    ],
)
def test_folders_that_hold_no_model_are_refused(tmp_path: Path, config: str | None, said: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert said in refusal(VitbenchError, f"timm:local-dir:{tmp_path}")


def test_a_missing_folder_offers_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "my_model").mkdir()
    assert "my_model'" in refusal(WeightsError, f"timm:local-dir:{tmp_path}/my_modle")


# Preprocessing.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", "resize(248,bicubic)|center_crop(224)|normalize(0.5,0.5)"),
        ("vit_base_patch16_384.augreg_in21k_ft_in1k", "resize(384,bicubic)|center_crop(384)|normalize(0.5,0.5)"),
        (
            "deit_tiny_patch16_224.fb_in1k",
            "resize(248,bicubic)|center_crop(224)|normalize(0.485/0.456/0.406,0.229/0.224/0.225)",
        ),
        (
            "mobilenetv2_100.ra_in1k",
            "resize(256,bicubic)|center_crop(224)|normalize(0.485/0.456/0.406,0.229/0.224/0.225)",
        ),
        (
            "vit_base_patch16_clip_224.openai",
            "resize(248,bicubic)|center_crop(224)|"
            "normalize(0.48145466/0.4578275/0.40821073,0.26862954/0.26130258/0.27577711)",
        ),
        ("vit_base_patch16_siglip_224.webli", "resize(248,bicubic)|center_crop(224)|normalize(0.5,0.5)"),
    ],
)
def test_preprocessing_strings(name: str, expected: str) -> None:
    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    assert preprocessing_string(config) == expected


def configs() -> dict[str, dict[str, Any]]:
    """One pretrained model for every way in which timm preprocesses."""
    found: dict[str, dict[str, Any]] = {}
    for name in timm.list_pretrained():
        config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
        if max(config["input_size"]) <= 256 and config["crop_mode"] != "border":
            found.setdefault(preprocessing_string(config), {**config, "name": name})
    assert len(found) > 40
    return found


def test_preprocessing_equals_timms_own_transform_bit_for_bit() -> None:
    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        for height, width in ((211, 300), (301, 97))
    ]
    for text, config in list(configs().items())[::4]:
        arguments = {key: value for key, value in config.items() if key != "name"}
        theirs = timm.data.create_transform(**arguments, is_training=False)
        ours = transforms.parse(text)
        assert str(ours) == text
        assert torch.equal(ours(images), torch.stack([theirs(image) for image in images])), config["name"]


def test_preprocessing_without_a_form_is_refused_unless_another_is_given(folder: Path, vit: tuple[Any, Path]) -> None:
    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg("resnet18").to_dict())
    with pytest.raises(UsageError, match="border"):
        preprocessing_string({**config, "crop_mode": "border"})
    with pytest.raises(UsageError, match="128x224"):
        preprocessing_string({**config, "input_size": (3, 128, 224)})
    assert preprocessing_string({**config, "crop_mode": "squash", "crop_pct": 1.0, "input_size": (3, 128, 224)}) == (
        "resize(128x224,bicubic)|normalize(0.485/0.456/0.406,0.229/0.224/0.225)"
    )
    local = folder / "border"
    local.mkdir()
    (local / "config.json").write_text(CONFIG.replace("squash", "border"))
    (local / "model.safetensors").write_bytes(vit[1].read_bytes())
    assert "preprocess=resize(32x32,bicubic)" in refusal(UsageError, f"timm:local-dir:{local}")
    given_one = "resize(32x32,bilinear)|normalize(0.5,0.5)"
    assert load(f"timm:local-dir:{local},preprocess={given_one}").preprocessing == given_one
