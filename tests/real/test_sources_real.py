"""The same real images through every form of source."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Task

COUNT = 200
TASK = """\
title: CIFAR-10 (part)
source: {{kind: {kind}, {source}}}
splits:
  everything: {{files: [{file}], size: {size}}}
  train: {{select: "everything[:120]"}}
  test: {{select: "everything[120:200]"}}
num_classes: 10
"""


def task(folder: Path, kind: str, file: str, source: str = "path: .", size: int = COUNT) -> Task:
    path = folder / f"{kind}.yaml"
    path.write_text(TASK.format(kind=kind, source=source, file=file, size=size))
    return load_task(str(path))


@pytest.fixture
def parquet(test_data: Path, tmp_path: Path) -> Task:
    folder = test_data / "images" / "cifar10_subset"
    return task(tmp_path, "parquet", "test.parquet", f"path: {folder}", 1000)


def test_tars_archives_and_binaries_give_the_pixels_of_the_parquet(parquet: Task, tmp_path: Path) -> None:
    images = [np.asarray(parquet.split("everything").image(row)) for row in range(COUNT)]
    labels = parquet.split("everything").labels[:COUNT]
    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "PNG")
            for name, data in ((f"{row:05d}.png", content.getvalue()), (f"{row:05d}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    np.savez(tmp_path / "part.npz", images=np.stack(images), labels=labels)
    records = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels, strict=True)]
    (tmp_path / "part.bin").write_bytes(b"".join(records))
    for kind, file in (("webdataset", "part.tar"), ("npz", "part.npz"), ("cifar_binary", "part.bin")):
        other = task(tmp_path, kind, file)
        assert other.train.labels.tolist() == parquet.train.labels.tolist()
        for row in range(0, 80, 7):
            assert other.test.image(row).tobytes() == parquet.test.image(row).tobytes(), (kind, row)
