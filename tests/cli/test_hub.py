"""The hub code, for real, against a server on 127.0.0.1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from tests.hub_server import COMMIT, serve_hub
from tests.tasks.test_files import table, write_task


def vitbench(*arguments: str, endpoint: str, home: Path, offline: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", "vitbench", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200, cwd=home.parent
    )


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder to serve: a data set in two train shards, and a model with a trained pooler."""
    data = tmp_path / "hub" / "datasets" / "someone" / "shoes"
    (data / "data").mkdir(parents=True)
    write_task(data / "data", table([0, 1] * 3), table([0, 1]))
    (data / "data" / "task.yaml").unlink()
    (data / "data" / "unrelated.bin").write_bytes(b"never fetched")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    model = ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes))
    folder = tmp_path / "hub" / "models" / "someone" / "tiny-vit"
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    (tmp_path / "shoes.yaml").write_text(
        f"title: Shoes\nsource: {{kind: hub, repo: someone/shoes, revision: {COMMIT}}}\n"
        "splits: {train: {files: ['data/train-*.parquet'], size: 6}, test: {files: ['data/test-*.parquet']}}\n"
    )
    return tmp_path / "hub"


def test_a_task_and_a_model_from_the_hub_then_from_the_cache(hub: Path, tmp_path: Path) -> None:
    arguments = (
        "run",
        "-b",
        "hf:someone/tiny-vit@main",
        "-t",
        str(tmp_path / "shoes.yaml"),
        "--shots",
        "1",
        "--seeds",
        "1",
    )
    with serve_hub(hub) as (endpoint, requests):
        first = vitbench(*arguments, "--out", str(tmp_path / "a"), endpoint=endpoint, home=tmp_path / "home")
    assert first.returncode == 0, first.stderr
    assert "3 records written" in first.stdout
    assert any("train-00000-of-00001.parquet" in request for request in requests)
    assert not any("unrelated.bin" in request for request in requests)
    again = vitbench(
        *arguments, "--out", str(tmp_path / "b"), endpoint="http://127.0.0.1:9", home=tmp_path / "home", offline=True
    )
    assert again.returncode == 0, again.stderr
    assert "3 records written" in again.stdout


def test_without_a_network_the_message_names_the_id_and_the_way_out(hub: Path, tmp_path: Path) -> None:
    dead = "http://127.0.0.1:9"
    task = vitbench("run", "-t", str(tmp_path / "shoes.yaml"), endpoint=dead, home=tmp_path / "home", offline=True)
    assert task.returncode == 2
    assert "someone/shoes@0123456" in task.stderr
    assert "hf download --repo-type dataset" in task.stderr
    assert "Traceback" not in task.stderr
    model = vitbench("run", "-b", "hf:someone/tiny-vit", endpoint=dead, home=tmp_path / "home", offline=True)
    assert model.returncode == 2
    assert "someone/tiny-vit" in model.stderr
    assert "hf download" in model.stderr
    assert "Traceback" not in model.stderr


def test_a_repository_or_a_commit_that_is_not_there(hub: Path, tmp_path: Path) -> None:
    file = tmp_path / "shoes.yaml"
    text = file.read_text()
    with serve_hub(hub) as (endpoint, _):
        file.write_text(text.replace("someone/shoes", "someone/boots"))
        gone = vitbench("run", "-t", str(file), endpoint=endpoint, home=tmp_path / "home")
        file.write_text(text.replace(COMMIT, "f" * 40))
        moved = vitbench("run", "-t", str(file), endpoint=endpoint, home=tmp_path / "home")
        file.write_text(text.replace("data/test-*", "data/tset-*"))
        misspelt = vitbench("run", "-t", str(file), endpoint=endpoint, home=tmp_path / "home")
    assert "someone/boots@0123456 does not exist on the hub" in gone.stderr
    assert "the pinned commit is gone" in moved.stderr
    assert "has no file like 'data/tset-*.parquet'" in misspelt.stderr
    assert {gone.returncode, moved.returncode, misspelt.returncode} == {2}
