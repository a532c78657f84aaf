"""Peak memory of the Ray executor's processes at N and at 4 N images: it should not grow with their number.

    python bench/ray_memory.py [--images 9000] [--repeats 2]

Images of 32 x 32 go through `pixels` (3,072 features) by two workers of one core, `--writer driver`: each unit's features come
back through the object store and the driver writes them. Then `ridge` is scored on all of them, and in runs of their own `knn`,
`fewshot` and `episodes`; all read features a part at a time but those that a fit or a draw needs together. Each is a fresh
`vitbench run`. N images are more than what is held at once (4,096 rows of either split at most), or the first such part would
pass for growth. What is counted of each process is its resident memory without what it shares with others (the object
store, which is bounded by itself, and mapped files), looked at every 20 ms; the largest of the driver, and the largest of any
worker; the median over the repeats, N and 4 N in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from common import row, versions, write_result
from PIL import Image

GOAL = 1.15
CLASSES, DISTINCT = 10, 50
LOOKS_PER_SECOND = 50
MB = 2**20


def make_images(folder: Path, images: int) -> None:
    """A folder of images, half of them for training; many names are links to one file."""
    generator = np.random.default_rng(0)
    originals = []
    for number in range(DISTINCT):
        path = folder / "originals" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.eye(3)[number % 3] * 100
        Image.fromarray((colour + generator.uniform(0, 155, (32, 32, 3))).astype(np.uint8)).save(path)
        originals.append(path)
    for split, count in (("train", images // 2), ("test", images // 2)):
        for number in range(count):
            target = folder / "images" / split / f"class{number % CLASSES}" / f"{number:06d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(originals[number % DISTINCT], target)


def peaks(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Largest private memory of the driver and of a worker while a command runs, in MiB."""
    found = {"driver": 0.0, "worker": 0.0}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    driver = psutil.Process(process.pid)
    workers: list[psutil.Process] = []
    looked = 0.0
    while process.poll() is None:
        if time.monotonic() - looked > 1:
            looked = time.monotonic()
            with suppress(psutil.Error):
                workers = [child for child in driver.children(recursive=True) if _is_worker(child)]
        for name, processes in (("driver", [driver]), ("worker", workers)):
            for each in processes:
                with suppress(psutil.Error):
                    memory = each.memory_info()
                    found[name] = max(found[name], (memory.rss - memory.shared) / MB)
        time.sleep(1 / LOOKS_PER_SECOND)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {process.communicate()[1]}")
    return found


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[0].startswith("ray::")
    except (psutil.Error, IndexError):
        return False


def measured(images: int) -> dict[str, dict[str, float]]:
    """What is run to the peaks of its processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, images)
        command = [sys.executable, "-m", "vitbench", "run", "-b", "pixels", "-t", f"imagefolder:{folder / 'images'}"]
        command += ["-o", str(folder / "out"), "--device", "cpu", "--executor", "ray", "--cpus-per-job", "1"]
        environment = {**os.environ, "VITBENCH_CACHE": str(folder / "cache")}
        return {
            "extraction and ridge": peaks([*command, "--writer", "driver", "--protocol", "ridge"], environment),
            **{name: peaks([*command, "--protocol", name], environment) for name in ("knn", "fewshot", "episodes")},
        }


def main() -> int:
    """Measure, print, write `bench/results/ray_memory.json`; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=9000, help="N")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    images = arguments.images
    repeats = [(measured(images), measured(4 * images)) for _ in range(arguments.repeats)]
    rows = []
    for work, processes in repeats[0][0].items():
        for process in processes:
            before, after = (statistics.median(repeat[side][work][process] for repeat in repeats) for side in (0, 1))
            rows.append(
                row(
                    f"{work}: peak memory of the {'driver' if process == 'driver' else 'largest worker'} at 4 N images",
                    f"{after:,.0f} MiB ({4 * images:,} images)",
                    f"itself at N: {before:,.0f} MiB ({images:,} images)",
                    after / before,
                    GOAL,
                    at_most=True,
                )
            )
    write_result("ray_memory", {"rows": rows, "repeats": repeats, "versions": versions(["ray", "torch", "numpy"])})
    return 0 if all(item["met"] for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
