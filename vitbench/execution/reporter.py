"""How a run tells what it does. The default says nothing; the command line has one that draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Reporter:
    """Hears of a run's progress."""

    def line(self, text: str) -> None:
        """A fact about the run."""

    def warn(self, text: str) -> None:
        """Something that the user should look at."""

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Follow work of `total` units; the function that is given is called with the number of units done since."""
        yield lambda done: None
