"""The area resize against its definition, and big_vision's op that is made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vitbench.errors import UsageError
from vitbench.tasks.area_resize import area_resize, resize_small, small_size
from vitbench.tasks.transforms import parse, resolve


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width)).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((32, 32), 448, (448, 448)),
        ((500, 333), 448, (673, 448)),
        ((333, 500), 448, (448, 673)),
        ((2, 5), 5, (5, 12)),  # 12.5, half to even
        ((2, 3), 5, (5, 8)),  # 7.5, half to even
    ],
)
def test_small_size(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    assert small_size(*size, short) == expected


@pytest.mark.parametrize("factor", [(2, 2), (3, 3), (4, 2), (1, 5)])
def test_area_resize_takes_block_means_at_whole_ratios(factor: tuple[int, int]) -> None:
    tall, wide = factor
    pixels = noise(6 * tall, 5 * wide)
    means = pixels.double().reshape(3, 6, tall, 5, wide).mean((2, 4))
    assert (area_resize(pixels, (6, 5)) - means).abs().max() < 1e-4


def test_area_resize_repeats_pixels_when_it_enlarges_by_a_whole_ratio() -> None:
    pixels = noise(4, 6)
    assert torch.equal(
        area_resize(pixels, (56, 84)).round(), pixels.repeat_interleave(14, 1).repeat_interleave(14, 2).float()
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((37, 53), (20, 29)),
        ((20, 29), (37, 53)),
        ((100, 75), (99, 74)),
        ((300, 1), (7, 1)),
        ((5, 200), (3, 119)),
        ((9, 9), (9, 9)),
    ],
)
def test_area_resize_is_the_mean_of_what_is_covered(old: tuple[int, int], new: tuple[int, int]) -> None:
    pixels = noise(*old)
    exact = torch.einsum("yh,chw,xw->cyx", covered(old[0], new[0]), pixels.double(), covered(old[1], new[1]))
    assert (area_resize(pixels, new) - exact).abs().max() < 0.02


def covered(old: int, new: int) -> Tensor:
    """`[new, old]` float64: the share of each output pixel that each input pixel covers, from the definition."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        for j in range(old):
            weights[i, j] = max(0.0, min(j + 1, (i + 1) * old / new) - max(j, i * old / new)) * new / old
    return weights


def test_area_resize_is_not_adaptive_pooling() -> None:
    pixels = noise(500, 400)
    pooled = functional.interpolate(pixels[None].float(), (448, 358), mode="area")[0]
    assert (area_resize(pixels, (448, 358)) - pooled).abs().max() > 50


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(0, 255))
def test_area_resize_keeps_a_flat_image_flat(height: int, width: int, tall: int, wide: int, level: int) -> None:
    result = area_resize(torch.full((3, height, width), level, dtype=torch.uint8), (tall, wide))
    assert (result - level).abs().max() < 0.05


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_resize_small_truncates(layout: torch.memory_format) -> None:
    pixels = noise(60, 90)[None].contiguous(memory_format=layout)[0]
    result = resize_small(pixels, 40)
    assert result.shape == (3, 40, 60)
    assert result.dtype == torch.uint8
    assert torch.equal(result, area_resize(pixels, (40, 60)).floor().to(torch.uint8))


def test_the_transfer_preset_is_big_visions_evaluation() -> None:
    half = (0.5, 0.5, 0.5)
    preset = resolve("bigvision_transfer", "resize(384x384,bicubic)|normalize(0.5,0.5)", (384, 384), half, half)
    assert str(preset) == "resize_small(448)|central_crop(384)|value_range(-1,1)"
    pixels = noise(300, 400)
    enlarged = resize_small(pixels, 448)
    top, left = (448 - 384) // 2, (enlarged.shape[2] - 384) // 2
    cropped = enlarged[:, top : top + 384, left : left + 384]
    result = preset([Image.fromarray(pixels.permute(1, 2, 0).numpy())])[0]
    torch.testing.assert_close(result, cropped.float() / 255 * 2 - 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("resize_small(448x448)|central_crop(384)|value_range(-1,1)", "short side alone"),
        ("tf_resize(64x64,bilinear)|resize_small(48)|central_crop(32)|value_range(-1,1)", "before tf_resize"),
        ("resize_small(48)|central_crop(64)|value_range(-1,1)", "never pads"),
        ("resize_small(48)|value_range(-1,1)", "different sizes"),
        ("resize_small(48)|uint8|central_crop(32)|value_range(-1,1)", "nothing to do"),
    ],
)
def test_what_resize_small_cannot_be_joined_with(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse(text)
