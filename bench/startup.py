"""How soon the command answers, each against the least that Python can do in the same run.

    python bench/startup.py [--repeats 15]

* `vitbench --help` and `vitbench ls tasks`, against an empty Python process: goals 0.2 s and 0.6 s.
* A run whose records are all there, with its leaderboard: 2.5 s. The peer is the same run where nothing is remembered of the
  backbone, which therefore loads it; beside it stands what a script waits for before its first line, `import torch, timm`.
* `vitbench leaderboard` over the same records.

Every command is a process of its own on a warm disk; those of one row take turns. That nothing heavy is imported by the first two
is a test (`tests/cli/test_cli.py`); this measures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
from PIL import Image
from safetensors.torch import save_file

from vitbench.tasks.sources.digests import CACHE_VARIABLE, SETTLED_SECONDS

GOALS = {"--help": 0.2, "ls tasks": 0.6, "run again": 2.5}
RESULT = Path(__file__).parent / "results" / "startup.json"
VITBENCH = str(Path(sys.executable).with_name("vitbench"))


def seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Wall time of a command."""
    started = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    return time.perf_counter() - started


def make_run(root: Path) -> tuple[list[str], dict[str, str]]:
    """A run of a ViT-S/16 checkpoint and the pixels floor on an image folder, carried out once; its command and environment."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(5):
            folder = root / "images" / split / str(label)
            folder.mkdir(parents=True)
            for index in range(8):
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    save_file(timm.create_model("vit_small_patch16_224", num_classes=0).state_dict(), root / "model.safetensors")
    command = [VITBENCH, "run", "--backbone", f"timm:vit_small_patch16_224,checkpoint={root / 'model.safetensors'}"]
    command += [
        "--backbone",
        "pixels",
        "--tasks",
        f"imagefolder:{root / 'images'}",
        "--shots",
        "1,5",
        "--out",
        str(root / "out"),
    ]
    environment = {CACHE_VARIABLE: str(root / "cache")}
    time.sleep(SETTLED_SECONDS + 1)
    seconds(command, environment)
    return command, environment


def main() -> int:
    """Measure, print, write the result; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {}

    def take(label: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        taken.setdefault(label, []).append(seconds(command, environment))

    for _ in range(arguments.repeats):
        take("empty Python", [sys.executable, "-c", "pass"])
        for verb in ("--help", "ls tasks"):
            take(verb, [VITBENCH, *verb.split()])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        command, environment = make_run(root)
        for _ in range(max(3, arguments.repeats // 3)):
            take("run again", command, environment)
            take("import torch, timm", [sys.executable, "-c", "import torch, timm"])
            take("leaderboard", [VITBENCH, "leaderboard", "--out", str(root / "out")], environment)
            shutil.rmtree(root / "cache" / "backbones")
            take("run again, the backbone loaded", command, environment)
    medians = {label: statistics.median(times) for label, times in taken.items()}
    ratios = {
        "--help": medians["--help"] / medians["empty Python"],
        "ls tasks": medians["ls tasks"] / medians["empty Python"],
        "run again": medians["run again, the backbone loaded"] / medians["run again"],
    }
    result = {
        "claim": "startup",
        "seconds": medians,
        "ratios": ratios,
        "goals": GOALS,
        "repeats": taken,
        "cores": os.cpu_count(),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for verb in ("--help", "ls tasks"):
        print(
            f"startup: vitbench {verb}: {medians[verb]:.3f} s, {ratios[verb]:.0f} times an empty Python "
            f"({medians['empty Python']:.3f} s); goal {GOALS[verb]} s"
        )
    loaded = medians["run again, the backbone loaded"]
    print(
        f"startup: a run whose records are all there, with its leaderboard: {medians['run again']:.2f} s (goal "
        f"{GOALS['run again']} s); with the backbone loaded {loaded:.2f} s, ratio {ratios['run again']:.1f}; "
        f"import torch, timm alone {medians['import torch, timm']:.2f} s; vitbench leaderboard {medians['leaderboard']:.2f} s"
    )
    return 0 if all(medians[label] <= goal for label, goal in GOALS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
