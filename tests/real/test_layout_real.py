"""The layout in which a convolutional model is given its images does not change features of trained weights and photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitbench.features import precision
from vitbench.features.extract import decoded_batches
from vitbench.features.load import load_backbone
from vitbench.features.precision import FLOAT32_BOUND, image_layout
from vitbench.tasks import transforms
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import TaskOptions


def test_mobilenetv2_with_the_channels_last(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_is_wide", lambda: True)
    weights = test_data / "weights" / "mobilenetv2_100.imagenet1k.fp16.safetensors"
    backbone = load_backbone(f"timm:mobilenetv2_100,checkpoint={weights}", device="cpu").to("cpu", "float32")
    split = load_task(f"imagefolder:{test_data / 'images' / 'flowers12'}", TaskOptions()).split("test")
    how = transforms.parse(backbone.preprocessing)
    rows = torch.linspace(0, len(split) - 1, 24).long().numpy()
    ((_, decoded),) = decoded_batches(split, how, rows, 24, None)
    images, layout = how.finish(decoded), image_layout(backbone.modules, backbone.device, backbone.dtype)
    assert layout == torch.channels_last
    plain, found = (
        backbone.encode(pixels, backbone.available()) for pixels in (images, images.contiguous(memory_format=layout))
    )
    for name in backbone.available():
        assert float((found[name] - plain[name]).abs().max()) <= FLOAT32_BOUND * float(plain[name].abs().max()), name
