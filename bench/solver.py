"""Choosing the ridge penalty by exact leave-one-out: vitbench against scikit-learn's RidgeClassifierCV.

    python bench/solver.py [--threads 1] [--repeats 9]

100 classes, 10 images each, 768 features, 30 penalties, then 10,000 test rows are classified; both sides standardise both splits
with the support set's statistics, solve in float64, and see the identical problem (the bias is a constant feature of 100). The
times are medians over repeats in which the two take turns, in one process and with one number of threads for both. One line is
printed; the status is 1 if the ratio is below 5 or the choices differ.

scikit-learn is called as its documentation shows it. Its default algorithm depends on its version, which is therefore recorded:
since 1.9 it decomposes Z'Z when there are more rows than features.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from sklearn.linear_model import RidgeClassifierCV
from threadpoolctl import threadpool_limits

from vitbench.features.featureset import FeatureSet
from vitbench.protocols.fewshot import GRID, FewShot
from vitbench.solvers.ridge import BIAS, EPSILON

CLASSES, SHOT, FEATURES, TESTS = 100, 10, 768, 10_000
GOAL = 5.0
RESULT = Path(__file__).parent / "results" / "solver.json"

Array = npt.NDArray[Any]
Answer = tuple[float, Array]


def draw() -> tuple[Array, Array, Array, Array]:
    """Float32 features like a backbone's: class means and noise of one decaying spectrum, rotated, with an offset."""
    rng = np.random.default_rng(0)
    means = 0.25 * rng.normal(size=(CLASSES, FEATURES))
    spectrum = np.arange(1, FEATURES + 1) ** -0.5
    rotation = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0]
    offset = rng.normal(size=FEATURES)
    train_y, test_y = np.repeat(np.arange(CLASSES), SHOT), rng.integers(CLASSES, size=TESTS)
    train_x, test_x = (
        (((means[y] + rng.normal(size=(len(y), FEATURES))) * spectrum) @ rotation + offset).astype(np.float32)
        for y in (train_y, test_y)
    )
    return train_x, train_y, test_x, test_y


def by_vitbench(train_x: Array, train_y: Array, test_x: Array, test_y: Array) -> Answer:
    """The few-shot protocol, the sampler and the checks included; all 10 images of every class are the support set."""
    train, test = (
        FeatureSet(labels=y, rows=np.arange(len(y)), representations={"features": torch.from_numpy(x)})
        for x, y in ((train_x, train_y), (test_x, test_y))
    )
    protocol = FewShot(shots=(SHOT,), seeds=(0,), l2="loo")
    (outcome,) = protocol.evaluate(train, test, "features", CLASSES, protocol.cells())
    return outcome.details["l2"], outcome.predictions


def by_sklearn(train_x: Array, train_y: Array, test_x: Array, test_y: Array) -> Answer:
    """RidgeClassifierCV on the same standardised features with the same bias feature."""
    mean = train_x.mean(axis=0, dtype=np.float64)
    scale = train_x.std(axis=0, dtype=np.float64) + EPSILON

    def prepare(x: Array) -> Array:
        z = np.empty((len(x), FEATURES + 1))
        np.subtract(x, mean, out=z[:, :-1])
        z[:, :-1] /= scale
        z[:, -1] = BIAS
        return z

    peer = RidgeClassifierCV(alphas=GRID, fit_intercept=False).fit(prepare(train_x), train_y)
    return float(peer.alpha_), peer.predict(prepare(test_x))


def timed(function: Callable[..., Answer], data: tuple[Array, ...]) -> tuple[float, Answer]:
    """Seconds and the answer. The pause lets the other library's idle threads stop spinning."""
    time.sleep(0.2)
    started = time.perf_counter()
    answer = function(*data)
    return time.perf_counter() - started, answer


def main() -> int:
    """Measure, print one line, write `bench/results/solver.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = draw()
    sides: list[Callable[..., Answer]] = [by_vitbench, by_sklearn]
    seconds: dict[str, list[float]] = {side.__name__: [] for side in sides}
    with threadpool_limits(arguments.threads):
        for repeat in range(-1, arguments.repeats):
            answers = {}
            for side in sides if repeat % 2 == 0 else sides[::-1]:
                taken, answers[side.__name__] = timed(side, data)
                if repeat >= 0:  # the first round warms up
                    seconds[side.__name__].append(taken)
    (ours, our_predictions), (theirs, their_predictions) = (answers[side.__name__] for side in sides)
    our_time, their_time = (statistics.median(seconds[side.__name__]) for side in sides)
    result = {
        "vitbench_seconds": our_time,
        "sklearn_seconds": their_time,
        "ratio": their_time / our_time,
        "same_choice": ours == theirs,
        "l2": ours,
        "same_predictions": float(np.mean(our_predictions == their_predictions)),
        "accuracy": float(np.mean(our_predictions == data[3])),
        "threads": arguments.threads,
        "repeats": seconds,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "processor": platform.processor() or platform.machine(),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"leave-one-out over {len(GRID)} penalties and {TESTS:,} predictions: vitbench {our_time:.3f} s, scikit-learn "
        f"{sklearn.__version__} {their_time:.3f} s, ratio {result['ratio']:.1f}, "
        f"same choice: {'yes' if result['same_choice'] else 'no'} ({arguments.threads} threads)"
    )
    return 0 if result["ratio"] >= GOAL and result["same_choice"] else 1


if __name__ == "__main__":
    sys.exit(main())
