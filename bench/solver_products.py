"""What the solver takes beyond the matrix products that it must do: 1,000 classes, 5 shots, 1,024 features, 10,000 test rows.

    python bench/solver_products.py [--threads 2] [--repeats 5]

The peer is torch's bare products of ready operands, each once, in the dtype in which the solver has to do them. For one given
penalty: Z'Z in float64, which is what keeps the solve right where it is badly conditioned; the inverse applied to Z'Y in
float64; the test scores in float32. For leave-one-out over 30 penalties also ZV and the residuals of one penalty, in float32.
Not among them: reading, standardising, the eigendecomposition, the Cholesky factorisation, the other penalties whose residuals
are needed to be sure, the leverages in float64 of those that are still near, and the ranking of 1,000 scores a row. Goal: at
most 2.5 times their time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch
from common import ratio_of, row, taken_in_turns, versions, write_result
from solver import draw

from vitbench.features.featureset import FeatureSet
from vitbench.protocols.fewshot import FewShot

CLASSES, SHOT, FEATURES, TESTS = 1000, 5, 1024, 10_000
GOAL = 2.5


def products(choose: bool) -> Callable[[], None]:
    """The products of operands of the right sizes, which are made beforehand."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=dtype, generator=generator)

    z, inverse = matrix(CLASSES * SHOT, FEATURES, torch.float64), matrix(FEATURES, FEATURES, torch.float64)
    cross, single = matrix(FEATURES, CLASSES, torch.float64), z.float()
    vectors, weights = inverse.float(), cross.float()
    tests = matrix(TESTS, FEATURES, torch.float32)

    def work() -> None:
        torch.mm(z.T, z)
        torch.mm(inverse, cross)
        torch.mm(tests, weights)
        if choose:
            torch.mm(torch.mm(single, vectors), weights)

    return work


def main() -> int:
    """Measure, print a line per claim, write `bench/results/solver_products.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train_x, train_y, test_x, test_y = draw(CLASSES, SHOT, FEATURES, TESTS)
    train, test = (
        FeatureSet(labels=y, rows=np.arange(len(y)), representations={"features": torch.from_numpy(x)})
        for x, y in ((train_x, train_y), (test_x, test_y))
    )

    def solve(protocol: FewShot) -> Callable[[], object]:
        return lambda: list(protocol.evaluate(train, test, "features", CLASSES, protocol.cells()))

    given, chosen = (FewShot(shots=(SHOT,), seeds=(0,), l2=l2) for l2 in (1024.0, "loo"))
    sides = {
        "one penalty": solve(given),
        "one penalty, products": products(choose=False),
        "leave-one-out": solve(chosen),
        "leave-one-out, products": products(choose=True),
    }
    seconds = taken_in_turns(sides, arguments.repeats)
    reasons = {
        "one penalty": "",
        "leave-one-out": "float32 leaves two penalties, whose factorisations, weights and leverages are computed in float64: a "
        "fourth of the time; the eigendecomposition in float32 is a twelfth",
    }
    rows = [
        row(
            f"{name}, K=1000, 5 shots, D=1024, 10,000 test rows: time of the bare products",
            f"{statistics.median(seconds[name]):.2f} s",
            f"torch {torch.__version__} products {statistics.median(seconds[f'{name}, products']):.2f} s",
            ratio_of(seconds[name], seconds[f"{name}, products"]),
            GOAL,
            at_most=True,
            reason=reason,
        )
        for name, reason in reasons.items()
    ]
    result = {
        "rows": rows,
        "seconds": seconds,
        "threads": arguments.threads,
        "versions": versions(("torch",)),
    }
    write_result("solver_products", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
