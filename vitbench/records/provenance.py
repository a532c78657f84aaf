"""Where a record comes from: versions, host, commit, command."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import vitbench
from vitbench.records.schema import Provenance

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "datasets", "numpy", "pillow", "safetensors")


def provenance(command: str, device: str, weights_notes: Sequence[str]) -> Provenance:
    """Describe this process.

    Args:
        command: The command or call that makes the record.
        device: Device of the forward pass.
        weights_notes: What was ignored or resized when the weights were loaded.
    """
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        host=platform.node(),
        device=device,
        python=platform.python_version(),
        versions=_versions(),
        git_commit=_git_commit(),
        weights_notes=list(weights_notes),
    )


def command_line() -> str:
    """The command that started this process, as a person would type it."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@cache
def _versions() -> dict[str, str]:
    found = {"vitbench": vitbench.__version__}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


@cache
def _git_commit() -> str | None:
    """The commit of the checkout that vitbench runs from; None when it is installed or git is not at hand."""
    root = Path(vitbench.__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    describe = subprocess.run(
        [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return describe.stdout.strip() or None
