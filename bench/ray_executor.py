"""The Ray executor against the local one, on this machine: what it costs, how it scales, and what one small task costs.

    python bench/ray_executor.py [--images 1800] [--repeats 3] [--tasks 1000]

A ViT-S/16 with random weights at 224 pixels and JPEG photographs of 500 x 375 pixels; shots 1, 5, 10 and 25, seeds 0, 1 and 2,
three representations, the penalty chosen by leave-one-out. Every run begins with an empty output folder.

* cost: the wall time of `executor=ray` over `executor=local`, which has a thread per core; in turns. Goal: at most 1.15. Once as
  it is by default (on two cores: two workers of one), and once with one worker that has all of them.
* scaling: a Ray of two single-core workers over a Ray of one. Goal: 1.7 times as fast. The driver, Ray and the decoding of one
  worker have the second core to themselves, which two workers share with them; so it is measured also with each worker confined
  to one core, as on a machine that has no more. What two processes of one thread each do on this machine against one, by a bare
  forward loop without Ray, is printed.

  Each in a Ray that has been at work before, and by two times: of the whole run, and from the first tenth of its images to the
  last image. In the first are the starts of the workers: each is a new process, which imports torch and loads the backbone, as no
  run leaves one behind; the local executor has torch from the run before.
* tasks: small evaluations of features that are there, one task each, over what they take in this process: milliseconds per task.

The file is not called `ray.py`, or `import ray` in this folder would find it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from common import make_photographs, ratio_of, row, taken_in_turns, versions, write_result
from safetensors.torch import save_file

from vitbench.execution.config import make_config
from vitbench.execution.execute import execute
from vitbench.execution.ray.joining import own
from vitbench.execution.reporter import Advance, Reporter

Times = dict[str, list[float]]
"""Side to what each of its repeats took."""
MODEL, CLASSES, TRAIN = "vit_small_patch16_224", 5, 30
BATCH, BATCHES = 16, 6
WARM = 0.1
"""The part of the images after which a run counts as warm."""
START = "a worker imports torch and loads the backbone for some seconds, however much there is to do"


class Pace(Reporter):
    """Hears when images have been embedded."""

    def __init__(self) -> None:
        self._total, self._done = 0, 0
        self._after: list[tuple[float, int]] = []

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Follow the images; nothing else."""
        self._total += total if unit == "images" else 0

        def advance(done: int, text: str = "") -> None:
            if unit == "images":
                self._done += done
                self._after.append((time.perf_counter(), self._done))

        yield advance

    def seconds_per_image(self) -> float:
        """Once a tenth of the images has been embedded."""
        began, done = next(item for item in self._after if item[1] >= self._total * WARM)
        ended, all_of_them = self._after[-1]
        if done == all_of_them:
            raise ValueError("all images came at once: measure more of them")
        return (ended - began) / (all_of_them - done)


class Runs:
    """Runs of one command, each into an empty folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def __call__(self, executor: str, cpus: int | None, **settings: Any) -> Pace:
        """One run; `cpus` are those of a job of Ray's, None its default."""
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
        pace = Pace()
        result = execute(make_config({**values, "executor": executor}), pace, "bench")
        if result.failures:
            raise RuntimeError(result.failures[0])
        return pace


def cost(runs: Runs, cores: int, images: int, repeats: int) -> tuple[Times, Times]:
    """Seconds of the executors, in turns, with all cores: of the run, and of an image once warm."""
    sides = {"local": ("local", None), "ray": ("ray", None), "ray, one worker": ("ray", cores)}
    warm: Times = {side: [] for side in sides}

    def run(side: str) -> None:
        warm[side].append(runs(*sides[side], limit=images).seconds_per_image())

    with own(cores):
        whole = taken_in_turns({side: (lambda side=side: run(side)) for side in sides}, repeats)
    return whole, {side: times[-repeats:] for side, times in warm.items()}


def scaling(runs: Runs, images: int, repeats: int) -> tuple[Times, Times]:
    """Seconds with one and with two single-core workers, after a run that warms Ray up: of the run, and of an image once warm."""
    sides = {
        f"{workers}{' confined' if confine else ''}": (workers, confine)
        for confine in (True, False)
        for workers in (1, 2)
    }
    whole: Times = {side: [] for side in sides}
    warm: Times = {side: [] for side in sides}
    for repeat in range(repeats):
        for side, (workers, confine) in sides.items() if repeat % 2 else reversed(sides.items()):
            with own(workers), confined(workers) if confine else nullcontext():
                runs("ray", 1, limit=5 * workers)
                started = time.perf_counter()
                pace = runs("ray", 1, limit=images)
                whole[side].append(time.perf_counter() - started)
                warm[side].append(pace.seconds_per_image())
    return whole, warm


@contextmanager
def confined(workers: int) -> Iterator[None]:
    """Inside, each worker that embeds may use one core, and no two of a run the same; all else may use every core."""
    cores = sorted(os.sched_getaffinity(0))[:workers]
    ended, core_of = threading.Event(), dict[int, int]()

    def watch() -> None:
        # A thread begins with the core of the one that starts it; one that began before its process was seen is set next time.
        while not ended.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if next(iter(process.cmdline()), "").startswith("ray::MapWorker"):
                        core = core_of.setdefault(process.pid, cores[len(core_of) % workers])
                        for thread in process.threads():
                            with suppress(ProcessLookupError):
                                os.sched_setaffinity(thread.id, [core])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if not core_of:
        raise RuntimeError("no worker was found to be confined")


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


def cost_rows(whole: Times, warm: Times, cores: int) -> list[dict[str, Any]]:
    """What the Ray executor costs."""
    seconds, paces = _medians(whole), _medians(warm)
    rows = []
    for side, how in (("ray", ""), ("ray, one worker", ", one worker that has all cores")):
        rows += [
            row(
                f"the Ray executor's wall time over the local one's, whole runs in a warm Ray{how}",
                f"{seconds[side]:.1f} s on {cores} cores",
                f"executor local {seconds['local']:.1f} s",
                ratio_of(whole[side], whole["local"]),
                1.15,
                at_most=True,
                reason=START,
            ),
            row(
                f"the same, from the first tenth of the images to the last{how}",
                f"{1 / paces[side]:.1f} images/s on {cores} cores",
                f"executor local {1 / paces['local']:.1f} images/s",
                ratio_of(warm[side], warm["local"]),
                1.15,
                at_most=True,
                reason="the driver and Ray's own processes take a share of the same cores",
            ),
        ]
    return rows


def scaling_rows(whole: Times, warm: Times, images: int, bare: float, version: str) -> list[dict[str, Any]]:
    """What a second worker is worth."""
    seconds, paces = _medians(whole), _medians(warm)
    rows = []
    for mark, how in ((" confined", ", each confined to its core"), ("", "")):
        one, two = f"1{mark}", f"2{mark}"
        rows += [
            row(
                f"two single-core workers against one, once warm{how}",
                f"{1 / paces[two]:.1f} images/s",
                f"ray {version}, one worker {1 / paces[one]:.1f} images/s",
                ratio_of(warm[one], warm[two]),
                1.7,
                reason=f"the driver and the decoding share the two cores; two bare processes reach {bare:.2f} times one",
            ),
            row(
                f"two single-core workers against one, the start of the workers included{how}",
                f"{seconds[two]:.1f} s for {images:,} images",
                f"ray {version}, one worker {seconds[one]:.1f} s",
                ratio_of(whole[one], whole[two]),
                1.7,
                reason=START,
            ),
        ]
    return rows


def _medians(times: Times) -> dict[str, float]:
    return {side: statistics.median(taken) for side, taken in times.items()}


def main() -> int:
    """Measure, print, write `bench/results/ray_executor.json`; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1800, help="test images of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=1000)
    arguments = parser.parse_args()
    cores = torch.get_num_threads()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_photographs(root / "images", CLASSES, TRAIN, arguments.images // CLASSES)
        save_file(timm.create_model(MODEL, num_classes=0).state_dict(), root / "model.safetensors")
        runs = Runs(root)
        taken, paces = cost(runs, cores, arguments.images, arguments.repeats)
        grown, warm = scaling(runs, arguments.images, arguments.repeats)
        bare = bare_scaling()
        here, there = small_tasks(runs, cores, arguments.tasks)
    found = versions(["ray", "torch", "timm"])
    rows = [
        *cost_rows(taken, paces, cores),
        *scaling_rows(grown, warm, arguments.images + CLASSES * TRAIN, bare, found["ray"]),
        row(
            "small evaluation tasks: overhead in ms per task",
            f"{there:.1f} s for {arguments.tasks:,} on {cores} cores",
            f"executor local {here:.1f} s",
            1000 * (there - here) / arguments.tasks,
            20.0,
            at_most=True,
        ),
    ]
    write_result(
        "ray_executor",
        {
            "rows": rows,
            "repeats": taken | grown,
            "seconds_per_image_once_warm": paces | warm,
            "bare_scaling": bare,
            "milliseconds_per_task": rows[-1]["ratio"],
            "versions": found,
        },
    )
    print(f"ray_executor: two bare processes are {bare:.2f} times as fast as one")
    return 0 if all(item["met"] for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
