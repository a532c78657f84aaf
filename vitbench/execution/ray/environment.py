"""What a process has that computes, and whether it has the same as another: the check of a cluster's workers.

The functions here are sent to the workers by value, since a worker may not have vitbench: they use the standard library alone,
import what they need inside themselves, and give plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def describe(libraries: Sequence[str]) -> dict[str, Any]:
    """The software that this process would compute with.

    Args:
        libraries: Names of the distributions whose versions matter.

    Returns:
        `python`: version without its patch, such as 3.12; `vitbench`: version, `""` where there is none; `problem`: why vitbench
        cannot be imported; `code`: digest of the sources of vitbench that would run; `libraries`: name to version, `""` where
        it is not installed. A build's local part (`+cu130`, `+cpu`) is left out: it goes with the node's devices.
    """
    import hashlib
    import importlib
    import importlib.metadata
    import pathlib
    import sys

    versions = {}
    for name in libraries:
        try:
            versions[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    facts: dict[str, Any] = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", "libraries": versions}
    try:
        vitbench = importlib.import_module("vitbench")
    except Exception as error:  # a broken package is as good as none, whatever it raises
        return {**facts, "vitbench": "", "code": "", "problem": f"{type(error).__name__}: {error}"}
    root = pathlib.Path(str(vitbench.__file__)).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return {**facts, "vitbench": str(vitbench.__version__), "code": digest.hexdigest()[:12], "problem": ""}


def sees(probe: str, content: str, answer: str) -> str:
    """Whether this process reads and writes the folder that another one has written a file to.

    Args:
        probe: Absolute path of the file.
        content: What the file holds.
        answer: Absolute path, beside it, of a file to write with the same content, by which the other process knows that the two
            folders are one.

    Returns:
        What is wrong, in a few words; `""` where nothing is.
    """
    import pathlib

    try:
        if pathlib.Path(probe).read_text() != content:
            return "another folder has that path there"
    except OSError as error:
        return f"reading a file of this process there fails: {error.strerror}"
    try:
        pathlib.Path(answer).write_text(content)
    except OSError as error:
        return f"it cannot be written to there: {error.strerror}"
    return ""


def examine(libraries: Sequence[str], probe: str, content: str, answer: str) -> dict[str, Any]:
    """`describe`, and `folder`: what `sees` says."""
    return {**describe(libraries), "folder": sees(probe, content, answer)}


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """The first thing that makes the two processes compute differently; `""` where there is none.

    Args:
        here: `describe` of this process.
        there: `describe` of the other.
    """
    if there["python"] != here["python"]:
        return f"has Python {there['python']}, and this process Python {here['python']}"
    if not there["vitbench"]:
        return f"has no vitbench {here['vitbench']} ({there['problem']})"
    if there["vitbench"] != here["vitbench"]:
        return f"has vitbench {there['vitbench']}, and this process vitbench {here['vitbench']}"
    if there["code"] != here["code"]:
        return (
            f"has another code of vitbench {here['vitbench']} than this process "
            f"(digest of its sources {there['code']}, here {here['code']})"
        )
    for name, version in here["libraries"].items():
        if there["libraries"][name] != version:
            return f"has {name} {there['libraries'][name] or 'not at all'}, and this process {version or 'not at all'}"
    return ""
