"""Memory of an extraction from JPEG files: the peak does not depend on how many images there are.

    python bench/extraction_memory.py [--images 500]

A ViT of one block embeds, at 224 pixels, an image folder of so many photographs of 500 x 375 pixels, and one of four times as
many, each in a process of its own that decodes, embeds, stores and reads the features again. Compared is the peak of resident
memory. The peer is the script people write, in the same process family: every image of the folder
decoded into one tensor and embedded in batches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from common import make_photographs, peak_memory, row, versions, write_result
from PIL import Image
from safetensors.torch import save_file

from vitbench.features.extract import ExtractionOptions, feature_set
from vitbench.features.load import load_backbone
from vitbench.features.store import FeatureStore
from vitbench.tasks import transforms
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import TaskOptions

CLASSES, DISTINCT, TIMES = 4, 8, 4
GOAL = 1.1
MODEL = "vit_tiny_patch16_224"


def make_folder(photographs: Path, folder: Path, images: int) -> None:
    """An image folder of so many test images: links to the few photographs that there are."""
    for split, count in (("train", CLASSES), ("test", images)):
        for number in range(count):
            label = number % CLASSES
            target = folder / split / str(label) / f"{number:06d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(photographs / "test" / str(label) / f"{number // CLASSES % DISTINCT:04d}.jpg", target)


def by_vitbench(spec: str, folder: Path, out: Path) -> int:
    """Extract and read again; bytes by which resident memory rises after the first images."""
    backbone = load_backbone(spec, device="cpu")
    split = load_task(f"imagefolder:{folder}", TaskOptions()).split("test")
    store = FeatureStore(out, "bench", "images", "test", {"bench": "extraction_memory"})
    names, rows = backbone.available(), np.arange(len(split), dtype=np.int64)
    preprocessing, options = transforms.parse(backbone.preprocessing), ExtractionOptions()
    feature_set(backbone, split, preprocessing, names, rows[:64], store, options)
    before = peak_memory()
    features = feature_set(backbone, split, preprocessing, names, rows, store, options)
    assert all(len(features.representations[name]) == len(split) for name in names)
    return peak_memory() - before


def by_script(spec: str, folder: Path, out: Path) -> int:
    """All images in one tensor, which is then embedded; bytes by which resident memory rises after the first ones."""
    backbone = load_backbone(spec, device="cpu")
    preprocessing = transforms.parse(backbone.preprocessing)
    paths = sorted((folder / "test").glob("*/*.jpg"))

    def embed(some: list[Path]) -> None:
        pixels = torch.stack([preprocessing.geometry(Image.open(path).convert("RGB"), str(path)) for path in some])
        ready = preprocessing.finish(pixels)
        atoms = frozenset(atom for name in backbone.available() for atom in backbone.resolve(name))
        for batch in ready.split(32):
            backbone.encode_atoms(batch, atoms)

    embed(paths[:64])
    before = peak_memory()
    embed(paths)
    return peak_memory() - before


SIDES = {"vitbench": by_vitbench, "script": by_script}


def measured(side: str, spec: str, folder: Path, out: Path) -> tuple[int, int]:
    """Peak and rise of a side, in bytes, by a process of its own."""
    command = [sys.executable, __file__, "--side", side, spec, str(folder), str(out)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(told[-2]), int(told[-1])


def main() -> int:
    """Measure, print, write `bench/results/extraction_memory.json`; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, spec, folder, out = arguments.side
        rise = SIDES[side](spec, Path(folder), Path(out))
        print(peak_memory(), rise)
        return 0
    sizes = (arguments.images, TIMES * arguments.images)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_photographs(root / "photographs", CLASSES, 0, DISTINCT)
        save_file(timm.create_model(MODEL, num_classes=0, depth=1).state_dict(), root / "model.safetensors")
        spec = f"timm:{MODEL},checkpoint={root / 'model.safetensors'},model.depth=1"
        for images in sizes:
            make_folder(root / "photographs", root / str(images), images)
            for side in SIDES:
                found[side, images] = measured(side, spec, root / str(images), root / f"{side}{images}")
    few, many = sizes

    def peaks(side: str) -> str:
        return " and ".join(f"{found[side, images][0] / 1e6:,.0f} MB" for images in sizes)

    rises = [found["vitbench", images][1] / 1e6 for images in sizes]
    rows = [
        row(
            f"peak memory of an extraction of {many:,} images by that of {few:,}",
            f"{peaks('vitbench')}, of which after the first batch {rises[0]:,.0f} and {rises[1]:,.0f}",
            f"all images in one tensor {peaks('script')}",
            found["vitbench", many][0] / found["vitbench", few][0],
            GOAL,
            at_most=True,
        )
    ]
    result = {
        "rows": rows,
        "bytes": {
            f"{side}, {images} images": dict(zip(("peak", "rise"), pair, strict=True))
            for (side, images), pair in found.items()
        },
        "versions": versions(("torch", "pillow")),
    }
    write_result("extraction_memory", result)
    return 0 if rows[0]["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
