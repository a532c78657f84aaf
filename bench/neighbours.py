"""Nearest neighbours in cosine similarity: every k from one exact search, against scikit-learn's `KNeighborsClassifier`.

    python bench/neighbours.py [--threads 2] [--repeats 3]

50,000 train and 10,000 test rows of 768 float32 features, 100 classes, one vote per neighbour. vitbench's protocol, checks
included, classifies by 1, 5 and 20 neighbours in one search, whose neighbours are proved to be those of float64. The peer is
`KNeighborsClassifier(20, metric="cosine", algorithm="brute")`, fit and predict, for the one k of 20, in the float32 that it is
given. The sides take turns in one process with one number of threads. The predictions of every k are compared, the peer's for 1
and 5 by classifiers of their own that are not timed. Measured beside it, each in a process of its own: how far resident memory
rises above what the features and the libraries take. The status is 1 if a prediction of one in a thousand differs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import peak_memory, ratio_of, row, taken_in_turns, versions, write_result
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from vitbench.features.featureset import FeatureSet
from vitbench.protocols.knn import NearestNeighbours

TRAIN, TEST, FEATURES, CLASSES, KS = 50_000, 10_000, 768, 100, (1, 5, 20)
PAUSE = 0.1

Array = npt.NDArray[Any]
Data = tuple[Array, Array, Array, Array]


def draw() -> Data:
    """Float32 features like a backbone's: class means and noise of one decaying spectrum, rotated, with an offset."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(CLASSES, FEATURES), scale=0.1).astype(np.float32)
    spectrum = (np.arange(1, FEATURES + 1) ** -0.5).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0].astype(np.float32)
    offset = 0.1 * rng.normal(size=FEATURES).astype(np.float32)
    found: list[Array] = []
    for count in (TRAIN, TEST):
        labels = rng.integers(CLASSES, size=count)
        x = rng.standard_normal((count, FEATURES), dtype=np.float32)
        x += means[labels]
        x *= spectrum
        found += [x @ rotation + offset, labels]
    return found[0], found[1], found[2], found[3]


def by_vitbench(train_x: Array, train_y: Array, test_x: Array, test_y: Array) -> dict[int, Array]:
    """The protocol, for every k; k to predictions."""
    train, test = (
        FeatureSet(y, np.arange(len(y)), {"features": torch.from_numpy(x)})
        for x, y in ((train_x, train_y), (test_x, test_y))
    )
    protocol = NearestNeighbours(k=KS, weights="uniform")
    outcomes = protocol.evaluate(train, test, "features", CLASSES, protocol.cells())
    return {dict(found.cell.parameters)["k"]: found.predictions for found in outcomes}


def by_sklearn(train_x: Array, train_y: Array, test_x: Array, test_y: Array, k: int = KS[-1]) -> dict[int, Array]:
    """One classifier of one k."""
    return {k: KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train_x, train_y).predict(test_x)}


SIDES = {"vitbench": by_vitbench, "scikit-learn": by_sklearn}


def rise(side: str, threads: int) -> int:
    """Bytes by which resident memory rises above that before the search, in a process of its own; prints them."""
    torch.set_num_threads(threads)
    data = draw()
    before = peak_memory(afresh=True)
    with threadpool_limits(threads):
        SIDES[side](*data)
    print(peak_memory() - before)
    return 0


def main() -> int:
    """Measure, print, write `bench/results/neighbours.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of both sides")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rise", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rise:
        return rise(arguments.rise, arguments.threads)
    torch.set_num_threads(arguments.threads)
    data = draw()
    answers: dict[str, dict[int, Array]] = {}

    def work(side: str) -> None:
        answers[side] = SIDES[side](*data)

    with threadpool_limits(arguments.threads):
        seconds = taken_in_turns({side: partial(work, side) for side in SIDES}, arguments.repeats, PAUSE)
        for k in KS[:-1]:
            answers["scikit-learn"] |= by_sklearn(*data, k=k)
    same = {k: float(np.mean(answers["vitbench"][k] == answers["scikit-learn"][k])) for k in KS}
    rises = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--rise", side, "--threads", str(arguments.threads)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rises[side] = int(told.split()[-1])
    installed = versions(("torch", "scikit-learn", "numpy"))
    medians = {side: statistics.median(found) for side, found in seconds.items()}
    peer = f"scikit-learn {installed['scikit-learn']} KNeighborsClassifier"
    sizes = f"{TRAIN:,} x {FEATURES} train rows, {TEST:,} test rows"
    rows = [
        row(
            f"nearest neighbours, k = 1, 5 and 20 together, {sizes}: how much faster than k = 20 alone",
            f"{medians['vitbench']:.1f} s, the neighbours of float64",
            f"{peer} {medians['scikit-learn']:.1f} s, in float32",
            ratio_of(seconds["scikit-learn"], seconds["vitbench"]),
            1.0,
        ),
        row(
            "the same: least share of equal predictions over k = 1, 5, 20",
            ", ".join(f"{100 * share:.2f} %" for share in same.values()),
            peer,
            min(same.values()),
            0.999,
            held=True,
        ),
        row(
            "the same: rise of resident memory over the features, GB",
            f"{rises['vitbench'] / 1e9:.2f} GB",
            f"{peer} {rises['scikit-learn'] / 1e9:.2f} GB",
            rises["vitbench"] / 1e9,
            0.5,
            at_most=True,
        ),
    ]
    accuracy = {k: float(np.mean(found == data[3])) for k, found in answers["vitbench"].items()}
    result = {"rows": rows, "seconds": seconds, "same_predictions": same, "accuracy": accuracy, "rise_bytes": rises}
    write_result("neighbours", result | {"threads": arguments.threads, "versions": installed})
    return 0 if min(same.values()) > 0.999 else 1


if __name__ == "__main__":
    sys.exit(main())
