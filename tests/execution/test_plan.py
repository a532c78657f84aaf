"""What a run comes to: its exit status."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vitbench.errors import DataError, GivenUpError, VitbenchError
from vitbench.execution.journal import NoJournal
from vitbench.execution.local import LocalRun
from vitbench.execution.plan import PlannedJob, RunResult
from vitbench.execution.reporter import Reporter

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


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([DataError("a mistake")], 2),
        ([GivenUpError("given up")], 1),
        ([None], 1),
        ([DataError("a mistake"), GivenUpError("given up")], 1),
        ([GivenUpError("given up"), DataError("a mistake")], 1),
        ([None, DataError("a mistake")], 1),
    ],
)
def test_the_status_does_not_depend_on_what_failed_first(errors: list[VitbenchError | None], status: int) -> None:
    run: Any = SimpleNamespace(result=RunResult(), journal=NoJournal(), names={}, reporter=Reporter())
    for number, error in enumerate(errors):
        LocalRun.fail(run, f"failure {number}", error)
    assert run.result.status == status
