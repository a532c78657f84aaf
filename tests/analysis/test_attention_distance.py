from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ImageFolderMaker
from vitbench.analysis.attention import TokenLayout, capture_attention, token_layout
from vitbench.analysis.attention_distance import DEFAULTS, analyse, mean_distances, patch_distances
from vitbench.analysis.base import Options, images_of_folder
from vitbench.analysis.output import Output
from vitbench.backbones.load import load_backbone
from vitbench.errors import UsageError


def layout(height: int, width: int, patch_h: int = 16, patch_w: int = 16, prefix: int = 1) -> TokenLayout:
    return TokenLayout(prefix, height, width, patch_h, patch_w, True)


def closed_form(height: int, width: int, patch_h: int, patch_w: int) -> float:
    """Mean distance between two cells of a grid drawn independently: there are (h-|i|)(w-|j|) pairs that are (i, j) apart."""
    offsets = itertools.product(range(1 - height, height), range(1 - width, width))
    total = sum((height - abs(i)) * (width - abs(j)) * math.hypot(i * patch_h, j * patch_w) for i, j in offsets)
    return total / (height * width) ** 2


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_uniform_attention_has_the_closed_form_and_identity_has_0(
    height: int, width: int, patch_h: int, patch_w: int, prefix: int
) -> None:
    grid = layout(height, width, patch_h, patch_w, prefix)
    between = patch_distances(grid)
    uniform = torch.full((2, 3, grid.tokens, grid.tokens), 1 / grid.tokens)
    expected = torch.full((2, 3), closed_form(height, width, patch_h, patch_w))
    torch.testing.assert_close(mean_distances(uniform, prefix, between), expected)
    identity = torch.eye(grid.tokens).expand(2, 3, -1, -1)
    assert mean_distances(identity, prefix, between).abs().max() == 0


def test_known_distances() -> None:
    between = patch_distances(layout(2, 2))
    assert between[0].tolist() == pytest.approx([0, 16, 16, 16 * math.sqrt(2)])
    # Every patch looks at the next one in the row of four: 1 to the right, then down and left, then right, then home.
    attention = torch.eye(4).roll(1, dims=1)[None, None]
    assert mean_distances(attention, 0, between).item() == pytest.approx((16 + 16 * math.sqrt(2)) / 2)


def test_prefix_tokens_are_left_out_and_the_rest_is_renormalised() -> None:
    between = patch_distances(layout(1, 2))
    attention = torch.zeros(1, 1, 4, 4)
    attention[..., :2, :] = 0.25  # the queries of prefix tokens must not count
    attention[..., 2, :] = torch.tensor([0.5, 0.1, 0.1, 0.3])
    attention[..., 3, :] = torch.tensor([0.9, 0.0, 0.0, 0.1])
    # Patch 0 gives 0.3 of 0.4 to its neighbour 16 px away, patch 1 nothing.
    assert mean_distances(attention, 2, between).item() == pytest.approx((0.75 * 16 + 0) / 2)


def test_a_query_that_sees_no_patch_is_left_out() -> None:
    between = patch_distances(layout(1, 2))
    attention = torch.tensor([[[[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]]])
    assert mean_distances(attention, 1, between).item() == 16
    attention = torch.tensor([[[[1.0, 0, 0]] * 3]])
    assert mean_distances(attention, 1, between).isnan().all()


def test_analysis_averages_over_images(tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    model: Any = backbone.modules[0]
    for block in model.blocks:
        block.attn.qkv.weight.mul_(15)  # far from uniform attention
    images = images_of_folder(image_folder(train=6, test=1))
    assert len(images) == 21  # more than one batch
    (line,) = analyse([backbone], images, Output(tmp_path / "out"), Options({}, DEFAULTS))
    rows = list(csv.DictReader((tmp_path / "out" / "attention-distance.csv").open()))
    assert [(row["layer"], row["head"]) for row in rows] == [
        ("1", "1"),
        ("1", "2"),
        ("1", "3"),
        ("2", "1"),
        ("2", "2"),
        ("2", "3"),
    ]
    found: list[list[float]] = []
    for _, pixels in images.batches(backbone, 1):
        one: list[float] = []
        between = patch_distances(token_layout(backbone))
        capture_attention(backbone, pixels, lambda layer, a: one.extend(mean_distances(a, 1, between)[0].tolist()))  # noqa: B023
        found.append(one)
    assert np.std(found) > 0.3
    np.testing.assert_allclose([float(row["distance"]) for row in rows], np.mean(found, axis=0), rtol=1e-6)
    arrays = np.load(tmp_path / "out" / "attention-distance.npz")
    assert arrays["distance"].shape == (2, 3)
    assert float(arrays["uniform"]) == pytest.approx(closed_form(2, 2, 16, 16))
    assert "over 21 images" in line
    assert "uniform attention: 13.7 px" in line
    assert (tmp_path / "out" / "attention-distance.svg").stat().st_size > 1000


def test_two_backbones_are_refused(tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    images = images_of_folder(image_folder())
    with pytest.raises(UsageError, match="attention-distance takes one backbone, got 2"):
        analyse([backbone, backbone], images, Output(tmp_path), Options({}, DEFAULTS))
