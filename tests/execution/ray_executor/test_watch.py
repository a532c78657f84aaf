"""What workers tell, and the end of those that take too long."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import ray

from vitbench.execution.ray.watch import ADVANCED, BEGAN, LATE, Event, Watch, start_watch

HELD = """
import ctypes, sys, time
from vitbench.execution.ray import watch
watch.GRACE_SECONDS = 1.0
watch.tell = lambda *event: print(*event[1:], flush=True)
watch.ray.get = lambda *asked, **named: None
with watch.limited({limit}, None, "a unit"):
    {work}
print("done", flush=True)
"""


def test_the_watch_lives_on_the_node_of_its_driver(cluster: Any) -> None:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
    watches = [start_watch() for _ in range(4)]
    assert ray.get([watch.drain.remote() for watch in watches]) == [[]] * 4
    found = {ray._private.state.actors(watch._actor_id.hex())["Address"]["NodeID"] for watch in watches}
    assert found == {ray.get_runtime_context().get_node_id()}


def test_the_watch_counts_beginnings_and_forgets_what_it_has_told() -> None:
    watch = Watch()
    assert watch.post(Event(BEGAN, "a unit", "here")) == (1, False, False)
    assert watch.post(Event(ADVANCED, "a unit", "here", 7)) == (1, False, False)
    assert watch.post(Event(LATE, "a unit", "here")) == (1, True, False)
    watch.drop(["a unit"])
    assert watch.post(Event(BEGAN, "a unit", "there")) == (2, True, True)
    assert watch.post(Event(BEGAN, "another", "there")) == (1, False, False)
    assert [(event.kind, event.work, event.images) for event in watch.drain()] == [
        ("began", "a unit", 0),
        ("advanced", "a unit", 7),
        ("late", "a unit", 0),
        ("began", "a unit", 0),
        ("began", "another", 0),
    ]
    assert watch.drain() == []


@pytest.mark.parametrize(
    ("limit", "work", "status", "told"),
    [
        (0.2, "time.sleep(600)", 1, "late a unit"),
        (0.2, "ctypes.PyDLL(None).sleep(600)", 1, ""),  # it holds the interpreter: nobody can tell
        (600, "pass", 0, "done"),
        (None, "pass", 0, "done"),
    ],
)
def test_what_takes_too_long_ends_its_process(limit: float | None, work: str, status: int, told: str) -> None:
    code = HELD.format(limit=limit, work=work)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (status, told), ended.stderr
