"""How a run tells what it does. The default says nothing; the command line has one that draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """What `Reporter.track` gives."""

    def __call__(self, done: int, text: str = "") -> None:
        """Say how many units have been done since, and how it goes."""


class Reporter:
    """Hears of a run's progress."""

    def line(self, text: str) -> None:
        """A fact about the run."""

    def warn(self, text: str) -> None:
        """Something that the user should look at."""

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Follow work of `total` units.

        The function that is given is called with the number of units done since, and with a short text on how it goes, where
        there is one.
        """
        yield lambda done, text="": None


class Stages:
    """Hears where one job is; nobody does by default."""

    def running(self, stage: str) -> None:
        """The job is at `extract`, `score` or `train` from now on."""

    def advanced(self, images: int) -> None:
        """So many images have been embedded since."""
