"""What a run comes to: its exit status."""

from __future__ import annotations

import pytest

from vitbench.errors import DataError, GivenUpError, VitbenchError
from vitbench.execution.plan import PlannedJob, RunResult

DONE = PlannedJob("pixels", "digits", ("pixels",), 1, 0, 1, 0)


@pytest.mark.parametrize(
    ("failures", "error", "planned", "status"),
    [
        ([], None, [DONE], 0),
        ([], None, [], 0),
        (["a mistake"], DataError("a mistake"), [], 2),
        (["a mistake"], DataError("a mistake"), [DONE], 1),
        (["given up"], GivenUpError("given up"), [], 1),
        (["a bug"], None, [], 1),
    ],
)
def test_only_a_mistake_with_which_nothing_could_be_done_is_status_2(
    failures: list[str], error: VitbenchError | None, planned: list[PlannedJob], status: int
) -> None:
    assert RunResult(failures=failures, first_error=error, planned=planned).status == status
