"""Checkpoints: whole or absent, of one training alone, and everything that the next update depends on in them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from vitbench.errors import StoreError
from vitbench.training import checkpoints as module
from vitbench.training.checkpoints import Checkpoints, restore_state, training_state

STATE = {"model.weight": torch.arange(6.0).reshape(2, 3), "random.cpu": torch.get_rng_state()}


def saved(folder: Path, *steps: int, keep: int = 2, identity: str = "one") -> Checkpoints:
    found = Checkpoints(folder, identity, keep)
    for step in steps:
        found.save(step, {name: value + 0 for name, value in STATE.items()}, {"step": step, "recent": [[0.1, 0.5]]})
    return found


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    loaded = saved(tmp_path, 7).load()
    assert loaded is not None
    step, tensors, values = loaded
    assert (step, values) == (7, {"step": 7, "recent": [[0.1, 0.5]]})
    assert all(torch.equal(tensors[name], value) for name, value in STATE.items())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007.safetensors"]


def test_nothing_there(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", "one").load() is None
    assert Checkpoints(tmp_path / "none", "one").steps() == []


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (2, [30, 40]), (9, [10, 20, 30, 40])])
def test_the_newest_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    (tmp_path / "step-notes.safetensors").write_text("not one of ours")
    assert saved(tmp_path, 10, 20, 30, 40, keep=keep).steps() == left
    assert (tmp_path / "step-notes.safetensors").exists()


def test_another_training_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    with pytest.raises(
        StoreError, match=r"step-00000003\.safetensors is a checkpoint of another training .* move it away"
    ):
        Checkpoints(tmp_path, "two").load()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 99])
def test_a_damaged_one_is_passed_over(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    found = saved(tmp_path, 10, 20)
    newest = found.path(20)
    newest.write_bytes(damage(newest.read_bytes()))
    loaded = found.load()
    assert loaded is not None
    assert loaded[0] == 10
    assert found.damaged == [newest]
    # Going on from 10, with one kept: the damaged one must not take the place of the good one.
    again = saved(tmp_path, 15, keep=1)
    assert again.steps() == [15]
    loaded = again.load()
    assert loaded is not None
    assert loaded[0] == 15


def test_all_damaged_is_none(tmp_path: Path) -> None:
    found = saved(tmp_path, 10)
    found.path(10).write_bytes(b"no")
    assert found.load() is None
    assert found.damaged == [found.path(10)]


def test_removing_from_a_step_and_clearing(tmp_path: Path) -> None:
    found = saved(tmp_path, 1, 2, 3, 4, keep=9)
    found.remove_from(3)
    assert found.steps() == [1, 2]
    found.clear()
    assert not tmp_path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    found = Checkpoints(small_disk, "one")
    large = {"model.weight": torch.zeros(30_000)}
    found.save(10, large, {})
    before = found.path(10).read_bytes()
    with pytest.raises(StoreError) as caught:
        found.save(20, {"model.weight": torch.zeros(60_000)}, {})
    assert str(caught.value) == (
        f"the checkpoint of step 20 cannot be written to {small_disk}: the disk is full; with that mended, the same command goes "
        "on from step 10, whose checkpoint is whole"
    )
    assert found.path(10).read_bytes() == before
    assert [path.name for path in small_disk.iterdir()] == ["step-00000010.safetensors"]


def test_a_full_disk_by_any_error_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = saved(tmp_path, 1000)

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(StoreError) as caught:
        found.save(2000, STATE, {})
    assert str(caught.value).count("disk is full") == 1
    assert "goes on from step 1,000, whose checkpoint is whole" in str(caught.value)
    found.clear()
    with pytest.raises(StoreError, match="the disk is full; with that mended, the same command begins anew"):
        found.save(5, STATE, {})


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.drop(self.norm(self.first(x)).relu()))
        return found


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, average: ModelEmaV3, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    x, y = torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    average.update(model)


@pytest.mark.parametrize("name", ["momentum", "sgd", "adamw", "lamb"])
def test_going_on_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer, ModelEmaV3]:
        model = _Model()
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=0.1, weight_decay=0.05)
        return model, optimizer, ModelEmaV3(model, decay=0.9)

    model, optimizer, average = begin()
    for number in range(4):
        _step(model, optimizer, average, number)
    tensors, values = training_state(model, optimizer, average)
    checkpoints = Checkpoints(tmp_path, "one")
    checkpoints.save(4, tensors, values)
    for number in range(4, 9):
        _step(model, optimizer, average, number)
    expected, _ = training_state(model, optimizer, average)

    model, optimizer, average = begin()
    torch.manual_seed(99)
    loaded = checkpoints.load()
    assert loaded is not None
    restore_state(loaded[1], loaded[2], model, optimizer, average)
    for number in range(4, 9):
        _step(model, optimizer, average, number)
    found, _ = training_state(model, optimizer, average)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
