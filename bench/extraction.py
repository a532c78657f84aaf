"""Images per second end to end (JPEG files to stored features, three representations) against the bare forward pass.

The peer is a loop of `model.forward_features` over already decoded and normalised tensors, at the same dtype and batch size, in
the same process with the same threads. Both sides see the same images; they are timed in turn, and the ratio of medians is
printed. The goal is 0.93 on a CPU with a model of ViT-S size: decoding, resizing, pooling, hashing and writing cost at most 7 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import vitbench
from vitbench.features.extract import ExtractionOptions, feature_set
from vitbench.features.store import FeatureStore
from vitbench.tasks import transforms

GOAL = 0.93


def make_images(folder: Path, count: int) -> None:
    """JPEG photographs of about 500 x 375 pixels: smooth shapes with noise, in two classes."""
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = generator.uniform(0, 255, (12, 16, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(image, np.int16) + generator.integers(-12, 12, (375, 500, 3))
        for split in ("train", "test"):
            target = folder / split / str(index % 2)
            target.mkdir(parents=True, exist_ok=True)
            if split == "test" or index < 4:
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target / f"{index:04d}.jpg", quality=90)


def main() -> int:
    """Measure, print, write the result; 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_images(root / "images", arguments.images)
        save_file(timm.create_model(arguments.model, num_classes=0).state_dict(), root / "model.safetensors")
        spec = f"timm:{arguments.model},checkpoint={root / 'model.safetensors'},dtype={arguments.dtype}"
        backbone = vitbench.load_backbone(spec)
        preprocessing = transforms.parse(backbone.preprocessing)
        split = vitbench.load_task(f"imagefolder:{root / 'images'}").split("test")
        rows = np.arange(len(split), dtype=np.int64)
        model = backbone.modules[0]
        tensors = preprocessing([split.image(int(row)) for row in rows]).split(arguments.batch_size)
        options = ExtractionOptions(batch_size=arguments.batch_size)

        def bare() -> None:
            autocast = torch.autocast(backbone.device.type, torch.bfloat16, enabled=arguments.dtype == "bfloat16")
            with torch.inference_mode(), autocast:
                for batch in tensors:
                    model.forward_features(batch.to(backbone.device))  # type: ignore[operator]

        def end_to_end(repeat: int) -> None:
            store = FeatureStore(root / f"out{repeat}", "bench", "images", "test", {"repeat": repeat})
            feature_set(backbone, split, preprocessing, ["cls", "gap", "pooler"], rows, store, options)

        bare()
        end_to_end(-1)
        seconds: dict[str, list[float]] = {"bare": [], "end_to_end": []}
        for repeat in range(arguments.repeats):
            order = [("bare", bare), ("end_to_end", lambda repeat=repeat: end_to_end(repeat))]
            for label, work in order if repeat % 2 else reversed(order):
                started = time.perf_counter()
                work()
                seconds[label].append(time.perf_counter() - started)
    rate = {label: len(rows) / statistics.median(times) for label, times in seconds.items()}
    ratio = rate["end_to_end"] / rate["bare"]
    result = {
        "claim": "extraction",
        "model": arguments.model,
        "dtype": backbone.dtype,
        "device": str(backbone.device),
        "threads": torch.get_num_threads(),
        "images": len(rows),
        "images_per_second": rate,
        "ratio": ratio,
        "goal": GOAL,
    }
    path = Path(__file__).parent / "results" / "extraction.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"extraction: {rate['end_to_end']:.1f} images/s from JPEG to stored features (cls, gap, pooler), bare forward pass "
        f"{rate['bare']:.1f} images/s; ratio {ratio:.3f} (goal {GOAL}) on {arguments.model}, {backbone.dtype}, {backbone.device}"
    )
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
