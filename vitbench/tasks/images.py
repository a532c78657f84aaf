"""From the bytes of an image file to an RGB image, or to one line that says why not.

What is read how, wherever an image comes from:

- 1-bit, grayscale and palette images become RGB with the same colours. Alpha and transparent palette entries are dropped, not
  blended, so that a transparent pixel keeps the colour that is stored beneath it; TensorFlow and timm do the same.
- 16-bit grayscale (`I;16`, `I;16B`, `I`) keeps the high byte (`value >> 8`), never clips. That is what libpng does for
  TensorFlow, and what Pillow itself does for 16-bit colour, so gray and colour files agree. `I` also holds 32-bit values: those
  outside 0..65535 have no known range and are refused, and so is floating point (`F`).
- CMYK and YCCK JPEGs go through Pillow's plain conversion, without a colour profile.
- EXIF orientation is ignored, as TensorFlow and timm ignore it: pixels are used in the order in which they are stored. (Pillow
  itself turns TIFFs as it opens them; these are the one exception.)
- Of an animation or a file of many pages, the first is used.

Pillow decodes JPEG with libjpeg's accurate integer DCT. TensorFlow's evaluation pipelines (big_vision, vit_jax) ask for the fast
one, whose values differ by a level or two in some pixels. vitbench does not mimic that: of all that separates a number made here
from one made there, it is the part that stays.

Everything here is thread-safe and leaves Pillow's global settings alone.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vitbench.errors import DataError

# Pillow prints a warning for an image between once and twice its limit of pixels; here that is an error, with a line of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_rgb(data: bytes | Path, where: str) -> Image.Image:
    """Decode an image file completely.

    Args:
        data: The bytes of the file, or its path.
        where: What the image is to the user, for error messages: `row 17 (train/cat/003.jpg)`.

    Returns:
        An image of mode RGB with its pixels in memory.

    Raises:
        DataError: The file cannot be read, is no image, is truncated or otherwise broken, has more pixels than Pillow's limit
            (`PIL.Image.MAX_IMAGE_PIXELS`), or has values whose range is not known.
    """
    return to_rgb(open_image(data, where), where)


def open_image(data: bytes | Path, where: str) -> Image.Image:
    """Open an image file: its size and mode are known then, its pixels are not read yet.

    Args:
        data: The bytes of the file, or its path.
        where: What the image is to the user, for error messages.

    Raises:
        DataError: The file cannot be read, is no image, or has more pixels than Pillow's limit.
    """
    if isinstance(data, Path):
        try:
            data = data.read_bytes()
        except OSError as error:
            raise DataError(f"{where}: the image file cannot be read: {_reason(error)}") from error
    if not data:
        raise DataError(f"{where}: the image file is empty")
    try:
        return Image.open(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {_TOO_LARGE} (Pillow's limit is {Image.MAX_IMAGE_PIXELS} pixels)") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: not an image, or of a format that Pillow cannot read here") from error
    except Exception as error:  # a damaged header can raise anything in Pillow's parsers, down to ZeroDivisionError
        raise DataError(f"{where}: the image cannot be opened: {_reason(error)}") from error


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Convert an image of any mode to RGB, as `decode_rgb` does; one that is RGB already is returned as it is.

    Args:
        image: An image, loaded or not. It is not modified.
        where: What the image is to the user, for error messages.

    Raises:
        DataError: As for `decode_rgb`.
    """
    try:
        _check_openable(image)
        image.load()
        return _convert(image)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # damaged pixel data can raise anything in Pillow's decoders
        raise DataError(f"{where}: the image cannot be decoded: {_reason(error)}") from error


def array_to_rgb(array: npt.NDArray[Any], where: str) -> Image.Image:
    """Make an RGB image of an array.

    Args:
        array: `[H, W]`, `[H, W, 1]` (grayscale) or `[H, W, 3]` (RGB), uint8. It is copied.
        where: What the image is to the user, for error messages.

    Raises:
        DataError: Another dtype or shape, or more pixels than Pillow's limit.
    """
    gray = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if array.dtype != np.uint8 or array.size == 0 or not (gray or (array.ndim == 3 and array.shape[2] == 3)):
        raise DataError(
            f"{where}: an image array must be [H, W], [H, W, 1] or [H, W, 3] of dtype uint8, "
            f"got {list(array.shape)} of dtype {array.dtype}"
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and array.shape[0] * array.shape[1] > limit:
        raise DataError(f"{where}: {_too_many(array.shape[1], array.shape[0], limit)}")
    plain = np.ascontiguousarray(array[..., 0] if gray and array.ndim == 3 else array)
    return Image.fromarray(plain).convert("RGB")


def scale_pixels(image: Image.Image, factor: int, where: str) -> Image.Image:
    """Multiply the pixel values of an RGB image, for masks that are stored as 0 and 1.

    An image that holds 0 and 255 only is one that its file format has multiplied already (1-bit PNG), and is left as it is.

    Raises:
        DataError: A product would be above 255: the image is no such mask.
    """
    if factor == 1:
        return image
    values = np.asarray(image)
    if int(values.max()) * factor <= 255:
        return Image.fromarray((values * np.uint8(factor)).astype(np.uint8))
    if np.isin(values, (0, 255)).all():
        return image
    raise DataError(
        f"{where}: a pixel has the value {int(values.max())}, and times {factor} that is above 255: is pixel_scale meant?"
    )


_TOO_LARGE = "the image is too large, and may be a decompression bomb: shrink it, or move it out of the data"


def _too_many(width: int, height: int, limit: int) -> str:
    return f"{_TOO_LARGE} ({width}x{height} pixels, Pillow's limit is {limit})"


def _check_openable(image: Image.Image) -> None:
    if not image.width or not image.height:
        raise DataError(f"the image is empty: {image.width}x{image.height} pixels")
    # Pillow only warns between once and twice its limit. Turning the warning into an error through the warnings module would
    # change global state under other threads, so the limit is checked again.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise DataError(_too_many(image.width, image.height, limit))
    if image.format == "EPS":
        raise DataError("an EPS file is a program that Ghostscript would have to run: convert it to PNG first")


def _convert(image: Image.Image) -> Image.Image:
    """A loaded image as RGB; raises DataError without `where`."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise DataError(
            "the image is floating point (mode F), and the range of its values is not known: store 8 or 16 bits"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _high_byte(image)
    if "transparency" in image.info:
        # Pillow would warn of a palette with many transparent entries, and fail where it finds no free palette colour.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise DataError(
            f"the image has values from {low} to {high}, beyond the 0 to 65535 of 16 bits, and their range is not known: "
            "store 8 or 16 bits"
        )
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _reason(error: Exception) -> str:
    """What an exception says, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
