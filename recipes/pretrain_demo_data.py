"""Make the task that the demo backbone is pretrained on, at 32 px.

    python recipes/pretrain_demo_data.py IMAGES OUT

IMAGES is a folder with `tinyimagenet32_pretrain/` (parquet in the Hub's layout) and `omniglot_small1/` (the zip of Omniglot's
small background set 1). OUT gets `train.parquet`, `test.parquet` and `task.yaml`, for `vitbench run --tasks OUT/task.yaml`.

One classifier learns 416 classes of six kinds:

| classes | what they are |
|---|---|
| 200 | Tiny-ImageNet's; each train image comes twice, as it is and cropped, every other crop mirrored |
| 136 | which character of Omniglot it is: in thick or thin strokes, sharp or blurred, a little turned, shifted and resized |
| 3 x 16 | where the one small character of a picture is from left to right, from top to bottom, or how large it is |
| 16 | in which direction a character is turned, in steps of 22.5 degrees |
| 16 | how many characters there are |

The pictures of the last three kinds are drawn here from Omniglot's characters in random colours; which of a picture's facts is
asked for is random, too, so that a classifier does best that knows them all. The last two of a character's twenty drawers are the
test split's, with Tiny-ImageNet's own validation images. Every draw has the seed 0.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
import yaml
from PIL import Image, ImageFilter

SIDE = 32
BINS = 16
TEST_DRAWERS = 2
POSES = ("x", "y", "size", "direction", "count")
Row = tuple[bytes, int]
Drawings = list[tuple[Image.Image, int]]


def main(
    images: Annotated[
        Path, typer.Argument(help="Folder with tinyimagenet32_pretrain and omniglot_small1.", exists=True)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
) -> None:
    """Make the pretraining task of the demo backbone."""
    out.mkdir(parents=True, exist_ok=True)
    photos = images / "tinyimagenet32_pretrain"
    known = json.loads((photos / "class_names.json").read_text(encoding="utf-8"))
    names, train, test = drawings(images / "omniglot_small1" / "images_background_small1.zip")
    classes = [*map(str, known), *names, *(f"{pose} {number}" for pose in POSES for number in range(BINS))]
    rng = np.random.default_rng(0)
    first = len(known)
    splits = {
        "train": [
            *photographs(photos, "train", rng, cropped=True),
            *characters(train, first, 6, rng),
            *scenes(train, first + len(names), 32_000, rng),
        ],
        "test": [
            *photographs(photos, "val", rng, cropped=False),
            *characters(test, first, 2, rng),
            *scenes(test, first + len(names), 1_600, rng),
        ],
    }
    for split, rows in splits.items():
        write(out / f"{split}.parquet", rows, classes)
    task = {
        "title": "Photographs, characters and their poses at 32 px",
        "description": "What the demo backbone is pretrained on; see recipes/pretrain_demo_data.py.",
        "source": {"kind": "parquet", "path": ".", "image": "image", "label": "label"},
        "splits": {split: {"files": [f"{split}.parquet"], "size": len(rows)} for split, rows in splits.items()},
        "num_classes": len(classes),
        "metric": "accuracy",
        "licence": "Tiny-ImageNet: research and education terms; Omniglot: MIT",
        "citation": "Le and Yang, Tiny ImageNet Visual Recognition Challenge, 2015; Lake et al., Science, 2015",
        "homepage": "https://github.com/brendenlake/omniglot",
        "download_bytes": 0,
    }
    (out / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False, width=120), encoding="utf-8")


def photographs(folder: Path, split: str, rng: np.random.Generator, cropped: bool) -> Iterator[Row]:
    """The encoded images of Tiny-ImageNet and their labels; with `cropped`, a crop of each as well."""
    for path in sorted(folder.glob(f"{split}*.parquet")):
        for row in pq.read_table(path).to_pylist():
            data, label = row["image"]["bytes"], row["label"]
            yield data, label
            if not cropped:
                continue
            image = Image.open(io.BytesIO(data)).convert("RGB")
            side = round(image.width * rng.uniform(0.6, 1.0))
            left, top = (int(rng.integers(length - side + 1)) for length in image.size)
            image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            yield encoded(image, "JPEG"), label


def drawings(path: Path) -> tuple[list[str], Drawings, Drawings]:
    """The characters' names, and the drawings of train and test as masks of strokes, with the character's number."""
    train: Drawings = []
    test: Drawings = []
    with zipfile.ZipFile(path) as archive:
        files = sorted(name for name in archive.namelist() if name.endswith(".png"))
        names = sorted({"/".join(name.split("/")[1:3]) for name in files})
        for name in files:
            number = names.index("/".join(name.split("/")[1:3]))
            drawer = int(Path(name).stem.split("_")[1])
            mask = Image.open(io.BytesIO(archive.read(name))).convert("L").point(lambda value: 255 - value)
            (test if drawer > 20 - TEST_DRAWERS else train).append((mask, number))
    return names, train, test


def characters(drawn: Drawings, first: int, times: int, rng: np.random.Generator) -> Iterator[Row]:
    """Each drawing some times, in various strokes."""
    for mask, number in drawn:
        for _ in range(times):
            strokes = thickened(mask, int(rng.choice([3, 7, 11])))
            strokes = strokes.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
            box = strokes.getbbox() or (0, 0, *strokes.size)
            side = max(box[2] - box[0], box[3] - box[1]) * rng.uniform(1.0, 1.4)
            middle = (np.array(box[:2]) + box[2:]) / 2 + rng.uniform(-0.08, 0.08, 2) * side
            corners = (*np.round(middle - side / 2).astype(int), *np.round(middle + side / 2).astype(int))
            strokes = strokes.crop(corners)
            if rng.random() < 0.5:  # as coarse as a small scan
                strokes = strokes.resize((int(rng.integers(8, 13)),) * 2, Image.Resampling.BOX)
            strokes = strokes.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            plain = rng.random() < 0.5
            picture = painted([(strokes, (0, 0))], rng, plain=plain)
            yield encoded(picture, "PNG"), first + number


def scenes(drawn: Drawings, first: int, count: int, rng: np.random.Generator) -> Iterator[Row]:
    """Pictures of one or several characters, labelled with one of their facts."""
    for _ in range(count):
        pose = POSES[int(rng.integers(len(POSES)))]
        if pose == "count":
            number = int(rng.integers(BINS))
            cells = rng.permutation(36)[: number + 1]
            parts = []
            for cell in cells:
                row, column = divmod(int(cell), 6)
                side = int(rng.integers(3, 6))
                shift = rng.integers(0, 6 - side, 2) if side < 5 else np.zeros(2, dtype=int)
                place = (1 + 5 * column + int(shift[0]), 1 + 5 * row + int(shift[1]))
                parts.append((placed(drawn, side, 0.0, rng), place))
            yield encoded(painted(parts, rng), "PNG"), first + POSES.index(pose) * BINS + number
            continue
        size = int(rng.integers(BINS))
        side = (
            5 + size
            if pose == "size"
            else int(rng.integers(12, 25))
            if pose == "direction"
            else int(rng.integers(5, 10))
        )
        direction = int(rng.integers(BINS))
        strokes = placed(drawn, side, 360 / BINS * direction + rng.uniform(-9, 9), rng)
        middle = rng.uniform(side / 2, SIDE - side / 2, 2)
        place = (int(middle[0] - side / 2), int(middle[1] - side / 2))
        spread = (middle - side / 2) / (SIDE - side)
        facts = {"x": int(spread[0] * BINS), "y": int(spread[1] * BINS), "size": size, "direction": direction}
        yield (
            encoded(painted([(strokes, place)], rng), "PNG"),
            first + POSES.index(pose) * BINS + min(facts[pose], BINS - 1),
        )


def placed(drawn: Drawings, side: int, angle: float, rng: np.random.Generator) -> Image.Image:
    """A random character in thick strokes, turned counter-clockwise, in a square of `side` pixels."""
    mask, _ = drawn[int(rng.integers(len(drawn)))]
    strokes = thickened(mask, 15 if side < 10 else int(rng.choice([7, 11, 15])))
    strokes = strokes.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return strokes.crop(strokes.getbbox()).resize((side, side), Image.Resampling.BOX)


def thickened(mask: Image.Image, width: int) -> Image.Image:
    """A drawing with its strokes widened."""
    return mask.filter(ImageFilter.MaxFilter(width))


def painted(
    parts: list[tuple[Image.Image, tuple[int, int]]], rng: np.random.Generator, plain: bool = False
) -> Image.Image:
    """Strokes in random light colours on a random dark ground, or the reverse; with `plain`, white on black or the reverse."""
    dark, light = rng.uniform(0, 110, 3), rng.uniform(140, 255, (len(parts), 3))
    if plain:
        dark, light = np.zeros(3), np.full((len(parts), 3), 255.0)
    canvas = np.tile(dark, (SIDE, SIDE, 1)) * (
        1 if plain else np.linspace(*rng.uniform(0.7, 1.3, 2), SIDE)[:, None, None]
    )
    for (strokes, (left, top)), colour in zip(parts, light, strict=True):
        alpha = np.asarray(strokes, dtype=float)[: SIDE - top, : SIDE - left, None] / 255
        height, width = alpha.shape[:2]
        region = canvas[top : top + height, left : left + width]
        region += alpha * (colour - region)
    if not plain:
        canvas += rng.normal(0, rng.uniform(0, 8), canvas.shape)
    values = np.clip(canvas, 0, 255).astype(np.uint8)
    return Image.fromarray(255 - values if rng.random() < 0.25 else values)


def encoded(image: Image.Image, kind: str) -> bytes:
    """An image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return stream.getvalue()


def write(path: Path, rows: list[Row], names: list[str]) -> None:
    """Write rows as the Hub's parquet, in order of the sha256 of their bytes: images, and labels with their names."""
    rows = sorted(rows, key=lambda row: hashlib.sha256(row[0]).digest())
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pictures = pa.array([{"bytes": data, "path": None} for data, _ in rows], kind)
    table = pa.table({"image": pictures, "label": pa.array([label for _, label in rows], pa.int64())})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)


if __name__ == "__main__":
    typer.run(main)
