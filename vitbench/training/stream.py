"""The stream of training batches: a pure function of the seed and the step, whatever the number of worker processes.

Position p of the stream belongs to epoch p // N, of N images. The order within epoch e is `permutation(N)` of
`default_rng([seed, 0, e])`, and all that is drawn for one sample comes from `default_rng([seed, 1, p])`. So a run that resumes at
step k needs no state of the data, only k; and batches straddle epochs, so that none is short. (The 0 is there because NumPy takes
`[seed, 1]` and `[seed, 1, 0]` for the same seed.)
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vitbench.errors import UsageError, VitbenchError, first_line
from vitbench.tasks.sources.rows import IntArray
from vitbench.tasks.task import Split
from vitbench.training.augment import Geometry

PART = 32
MOST_PARTS_AHEAD = 64

Sample = tuple[Tensor, int]
"""`[3, H, W]` uint8, or float32 in 0..255, and a label."""
Batch = tuple[Tensor, Tensor]
"""`[B, 3, H, W]` uint8, or float32 in 0..255, and `[B]` int64."""


class TrainingStream(Dataset[Sample]):
    """Positions of the stream to samples, drawn anew for every position."""

    def __init__(self, split: Split, geometry: Geometry, *, seed: int) -> None:
        """Nothing is read yet.

        Args:
            split: The images and labels.
            geometry: What is done to an image.
            seed: The run's, at least 0.
        """
        self.split, self.geometry, self.seed = split, geometry, seed
        self._orders: dict[int, IntArray] = {}

    def __getitem__(self, position: int) -> Sample:
        """`[3, H, W]` pixels and the label of one position.

        Raises:
            DataError: The image is broken; its row and file are named.
        """
        row = self.row(position)
        rng = np.random.default_rng([self.seed, 1, position])
        return self.geometry(self.split.image(row), rng, self.split.where(row)), int(self.split.labels[row])

    def __getitems__(self, positions: Sequence[int]) -> Batch | VitbenchError:
        """The batch of some positions; or the error of the first of its images that is broken.

        The error takes the place of the batch because a `DataLoader` would write a worker's traceback into one that is raised.
        """
        try:
            samples = [self[position] for position in positions]
        except VitbenchError as error:
            return error
        return torch.stack([pixels for pixels, _ in samples]), torch.tensor([label for _, label in samples])

    def row(self, position: int) -> int:
        """The row of the split that a position holds."""
        epoch, index = divmod(position, len(self.split))
        if epoch not in self._orders:
            # A batch may straddle two epochs: the one before is kept.
            self._orders = {kept: order for kept, order in self._orders.items() if kept == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.split))
        return int(self._orders[epoch][index])


def batches(
    split: Split,
    geometry: Geometry,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    steps: int,
    workers: int,
    pin_memory: bool = False,
    share: Sequence[int] | None = None,
) -> Generator[Batch, None, None]:
    """The batches of steps `start_step` to `steps - 1`, in order, read ahead by worker processes.

    The workers make a batch together, in parts of at most 32 images, and are about one batch ahead, however many they are. No
    global generator is touched.

    Args:
        split: The images and labels.
        geometry: What is done to an image.
        seed: The run's, at least 0.
        batch_size: Images in a batch.
        start_step: The first step.
        steps: One more than the last step.
        workers: Processes that decode and augment; with 0, or where processes cannot be forked, this one does.
        pin_memory: Put batches into page-locked memory, from which they go to a GPU without waiting.
        share: Numbers, within a batch, of the images that are given; None for all. Several processes share a batch.

    Raises:
        DataError: An image is broken, when its batch is asked for; its row and file are named.
        UsageError: A worker process was killed.
    """
    forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    own = range(batch_size) if share is None else share
    parts = math.ceil(len(own) / PART)
    loader = DataLoader(
        TrainingStream(split, geometry, seed=seed),
        batch_sampler=_positions(batch_size, own, start_step, steps),
        collate_fn=_as_it_is,
        num_workers=workers if forks else 0,
        prefetch_factor=min(parts, MOST_PARTS_AHEAD) // workers + 1 if forks else None,
        multiprocessing_context="fork" if forks else None,
        worker_init_fn=_leave_signals_to_the_parent if forks else None,
        generator=torch.Generator(),  # else the loader would draw a seed for its workers from the global generator
    )
    return _assembled(loader, len(own), max(0, steps - start_step), pin_memory)


def _positions(batch_size: int, own: Sequence[int], start_step: int, steps: int) -> Iterator[list[int]]:
    """The positions of each part of each batch."""
    for step in range(start_step, steps):
        for begin in range(0, len(own), PART):
            yield [step * batch_size + number for number in own[begin : begin + PART]]


def _assembled(
    loader: DataLoader[Sample], batch_size: int, count: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    """`count` batches of the parts that a loader gives; the death of a worker is told in one line."""
    try:
        with _running(loader) as parts:
            for _ in range(count):
                yield _batch(parts, batch_size, pin_memory)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UsageError(
            f"a process that reads training images died ({first_line(error)}): memory, or shared memory (/dev/shm), may have "
            f"run out; use fewer workers, or 0 to read in the main process"
        ) from error


@contextmanager
def _running(loader: DataLoader[Sample]) -> Iterator[Iterator[Any]]:
    """The loader's iterator; its workers end with the block, or with the process where the block is never left.

    PyTorch ends them when the iterator is freed, which an exception that is still at hand, or shown, puts off; and where it comes
    to the end of the process it asks by SIGTERM, which they do not hear.
    """
    with _child_signal_as_it_was(), _ending_signals_held():
        parts = iter(loader)

    def end() -> None:
        if isinstance(parts, _MultiProcessingDataLoaderIter):
            parts._shutdown_workers()
            for worker in parts._workers:
                worker.kill()  # what still decodes after PyTorch's 5 seconds

    atexit.register(end)
    over = (
        sys.is_finalizing
    )  # kept here, as a stream that is freed when the interpreter is torn down finds its globals gone
    try:
        yield parts
    finally:
        if not over():
            atexit.unregister(end)
            end()


def _batch(parts: Iterator[Batch | VitbenchError], batch_size: int, pin_memory: bool) -> Batch:
    """The next batch; an error in the place of a part is raised."""
    pixels, labels, filled = torch.empty(0), torch.empty(batch_size, dtype=torch.int64, pin_memory=pin_memory), 0
    while filled < batch_size:
        part = next(parts)
        if isinstance(part, VitbenchError):
            raise part
        if not filled:
            pixels = torch.empty((batch_size, *part[0].shape[1:]), dtype=part[0].dtype, pin_memory=pin_memory)
        end = filled + len(part[1])
        pixels[filled:end], labels[filled:end] = part
        filled = end
    return pixels, labels


@contextmanager
def _child_signal_as_it_was() -> Iterator[None]:
    """Keep the handler of SIGCHLD: PyTorch's raises the death of a worker wherever the main thread happens to be just then.

    Without it the same error comes, at the latest 5 seconds after, where the next part is waited for.
    """
    can = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if can else None
    yield
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _ending_signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while workers are forked: these inherit that, and so have them held from their first moment.

    The parent gets afterwards what came meanwhile.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(batch: Any) -> Any:
    """What the stream gives is a batch already."""
    return batch


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole group of processes: the parent needs its workers until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
