"""`features_dtype` from the command's words to the record: half the store, records of their own, told apart in every table."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import UsageError
from vitbench.execution.replay import find_record, replay
from vitbench.execution.why import why_record
from vitbench.features.cache import stores, unused
from vitbench.records.store import ResultStore
from vitbench.reporting.leaderboard import leaderboards


@pytest.fixture
def task(image_folder: ImageFolderMaker) -> str:
    return f"imagefolder:{image_folder()}"


SETTINGS = {"shots": [1, 2], "seeds": 2}


def test_float16_features_have_stores_and_records_of_their_own(task: str, tiny_vit: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    full = vitbench.run(tiny_vit, task, out=out, **SETTINGS)
    half = vitbench.run(tiny_vit, task, out=out, features_dtype="float16", **SETTINGS)
    assert set(full["key"]).isdisjoint(half["key"])
    assert set(full["features_dtype"]) == {"float32"}
    assert set(half["features_dtype"]) == {"float16"}
    assert (half["accuracy"] - full["accuracy"]).abs().max() < 0.2
    assert "features_dtype" not in ResultStore(out).read(full["key"].iloc[0]).identity
    assert ResultStore(out).read(half["key"].iloc[0]).identity["features_dtype"] == "float16"
    found = stores(out)
    assert sorted(store.dtype for store in found) == ["float16", "float16", "float32", "float32"]
    assert unused(found, out) == []


def test_a_leaderboard_shows_them_as_rows_of_their_own(task: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vitbench.run("pixels", task, out=out, shots=[1], seeds=2)
    vitbench.run("pixels", task, out=out, shots=[1], seeds=2, features_dtype="float16")
    (board,) = leaderboards(vitbench.load_results(out))
    assert sorted(board.records["variant"].unique()) == ["float32", "float32 kept as float16"]


def test_a_second_run_finds_them_and_the_first_run_had_the_rounded_values_already(
    task: str, tiny_vit: str, tmp_path: Path, encoded: list[int]
) -> None:
    settings = SETTINGS | {"features_dtype": "float16", "out": tmp_path / "out"}
    first = vitbench.run(tiny_vit, task, **settings)
    assert sum(encoded) == 12 + 12
    again = vitbench.run(tiny_vit, task, on_existing="rerun", **settings)
    assert sum(encoded) == 24
    assert again["accuracy"].tolist() == first["accuracy"].tolist()


def test_why_and_replay_know_of_it(task: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    frame = vitbench.run("pixels", task, out=out, shots=[1], seeds=1, features_dtype="float16")
    found = find_record(frame["key"].item(), out)
    assert why_record(found).differences == ()
    assert replay(found).agrees
    (difference,) = why_record(found, {"features_dtype": "float32"}).differences
    assert (difference.field, difference.then, difference.now) == ("features_dtype", "float16", "—")


def test_another_dtype_is_refused(task: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="features-dtype"):
        vitbench.run("pixels", task, out=tmp_path / "out", features_dtype="float64")
