"""Costs beside the rows that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.records.test_costs import make_cost
from tests.reporting.test_leaderboard import frame_of, seeds
from vitbench.errors import UsageError
from vitbench.records.costs import Cost
from vitbench.reporting.boards import Leaderboard, Show
from vitbench.reporting.formats import render
from vitbench.reporting.leaderboard import leaderboards


def board_of(tmp_path: Path, costs: list[Cost], *records: dict[str, Any], **show: Any) -> Leaderboard:
    (board,) = leaderboards(frame_of(tmp_path, *records), show=Show(costs=costs, **show))
    return board


def test_a_row_has_the_cost_of_its_backbone(tmp_path: Path) -> None:
    board = board_of(tmp_path, [make_cost()], *seeds(0.5))
    row = {name: extra.values.iloc[0] for name, extra in board.extras.items()}
    assert row == pytest.approx(
        {"params (M)": 5.5, "GFLOPs": 2.5, "dim": 192, "images/s": 20.0, "memory (MB)": 150}, abs=1e-12
    )
    assert any(note.startswith("GFLOPs: billions") and "multiply-add as two" in note for note in board.notes)
    assert any("cpu (A Processor, 2 threads), batches of 32" in note for note in board.notes)
    assert "memory: weights + growth" in board.notes
    assert "20.0" in render([board], "markdown")


@pytest.mark.parametrize(
    "change",
    [{"input_size": (384, 384)}, {"dtype": "bfloat16"}, {"architecture": "timm:other"}, {"num_parameters": 7}],
)
def test_another_computation_s_cost_is_not_this_row_s(tmp_path: Path, change: dict[str, Any]) -> None:
    board = board_of(tmp_path, [make_cost(**change)], *seeds(0.5))
    assert board.extras["GFLOPs"].values.isna().all()
    assert board.extras["params (M)"].values.iloc[0] == 5.5, "known without a measurement"
    (line,) = [note for note in board.notes if note.startswith("not measured")]
    assert line == "not measured: vitbench cost --backbone timm:vit_tiny_patch16_224 --dtype float32 makes it"
    assert "| — |" in render([board], "markdown").replace("  ", "")


def test_other_weights_of_one_architecture_cost_the_same_but_the_row_s_own_go_first(tmp_path: Path) -> None:
    other = make_cost(backbone_name="timm-vit_tiny_patch16_224-ffff", images_per_second=7.0)
    assert board_of(tmp_path, [other], *seeds(0.5)).extras["images/s"].values.iloc[0] == 7.0
    assert board_of(tmp_path, [other, make_cost()], *seeds(0.5)).extras["images/s"].values.iloc[0] == 20.0


def test_the_newest_of_two_measurements_is_taken(tmp_path: Path) -> None:
    def made(year: int, speed: float) -> Cost:
        cost = make_cost(images_per_second=speed)
        return cost.model_copy(
            update={"provenance": cost.provenance.model_copy(update={"created": f"{year}-01-01T00:00:00+00:00"})}
        )

    for costs in ([made(2025, 1.0), made(2026, 2.0)], [made(2026, 2.0), made(2025, 1.0)]):
        assert board_of(tmp_path, costs, *seeds(0.5)).extras["images/s"].values.iloc[0] == 2.0


def test_devices_have_columns_of_their_own_and_one_can_be_chosen(tmp_path: Path) -> None:
    costs = [make_cost(), make_cost(device="cuda (NVIDIA H200)", images_per_second=2000.0)]
    board = board_of(tmp_path, costs, *seeds(0.5))
    assert board.extras["images/s [cuda (NVIDIA H200)]"].values.iloc[0] == 2000.0
    assert board.extras["images/s [cpu (A Processor, 2 threads)]"].values.iloc[0] == 20.0
    board = board_of(tmp_path, costs, *seeds(0.5), device="H200")
    assert board.extras["images/s"].values.iloc[0] == 2000.0
    with pytest.raises(UsageError, match=r"no cost was measured on 'tpu' \(there is cpu .*, cuda"):
        board_of(tmp_path, costs, *seeds(0.5), device="tpu")


def test_unknown_counts_are_dashes(tmp_path: Path) -> None:
    board = board_of(tmp_path, [make_cost(flops=None, memory_bytes=None, memory_method="not measured: x")], *seeds(0.5))
    assert board.extras["GFLOPs"].values.isna().all()
    assert board.extras["memory (MB)"].values.isna().all()
    assert "memory: not measured: x" in board.notes


def test_costs_are_columns_of_the_long_form(tmp_path: Path) -> None:
    import io

    board = board_of(tmp_path, [make_cost()], *seeds(0.5, 0.6))
    table = pd.read_csv(io.StringIO(render([board], "csv")))
    assert table.loc[0, ["GFLOPs", "images_s", "params_M", "memory_MB"]].tolist() == [2.5, 20.0, 5.5, 150.0]


def test_a_pivot_without_backbones_as_rows_has_no_place_for_costs(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5))
    with pytest.raises(UsageError, match="put backbone,representation into --rows"):
        leaderboards(frame, show=Show(costs=[make_cost()]), rows=["dtype"])
    (board,) = leaderboards(frame, show=Show(costs=[make_cost()]), columns=["shot"])
    assert board.extras["GFLOPs"].values.iloc[0] == 2.5
