"""How soon the command answers, each against the least that Python can do in the same run.

    python bench/startup.py [--repeats 15]

* `vitbench --help` and `vitbench ls tasks`, against an empty Python process: goals 0.2 s and 0.6 s.
* A run whose records are all there, with its leaderboard: 2.5 s. The peer is the same run where nothing is remembered of the
  backbone, which therefore loads it; beside it stands what a script waits for before its first line, `import torch, timm`.
* `vitbench leaderboard` over the same records: 1.5 s; beside it `import pandas`.

Every command is a process of its own on a warm disk; those of one row take turns. That nothing heavy is imported by the first two
is a test (`tests/cli/test_cli.py`); this measures.
"""

from __future__ import annotations

import argparse
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
from common import ratio_of, row, versions, write_result
from PIL import Image
from safetensors.torch import save_file

from vitbench.tasks.sources.digests import CACHE_VARIABLE, SETTLED_SECONDS

GOALS = {"--help": 0.2, "ls tasks": 0.6, "run again": 2.5, "leaderboard": 1.5}
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
            take("import pandas", [sys.executable, "-c", "import pandas"])
            take("leaderboard", [VITBENCH, "leaderboard", "--out", str(root / "out")], environment)
            shutil.rmtree(root / "cache" / "backbones")
            take("run again, the backbone loaded", command, environment)
    medians = {label: statistics.median(times) for label, times in taken.items()}
    loaded = medians["run again, the backbone loaded"]
    peers = dict.fromkeys(GOALS, f"an empty Python {medians['empty Python']:.3f} s")
    peers["run again"] = f"`import torch, timm` alone {medians['import torch, timm']:.2f} s"
    peers["leaderboard"] = f"`import pandas` alone {medians['import pandas']:.2f} s"
    rows = [
        row(f"`vitbench {verb}`, seconds", f"{medians[verb]:.3f} s", peers[verb], medians[verb], goal, at_most=True)
        for verb, goal in GOALS.items()
    ]
    rows.append(
        row(
            "`vitbench run again`: how much faster than with the backbone loaded",
            f"{medians['run again']:.2f} s",
            f"the backbone loaded {loaded:.2f} s",
            ratio_of(taken["run again, the backbone loaded"], taken["run again"]),
            1.0,
        )
    )
    result = {
        "rows": rows,
        "seconds": taken,
        "versions": versions(("torch", "timm", "pandas")),
        "cores": os.cpu_count(),
    }
    write_result("startup", result)
    return 0 if all(item["met"] for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
