from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vitbench.errors import DataError, UsageError
from vitbench.tasks.ops import CenterCrop, CentralCrop, Uint8
from vitbench.tasks.tf_resize import tf_resize
from vitbench.tasks.transforms import PRESETS, parse, resolve

RNG = np.random.default_rng(0)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = (0.5, 0.5, 0.5)
OWN = "resize(248,bicubic)|center_crop(224)|normalize(0.485/0.456/0.406,0.229/0.224/0.225)"
SIZES = [(1, 1), (1, 40), (37, 23), (64, 64), (63, 111), (224, 224), (227, 301), (375, 500), (500, 333)]


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference_resize(array: npt.NDArray[np.uint8], size: tuple[int, int], half: bool) -> npt.NDArray[np.float32]:
    """TensorFlow's kernel value by value, in float32, written from its definition and sharing nothing with vitbench."""
    f = np.float32
    height, width, channels = array.shape
    result = np.zeros((*size, channels), np.float32)

    def sample(index: int, old: int, new: int) -> tuple[int, int, np.float32]:
        scale = f(old) / f(new)
        position = (f(index) + f(0.5)) * scale - f(0.5) if half else f(index) * scale
        low = math.floor(position)
        return max(low, 0), min(math.ceil(position), old - 1), f(position - f(low))

    for i in range(size[0]):
        top, bottom, y = sample(i, height, size[0])
        for j in range(size[1]):
            left, right, x = sample(j, width, size[1])
            corners = array[[[top], [bottom]], [left, right]].astype(np.float32)
            rows = corners[:, 0] + (corners[:, 1] - corners[:, 0]) * x
            result[i, j] = rows[0] + (rows[1] - rows[0]) * y
    return result


def chw(array: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


# ------------------------------------------------------------------------------------------------ parity with timm


@pytest.mark.parametrize(
    ("ops", "config"),
    [
        ("resize(248,bicubic)|center_crop(224)", {"crop_pct": 0.9, "interpolation": "bicubic"}),
        ("resize(256,bilinear)|center_crop(224)", {"crop_pct": 0.875, "interpolation": "bilinear"}),
        ("resize(224,bicubic)|center_crop(224)", {"crop_pct": 1.0, "interpolation": "bicubic"}),
        ("resize(235,lanczos)|center_crop(224)", {"crop_pct": 0.95, "interpolation": "lanczos"}),
        (
            "resize(36,nearest)|center_crop(32)",
            {"input_size": (3, 32, 32), "crop_pct": 0.875, "interpolation": "nearest"},
        ),
        ("resize(36,box)|center_crop(32)", {"input_size": (3, 32, 32), "crop_pct": 0.875, "interpolation": "box"}),
        (
            "resize(36,hamming)|center_crop(32)",
            {"input_size": (3, 32, 32), "crop_pct": 0.875, "interpolation": "hamming"},
        ),
        (
            "resize(224x224,bicubic)|center_crop(224)",
            {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
        ),
        (
            "resize(71x106,bicubic)|center_crop(64x96)",
            {"input_size": (3, 64, 96), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic"},
        ),
    ],
)
@pytest.mark.parametrize(("mean", "std"), [IMAGENET, (HALF, HALF)])
def test_equals_timms_evaluation_transform_bit_for_bit(
    ops: str, config: dict[str, object], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    from timm.data import create_transform

    theirs = create_transform(**{"input_size": (3, 224, 224), "mean": mean, "std": std, **config})
    text = f"{ops}|normalize({'/'.join(map(str, mean))},{'/'.join(map(str, std))})"
    images = [noise(*size) for size in SIZES]
    ours = parse(text)(images)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, torch.stack([theirs(image) for image in images]))


@pytest.mark.parametrize("crop", [(5, 5), (8, 8), (9, 14), (3, 20), (40, 40), (31, 2)])
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (30, 7), (12, 39)])
def test_center_crop_equals_torchvisions_on_images_and_tensors(crop: tuple[int, int], size: tuple[int, int]) -> None:
    from torchvision.transforms import functional

    image = noise(*size)
    expected = functional.pil_to_tensor(functional.center_crop(image, list(crop)))
    assert torch.equal(parse(f"center_crop({crop[0]}x{crop[1]})|normalize(0,1)").geometry(image), expected)
    tensor = functional.pil_to_tensor(image)
    for pixels in (tensor, tensor.float()):
        cropped = CenterCrop(crop).apply(pixels, "")
        assert isinstance(cropped, Tensor)
        assert torch.equal(cropped, functional.center_crop(pixels, list(crop)))


def test_the_two_crops_differ_where_the_margin_is_odd() -> None:
    margins = range(8)
    assert [CentralCrop.offset(20 + margin, 20) for margin in margins] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [CenterCrop.offset(20 + margin, 20) for margin in margins] == [0, 0, 1, 2, 2, 2, 3, 4]
    assert CentralCrop.offset(256, 224) == 16


# ------------------------------------------------------------------------------------------------ TensorFlow's resizes


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1, 1), (3, 4)),
        ((5, 7), (5, 7)),
        ((5, 7), (11, 3)),
        ((40, 33), (16, 16)),
        ((9, 64), (28, 28)),
        ((13, 2), (1, 1)),
    ],
)
def test_tf_resize_equals_the_kernel_written_out(old: tuple[int, int], new: tuple[int, int], half: bool) -> None:
    array = RNG.integers(0, 256, (*old, 3), dtype=np.uint8)
    expected = chw(reference_resize(array, new, half))
    contiguous = chw(array)
    channels_last = torch.from_numpy(array).permute(2, 0, 1)
    for pixels in (contiguous, channels_last, contiguous.float()):
        before = pixels.clone()
        assert torch.equal(tf_resize(pixels, new, half_pixel_centers=half), expected)
        assert torch.equal(pixels, before)


def test_resizes_of_a_step_by_hand() -> None:
    step = torch.tensor([0.0, 10.0]).expand(1, 1, 2)
    assert tf_resize(step, (1, 4), half_pixel_centers=True).tolist() == [[[0.0, 2.5, 7.5, 10.0]]]
    assert tf_resize(step, (1, 4), half_pixel_centers=False).tolist() == [[[0.0, 5.0, 10.0, 10.0]]]
    ramp = torch.arange(8.0).expand(1, 1, 8)
    assert tf_resize(ramp, (1, 2), half_pixel_centers=True).tolist() == [[[1.5, 5.5]]]
    assert tf_resize(ramp, (1, 2), half_pixel_centers=False).tolist() == [[[0.0, 4.0]]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", ["tf_resize", "tf1_resize"])
def test_resize_to_the_same_size_changes_nothing(op: str, size: tuple[int, int]) -> None:
    image = noise(*size)
    result = parse(f"{op}({size[0]}x{size[1]},bilinear)|value_range(0,1)").geometry(image)
    assert result.dtype == torch.float32
    assert torch.equal(result, chw(np.asarray(image)).float())


@pytest.mark.parametrize("new", [(256, 256), (224, 224), (384, 384), (97, 131)])
@pytest.mark.parametrize("old", [(375, 500), (32, 32), (333, 211)])
def test_tf2_resize_samples_where_interpolate_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    image = noise(*old)
    ours = parse(f"tf_resize({new[0]}x{new[1]},bilinear)|value_range(0,1)").geometry(image)
    source = chw(np.asarray(image))[None].float()
    theirs = interpolate(source, new, mode="bilinear", align_corners=False, antialias=False)[0]
    assert torch.allclose(ours, theirs, rtol=0, atol=0.02)
    if new == (256, 256) and old != (
        333,
        211,
    ):  # fractions of few binary digits: every product is exact, in either order
        assert torch.equal(ours, theirs)


def test_flat_areas_stay_flat_through_the_truncation() -> None:
    flat = Image.new("RGB", (32, 32), (100, 101, 103))
    ours = parse("tf_resize(224x224,bilinear)|uint8|normalize(0,1)").geometry(flat)
    assert torch.equal(ours.amin((1, 2)), torch.tensor([100, 101, 103], dtype=torch.uint8))
    # The trap that this guards against: F.interpolate's weights do not sum to 1 in float32.
    theirs = interpolate(chw(np.asarray(flat))[None].float(), (224, 224), mode="bilinear", align_corners=False)
    assert (theirs.floor() < 100).any()


def test_antialiasing_matters_when_scaling_down_and_only_then() -> None:
    def both(old: int, new: int) -> tuple[Tensor, Tensor]:
        image = noise(old, old)
        resized = parse(f"resize({new}x{new},bilinear)|normalize(0,1)").geometry(image).float()
        return parse(f"tf_resize({new}x{new},bilinear)|value_range(0,1)").geometry(image), resized

    without, smoothed = both(512, 128)
    assert 20 < (without - smoothed).abs().mean() < 40
    without, smoothed = both(100, 256)
    assert (without - smoothed).abs().max() < 1.5  # Pillow rounds to whole values twice


def test_uint8_clamps_and_truncates() -> None:
    values = torch.tensor([-3.0, -0.5, 0.0, 0.9, 1.0, 99.99, 254.99, 255.0, 255.5, 300.0])
    assert Uint8().apply(values, "").tolist() == [0, 0, 0, 0, 1, 99, 254, 255, 255, 255]


def test_bigvision_fewshot_equals_its_definition_in_numpy() -> None:
    array = RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8)
    resized = np.clip(reference_resize(array, (37, 37), half=True), 0, 255).astype(np.uint8)
    cropped = resized[2:34, 2:34].astype(np.float32)
    expected = cropped / np.float32(255) * np.float32(2) + np.float32(-1)
    ours = resolve("bigvision_fewshot", OWN, (32, 32), HALF, HALF)
    assert str(ours) == "tf_resize(37x37,bilinear)|uint8|central_crop(32)|value_range(-1,1)"
    assert torch.equal(ours([Image.fromarray(array)])[0], chw(expected))


# ------------------------------------------------------------------------------------------------ normalisation


def test_finish_leaves_its_input_alone_and_takes_both_dtypes() -> None:
    batch = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    for text in ("center_crop(16)|normalize(0.485/0.456/0.406,0.229/0.224/0.225)", "center_crop(16)|value_range(-1,1)"):
        preprocessing = parse(text)
        floats = batch.float()
        results = [preprocessing.finish(batch), preprocessing.finish(floats)]
        assert torch.equal(floats, batch.float())
        assert results[0].dtype == results[1].dtype == torch.float32
        assert torch.equal(results[0], results[1])


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (0, 255), (-2.1, 0.3)])
def test_value_range_equals_bigvisions_formula(low: float, high: float) -> None:
    values = np.arange(256, dtype=np.float32)
    unit = (values - np.float32(0)) / np.float32(255)
    expected = np.float32(low) + unit * np.float32(high - low)
    result = parse(f"center_crop(1)|value_range({low},{high})").finish(torch.from_numpy(values).reshape(1, 1, 1, 256))
    assert np.array_equal(result.flatten().numpy(), expected)


def test_constants_made_in_inference_mode_serve_outside_of_it() -> None:
    preprocessing = parse("center_crop(2)|normalize(0.123/0.2/0.3,0.77)")
    with torch.inference_mode():
        preprocessing.finish(torch.zeros(1, 3, 2, 2))
    pixels = torch.zeros(1, 3, 2, 2, requires_grad=True)
    preprocessing.finish(pixels).sum().backward()
    assert pixels.grad is not None


# ------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("resize(20,bicubic)|center_crop(16)|normalize(0.5,0.5)", torch.uint8),
        ("tf_resize(20x20,bilinear)|central_crop(16)|value_range(-1,1)", torch.float32),
        ("tf1_resize(16x16,bilinear)|value_range(0,1)", torch.float32),
        ("tf_resize(20x20,bilinear)|uint8|center_crop(16)|normalize(0.5,0.5)", torch.uint8),
        ("resize(40,box)|tf_resize(16x16,bilinear)|uint8|value_range(0,1)", torch.uint8),
    ],
)
def test_geometry_gives_one_contiguous_image(text: str, dtype: torch.dtype) -> None:
    result = parse(text).geometry(noise(23, 31))
    assert (result.shape, result.dtype, result.is_contiguous()) == ((3, 16, 16), dtype, True)


def test_geometry_takes_images_that_are_not_rgb() -> None:
    gray = Image.fromarray(RNG.integers(0, 256, (9, 9), dtype=np.uint8))
    preprocessing = parse("resize(6x6,bilinear)|normalize(0.5,0.5)")
    assert torch.equal(preprocessing([gray]), preprocessing([gray.convert("RGB")]))
    with pytest.raises(DataError, match=r"image 1: .*mode F"):
        preprocessing([gray, gray.convert("F")])


def test_an_image_too_thin_to_resize_is_refused() -> None:
    preprocessing = parse("resize(256,bicubic)|center_crop(224)|normalize(0.5,0.5)")
    with pytest.raises(DataError, match=r"row 3: 1x2000 pixels is too long and thin: .* 256x512000") as error:
        preprocessing.geometry(Image.new("RGB", (1, 2000)), "row 3")
    assert "\n" not in str(error.value)


def test_threads_give_the_same() -> None:
    images = [noise(30 + index, 60 - index) for index in range(16)]
    preprocessing = parse("tf_resize(37x37,bilinear)|uint8|central_crop(32)|value_range(-1,1)")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(preprocessing.geometry, images))
    assert torch.equal(preprocessing.finish(torch.stack(results)), preprocessing(images))


# ------------------------------------------------------------------------------------------------ the grammar


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (OWN, OWN),
        (" resize( 256 , bicubic ) |\n center_crop(224x224)|normalize(0.50, .5)", None),
        ("resize(0256,bicubic)|center_crop(224)|normalize(0.5/0.5/0.5,0.5/0.5/0.5)", None),
        ("resize(256,bicubic)|center_crop(224)|normalize(5e-1,0.5)", None),
        ("resize(8x8,box)|normalize(0,1)", "resize(8x8,box)|normalize(0,1)"),
        ("resize(8x8,box)|value_range(-0.0,1.0)", "resize(8x8,box)|value_range(0,1)"),
        ("resize(8x8,box)|normalize(0.1/0.2/0.1,0.3)", "resize(8x8,box)|normalize(0.1/0.2/0.1,0.3)"),
    ],
)
def test_canonical_form(text: str, canonical: str | None) -> None:
    assert str(parse(text)) == (canonical or "resize(256,bicubic)|center_crop(224)|normalize(0.5,0.5)")


SIDES = st.integers(1, 40)
SHAPES = st.builds("{}x{}".format, SIDES, SIDES)
NUMBERS = st.floats(-1e6, 1e6, width=64).map(repr)
STDS = st.floats(1e-6, 1e6).map(repr)
INTERPOLATION = st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
GEOMETRY = st.one_of(
    st.builds("resize({},{})".format, st.one_of(SIDES, SHAPES), INTERPOLATION),
    st.builds("tf_resize({},bilinear)".format, SHAPES),
    st.builds("tf1_resize({},bilinear)".format, SHAPES),
    st.just("uint8"),
    st.builds("center_crop({})".format, st.one_of(SIDES, SHAPES)),
    st.builds("central_crop({})".format, st.one_of(SIDES, SHAPES)),
)


def channels(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(values, st.builds("{}/{}/{}".format, values, values, values))


FINISH = st.one_of(
    st.builds("normalize({},{})".format, channels(NUMBERS), channels(STDS)),
    st.tuples(NUMBERS, NUMBERS).map(lambda pair: "value_range({},{})".format(*sorted(pair, key=float))),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(GEOMETRY, min_size=1, max_size=4), FINISH)
def test_parse_and_str_are_inverse(geometry: list[str], finish: str) -> None:
    try:
        preprocessing = parse("|".join([*geometry, finish]))
    except UsageError:
        assume(False)
    assert parse(str(preprocessing)) == preprocessing
    assert str(parse(str(preprocessing))) == str(preprocessing)
    assert hash(parse(str(preprocessing))) == hash(preprocessing)


@settings(max_examples=200, deadline=None)
@given(st.lists(GEOMETRY, min_size=1, max_size=4), SIDES, SIDES)
def test_the_promised_size_and_range_always_come(geometry: list[str], height: int, width: int) -> None:
    try:
        preprocessing = parse("|".join([*geometry, "value_range(-1,1)"]))
    except UsageError:
        assume(False)
    result = preprocessing([noise(height, width)])
    assert result.shape == (1, 3, *preprocessing.output_size)
    assert -1 <= result.min() <= result.max() <= 1


@settings(max_examples=200, deadline=None)
@given(st.text("resizcntuop_8f(),|x0.5/ -é\n", max_size=40))
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    try:
        parse(text)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["not an op", "resize(256,bicubic)"]),
        ("resize(8x8,box)||normalize(0.5,0.5)", ["'' is not an op"]),
        ("resize(8x8,box)|normalise(0.5,0.5)", ["unknown op", "normalise", "did you mean 'normalize'"]),
        ("resise(8x8,box)|normalize(0.5,0.5)", ["'resise'", "'resize'"]),
        ("resize(8x8,box)", ["must end in normalize(m,s) or value_range(a,b)"]),
        ("resize(8x8,box)|normalize(0,1)|center_crop(8)", ["must end in"]),
        ("resize(8x8,box)|normalize(0,1)|value_range(0,1)", ["'normalize(0,1)' must be the last op"]),
        (
            "resize(8x8)|normalize(0,1)",
            ["'resize(8x8)'", "2 arguments, not 1", "resize(S,INTERP) or resize(HxW,INTERP)"],
        ),
        ("resize(8x8,cubic)|normalize(0,1)", ["interpolation 'cubic'", "bicubic"]),
        ("resize(0,box)|normalize(0,1)", ["'0' is not a size", "1 to 8192"]),
        ("resize(8193,box)|normalize(0,1)", ["'8193' is not a size"]),
        ("resize(8.5,box)|normalize(0,1)", ["'8.5' is not a size"]),
        ("resize(8x,box)|normalize(0,1)", ["'8x' is not a size"]),
        ("tf_resize(8,bilinear)|value_range(0,1)", ["height and width: 8x8", "tf_resize(HxW,bilinear)"]),
        ("tf_resize(8x8,bicubic)|value_range(0,1)", ["bilinear, not 'bicubic'"]),
        ("tf1_resize(8x8)|value_range(0,1)", ["2 arguments", "tf1_resize(HxW,bilinear)"]),
        ("resize(8x8,box)|uint8|normalize(0,1)", ["'uint8' has nothing to do"]),
        ("tf_resize(8x8,bilinear)|uint8|uint8|normalize(0,1)", ["'uint8' has nothing to do"]),
        ("tf_resize(8x8,bilinear)|uint8()|normalize(0,1)", ["no arguments", "without parentheses"]),
        ("center_crop|normalize(0,1)", ["1 argument, not 0"]),
        ("tf_resize(8x8,bilinear)|resize(8x8,box)|normalize(0,1)", ["must come before tf_resize"]),
        ("resize(224,bicubic)|normalize(0,1)", ["different sizes", "center_crop(S)"]),
        ("normalize(0,1)", ["different sizes"]),
        ("central_crop(8)|normalize(0,1)", ["never pads", "of any size", "center_crop"]),
        ("resize(8,box)|central_crop(9)|normalize(0,1)", ["never pads", "may be 8x8"]),
        ("tf_resize(8x10,bilinear)|central_crop(9)|normalize(0,1)", ["never pads", "8x10"]),
        ("resize(8x8,box)|normalize(0.5,0)", ["standard deviation", "not 0"]),
        ("resize(8x8,box)|normalize(0.5,0.5/0.5)", ["one number or three"]),
        ("resize(8x8,box)|normalize(nan,1)", ["'nan' is not a number"]),
        ("resize(8x8,box)|normalize(a,1)", ["'a' is not a number"]),
        ("resize(8x8,box)|value_range(1,0)", ["1 is not less than 0"]),
        ("resize(8x8,box)|value_range(0,inf)", ["'inf' is not a number"]),
        ("resize(8x8,box)|normalize(0.5,0.5)x", ["'normalize(0.5,0.5)x' is not an op"]),
    ],
)
def test_errors_name_the_op_and_what_it_takes(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("resize(8x9,box)|normalize(0,1)", (8, 9)),
        ("resize(8,box)|center_crop(5x6)|normalize(0,1)", (5, 6)),
        ("resize(20x10,box)|resize(5,box)|normalize(0,1)", (10, 5)),
        ("resize(10,box)|central_crop(10)|normalize(0,1)", (10, 10)),
        ("center_crop(7)|normalize(0,1)", (7, 7)),
    ],
)
def test_output_size(text: str, size: tuple[int, int]) -> None:
    assert parse(text).output_size == size


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("auto", (224, 224), OWN),
        ("auto+native", (224, 224), OWN),
        (
            "bigvision_fewshot",
            (224, 224),
            "tf_resize(256x256,bilinear)|uint8|central_crop(224)|value_range(-1,1)",
        ),
        ("bigvision_fewshot", (384, 384), "tf_resize(439x439,bilinear)|uint8|central_crop(384)|value_range(-1,1)"),
        (
            "bigvision_fewshot+native",
            (224, 448),
            "tf_resize(256x512,bilinear)|uint8|central_crop(224x448)|normalize(0.485/0.456/0.406,0.229/0.224/0.225)",
        ),
        ("vit_jax", (384, 384), "tf_resize(384x384,bilinear)|value_range(-1,1)"),
        ("vtab", (224, 224), "tf1_resize(224x224,bilinear)|value_range(0,1)"),
        ("vtab+native", (96, 96), "tf1_resize(96x96,bilinear)|normalize(0.485/0.456/0.406,0.229/0.224/0.225)"),
        ("resize(64x64, box)|normalize(0.50,.5)", (64, 64), "resize(64x64,box)|normalize(0.5,0.5)"),
    ],
)
def test_resolve(text: str, size: tuple[int, int], expected: str) -> None:
    assert str(resolve(text, OWN, size, *IMAGENET)) == expected


def test_every_preset_resolves_at_any_size_and_is_described() -> None:
    for name, description in PRESETS.items():
        assert description
        assert "\n" not in description
        for size in [(1, 1), (7, 7), (32, 32), (97, 131), (518, 518)]:
            for variant in (name, f"{name}+native"):
                assert resolve(variant, OWN, size, *IMAGENET).output_size == size


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bigvision", ["unknown preprocessing 'bigvision'", "did you mean 'bigvision_fewshot'"]),
        ("vitjax", ["'vit_jax'"]),
        ("vtab+nativ", ["'vtab+native'"]),
        ("none", ["unknown preprocessing 'none'", "resize(256,bicubic)"]),
        ("", ["unknown preprocessing ''"]),
        ("resize(64x48,box)|normalize(0.5,0.5)", ["64x48", "224x224", "resolution"]),
    ],
)
def test_resolve_errors(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        resolve(text, OWN, (224, 224), *IMAGENET)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_torchvision_is_not_imported() -> None:
    code = "import sys, vitbench.tasks.transforms; sys.exit('torchvision' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
