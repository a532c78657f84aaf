"""The heap while images are embedded, in processes of their own: what was freed is there for the next pass, and then goes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from vitbench.features import heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has another heap")

SCRIPT = """
import json, resource, sys, threading
from contextlib import nullcontext
from pathlib import Path
import torch
from vitbench.features import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def forward():
    first = torch.ones(10 * 2**20)
    second = first + 1
    third = second + first
    return float(third[0])

def passes(found):
    with heap.kept(torch.device(sys.argv[1])) if sys.argv[1] else nullcontext():
        for _ in range(10):
            forward()
        before = faults()
        for _ in range(10):
            forward()
        found.update(faults=faults() - before, inside=resident())
    found["after"] = resident()

torch.set_num_threads(1)
found = {}
if sys.argv[2] == "thread":
    thread = threading.Thread(target=passes, args=(found,))
    thread.start()
    thread.join()
else:
    passes(found)
print(json.dumps(found))
"""
PAGES = 10 * 3 * 40 * 2**20 // os.sysconf("SC_PAGE_SIZE")
"""Of all that the ten passes take."""


def measure(device: str, where: str, **environment: str) -> dict[str, int]:
    """Page faults of ten passes that take 120 MiB each, and bytes of resident memory at their end and after them."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", SCRIPT, device, where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**others, **environment})
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_what_a_pass_frees_is_kept_for_the_next_and_given_back_at_the_end() -> None:
    found = measure("cpu", "main")
    assert found["faults"] < 0.05 * PAGES
    assert found["inside"] - found["after"] > 100 * 2**20


def test_without_it_the_passes_ask_for_their_memory_anew() -> None:
    assert measure("", "main")["faults"] > 0.5 * PAGES
    assert measure("cuda", "main")["faults"] > 0.5 * PAGES, "nothing is done for passes on another device"


def test_a_worker_that_is_told_by_its_environment_keeps_it_in_every_thread() -> None:
    assert measure("", "thread", **heap.ENVIRONMENT)["faults"] < 0.05 * PAGES
    assert measure("", "thread")["faults"] > 0.5 * PAGES
