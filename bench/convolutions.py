"""Images per second of a convolutional model, from JPEG files to stored features, against the loop that people write.

    python bench/convolutions.py [--images 48] [--repeats 3]

ResNet-50 at 224 pixels with random weights, float32, JPEG photographs of 500 x 375 pixels, the CPU with all its threads. In turns
in one process: vitbench; vitbench with its images as they are decoded, not with the channels last (`precision.image_layout`),
which shows what that does; and timm's loop of `bench/extraction.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import ratio_of, row, taken_in_turns, versions, write_result
from extraction import make_sides, timm_loop

MODEL = "resnet50"


def main() -> int:
    """Measure, print, write `bench/results/convolutions.json`; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        model, ours, paths, loader = make_sides(Path(name), MODEL, arguments.images)
        sides = {
            "vitbench": partial(ours, ["gap"], "float32"),
            "vitbench, images as decoded": partial(ours, ["gap"], "float32", packed=False),
            "timm loop": partial(timm_loop, model, loader),
        }
        seconds = taken_in_turns(sides, arguments.repeats)
    rates = {side: len(paths) / statistics.median(times) for side, times in seconds.items()}
    found = versions(["torch", "timm"])
    rows = [
        row(
            f"JPEG to features, ResNet-50, float32, against {claim}",
            f"{rates['vitbench']:.1f} images/s",
            f"{peer} {rates[side]:.1f} images/s",
            ratio_of(seconds[side], seconds["vitbench"]),
            1.0,
        )
        for claim, side, peer in (
            ("the timm loop", "timm loop", f"timm {found['timm']} loop"),
            ("its images as they are decoded", "vitbench, images as decoded", "itself"),
        )
    ]
    write_result("convolutions", {"rows": rows, "images_per_second": rates, "repeats": seconds, "versions": found})
    return 0 if all(item["met"] for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
