"""Memory of an extraction, in processes of their own: it does not grow with the number of images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, resource, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
from PIL import Image
import vitbench
from vitbench.features import extract, writer
from vitbench.features.store import FeatureStore
from vitbench.tasks import transforms

torch.set_num_threads(1)
writer.FLUSH_BYTES = 2 * 2**20
images, out = int(sys.argv[1]), Path(sys.argv[2])
backbone = vitbench.load_backbone("pixels", device="cpu")
picture = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
split = SimpleNamespace(task="t", image=lambda row: picture, where=str, labels=np.zeros(images, np.int64))
rows = np.arange(images, dtype=np.int64)
store = FeatureStore(out, "pixels", "t", "train", {"images": images})
arguments = (backbone, split, transforms.parse(backbone.preprocessing), ["pixels"])
options = extract.ExtractionOptions(workers=1)
extract.extract_missing(*arguments, rows[:256], store, options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
atoms = extract.extract_missing(*arguments, rows, store, options)
total = sum(len(part) for part, _ in store.chunks(atoms, rows, 256))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stored = sum(file.stat().st_size for file in store.folder.iterdir())
print(json.dumps({"rows": total, "peak": after, "growth": after - before, "stored": stored}))
"""


def measure(images: int, out: Path) -> dict[str, int]:
    """Kilobytes at the peak of extracting and reading again, and bytes that were stored."""
    command = [sys.executable, "-c", SCRIPT, str(images), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_the_peak_of_an_extraction_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    one, four = measure(1500, tmp_path / "one"), measure(6000, tmp_path / "four")
    assert (one["rows"], four["rows"]) == (1500, 6000)
    stored = (four["stored"] - one["stored"]) / 1024
    assert stored > 50_000, "features that were held would show"
    assert four["peak"] / one["peak"] < 1.06, (one, four)
    assert four["growth"] - one["growth"] < 0.25 * stored, (one, four)
