from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vitbench.errors import DataError
from vitbench.tasks.images import array_to_rgb, decode_rgb, open_image, scale_pixels, to_rgb

WHERE = "row 17 (train/cat/003.jpg)"
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png16(values: npt.NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG, gray or RGB; Pillow cannot write the latter."""
    height, width = values.shape[:2]
    colour = 2 if values.ndim == 3 else 0
    rows = values.astype(">u2").reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    assert image.mode == "RGB"
    return np.asarray(image)


def repeated(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(gray[..., None], 3, axis=2)


def palette_image() -> tuple[Image.Image, npt.NDArray[np.uint8]]:
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    index = np.arange(35, dtype=np.uint8).reshape(5, 7) % 4
    image = Image.fromarray(index).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colours.ravel().tolist())
    return image, colours[index]


def assert_says(error: pytest.ExceptionInfo[DataError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{WHERE}: ")
    for part in parts:
        assert part in message


def test_rgb_is_unchanged_and_shared() -> None:
    assert np.array_equal(pixels(decode_rgb(encoded(Image.fromarray(RGB), "PNG"), WHERE)), RGB)
    image = Image.fromarray(RGB)
    assert to_rgb(image, WHERE) is image


def test_gray_is_repeated() -> None:
    assert np.array_equal(pixels(decode_rgb(encoded(Image.fromarray(GRAY), "PNG"), WHERE)), repeated(GRAY))


def test_one_bit_becomes_0_and_255() -> None:
    bits = GRAY > 127
    data = encoded(Image.fromarray(bits), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "1"
    assert np.array_equal(pixels(decode_rgb(data, WHERE)), repeated(np.where(bits, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_not_blended(kind: str) -> None:
    alpha = np.full((5, 7, 1), 0, dtype=np.uint8)
    image = Image.fromarray(np.concatenate([RGB, alpha], axis=2))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(image, kind, **options)
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    assert np.array_equal(pixels(decode_rgb(data, WHERE)), RGB)


def test_gray_with_alpha() -> None:
    image = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy())])
    data = encoded(image, "PNG")
    assert Image.open(io.BytesIO(data)).mode == "LA"
    assert np.array_equal(pixels(decode_rgb(data, WHERE)), repeated(GRAY))


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255, 7])])
def test_palette_keeps_its_colours_whatever_is_transparent(transparency: int | bytes | None) -> None:
    image, expected = palette_image()
    data = encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == "P"
    assert opened.info.get("transparency") == transparency
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of transparency in bytes
        assert np.array_equal(pixels(decode_rgb(data, WHERE)), expected)


def test_to_rgb_leaves_the_given_image_alone() -> None:
    image, expected = palette_image()
    image.info["transparency"] = b"\0\1"
    assert np.array_equal(pixels(to_rgb(image, WHERE)), expected)
    assert image.mode == "P"
    assert image.info["transparency"] == b"\0\1"


def test_cmyk_jpeg_is_pillows_plain_conversion() -> None:
    ink = Image.fromarray(RNG.integers(0, 256, (16, 16, 4), dtype=np.uint8)).convert("CMYK")
    data = encoded(ink, "JPEG", quality=95)
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == "CMYK"
    c, m, y, k = (np.asarray(band).astype(float) for band in opened.split())
    expected = np.stack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)], axis=2)
    assert np.abs(pixels(decode_rgb(data, WHERE)) - expected).max() <= 1


def test_16_bit_gray_keeps_the_high_byte_as_16_bit_colour_does() -> None:
    values = np.array([[0, 255, 256, 32767], [32768, 65279, 65280, 65535]], dtype=np.uint16)
    expected = np.array([[0, 0, 1, 127], [128, 254, 255, 255]], dtype=np.uint8)
    gray = png16(values)
    colour = png16(np.repeat(values[..., None], 3, axis=2))
    assert np.array_equal(pixels(decode_rgb(gray, WHERE)), repeated(expected))
    assert np.array_equal(pixels(decode_rgb(colour, WHERE)), repeated(expected))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_tiff_and_arrays(mode: str) -> None:
    values = RNG.integers(0, 65536, (5, 7)).astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
    image = Image.frombytes(mode, (7, 5), values.tobytes())
    expected = repeated((values // 256).astype(np.uint8))
    assert np.array_equal(pixels(to_rgb(image, WHERE)), expected)
    data = encoded(image, "TIFF")
    assert Image.open(io.BytesIO(data)).mode == mode
    assert np.array_equal(pixels(decode_rgb(data, WHERE)), expected)


@pytest.mark.parametrize("values", [[[0, 65536]], [[-1, 5]]])
def test_32_bit_values_without_a_known_range_are_refused(values: list[list[int]]) -> None:
    image = Image.fromarray(np.array(values, dtype=np.int32))
    with pytest.raises(DataError) as error:
        to_rgb(image, WHERE)
    assert_says(error, str(values[0][0]), str(values[0][1]), "65535", "16 bits")


def test_floating_point_is_refused() -> None:
    data = encoded(Image.fromarray(GRAY.astype(np.float32)), "TIFF")
    with pytest.raises(DataError) as error:
        decode_rgb(data, WHERE)
    assert_says(error, "mode F", "16 bits")


def test_a_mode_without_conversion_is_refused() -> None:
    with pytest.raises(DataError) as error:
        to_rgb(Image.new("La", (4, 4)), WHERE)
    assert_says(error, "La")


def test_exif_orientation_is_ignored() -> None:
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = 6
    data = encoded(image, "PNG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert np.array_equal(pixels(decode_rgb(data, WHERE)), RGB)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels(decode_rgb(data, WHERE)), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated(kind: str, part: float) -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(DataError) as error:
        decode_rgb(data[: int(len(data) * part)], WHERE)
    assert_says(error)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1 404 Not Found", b"<html>\n</html>", b"\0" * 100])
def test_not_an_image(data: bytes) -> None:
    with pytest.raises(DataError) as error:
        decode_rgb(data, WHERE)
    assert_says(error, "not an image")


def test_empty_file() -> None:
    with pytest.raises(DataError) as error:
        decode_rgb(b"", WHERE)
    assert_says(error, "empty")


def test_empty_image() -> None:
    with pytest.raises(DataError) as error:
        to_rgb(Image.new("RGB", (0, 5)), WHERE)
    assert_says(error, "0x5")


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(DataError) as error:
        decode_rgb(path, WHERE)
    assert_says(error, "No such file", "a.png")
    with pytest.raises(DataError) as error:
        decode_rgb(tmp_path, WHERE)
    assert_says(error)
    Image.fromarray(RGB).save(path)
    assert np.array_equal(pixels(decode_rgb(path, WHERE)), RGB)


@pytest.mark.parametrize("limit", [34, 20, 10])
def test_bombs_are_refused_also_where_pillow_only_warns(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(RGB), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError) as error:
            decode_rgb(data, WHERE)
    assert_says(error, "bomb", "limit")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
    decode_rgb(data, WHERE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    decode_rgb(data, WHERE)


def test_postscript_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def run(*arguments: object) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    with pytest.raises(DataError) as error:
        decode_rgb(encoded(Image.fromarray(RGB), "EPS"), WHERE)
    assert_says(error, "EPS")


SEEDS = [
    encoded(Image.fromarray(RGB), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO")
] + [png16(GRAY.astype(np.uint16) * 257)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 40),
)
def test_damaged_files_are_decoded_or_refused_in_one_line(
    data: bytes, changes: list[tuple[int, int]], missing: int
) -> None:
    damaged = bytearray(data)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = decode_rgb(bytes(damaged[: len(damaged) - missing]), WHERE)
    except DataError as error:
        assert str(error).startswith(f"{WHERE}: ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert image.mode == "RGB"
        assert image.width
        assert image.height


def test_many_threads_decode_the_same_and_leave_global_settings_alone() -> None:
    limits = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    data = encoded(Image.fromarray(RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)), "JPEG")
    expected = pixels(decode_rgb(data, WHERE))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda index: pixels(decode_rgb(data, f"row {index}")), range(64)))
    assert all(np.array_equal(result, expected) for result in results)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == limits == (limits[0], False)


@pytest.mark.parametrize("array", [GRAY, GRAY[..., None], GRAY.T, GRAY[::2, ::2]])
def test_gray_arrays(array: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(pixels(array_to_rgb(array, WHERE)), repeated(array.reshape(array.shape[:2])))


def test_rgb_arrays_are_copied() -> None:
    array = RGB.copy()
    image = array_to_rgb(array, WHERE)
    array[:] = 0
    assert np.array_equal(pixels(image), RGB)
    assert np.array_equal(pixels(array_to_rgb(RGB[:, ::-1], WHERE)), RGB[:, ::-1])


@pytest.mark.parametrize(
    "array",
    [
        RGB.astype(np.float32),
        GRAY > 3,
        RGB[..., :2],
        np.zeros((3, 5, 7, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        RGB[0, 0],
    ],
)
def test_other_arrays_are_refused(array: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(DataError) as error:
        array_to_rgb(array, WHERE)
    assert_says(error, str(list(array.shape)), str(array.dtype), "uint8")


@pytest.mark.parametrize("factor", [1, 2, 255])
def test_masks_are_scaled(factor: int) -> None:
    mask = (GRAY > 127).astype(np.uint8)
    scaled = scale_pixels(array_to_rgb(mask, WHERE), factor, WHERE)
    assert np.array_equal(pixels(scaled), repeated(mask * np.uint8(factor)))


def test_a_mask_that_its_format_has_scaled_is_left_alone() -> None:
    mask = GRAY > 127
    image = decode_rgb(encoded(Image.fromarray(mask), "PNG"), WHERE)
    assert np.array_equal(pixels(scale_pixels(image, 255, WHERE)), repeated(mask.astype(np.uint8) * 255))


def test_what_is_no_mask_is_not_scaled() -> None:
    with pytest.raises(
        DataError, match=r"^row 17 \(train/cat/003.jpg\): a pixel has the value 2, and times 255 that is"
    ):
        scale_pixels(array_to_rgb(GRAY % 3, WHERE), 255, WHERE)


def test_an_image_is_opened_in_the_mode_in_which_it_is_stored() -> None:
    assert open_image(encoded(Image.fromarray(GRAY), "PNG"), WHERE).mode == "L"
    assert open_image(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), WHERE).mode == "CMYK"
    with pytest.raises(DataError, match=r"not an image, or of a format"):
        open_image(b"text", WHERE)
