"""The cost of real backbones, against what is known of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.features.cost import count_flops
from vitbench.features.cost_memory import weight_bytes
from vitbench.features.load import load_backbone


def test_flops_and_weights_of_a_real_vit_and_a_real_cnn(test_data: Path) -> None:
    weights = test_data / "weights"
    file = weights / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    vit = load_backbone(f"timm:vit_tiny_patch16_224,checkpoint={file}", device="cpu")
    tokens, width = 197, 192
    # By hand: patch embedding; per block 12 D² per token in matrices, and two products of attention.
    by_hand = 2 * (196 * width * 3 * 16 * 16 + 12 * (tokens * 12 * width * width + 2 * tokens * tokens * width))
    assert count_flops(vit) == by_hand == 2_506_982_400
    assert weight_bytes(vit) == 4 * vit.num_parameters
    file = weights / "mobilenetv2_100.imagenet1k.fp16.safetensors"
    cnn = load_backbone(f"timm:mobilenetv2_100,checkpoint={file},model.pad_type=same", device="cpu")
    # Sandler et al. 2018, table 4: 300 million multiply-adds, the classifier's 1.3 million included.
    assert (count_flops(cnn) or 0) / 2e6 == pytest.approx(300, rel=0.01)
