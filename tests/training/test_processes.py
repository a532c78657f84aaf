"""Several processes that share a training: what each takes, and that two come to what one comes to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ImageFolderMaker
from vitbench.errors import UsageError
from vitbench.tasks.catalog import load_task
from vitbench.training import history, processes
from vitbench.training.loop import check_batch
from vitbench.training.recipe import Recipe


def as_one_of(count: int, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", count), ("RANK", index), ("LOCAL_RANK", index)):
        monkeypatch.setenv(name, str(value))


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.count(), processes.index(), processes.is_main()) == (1, 0, True)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert processes.count() == 1, "a scheduler's variable, and no launcher's"
    assert processes.summed([1.5, 2], torch.device("cpu")) == [1.5, 2]
    assert processes.share(4) == [0, 1, 2, 3]
    processes.wait()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("size", [8, 9, 12, 32])
def test_shares_are_a_partition_in_mirrored_pairs(count: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for index in range(count):
        as_one_of(count, index, monkeypatch)
        shares.append(processes.share(size))
    assert sorted(number for share in shares for number in share) == list(range(size))
    for share in shares:
        assert share == sorted(share)
        assert [size - 1 - number for number in reversed(share)] == share, "mixup mixes a batch with its reverse"


def test_a_batch_too_small_to_be_shared(image_folder: ImageFolderMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load_task(f"imagefolder:{image_folder()}").train
    as_one_of(4, 1, monkeypatch)
    with pytest.raises(
        UsageError, match=r"batch_size 7 is too small to be shared by 4 processes: .* --set batch_size=8"
    ):
        check_batch(Recipe(batch_size=7), split)
    check_batch(Recipe(batch_size=8), split)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed processes")
def test_two_processes_train_as_one_does(image_folder: ImageFolderMaker, tiny_vit: str, tmp_path: Path) -> None:
    fields = ["steps=8", "warmup_steps=2", "batch_size=6", "learning_rate=0.1", "mixup=0.3", "ema_decay=0.5"]
    run = ["run", "-b", tiny_vit, "-t", f"imagefolder:{image_folder()}", "--recipe", "light", "-r", "gap"]
    run += [part for text in fields for part in ("--set", text)]
    run += ["--device", "cpu", "--dtype", "float32", "--tracker", "none"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = {}
    for out, before in (("one", []), ("two", launch)):
        command = [sys.executable, *before, "-m", "vitbench", *run, "-o", out]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250, env=environment
        )
        assert done.returncode == 0, done.stderr
        told[out] = done
    assert told["two"].stdout.count("1 records written, 0 there already") == 1, "the main process alone prints"
    assert told["two"].stderr.count("8 steps in") == 1
    found = []
    for out in ("one", "two"):
        (path,) = (tmp_path / out / "records").rglob("*.json")
        (model,) = (tmp_path / out / "models").iterdir()
        entries = history.read_history(path.with_suffix(".history.jsonl"))
        found.append((json.loads(path.read_text()), load_file(model / "model.safetensors"), entries))
    (one, weights, curve), (two, shared, other) = found
    assert one["key"] == two["key"]
    assert one["scores"]["accuracy"] == pytest.approx(two["scores"]["accuracy"], abs=1 / 12 + 1e-9)
    assert weights.keys() == shared.keys()
    for name, value in weights.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-5)
    assert not np.allclose(weights["blocks.0.attn.qkv.weight"], 0)
    np.testing.assert_allclose([entry.loss for entry in other], [entry.loss for entry in curve], rtol=1e-4)
    assert [entry.step for entry in other] == list(range(1, 9))
    assert [entry.accuracy for entry in other] == [entry.accuracy for entry in curve]
