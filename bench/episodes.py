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
GOAL = 2.0
RESULT = Path(__file__).parent / "results" / "episodes.json"

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
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    answers: dict[str, Array] = {}
    with threadpool_limits(arguments.threads):
        for repeat in range(-1, arguments.repeats):
            order = list(sides.items())
            for side, work in order if repeat % 2 == 0 else order[::-1]:
                time.sleep(0.1)  # the other library's idle threads stop spinning
                started = time.perf_counter()
                answers[side] = work()
                if repeat >= 0:  # the first round warms up
                    seconds[side].append(time.perf_counter() - started)
        started = time.perf_counter()
        by_logistic = by_sklearn(features, drawn, "logistic regression", LOGISTIC)
        logistic = (time.perf_counter() - started) * EPISODES / LOGISTIC
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    labels = test.labels[drawn.queries.reshape(-1)]
    rows: dict[str, dict[str, Any]] = {}
    for name in OPTIONS:
        ours, theirs = (medians[f"{library} {name}"] for library in ("vitbench", "scikit-learn"))
        same = float(np.mean(answers[f"vitbench {name}"] == answers[f"scikit-learn {name}"]))
        rows[name] = {
            "vitbench_seconds": ours,
            "sklearn_seconds": theirs,
            "ratio": theirs / ours,
            "same_predictions": same,
            "accuracy": float(np.mean(answers[f"vitbench {name}"] == labels)),
        }
        print(
            f"{EPISODES} {WAY}-way {SHOT}-shot episodes, {name}: vitbench {ours:.3f} s, a loop with scikit-learn "
            f"{sklearn.__version__} {theirs:.3f} s, ratio {theirs / ours:.1f}, {100 * same:.2f} % of predictions equal "
            f"({arguments.threads} threads)"
        )
    print(f"a loop with scikit-learn's LogisticRegression: {logistic:.1f} s, from its first {LOGISTIC} episodes")
    result = {
        "claim": "episodes",
        "setting": {"way": WAY, "shot": SHOT, "queries": QUERIES, "episodes": EPISODES, "features": FEATURES},
        "classifiers": rows,
        "logistic_regression_seconds": logistic,
        "logistic_regression_accuracy": float(np.mean(by_logistic == labels[: len(by_logistic)])),
        "goal_seconds": GOAL,
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
    agree = all(row["same_predictions"] > 0.999 for row in rows.values())
    return 0 if rows["ridge"]["vitbench_seconds"] <= GOAL and agree else 1


if __name__ == "__main__":
    sys.exit(main())
