"""What the benchmarks share: turns and medians, the machine, photographs to read, and the form of a result.

A result is `bench/results/<name>.json`. Under `rows` it has what the table of `docs/performance.md` shows, a row per claim.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results"


def row(
    claim: str,
    ours: str,
    peer: str,
    ratio: float,
    goal: float,
    *,
    at_most: bool = False,
    held: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """One claim.

    Args:
        claim: What is compared.
        ours: Our figure with its unit.
        peer: The peer, with its version and figure.
        ratio: How it is measured against the goal.
        goal: What the ratio should reach.
        at_most: The ratio should not exceed the goal.
        held: The ratio says whether numbers are right, not how fast they come: a missed goal is a regression (see `guards`).
        reason: Why the goal is missed, if it is and that is known.
    """
    met = ratio <= goal if at_most else ratio >= goal
    return {
        "claim": claim,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "goal": f"{'≤' if at_most else '≥'} {goal:g}",
        "met": met,
        "held": held,
        "reason": "" if met else reason,
    }


def taken_in_turns(
    sides: Mapping[str, Callable[[], object]], repeats: int, pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of every side in every repeat. They take turns, every second time in reverse; a first round warms up.

    Args:
        sides: Name to the work.
        repeats: Rounds that count.
        pause: Seconds before each turn, in which the other libraries' idle threads stop spinning.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-1, repeats):
        order = list(sides.items())
        for name, work in order if repeat % 2 else reversed(order):
            _wait(pause)
            started = time.perf_counter()
            work()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait(pause: float) -> None:
    """Sleep, the last moment awake, so that the processor is at its speed."""
    until = time.perf_counter() + pause
    time.sleep(max(0.0, pause - 0.01))
    while time.perf_counter() < until:
        pass


def ratio_of(slower: list[float], faster: list[float]) -> float:
    """How many times as long one side took: the median over rounds, so that what slows a whole round down cancels."""
    return statistics.median(first / second for first, second in zip(slower, faster, strict=True))


def versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions, and Python's."""
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def processor() -> str:
    """The processor's model name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def peak_memory(*, afresh: bool = False) -> int:
    """The peak of this process's resident memory in bytes, on Linux.

    Args:
        afresh: First forget it, so that it is what is resident now, and later peaks count from here.
    """
    if afresh:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError("this system does not tell a process's peak memory")
    return int(found[1]) * 1024


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """Write `bench/results/<name>.json`, with the day and the options of the command, and print its rows."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    how = {"date": datetime.now(UTC).date().isoformat(), "options": sys.argv[1:], "processor": processor()}
    text = json.dumps({"claim": name, **result, **how}, indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    for item in result["rows"]:
        print(
            f"{name}: {item['claim']}: {item['ours']}; {item['peer']}; ratio {item['ratio']:.3g} (goal {item['goal']}, "
            f"{'met' if item['met'] else 'missed'})"
        )


def make_photographs(folder: Path, classes: int, train: int, test: int, seed: int = 0) -> None:
    """An image folder of JPEG photographs of 500 x 375 pixels: smooth shapes with noise, each class with a colour of its own.

    Args:
        folder: Where to; `<folder>/<split>/<class>/<number>.jpg`.
        classes: How many.
        train: Images per class of the split `train`.
        test: Images per class of the split `test`.
        seed: Of the pixels.
    """
    rng = np.random.default_rng(seed)
    tints = rng.uniform(-40, 40, (classes, 3))
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            target = folder / split / str(label)
            target.mkdir(parents=True)
            for index in range(count):
                coarse = (rng.uniform(40, 215, (12, 16, 3)) + tints[label]).clip(0, 255).astype(np.uint8)
                image = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), np.int16)
                noisy = image + rng.integers(-12, 12, (375, 500, 3), dtype=np.int16)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target / f"{index:04d}.jpg", quality=90)
