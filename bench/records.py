"""100,000 records to a leaderboard: `vitbench leaderboard` with its index, against a loop that reads every JSON file.

    python bench/records.py [--records 100000] [--repeats 3]

The records are of 200 backbones on 10 tasks, two representations, five shots, five seeds. The peer is the script people write:
`json.loads` of every file and one `pandas.DataFrame` of what the table shows; no check, no ranking, no table. Both are fresh
processes that take turns on a warm disk. Measured beside it: the first reading, which makes the index, and one after 100 records
were added. The goal is 5 s; the table from the index must equal that from the files.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import row, versions, write_result

from vitbench.records.identity import RECORD_FIELDS, identity, key
from vitbench.records.index import INDEX, SETTLED_SECONDS, read_records
from vitbench.records.provenance import provenance
from vitbench.records.schema import Record

GOAL = 5.0
TASKS, REPRESENTATIONS, SHOTS, SEEDS = 10, ("cls", "gap"), (1, 5, 10, 25, 50), 5

PEER = """
import json, pathlib, sys
import pandas as pd
rows = []
for path in pathlib.Path(sys.argv[1]).rglob("*.json"):
    found = json.loads(path.read_text())
    rows.append({name: found[name] for name in ("backbone", "representation", "task", "protocol", "shot", "seed")}
                | found["scores"] | found["details"])
frame = pd.DataFrame(rows)
print(frame.groupby(["backbone", "representation", "task", "shot"])["accuracy"].agg(["mean", "std"]))
"""


def write_records(folder: Path, count: int, first: int = 0) -> None:
    """Records `first` to before `count` of the grid, as `ResultStore` writes them, without their predictions."""
    rng = np.random.default_rng(first)
    source = provenance(
        "vitbench run --backbone … --tasks …", "cpu", ["the classifier is left in the file: head.weight"]
    )
    backbones = -(-count // (TASKS * len(REPRESENTATIONS) * len(SHOTS) * SEEDS))
    grid = itertools.product(range(backbones), range(TASKS), REPRESENTATIONS, SHOTS, range(SEEDS))
    for backbone, task, representation, shot, seed in itertools.islice(grid, first, count):
        spec = f"timm:vit_small_patch16_224,checkpoint=model{backbone:03d}.safetensors"
        values = {
            "architecture": "timm:vit_small_patch16_224",
            "dtype": "float32",
            "limit": None,
            "num_classes": 10,
            "parameters": {"l2": 1024.0, "bias": 100.0, "epsilon": 1e-5, "solver": 1},
            "preprocessing": "resize(224x224,bicubic)|normalize(0.5,0.5)",
            "protocol": "fewshot",
            "representation": representation,
            "seed": seed,
            "shot": shot,
            "test_fingerprint": f"{task:064x}",
            "train_fingerprint": f"{task + TASKS:064x}",
            "weights": f"{backbone:064x}",
        }
        found = identity(RECORD_FIELDS, values)
        accuracy = float(rng.uniform(0.2, 0.9))
        record = Record(
            key=key(found),
            identity=found,
            backbone=spec,
            backbone_name=f"timm-vit_small_patch16_224-{backbone:08x}",
            representation_dim=384,
            representation_provenance="trained",
            alias_of=None,
            num_parameters=21_665_664,
            task=f"grid/task{task}",
            metric="accuracy",
            chance=0.1,
            splits={"train": "train", "test": "test"},
            source=f"hub/task{task}@0",
            protocol_label="l2 = 1024",
            scores={
                "accuracy": accuracy,
                "top5_accuracy": min(1.0, accuracy + 0.1),
                "mean_per_class_accuracy": accuracy,
            },
            details={"l2": 1024.0, "n_per_class_min": shot, "n_per_class_max": shot},
            warnings=[],
            n_support=10 * shot,
            n_test=10_000,
            seconds=round(float(rng.uniform(0.01, 0.5)), 4),
            provenance=source,
            **{
                name: values[name]
                for name in ("parameters", "preprocessing", "dtype", "protocol", "shot", "seed", "limit")
            },
            **{name: values[name] for name in ("representation", "num_classes")},
        )
        path = folder / "records" / record.backbone_name / record.task / f"{record.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.model_dump_json(indent=2) + "\n")


def seconds(command: list[str]) -> float:
    """Wall time of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    """Measure, print, write the result; 1 when the goal is missed or the tables differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_records(folder, arguments.records)
        ours = [str(Path(sys.executable).with_name("vitbench")), "leaderboard", "--shots", "5", "--out", name]
        peer = [sys.executable, "-c", PEER, name]
        time.sleep(SETTLED_SECONDS + 1)
        first = seconds(ours)
        taken: dict[str, list[float]] = {"vitbench": [], "peer": []}
        for repeat in range(arguments.repeats):
            sides = [("vitbench", ours), ("peer", peer)]
            for label, command in sides if repeat % 2 else reversed(sides):
                taken[label].append(seconds(command))
        from_index = read_records(folder).frame
        (folder / "records" / INDEX).rename(folder / "aside")
        from_files = read_records(folder).frame
        pd.testing.assert_frame_equal(from_index, from_files)
        shutil.move(folder / "aside", folder / "records" / INDEX)
        size = (folder / "records" / INDEX).stat().st_size
        write_records(folder, arguments.records + 100, arguments.records)
        added = seconds(ours)
    ours_median, peer_median = (statistics.median(taken[label]) for label in ("vitbench", "peer"))
    installed = versions(("pandas", "pyarrow"))
    rows = [
        row(
            f"{arguments.records:,} records to a leaderboard, seconds",
            f"{ours_median:.2f} s",
            f"json.loads and pandas {installed['pandas']} {peer_median:.2f} s",
            ours_median,
            GOAL,
            at_most=True,
        )
    ]
    result = {
        "rows": rows,
        "records": arguments.records,
        "first_seconds": first,
        "after_100_more_seconds": added,
        "index_bytes": size,
        "seconds": taken,
        "versions": installed,
        "cores": os.cpu_count(),
    }
    write_result("records", result)
    print(
        f"records: the first reading {first:.1f} s, after 100 more records {added:.2f} s; index {size / 2**20:.1f} MiB"
    )
    return 0 if rows[0]["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
