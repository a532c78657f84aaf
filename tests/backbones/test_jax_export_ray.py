"""An exported program in a Ray worker: loaded by its spec, it gives what it gives here, and its records are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import torch

import vitbench
from tests.backbones.test_jax_export import small
from tests.conftest import ImageFolderMaker
from vitbench.execution.ray.joining import own


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with own(1):
        yield


@ray.remote
def encode(spec: str, pixels: np.ndarray) -> np.ndarray:
    backbone = vitbench.load_backbone(spec, device="cpu")
    return backbone.encode(torch.from_numpy(pixels), ["pooler"])["pooler"].numpy()


@ray.remote
def run(spec: str, task: str, out: str) -> pd.DataFrame:
    return vitbench.run(spec, task, shots=[1, 2], seeds=1, out=out)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # Ray starts its processes by fork and exec, which is safe
def test_an_exported_program_works_in_a_ray_worker(
    cluster: None, tmp_path: Path, image_folder: ImageFolderMaker
) -> None:
    spec = f"jax:{small(tmp_path)}"
    pixels = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)
    here = vitbench.load_backbone(spec, device="cpu").encode(torch.from_numpy(pixels), ["pooler"])["pooler"]
    there = ray.get(encode.remote(spec, pixels), timeout=120)
    assert np.array_equal(there, here.numpy())
    task = f"imagefolder:{image_folder()}"
    records = ray.get(run.remote(spec, task, str(tmp_path / "ray")), timeout=120)
    expected = vitbench.run(spec, task, shots=[1, 2], seeds=1, out=tmp_path / "local")
    columns = ["key", "representation", "shot", "seed", "accuracy", "l2"]
    pd.testing.assert_frame_equal(records[columns], expected[columns])
