"""The heap while images are embedded, in processes of their own: what was freed is there for the next pass, and then goes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ImageFolderMaker
from vitbench.execution import estimate
from vitbench.features import heap
from vitbench.features.cost import measure_cost
from vitbench.features.extract import ExtractionOptions, extract_missing
from vitbench.features.load import load_backbone
from vitbench.features.store import FeatureStore
from vitbench.tasks import transforms
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import TaskOptions

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has another heap")

SCRIPT = """
import ctypes, json, resource, sys
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

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would be one fault
torch.set_num_threads(1)
found = {}
passes(found)
print(json.dumps(found))
"""
PAGES = 10 * 3 * 40 * 2**20 // os.sysconf("SC_PAGE_SIZE")
"""Of all that the ten passes take."""


def measure(device: str, **environment: str) -> dict[str, int]:
    """Page faults of ten passes that take 120 MiB each, and bytes of resident memory at their end and after them."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", SCRIPT, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**others, **environment})
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_what_a_pass_frees_is_kept_for_the_next_and_given_back_at_the_end() -> None:
    found = measure("cpu")
    assert found["faults"] < 0.05 * PAGES
    assert found["inside"] - found["after"] > 100 * 2**20


def test_without_it_the_passes_ask_for_their_memory_anew() -> None:
    assert measure("")["faults"] > 0.5 * PAGES
    assert measure("cuda")["faults"] > 0.5 * PAGES, "nothing is done for passes on another device"
    assert measure("cpu", MALLOC_TRIM_THRESHOLD_="1000")["faults"] > 0.5 * PAGES, "nor where glibc was told otherwise"


class Told:
    """Stands for the C library, and keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def mallopt(self, parameter: int, value: int) -> None:
        self.calls.append((parameter, value))

    def malloc_trim(self, pad: int) -> None:
        self.calls.append((pad,))


def test_a_heap_is_kept_while_images_are_embedded_and_measured(
    image_folder: ImageFolderMaker, tiny_vit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    monkeypatch.setattr(heap, "_ours", lambda: told)
    monkeypatch.setattr(heap, "_glibc", lambda: told)
    backbone = load_backbone(tiny_vit, device="cpu")
    during: list[list[tuple[int, ...]]] = []
    original = type(backbone).encode_atoms

    def watched(self: Any, *arguments: Any) -> Any:
        during.append(list(told.calls))
        return original(self, *arguments)

    monkeypatch.setattr(type(backbone), "encode_atoms", watched)
    split = load_task(f"imagefolder:{image_folder()}", TaskOptions()).split("test")
    store = FeatureStore(tmp_path, "b", "t", "test", {"of": "a test"})
    how = transforms.parse(backbone.preprocessing)
    extract_missing(backbone, split, how, ["cls"], np.arange(2), store, ExtractionOptions())
    kept, usual = [(-4, 0), (-1, heap.KEPT_BYTES)], [(-4, 65536), (-3, 2**25), (-1, 2**26), (0,)]
    assert during == [kept]
    assert told.calls == [*kept, *usual]
    told.calls.clear()
    during.clear()
    measure_cost(tiny_vit, device="cpu", images=2)
    assert kept in during
    assert told.calls[-4:] == usual
    told.calls.clear()
    estimate._linear_rate.__wrapped__("cpu", "float32")
    assert told.calls == [*kept, *usual]


def test_a_worker_keeps_its_heap_and_gives_back_what_a_backbone_took(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = pytest.importorskip("vitbench.execution.ray.worker")
    told = Told()
    monkeypatch.setattr(heap, "_ours", lambda: told)
    monkeypatch.setattr(heap, "_glibc", lambda: told)
    monkeypatch.setattr(
        worker, "load_for", lambda *_: SimpleNamespace(device=torch.device("cpu"), weights_digest="weights")
    )
    embedder: Any = worker.Embedder.__new__(worker.Embedder)
    embedder._spec, embedder._backbone, embedder._setting = "", None, SimpleNamespace(config=None, protocol=None)
    embedder._loaded(SimpleNamespace(spec="one", weights="weights"))
    told.calls.clear()
    embedder._loaded(SimpleNamespace(spec="another", weights="weights"))
    assert told.calls == [(0,), (-4, 0), (-1, heap.KEPT_BYTES)]
