"""Preprocessing as a printable string: ops joined by `|`, such as `resize(256,bicubic)|center_crop(224)|normalize(0.5,0.5)`.

| op | what it does |
|---|---|
| `resize(S,INTERP)` | short side to S, long side to `int(S * long / short)` (torchvision's rule); Pillow, antialiased |
| `resize(HxW,INTERP)` | squash to H x W; Pillow, antialiased |
| `resize_small(S)` | short side to S by TensorFlow's area method, truncated to uint8, as big_vision's op of this name |
| `tf_resize(HxW,bilinear)` | squash as TF2's `tf.image.resize`: half-pixel centres, no antialiasing; float32 in 0..255 |
| `tf1_resize(HxW,bilinear)` | squash as `tf.compat.v1.image.resize`: corners aligned, no antialiasing; float32 in 0..255 |
| `uint8` | after a TF resize: clamp to 0..255 and truncate, as `tf.cast` does |
| `center_crop(S)`, `center_crop(HxW)` | torchvision's: offset `round((h - H) / 2)`, half to even; pads with 0 what is too small |
| `central_crop(S)`, `central_crop(HxW)` | TensorFlow's and big_vision's: offset `(h - H) // 2`; never pads |
| `normalize(m,s)` | `(x / 255 - m) / s`, m and s one number or three joined by `/` |
| `value_range(a,b)` | `x / 255 * (b - a) + a` |

INTERP is nearest, bilinear, bicubic, lanczos, box or hamming. The two crops differ where the margin is odd: of a margin of 3
pixels, torchvision takes 2 off the top, TensorFlow 1; hence two ops. On the `resize` path every result equals, bit for bit, that
of timm's evaluation transform in crop mode `center` (square inputs) or `squash`; its mode `border`, and `center` for an input
that is not square, have no ops here. On the `tf_resize` path every value follows TensorFlow's CPU kernel, operation by operation.

The last op is always `normalize` or `value_range`. What comes before it is geometry, which is done image by image in the threads
that decode; the last op is done on the whole batch, on its device. JPEG decoding is a separate source of differences to
TensorFlow: see `vitbench.tasks.images`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vitbench.errors import UsageError, unknown
from vitbench.tasks.images import to_rgb
from vitbench.tasks.ops import (
    OPS,
    CentralCrop,
    FinishOp,
    GeometryOp,
    Pixels,
    Resize,
    ResizeSmall,
    Size,
    TfResize,
    Uint8,
    number,
    to_tensor,
)

EXAMPLE = "resize(256,bicubic)|center_crop(224)|normalize(0.5,0.5)"
NATIVE = "+native"
PRESETS: dict[str, str] = {
    "bigvision_fewshot": "big_vision's few-shot evaluation: TF2 squash to 8/7 of the side, uint8, central crop, [-1, 1]",
    "bigvision_transfer": "big_vision's evaluation of fine-tuning: short side to 7/6 by area, central crop, [-1, 1]",
    "vit_jax": "vision_transformer's evaluation: TF2 squash without a crop, [-1, 1]",
    "vtab": "VTAB's reference (task_adaptation): TF1 legacy squash, [0, 1]",
}


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a backbone sees it; `str()` gives its canonical string.

    Attributes:
        geometry_ops: What is done image by image, in this order.
        finish_op: What is done to the batch.
    """

    geometry_ops: tuple[GeometryOp, ...]
    finish_op: FinishOp

    def __post_init__(self) -> None:
        _trace(self.geometry_ops, str(self))

    def __str__(self) -> str:
        return "|".join(map(str, (*self.geometry_ops, self.finish_op)))

    @property
    def output_size(self) -> Size:
        """Height and width of every result, in pixels."""
        return _trace(self.geometry_ops, str(self))

    def geometry(self, image: Image.Image, where: str = "image") -> Tensor:
        """Do the part that is done image by image; any number of threads may do so at a time.

        Args:
            image: An image of any size; one that is not RGB is converted.
            where: What the image is to the user, for error messages.

        Returns:
            `[3, H, W]`, contiguous: uint8 where the geometry ends in whole values (`resize`, `uint8`), else float32 in 0..255.

        Raises:
            DataError: The image cannot be converted to RGB, or is so thin that its resized form would be huge.
        """
        pixels: Pixels = to_rgb(image, where)
        for op in self.geometry_ops:
            pixels = op.apply(pixels, where)
        return to_tensor(pixels).contiguous()

    def finish(self, batch: Tensor) -> Tensor:
        """Do the rest, on the device of the batch.

        Args:
            batch: `[N, 3, H, W]`, uint8 or float32: results of `geometry`, stacked. It is not modified.

        Returns:
            `[N, 3, H, W]` float32, what a backbone encodes.
        """
        return self.finish_op.finish(batch)

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess images of any sizes to `[N, 3, H, W]` float32 on the CPU."""
        return self.finish(torch.stack([self.geometry(image, f"image {index}") for index, image in enumerate(images)]))


def parse(text: str) -> Preprocessing:
    """Parse ops joined by `|`; spaces around ops and arguments are ignored.

    Raises:
        UsageError: An op is unknown (the nearest is named) or takes other arguments, or the ops do not make a pipeline: geometry
            first, then exactly one of `normalize` and `value_range`, with results that are all of one size.
    """
    text = " ".join(text.split())
    ops = [_read_op(part.strip(), text) for part in text.split("|")]
    *geometry, last = ops
    if not isinstance(last, FinishOp):
        raise UsageError(f"preprocessing '{text}' must end in normalize(m,s) or value_range(a,b), not in '{last}'")
    before: list[GeometryOp] = []
    for op in geometry:
        if isinstance(op, FinishOp):
            raise UsageError(f"preprocessing '{text}': '{op}' must be the last op, and the only one of its kind")
        before.append(op)
    return Preprocessing(tuple(before), last)


def _read_op(part: str, text: str) -> GeometryOp | FinishOp:
    match = re.fullmatch(r"(\w+)\s*(?:\(([^()]*)\))?", part)
    if match is None:
        raise UsageError(f"preprocessing '{text}': '{part}' is not an op; write ops joined by '|', such as {EXAMPLE}")
    if match[1] not in OPS:
        raise unknown(f"op in preprocessing '{text}':", match[1], OPS)
    kind = OPS[match[1]]
    try:
        return kind.read([] if match[2] is None else [argument.strip() for argument in match[2].split(",")])
    except ValueError as error:
        raise UsageError(f"preprocessing '{text}': '{part}': {error}; write {kind.usage}") from error


def _trace(ops: Sequence[GeometryOp], text: str) -> Size:
    """The size of every result of `ops`.

    Raises:
        UsageError: An op cannot follow the one before it, or results would differ in size.
    """
    # What is known of the image at each step: its size, or else a lower bound of it; and what holds its pixels.
    size, exact, holds = (0, 0), False, "image"
    for op in ops:
        if isinstance(op, Resize):
            if holds != "image":
                raise UsageError(f"preprocessing '{text}': '{op}' resizes images, so it must come before tf_resize")
            exact = exact or not isinstance(op.size, int)
            size = op.output_size(*size) if exact else op.output_size(1, 1)
        elif isinstance(op, ResizeSmall):
            if holds != "image":
                raise UsageError(f"preprocessing '{text}': '{op}' resizes images, so it must come before tf_resize")
            size = op.output_size(*size) if exact else (op.size, op.size)
            holds = "uint8"
        elif isinstance(op, TfResize):
            size, exact, holds = op.size, True, "float32"
        elif isinstance(op, Uint8):
            if holds != "float32":
                raise UsageError(f"preprocessing '{text}': 'uint8' has nothing to do: it comes once, after a TF resize")
            holds = "uint8"
        else:
            if isinstance(op, CentralCrop) and (op.size[0] > size[0] or op.size[1] > size[1]):
                reach = "{}x{}".format(*size) if size != (0, 0) else "of any size"
                raise UsageError(
                    f"preprocessing '{text}': '{op}' never pads, and images may be {reach} there: "
                    "resize to a larger size first, or use center_crop, which pads"
                )
            size, exact = op.size, True
    if not exact:
        raise UsageError(
            f"preprocessing '{text}' would give images of different sizes: "
            "add center_crop(S), or give a resize both height and width"
        )
    return size


def check(text: str) -> None:
    """Make sure that `resolve` can read `text`, as far as that can be told without a backbone.

    Raises:
        UsageError: It is neither `auto`, nor a preset's name, nor a preprocessing string.
    """
    size, half = (224, 224), (0.5, 0.5, 0.5)
    if "|" in text or "(" in text:
        parse(text)
    else:
        resolve(text, "resize(224x224,bilinear)|normalize(0.5,0.5)", size, half, half)


def resolve(text: str, own: str, size: Size, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    """The preprocessing that `text` means for a backbone.

    Args:
        text: `auto` (the backbone's own), the name of a preset, a preset's name and `+native` (its geometry, with the
            backbone's own normalisation), or ops joined by `|`.
        own: The backbone's own preprocessing as a string.
        size: Height and width in pixels that the backbone takes; presets are made for it.
        mean: Per-channel mean of the backbone's own normalisation, on pixels in [0, 1].
        std: Per-channel standard deviation of the same.

    Raises:
        UsageError: There is no such preset (the nearest are offered), the ops cannot be read, or they give another size.
    """
    text = " ".join(text.split())
    if "(" in text or "|" in text:
        preprocessing = parse(text)
    else:
        name = text.removesuffix(NATIVE)
        if name != "auto" and name not in PRESETS:
            choices = ["auto", *PRESETS, *(preset + NATIVE for preset in PRESETS)]
            raise unknown("preprocessing", text, choices, hint=f"or write ops joined by '|', such as {EXAMPLE}")
        preprocessing = parse(own if name == "auto" else _preset(name, size))
        if name != text:
            native = f"normalize({'/'.join(map(number, mean))},{'/'.join(map(number, std))})"
            preprocessing = parse("|".join(map(str, (*preprocessing.geometry_ops, native))))
    if preprocessing.output_size != tuple(size):
        raise UsageError(
            "preprocessing '{}' gives {}x{} pixels, but the backbone takes {}x{}: ".format(
                preprocessing, *preprocessing.output_size, *size
            )
            + "change its last resize or crop, or the backbone's resolution"
        )
    return preprocessing


def _preset(name: str, size: Size) -> str:
    """The ops of a preset for a backbone that takes `size`."""
    final = "{}x{}".format(*size)
    if name == "bigvision_fewshot":
        larger = "{}x{}".format(*(round(side * 256 / 224) for side in size))
        return f"tf_resize({larger},bilinear)|uint8|central_crop({final})|value_range(-1,1)"
    if name == "bigvision_transfer":
        return f"resize_small({round(max(size) * 448 / 384)})|central_crop({final})|value_range(-1,1)"
    if name == "vit_jax":
        return f"tf_resize({final},bilinear)|value_range(-1,1)"
    return f"tf1_resize({final},bilinear)|value_range(0,1)"
