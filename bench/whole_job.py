"""The whole job against the script that people write: one backbone, three representations, 12 support sets, leave-one-out.

    python bench/whole_job.py [--classes 5] [--repeats 3]

A ViT-Ti/16 with random weights at 112 pixels, 200 train and 50 test JPEG photographs of 500 x 375 pixels per class; shots 1, 5,
10 and 25, seeds 0, 1 and 2, the penalty chosen by leave-one-out among 30. The small backbone keeps the bench short: the larger it
is, the more the images that need not be embedded are worth.

* vitbench: `vitbench.run` with cls, gap and pooler, into an empty folder, from the checkpoint file to the last record
* the script: timm's model and transform in a DataLoader with a worker per core over all train and all test images, once per
  representation; then per shot and seed a random support set, StandardScaler, `RidgeClassifierCV` on the same 30 penalties

Both load the same checkpoint and read the same files, in one process and in turns. The script's support sets are its own draws,
so scores are compared by their mean over seeds, which is printed, and not by their predictions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from common import make_photographs, ratio_of, row, taken_in_turns, versions, write_result
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import vitbench
from vitbench.protocols.fewshot import GRID

MODEL, SIDE = "vit_tiny_patch16_224", 112
TRAIN, TEST = 200, 50
SHOTS, SEEDS = (1, 5, 10, 25), (0, 1, 2)
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda tokens: tokens[:, 0],
    "gap": lambda tokens: tokens[:, 1:].mean(1),
    "pooler": lambda tokens: tokens[:, 0],
}

Array = npt.NDArray[Any]


class Folder(Dataset[tuple[Tensor, int]]):
    """The images of one split, transformed, with their labels."""

    def __init__(self, folder: Path, transform: Callable[[Any], Tensor]) -> None:
        self.paths, self.transform = sorted(folder.glob("*/*.jpg")), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), int(path.parent.name)


class Script:
    """What people write, one representation after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scores: dict[str, float] = {}

    def __call__(self, names: list[str]) -> None:
        """Every representation in a pass of its own, then every shot and seed."""
        for name in names:
            model = timm.create_model(MODEL, num_classes=0, img_size=SIDE).eval()
            model.load_state_dict(load_file(self.root / "model.safetensors"))
            transform = timm.data.create_transform(
                **timm.data.resolve_data_config({"input_size": (3, SIDE, SIDE)}, model=model), is_training=False
            )
            (train_x, train_y), (test_x, test_y) = (
                self._embed(model, Folder(self.root / "images" / split, transform), POOLS[name])
                for split in ("train", "test")
            )
            found = []
            for shot in SHOTS:
                for seed in SEEDS:
                    rng = np.random.default_rng(seed)
                    chosen = np.concatenate(
                        [
                            rng.choice(np.flatnonzero(train_y == label), shot, replace=False)
                            for label in np.unique(train_y)
                        ]
                    )
                    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=GRID))
                    found.append(classifier.fit(train_x[chosen], train_y[chosen]).score(test_x, test_y))
            self.scores[name] = float(np.mean(found))

    def _embed(self, model: Any, data: Folder, pool: Callable[[Tensor], Tensor]) -> tuple[Array, Array]:
        loader = DataLoader(data, batch_size=32, num_workers=torch.get_num_threads())
        parts, labels = [], []
        with torch.inference_mode():
            for images, targets in loader:
                parts.append(pool(model.forward_features(images)).numpy())
                labels.append(targets.numpy())
        return np.concatenate(parts), np.concatenate(labels)


class Ours:
    """`vitbench.run`, each time into an empty folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        self.scores: dict[str, float] = {}

    def __call__(self, names: list[str]) -> None:
        """The whole job for some representations."""
        self.count += 1
        frame = vitbench.run(
            f"timm:{MODEL},resolution={SIDE},checkpoint={self.root / 'model.safetensors'}",
            f"imagefolder:{self.root / 'images'}",
            representations=names,
            shots=SHOTS,
            seeds=SEEDS,
            l2="loo",
            device="cpu",
            dtype="float32",
            out=self.root / f"out{self.count}",
        )
        self.scores |= frame.groupby("representation")["accuracy"].mean().to_dict()


def main() -> int:
    """Measure, print, write `bench/results/whole_job.json`; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train", type=int, default=TRAIN, help="train images per class")
    parser.add_argument("--test", type=int, default=TEST, help="test images per class")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_photographs(root / "images", arguments.classes, arguments.train, arguments.test)
        model = timm.create_model(MODEL, num_classes=0, img_size=SIDE)
        save_file(model.state_dict(), root / "model.safetensors")
        ours, script = Ours(root), Script(root)
        three = list(POOLS)
        seconds = taken_in_turns(
            {
                "vitbench": lambda: ours(three),
                "script": lambda: script(three),
                "vitbench, cls alone": lambda: ours(three[:1]),
                "script, cls alone": lambda: script(three[:1]),
            },
            arguments.repeats,
        )
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    found = versions(["torch", "timm", "scikit-learn", "numpy"])
    peer = f"timm {found['timm']} loops and RidgeClassifierCV of scikit-learn {found['scikit-learn']}"
    rows = [
        row(
            claim,
            f"{medians['vitbench' + suffix]:.1f} s",
            f"{peer} {medians['script' + suffix]:.1f} s",
            ratio_of(seconds["script" + suffix], seconds["vitbench" + suffix]),
            goal,
        )
        for claim, suffix, goal in (
            ("whole job: three representations, 4 shots, 3 seeds, λ by leave-one-out", "", 5.0),
            ("the same on the first representation alone", ", cls alone", 1.5),
        )
    ]
    write_result(
        "whole_job",
        {
            "rows": rows,
            "seconds": medians,
            "accuracy": {"vitbench": ours.scores, "script": script.scores},
            "model": f"{MODEL} at {SIDE} pixels",
            "classes": arguments.classes,
            "train_images_per_class": arguments.train,
            "test_images_per_class": arguments.test,
            "threads": torch.get_num_threads(),
            "repeats": seconds,
            "versions": found,
        },
    )
    scores = "; ".join(f"{name} {ours.scores[name]:.3f} and {script.scores[name]:.3f}" for name in three)
    print(f"whole_job: mean accuracy over shots and seeds, vitbench and script: {scores}")
    return 0 if all(item["met"] for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
