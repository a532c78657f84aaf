"""Extraction: every image that is needed goes through the backbone once; what comes out is kept."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import Atom
from vitbench.errors import UsageError
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.features.store import FeatureStore
from vitbench.tasks.task import Split
from vitbench.tasks.transforms import Preprocessing

FLUSH_BYTES = 64 * 2**20
FLUSH_SECONDS = 20.0
CPU_BATCH = 32
GPU_BATCH = 256
PREFETCHED_BATCHES = 2


@dataclass
class ExtractionOptions:
    """How to extract; nothing here changes a feature beyond rounding.

    Attributes:
        batch_size: Images per forward pass; None starts at 256 on a GPU and 32 on a CPU and halves when memory runs out.
        workers: Threads that read and decode images; None takes one per core, at most 16.
        progress: Called with the number of images after each batch.
        message: Called with a line that the user should see.
    """

    batch_size: int | None = None
    workers: int | None = None
    progress: Callable[[int], None] = field(default=lambda images: None)
    message: Callable[[str], None] = field(default=lambda text: None)


def feature_set(
    backbone: Backbone,
    split: Split,
    preprocessing: Preprocessing,
    names: Sequence[str],
    rows: IntArray,
    store: FeatureStore,
    options: ExtractionOptions,
) -> FeatureSet:
    """The features of some rows of a split: read from the store, and embedded first where they are missing.

    Args:
        backbone: The backbone, on its device.
        split: The split.
        preprocessing: How an image becomes pixels.
        names: Canonical representation names.
        rows: The rows wanted, increasing.
        store: Where the features of this identity are kept.
        options: Batch size, workers, progress.

    Raises:
        DataError: An image is broken; what was embedded before it is kept.
        StoreError: The store cannot be written to; what was written before is intact.
        UsageError: Memory does not suffice.
    """
    atoms = {str(atom): atom for name in names for atom in backbone.resolve(name)}
    if store.missing(atoms, rows):
        with store.lock(waiting=lambda: options.message(f"another process is extracting {split.task}; waiting for it")):
            for lacking, lacking_rows in store.missing(atoms, rows).items():
                wanted = frozenset(atoms[name] for name in lacking)
                _embed(backbone, split, preprocessing, wanted, lacking_rows, store, options)
    loaded = store.load(atoms, rows)
    representations = {name: torch.cat([loaded[str(atom)] for atom in backbone.resolve(name)], dim=1) for name in names}
    return FeatureSet(split.labels, rows, representations, store.identity)


def _embed(
    backbone: Backbone,
    split: Split,
    preprocessing: Preprocessing,
    atoms: frozenset[Atom],
    rows: IntArray,
    store: FeatureStore,
    options: ExtractionOptions,
) -> None:
    """Embed `rows` in batches and append shards; a shard is whole batches, so that a resumed run forms the same batches."""
    size = options.batch_size or (CPU_BATCH if backbone.device.type == "cpu" else GPU_BATCH)
    forward = _BackingOff(backbone, preprocessing, atoms, size, options)
    pending: list[tuple[IntArray, dict[Atom, Tensor]]] = []
    flushed = time.monotonic()

    def flush() -> None:
        if pending:
            features = {str(atom): torch.cat([part[atom] for _, part in pending]) for atom in atoms}
            store.append(np.concatenate([batch for batch, _ in pending]), features)
            pending.clear()

    try:
        for batch, pixels in _decoded_batches(split, preprocessing, rows, size, options.workers):
            pending.append((batch, forward(pixels)))
            options.progress(len(batch))
            held = sum(value.nbytes for _, part in pending for value in part.values())
            if held > FLUSH_BYTES or time.monotonic() - flushed > FLUSH_SECONDS:
                flush()
                flushed = time.monotonic()
    finally:
        flush()


def _decoded_batches(
    split: Split, preprocessing: Preprocessing, rows: IntArray, size: int, workers: int | None
) -> Iterator[tuple[IntArray, Tensor]]:
    """Batches of decoded images, read ahead in threads: decoding and resizing release the GIL, so they overlap with compute."""
    workers = workers or min(16, _usable_cores())
    batches = deque(np.split(rows, np.arange(size, len(rows), size)))
    ahead: deque[tuple[IntArray, list[Future[Tensor]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def decode(row: int) -> Tensor:
        return preprocessing.geometry(split.image(row), split.where(row))

    try:
        while batches or ahead:
            while batches and len(ahead) < PREFETCHED_BATCHES:
                batch = batches.popleft()
                ahead.append((batch, [pool.submit(decode, int(row)) for row in batch]))
            batch, futures = ahead.popleft()
            yield batch, torch.stack([future.result() for future in futures])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _usable_cores() -> int:
    """Cores that this process may run on, which in a container is fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _BackingOff:
    """The forward pass, in parts that halve when memory runs out and stay halved."""

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing,
        atoms: frozenset[Atom],
        size: int,
        options: ExtractionOptions,
    ) -> None:
        self.backbone, self.preprocessing, self.atoms, self.options = backbone, preprocessing, atoms, options
        self.size = size

    def __call__(self, pixels: Tensor) -> dict[Atom, Tensor]:
        """Encode one batch of decoded images; atom to `[N, D]` float32 on the CPU."""
        while True:
            try:
                parts = [self._encode(part) for part in torch.split(pixels, self.size)]
                return {atom: torch.cat([part[atom] for part in parts]) for atom in self.atoms}
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)
            # Outside the except clause, where the exception no longer holds the failed pass's tensors.
            if self.backbone.device.type == "cuda":
                torch.cuda.empty_cache()

    def _encode(self, pixels: Tensor) -> dict[Atom, Tensor]:
        if self.backbone.device.type == "cuda":
            pixels = pixels.pin_memory()
        on_device = self.preprocessing.finish(pixels.to(self.backbone.device, non_blocking=True))
        return {atom: value.cpu() for atom, value in self.backbone.encode_atoms(on_device, self.atoms).items()}

    def _halve(self, error: Exception) -> None:
        device = self.backbone.device
        if self.options.batch_size is not None:
            raise UsageError(
                f"out of memory with {self.size} images at once on {device}: use --batch-size auto or a smaller one"
            ) from error
        if self.size == 1:
            raise UsageError(
                f"out of memory with a single image on {device}: use a smaller resolution or model"
            ) from error
        self.size = (self.size + 1) // 2
        self.options.message(f"out of memory on {device}: going on with {self.size} images at once")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(should_reduce_batch_size(error))
