"""Where the time of a run goes, stage by stage: a trace that a browser draws, and a table.

`stage("decode")` around a piece of work notes when it began, how long it took, and in which thread. While nothing records,
which is always but for `vitbench run --profile`, it is one look at a global and a shared context that does nothing.

| stage | what is in it |
|---|---|
| load | a backbone: its weights read, hashed, moved to the device |
| prepare | what a job has to do: which records and features are there |
| read | the bytes of an image file; of an array or an archive, the entry |
| decode | bytes to RGB pixels |
| transform | resize and crop, image by image |
| wait | the forward pass waits for images; decoding is the limit where this is large |
| transfer | to the device, and the normalisation there |
| forward | the model, up to the last output that is not yet one vector per image |
| pool | the model's rest: means, poolers, conversion to float32 |
| write | shards of features, records with their predictions |
| solve | a support set to a ranking of the test images: the protocol's part |
| score | predictions to accuracies: the metrics and the record's fields |

read, decode and transform happen in threads beside the rest, so that shares may add up to more than the whole. On a device that
works asynchronously the end of each transfer and forward pass is waited for while it is measured, and pool is within forward.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.records.atomic import write_text

STAGES = (
    "load", "prepare", "read", "decode", "transform", "wait", "transfer", "forward", "pool", "write", "solve", "score",
)  # fmt: skip
RUN = "run"
MAIN = "main"


@dataclass(frozen=True)
class Span:
    """One piece of work.

    Attributes:
        stage: Its name.
        thread: Name of the thread that did it.
        start: Nanoseconds since the profile began.
        duration: Nanoseconds.
        images: Number of images that it was about; 0 where it was about something else.
    """

    stage: str
    thread: str
    start: int
    duration: int
    images: int


@dataclass(frozen=True)
class StageRow:
    """A line of the table.

    Attributes:
        stage: Its name.
        calls: How often.
        seconds: Altogether, all threads.
        share: `seconds` by the wall time of the run.
        images_per_second: By the stage's own seconds; None where it is not about images.
    """

    stage: str
    calls: int
    seconds: float
    share: float
    images_per_second: float | None


class Profile:
    """What has been noted since it was made. Threads may note at the same time."""

    def __init__(self) -> None:
        self._begun = time.perf_counter_ns()
        self._main = threading.get_ident()
        self._spans: list[Span] = []
        self._length: int | None = None

    def note(self, stage: str, start: int, end: int, images: int = 0) -> None:
        """Note a piece of work that this thread did.

        Args:
            stage: Its name.
            start: When it began, as `time.perf_counter_ns()` has it.
            end: When it ended.
            images: Number of images that it was about.
        """
        own = threading.get_ident() == self._main
        thread = MAIN if own else threading.current_thread().name
        self._spans.append(Span(stage, thread, start - self._begun, end - start, images))

    def stop(self) -> None:
        """The run is over."""
        self._length = time.perf_counter_ns() - self._begun

    @property
    def spans(self) -> Sequence[Span]:
        """All that was noted, in the order of its ends."""
        return self._spans

    @property
    def seconds(self) -> float:
        """Wall time from the beginning to `stop`, or to now."""
        return self._nanoseconds / 1e9

    @property
    def _nanoseconds(self) -> int:
        return time.perf_counter_ns() - self._begun if self._length is None else self._length

    def rows(self) -> list[StageRow]:
        """The table: every stage in order, also those of which there was nothing, and what none of them was."""
        found = []
        for stage in STAGES:
            spans = [span for span in self._spans if span.stage == stage]
            seconds = sum(span.duration for span in spans) / 1e9
            images = sum(span.images for span in spans)
            rate = images / seconds if images and seconds else None
            found.append(StageRow(stage, len(spans), seconds, seconds / self.seconds, rate))
        told = sum(span.duration for span in self._spans if span.thread == MAIN) / 1e9
        other = max(0.0, self.seconds - told)
        return [*found, StageRow("other", 0, other, other / self.seconds, None)]

    def chrome_trace(self) -> dict[str, Any]:
        """The trace in the JSON form that Chrome's tracing and Perfetto open: a row per thread, times in microseconds."""
        process = os.getpid()
        threads = {MAIN: 0} | {
            name: number for number, name in enumerate(sorted({span.thread for span in self._spans} - {MAIN}), start=1)
        }
        named: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": process, "tid": number, "args": {"name": name}}
            for name, number in threads.items()
        ]
        order = [
            {"ph": "M", "name": "thread_sort_index", "pid": process, "tid": number, "args": {"sort_index": number}}
            for number in threads.values()
        ]
        whole = Span(RUN, MAIN, 0, self._nanoseconds, 0)
        events = [
            {
                "ph": "X",
                "name": span.stage,
                "cat": "vitbench",
                "pid": process,
                "tid": threads[span.thread],
                "ts": span.start / 1000,
                "dur": span.duration / 1000,
                "args": {"images": span.images} if span.images else {},
            }
            for span in (whole, *sorted(self._spans, key=lambda span: span.start))
        ]
        return {"displayTimeUnit": "ms", "traceEvents": [*named, *order, *events]}

    def save(self, folder: Path) -> Path:
        """Write the trace to `<folder>/<time>.trace.json`, whole or not at all; the file's path.

        Raises:
            StoreError: It cannot be written.
        """
        stem = time.strftime("%Y%m%d-%H%M%S")
        path, number = folder / f"{stem}.trace.json", 1
        while path.exists():
            number += 1
            path = folder / f"{stem}-{number}.trace.json"
        write_text(path, json.dumps(self.chrome_trace()) + "\n")
        return path


_active: Profile | None = None
_NOTHING: AbstractContextManager[None] = nullcontext()


class _Noted(AbstractContextManager[None]):
    """The span of a `with`; it is noted where the work fails, too."""

    def __init__(self, profile: Profile, stage: str, images: int) -> None:
        self._profile, self._stage, self._images = profile, stage, images

    def __enter__(self) -> None:
        self._start = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.note(self._stage, self._start, time.perf_counter_ns(), self._images)


def stage(name: str, images: int = 0) -> AbstractContextManager[None]:
    """A context whose time is noted as a stage's, if a profile is being recorded; else one that does nothing."""
    profile = _active
    return _NOTHING if profile is None else _Noted(profile, name, images)


def active() -> Profile | None:
    """The profile that is being recorded."""
    return _active


@contextmanager
def recording(profile: Profile | None) -> Iterator[None]:
    """Record into a profile what happens inside, in every thread; nothing with None. One at a time.

    When it ends, by an error too, the profile is stopped.
    """
    global _active  # the decoding threads are not this thread's children in any way that a context variable would follow
    if profile is None:
        yield
        return
    before, _active = _active, profile
    try:
        yield
    finally:
        _active = before
        profile.stop()


@contextmanager
def forward_and_pool(modules: Sequence[nn.Module], device: torch.device, images: int) -> Iterator[None]:
    """Note a pass through a model as two stages, if a profile is being recorded: `forward`, then `pool`.

    The model is not asked to tell them apart. What has one vector per image, `[N, D]`, is pooled; so the forward part ends with
    the last of its innermost modules that gives something of another rank (tokens `[N, T, D]`, maps `[N, D, H, W]`). A pooling
    by attention, whose insides look like that too, is part of forward.

    Args:
        modules: The model's; where it has none (`pixels`, an exported program), all is forward.
        device: Where it computes; all is forward on one that works asynchronously.
        images: Size of the batch.
    """
    profile = _active
    if profile is None:
        yield
        return
    last: list[int] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim > 2:
            last[:] = [time.perf_counter_ns()]

    leaves = [part for module in modules for part in module.modules() if not any(True for _ in part.children())]
    handles = [leaf.register_forward_hook(keep) for leaf in leaves] if device.type == "cpu" else []
    start = time.perf_counter_ns()
    try:
        yield
        synchronise(device)
    finally:
        for handle in handles:
            handle.remove()
        end = time.perf_counter_ns()
        middle = last[0] if last else end
        profile.note("forward", start, middle, images)
        if last:
            profile.note("pool", middle, end, images)


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given, while a profile is being recorded; a CPU never lags."""
    if _active is None or device.type == "cpu":
        return
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
