"""The checkpoint's own classifier: what it reads, in every family, against the logits of its own library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.backbones.test_huggingface import CASES, SIZE, shake
from tests.backbones.test_huggingface import save as save_hf
from tests.backbones.test_jax_npz import prefixed
from tests.backbones.test_jax_npz import vit as jax_vit
from tests.backbones.test_timm import FAMILIES, VIT, Family, make, save, spec
from vitbench.backbones.base import Backbone
from vitbench.backbones.classifier import (
    HEAD_FILE,
    Classifier,
    imagenet_classes,
    make_classifier,
    read_head_file,
    wordnet_words,
    write_head,
)
from vitbench.backbones.load import load_backbone
from vitbench.errors import WeightsError

NOT_LINEAR = {
    "deit_tiny_distilled_patch16_224": "it has 2 classifiers (head, head_dist)",
    "levit_128s": "it has 2 classifiers (head, head_dist)",
    "levit_conv_128s": "it has 2 classifiers (head, head_dist)",
    "coat_tiny": "its features are a list of token grids",
    "volo_d1_224": "it has 2 classifiers (aux_head, head)",
    "pit_ti_224": "its features are class tokens without patches",
}
"""What has no classifier that is one linear layer on its pooled features, and why."""


def logits_of(backbone: Backbone, pixels: Tensor) -> Tensor:
    classifier = backbone.classifier()
    assert classifier is not None, backbone.no_classifier
    assert backbone.no_classifier == ""
    features = backbone.encode(pixels, classifier.representation)[classifier.representation]
    return features @ classifier.weight.T + classifier.bias


@pytest.mark.parametrize("family", FAMILIES, ids=[f"{i}-{family}" for i, family in enumerate(FAMILIES)])
def test_timms_logits_or_a_reason(family: Family, tmp_path: Path) -> None:
    model = make(family.name, num_classes=7, **family.options)
    path = save(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone(spec(family.name, path, family.resolution, **family.options), device="cpu")
    pixels = torch.randn(2, 3, family.size, family.size, generator=torch.Generator().manual_seed(1))
    assert backbone.no_classifier == NOT_LINEAR.get(family.name, "")
    if family.name in NOT_LINEAR:
        assert backbone.classifier() is None
        return
    with torch.inference_mode():
        expected = model(pixels)
    torch.testing.assert_close(logits_of(backbone, pixels), expected, rtol=1e-4, atol=1e-4)


CLASSIFIED = {
    "vit": "cls",
    "deit": "cls",
    "dinov2": "cls+gap",
    "dinov2_with_registers": "cls+gap",
    "swin": "gap",
    "swinv2": "gap",
    "convnext": "gap",
    "convnextv2": "gap",
    "resnet": "gap",
    "bit": "gap",
}


def hf_classifier(name: str, folder: Path, **labels: Any) -> Any:
    config = type(CASES[name][0])(**CASES[name][0].to_dict())
    config.num_labels = 4
    for key, value in labels.items():
        setattr(config, key, value)
    kind = CASES[name][1].removesuffix("Model") + "ForImageClassification"
    model = shake(getattr(transformers, kind)(config))
    save_hf(model, folder)
    return model


@pytest.mark.parametrize("name", CLASSIFIED)
def test_transformers_logits(name: str, tmp_path: Path) -> None:
    model = hf_classifier(name, tmp_path)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(pixels).logits
    backbone = load_backbone(f"hf:{tmp_path}", device="cpu")
    torch.testing.assert_close(logits_of(backbone, pixels), expected, rtol=1e-4, atol=1e-4)
    classifier = backbone.classifier()
    assert classifier is not None
    assert classifier.representation == CLASSIFIED[name]
    assert classifier.class_names == ()  # LABEL_0 is what transformers writes where nobody named it


def test_siglips_logits(tmp_path: Path) -> None:
    vision = CASES["siglip_vision_model"][0]
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 8,
    }
    config = transformers.SiglipConfig(vision_config=vision.to_dict(), text_config=text, num_labels=4)
    model = shake(transformers.SiglipForImageClassification(config))
    save_hf(model, tmp_path)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(pixels).logits
    backbone = load_backbone(f"hf:{tmp_path}", device="cpu")
    torch.testing.assert_close(logits_of(backbone, pixels), expected, rtol=1e-4, atol=1e-4)


def test_hugging_faces_class_names_in_order_of_their_number(tmp_path: Path) -> None:
    names = ["tench", "n01443537", "c", "d"]
    hf_classifier("vit", tmp_path, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    classifier = load_backbone(f"hf:{tmp_path}", device="cpu").classifier()
    assert classifier is not None
    assert classifier.class_names == tuple(names)


def test_clips_classifier_reads_nothing_that_there_is(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(vision_config=CASES["clip_vision_model"][0].to_dict(), num_labels=4)
    save_hf(transformers.CLIPForImageClassification(config), tmp_path)
    backbone = load_backbone(f"hf:{tmp_path}", device="cpu")
    assert backbone.classifier() is None
    assert "none of its representations" in backbone.no_classifier


def test_two_classifiers_of_a_distilled_model(tmp_path: Path) -> None:
    config = type(CASES["deit"][0])(**CASES["deit"][0].to_dict())
    save_hf(transformers.DeiTForImageClassificationWithTeacher(config), tmp_path)
    assert "2 classifiers" in load_backbone(f"hf:{tmp_path}", device="cpu").no_classifier


@pytest.mark.parametrize(
    ("options", "reads"),
    [({}, "cls"), ({"cls": ""}, "gap"), ({"pre_logits": 16}, "pooler"), ({"cls": "", "map_heads": 3}, "pooler")],
)
def test_jax(options: dict[str, Any], reads: str, tmp_path: Path) -> None:
    arrays = prefixed("params/", jax_vit(**options))
    np.savez(tmp_path / "vit.npz", **arrays)
    backbone = load_backbone(f"jax:{tmp_path / 'vit.npz'}", device="cpu")
    classifier = backbone.classifier()
    assert classifier is not None
    assert classifier.representation == reads
    assert np.array_equal(classifier.weight.numpy(), arrays["params/head/kernel"].T)
    assert np.array_equal(classifier.bias.numpy(), arrays["params/head/bias"])


def test_a_jax_file_through_timms_loader(tmp_path: Path) -> None:
    options = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 40.5 / 24}
    found = []
    for pre_logits in (0, 24):
        path = tmp_path / f"{pre_logits}.npz"
        arrays = jax_vit(pre_logits=pre_logits)
        renamed = {
            key.replace("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
            .replace("encoderblock_", "BLOCK_")
            .replace("LayerNorm_1", "LayerNorm_2")
            .replace("MlpBlock_0", "MlpBlock_3")
            .replace("BLOCK_", "encoderblock_"): array
            for key, array in arrays.items()
        }
        np.savez(path, **renamed)
        given = ",".join(f"model.{key}={value}" for key, value in options.items())
        found.append(load_backbone(f"timm:vit_tiny_patch16_224,{given},checkpoint={path}", device="cpu"))
    classifier = found[0].classifier()
    assert classifier is not None
    assert np.array_equal(classifier.weight.numpy(), jax_vit()["head/kernel"].T)
    assert "pre_logits" in found[1].no_classifier


def test_a_checkpoint_without_one_and_pixels_say_why(tmp_path: Path) -> None:
    model = make("vit_tiny_patch16_224", num_classes=0, **VIT)
    path = save(model.state_dict(), tmp_path / "trunk.safetensors")
    backbone = load_backbone(spec("vit_tiny_patch16_224", path, None, **VIT), device="cpu")
    assert backbone.classifier() is None
    assert backbone.no_classifier == "the checkpoint holds no classifier"
    assert load_backbone("pixels", device="cpu").no_classifier


def test_it_is_loaded_without_disturbing_random_numbers(tmp_path: Path) -> None:
    model = make("vit_tiny_patch16_224", num_classes=3, **VIT)
    path = save(model.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_backbone(spec("vit_tiny_patch16_224", path, None, **VIT), device="cpu").classifier()
    assert torch.equal(torch.rand(3), expected)


def test_names_of_timm_classes(tmp_path: Path) -> None:
    """From the header of a converted file, a folder's configuration, or ImageNet's number of classes."""
    model = make("vit_tiny_patch16_224", num_classes=3, **VIT)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    header = tmp_path / "header.safetensors"
    save_file(state, header, {"vitbench": json.dumps({"labels": ["a", "b", "c"]})})
    classifier = load_backbone(spec("vit_tiny_patch16_224", header, None, **VIT), device="cpu").classifier()
    assert classifier is not None
    assert classifier.class_names == ("a", "b", "c")

    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    fields = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "label_names": ["x", "y", "z"],
        "model_args": VIT,
    }
    (folder / "config.json").write_text(json.dumps({**fields, "pretrained_cfg": {"input_size": [3, 32, 32]}}))
    classifier = load_backbone(f"timm:local-dir:{folder}", device="cpu").classifier()
    assert classifier is not None
    assert classifier.class_names == ("x", "y", "z")

    thousand = make("vit_tiny_patch16_224", num_classes=1000, **VIT)
    path = save(thousand.state_dict(), tmp_path / "thousand.safetensors")
    classifier = load_backbone(spec("vit_tiny_patch16_224", path, None, **VIT), device="cpu").classifier()
    assert classifier is not None
    assert classifier.class_names[:2] == ("n01440764", "n01443537")
    assert "imagenet-1k" in classifier.source


def test_imagenets_words() -> None:
    names, subset = imagenet_classes(1000)
    assert (len(names), subset) == (1000, "imagenet-1k")
    assert imagenet_classes(999) == ((), "")
    assert wordnet_words("n01440764") == ("tench", "Tinca tinca")
    assert wordnet_words("n99999999") == ()


def test_a_head_file_gives_back_what_was_written(tmp_path: Path) -> None:
    head = Classifier("cls+gap", torch.randn(3, 8), torch.randn(3), ("é", "b, c", ""))
    write_head(tmp_path / HEAD_FILE, head)
    back = read_head_file(tmp_path)
    assert back is not None
    assert torch.equal(back.weight, head.weight)
    assert torch.equal(back.bias, head.bias)
    assert (back.representation, back.class_names) == (head.representation, head.class_names)
    assert back.digest() == head.digest()
    assert read_head_file(tmp_path / "elsewhere") is None


def test_a_damaged_head_file_is_one_line(tmp_path: Path) -> None:
    write_head(tmp_path / HEAD_FILE, Classifier("cls", torch.randn(3, 8), torch.randn(3)))
    whole = (tmp_path / HEAD_FILE).read_bytes()
    (tmp_path / HEAD_FILE).write_bytes(whole[:-5])
    with pytest.raises(WeightsError, match="damaged") as caught:
        read_head_file(tmp_path)
    assert "\n" not in str(caught.value)
    save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, tmp_path / HEAD_FILE)
    with pytest.raises(WeightsError, match="no classifier of vitbench"):
        read_head_file(tmp_path)


def test_digest_changes_with_every_part() -> None:
    weight, bias = torch.randn(3, 8), torch.randn(3)
    digests = {
        Classifier(*parts).digest()
        for parts in (
            ("cls", weight, bias),
            ("gap", weight, bias),
            ("cls", weight + 1, bias),
            ("cls", weight, bias + 1),
        )
    }
    assert len(digests) == 4
    assert Classifier("cls", weight, bias, ("a", "b", "c"), "x").digest() in digests


def test_tensors_that_are_no_classifier() -> None:
    assert make_classifier("cls", 4, None, None) == "the checkpoint holds no classifier"
    assert "no linear layer" in str(make_classifier("cls", 4, torch.zeros(3, 5), torch.zeros(3)))
    assert "no linear layer" in str(make_classifier("cls", 4, torch.zeros(3, 4, 2, 2), torch.zeros(3)))
    convolution = make_classifier("gap", 4, torch.ones(3, 4, 1, 1), None, ("a", "b"))
    assert isinstance(convolution, Classifier)
    assert (convolution.weight.shape, convolution.bias.tolist(), convolution.class_names) == ((3, 4), [0, 0, 0], ())


def test_classifier_of_shards(tmp_path: Path) -> None:
    model = hf_classifier("vit", tmp_path)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.arange(4.0))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    assert list(tmp_path.glob("model-*.safetensors"))
    classifier = load_backbone(f"hf:{tmp_path}", device="cpu").classifier()
    assert classifier is not None
    assert classifier.bias.tolist() == [0, 1, 2, 3]


def test_timm_has_the_same_weights_as_its_own_model(tmp_path: Path) -> None:
    model = make("vit_tiny_patch16_224", num_classes=3, **VIT)
    path = save(model.state_dict(), tmp_path / "weights.safetensors")
    classifier = load_backbone(spec("vit_tiny_patch16_224", path, None, **VIT), device="cpu").classifier()
    assert classifier is not None
    assert torch.equal(classifier.weight, load_file(path)["head.weight"])
    assert timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT).head.weight.shape == classifier.weight.shape
