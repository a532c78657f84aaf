"""The distributions of the crops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from vitbench.training.crops import (
    Box,
    crop_offset,
    inception_box,
    random_resized_box,
)

SIDES = st.integers(1, 600)


def shares(boxes: list[Box], height: int, width: int) -> npt.NDArray[np.float64]:
    return np.array([tall * wide for _, _, tall, wide in boxes]) / (height * width)


def test_inception_area_is_tensorflows() -> None:
    rng = np.random.default_rng(0)
    area = shares([inception_box(300, 400, rng) for _ in range(20_000)], 300, 400)
    assert area.mean() == pytest.approx(0.343, abs=0.005)
    assert np.median(area) == pytest.approx(0.296, abs=0.01)
    assert area.min() >= 0.05


def test_random_resized_area_is_torchvisions() -> None:
    rng = np.random.default_rng(0)
    area = shares([random_resized_box(300, 400, rng, (0.05, 1.0)) for _ in range(20_000)], 300, 400)
    assert area.mean() == pytest.approx(0.420, abs=0.005)
    assert np.median(area) == pytest.approx(0.409, abs=0.01)


def test_random_resized_has_torchvisions_distribution() -> None:
    image = Image.new("RGB", (90, 50))
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [0.75, 4 / 3]) for _ in range(3000)])
    ours = np.array([random_resized_box(50, 90, rng) for _ in range(3000)])
    for column in range(4):  # the whole box, one coordinate after the other
        assert scipy.stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert scipy.stats.ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > 1e-3


def test_inception_height_is_uniform_over_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    # With an aspect of 1 and 5 to 100 % of 60 x 80, heights are round(sqrt(240)) = 15 to 60; 15 x 15 is below 240, so 15 counts
    # as 16.
    heights = np.array([inception_box(60, 80, rng, aspect=(1.0, 1.0))[2] for _ in range(20_000)])
    counts = np.bincount(heights, minlength=61)[16:]
    assert counts.sum() == len(heights)
    expected = np.full(45, len(heights) / 46)
    expected[0] *= 2
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_inception_aspect_is_linear() -> None:
    rng = np.random.default_rng(0)
    # So large an image that rounding vanishes, and so small an area that every aspect fits.
    boxes = np.array([inception_box(20_000, 20_000, rng, area=(0.05, 0.2)) for _ in range(5000)])
    aspects = boxes[:, 3] / boxes[:, 2]
    assert scipy.stats.kstest(aspects, scipy.stats.uniform(0.75, 4 / 3 - 0.75).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(np.log(aspects), scipy.stats.uniform(np.log(0.75), np.log(16 / 9)).cdf).pvalue < 1e-6


def test_inception_position_is_uniform_without_the_last_place() -> None:
    rng = np.random.default_rng(0)
    boxes = [inception_box(12, 400, rng, area=(0.2, 0.21), aspect=(10.0, 10.0)) for _ in range(8000)]
    assert {box[2:] for box in boxes} == {(10, 100)}
    tops, lefts = (np.array([box[axis] for box in boxes]) for axis in (0, 1))
    assert set(tops) == {0, 1}  # and not 2
    assert lefts.max() == 299  # and not 300
    assert scipy.stats.chisquare(np.bincount(lefts // 15)).pvalue > 1e-3


def test_boxes_are_a_function_of_the_seed() -> None:
    assert [inception_box(300, 400, np.random.default_rng(seed)) for seed in range(4)] == GOLDEN_INCEPTION
    assert [random_resized_box(300, 400, np.random.default_rng(seed)) for seed in range(4)] == GOLDEN_RANDOM_RESIZED


GOLDEN_INCEPTION = [(29, 57, 189, 212), (52, 4, 245, 257), (58, 126, 105, 95), (41, 54, 125, 100)]
GOLDEN_RANDOM_RESIZED = [(28, 242, 137, 103), (2, 15, 226, 293), (38, 175, 208, 185), (27, 218, 149, 128)]


@settings(max_examples=300, deadline=None)
@given(
    SIDES, SIDES, st.integers(0, 99), st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.floats(0.2, 5), st.floats(0.2, 5)
)
def test_inception_box_keeps_its_limits(
    height: int, width: int, seed: int, one: float, two: float, first: float, second: float
) -> None:
    area, aspect = (min(one, two), max(one, two)), (min(first, second), max(first, second))
    top, left, tall, wide = inception_box(height, width, np.random.default_rng(seed), area, aspect)
    assert 0 <= top <= height - tall
    assert 0 <= left <= width - wide
    assert tall > 0
    assert wide > 0
    if (tall, wide) != (height, width):
        assert area[0] * height * width <= tall * wide <= area[1] * height * width
        assert aspect[0] * tall - 0.5 <= wide <= aspect[1] * tall + 0.5


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, st.integers(0, 99), st.floats(0.01, 1.0), st.floats(0.2, 5), st.floats(0.2, 5))
def test_random_resized_box_is_inside(
    height: int, width: int, seed: int, least: float, first: float, second: float
) -> None:
    aspect = (min(first, second), max(first, second))
    top, left, tall, wide = random_resized_box(height, width, np.random.default_rng(seed), (least, 1.0), aspect)
    assert 0 <= top <= height - tall
    assert 0 <= left <= width - wide
    assert tall > 0
    assert wide > 0


@pytest.mark.parametrize(("size", "box"), [((400, 10), (193, 0, 13, 10)), ((10, 400), (0, 193, 10, 13))])
def test_random_resized_falls_back_to_the_centre(size: tuple[int, int], box: Box) -> None:
    assert random_resized_box(*size, np.random.default_rng(0), (0.9, 1.0)) == box


def test_inception_falls_back_to_the_whole_image() -> None:
    assert inception_box(10, 400, np.random.default_rng(0), (0.9, 1.0)) == (0, 0, 10, 400)
    assert inception_box(1, 1, np.random.default_rng(0)) == (0, 0, 1, 1)


def test_crop_offset_takes_every_place() -> None:
    rng = np.random.default_rng(0)
    assert {crop_offset((5, 4), (3, 4), rng) for _ in range(60)} == {(0, 0), (1, 0), (2, 0)}
