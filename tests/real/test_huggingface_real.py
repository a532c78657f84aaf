"""The Hugging Face adapter on real weights and real images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from vitbench.backbones.hf_preprocessing import image_preprocessing
from vitbench.backbones.huggingface import HuggingFaceBackbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import RepresentationError

FloatArray = npt.NDArray[np.float32]


def apply(text: str, image: Image.Image) -> FloatArray:
    """What a preprocessing string means, said once more with PIL: `[H, W, 3]` float32."""
    pixels: FloatArray = np.zeros(0, dtype=np.float32)
    for step in text.split("|"):
        match = re.fullmatch(r"(\w+)\(([^,]*),?(.*)\)", step)
        assert match is not None
        name, first, second = match.groups()
        width, height = image.size
        if name == "resize":
            sides = [int(side) for side in first.split("x")]
            short = min(width, height)
            new = sides if len(sides) == 2 else [sides[0] * height // short, sides[0] * width // short]
            image = image.resize((new[1], new[0]), Image.Resampling[second.upper()])
        elif name == "central_crop":
            side = int(first)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        else:
            mean, std = (np.array([float(x) for x in part.split("/")], dtype=np.float32) for part in (first, second))
            pixels = (np.asarray(image, dtype=np.float32) / 255 - mean) / std
    return pixels


@pytest.fixture(scope="module")
def images(test_data: Path) -> list[Image.Image]:
    """Photographs of various sizes and aspects, all of them resampled by every processor below."""
    paths = sorted((test_data / "images" / "imagenet_sample200" / "images").glob("*.jpg"))[::17]
    return [Image.open(path).convert("RGB") for path in paths]


@pytest.fixture(scope="module")
def pixels(test_data: Path, images: list[Image.Image]) -> Tensor:
    text = load(test_data / "weights" / "vit_tiny_hf").preprocessing
    return torch.stack([torch.from_numpy(apply(text, image)).permute(2, 0, 1) for image in images])


def load(folder: Path) -> HuggingFaceBackbone:
    return HuggingFaceBackbone(parse_backbone_spec(f"hf:{folder}"))


@pytest.fixture(scope="module")
def timm_tokens(test_data: Path, pixels: Tensor) -> Tensor:
    """`[N, 197, 192]`, the same weights in timm."""
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=200).eval()
    weights = load_file(test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    with torch.inference_mode():
        tokens: Tensor = model.forward_features(pixels)
    return tokens


def test_pooler_of_the_real_classifier_checkpoint_is_untrained(test_data: Path, pixels: Tensor) -> None:
    backbone = load(test_data / "weights" / "vit_tiny_hf")
    assert backbone.available() == ["cls", "gap"]
    assert backbone.preprocessing == "resize(224x224,bilinear)|normalize(0.5,0.5)"
    with pytest.raises(RepresentationError, match="untrained"):
        backbone.encode(pixels[:1], ["pooler"])


# Over all 200 sample images the two eps move cls by up to 1.2e-4 and gap by up to 5.8e-5, of values up to 33.
@pytest.mark.parametrize(("eps", "cls_tolerance", "gap_tolerance"), [(1e-12, 1.5e-4, 6e-5), (1e-6, 1e-5, 1e-5)])
def test_features_equal_timms_once_eps_agrees(
    eps: float,
    cls_tolerance: float,
    gap_tolerance: float,
    test_data: Path,
    tmp_path: Path,
    pixels: Tensor,
    timm_tokens: Tensor,
) -> None:
    source = test_data / "weights" / "vit_tiny_hf"
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).symlink_to(source / name)
    config = json.loads((source / "config.json").read_text())
    assert config["layer_norm_eps"] == 1e-12
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": eps}))
    got = load(tmp_path).encode(pixels, ["cls", "gap", "cls@12"])
    moved = float((got["cls"] - timm_tokens[:, 0]).abs().max())
    assert moved < cls_tolerance
    assert torch.equal(got["cls@12"], got["cls"])
    assert float((got["gap"] - timm_tokens[:, 1:].mean(1)).abs().max()) < gap_tolerance
    if eps == 1e-12:  # and eps is why: the difference is no rounding
        assert moved > 1e-5


PROCESSORS = {
    "vit": (hf.ViTImageProcessor, hf.ViTImageProcessorPil, {}),
    "deit": (hf.DeiTImageProcessor, hf.DeiTImageProcessorPil, {}),
    "clip": (hf.CLIPImageProcessor, hf.CLIPImageProcessorPil, {}),
    "dinov2": (hf.BitImageProcessor, hf.BitImageProcessorPil, {"size": {"shortest_edge": 256}}),
    "siglip": (hf.SiglipImageProcessor, hf.SiglipImageProcessorPil, {}),
    "convnext": (hf.ConvNextImageProcessor, hf.ConvNextImageProcessorPil, {"size": {"shortest_edge": 224}}),
    "convnext 384": (hf.ConvNextImageProcessor, hf.ConvNextImageProcessorPil, {}),
}


@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_string_is_the_processors_own_preprocessing_up_to_rounding(
    name: str, resample: int, images: list[Image.Image]
) -> None:
    fast, pil, options = PROCESSORS[name]
    text = image_preprocessing(fast(resample=resample, **options)).text
    assert image_preprocessing(pil(resample=resample, **options)).text == text
    std = float(text.rstrip(")").split(",")[-1].split("/")[0])
    # In units of 255. PIL's processor is the same arithmetic; torchvision's differs in rounding, and bicubic near hard edges.
    bounds = {pil: (1e-3, 1e-4), fast: (2.01 if resample == 2 else 16, 0.35)}
    for processor, (worst, average) in bounds.items():
        made = processor(resample=resample, **options)(images=images, return_tensors="np").pixel_values
        for got, image in zip(made, images, strict=True):
            difference = np.abs(got.transpose(1, 2, 0) - apply(text, image)) * std * 255
            assert difference.max() <= worst
            assert difference.mean() <= average


def test_dinov3_resizes_without_rounding_between(images: list[Image.Image]) -> None:
    processor = hf.DINOv3ViTImageProcessor(do_normalize=False)
    made = processor(images=images, return_tensors="np").pixel_values
    for got, image in zip(made, images, strict=True):
        difference = np.abs(got.transpose(1, 2, 0) - apply(image_preprocessing(processor).text, image)) * 255
        assert difference.max() <= 1.01
        assert difference.mean() <= 0.35
