"""The guards of the benchmarks: a ratio that has fallen behind the kept one is told."""

from __future__ import annotations

import importlib
import json
import sys
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


@pytest.mark.parametrize(("ratio", "met"), [(0.98, False), (float("nan"), False), (0.9995, True)])
def test_what_says_whether_numbers_are_right_is_held_to_its_goal(ratio: float, met: bool) -> None:
    item = {"claim": "cosine", "ratio": ratio, "goal": "≥ 0.999", "met": met, "held": True}
    found: dict[str, Any] = {"drift": {"rows": [item]}, "speed": {"problem": "it ended with status 1"}}
    assert guards.fallen(found, {"drift": {"cosine": 1.0}}, ["drift"]) == []
    lines = guards.wrong(found, ["drift", "speed"])
    assert lines == ([] if met else [f"drift: cosine: {ratio:.3g}, which must be ≥ 0.999"])


def test_a_claim_that_is_measured_no_more_is_told() -> None:
    found = measured(3.0, 1.0)
    found["speed"]["rows"].pop()
    assert guards.fallen(found, KEPT, ["speed"]) == ["speed: no row says any more: memory"]


def test_what_is_kept_is_read_again_on_the_same_processor(tmp_path: Path) -> None:
    path = tmp_path / "guards.json"
    path.write_text(guards.text(guards.ratios(measured(3.0, 1.0)), "a processor"), encoding="utf-8")
    assert guards.read("a processor", path) == {"speed": KEPT["speed"]}
    assert guards.read("another", path) is None


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run_all` in a folder of its own: two benches that measure 2, and kept ratios of 8."""
    monkeypatch.syspath_prepend(str(guards.FILE.parent))
    module = importlib.import_module("run_all")
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "peaks", dict)
    monkeypatch.setattr(module.guards, "FILE", tmp_path / "guards.json")
    kept = {name: {"faster": 8.0} for name in ("solver", "episodes")}
    (tmp_path / "guards.json").write_text(guards.text(kept, module.processor()), encoding="utf-8")
    monkeypatch.setattr(module.guards, "read", lambda processor: guards.read(processor, tmp_path / "guards.json"))
    (tmp_path / "results").mkdir()
    for name in kept:
        (tmp_path / f"{name}.py").touch()
        row = {"claim": "faster", "ours": "1 s", "peer": "2 s", "ratio": 2.0, "goal": "≥ 1", "met": True}
        content = json.dumps({"rows": [row], "date": "2020-01-01", "options": ["--images", "4"]})
        (tmp_path / "results" / f"{name}.json").write_text(content, encoding="utf-8")

    def run_bench(name: str) -> tuple[int, float]:
        if name == "solver":
            row = {"claim": "faster", "ours": "1 s", "peer": "4 s", "ratio": 4.0, "goal": "≥ 1", "met": True}
            (tmp_path / "results" / "solver.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
        return 0, 1.0

    monkeypatch.setattr(module, "run_bench", run_bench)

    def run(*options: str) -> tuple[int, dict[str, dict[str, float]]]:
        monkeypatch.setattr(sys, "argv", ["run_all.py", "--no-page", *options])
        return module.main(), json.loads((tmp_path / "guards.json").read_text(encoding="utf-8"))["ratios"]

    return run


def test_only_what_is_run_is_kept(runner: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner("--only", "solver") == (1, {"solver": {"faster": 8.0}, "episodes": {"faster": 8.0}})
    assert runner("--only", "solver", "--keep") == (0, {"solver": {"faster": 4.0}, "episodes": {"faster": 8.0}})
    assert "`python bench/episodes.py --images 4` on 2020-01-01" in capsys.readouterr().out


def test_nothing_is_kept_where_a_bench_fails(runner: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner("--keep") == (1, {"solver": {"faster": 8.0}, "episodes": {"faster": 8.0}})
    assert "not measured: episodes; nothing is kept" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        runner("--keep", "--no-run")


def test_wrong_numbers_are_not_kept_on_any_processor(
    runner: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("run_all")
    measuring = module.run_bench

    def wrong(name: str) -> tuple[int, float]:
        result: tuple[int, float] = measuring(name)
        place = module.RESULTS / f"{name}.json"
        row = {"claim": "cosine", "ours": "", "peer": "", "ratio": 0.5, "goal": "≥ 0.999", "met": False, "held": True}
        place.write_text(json.dumps({"rows": [*json.loads(place.read_text())["rows"], row]}), encoding="utf-8")
        return result

    monkeypatch.setattr(module, "run_bench", wrong)
    assert runner("--only", "solver", "--keep")[1]["solver"] == {"faster": 8.0}
    assert "solver: cosine: 0.5, which must be ≥ 0.999; nothing is kept" in capsys.readouterr().out
    monkeypatch.setattr(module.guards, "read", lambda processor: None)
    assert runner("--only", "solver")[0] == 1


def test_every_bench_is_guarded() -> None:
    kept = json.loads(guards.FILE.read_text(encoding="utf-8"))["ratios"]
    benches = {path.stem for path in guards.FILE.parent.glob("*.py")} - {"common", "guards", "run_all"}
    assert set(kept) == benches
    assert all(kept.values())
