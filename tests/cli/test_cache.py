from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.cli.main import app
from vitbench.errors import UsageError


def invoke(*arguments: str | Path, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=answer)


@pytest.fixture
def run(image_folder: ImageFolderMaker, tmp_path: Path) -> Path:
    vitbench.run("pixels", f"imagefolder:{image_folder()}", shots=1, seeds=1, out=tmp_path / "out")
    return tmp_path / "out"


def stores(out: Path) -> set[Path]:
    return {path.parent for path in (out / "features").rglob("identity.json")}


def test_ls_as_a_table_and_as_json(run: Path) -> None:
    table = invoke("cache", "ls", "--out", run)
    assert table.exit_code == 0
    assert "pixels-e3b0c442" in table.stdout
    assert "2 stores" in table.stdout
    rows = json.loads(invoke("cache", "ls", "--out", run, "--json").stdout)
    assert [(row["task"], row["split"], row["representations"], row["rows"]) for row in rows] == [
        ("imagefolder/shoes", "test", ["pixels"], 12),
        ("imagefolder/shoes", "train", ["pixels"], 3),
    ]
    assert all(row["size"] > 3 * 3072 * 4 for row in rows)


def test_verify_names_what_is_damaged_and_exits_1(run: Path) -> None:
    whole = invoke("cache", "verify", "--out", run)
    assert whole.exit_code == 0
    assert "2 shards in 2 stores, 0 damaged" in whole.stdout
    shard = next((run / "features").rglob("test/*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    found = invoke("cache", "verify", "--out", run)
    assert found.exit_code == 1
    assert f"damaged: {shard}: the checksum is not that of the sidecar" in found.stdout.replace("\n", "")


def test_gc_without_a_choice_removes_only_what_killed_processes_left(run: Path) -> None:
    before = stores(run)
    assert "nothing to remove" in invoke("cache", "gc", "--out", run, "--yes").stdout
    left = next(iter(before)) / ".tmp-1"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    assert invoke("cache", "gc", "--out", run, "--yes").exit_code == 0
    assert not left.exists()
    assert stores(run) == before


def test_gc_takes_the_unused_or_the_old_or_what_is_both(run: Path) -> None:
    assert "nothing to remove" in invoke("cache", "gc", "--unused", "--out", run, "--yes").stdout
    assert "nothing to remove" in invoke("cache", "gc", "--older-than", "1h", "--out", run, "--yes").stdout
    for sidecar in (run / "features").rglob("test/*/shard-*.json"):
        os.utime(sidecar, (time.time() - 3 * 86400,) * 2)
    assert "nothing to remove" in invoke("cache", "gc", "--older-than", "2d", "--unused", "--out", run, "--yes").stdout
    told = invoke("cache", "gc", "--older-than", "2d", "--out", run, "--yes")
    assert "test" in told.stdout
    assert "removed: 1 stores" in told.stdout
    assert [folder.parent.name for folder in stores(run)] == ["train"]
    for record in (run / "records").rglob("*.json"):
        record.unlink()
    assert "removed: 1 stores" in invoke("cache", "gc", "--unused", "--out", run, "--yes").stdout
    assert stores(run) == set()


def test_a_dry_run_says_what_would_go_and_removes_nothing(run: Path) -> None:
    for record in (run / "records").rglob("*.json"):
        record.unlink()
    before = stores(run)
    told = invoke("cache", "gc", "--unused", "--dry-run", "--yes", "--out", run)
    assert told.exit_code == 0
    assert "would be removed: 2 stores" in told.stdout
    assert stores(run) == before


def test_gc_asks_and_where_nobody_can_be_asked_it_needs_yes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for record in (run / "records").rglob("*.json"):
        record.unlink()
    before = stores(run)
    refused = invoke("cache", "gc", "--unused", "--out", run)
    assert isinstance(refused.exception, UsageError)
    assert "--yes" in str(refused.exception)
    monkeypatch.setattr("vitbench.cli.cache.asked_in_a_terminal", lambda: True)
    assert invoke("cache", "gc", "--unused", "--out", run, answer="n\n").exit_code != 0
    assert stores(run) == before
    assert invoke("cache", "gc", "--unused", "--out", run, answer="y\n").exit_code == 0
    assert stores(run) == set()


@pytest.mark.parametrize("text", ["30", "d", "1y", "-1d", ""])
def test_a_length_of_time_that_cannot_be_meant(run: Path, text: str) -> None:
    error = invoke("cache", "gc", "--older-than", text, "--out", run).exception
    assert isinstance(error, UsageError)
    assert "such as 30d" in str(error)


def test_no_features(tmp_path: Path) -> None:
    for verb in ("ls", "verify", "gc"):
        error = invoke("cache", verb, "--out", tmp_path).exception
        assert isinstance(error, UsageError)
        assert "there are no features at" in str(error)
