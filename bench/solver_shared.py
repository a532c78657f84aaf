"""What the cells of a few-shot evaluation share: shots 1, 5, 10, 25 and 3 seeds together, against each by itself.

    python bench/solver_shared.py [--threads 2] [--repeats 5]

100 classes and 768 features, then 1,000 classes and 1,024, with one given penalty, by the same code in the same run. The support
sets of a seed are nested, so that the scatter matrix of each is grown from the smaller one: of the sets with more rows than
features, 25 rows per class are multiplied in place of 10 + 25, or of 5 + 10 + 25. The rest (eigenvectors, factors, scores) is
each set's own, and the 1-shot sets are solved in the dual, whose matrix cannot be grown. The second figure is that of the scatter
matrices alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

import numpy as np
import torch
from common import ratio_of, row, taken_in_turns, versions, write_result

from vitbench.features.featureset import FeatureSet
from vitbench.protocols.fewshot import FewShot
from vitbench.solvers.moments import Moments

SETTINGS = ((100, 768), (1000, 1024))
TESTS = 2000
SHOTS = (1, 5, 10, 25)


def main() -> int:
    """Measure, print a line per claim, write `bench/results/solver_shared.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, seconds = [], {}
    for classes, features in SETTINGS:
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(classes), max(SHOTS))
        test_labels = rng.integers(classes, size=TESTS)
        train, test = (
            FeatureSet(
                y, np.arange(len(y)), {"features": torch.from_numpy(rng.normal(size=(len(y), features))).float()}
            )
            for y in (labels, test_labels)
        )
        protocol = FewShot(shots=SHOTS)
        x, y = train.representations["features"], torch.from_numpy(labels)
        order = torch.argsort(
            torch.arange(len(y)) % max(SHOTS), stable=True
        )  # the first image of every class, the second, …
        primal = [shot for shot in SHOTS if shot * classes > features + 1]

        def together(protocol=protocol, train=train, test=test, classes=classes) -> None:
            list(protocol.evaluate(train, test, "features", classes, protocol.cells()))

        def apart(protocol=protocol, train=train, test=test, classes=classes) -> None:
            for cell in protocol.cells():
                list(protocol.evaluate(train, test, "features", classes, [cell]))

        def grown(x=x, y=y, order=order, primal=primal, classes=classes, features=features) -> None:
            found = Moments(features, classes)
            for smaller, shot in zip([0, *primal], primal, strict=False):
                new = order[smaller * classes : shot * classes]
                found.add(x[new], y[new])

        def anew(x=x, y=y, order=order, primal=primal, classes=classes, features=features) -> None:
            for shot in primal:
                Moments(features, classes).add(x[order[: shot * classes]], y[order[: shot * classes]])

        sides = {"together": together, "apart": apart, "grown": grown, "anew": anew}
        found = taken_in_turns(sides, arguments.repeats)
        setting = f"K={classes}, D={features}"
        seconds[setting] = found
        for claim, ours, theirs in (
            (f"12 cells with one penalty, {setting}: how much faster together", "together", "apart"),
            (f"their scatter matrices alone, {setting}", "grown", "anew"),
        ):
            rows.append(
                row(
                    claim,
                    f"{statistics.median(found[ours]):.3f} s",
                    f"each by itself {statistics.median(found[theirs]):.3f} s",
                    ratio_of(found[theirs], found[ours]),
                    1.0,
                )
            )
    result = {"rows": rows, "seconds": seconds, "threads": arguments.threads, "versions": versions(("torch",))}
    write_result("solver_shared", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
