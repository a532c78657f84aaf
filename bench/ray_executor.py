"""The Ray executor against the local one, on this machine: what it costs, how it scales, and what one small task costs.

    python bench/ray_executor.py [--images 800] [--scaled 2400] [--repeats 2] [--tasks 1000]

A ViT-S/16 with random weights at 224 pixels and JPEG photographs of 500 x 375 pixels; shots 1, 5, 10 and 25, seeds 0, 1 and 2,
three representations, the penalty chosen by leave-one-out. Every run begins with an empty output folder.

* cost: the wall time of `executor=ray` with one worker that has both cores, over `executor=local` with as many threads; in turns,
  once Ray runs and its workers have been at work before. Goal: at most 1.15.
* scaling: a Ray of two single-core workers over a Ray of one. Goal: 1.7 times as fast. The driver, Ray and the decoding of one
  worker have the second core to themselves, which two workers share with them. Beside it stands what two processes of one
  thread each do on this machine against one, by a bare forward loop without Ray.
* tasks: small evaluations of features that are there, one task each, over what they take in this process: milliseconds per task.

The file is not called `ray.py`, or `import ray` in this folder would find it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from common import make_photographs, ratio_of, row, taken_in_turns, versions, write_result
from safetensors.torch import save_file

from vitbench.execution.config import make_config
from vitbench.execution.execute import execute
from vitbench.execution.ray.joining import own
from vitbench.execution.reporter import Reporter

MODEL, CLASSES, TRAIN = "vit_small_patch16_224", 5, 30
BATCH, BATCHES = 16, 6
SCALED = 2400
"""Test images of a run with single-core workers; the more, the smaller a part the start of their processes is."""


class Runs:
    """Runs of one command, each into an empty folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def __call__(self, executor: str, cpus: int, **settings: Any) -> None:
        """One run."""
        self.count += 1
        values = {
            "backbones": f"timm:{MODEL},checkpoint={self.root / 'model.safetensors'}",
            "tasks": f"imagefolder:{self.root / 'images'}",
            "options": {"shots": "1,5,10,25", "seeds": 3, "l2": "loo"},
            "out": self.root / f"out{self.count}",
            "device": "cpu",
            **settings,
        }
        if executor == "ray":
            values["cpus_per_job"] = cpus
        result = execute(make_config({**values, "executor": executor}), Reporter(), "bench")
        if result.failures:
            raise RuntimeError(result.failures[0])


def cost(runs: Runs, cores: int, images: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of both executors, in turns, with all cores."""
    with own(cores):
        sides = {name: (lambda name=name: runs(name, cores, limit=images)) for name in ("local", "ray")}
        return taken_in_turns(sides, repeats)


def scaling(runs: Runs, images: int, repeats: int) -> dict[str, list[float]]:
    """Seconds with one and with two single-core workers; each after a run that warms the workers up."""
    sides = {"1 worker": 1, "2 workers": 2}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side, workers in sides.items() if repeat % 2 else reversed(sides.items()):
            with own(workers):
                runs("ray", 1, limit=5 * workers)
                started = time.perf_counter()
                runs("ray", 1, limit=images)
                seconds[side].append(time.perf_counter() - started)
    return seconds


def bare_scaling() -> float:
    """How much faster two processes of one thread are than one, at the forward pass alone."""
    context = multiprocessing.get_context("spawn")
    rates = {}
    for processes in (1, 2):
        with context.Pool(processes) as pool:
            pool.map(_forward, [1] * processes, chunksize=1)
            taken = pool.map(_forward, [BATCHES] * processes, chunksize=1)
        rates[processes] = sum(BATCH * BATCHES / seconds for seconds in taken)
    return rates[2] / rates[1]


def _forward(batches: int) -> float:
    torch.set_num_threads(1)
    model = timm.create_model(MODEL, num_classes=0).eval()
    pixels = torch.randn(BATCH, 3, 224, 224)
    with torch.inference_mode():
        model(pixels)
        started = time.perf_counter()
        for _ in range(batches):
            model(pixels)
    return time.perf_counter() - started


def small_tasks(runs: Runs, cores: int, tasks: int) -> tuple[float, float]:
    """Seconds of so many small evaluations in this process, and as tasks of Ray; the features are there."""
    options = {"shots": "1", "seeds": tasks}
    settings: dict[str, Any] = {"backbones": "pixels", "options": options, "limit": 20}
    with own(cores):
        runs("ray", 1, **{**settings, "options": {"shots": "1", "seeds": 4}})
        seconds = {}
        for executor in ("local", "ray"):
            # Each in a folder where the features are and no record is.
            runs(executor, 1, **{**settings, "options": {"shots": "1", "seeds": 1}})
            out = runs.root / f"out{runs.count}"
            started = time.perf_counter()
            runs(executor, 1, **{**settings, "out": out})
            seconds[executor] = time.perf_counter() - started
    return seconds["local"], seconds["ray"]


def main() -> int:
    """Measure, print, write `bench/results/ray_executor.json`; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=800, help="test images of the runs that are compared for cost")
    parser.add_argument(
        "--scaled", type=int, default=SCALED, help="test images of the runs that are compared for scaling"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=1000)
    arguments = parser.parse_args()
    cores = torch.get_num_threads()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_photographs(root / "images", CLASSES, TRAIN, max(arguments.images, arguments.scaled) // CLASSES)
        save_file(timm.create_model(MODEL, num_classes=0).state_dict(), root / "model.safetensors")
        runs = Runs(root)
        taken = cost(runs, cores, arguments.images, arguments.repeats)
        grown = scaling(runs, arguments.scaled, arguments.repeats)
        bare = bare_scaling()
        here, there = small_tasks(runs, cores, arguments.tasks)
    found = versions(["ray", "torch", "timm"])
    medians = {side: statistics.median(times) for side, times in (taken | grown).items()}
    each = 1000 * (there - here) / arguments.tasks
    rows = [
        row(
            f"the Ray executor's wall time over the local one's, {cores} cores, warm",
            f"{medians['ray']:.1f} s",
            f"executor local {medians['local']:.1f} s",
            ratio_of(taken["ray"], taken["local"]),
            1.15,
            at_most=True,
        ),
        row(
            f"two single-core workers against one, {arguments.scaled + CLASSES * TRAIN:,} images",
            f"{medians['2 workers']:.1f} s",
            f"ray {found['ray']}, one worker {medians['1 worker']:.1f} s",
            ratio_of(grown["1 worker"], grown["2 workers"]),
            1.7,
            reason=(
                "start-up of some seconds does not shrink, and the driver and the decoding, which run beside one worker, share "
                f"the two cores with two; two bare processes reach {bare:.2f} times one"
            ),
        ),
        row(
            f"{arguments.tasks:,} small evaluation tasks on {cores} cores: overhead in ms per task",
            f"{there:.1f} s",
            f"executor local {here:.1f} s",
            each,
            20.0,
            at_most=True,
        ),
    ]
    write_result(
        "ray_executor",
        {
            "rows": rows,
            "repeats": taken | grown,
            "bare_scaling": bare,
            "milliseconds_per_task": each,
            "versions": found,
        },
    )
    print(f"ray_executor: two bare processes are {bare:.2f} times as fast as one; {each:.1f} ms per small task")
    return 0 if all(item["met"] for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
