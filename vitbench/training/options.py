"""How a training is gone about: what changes no number beyond rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vitbench.errors import UsageError
from vitbench.training import processes

CPU_AT_ONCE = 32
GPU_AT_ONCE = 128


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; nothing here changes a number beyond rounding.

    Attributes:
        batch_size: Images that go through at once; None begins with 32 on a CPU and 128 on a GPU and halves when memory runs out.
        workers: Processes that read and augment images.
        every_steps: Updates between checkpoints; 0 for none by number.
        every_seconds: Seconds between checkpoints.
        keep: Checkpoints that are kept.
        trackers: Names of Accelerate's trackers, such as `tensorboard`.
        tracker_folder: Where those that write files write them; None for beside the checkpoints.
        progress: Called after each update with 1 and a short text.
        message: Called with a line that the user should see.
    """

    batch_size: int | None = None
    workers: int = 1
    every_steps: int = 0
    every_seconds: float = 600.0
    keep: int = 2
    trackers: Sequence[str] = ()
    tracker_folder: Path | None = None
    progress: Callable[[int, str], None] = field(default=lambda steps, text: None)
    message: Callable[[str], None] = field(default=lambda text: None)


def images_at_once(options: TrainingOptions, device: torch.device) -> int:
    """How many images go through at once to begin with."""
    return options.batch_size or (CPU_AT_ONCE if device.type == "cpu" else GPU_AT_ONCE)


def halved(at_once: int, options: TrainingOptions, device: torch.device, error: Exception) -> int:
    """Half as many images at once, after memory ran out.

    Raises:
        UsageError: The user asked for this many, a single one is too many, or other processes wait for this one.
    """
    if options.batch_size is not None or at_once == 1 or processes.count() > 1:
        raise UsageError(
            f"out of memory with {at_once} image{'s' if at_once > 1 else ''} at once on {device}: use a smaller --batch-size "
            f"(it changes no number), resolution or model"
        ) from error
    fewer = (at_once + 1) // 2
    options.message(f"out of memory on {device}: going on with {fewer} images at once")
    return fewer
