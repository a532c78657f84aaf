"""The C library's heap while images are embedded on a CPU: what one forward pass frees is kept for the next.

The activations of a batch are tens of megabytes each. glibc gives a piece of that size back to the kernel as soon as it is freed,
and asks for it anew in the next pass: the kernel hands out cleared pages, one fault for every 4 KiB. With one thread that was
4 to 11 of 60 ms an image for a ViT-S/16, 29 of 210 for a ViT-B/16 and 18 of 73 for a ResNet-50, more or less as pieces happen to
lie; none of it is left where the heap is kept. The peak stays what it was, as a pass fills the memory that the last one freed.

A process that is started for the purpose is told by its environment (`ENVIRONMENT`), before it has any thread; one that does
other things besides is told for as long as it embeds (`kept`). Without glibc nothing is done.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch

KEPT_BYTES = 2**29
"""So much freed memory stays at the end of the heap, more than a forward pass takes on a CPU."""
ENVIRONMENT: Mapping[str, str] = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
}
"""What glibc reads when a process starts (mallopt(3)): no piece by itself, nothing given back, and one heap: those of threads
other than the first are cut into parts of 64 MiB, each given back when it is empty, whatever the threshold."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of mallopt(3)."""
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}
"""glibc's own, where its thresholds end as large pieces are freed: a changed one moves no more."""


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Keep the heap of this process's first thread for as long as this lasts; then what is free is given back.

    Args:
        device: Where the forward passes are; nothing is done but on a CPU.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
