"""The guards of the benchmarks: a ratio that has fallen behind the kept one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import guards

KEPT = {"speed": {"faster": 3.0, "memory": 1.0}, "other": {"rate": 2.0}}


def measured(faster: float, memory: float) -> dict[str, dict[str, Any]]:
    rows = [
        {"claim": "faster", "ratio": faster, "goal": "≥ 2"},
        {"claim": "memory", "ratio": memory, "goal": "≤ 1.1"},
    ]
    return {"speed": {"rows": rows}, "other": {"problem": "it has not been run"}}


@pytest.mark.parametrize(("faster", "memory"), [(3.0, 1.0), (2.3, 1.3), (9.0, 0.1)])
def test_what_is_as_good_as_before_or_better_has_not_fallen(faster: float, memory: float) -> None:
    assert guards.fallen(measured(faster, memory), KEPT, ["speed", "other"]) == []


@pytest.mark.parametrize(
    ("faster", "memory", "line"),
    [
        (2.2, 1.0, "speed: faster: 2.2, where 3 was kept"),
        (3.0, 1.4, "speed: memory: 1.4, where 1 was kept"),
        (float("nan"), 1.0, "speed: faster: nan, where 3 was kept"),
    ],
)
def test_what_is_worse_by_more_than_a_third_has_fallen(faster: float, memory: float, line: str) -> None:
    assert guards.fallen(measured(faster, memory), KEPT, ["speed", "other"]) == [line]
    assert guards.fallen(measured(faster, memory), KEPT, ["other"]) == []


def test_a_claim_that_is_measured_no_more_is_told() -> None:
    found = measured(3.0, 1.0)
    found["speed"]["rows"].pop()
    assert guards.fallen(found, KEPT, ["speed"]) == ["speed: no row says any more: memory"]


def test_what_is_kept_is_read_again_on_the_same_processor(tmp_path: Path) -> None:
    path = tmp_path / "guards.json"
    path.write_text(guards.text(guards.ratios(measured(3.0, 1.0)), "a processor"), encoding="utf-8")
    assert guards.read("a processor", path) == {"speed": KEPT["speed"]}
    assert guards.read("another", path) is None


def test_every_bench_is_guarded() -> None:
    kept = json.loads(guards.FILE.read_text(encoding="utf-8"))["ratios"]
    benches = {path.stem for path in guards.FILE.parent.glob("*.py")} - {"common", "guards", "run_all"}
    assert set(kept) == benches
    assert all(kept.values())
