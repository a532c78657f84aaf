"""Images per second from JPEG files to stored features, against what people would use instead.

    python bench/extraction.py [--images 48] [--repeats 3]

ViT-S/16 at 224 pixels with random weights, JPEG photographs of 500 x 375 pixels, the CPU with all its threads. Measured in turns
in one process, on the same files:

* vitbench in float32 with cls, gap and pooler kept; with the first alone; in bfloat16; and in float32 without the packed weights
  of `vitbench.features.precision`, which shows what those do
* the bare loop: `model.forward_features` on ready tensors, per dtype, at vitbench's own batch size and at 32; the faster counts
* a plain timm loop: a DataLoader with timm's transform and a worker process per core (started and warm before the clock runs),
  float32, batches of 32
* transformers' `pipeline("image-feature-extraction")` on a ViT of equal size, float32, batches of 8

Printed beside it: images per second of decoding alone, in threads and in processes, and the drift of bfloat16 and of packed
weights to plain float32 (cosine, and the change of a leave-one-out ridge score on the same images).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from common import make_photographs, ratio_of, row, taken_in_turns, versions, write_result
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from vitbench.backbones.base import Backbone
from vitbench.features.extract import ExtractionOptions, decoded_batches, feature_set
from vitbench.features.featureset import FeatureSet
from vitbench.features.load import load_backbone
from vitbench.features.store import FeatureStore
from vitbench.protocols.fewshot import FewShot
from vitbench.tasks import transforms
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Split, TaskOptions

MODEL = "vit_small_patch16_224"
THREE = ["cls", "gap", "pooler"]
CLASSES = 4


class Files(Dataset[Tensor]):
    """What timm's documentation shows: an image file, opened and transformed."""

    def __init__(self, paths: list[Path], transform: Callable[[Any], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def bare_loop(model: Any, tensors: Tensor, size: int, dtype: str) -> None:
    """The forward pass on ready tensors, and nothing else."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        for batch in tensors.split(size):
            model.forward_features(batch)


def timm_loop(model: Any, loader: DataLoader[Tensor]) -> Tensor:
    """The loop that people write."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in loader])


def make_pipeline(folder: Path) -> Any:
    """The pipeline of transformers on a ViT-S/16 of its own, with its own image processor."""
    config = transformers.ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536
    )
    transformers.ViTModel(config).save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    return transformers.pipeline("image-feature-extraction", model=str(folder), batch_size=8, device="cpu")


class Ours:
    """vitbench from files to a feature store, a fresh one each time."""

    def __init__(self, root: Path, backbone: Backbone, split: Split) -> None:
        self.root, self.backbone, self.split, self.count = root, backbone, split, 0
        self.preprocessing = transforms.parse(backbone.preprocessing)
        self.rows = np.arange(len(split), dtype=np.int64)

    def __call__(self, names: list[str], dtype: str, packed: bool = True) -> FeatureSet:
        """Extract; the features as they are read back."""
        self.count += 1
        self.backbone.to("cpu", dtype)
        store = FeatureStore(self.root / "out", "bench", "images", "test", {"number": self.count})
        options = ExtractionOptions(packed=packed)
        return feature_set(self.backbone, self.split, self.preprocessing, names, self.rows, store, options)

    def decode(self) -> None:
        """The decoding alone, in threads."""
        for _ in decoded_batches(self.split, self.preprocessing, self.rows, 32, None):
            pass


def make_sides(root: Path, name: str, images: int) -> tuple[Any, Ours, list[Path], DataLoader[Tensor]]:
    """A timm model of random weights, vitbench with the same, photographs, and a loader of them with a process per core.

    Args:
        root: A folder, for the photographs and the weights.
        name: The model's name in timm.
        images: How many photographs.
    """
    make_photographs(root / "images", CLASSES, 1, -(-images // CLASSES))
    model = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
    save_file(model.state_dict(), root / "model.safetensors")
    backbone = load_backbone(f"timm:{name},checkpoint={root / 'model.safetensors'}", device="cpu")
    ours = Ours(root, backbone, load_task(f"imagefolder:{root / 'images'}", TaskOptions()).split("test"))
    paths = sorted((root / "images" / "test").glob("*/*.jpg"))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    files = Files(paths, transform)
    loader = DataLoader(files, batch_size=32, num_workers=torch.get_num_threads(), persistent_workers=True)
    return model, ours, paths, loader


def drift(features: FeatureSet, other: FeatureSet) -> dict[str, float]:
    """How far features are from others: smallest and mean cosine over images, and the change of a ridge score."""
    first, second = (item.representations["cls"] for item in (features, other))
    cosine = functional.cosine_similarity(first.double(), second.double())
    protocol = FewShot(shots=(4,), seeds=(0, 1, 2), l2="loo")
    scores = []
    for item in (features, other):
        outcomes = protocol.evaluate(item, item, "cls", CLASSES, protocol.cells())
        scores.append(float(np.mean([np.mean(found.predictions == item.labels) for found in outcomes])))
    return {
        "smallest_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "largest_difference": float((first - second).abs().max()),
        "change_in_score": scores[0] - scores[1],
    }


def main() -> int:
    """Measure, print, write `bench/results/extraction.json`; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model, ours, paths, loader = make_sides(root, MODEL, arguments.images)
        pipeline = make_pipeline(root / "hf")
        tensors = torch.cat(list(loader))
        names = [str(path) for path in paths]
        sides: dict[str, Callable[[], object]] = {
            "vitbench float32": partial(ours, THREE, "float32"),
            "vitbench float32, cls alone": partial(ours, THREE[:1], "float32"),
            "vitbench float32, not packed": partial(ours, THREE, "float32", packed=False),
            "vitbench bfloat16": partial(ours, THREE, "bfloat16"),
            "bare float32 by 16": partial(bare_loop, model, tensors, 16, "float32"),
            "bare float32 by 32": partial(bare_loop, model, tensors, 32, "float32"),
            "bare bfloat16 by 16": partial(bare_loop, model, tensors, 16, "bfloat16"),
            "bare bfloat16 by 32": partial(bare_loop, model, tensors, 32, "bfloat16"),
            "timm loop": partial(timm_loop, model, loader),
            "transformers pipeline": lambda: list(pipeline(names)),
            "decode in threads": ours.decode,
            "decode in processes": lambda: sum(1 for _ in loader),
        }
        seconds = taken_in_turns(sides, arguments.repeats)
        plain = ours(THREE, "float32", packed=False)
        drifts = {dtype: drift(ours(THREE, dtype), plain) for dtype in ("float32", "bfloat16")}
    count = len(paths)
    rates = {side: count / statistics.median(times) for side, times in seconds.items()}

    def best_bare(dtype: str) -> str:
        return max((f"bare {dtype} by {size}" for size in (16, 32)), key=lambda side: rates[side])

    def against(claim: str, side: str, peer: str, goal: float, peer_name: str, **keywords: Any) -> dict[str, Any]:
        figures = f"{rates[side]:.1f} images/s", f"{peer_name} {rates[peer]:.1f} images/s"
        return row(claim, *figures, ratio_of(seconds[peer], seconds[side]), goal, **keywords)

    found = versions(["torch", "timm", "transformers", "pillow", "numpy"])
    peers = {
        "timm loop": f"timm {found['timm']} loop",
        "transformers pipeline": f"transformers {found['transformers']} pipeline",
    }
    decoding = "decoding takes a share of the same cores, and so short a run asks for its heap anew"
    rows = [
        against(
            f"JPEG to three stored representations, {dtype}, against the bare forward loop",
            f"vitbench {dtype}",
            best_bare(dtype),
            0.97,
            f"torch {found['torch']}, {best_bare(dtype)}",
            reason=decoding,
        )
        for dtype in ("float32", "bfloat16")
    ]
    rows.append(
        against(
            "the same without packed weights, float32",
            "vitbench float32, not packed",
            best_bare("float32"),
            0.97,
            f"torch {found['torch']}, {best_bare('float32')}",
            reason=decoding,
        )
    )
    for label, side, goal in (
        ("float32", "vitbench float32", 1.0),
        ("float32 without packed weights", "vitbench float32, not packed", 1.0),
        ("bfloat16", "vitbench bfloat16", 1.7),
    ):
        rows += [
            against(f"JPEG to features, {label}, against the {peer} in float32", side, peer, goal, name)
            for peer, name in peers.items()
        ]
    one, three = seconds["vitbench float32, cls alone"], seconds["vitbench float32"]
    rows.append(
        row(
            "time of three representations over that of one",
            f"{statistics.median(three):.2f} s",
            f"cls alone {statistics.median(one):.2f} s",
            ratio_of(three, one),
            1.02,
            at_most=True,
        )
    )
    write_result(
        "extraction",
        {
            "rows": rows,
            "images_per_second": rates,
            "drift_to_plain_float32": drifts,
            "model": MODEL,
            "images": count,
            "threads": threads,
            "repeats": seconds,
            "versions": found,
        },
    )
    for dtype, item in drifts.items():
        print(
            f"extraction: {dtype} to plain float32: cosine at least {item['smallest_cosine']:.7f}, largest difference "
            f"{item['largest_difference']:.2g}, change in score {100 * item['change_in_score']:+.2f} points"
        )
    print(
        f"extraction: decoding alone {rates['decode in threads']:.0f} images/s in {threads} threads, "
        f"{rates['decode in processes']:.0f} in as many processes"
    )
    return 0 if all(item["met"] for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
