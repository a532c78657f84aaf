"""What a run comes to: its exit status."""

from __future__ import annotations

import pytest

from vitbench.execution.plan import PlannedJob, RunResult

DONE = PlannedJob("pixels", "digits", ("pixels",), 1, 0, 1, 0)


@pytest.mark.parametrize(
    ("failures", "beyond_input", "planned", "status"),
    [
        ([], False, [DONE], 0),
        ([], False, [], 0),
        (["a mistake"], False, [], 2),
        (["a mistake"], False, [DONE], 1),
        (["given up"], True, [], 1),
        (["a mistake", "given up"], True, [], 1),
    ],
)
def test_only_a_mistake_with_which_nothing_could_be_done_is_status_2(
    failures: list[str], beyond_input: bool, planned: list[PlannedJob], status: int
) -> None:
    assert RunResult(failures=failures, beyond_input=beyond_input, planned=planned).status == status
