"""The processes that share one training, as `accelerate launch` and `torchrun` start them: which one this is, and what they say.

Each takes its share of every batch, and all hold the same weights. Nothing here does anything where there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor


def count() -> int:
    """How many there are; 1 for a process that no launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that prints and writes."""
    return index() == 0


def join(cpu: bool) -> None:
    """Meet the others, and take the GPU that is this one's; to be called before anything is put on a device.

    Args:
        cpu: Whether they compute on the CPU.
    """
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=cpu)


def wait() -> None:
    """Wait until all have come here."""
    if count() > 1 and torch.distributed.is_initialized():
        torch.distributed.barrier()


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """The sum of each value over all processes; every one gets the same."""
    if count() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]


def share(size: int) -> list[int]:
    """Which images of a batch of `size` are this process's, increasing.

    They are pairs of one from each end, so that mixup, which mixes a batch with its reverse, mixes those it would alone.
    """
    return [number for number in range(size) if min(number, size - 1 - number) % count() == index()]


def interleaved(part: Tensor, total: int, device: torch.device) -> Tensor:
    """`[total, K]` on the CPU, of which each process has every `count`-th row from row `index` on.

    Args:
        part: `[M, K]`, this one's.
        total: Number of rows of all.
        device: Where the processes exchange tensors.
    """
    if count() == 1:
        return part
    longest = -(-total // count())
    padded = torch.zeros((longest, *part.shape[1:]), dtype=part.dtype, device=device)
    padded[: len(part)] = part.to(device)
    parts = [torch.empty_like(padded) for _ in range(count())]
    torch.distributed.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total].cpu()
