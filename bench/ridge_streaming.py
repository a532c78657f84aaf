"""Ridge regression on a full train split that is read a part at a time: speed, memory, and that the answer is the same.

    python bench/ridge_streaming.py [--threads 2] [--rows 1300000]

* From the feature store: 65,536 rows of 1,024 features and 1,000 classes, as `vitbench run --protocol ridge --l2 gcv` reads them,
  solve included. Rows per second, against the same fit with all rows in memory (numpy: standardise, Z'Z, solve in float64).
* The sums alone, of rows that are in memory: the fraction of the machine's float64 matrix-multiply peak, which is measured beside
  it. Counted are the products that are done, of the blocks on and below the diagonal of Z'Z; by the least that would do
  (N·D·(D+1)) the fraction is the second figure. Goal: 0.6.
* 1.3 million rows of 1,024 features and 1,000 classes in a process of its own, parts made as they are asked for: the peak of
  resident memory, everything that is loaded included. Goal: 2 GB.
* The weights, against scikit-learn's `Ridge` on the rows in memory: relative difference, at most 1e-6.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import ratio_of, row, taken_in_turns, versions, write_result
from sklearn.linear_model import Ridge as SklearnRidge

from vitbench.features.featureset import FeatureSet, IntArray, LazyRepresentations
from vitbench.features.store import FeatureStore
from vitbench.protocols.closed_form import GRID
from vitbench.protocols.streamed import fit_streamed, problem_of
from vitbench.solvers import ridge
from vitbench.solvers.moments import PANEL, Moments
from vitbench.solvers.ridge import BIAS

STORED, FEATURES, CLASSES, SHARD = 65_536, 1024, 1000, 16_384
BLOCK = 8192


def lazily(labels: IntArray, read: object) -> FeatureSet:
    """A feature set of every row, read when asked for."""
    rows = np.arange(len(labels))
    return FeatureSet(labels, rows, LazyRepresentations(["cls"], rows, read))  # type: ignore[arg-type]


def stored(folder: Path, x: torch.Tensor, labels: IntArray) -> FeatureSet:
    """The rows in a feature store, as a run leaves them."""
    store = FeatureStore(folder, "bench", "bench", "train", {"bench": "ridge_streaming"})
    for start in range(0, len(x), SHARD):
        rows = np.arange(start, min(start + SHARD, len(x)))
        store.append(rows, {"cls": x[start : start + SHARD]})
    return lazily(labels, lambda _, rows: store.load(["cls"], rows)["cls"])


def in_memory(x: torch.Tensor, labels: IntArray) -> np.ndarray:
    """The weights by the textbook, all rows at once, with a given penalty."""
    wide = x.numpy().astype(np.float64)
    z = (wide - wide.mean(axis=0)) / (wide.std(axis=0) + 1e-5)
    y = np.full((len(z), CLASSES), -1.0)
    y[np.arange(len(z)), labels] = 1
    return np.linalg.solve(z.T @ z + 1024 * np.eye(z.shape[1]), z.T @ y)


def largest_run(rows: int) -> int:
    """Fit so many rows, made as they are asked for; prints the peak of resident memory in bytes, and the seconds."""
    part = torch.randn(BLOCK, FEATURES, generator=torch.Generator().manual_seed(0))
    labels = np.arange(rows, dtype=np.int64) % CLASSES
    features = lazily(labels, lambda _, wanted: part[torch.from_numpy(wanted % BLOCK)])
    started = time.perf_counter()
    fit_streamed(features, "cls", CLASSES, "gcv", "squared_error", GRID, "train")
    taken = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, taken)
    return 0


def sums_against_peak(repeats: int) -> tuple[float, float, dict[str, list[float]]]:
    """Fractions of the peak, by the products that are done and by the least that would do, and the seconds."""
    x = torch.randn(BLOCK, FEATURES, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(BLOCK) % CLASSES
    square = torch.randn(2048, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments(FEATURES, CLASSES)
    seconds = taken_in_turns(
        {"sums": lambda: moments.add(x, labels), "product": lambda: torch.mm(square, square)}, repeats
    )
    edges = [min(start + PANEL, FEATURES) for start in range(0, FEATURES, PANEL)]
    done = sum(2 * BLOCK * stop * (stop - start) for start, stop in zip([0, *edges], edges, strict=False))
    peak = 2 * len(square) ** 3
    scale = ratio_of(seconds["product"], seconds["sums"]) / peak
    return done * scale, BLOCK * FEATURES * (FEATURES + 1) * scale, seconds


def main() -> int:
    """Measure, print a line per claim, write `bench/results/ridge_streaming.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_300_000, help="of the run whose memory is measured")
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only_memory:
        return largest_run(arguments.rows)
    command = [sys.executable, __file__, "--only-memory", "--rows", str(arguments.rows)]
    command += ["--threads", str(arguments.threads)]
    peak, taken = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=STORED)
    scales = torch.from_numpy(np.geomspace(3, 0.03, FEATURES)).float()
    x = torch.randn(STORED, FEATURES, generator=torch.Generator().manual_seed(1)) * scales + 2
    x += torch.from_numpy(rng.normal(size=(CLASSES, FEATURES))[labels]).float() * 0.1
    with tempfile.TemporaryDirectory() as folder:
        features = stored(Path(folder), x, labels)
        sides = {
            "streamed": lambda: fit_streamed(features, "cls", CLASSES, 1024.0, "squared_error", GRID, "train"),
            "in memory": lambda: in_memory(x, labels),
        }
        seconds = taken_in_turns(sides, arguments.repeats)
        few = np.arange(8192)
        problem = problem_of(FeatureSet(labels[few], few, {"cls": x[:8192]}), "cls", CLASSES, "train")
    model = ridge.solve(problem, 1024.0)
    z = torch.cat([model.standardisation(x[:8192]), torch.full((8192, 1), BIAS)], dim=1).numpy()
    peer = SklearnRidge(1024.0, fit_intercept=False, solver="cholesky").fit(z, 2 * np.eye(CLASSES)[labels[few]] - 1)
    difference = float(np.abs(model.weights.numpy().T - peer.coef_).max() / np.abs(peer.coef_[:, :-1]).max())
    done, least, sums = sums_against_peak(arguments.repeats)
    streamed = statistics.median(seconds["streamed"])
    installed = versions(("torch", "numpy", "scikit-learn"))
    rows = [
        row(
            f"ridge on {STORED:,} stored rows, D={FEATURES}, K={CLASSES}: how much faster than all rows in memory",
            f"{STORED / streamed:,.0f} rows/s",
            f"numpy {installed['numpy']} in memory {STORED / statistics.median(seconds['in memory']):,.0f} rows/s",
            ratio_of(seconds["in memory"], seconds["streamed"]),
            1.0,
        ),
        row(
            "its sums: fraction of the float64 matrix-multiply peak",
            f"{BLOCK / statistics.median(sums['sums']):,.0f} rows/s ({least:.2f} by the least products that would do)",
            f"torch {installed['torch']} product {2 * 2048**3 / statistics.median(sums['product']) / 1e9:,.0f} GFLOP/s",
            done,
            0.6,
        ),
        row(
            f"ridge on {arguments.rows:,} rows, D={FEATURES}, K={CLASSES}: peak memory in GB",
            f"{peak / 1e9:.2f} GB in {taken:.0f} s",
            f"the features alone {arguments.rows * FEATURES * 4 / 1e9:.1f} GB",
            peak / 1e9,
            2.0,
            at_most=True,
        ),
        row(
            "its weights against those of all rows in memory: largest relative difference",
            "float64 sums by parts",
            f"scikit-learn {installed['scikit-learn']} Ridge",
            difference,
            1e-6,
            at_most=True,
            held=True,
        ),
    ]
    result = {
        "rows": rows,
        "seconds": seconds | sums,
        "least_fraction_of_peak": least,
        "largest_run": {"rows": arguments.rows, "peak_bytes": peak, "seconds": taken},
        "threads": arguments.threads,
        "versions": installed,
    }
    write_result("ridge_streaming", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
