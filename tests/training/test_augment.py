"""What happens to one training image, and to a batch of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resized_crop

from vitbench.errors import DataError, UsageError
from vitbench.tasks.area_resize import resize_small
from vitbench.tasks.tf_resize import tf_resize
from vitbench.tasks.transforms import Preprocessing, parse
from vitbench.training.augment import CROPS, batch_mixing, erase, mix, training_geometry
from vitbench.training.crops import inception_box, random_resized_box
from vitbench.training.recipe import Recipe

SMALL = parse("resize(24x20,bicubic)|normalize(0.4/0.5/0.6,0.5)")
TENSORFLOW = parse("tf_resize(28x28,bilinear)|uint8|central_crop(24x20)|value_range(-1,1)")


def picture(height: int = 40, width: int = 50, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def tensor(image: Image.Image) -> Tensor:
    return pil_to_tensor(image)  # type: ignore[no-any-return]


def apply(
    preprocessing: Preprocessing = SMALL, seed: int = 0, image: Image.Image | None = None, **recipe: Any
) -> Tensor:
    geometry = training_geometry(Recipe(**{"flip": False, **recipe}), preprocessing)
    return geometry(image or picture(), np.random.default_rng(seed), "row 7")


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's global generators are as they were before."""
    state, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    assert random.getstate() == state
    assert str(np.random.get_state()) == str(arrays)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), tensors)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("randaugment", [None, "rand-m9-n2-mstd0.5"])
def test_every_crop_gives_the_size_and_is_a_function_of_the_generator(crop: str, randaugment: str | None) -> None:
    with untouched_generators():
        results = [apply(crop=crop, flip=True, randaugment=randaugment, seed=seed) for seed in (3, 3, 4, 5, 6)]
    for pixels in results:
        assert pixels.shape == (3, 24, 20)
        assert pixels.is_contiguous()
        assert pixels.dtype == (torch.float32 if crop == "inception" and randaugment is None else torch.uint8)
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], other) for other in results[2:])


def test_inception_is_tensorflows_crop_and_resize_without_truncation() -> None:
    top, left, height, width = inception_box(40, 50, np.random.default_rng(5), (0.3, 0.9), (0.8, 1.2))
    expected = tf_resize(
        tensor(picture())[:, top : top + height, left : left + width], (24, 20), half_pixel_centers=True
    )
    pixels = apply(crop="inception", crop_area=(0.3, 0.9), crop_aspect=(0.8, 1.2), seed=5)
    assert torch.equal(pixels, expected)
    assert not torch.equal(pixels, pixels.floor())


def test_inception_truncates_where_the_evaluation_does() -> None:
    assert torch.equal(apply(TENSORFLOW, crop="inception"), apply(crop="inception").to(torch.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_random_resized_is_torchvisions(interpolation: str) -> None:
    box = random_resized_box(40, 50, np.random.default_rng(5), (0.05, 1.0))
    expected = resized_crop(picture(), *box, [24, 20], InterpolationMode(interpolation))
    preprocessing = parse(f"resize(24x20,{interpolation})|normalize(0.5,0.5)")
    assert torch.equal(apply(preprocessing, crop="random_resized", seed=5), tensor(expected))


def test_random_resized_is_bilinear_where_the_evaluation_has_no_antialiased_resize() -> None:
    bilinear = parse("resize(24x20,bilinear)|normalize(0.5,0.5)")
    assert torch.equal(apply(TENSORFLOW, crop="random_resized"), apply(bilinear, crop="random_resized"))


def windows(larger: Tensor, size: tuple[int, int] = (24, 20)) -> Tensor:
    """`[N, 3, *size]`: every crop of that size."""
    return larger.unfold(1, size[0], 1).unfold(2, size[1], 1).permute(1, 2, 0, 3, 4).flatten(0, 1)


def is_one_of(pixels: Tensor, crops: Tensor) -> bool:
    return bool((crops == pixels).flatten(1).all(1).any())


def test_resmall_is_a_window_of_the_image_whose_short_side_is_resized() -> None:
    crops = windows(resize_small(tensor(picture()), 28))
    assert all(is_one_of(apply(crop="resmall", resize=28, seed=seed), crops) for seed in range(5))
    assert is_one_of(apply(crop="resmall"), crops)  # 448/384 of 24 is 28


def test_resize_is_a_window_of_the_squashed_image() -> None:
    crops = windows(tf_resize(tensor(picture()), (30, 30), half_pixel_centers=True).to(torch.uint8))
    assert all(is_one_of(apply(crop="resize", resize=30, seed=seed), crops) for seed in range(5))
    crops = windows(tf_resize(tensor(picture()), (28, 23), half_pixel_centers=True).to(torch.uint8))
    assert is_one_of(apply(crop="resize"), crops)


def test_pad_is_a_window_of_the_evaluation_with_a_black_border() -> None:
    whole = SMALL.geometry(picture())
    assert all(is_one_of(apply(crop="pad", pad=4, seed=seed), windows(pad(whole, (4, 4, 4, 4)))) for seed in range(5))
    assert is_one_of(apply(crop="pad"), windows(pad(whole, (3, 3, 3, 3))))  # an eighth of 24


@pytest.mark.parametrize("preprocessing", [SMALL, TENSORFLOW], ids=str)
def test_none_is_the_evaluation(preprocessing: Preprocessing) -> None:
    assert torch.equal(apply(preprocessing, crop="none"), preprocessing.geometry(picture()))


def test_flip_mirrors_half_of_the_images() -> None:
    plain = apply(crop="none")
    results = [apply(crop="none", flip=True, seed=seed) for seed in range(1000)]
    flipped = sum(torch.equal(result, plain.flip(2)) for result in results)
    assert flipped + sum(torch.equal(result, plain) for result in results) == 1000
    assert abs(flipped - 500) < 64  # 4 standard deviations


@pytest.mark.parametrize("crop", ["resmall", "resize"])
def test_a_crop_larger_than_what_it_is_taken_from(crop: str) -> None:
    with pytest.raises(UsageError, match=r"resize=23 is smaller than the 24x20 pixels .* give at least 24"):
        apply(crop=crop, resize=23)


def test_a_long_thin_image() -> None:
    with pytest.raises(DataError, match=r"^row 7: 100000x1 pixels is too long and thin: with a short side of 448"):
        apply(crop="resmall", resize=448, image=Image.new("RGB", (100_000, 1)))


def test_images_that_are_not_rgb() -> None:
    gray = picture().convert("L")
    assert torch.equal(apply(crop="inception", image=gray), apply(crop="inception", image=gray.convert("RGB")))
    with pytest.raises(DataError, match=r"^row 7: the image is floating point"):
        apply(crop="inception", image=Image.new("F", (9, 9)))


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (300, 2)])
def test_tiny_and_thin_images(crop: str, size: tuple[int, int]) -> None:
    assert apply(crop=crop, image=picture(*size)).shape == (3, 24, 20)


def test_randaugment_fills_with_the_mean() -> None:
    filled = []
    for seed in range(40):
        pixels = apply(
            crop="none", randaugment="rand-m10-n1-p1.0", image=Image.new("RGB", (50, 40), (7, 7, 7)), seed=seed
        )
        filled += [pixels[:, 0, 0].tolist(), pixels[:, -1, -1].tolist(), pixels[:, 0, -1].tolist()]
    assert [102, 128, 153] in filled


def test_randaugment_is_drawn_anew_for_each_sample() -> None:
    results = [apply(crop="none", randaugment="rand-m9-n2-mstd0.5", seed=seed) for seed in range(30)]
    assert len({result.numpy().tobytes() for result in results}) > 15


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rand",
        "rand-m9-n2-mstd0.5",
        "rand-m7-n3-inc1",
        "rand-t3a-n3",
        "rand-mstd101-m5",
        "rand-m9-tweights",
        "rand-p0.5-mmax15-m3",
    ],
)
def test_randaugment_strings(text: str) -> None:
    if text:
        assert apply(crop="none", randaugment=text).dtype == torch.uint8
    else:
        with pytest.raises(
            UsageError, match=r"^randaugment '': it does not begin with 'rand'; write timm's form, such as rand-m9"
        ):
            apply(crop="none", randaugment=text)


@pytest.mark.parametrize(
    "text",
    [
        "augmix-m3",
        "rand-",
        "rand-m",
        "rand-9",
        "rand-m9-x3",
        "rand-m9-magnitude3",
        "rand-m9.5",
        "rand-m9-tnothing",
        "rand-n0.1.2",
        "rand-mstdinf",
        "rand-n99-tweights",
        "rand-inc2",
        "m9-n2",
    ],
)
def test_randaugment_strings_that_timm_would_not_read(text: str) -> None:
    with pytest.raises(UsageError, match=rf"^randaugment '{text}'.*such as rand-m9-n2-mstd0.5$"):
        apply(crop="none", randaugment=text)


def batch(size: int = 8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(size, 3, 12, 12))).float()


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}], ids=str)
def test_mixing_is_a_function_of_seed_and_step(options: dict[str, float]) -> None:
    mixing = batch_mixing(Recipe(**options, label_smoothing=0.1), 5)  # type: ignore[arg-type]
    assert mixing is not None
    labels = torch.arange(8) % 5
    with untouched_generators():
        one, again, other_step, other_seed = (
            mix(mixing, batch(), labels, seed=seed, step=step) for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3))
        )
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other_step[0])
    assert not torch.equal(one[0], other_seed[0])
    assert one[1].shape == (8, 5)
    assert torch.allclose(one[1].sum(1), torch.ones(8))
    assert one[1].min() == pytest.approx(0.02)  # a class that is in neither image has the smoothing alone


def test_mixup_mixes_pixels_and_targets_by_the_same_weight() -> None:
    mixing = batch_mixing(Recipe(mixup=1.0), 8)
    assert mixing is not None
    pixels, targets = mix(mixing, batch(), torch.arange(8), seed=0, step=0)
    weight = targets[0, 0]
    assert 0 < weight < 1
    assert torch.allclose(pixels, weight * batch() + (1 - weight) * batch().flip(0), atol=1e-6)


def test_no_mixing() -> None:
    assert batch_mixing(Recipe(), 5) is None


def test_a_batch_of_odd_size_cannot_be_mixed() -> None:
    mixing = batch_mixing(Recipe(mixup=1.0), 5)
    assert mixing is not None
    with pytest.raises(
        UsageError, match=r"^mixup and cutmix mix pairs, and a batch of 7 is odd: use an even batch size$"
    ):
        mix(mixing, batch(7), torch.zeros(7, dtype=torch.int64), seed=0, step=0)


def test_erasing_is_a_function_of_seed_and_step() -> None:
    with untouched_generators():
        one, again, other = (erase(1.0, batch(), seed=0, step=step) for step in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    lost = (one != batch()).any(1).flatten(1).float().mean(1)
    assert (lost > 0).all()
    assert (lost < 0.4).all()


def test_erasing_with_probability_0_keeps_every_image() -> None:
    assert torch.equal(erase(0.0, batch(), seed=0, step=0), batch())
