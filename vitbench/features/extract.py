"""Extraction: every image that is needed goes through the backbone once; what comes out is kept."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import Atom
from vitbench.errors import UsageError
from vitbench.features import heap, profile
from vitbench.features.featureset import FeatureSet, IntArray, LazyRepresentations
from vitbench.features.precision import image_layout, packed_linears
from vitbench.features.store import FeatureStore
from vitbench.features.writer import ShardWriter
from vitbench.tasks.task import Split
from vitbench.tasks.transforms import Preprocessing

CPU_BATCH = 32
SMALLEST_CPU_BATCH = 16
CPU_BATCH_PER_THREAD = 4
GPU_BATCH = 256
PREFETCHED_BATCHES = 2
PREFETCHED_IMAGES = 32
TOKENS = 197
"""Rows of a linear layer per image, as most models have them; what it really is changes no number."""


@dataclass
class ExtractionOptions:
    """How to extract; nothing here changes a feature beyond rounding.

    Attributes:
        batch_size: Images per forward pass; None starts at 256 on a GPU, and on a CPU at 4 per thread from 16 to 32, so that what
            one block hands to the next stays in the processor's cache; it halves when memory runs out.
        workers: Threads that read and decode images; None takes one per core, at most 16.
        progress: Called with the number of images after each batch.
        message: Called with a line that the user should see.
        packed: Lay weights and images out as the CPU likes them, where that is faster; see `precision`.
    """

    batch_size: int | None = None
    workers: int | None = None
    progress: Callable[[int], None] = field(default=lambda images: None)
    message: Callable[[str], None] = field(default=lambda text: None)
    packed: bool = True


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
    extract_missing(backbone, split, preprocessing, names, rows, store, options)
    return stored_features(backbone, split, names, rows, store)


def stored_features(
    backbone: Backbone, split: Split, names: Sequence[str], rows: IntArray, store: FeatureStore
) -> FeatureSet:
    """The features of some rows of a split, all of which the store has. Arguments as `feature_set`."""
    resolved = {name: [str(atom) for atom in backbone.resolve(name)] for name in names}

    def read(name: str, wanted: IntArray) -> Tensor:
        loaded = store.load(resolved[name], wanted)
        parts = [loaded[atom] for atom in resolved[name]]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    return FeatureSet(split.labels, rows, LazyRepresentations(names, rows, read), store.identity)


def extract_missing(
    backbone: Backbone,
    split: Split,
    preprocessing: Preprocessing,
    names: Sequence[str],
    rows: IntArray,
    store: FeatureStore,
    options: ExtractionOptions,
) -> list[str]:
    """Embed what the store lacks of some rows; memory does not grow with their number. Arguments and errors as `feature_set`.

    Returns:
        The atoms that the representations are made of, as the store names them.
    """
    atoms = {str(atom): atom for name in names for atom in backbone.resolve(name)}
    if store.missing(atoms, rows):
        with store.lock(waiting=lambda: options.message(f"another process is extracting {split.task}; waiting for it")):
            for lacking, lacking_rows in store.missing(atoms, rows).items():
                wanted = frozenset(atoms[name] for name in lacking)
                _embed(backbone, split, preprocessing, wanted, lacking_rows, store, options)
    return list(atoms)


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
    writer = ShardWriter(store, len(rows))
    with heap.kept(backbone.device):
        try:
            for batch, values in embedded(backbone, split, preprocessing, atoms, rows, options):
                writer.add(batch, {str(atom): value for atom, value in values.items()})
                options.progress(len(batch))
        finally:
            writer.flush()


def embedded(
    backbone: Backbone,
    split: Split,
    preprocessing: Preprocessing,
    atoms: frozenset[Atom],
    rows: IntArray,
    options: ExtractionOptions,
) -> Iterator[tuple[IntArray, dict[Atom, Tensor]]]:
    """Embed rows of a split, batch by batch; nothing is kept.

    Args:
        backbone: The backbone, on its device.
        split: The split.
        preprocessing: How an image becomes pixels.
        atoms: What to compute.
        rows: `[M]` int64, increasing.
        options: Batch size, workers, messages.

    Yields:
        The rows of a batch, and atom to `[n, D]` float32 on the CPU.

    Raises:
        DataError: An image is broken.
        UsageError: Memory does not suffice.
    """
    size = options.batch_size or default_batch(backbone.device)
    modules = backbone.modules if options.packed else ()
    layout = image_layout(modules, backbone.device, backbone.dtype)
    forward = _BackingOff(backbone, preprocessing, atoms, size, layout, options)
    with packed_linears(modules, backbone.device, backbone.dtype, size * TOKENS):
        for batch, pixels in decoded_batches(split, preprocessing, rows, size, options.workers):
            yield batch, forward(pixels)


def default_batch(device: torch.device, threads: int | None = None) -> int:
    """Images per forward pass where nobody says; by the number of threads (None: this process's), which share the cache."""
    if device.type != "cpu":
        return GPU_BATCH
    return min(CPU_BATCH, max(SMALLEST_CPU_BATCH, CPU_BATCH_PER_THREAD * (threads or torch.get_num_threads())))


def decoded_batches(
    split: Split, preprocessing: Preprocessing, rows: IntArray, size: int, workers: int | None
) -> Iterator[tuple[IntArray, Tensor]]:
    """Batches of decoded images, read ahead in threads: decoding and resizing release the GIL, so they overlap with compute."""
    workers = workers or min(16, _usable_cores())
    batches = deque(np.split(rows, np.arange(size, len(rows), size)))
    ahead: deque[tuple[IntArray, list[Future[Tensor]]]] = deque()
    ahead_of_need = max(PREFETCHED_BATCHES, -(-PREFETCHED_IMAGES // size))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def decode(row: int) -> Tensor:
        image = split.image(row) if profile.active() is None else _image_in_stages(split, row)
        with profile.stage("transform", 1):
            return preprocessing.geometry(image, split.where(row))

    try:
        while batches or ahead:
            while batches and len(ahead) < ahead_of_need:
                batch = batches.popleft()
                ahead.append((batch, [pool.submit(decode, int(row)) for row in batch]))
            batch, futures = ahead.popleft()
            with profile.stage("wait", len(batch)):
                pixels = torch.stack([future.result() for future in futures])
            yield batch, pixels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _image_in_stages(split: Split, row: int) -> Image:
    """As `Split.image`, with the reading of the bytes and their decoding told apart."""
    source, number = split.locate(row)
    with profile.stage("read", 1):
        content = source.raw(number)
        if isinstance(content, Path):
            with suppress(OSError):  # decoding says what is wrong
                content = content.read_bytes()
    with profile.stage("decode", 1):
        return replace(source, raw=lambda _: content).image(number)


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
        layout: torch.memory_format,
        options: ExtractionOptions,
    ) -> None:
        self.backbone, self.preprocessing, self.atoms, self.options = backbone, preprocessing, atoms, options
        self.size, self.layout = size, layout

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
        device = self.backbone.device
        with profile.stage("transfer", len(pixels)):
            if device.type == "cuda":
                pixels = pixels.pin_memory()
            on_device = self.preprocessing.finish(pixels.to(device, non_blocking=True))
            on_device = on_device.contiguous(memory_format=self.layout)
            profile.synchronise(device)
        with profile.forward_and_pool(self.backbone.modules, device, len(pixels)):
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
