from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from vitbench.errors import DataError
from vitbench.tasks.images import decode_rgb
from vitbench.tasks.transforms import parse, resolve

HALF = (0.5, 0.5, 0.5)
OWN = "resize(248,bicubic)|center_crop(224)|normalize(0.5,0.5)"


def photographs(test_data: Path, count: int) -> list[Path]:
    """Some JPEGs, spread over the classes."""
    paths = sorted((test_data / "images" / "imagenette160" / "val").glob("*/*.*"))
    return paths[:: len(paths) // count][:count]


def bigvision_fewshot(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.float32]:
    """big_vision's few-shot preprocessing in NumPy: `[H, W, 3]` uint8 to `[side, side, 3]` float32."""
    larger = round(side * 256 / 224)

    def axis(old: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        where = (np.arange(larger, dtype="f4") + np.float32(0.5)) * (np.float32(old) / np.float32(larger)) - np.float32(
            0.5
        )
        low = np.floor(where)
        return low.astype(int).clip(0), np.ceil(where).astype(int).clip(None, old - 1), where - low

    (top, bottom, y), (left, right, x) = axis(image.shape[0]), axis(image.shape[1])
    y, x = y[:, None, None], x[None, :, None]

    def at(rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        return image[np.ix_(rows, columns)].astype("f4")

    upper = at(top, left) + (at(top, right) - at(top, left)) * x
    lower = at(bottom, left) + (at(bottom, right) - at(bottom, left)) * x
    resized = np.clip(upper + (lower - upper) * y, 0, 255).astype(np.uint8)
    offset = (larger - side) // 2
    cropped = resized[offset : offset + side, offset : offset + side].astype("f4")
    return np.float32(-1) + cropped / np.float32(255) * np.float32(2)


@pytest.mark.parametrize("side", [224, 384])
def test_bigvision_fewshot_on_photographs(test_data: Path, side: int) -> None:
    images = [decode_rgb(path, path.name) for path in photographs(test_data, 12)]
    ours = resolve("bigvision_fewshot", OWN, (side, side), HALF, HALF)(images)
    expected = np.stack([bigvision_fewshot(np.asarray(image), side) for image in images]).transpose(0, 3, 1, 2)
    assert np.array_equal(ours.numpy(), expected)


def test_the_recipes_of_timm_and_big_vision_differ_on_photographs(test_data: Path) -> None:
    images = [decode_rgb(path, path.name) for path in photographs(test_data, 12)]
    own, fewshot = (resolve(text, OWN, (224, 224), HALF, HALF)(images) for text in ("auto", "bigvision_fewshot"))
    assert (own - fewshot).abs().mean() > 0.02


def test_timms_evaluation_transform_on_photographs(test_data: Path) -> None:
    from timm.data import create_transform

    theirs = create_transform((3, 224, 224), interpolation="bicubic", mean=HALF, std=HALF, crop_pct=0.9)
    images = [decode_rgb(path, path.name) for path in photographs(test_data, 12)]
    assert torch.equal(parse(OWN)(images), torch.stack([theirs(image) for image in images]))


def test_every_photograph_is_decoded_as_pillow_does(test_data: Path) -> None:
    for path in photographs(test_data, 150):
        with Image.open(path) as image:
            assert np.array_equal(
                np.asarray(decode_rgb(path.read_bytes(), path.name)), np.asarray(image.convert("RGB"))
            )


def test_a_truncated_photograph_is_told_in_one_line(test_data: Path) -> None:
    for path in photographs(test_data, 12):
        data = path.read_bytes()
        with pytest.raises(DataError, match=rf"^row 7 \({path.name}\): .*truncated") as error:
            decode_rgb(data[: len(data) // 2], f"row 7 ({path.name})")
        assert "\n" not in str(error.value)


def test_one_bit_drawings_are_black_on_white(test_data: Path) -> None:
    (archive,) = (test_data / "images" / "omniglot_small1").glob("*.zip")
    with zipfile.ZipFile(archive) as drawings:
        names = [name for name in drawings.namelist() if name.endswith(".png")]
        for name in names[:20]:
            data = drawings.read(name)
            assert Image.open(io.BytesIO(data)).mode == "1"
            image = np.asarray(decode_rgb(data, name))
            assert set(np.unique(image)) == {0, 255}
            assert 200 < image.mean() < 255
