"""Every benchmark, one after the other; one JSON file and one table of what came of them.

    python bench/run_all.py [--only extraction solver] [--no-run | --keep]

Runs every `bench/*.py` that measures a claim, each in a process of its own by the command that its first lines show, then the
machine's matrix-multiply peak in float32, bfloat16 and float64, by torch and by numpy. Writes `bench/results/<host>.json`,
which git ignores, and the table between the marks in `docs/performance.md`. The status is 1 when a bench did not run to its
end, when numbers are not right, or when a ratio has fallen behind the one in `bench/guards.json` (see `guards`); `--keep`
replaces those of the benches that it runs by what it measures, if all ran and all numbers are right. A missed goal is shown as
missed, and does not change the status. A result of another day, or of a command with other options, which a bench that is not
run has left, is shown with them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import guards
import numpy as np
import torch
from common import RESULTS, processor, versions

from vitbench.records.atomic import slug, write_text

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
NO_BENCH = {"common", "guards", "run_all"}
SIDE, PEAK_REPEATS = 2048, 7
LIMIT_SECONDS = 3600
PEERS = ("torch", "timm", "transformers", "scikit-learn", "himalaya", "jax", "numpy", "pandas")

Result = Mapping[str, Any]


def peaks() -> dict[str, float]:
    """Matrix-multiply peak in GFLOP/s by library and dtype: the best of some products of 2048 x 2048 matrices."""
    rng = np.random.default_rng(0)
    found = {}
    for dtype in ("float32", "bfloat16", "float64"):
        matrix = torch.from_numpy(rng.normal(size=(SIDE, SIDE))).to(getattr(torch, dtype))
        found[f"torch {dtype}"] = _peak(lambda matrix=matrix: matrix @ matrix)
        if dtype != "bfloat16":
            array = matrix.numpy()
            found[f"numpy {dtype}"] = _peak(lambda array=array: array @ array)
    return found


def _peak(product: Callable[[], object]) -> float:
    product()
    times = []
    for _ in range(PEAK_REPEATS):
        time.sleep(0.1)  # the other library's idle threads stop spinning
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return 2 * SIDE**3 / min(times) / 1e9


def run_bench(name: str) -> tuple[int, float]:
    """Run one bench by its command; its exit status (-1 when it took too long) and its seconds."""
    started = time.perf_counter()
    try:
        status = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py")], check=False, timeout=LIMIT_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        status = -1
    return status, time.perf_counter() - started


def table(found: Mapping[str, Result], machine: Result) -> str:
    """What stands between the marks of the page."""
    peak = ", ".join(f"{name} {value:,.0f}" for name, value in machine["peak_gflops"].items())
    installed = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"{machine['system']}. Matrix-multiply peak in GFLOP/s: {peak}. Versions: {installed}.",
        "",
        "| claim | command | vitbench | peer | ratio | goal | |",
        "|---|---|---|---|---:|---:|---|",
    ]
    for name, bench in found.items():
        result = bench.get("result", {})
        command = f"`{' '.join(['python', f'bench/{name}.py', *result.get('options', [])])}`"
        if (date := result.get("date", machine["date"])) != machine["date"]:
            command += f" on {date}"
        if "problem" in bench:
            lines.append(f"| {name} | {command} | | | | | not measured: {_cell(bench['problem'])} |")
        for item in bench.get("rows", ()):
            told = "met" if item["met"] else f"**missed**{': ' if item.get('reason') else ''}{item.get('reason', '')}"
            cells = [item["claim"], command, item["ours"], item["peer"], f"{item['ratio']:.3g}", item["goal"], told]
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(text: object) -> str:
    return str(text).replace("|", r"\|").replace("\n", " ")


def into_page(text: str, page: Path = PAGE) -> None:
    """Put the table between the marks of the page, which has them once each."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page.name} lacks the marks {BEGIN} and {END}")
    write_text(page, f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> int:
    """Run, collect, write."""
    names = sorted({path.stem for path in HERE.glob("*.py")} - NO_BENCH)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, help="run these; the others keep their results"
    )
    measuring = parser.add_mutually_exclusive_group()
    measuring.add_argument("--no-run", action="store_true", help="only collect what earlier runs have written")
    measuring.add_argument("--keep", action="store_true", help="what is measured is what later runs are held to")
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md alone")
    arguments = parser.parse_args()
    statuses: dict[str, tuple[int, float]] = {}
    found: dict[str, Result] = {}
    for name in names:
        path = RESULTS / f"{name}.json"
        if name in arguments.only and not arguments.no_run:
            path.unlink(missing_ok=True)
            print(f"== {name}", flush=True)
            statuses[name] = run_bench(name)
        if not path.exists():
            status = statuses.get(name)
            found[name] = {"problem": f"it ended with status {status[0]}" if status else "it has not been run"}
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {"rows": result["rows"], "result": result}
        except (KeyError, ValueError, TypeError) as error:
            found[name] = {"problem": f"its result cannot be read ({error})"}
    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(PEERS),
        "peak_gflops": peaks(),
    }
    content = {"machine": machine, "seconds": {name: taken for name, (_, taken) in statuses.items()}, "benches": found}
    write_text(RESULTS / f"{slug(platform.node())}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if not arguments.no_page:
        into_page(table(found, machine))
    print(table(found, machine))
    unmeasured = [name for name in arguments.only if "problem" in found[name]]
    wrong = guards.wrong(found, arguments.only)
    for problem in [*wrong, *([f"not measured: {', '.join(unmeasured)}"] if unmeasured else [])]:
        print(f"{problem}{'; nothing is kept' if arguments.keep else ''}")
    if arguments.keep and not wrong and not unmeasured:
        kept = guards.read(processor()) or {}
        now = guards.ratios({name: found[name] for name in arguments.only})
        write_text(guards.FILE, guards.text(kept | now, processor()))
        return 0
    return 1 if _has_fallen(found, arguments.only) or wrong or unmeasured else 0


def _has_fallen(found: Mapping[str, Result], names: list[str]) -> bool:
    """Say what has fallen behind the kept ratios; whether something has."""
    kept = guards.read(processor())
    if kept is None:
        print(f"{guards.FILE.name} has no ratios of this processor: nothing is held to any")
        return False
    lines = guards.fallen(found, kept, names)
    print("\n".join(["fallen behind what was kept:", *lines] if lines else ["nothing has fallen behind what was kept"]))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
