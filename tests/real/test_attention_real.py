"""Attention of real weights on real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from torch import Tensor

from vitbench.analysis import attention_distance, faithfulness
from vitbench.analysis.attention import capture_attention, token_layout
from vitbench.analysis.base import Images, Options
from vitbench.analysis.output import Output
from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone


@pytest.fixture(scope="module")
def images(test_data: Path) -> Images:
    """One photograph of each flower."""
    folders = sorted(path for path in (test_data / "images" / "flowers12" / "test").iterdir() if path.is_dir())
    files = [sorted(folder.glob("*.jpg"))[3] for folder in folders]
    return Images([file.stem for file in files], files)


@pytest.fixture(scope="module")
def timm_vit(test_data: Path) -> Backbone:
    file = test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    return load_backbone(f"timm:vit_tiny_patch16_224,checkpoint={file}", device="cpu")


@pytest.fixture(scope="module")
def hf_vit(test_data: Path) -> Backbone:
    return load_backbone(f"hf:{test_data / 'weights' / 'vit_tiny_hf'}", device="cpu")


def captured(backbone: Backbone, pixels: Tensor) -> Tensor:
    found: dict[int, Tensor] = {}
    capture_attention(backbone, pixels, found.__setitem__)
    return torch.stack(list(found.values()))


def test_captured_equals_eager_and_timm(test_data: Path, images: Images, timm_vit: Backbone, hf_vit: Backbone) -> None:
    _, pixels = next(images.batches(hf_vit, 4))
    eager: Any = hf.ViTModel.from_pretrained(
        test_data / "weights" / "vit_tiny_hf", attn_implementation="eager", add_pooling_layer=False, dtype=torch.float32
    )
    with torch.inference_mode():
        theirs = torch.stack(eager.eval()(pixels, output_attentions=True).attentions)
    ours = captured(hf_vit, pixels)
    assert ours.shape == (12, 4, 3, 197, 197)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    # The same weights in timm, with another LayerNorm eps.
    torch.testing.assert_close(captured(timm_vit, pixels), ours, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["paper_pre_logits", "paper_augreg", "bigvision_tok", "bigvision_map"])
def test_jax_checkpoints(test_data: Path, name: str) -> None:
    folder = test_data / "jax_vit"
    backbone = load_backbone(f"jax:{folder / name}.npz", device="cpu")
    with np.load(folder / f"{name}.expected.npz") as expected:
        pixels = torch.from_numpy(expected["pixels"]).permute(0, 3, 1, 2)
    model: Any = backbone.modules[0]
    ours = captured(backbone, pixels)
    layout = token_layout(backbone)
    with torch.inference_mode():
        inputs = [tokens for _, tokens in model.layers(pixels)][:-1]
        for block, tokens, attention in zip(model.blocks, inputs, ours, strict=True):
            heads = (block.attention.heads, -1)
            query, key = (
                f(block.norm1(tokens)).unflatten(-1, heads) for f in (block.attention.query, block.attention.key)
            )
            scores = torch.einsum("nqhd,nkhd->nhqk", query / query.shape[-1] ** 0.5, key)
            torch.testing.assert_close(attention, scores.softmax(-1), rtol=0, atol=1e-5)
    assert ours.shape[-1] == layout.tokens
    assert layout.prefix == (0 if name == "bigvision_map" else 1)


def test_early_heads_look_near_and_late_heads_far(images: Images, timm_vit: Backbone) -> None:
    layout = token_layout(timm_vit)
    between = attention_distance.patch_distances(layout)
    few = Images(images.names[:4], images.sources[:4])
    distances = attention_distance.measure(timm_vit, few, layout, between)
    assert distances.shape == (12, 3)
    assert distances[:4].min() < 30  # two patches
    assert distances[-4:].min() > 80
    # One head, one image, one query at a time.
    _, pixels = next(few.batches(timm_vit, 4))
    attention = captured(timm_vit, pixels)[7, :, 2, 1:, 1:].double().numpy()
    rows, columns = np.divmod(np.arange(196), 14)
    slow = [
        np.average(np.hypot(rows - rows[query], columns - columns[query]) * 16, weights=one[query])
        for one in attention
        for query in range(196)
    ]
    assert distances[7, 2] == pytest.approx(np.mean(slow), rel=1e-5)


def test_attention_of_the_last_block_is_more_faithful_than_chance(
    images: Images, timm_vit: Backbone, tmp_path: Path
) -> None:
    options = Options({"steps": "3", "draws": "1"}, faithfulness.DEFAULTS)
    few = Images(images.names[:6], images.sources[:6])
    faithfulness.analyse([timm_vit], few, Output(tmp_path), options)
    table = pd.read_csv(tmp_path / "faithfulness-auc.csv").set_index(["curve", "method"])
    row = table.loc[("deletion", "attention")]
    assert row["gain_over_random"] > 2 * row["gain_standard_error"] > 0
