"""The mission's question on real images with real weights: CLS against GAP against pooler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitbench.execution.ablation import Ablation, ablate
from vitbench.execution.ablation_levels import parse_axes
from vitbench.execution.config import make_config
from vitbench.execution.reporter import Reporter
from vitbench.reporting.ablation import report


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture
def over(test_data: Path, out: Path) -> Any:
    weights = test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"
    given = {
        "backbones": (f"timm:vit_tiny_patch16_224,checkpoint={weights}",),
        "tasks": (f"imagefolder:{test_data / 'images' / 'flowers12'}",),
        "out": out,
        "limit": 120,
        "options": {"shots": 5, "seeds": 3},
    }

    def run(*axes: str, **changes: Any) -> Ablation:
        return ablate(make_config(given | changes), parse_axes(axes), Reporter(), "a test")

    return run


def test_all_layers_of_a_real_vit_come_from_one_pass_and_the_class_token_starts_at_chance(
    over: Any, encoded: list[int]
) -> None:
    found = over("layer=cls,gap")
    assert sum(encoded) < 12 * 5 * 3 + 120 + 1, "26 representations, and each image once"
    (table,) = report(found).tables
    scores = {row.level: row.score for row in table.rows}
    assert scores["cls@0"] == pytest.approx(1 / 12, abs=0.03), "before the first block every class token is the same"
    assert scores["gap@0"] > 1.5 / 12
    assert scores["cls@12"] > 0.8 > scores["cls@2"] > scores["cls@1"] > scores["cls@0"]


def test_the_class_token_beats_the_mean_of_patches_and_the_pooler_is_the_class_token(over: Any) -> None:
    (table,) = report(over("representation=cls,gap,pooler")).tables
    rows = {row.level: row for row in table.rows}
    assert rows["gap"].comparison is not None
    assert -0.2 < rows["gap"].comparison.difference < -0.02
    assert rows["pooler"].remark == "equals the reference"
    assert rows["pooler"].alias_of == "cls"


def test_an_untrained_pooler_is_listed_and_not_scored(over: Any, test_data: Path) -> None:
    found = over(
        "representation", backbones=(f"hf:{test_data / 'weights' / 'vit_tiny_hf'}",), options={"shots": 1, "seeds": 1}
    )
    why = found.subjects[0].lacking["representation", "pooler"]
    assert why.provenance == "untrained"
    assert {one.levels["representation"] for one in found.measurements} == {"cls", "gap"}


def test_the_path_has_its_best_inside_and_leave_one_out_finds_it(over: Any, encoded: list[int]) -> None:
    over("representation=cls")
    encoded.clear()
    found = over("l2", representations=("cls",), options={"shots": 10, "seeds": 2})
    records = report(found).records
    means = records[records["at_l2"] != "loo"].groupby("l2")["score"].mean()
    assert len(means) == 30
    assert 1 < means.idxmax() < 2**17
    chosen = records[records["at_l2"] == "loo"]
    assert chosen["score"].mean() > means.max() - 0.03
    assert np.all((chosen["l2"] > 1) & (chosen["l2"] < 2**14))
