from __future__ import annotations

from typing import Any

import pytest
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

from vitbench.backbones.hf_preprocessing import image_preprocessing
from vitbench.errors import UsageError
from vitbench.tasks.transforms import parse

IMAGENET = "normalize(0.485/0.456/0.406,0.229/0.224/0.225)"
CLIP = "normalize(0.48145466/0.4578275/0.40821073,0.26862954/0.26130258/0.27577711)"
DINOV2 = {"size": {"shortest_edge": 256}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("processor", "resolution", "text"),
    [
        (hf.ViTImageProcessor(), None, "resize(224x224,bilinear)|normalize(0.5,0.5)"),
        (hf.ViTImageProcessor(size={"height": 32, "width": 48}), None, "resize(32x48,bilinear)|normalize(0.5,0.5)"),
        (hf.ViTImageProcessor(do_normalize=False), None, "resize(224x224,bilinear)|normalize(0,1)"),
        (
            hf.ViTImageProcessor(image_mean=[0, 0, 0], image_std=[1, 1, 1]),
            None,
            "resize(224x224,bilinear)|normalize(0,1)",
        ),
        (hf.ViTImageProcessor(rescale_factor=0.003921569), None, "resize(224x224,bilinear)|normalize(0.5,0.5)"),
        (hf.DeiTImageProcessor(), None, "resize(256x256,bicubic)|central_crop(224)|normalize(0.5,0.5)"),
        (hf.DeiTImageProcessor(), 384, "resize(439x439,bicubic)|central_crop(384)|normalize(0.5,0.5)"),
        (hf.CLIPImageProcessor(), None, f"resize(224,bicubic)|central_crop(224)|{CLIP}"),
        (hf.CLIPImageProcessor(), 336, f"resize(336,bicubic)|central_crop(336)|{CLIP}"),
        (
            hf.CLIPImageProcessor(crop_size={"height": 32, "width": 48}),
            None,
            f"resize(224,bicubic)|central_crop(32x48)|{CLIP}",
        ),
        (hf.BitImageProcessor(**DINOV2), None, f"resize(256,bicubic)|central_crop(224)|{IMAGENET}"),
        (hf.BitImageProcessor(**DINOV2), 518, f"resize(592,bicubic)|central_crop(518)|{IMAGENET}"),
        (
            hf.SiglipImageProcessor(size={"height": 384, "width": 384}),
            None,
            "resize(384x384,bicubic)|normalize(0.5,0.5)",
        ),
        (hf.SiglipImageProcessor(resample=1), None, "resize(224x224,lanczos)|normalize(0.5,0.5)"),
        (hf.DINOv3ViTImageProcessor(), None, f"resize(224x224,bilinear)|{IMAGENET}"),
        (
            hf.ConvNextImageProcessor(size={"shortest_edge": 224}, resample=3),
            None,
            "resize(256,bicubic)|central_crop(224)|normalize(0.5,0.5)",
        ),
        (hf.ConvNextImageProcessor(size={"shortest_edge": 224}), 384, "resize(384x384,bicubic)|normalize(0.5,0.5)"),
        (hf.ConvNextImageProcessor(), 288, "resize(329,bicubic)|central_crop(288)|normalize(0.5,0.5)"),
        (
            hf.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.95),
            None,
            "resize(235,bicubic)|central_crop(224)|normalize(0.5,0.5)",
        ),
    ],
)
def test_image_processor_as_a_string(processor: Any, resolution: int | None, text: str) -> None:
    found = image_preprocessing(processor, resolution)
    assert found.text == text
    # It is canonical, and says of itself what the grammar says of it.
    assert str(parse(text)) == text
    assert parse(text).output_size == found.size


@pytest.mark.parametrize(
    ("processor", "resolution", "message"),
    [
        (hf.ViTImageProcessor(do_rescale=False), None, "do_rescale"),
        (hf.ViTImageProcessor(rescale_factor=1 / 127.5), None, "not by 1/255"),
        (hf.ViTImageProcessor(do_resize=False), None, "does not resize"),
        (hf.ViTImageProcessor(do_pad=True, pad_size={"height": 256, "width": 256}), None, "pads"),
        (hf.ViTImageProcessor(size={"shortest_edge": 224}), None, "images differ in size"),
        (hf.ViTImageProcessor(size={"shortest_edge": 224, "longest_edge": 500}), None, "not known here"),
        (hf.ViTImageProcessor(size={"height": 32, "width": 48}), 64, "is for square ones"),
        (hf.ViTImageProcessor(image_mean=[0.5], image_std=[0.5]), None, "1 channels"),
        (hf.CLIPImageProcessor(crop_size=256), None, "crops to more than it resizes to"),
        (hf.MobileViTImageProcessor(), None, "are not known here"),
    ],
)
def test_image_processor_that_no_string_can_say(processor: Any, resolution: int | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        image_preprocessing(processor, resolution)
    assert message in str(caught.value)


@given(size=st.integers(16, 600), extra=st.integers(0, 100), resolution=st.integers(16, 1024))
def test_resolution_scales_in_proportion(size: int, extra: int, resolution: int) -> None:
    processor = hf.BitImageProcessor(size={"shortest_edge": size + extra}, crop_size=size)
    found = image_preprocessing(processor, resolution)
    short = int(found.text.split("(")[1].split(",")[0])
    assert found.size == (resolution, resolution)
    assert short >= resolution
    assert abs(short * size - (size + extra) * resolution) <= size / 2 + 1
