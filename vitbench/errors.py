"""The errors a user may see: one line that says what is wrong, where, and what to do about it.

The command line prints a `VitbenchError` without a traceback. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class VitbenchError(Exception):
    """A mistake in the input or a fault of the surroundings, told in one line."""


class UsageError(VitbenchError):
    """A name, option or value that cannot be meant."""


class DataError(VitbenchError):
    """A task's data is missing, broken, or not what the task file says."""


class WeightsError(VitbenchError):
    """A checkpoint is missing, damaged, or does not fit its model."""


class RepresentationError(VitbenchError):
    """A representation that the backbone lacks, or whose weights were never trained."""


class StoreError(VitbenchError):
    """Something could not be written to, or read back from, the output folder."""


class GivenUpError(VitbenchError):
    """Work that lost its worker, or took too long, as often as it may: nothing is wrong with the input."""


class StoppedError(VitbenchError):
    """The process was asked to end, by a signal, or its cluster is lost; what was done is saved, and the same command goes on.

    Attributes:
        status: The exit status that tells it: 128 and the signal's number; 1 for a cluster.
    """

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status


def printable(text: str) -> str:
    """A text that any file and terminal takes: the bytes of a file name that are not UTF-8 are written with backslashes."""
    return text.encode(errors="backslashreplace").decode()


def first_line(error: BaseException | str) -> str:
    """The first line of a message, at most 200 characters; an exception's type where it has no message."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]


def one_line(error: BaseException) -> str:
    """What another library's error says, in one short line: its kind and the first sentence."""
    sentence = re.split(r"\n|\. |: This is ", str(error).strip(), maxsplit=1)[0].rstrip(".")
    return f"{type(error).__name__}: {sentence[:160]}" if sentence else type(error).__name__


def listed(names: Iterable[str], most: int = 4) -> str:
    """Names with commas; when there are more than `most`, the first of them and how many more."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The choices most like `name`, best first; a choice also counts as near when it contains `name`."""
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in choices}
    found = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.55)]
    found += [choice for choice in choices if name and name.lower() in choice.lower() and choice not in found]
    return found[:count]


def unknown(
    kind: str, name: str, choices: Iterable[str], *, hint: str = "", error: type[VitbenchError] = UsageError
) -> VitbenchError:
    """The error for a name that is none of `choices`: it offers the nearest ones, and lists all when they are few.

    Args:
        kind: What the name should have been, for example `"task"`.
        name: What was given.
        choices: Every valid name.
        hint: What to run or read to see the choices, added at the end.
        error: The class of the error to make.
    """
    choices = sorted(choices)
    message = f"unknown {kind} '{name}'"
    if close := nearest(name, choices):
        message += f"; did you mean {' or '.join(repr(choice) for choice in close)}?"
    elif choices and len(choices) <= 12:
        message += f"; choose from {', '.join(choices)}"
    return error(f"{message} ({hint})" if hint else message)
