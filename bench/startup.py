"""How soon the command answers: `vitbench --help` and `vitbench ls tasks`, against an empty Python process in the same run.

Goals on a warm disk: 0.3 s and 0.6 s. That nothing heavy is imported is a test (`tests/cli/test_cli.py`); this measures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOALS = {"--help": 0.3, "ls tasks": 0.6}
REPEATS = 15


def seconds(command: list[str]) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> int:
    """Measure, print, write the result; 1 when the goal is missed."""
    executable = str(Path(sys.executable).with_name("vitbench"))
    empty = seconds([sys.executable, "-c", "pass"])
    results = {arguments: seconds([executable, *arguments.split()]) for arguments in GOALS}
    path = Path(__file__).parent / "results" / "startup.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"claim": "startup", "empty_python": empty, "seconds": results, "goals": GOALS}, indent=2) + "\n"
    )
    for arguments, taken in results.items():
        print(
            f"startup: vitbench {arguments}: {taken:.3f} s, {taken / empty:.0f} times an empty Python ({empty:.3f} s); "
            f"goal {GOALS[arguments]} s"
        )
    return 0 if all(results[arguments] <= goal for arguments, goal in GOALS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
