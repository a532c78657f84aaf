"""`vitbench run --suite vtab` from the command line, on a small archive in the layout that goes around."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitbench

SIZES = {"train800": 16, "val200": 8, "test": 12}


def archive(folder: Path, classes: int) -> Path:
    """Lists and images of one task; a class is a bright band of rows."""
    generator = np.random.default_rng(0)
    for split, count in SIZES.items():
        (folder / "images" / split).mkdir(parents=True)
        lines = []
        for row in range(count):
            label = row % classes
            pixels = generator.integers(0, 60, (12, 10, 3))
            pixels[3 * label : 3 * label + 3] += 150
            name = f"images/{split}/{row:06d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            lines.append(f"{name} {label}")
        (folder / f"{split}.txt").write_text("\n".join(lines))
    return folder


def vitbench_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vitbench", *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    tasks = {"kitti_distance": 4, "patch_camelyon": 2}
    data = [f"--task-data=vtab/{name}={archive(tmp_path / name, classes)}" for name, classes in tasks.items()]
    return [
        "run", "-b", "pixels", "--suite", "vtab",
        "--tasks", "vtab/kitti_distance,vtab/patch_camelyon", "--tune", "--offline", *data,
    ]  # fmt: skip


def test_a_suite_runs_as_its_file_says(command: list[str], tmp_path: Path) -> None:
    refused = vitbench_command(tmp_path, *command)
    assert refused.returncode == 2
    assert "split 'train800' has 16 images where the task file expects 800" in refused.stderr
    done = vitbench_command(tmp_path, *command, "--accept-sizes")
    assert done.returncode == 0, done.stderr
    frame = vitbench.load_results(tmp_path / "results" / "runs")
    assert set(frame["protocol"]) == {"ridge"}
    assert set(frame["preprocessing"]) == {"tf1_resize(32x32,bilinear)|value_range(0,1)"}
    assert set(frame["train_split"]) == {"train800val200"}
    assert frame["n_support"].tolist() == [24, 24]
    assert frame["accuracy"].min() > 0.9
    assert frame["deviations"].str.contains("expects 800").all()
    shown = vitbench_command(tmp_path, "leaderboard", "--tasks", "vtab", "--format", "csv")
    assert (shown.returncode, shown.stdout.count("mean of groups")) == (0, 0), "a mean of two tasks is no mean of 19"
    for text in (
        "l2 chosen on validation",
        "no mean: 1 of 4 tasks",
        "no mean: 1 of 8 tasks",
        "taken by --accept-sizes",
    ):
        assert text in " ".join(done.stdout.split())
