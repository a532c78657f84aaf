"""What a run comes to: how long it takes, and its exit status."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vitbench.errors import DataError, GivenUpError, VitbenchError
from vitbench.execution.journal import NoJournal
from vitbench.execution.local import LocalRun
from vitbench.execution.plan import Estimate, PlannedJob, RunResult, run_seconds
from vitbench.execution.reporter import Reporter

DONE = PlannedJob("pixels", "digits", ("pixels",), 1, 0, 1, 0)


def test_a_backbone_is_loaded_once_and_the_slots_share_the_work() -> None:
    jobs = [("a", Estimate(2.0, 10.0, 5.0)), ("a", Estimate(2.0, 30.0, 15.0)), ("b", Estimate(1.0, 20.0, 10.0))]
    assert run_seconds(jobs) == 2 + 1 + 10 + 30 + 20
    assert run_seconds(jobs, 2) == 2 + 1 + (10 + 30 + 20) / 2
    assert run_seconds([]) == 0


def test_a_run_takes_its_longest_job_at_least() -> None:
    training, small = Estimate(2.0, 30.0, 30.0), Estimate(2.0, 1.0, 1.0)
    assert run_seconds([("a", training), ("a", small)], 8) == 2 + 30


def test_an_embedding_alone_is_shared_by_all_slots() -> None:
    planned = [PlannedJob("a", "digits", ("cls",), 1, 0, 9, 0, Estimate(2.0, 30.0, 15.0))]
    result = RunResult(planned=[*planned, DONE], slots=2)
    assert result.seconds == 2 + 15
    assert planned[0].seconds == 30


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
