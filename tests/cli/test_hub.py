"""The hub, from the command line: a data set and a model, fetched once, then used with no network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel
from typer.testing import CliRunner, Result

from tests.hub_server import COMMIT, Hub, serve_hub, use_hub
from tests.tasks.test_files import table, write_task
from vitbench.cli.main import app


def fresh(*arguments: str, endpoint: str, home: Path, offline: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "VITBENCH_CACHE": str(home / "vitbench")}
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", "vitbench", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200, cwd=home.parent
    )


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is served: a data set, and a model with a trained pooler, its config and its processor."""
    data = tmp_path / "hub" / "datasets" / "someone" / "shoes"
    (data / "data").mkdir(parents=True)
    write_task(data / "data", table([0, 1] * 3), table([0, 1]))
    (data / "data" / "task.yaml").unlink()
    (data / "data" / "unrelated.bin").write_bytes(b"never fetched")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    model = ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes))
    target = tmp_path / "hub" / "models" / "someone" / "tiny-vit"
    model.save_pretrained(target)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(target)
    (tmp_path / "shoes.yaml").write_text(
        f"title: Shoes\nsource: {{kind: hub, repo: someone/shoes, revision: {COMMIT}}}\n"
        "splits: {train: {files: ['data/train-*.parquet'], size: 6}, test: {files: ['data/test-*.parquet']}}\n"
    )
    return tmp_path / "hub"


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(folder) as hub:
        use_hub(monkeypatch, hub.endpoint, folder.parent / "home")
        yield hub


def arguments(folder: Path, out: str) -> list[str]:
    task, place = str(folder.parent / "shoes.yaml"), str(folder.parent / out)
    shots = ["--shots", "1", "--seeds", "1", "--device", "cpu", "--out", place]
    return ["run", "-b", "hf:someone/tiny-vit@main", "-t", task, *shots]


def test_a_task_and_a_model_from_the_hub_then_offline_with_no_request(hub: Hub) -> None:
    first = invoke(*arguments(hub.root, "a"))
    assert first.exit_code == 0, first.output
    assert "3 records written" in first.stdout
    assert {"train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "model.safetensors"} <= set(hub.files())
    assert "unrelated.bin" not in hub.files()
    before = len(hub.log)
    again = invoke(*arguments(hub.root, "b"), "--offline")
    assert again.exit_code == 0, again.output
    assert "3 records written" in again.stdout
    assert [str(request) for request in hub.log[before:]] == []


def test_offline_in_a_fresh_process_that_has_fetched_nothing(folder: Path) -> None:
    with serve_hub(folder) as hub:
        home = folder.parent / "home"
        done = fresh("run", "-b", "hf:someone/tiny-vit", endpoint=hub.endpoint, home=home, offline=True)
    assert done.returncode == 2
    assert "'someone/tiny-vit'" in done.stderr
    assert "hf download someone/tiny-vit" in done.stderr
    assert "Traceback" not in done.stderr
    assert not hub.log


def test_offline_a_task_that_is_not_there_names_the_way_out(hub: Hub) -> None:
    path = str(hub.root.parent / "shoes.yaml")
    done = invoke("run", "-t", path, "--offline", "--out", str(hub.root.parent / "out"))
    assert done.exit_code == 2
    assert "someone/shoes@0123456 is not on this machine, and offline was asked for" in done.stderr
    assert f"run `vitbench fetch --tasks {path}` where there is a network" in done.stderr
    assert not hub.log


def test_without_a_network_the_message_names_the_id_and_the_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", folder.parent / "home")
    done = invoke("run", "-t", str(folder.parent / "shoes.yaml"), "--out", str(folder.parent / "out"))
    assert done.exit_code == 2
    assert "someone/shoes@0123456" in done.stderr
    assert "the hub cannot be reached" in done.stderr
    assert "vitbench fetch --tasks" in done.stderr


def test_a_repository_or_a_commit_that_is_not_there(hub: Hub) -> None:
    file = hub.root.parent / "shoes.yaml"
    text = file.read_text()

    def error(old: str, new: str) -> str:
        file.write_text(text.replace(old, new))
        done = invoke("run", "-t", str(file), "--out", str(hub.root.parent / "out"))
        assert done.exit_code == 2
        return done.stderr

    assert "someone/boots@0123456 does not exist on the hub" in error("someone/shoes", "someone/boots")
    assert "the pinned commit is gone" in error(COMMIT, "f" * 40)
    assert "has no file like 'data/tset-*.parquet'" in error("data/test-*", "data/tset-*")
