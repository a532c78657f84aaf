"""600 5-way 5-shot episodes: vitbench against a loop over episodes with scikit-learn, and within 2 seconds.

    python bench/episodes.py [--threads 2] [--repeats 7]

100 classes of 100 images, 768 features, 15 queries a class: the few-shot literature's setting with the features of a ViT-B.
Both sides classify the very same episodes; vitbench's time includes the draw of the episodes, the checks and the record's
numbers, the peers' only the loop, for which the episodes are drawn before. Each classifier of the protocol stands against
scikit-learn's of the same name, called as its documentation shows it, on the same inputs (ridge with the standardised
features and λ of 1024, prototypes in Euclidean distance, one neighbour in cosine distance). Logistic regression, which is
what many papers fit to an episode, is timed once, on the first 60 episodes. The other times are medians over repeats in which
all take turns, in one process and with one number of threads. One line each is printed; the status is 1 if an answer differs or
ridge takes more than 2 seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import ratio_of, row, taken_in_turns, versions, write_result
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from vitbench.features.featureset import FeatureSet
from vitbench.protocols.episodes import EpisodeProtocol
from vitbench.solvers.episodes import Episodes, draw

CLASSES, IMAGES, FEATURES = 100, 100, 768
WAY, SHOT, QUERIES, EPISODES = 5, 5, 15, 600
LOGISTIC = 60
PAUSE = 0.1
GOAL = 2.0

Array = npt.NDArray[Any]

OPTIONS: dict[str, dict[str, Any]] = {
    "ridge": {},
    "prototype": {"distance": "euclidean"},
    "knn": {"k": 1},
}
PEERS: dict[str, Callable[[], Any]] = {
    "ridge": lambda: make_pipeline(StandardScaler(), RidgeClassifier(alpha=1024.0)),
    "prototype": NearestCentroid,
    "knn": lambda: KNeighborsClassifier(1, metric="cosine"),
    "logistic regression": lambda: LogisticRegression(max_iter=1000),
}


def make_features() -> FeatureSet:
    """Float32 features like a backbone's: class means and noise of one decaying spectrum, rotated, with an offset."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), IMAGES)
    means = 0.3 * rng.normal(size=(CLASSES, FEATURES))
    rotation = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0]
    spectrum = np.arange(1, FEATURES + 1) ** -0.5
    x = ((means[labels] + rng.normal(size=(len(labels), FEATURES))) * spectrum) @ rotation + rng.normal(size=FEATURES)
    return FeatureSet(labels, np.arange(len(labels)), {"features": torch.from_numpy(x.astype(np.float32))})


def by_vitbench(test: FeatureSet, classifier: str) -> Array:
    """The protocol, draw and checks included; predicted classes."""
    protocol = EpisodeProtocol(
        way=WAY, shots=(SHOT,), queries=QUERIES, episodes=EPISODES, classifier=classifier, **OPTIONS[classifier]
    )
    train = FeatureSet(test.labels, np.empty(0, np.int64), {})
    (outcome,) = protocol.evaluate(train, test, "features", CLASSES, protocol.cells())
    return outcome.predictions


def by_sklearn(features: Array, drawn: Episodes, classifier: str, count: int = EPISODES) -> Array:
    """A loop over the first episodes; predicted classes."""
    found = []
    parts = (part[:count] for part in (drawn.classes, drawn.support, drawn.queries))
    for classes, support, queries in zip(*parts, strict=True):
        peer = PEERS[classifier]()
        peer.fit(features[support.reshape(-1)], np.repeat(np.arange(WAY), SHOT))
        found.append(classes[peer.predict(features[queries.reshape(-1)])])
    return np.concatenate(found)


def main() -> int:
    """Measure, print, write `bench/results/episodes.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    test = make_features()
    features = test.representations["features"].numpy()
    drawn = draw(test.labels, CLASSES, way=WAY, shot=SHOT, queries=QUERIES, episodes=EPISODES, seed=0)
    sides: dict[str, Callable[[], Array]] = {}
    for name in OPTIONS:
        sides[f"vitbench {name}"] = lambda name=name: by_vitbench(test, name)
    for name in OPTIONS:
        sides[f"scikit-learn {name}"] = lambda name=name: by_sklearn(features, drawn, name)
    answers: dict[str, Array] = {}

    def work(side: str) -> None:
        answers[side] = sides[side]()

    with threadpool_limits(arguments.threads):
        seconds = taken_in_turns({side: partial(work, side) for side in sides}, arguments.repeats, PAUSE)
        started = time.perf_counter()
        by_logistic = by_sklearn(features, drawn, "logistic regression", LOGISTIC)
        logistic = (time.perf_counter() - started) * EPISODES / LOGISTIC
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    labels = test.labels[drawn.queries.reshape(-1)]
    same = {name: float(np.mean(answers[f"vitbench {name}"] == answers[f"scikit-learn {name}"])) for name in OPTIONS}
    installed = versions(("torch", "scikit-learn"))
    what = f"{EPISODES} {WAY}-way {SHOT}-shot episodes"
    rows = [
        row(
            f"{what} by ridge, seconds",
            f"{medians['vitbench ridge']:.3f} s",
            f"the goal, {GOAL:g} s",
            medians["vitbench ridge"],
            GOAL,
            at_most=True,
        )
    ]
    rows += [
        row(
            f"{what}, {name}: how much faster",
            f"{medians[f'vitbench {name}']:.3f} s, {100 * same[name]:.2f} % of predictions equal",
            f"scikit-learn {installed['scikit-learn']} loop {medians[f'scikit-learn {name}']:.3f} s",
            ratio_of(seconds[f"scikit-learn {name}"], seconds[f"vitbench {name}"]),
            1.0,
        )
        for name in OPTIONS
    ]
    result = {
        "rows": rows,
        "setting": {"way": WAY, "shot": SHOT, "queries": QUERIES, "episodes": EPISODES, "features": FEATURES},
        "same_predictions": same,
        "accuracy": {name: float(np.mean(answers[f"vitbench {name}"] == labels)) for name in OPTIONS},
        "logistic_regression_seconds": logistic,
        "logistic_regression_accuracy": float(np.mean(by_logistic == labels[: len(by_logistic)])),
        "threads": arguments.threads,
        "seconds": seconds,
        "versions": installed,
    }
    write_result("episodes", result)
    print(
        f"episodes: a loop with scikit-learn's LogisticRegression: {logistic:.1f} s, from its first {LOGISTIC} episodes"
    )
    return 0 if rows[0]["met"] and min(same.values()) > 0.999 else 1


if __name__ == "__main__":
    sys.exit(main())
