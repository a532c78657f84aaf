"""A job that trains: what keeps two processes apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from vitbench.errors import UsageError
from vitbench.execution.training import _alone


def test_what_another_process_trains_is_not_trained_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "training" / "key"
    with _alone(folder), pytest.raises(UsageError, match=r"another process is training this in .*key: wait for it"):
        _alone(folder).__enter__()
    with FileLock(folder / ".lock", timeout=0):
        pass
