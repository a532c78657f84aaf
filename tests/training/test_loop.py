"""The training loop: the same weights to the bit however often it is interrupted, and one line for whatever goes wrong."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import ImageFolderMaker
from vitbench.backbones.load import load_backbone
from vitbench.errors import StoppedError, StoreError, UsageError
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Split
from vitbench.tasks.transforms import Preprocessing, parse
from vitbench.training import checkpoints as checkpoints_module
from vitbench.training import history
from vitbench.training.checkpoints import Checkpoints
from vitbench.training.evaluate import predict
from vitbench.training.loop import HISTORY, DivergedError, train
from vitbench.training.options import CPU_AT_ONCE, TrainingOptions
from vitbench.training.recipe import Recipe
from vitbench.training.trainee import Trainee

PREPROCESSING: Preprocessing = parse("resize(32x32,bilinear)|normalize(0.5,0.5)")
STEPS = 24
PLAIN = {"learning_rate": 0.05, "steps": STEPS, "warmup_steps": 3, "batch_size": 4}
RICH = PLAIN | {
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "ema_decay": 0.9,
    "mixup": 0.4,
    "cutmix": 0.5,
    "label_smoothing": 0.1,
    "dropout": 0.2,
    "drop_path": 0.2,
    "head_dropout": 0.1,
    "erase": 0.3,
    "randaugment": "rand-m9-n2-mstd0.5",
    "layer_decay": 0.8,
    "weight_decay": 0.05,
}


@pytest.fixture
def split(image_folder: ImageFolderMaker) -> Split:
    """Of 18 images in 3 classes."""
    return load_task(f"imagefolder:{image_folder()}").train


Training = Callable[..., tuple[dict[str, Tensor], dict[str, Any]]]


@pytest.fixture
def training(split: Split, tiny_vit: str) -> Training:
    backbone = load_backbone(tiny_vit, device="cpu")

    def run(fields: dict[str, Any], folder: Path, **given: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A training from the beginning, or on; the weights and what is measured."""
        recipe = Recipe.model_validate(fields)
        identity, seed = given.pop("identity", "one"), given.pop("seed", 0)
        options = TrainingOptions(**{"workers": 0, **given})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trainee = Trainee(backbone, "cls", 3, recipe)
            measured = train(
                trainee,
                split,
                PREPROCESSING,
                recipe,
                seed=seed,
                num_classes=3,
                folder=folder,
                identity=identity,
                options=options,
            )
        return {name: value.clone() for name, value in trainee.state_dict().items()}, measured

    return run


def stopping_at(step: int, number: int = signal.SIGTERM) -> dict[str, Any]:
    """Options under which the process gets a signal after an update."""
    done = 0

    def progress(steps: int, text: str) -> None:
        nonlocal done
        done += steps
        if done == step:
            os.kill(os.getpid(), number)

    return {"progress": progress}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def curve(folder: Path) -> list[tuple[float, ...]]:
    """The history but for speeds and seconds."""
    entries = history.read_history(folder / HISTORY)
    return [(entry.step, entry.loss, entry.accuracy, entry.learning_rate) for entry in entries]


@pytest.mark.parametrize("fields", [PLAIN, RICH], ids=["plain", "rich"])
def test_interrupted_at_three_random_steps_it_ends_the_same(
    fields: dict[str, Any], training: Training, tmp_path: Path
) -> None:
    weights, measured = training(fields, tmp_path / "whole")
    told: list[str] = []
    steps = sorted(random.Random(str(fields)).sample(range(2, STEPS - 1), 3))
    for step in steps:
        with pytest.raises(
            StoppedError, match=rf"stopped after {step + 1} of 24 steps; the state is saved in .*: run the same"
        ) as caught:
            training(fields, tmp_path / "parts", workers=step % 3, message=told.append, **stopping_at(step))
        assert caught.value.status == 143
    again, measured_again = training(fields, tmp_path / "parts", message=told.append)
    assert same(weights, again)
    assert measured == measured_again
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")
    assert told == [f"going on from the checkpoint of step {step + 1} of 24" for step in steps]
    assert len(curve(tmp_path / "whole")) == STEPS


class _Killed(BaseException):
    """The process is gone."""


def test_killed_it_goes_on_from_the_last_checkpoint(training: Training, tmp_path: Path) -> None:
    weights, _ = training(RICH, tmp_path / "whole")
    calls = 0

    def kill(steps: int, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 13:
            raise _Killed

    with pytest.raises(_Killed):
        training(RICH, tmp_path / "parts", every_steps=5, progress=kill)
    assert Checkpoints(tmp_path / "parts" / "checkpoints", "one").steps() == [5, 10]
    assert len(curve(tmp_path / "parts")) == 13, "three lines more than the checkpoint has"
    again, _ = training(RICH, tmp_path / "parts", every_steps=7, keep=1)
    assert same(weights, again)
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")
    assert Checkpoints(tmp_path / "parts" / "checkpoints", "one").steps() == [21]


def test_checkpoints_by_the_clock(training: Training, tmp_path: Path) -> None:
    training(PLAIN, tmp_path, every_seconds=1e-9, keep=3)
    assert Checkpoints(tmp_path / "checkpoints", "one").steps() == [21, 22, 23]


def test_a_damaged_checkpoint_is_told_and_passed_over(training: Training, tmp_path: Path) -> None:
    weights, _ = training(PLAIN, tmp_path / "whole")
    with pytest.raises(StoppedError):
        training(PLAIN, tmp_path / "parts", every_steps=4, **stopping_at(9))
    newest = Checkpoints(tmp_path / "parts" / "checkpoints", "one").path(10)
    newest.write_bytes(newest.read_bytes()[:1000])
    told: list[str] = []
    again, _ = training(PLAIN, tmp_path / "parts", message=told.append)
    assert told == [
        f"the checkpoint {newest} is damaged and passed over",
        "going on from the checkpoint of step 8 of 24",
    ]
    assert same(weights, again)


def test_a_checkpoint_of_another_run(training: Training, tmp_path: Path) -> None:
    training(PLAIN, tmp_path, every_steps=10)
    with pytest.raises(
        StoreError, match=r"is a checkpoint of another training .*: move it away, or choose another --out"
    ):
        training(PLAIN, tmp_path, identity="two")


def test_ctrl_c_and_handlers_as_before(training: Training, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError) as caught:
        training(PLAIN, tmp_path, **stopping_at(4, signal.SIGINT))
    assert caught.value.status == 130
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_stopped_after_the_last_update(training: Training, tmp_path: Path) -> None:
    weights, measured = training(PLAIN, tmp_path / "whole")
    with pytest.raises(StoppedError):
        training(PLAIN, tmp_path / "parts", **stopping_at(STEPS - 1))
    again, measured_again = training(PLAIN, tmp_path / "parts")
    assert same(weights, again)
    assert measured == measured_again


def test_workers_and_parts_change_nothing_but_rounding(training: Training, tmp_path: Path) -> None:
    weights, measured = training(PLAIN, tmp_path / "one")
    others, _ = training(PLAIN, tmp_path / "two", workers=2)
    assert same(weights, others)
    parts, in_parts = training(PLAIN, tmp_path / "three", batch_size=3)
    assert not same(weights, parts)
    for name, value in weights.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4)
    assert in_parts["train_loss"] == pytest.approx(measured["train_loss"], rel=1e-4)
    assert (measured["images_at_once"], in_parts["images_at_once"]) == (CPU_AT_ONCE, 3)


def test_what_is_measured_is_over_the_last_tenth(training: Training, tmp_path: Path) -> None:
    _, measured = training(PLAIN | {"steps": 12}, tmp_path)
    assert measured["train_loss"] == curve(tmp_path)[-1][1]
    _, measured = training(PLAIN | {"steps": 21}, tmp_path / "more")
    assert measured["train_loss"] == pytest.approx(np.mean([line[1] for line in curve(tmp_path / "more")[-2:]]))


def test_it_learns(training: Training, tmp_path: Path) -> None:
    _, measured = training(PLAIN | {"steps": 80, "crop": "none", "flip": False, "batch_size": 12}, tmp_path)
    assert measured["train_accuracy"] > 0.9
    assert measured["train_loss"] < 0.5 * math.log(3)


def test_the_average_is_what_is_left(training: Training, tmp_path: Path) -> None:
    plain, _ = training(PLAIN, tmp_path / "one")
    averaged, _ = training(PLAIN | {"ema_decay": 0.9}, tmp_path / "two")
    assert plain.keys() == averaged.keys()
    assert float(averaged["head.weight"].norm()) < float(plain["head.weight"].norm())


def test_divergence_names_the_last_good_checkpoint(training: Training, tmp_path: Path) -> None:
    fields = PLAIN | {"learning_rate": 1e6, "clip_norm": None}
    with pytest.raises(DivergedError) as caught:
        training(fields, tmp_path, every_steps=1, keep=5)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith("training diverged at step ")
    assert "where a guess has 1.1" in told
    assert told.endswith("use a lower learning_rate than 1e+06, or a longer warm-up")
    good = Checkpoints(tmp_path / "checkpoints", "one").steps()
    assert good, "the first update has rate 0, so that the weights after it are good"
    assert f"the last good checkpoint is {Checkpoints(tmp_path / 'checkpoints', 'one').path(good[-1])}" in told
    step = int(told.removeprefix("training diverged at step ").split(":")[0])
    assert good[-1] < step - 1, "what gave the bad loss is not called good"
    entries = history.read_history(tmp_path / HISTORY)
    assert all(math.isfinite(entry.loss) for entry in entries)
    with pytest.raises(DivergedError, match="; there is no checkpoint; use"):
        training(fields, tmp_path / "none")


def test_a_spike_is_not_the_end(training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.training.loop import _Run

    original, calls = _Run._gradients, []

    def spiked(self: _Run, *batch: Tensor) -> tuple[float, int]:
        loss, hits = original(self, *batch)
        calls.append(loss)
        return (1000.0 if len(calls) == 5 else loss), hits

    monkeypatch.setattr(_Run, "_gradients", spiked)
    training(PLAIN, tmp_path)
    assert curve(tmp_path)[4][1] == 1000.0


def test_nan_ends_it(training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.training.loop import _Run

    monkeypatch.setattr(_Run, "_gradients", lambda self, *batch: (math.nan, 0))
    with pytest.raises(DivergedError, match="training diverged at step 1: the loss is nan"):
        training(PLAIN, tmp_path)


def test_a_full_disk(training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = checkpoints_module.save_file, []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(*arguments)

    monkeypatch.setattr(checkpoints_module, "save_file", fail)
    with pytest.raises(
        StoreError, match=r"the checkpoint of step 10 cannot be written to .*: the disk is full; with that mended"
    ):
        training(PLAIN, tmp_path / "parts", every_steps=5)
    monkeypatch.undo()
    weights, _ = training(PLAIN, tmp_path / "whole")
    again, _ = training(PLAIN, tmp_path / "parts")
    assert same(weights, again)


def test_a_batch_larger_than_the_data(training: Training, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"19 is larger than split 'train' of .*/shoes, which has 18 images: --set batch_size=16",
    ):
        training(PLAIN | {"batch_size": 19}, tmp_path)
    training(PLAIN | {"batch_size": 18, "steps": 4}, tmp_path)


class _Small:
    """Memory for so many images at once."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        original = Trainee.forward

        def forward(trainee: Trainee, pixels: Tensor) -> Tensor:
            self.sizes.append(len(pixels))
            if len(pixels) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(trainee, pixels)

        monkeypatch.setattr(Trainee, "forward", forward)


def test_out_of_memory_halves_what_goes_through_at_once(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = PLAIN | {"batch_size": 16, "dropout": 0.2, "steps": 6}
    told: list[str] = []
    expected, _ = training(fields, tmp_path / "asked", batch_size=4)
    small = _Small(5, monkeypatch)
    weights, measured = training(fields, tmp_path / "found", message=told.append)
    assert told == [f"out of memory on cpu: going on with {size} images at once" for size in (16, 8, 4)]
    assert small.sizes == [16, 16, 8, *[4] * 24]
    assert measured["images_at_once"] == 4
    assert same(expected, weights), "dropout too is drawn anew as if nothing had happened"
    with pytest.raises(UsageError, match="out of memory with 8 images at once on cpu: use a smaller --batch-size"):
        training(fields, tmp_path / "told", batch_size=8)
    _Small(0, monkeypatch)
    with pytest.raises(UsageError, match="out of memory with 1 image at once on cpu: use a smaller"):
        training(fields, tmp_path / "none")


def test_predictions_under_little_memory(split: Split, tiny_vit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainee = Trainee(load_backbone(tiny_vit, device="cpu"), "cls", 3, Recipe(head_init="trunc_normal"))
    rows = np.array([3, 4, 5, 9, 17, 1, 0])
    expected = predict(trainee, split, rows, PREPROCESSING, TrainingOptions())
    assert expected.shape == (7, 3)
    assert trainee.training, "the mode is as before"
    small, told = _Small(3, monkeypatch), list[str]()
    found = predict(trainee, split, rows, PREPROCESSING, TrainingOptions(message=told.append))
    torch.testing.assert_close(found, expected)
    assert told[-1] == "out of memory on cpu: going on with 2 images at once"
    assert small.sizes[-4:] == [2, 2, 2, 1]
    assert predict(trainee, split, rows[:0], PREPROCESSING, TrainingOptions()).shape == (0, 3)


def test_a_cpu_has_no_float16(split: Split, tiny_vit: str, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    backbone.to("cpu", "float16")
    recipe = Recipe.model_validate(PLAIN)
    arguments: dict[str, Any] = {"seed": 0, "num_classes": 3, "folder": tmp_path, "identity": "one"}
    options = TrainingOptions(workers=0)
    with pytest.raises(UsageError, match="a CPU cannot train in float16: --dtype bfloat16 or float32"):
        train(Trainee(backbone, "cls", 3, recipe), split, PREPROCESSING, recipe, options=options, **arguments)
    backbone.to("cpu", "bfloat16")
    short = Recipe.model_validate(PLAIN | {"steps": 5})
    measured = train(Trainee(backbone, "cls", 3, short), split, PREPROCESSING, short, options=options, **arguments)
    assert math.isfinite(measured["train_loss"])


def test_adapters_resume_as_well(training: Training, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    fields = PLAIN | {"lora": {"rank": 2, "dropout": 0.1}}
    weights, _ = training(fields, tmp_path / "whole")
    with pytest.raises(StoppedError):
        training(fields, tmp_path / "parts", **stopping_at(7))
    again, _ = training(fields, tmp_path / "parts")
    assert same(weights, again)
