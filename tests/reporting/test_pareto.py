from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.records.test_costs import make_cost
from tests.reporting.test_leaderboard import frame_of, seeds
from vitbench.errors import UsageError
from vitbench.records.costs import Cost
from vitbench.reporting.boards import Leaderboard, Show
from vitbench.reporting.leaderboard import leaderboards
from vitbench.reporting.pareto import front, points, save_pareto

values = st.one_of(st.integers(0, 5).map(float), st.just(float("nan")))


@given(st.lists(st.tuples(values, values), max_size=12))
def test_the_front_is_what_nothing_beats(drawn: list[tuple[float, float]]) -> None:
    cost, score = np.array([c for c, _ in drawn]), np.array([s for _, s in drawn])
    expected = [
        not (np.isnan(c) or np.isnan(s))
        and not any(other <= c and more >= s and (other < c or more > s) for other, more in drawn)
        for c, s in drawn
    ]
    assert front(cost, score).tolist() == expected


def test_a_front_by_hand() -> None:
    assert front([1, 2, 3, 3, 4], [10, 9, 30, 20, 30]).tolist() == [True, False, True, False, False]
    assert front([2, 2], [5, 5]).tolist() == [True, True], "equal points are on it together"
    assert front([], []).tolist() == []
    with pytest.raises(ValueError, match="a cost for each score"):
        front([1, 2], [1])


def board_of(tmp_path: Path, costs: list[Cost], *records: dict[str, Any]) -> Leaderboard:
    (board,) = leaderboards(frame_of(tmp_path, *records), show=Show(costs=costs))
    return board


def models() -> tuple[list[Cost], list[dict[str, Any]]]:
    """Three backbones: a cheap one, a dear and better one, a dear and worse one; and the floor."""
    costs, records = [], []
    for name, gflops, accuracy in (("small", 1.0, 0.5), ("large", 10.0, 0.7), ("waste", 20.0, 0.4)):
        costs.append(make_cost(architecture=name, flops=int(gflops * 1e9), images_per_second=100 / gflops))
        records += seeds(accuracy, accuracy + 0.02, architecture=name, backbone=f"timm:{name}")
        records += seeds(accuracy, accuracy + 0.02, architecture=name, backbone=f"timm:{name}", representation="gap")
    records += seeds(0.2, 0.2, architecture="pixels", backbone="pixels", representation="pixels", num_parameters=0)
    costs.append(make_cost(architecture="pixels", num_parameters=0, flops=0, images_per_second=1e6))
    return costs, records


def test_points_are_rows_at_their_cost_and_equal_ones_are_one(tmp_path: Path) -> None:
    costs, records = models()
    shown = points(board_of(tmp_path, costs, *records), "gflops")
    assert shown.table.set_index("label")["cost"].to_dict() == {
        "timm:large cls, gap": 10.0,
        "timm:small cls, gap": 1.0,
        "timm:waste cls, gap": 20.0,
    }
    assert shown.table.set_index("label")["score"]["timm:large cls, gap"] == pytest.approx(71.0)
    assert set(shown.table["label"][shown.table["front"]]) == {"timm:large cls, gap", "timm:small cls, gap"}
    assert shown.floors["label"].tolist() == ["pixels"], "no place on a logarithmic axis"


def test_more_images_per_second_are_better(tmp_path: Path) -> None:
    costs, records = models()
    shown = points(board_of(tmp_path, costs, *records), "images_per_second")
    assert set(shown.table["label"][shown.table["front"]]) == {"timm:large cls, gap", "timm:small cls, gap"}
    assert shown.floors["label"].tolist() == ["pixels"], "the floor would stretch the axis to a million"


def test_the_plot_is_written_and_rows_without_a_cost_are_named(tmp_path: Path) -> None:
    costs, records = models()
    board = board_of(tmp_path, costs[:2], *records)
    shown = save_pareto(board, "gflops", tmp_path / "plot.png")
    assert shown.missing == ["timm:waste cls", "timm:waste gap"]
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size[0] > 900
        assert len(image.convert("RGB").getcolors(1_000_000) or []) > 20
    assert not list(tmp_path.glob(".tmp-*"))


def test_two_devices_are_never_one_axis(tmp_path: Path) -> None:
    costs, records = models()
    costs += [cost.model_copy(update={"device": "cuda (X)", "images_per_second": 1.0}) for cost in costs]
    board = board_of(tmp_path, costs, *records)
    with pytest.raises(UsageError, match=r"measured on several devices \(cpu .*, cuda \(X\)\): name one with --device"):
        points(board, "images_per_second")
    assert len(points(board, "gflops").table) == 3, "operations are the same everywhere"


def test_mistakes_are_told(tmp_path: Path) -> None:
    costs, records = models()
    board = board_of(tmp_path / "a", costs, *records)
    with pytest.raises(UsageError, match="unknown cost 'gflop'; did you mean 'gflops'"):
        points(board, "gflop")
    with pytest.raises(UsageError, match=r"the plot is a PNG: name it plot.png"):
        save_pareto(board, "gflops", tmp_path / "plot.svg")
    with pytest.raises(UsageError, match=r"no row of .* has both a score .* measure with vitbench cost"):
        points(board_of(tmp_path / "b", [], *records), "gflops")
