"""The stream of batches: the same bits whatever the workers and the first step, and one line for whatever goes wrong."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.conftest import ImageFolderMaker
from vitbench.errors import DataError, UsageError
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Split
from vitbench.tasks.transforms import parse
from vitbench.training.augment import Geometry, training_geometry
from vitbench.training.recipe import Recipe
from vitbench.training.stream import PART, Batch, TrainingStream, batches

PREPROCESSING = parse("resize(8x8,bilinear)|normalize(0.5,0.5)")
PLAIN = training_geometry(Recipe(crop="none", flip=False), PREPROCESSING)
RANDOM = training_geometry(Recipe(crop="inception", randaugment="rand-m9-n2-mstd0.5"), PREPROCESSING)


@pytest.fixture
def split(image_folder: ImageFolderMaker) -> Split:
    """Of 18 images in 3 classes."""
    return load_task(f"imagefolder:{image_folder()}").train


def stream(
    split: Split,
    geometry: Geometry = RANDOM,
    *,
    seed: int = 0,
    batch_size: int = 5,
    start_step: int = 0,
    steps: int = 9,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    return batches(
        split, geometry, seed=seed, batch_size=batch_size, start_step=start_step, steps=steps, workers=workers
    )


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) for first, second in zip(one, two, strict=True) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("geometry", [training_geometry(Recipe(), PREPROCESSING), RANDOM], ids=["plain", "randaugment"])
def test_workers_change_nothing(split: Split, geometry: Geometry, workers: int) -> None:
    assert same(list(stream(split, geometry, workers=workers)), list(stream(split, geometry)))


def test_the_first_step_changes_nothing(split: Split) -> None:
    whole = list(stream(split))
    assert len(whole) == 9
    for start in range(10):
        assert same(list(stream(split, start_step=start)), whole[start:])
    assert same(list(stream(split, start_step=4, workers=2)), whole[4:])


def test_parts_change_nothing(split: Split) -> None:
    large = list(stream(split, batch_size=2 * PART + 6, steps=2, workers=2))
    small = list(stream(split, batch_size=PART + 3, steps=4))
    for index in (0, 1):
        assert torch.equal(torch.cat([batch[index] for batch in large]), torch.cat([batch[index] for batch in small]))


def test_batches_have_shape_and_type(split: Split) -> None:
    for pixels, labels in stream(split, workers=1, steps=2):
        assert (pixels.shape, pixels.dtype) == ((5, 3, 8, 8), torch.uint8)
        assert (labels.shape, labels.dtype) == ((5,), torch.int64)
    pixels, _ = next(stream(split, training_geometry(Recipe(crop="inception"), PREPROCESSING)))
    assert pixels.dtype == torch.float32


def test_each_epoch_is_another_permutation(split: Split) -> None:
    samples = TrainingStream(split, PLAIN, seed=3)
    epochs = [[samples.row(epoch * 18 + index) for index in range(18)] for epoch in range(4)]
    assert all(sorted(rows) == list(range(18)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4
    assert [TrainingStream(split, PLAIN, seed=4).row(position) for position in range(18)] not in epochs


def test_every_image_comes_with_its_label_once_an_epoch(split: Split) -> None:
    seen = torch.cat([pixels for pixels, _ in stream(split, PLAIN, batch_size=6, steps=3)])
    labels = torch.cat([labels for _, labels in stream(split, PLAIN, batch_size=6, steps=3)])
    for row in range(18):
        found = (seen == PLAIN(split.image(row), np.random.default_rng(), "")).flatten(1).all(1)
        assert labels[found].tolist() == [split.labels[row]]


def test_samples_are_drawn_anew_in_each_epoch(split: Split) -> None:
    samples = TrainingStream(split, training_geometry(Recipe(crop="inception"), PREPROCESSING), seed=0)
    first = {samples.row(position): samples[position][0] for position in range(18)}
    second = {samples.row(position): samples[position][0] for position in range(18, 36)}
    assert not any(torch.equal(first[row], second[row]) for row in range(18))


def test_an_order_is_drawn_once_an_epoch(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    original = np.random.default_rng

    def counting(key: list[int]) -> np.random.Generator:
        if key[1] == 0:
            drawn.append(key[2])
        return original(key)

    monkeypatch.setattr(np.random, "default_rng", counting)
    list(stream(split, PLAIN, steps=12))  # 60 samples: 4 epochs of 18, batches that straddle two
    assert drawn == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_generator_is_touched(split: Split, workers: int) -> None:
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    list(stream(split, workers=workers))
    assert random.getstate() == before[0]
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_line_when_its_batch_is_due(image_folder: ImageFolderMaker, workers: int) -> None:
    folder = image_folder()
    whole = load_task(f"imagefolder:{folder}").train
    row = TrainingStream(whole, PLAIN, seed=0).row(12)
    broken = Path(sorted((folder / "train").rglob("*.png"))[row])
    broken.write_bytes(broken.read_bytes()[:200])
    found = stream(load_task(f"imagefolder:{folder}").train, PLAIN, workers=workers)
    next(found)
    next(found)
    with pytest.raises(DataError) as raised:
        next(found)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(
        f"row {row} (train/{broken.parent.name}/{broken.name}): the image cannot be decoded"
    )
    assert not children()  # although the frames of the error are at hand


def test_a_mapped_file_survives_the_fork(tmp_path: Path) -> None:
    def png(colour: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    for name in ("train", "test"):
        images = [{"bytes": png(colour), "path": None} for colour in range(200)]
        table = pa.table({"image": images, "label": [colour % 2 for colour in range(200)]})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=16)
    path = tmp_path / "task.yaml"
    path.write_text(
        "title: T\nsource: {kind: parquet}\nsplits: {train: {files: [train.parquet]}, test: {files: [test.parquet]}}\n"
    )
    split = load_task(str(path)).train
    split.image(0)
    found = list(stream(split, PLAIN, batch_size=50, steps=8, workers=2))
    colours = torch.cat([pixels[:, 0, 0, 0] for pixels, _ in found])
    assert sorted(colours.tolist()) == sorted(2 * list(range(200)))
    assert torch.equal(colours % 2, torch.cat([labels for _, labels in found]))


def test_workers_leave_signals_to_the_parent_and_end_with_the_stream(split: Split) -> None:
    found = stream(split, workers=2, steps=200)
    first = next(found)
    workers = children()
    assert len(workers) == 2
    for pid in workers:
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert same([first, *(next(found) for _ in range(60))], list(stream(split, steps=61)))
    found.close()
    assert not children()


def test_a_killed_worker_is_one_line(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,)
    )  # seconds between its looks
    handler = signal.getsignal(signal.SIGCHLD)
    found = stream(split, workers=1, steps=200)
    next(found)
    assert signal.getsignal(signal.SIGCHLD) is handler
    (pid,) = children()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)  # nothing is raised here
    with pytest.raises(
        UsageError, match=r"^a process that reads training images died \(DataLoader worker .*fewer workers"
    ) as raised:
        list(found)
    assert "\n" not in str(raised.value)


def test_a_process_ends_with_its_stream_under_way(image_folder: ImageFolderMaker) -> None:
    program = (
        "import sys, signal; from tests.training.test_stream import *; "
        "found = stream(load_task(sys.argv[1]).train, workers=1, steps=200); next(found); "
        "signal.signal(signal.SIGTERM, lambda *_: None); print('going', flush=True); raise SystemExit(3)"
    )
    command = [sys.executable, "-c", program, f"imagefolder:{image_folder()}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "going\n", "")


def test_another_error_in_a_worker_keeps_its_traceback(split: Split) -> None:
    def faulty(image: Image.Image, rng: np.random.Generator, where: str) -> torch.Tensor:
        raise RuntimeError("a bug")

    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a bug"):
            next(stream(split, faulty, workers=workers))


def test_nothing_is_left_to_do(split: Split) -> None:
    assert list(stream(split, start_step=9, workers=1)) == []
