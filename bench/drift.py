"""What bfloat16, and a feature store in float16, change: the features themselves, and the scores.

    python bench/drift.py

The demo backbone, whose weights are trained, on the built-in tasks with the settings of a bare `vitbench run` (shots 1, 5, 10
and 25, three seeds, cls, gap and pooler): in float32, in bfloat16, and in float32 with features kept in float16. A score is the
mean over tasks, representations, shots and seeds; beside it stands the largest change of one cell (task, representation and
shot, mean over seeds), which is what a table shows. The cosine is the least of any test image of one task in any representation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import row, versions, write_result
from torch.nn import functional

import vitbench
from vitbench.features.extract import ExtractionOptions, feature_set
from vitbench.features.featureset import FeatureSet
from vitbench.features.load import load_backbone
from vitbench.features.store import FeatureStore
from vitbench.tasks import transforms
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import TaskOptions

TASK = "builtin/digits"
NAMES = ["cls", "gap", "pooler"]
CELL = ["task", "representation", "shot"]
SETTINGS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "a float16 store": {"dtype": "float32", "features_dtype": "float16"},
}
GOALS = {"bfloat16": 0.99, "a float16 store": 0.999}


def scores(out: Path, settings: dict[str, str]) -> pd.Series:
    """The accuracy in % of every cell."""
    frame = vitbench.run("demo", representations=NAMES, device="cpu", out=out, **settings)
    if frame.attrs["failures"]:
        raise RuntimeError(frame.attrs["failures"][0])
    return 100 * frame.groupby(CELL)["accuracy"].mean()


def features(out: Path, dtype: str) -> FeatureSet:
    """The features of one task's test images."""
    backbone, split = load_backbone("demo", device="cpu"), load_task(TASK, TaskOptions()).split("test")
    backbone.to("cpu", dtype)
    store = FeatureStore(out, "demo", split.task, split.name, {"dtype": dtype})
    how = transforms.parse(backbone.preprocessing)
    return feature_set(backbone, split, how, NAMES, np.arange(len(split), dtype=np.int64), store, ExtractionOptions())


def least_cosine(one: FeatureSet, other: FeatureSet) -> float:
    """The least cosine of an image's feature in one set to its feature in the other."""
    pairs = ((one.representations[name].double(), other.representations[name].double()) for name in NAMES)
    return min(float(functional.cosine_similarity(*pair).min()) for pair in pairs)


def main() -> int:
    """Measure, print, write `bench/results/drift.json`; 1 when a goal is missed."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        found = {label: scores(root / label, settings) for label, settings in SETTINGS.items()}
        cosine = least_cosine(*(features(root / "features", dtype) for dtype in ("float32", "bfloat16")))
    plain = found["float32"]
    rows = [
        row(
            f"mean score of the demo backbone on the built-in tasks with {label} over that with float32",
            f"{found[label].mean():.2f} %, no cell changes by more than {(found[label] - plain).abs().max():.2f} points",
            f"float32 {plain.mean():.2f} %",
            float(found[label].mean() / plain.mean()),
            goal,
            held=True,
        )
        for label, goal in GOALS.items()
    ]
    rows.append(
        row(
            "least cosine of a bfloat16 feature to the float32 one",
            f"{TASK}, cls, gap, pooler",
            "1",
            cosine,
            0.999,
            held=True,
        )
    )
    changes = {label: (found[label] - plain).abs().describe().to_dict() for label in GOALS}
    write_result(
        "drift", {"rows": rows, "changes_in_points": changes, "versions": versions(["torch", "timm", "numpy"])}
    )
    return 0 if all(item["met"] for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
