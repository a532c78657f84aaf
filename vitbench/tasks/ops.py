"""The ops that a preprocessing string is made of; `vitbench.tasks.transforms` has the table of them, and joins them.

An op is a frozen dataclass: `read` makes one of its arguments in a string, `str()` gives its canonical form, `apply` (geometry)
works on one image, `finish` (normalisation) on a batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from vitbench.errors import DataError, unknown
from vitbench.tasks.area_resize import resize_small, small_size
from vitbench.tasks.tf_resize import tf_resize

Size = tuple[int, int]
Pixels = Image.Image | Tensor

MAX_SIZE = 8192
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}


@dataclass(frozen=True)
class Resize:
    """`resize(S,INTERP)` or `resize(HxW,INTERP)`: Pillow's antialiased resize of an image.

    Attributes:
        size: The short side, or height and width, in pixels.
        interpolation: A key of `INTERPOLATIONS`.
    """

    size: int | Size
    interpolation: str
    usage: ClassVar[str] = "resize(S,INTERP) or resize(HxW,INTERP)"

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Resize:
        """The op with these arguments; raises ValueError."""
        size, interpolation = _exactly(2, arguments)
        if interpolation not in INTERPOLATIONS:
            raise ValueError(str(unknown("interpolation", interpolation, INTERPOLATIONS)))
        return cls(_read_size(size), interpolation)

    def __str__(self) -> str:
        size = str(self.size) if isinstance(self.size, int) else "{}x{}".format(*self.size)
        return f"resize({size},{self.interpolation})"

    def output_size(self, height: int, width: int) -> Size:
        """Height and width that an image of this size is resized to."""
        if not isinstance(self.size, int):
            return self.size
        # torchvision's rule: the long side is truncated, and computed as (S * long) / short in this order.
        long = int(self.size * max(height, width) / min(height, width))
        return (long, self.size) if width <= height else (self.size, long)

    def apply(self, pixels: Pixels, where: str) -> Image.Image:
        """Resize an image; raises DataError if the result would exceed Pillow's limit on pixels."""
        assert isinstance(pixels, Image.Image)
        height, width = self.output_size(pixels.height, pixels.width)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and height * width > limit:
            raise DataError(
                f"{where}: {pixels.width}x{pixels.height} pixels is too long and thin: {self} would make it {width}x{height}, "
                f"more than Pillow's limit of {limit} pixels"
            )
        return pixels.resize((width, height), INTERPOLATIONS[self.interpolation])


@dataclass(frozen=True)
class TfResize:
    """`tf_resize(HxW,bilinear)`: TF2's resize; the result is float32 in 0..255.

    Attributes:
        size: Height and width in pixels.
    """

    size: Size
    name: ClassVar[str] = "tf_resize"
    usage: ClassVar[str] = "tf_resize(HxW,bilinear)"
    half_pixel_centers: ClassVar[bool] = True

    @classmethod
    def read(cls, arguments: Sequence[str]) -> TfResize:
        """The op with these arguments; raises ValueError."""
        text, interpolation = _exactly(2, arguments)
        size = _read_size(text)
        if isinstance(size, int):
            raise ValueError(f"it does not keep the aspect ratio, so it takes height and width: {size}x{size}")
        if interpolation != "bilinear":
            raise ValueError(f"its interpolation is bilinear, not '{interpolation}'")
        return cls(size)

    def __str__(self) -> str:
        return "{}({}x{},bilinear)".format(self.name, *self.size)

    def apply(self, pixels: Pixels, where: str) -> Tensor:
        """Resize an image, or `[3, H, W]`."""
        return tf_resize(to_tensor(pixels), self.size, half_pixel_centers=self.half_pixel_centers)


@dataclass(frozen=True)
class Tf1Resize(TfResize):
    """`tf1_resize(HxW,bilinear)`: TF1's legacy resize; the result is float32 in 0..255."""

    name: ClassVar[str] = "tf1_resize"
    usage: ClassVar[str] = "tf1_resize(HxW,bilinear)"
    half_pixel_centers: ClassVar[bool] = False


@dataclass(frozen=True)
class ResizeSmall:
    """`resize_small(S)`: big_vision's, the short side to S by TensorFlow's area method, truncated to uint8.

    Attributes:
        size: The short side, in pixels.
    """

    size: int
    usage: ClassVar[str] = "resize_small(S)"

    @classmethod
    def read(cls, arguments: Sequence[str]) -> ResizeSmall:
        """The op with these arguments; raises ValueError."""
        (text,) = _exactly(1, arguments)
        size = _read_size(text)
        if not isinstance(size, int):
            raise ValueError("it keeps the aspect ratio, so it takes the short side alone")
        return cls(size)

    def __str__(self) -> str:
        return f"resize_small({self.size})"

    def output_size(self, height: int, width: int) -> Size:
        """Height and width that an image of this size is resized to."""
        return small_size(height, width, self.size)

    def apply(self, pixels: Pixels, where: str) -> Tensor:
        """Resize an image; raises DataError if the result would exceed Pillow's limit on pixels."""
        assert isinstance(pixels, Image.Image)
        height, width = self.output_size(pixels.height, pixels.width)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and height * width > limit:
            raise DataError(
                f"{where}: {pixels.width}x{pixels.height} pixels is too long and thin: {self} would make it {width}x{height}, "
                f"more than Pillow's limit of {limit} pixels"
            )
        return resize_small(to_tensor(pixels), self.size)


@dataclass(frozen=True)
class Uint8:
    """`uint8`: clamp to 0..255 and truncate, as TensorFlow's cast does; it does not round."""

    usage: ClassVar[str] = "uint8, without parentheses"

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Uint8:
        """The op with these arguments; raises ValueError."""
        _exactly(0, arguments)
        return cls()

    def __str__(self) -> str:
        return "uint8"

    def apply(self, pixels: Pixels, where: str) -> Tensor:
        """Make `[3, H, W]` float32 uint8."""
        assert isinstance(pixels, Tensor)
        return pixels.clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class CenterCrop:
    """`center_crop(S)` or `center_crop(HxW)`: torchvision's, which pads with 0 what is too small.

    Attributes:
        size: Height and width in pixels.
    """

    size: Size
    name: ClassVar[str] = "center_crop"
    usage: ClassVar[str] = "center_crop(S) or center_crop(HxW)"

    @classmethod
    def read(cls, arguments: Sequence[str]) -> CenterCrop:
        """The op with these arguments; raises ValueError."""
        (text,) = _exactly(1, arguments)
        size = _read_size(text)
        return cls((size, size) if isinstance(size, int) else size)

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.name}({height})" if height == width else f"{self.name}({height}x{width})"

    def apply(self, pixels: Pixels, where: str) -> Pixels:
        """Crop an image, or `[3, H, W]`."""
        height, width = (pixels.height, pixels.width) if isinstance(pixels, Image.Image) else pixels.shape[1:]
        top, left = self.offset(height, self.size[0]), self.offset(width, self.size[1])
        bottom, right = top + self.size[0], left + self.size[1]
        if isinstance(pixels, Image.Image):
            return pixels.crop((left, top, right, bottom))
        return pad(pixels, (-left, right - width, -top, bottom - height))

    @staticmethod
    def offset(length: int, wanted: int) -> int:
        """Where the crop begins along one axis; negative where it begins in the padding."""
        if wanted > length:
            return -((wanted - length) // 2)
        return round((length - wanted) / 2)  # half to even: of a margin of 1 it takes 0, of 3 it takes 2


@dataclass(frozen=True)
class CentralCrop(CenterCrop):
    """`central_crop(S)` or `central_crop(HxW)`: TensorFlow's and big_vision's, which never pads."""

    name: ClassVar[str] = "central_crop"
    usage: ClassVar[str] = "central_crop(S) or central_crop(HxW)"

    @staticmethod
    def offset(length: int, wanted: int) -> int:
        """Where the crop begins along one axis."""
        return (length - wanted) // 2


@dataclass(frozen=True)
class Normalize:
    """`normalize(m,s)`: `(x / 255 - m) / s`, in the order of torchvision's ToTensor and Normalize, so equal to theirs.

    Attributes:
        mean: One value for each of red, green and blue, on pixels in [0, 1].
        std: The same.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    usage: ClassVar[str] = "normalize(m,s), m and s one number or three joined by '/'"

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Normalize:
        """The op with these arguments; raises ValueError."""
        mean, std = _exactly(2, arguments)
        op = cls(_read_channels(mean), _read_channels(std))
        if min(op.std) < 1e-6:
            raise ValueError(f"a standard deviation must be at least 1e-6, not {number(min(op.std))}")
        return op

    def __str__(self) -> str:
        return f"normalize({_channels(self.mean)},{_channels(self.std)})"

    def finish(self, batch: Tensor) -> Tensor:
        """Normalise `[N, 3, H, W]`, uint8 or float32 in 0..255, to float32."""
        device = batch.device
        return _unit(batch).sub_(_constant(self.mean, device)).div_(_constant(self.std, device))


@dataclass(frozen=True)
class ValueRange:
    """`value_range(a,b)`: `x / 255 * (b - a) + a`, as big_vision's op of this name.

    Attributes:
        low: What 0 becomes.
        high: What 255 becomes.
    """

    low: float
    high: float
    usage: ClassVar[str] = "value_range(a,b) with a < b"

    @classmethod
    def read(cls, arguments: Sequence[str]) -> ValueRange:
        """The op with these arguments; raises ValueError."""
        low, high = map(_read_number, _exactly(2, arguments))
        if not low < high:
            raise ValueError(f"{number(low)} is not less than {number(high)}")
        return cls(low, high)

    def __str__(self) -> str:
        return f"value_range({number(self.low)},{number(self.high)})"

    def finish(self, batch: Tensor) -> Tensor:
        """Scale `[N, 3, H, W]`, uint8 or float32 in 0..255, to float32 in `low`..`high`."""
        return _unit(batch).mul_(self.high - self.low).add_(self.low)


GeometryOp = Resize | ResizeSmall | TfResize | Uint8 | CenterCrop
FinishOp = Normalize | ValueRange
OPS: dict[str, type[GeometryOp | FinishOp]] = {
    "resize": Resize,
    "resize_small": ResizeSmall,
    "tf_resize": TfResize,
    "tf1_resize": Tf1Resize,
    "uint8": Uint8,
    "center_crop": CenterCrop,
    "central_crop": CentralCrop,
    "normalize": Normalize,
    "value_range": ValueRange,
}


def to_tensor(pixels: Pixels) -> Tensor:
    """An RGB image as `[3, H, W]` uint8, channels last in memory; a tensor as it is."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1) if isinstance(pixels, Image.Image) else pixels


def _unit(batch: Tensor) -> Tensor:
    """`batch / 255` as a new float32 tensor."""
    # Not `batch / 255`: PyTorch on CUDA divides by a number by multiplying with its reciprocal, which may lose the last bit.
    return batch / _constant((255.0,), batch.device)


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`[len(values), 1, 1]` float32 on `device`, kept so that a batch does not wait for a copy to the device."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used outside of it later
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _exactly(count: int, arguments: Sequence[str]) -> Sequence[str]:
    if len(arguments) != count:
        raise ValueError(f"it takes {count or 'no'} argument{'s' if count != 1 else ''}, not {len(arguments)}")
    return arguments


def _read_size(text: str) -> int | Size:
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
    sizes = [int(group) for group in match.groups() if group is not None] if match else []
    if not sizes or not all(1 <= size <= MAX_SIZE for size in sizes):
        raise ValueError(f"'{text}' is not a size in whole pixels from 1 to {MAX_SIZE}")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def _read_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a number") from None
    if not math.isfinite(value) or abs(value) > 1e6:
        raise ValueError(f"'{text}' is not a number from -1e6 to 1e6")
    return value + 0.0  # makes 0 of -0, which equals 0 but prints differently


def _read_channels(text: str) -> tuple[float, float, float]:
    values = [_read_number(part) for part in text.split("/")]
    if len(values) not in (1, 3):
        raise ValueError(f"'{text}' is not one number or three joined by '/'")
    return (values[0], values[len(values) // 2], values[-1])


def number(value: float) -> str:
    """The shortest decimal that reads back as `value`: 1 and not 1.0."""
    return repr(float(value)).removesuffix(".0")


def _channels(values: tuple[float, float, float]) -> str:
    return number(values[0]) if len(set(values)) == 1 else "/".join(map(number, values))
