"""A backbone and a protocol that go wrong when they are told to, for the workers of tests: another package's entry points.

What goes wrong is said by files in a folder, which is the backbone's name (`faulty:/path/to/folder`) or the protocol's option
`faults`. For each of the words `hang`, `hold`, `exit`, `crash`, `eat`, a file `WORD` does it every time, and a file
`WORD-once` once.
A file `slow` holds the seconds that every call takes. A call leaves a file `pid-<number of its process>`,
with whether it came from the process's first thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
from torch import Tensor

from vitbench.backbones.pixels import PixelsBackbone
from vitbench.backbones.spec import Atom, BackboneSpec, parse_backbone_spec
from vitbench.protocols.base import Outcome
from vitbench.protocols.knn import NearestNeighbours

LONG = 600
MOST_EATEN, LEFT_OVER = 5 * 2**30, 3 * 2**30
"""Memory that is taken at most, and that the machine keeps in any case."""


class FaultyBackbone(PixelsBackbone):
    """The pixels of an image, unless something goes wrong."""

    is_floor: ClassVar[bool] = False

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(parse_backbone_spec(f"pixels,resolution={spec.resolution or 8}"))
        self.spec, self.architecture = spec, "faulty"
        self.num_parameters = 1000

    def _forward(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        go_wrong(Path(self.spec.name))
        return super()._forward(pixels, atoms)


@dataclass(frozen=True)
class FaultyNeighbours(NearestNeighbours):
    """Nearest neighbours, unless something goes wrong."""

    name: ClassVar[str] = "faulty"

    faults: str = ""

    def evaluate(self, *arguments: Any, **named: Any) -> Iterator[Outcome]:
        go_wrong(Path(self.faults))
        yield from super().evaluate(*arguments, **named)


def go_wrong(folder: Path) -> None:
    """Do what the files of the folder say."""
    (folder / f"pid-{os.getpid()}").write_text(str(threading.current_thread() is threading.main_thread()))
    for word in ("hang", "hold", "exit", "crash", "eat"):
        try:
            (folder / f"{word}-once").unlink()
        except FileNotFoundError:
            if not (folder / word).exists():
                continue
        if word == "hang":
            time.sleep(LONG)
        elif word == "hold":
            ctypes.PyDLL(None).sleep(LONG)
        elif word == "exit":
            os._exit(7)
        elif word == "eat":
            eat()
        else:
            raise RuntimeError("a bug")
    if (slow := folder / "slow").exists():
        time.sleep(float(slow.read_text()))


def eat() -> None:
    """Take memory, until somebody ends this process or it has enough."""
    taken = []
    while len(taken) * 2**27 < MOST_EATEN and psutil.virtual_memory().available > LEFT_OVER:
        taken.append(bytearray(os.urandom(4096)) * 2**15)
        time.sleep(0.02)
    time.sleep(10)
    raise RuntimeError("nobody minded the memory")
