"""The C library's heap while images are embedded on a CPU: what one forward pass frees is kept for the next.

The activations of a batch are tens of megabytes each. glibc gives a piece of that size back to the kernel as soon as it is
freed, and asks for it anew in the next pass: the kernel hands out cleared pages, and each of them is a fault. What that costs
stands in docs/performance.md; nothing of it is left where the heap is kept. The peak stays what it was: a pass fills what the
last one freed.

It is the heap of a process's first thread: those of other threads are made of parts of 64 MiB, and a part is given back when it
is empty, whatever they are told. Embedding from another thread is right, and no faster. Nothing is kept without glibc, or where
the environment tells it something (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

KEPT_BYTES = 2**31 - 1
"""So much freed memory stays at the end of the heap: the most that mallopt takes."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of mallopt(3)."""
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}
"""glibc's own, where its thresholds end as large pieces are freed: a changed one moves no more."""


def keep(device: torch.device) -> None:
    """Keep the heap from now on, which is for a process that does nothing else.

    Args:
        device: Where the forward passes are; nothing is done but on a CPU.
    """
    if device.type == "cpu" and (libc := _ours()) is not None:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Keep the heap for as long as this lasts, and give back what is free then.

    Where two of them overlap, the end of one is the end of both: the other is then no faster than without it.

    Args:
        device: As `keep`'s.
    """
    keep(device)
    try:
        yield
    finally:
        if device.type == "cpu" and (libc := _ours()) is not None:
            for parameter, value in _USUAL.items():
                libc.mallopt(parameter, value)
            give_back()


def give_back() -> None:
    """Give back what is free now."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _ours() -> ctypes.CDLL | None:
    """The C library, where it may be told something."""
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    return None if told else _glibc()


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
