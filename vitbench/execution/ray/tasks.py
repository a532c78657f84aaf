"""Ray tasks under supervision: one whose worker was lost is given to another, so often and no more, and that is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskUnschedulableError

from vitbench.errors import one_line
from vitbench.execution.ray.worker import Problem, ended


@dataclass
class Piece:
    """One piece of work.

    Attributes:
        work: Its name, in messages and for the watch.
        submit: Gives it to Ray; the reference of its result.
        done: Called with the result.
        failed: Called with the problem that kept it from being done.
        size: How much it is, in whatever a progress bar counts.
        attempts: How often it was given to Ray.
    """

    work: str
    submit: Callable[[], Any]
    done: Callable[[Any], None]
    failed: Callable[[Problem], None]
    size: int = 1
    attempts: int = 0


@dataclass
class Supervisor:
    """Pieces of work that are under way.

    Attributes:
        max_failures: How often a piece may lose its worker and be tried again.
        told: Hears a line of every piece that is tried again.
        late: Names of the pieces that were ended because they took too long; the watch fills it.
        limit: The seconds that a piece may take, for messages.
        listen: Called when a worker was lost: what it has told before is heard then.
    """

    max_failures: int
    told: Callable[[str], None]
    late: set[str] = field(default_factory=set)
    limit: float | None = None
    listen: Callable[[], None] = lambda: None
    _running: dict[Any, Piece] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._running)

    @property
    def size(self) -> int:
        """How much all that is under way is together."""
        return sum(piece.size for piece in self._running.values())

    def add(self, piece: Piece) -> None:
        """Begin a piece of work."""
        piece.attempts += 1
        self._running[piece.submit()] = piece

    def poll(self, seconds: float) -> int:
        """Wait up to `seconds` for pieces to end, and take up those that have; their number."""
        if not self._running:
            return 0
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if ready and len(self._running) > 1:
            ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in ready:
            self._ended(reference, self._running.pop(reference))
        return len(ready)

    def ask_to_end(self) -> None:
        """Let all that is under way come to an early end by itself, as Ctrl-C would."""
        for reference in self._running:
            ray.cancel(reference, force=False)

    def cancel(self) -> None:
        """Give up all that is under way."""
        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()

    def _ended(self, reference: Any, piece: Piece) -> None:
        try:
            result = ray.get(reference)
        except (RayTaskError, TaskUnschedulableError) as error:
            piece.failed(Problem.of(error))
        except RayError as error:
            self._lost(piece, error)
        else:
            if isinstance(result, Problem):
                piece.failed(result)
            else:
                piece.done(result)

    def _lost(self, piece: Piece, error: RayError) -> None:
        self.listen()
        if piece.attempts > self.max_failures:
            piece.failed(
                Problem("GivenUpError", f"given up: {ended(piece.work in self.late, self.limit, piece.attempts)}")
            )
            return
        reason = lost_reason(error, piece.work in self.late, self.limit)
        self.told(f"{piece.work}: {reason}; tried again (attempt {piece.attempts + 1} of {self.max_failures + 1})")
        self.late.discard(piece.work)
        self.add(piece)


def lost_reason(error: Exception, late: bool, limit: float | None) -> str:
    """Why a piece of work was lost, as a clause.

    Args:
        error: Ray's.
        late: Whether it was ended because it took too long.
        limit: Seconds that it may take.
    """
    if late:
        return f"it took longer than --timeout-per-job {limit:g} s"
    if "OutOfMemory" in type(error).__name__:
        return "its worker was ended because the node ran out of memory"
    if "Node" in type(error).__name__:
        return "its node was lost"
    return f"its worker was lost ({one_line(error)})"
