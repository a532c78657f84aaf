"""What workers tell the driver while they are at work, and the limit on how long one piece of work may take.

A worker that is killed can tell nothing afterwards, so it tells beforehand: `began` when it takes up a piece of work. The
driver that hears `began` a second time knows that the first worker was lost.
"""

from __future__ import annotations

import faulthandler
import os
import platform
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

BEGAN, ADVANCED, LATE, SAID, WARNED = "began", "advanced", "late", "said", "warned"
GRACE_SECONDS = 20.0
"""After its limit and this, a worker that cannot end itself, because a library holds the interpreter, is ended all the same."""
_LAST_WORD_SECONDS = 5.0


@dataclass(frozen=True)
class Event:
    """One thing that a worker has told.

    Attributes:
        kind: `began`, `advanced`, `late`, `said` or `warned`.
        work: The piece of work, as the driver has named it.
        host: Where.
        images: Number of images embedded, or of steps trained, of `advanced`.
        text: How it goes, of `advanced`; the line itself, of `said` and `warned`.
    """

    kind: str
    work: str
    host: str
    images: int = 0
    text: str = ""


class Watch:
    """Holds what workers have told until the driver asks for it; an actor."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._begun: Counter[str] = Counter()
        self._late: set[str] = set()
        self._dropped: set[str] = set()

    def post(self, event: Event) -> tuple[int, bool, bool]:
        """Take up an event; how often its work has begun so far, if it has ever taken too long, and if it is of no use."""
        self._events.append(event)
        if event.kind == BEGAN:
            self._begun[event.work] += 1
        elif event.kind == LATE:
            self._late.add(event.work)
        return self._begun[event.work], event.work in self._late, event.work in self._dropped

    def drop(self, works: Sequence[str]) -> None:
        """Pieces of work that are of no use any more; whoever takes one up is told."""
        self._dropped.update(works)

    def drain(self) -> list[Event]:
        """What has been told since the last time."""
        events, self._events = self._events, []
        return events


def start_watch() -> Any:
    """The handle of a new watch, which lives on the driver's node: the loss of another one does not concern it."""
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Watch)
    return remote.remote()


def tell(watch: Any, kind: str, work: str, images: int = 0, text: str = "") -> Any:
    """Tell an event, without waiting for it to be heard."""
    return watch.post.remote(Event(kind, work, platform.node(), images, text))


@contextmanager
def limited(seconds: float | None, watch: Any, work: str) -> Iterator[None]:
    """End this process when what is inside takes longer than `seconds`, after telling so; None is no limit.

    A thread does it while Python code, or a call that gives the interpreter up, hangs; where a library holds the interpreter,
    the process is ended a little later by a thread of faulthandler, which needs no interpreter.
    """
    if seconds is None:
        yield
        return

    def end() -> None:
        with suppress(Exception):
            ray.get(tell(watch, LATE, work), timeout=_LAST_WORD_SECONDS)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()
