"""Examine a backbone: load it, run a batch, time it, look at what comes out."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError
from vitbench.features.extract import is_out_of_memory
from vitbench.features.load import load_backbone
from vitbench.reporting.listing import describe_backbone

REPEATS = 3


def examine(spec: str, device: str = "auto", batch_size: int = 8) -> dict[str, Any]:
    """Load a backbone, encode a batch of noise, and describe both.

    Args:
        spec: The backbone's spec.
        device: Where to run it.
        batch_size: Images in the batch.

    Returns:
        What `describe_backbone` gives, the time of one batch (the fastest of three, after one to warm up), and for each
        representation its shape and whether every value is finite.

    Raises:
        VitbenchError: It cannot be loaded.
    """
    backbone = load_backbone(spec, device=device, allow_untrained=True)
    generator = torch.Generator().manual_seed(0)
    try:
        pixels = torch.randn(batch_size, 3, *backbone.input_size, generator=generator)
        return _measure(backbone, pixels)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UsageError(
            f"a batch of {batch_size} images does not fit in memory: use a smaller --batch-size"
        ) from error


def _measure(backbone: Backbone, pixels: Tensor) -> dict[str, Any]:
    names = [name for name, item in backbone.representations.items() if item.provenance != "absent"]
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        encoded = backbone.encode(pixels, names)
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    checked = {
        name: f"{list(value.shape)}, {'all finite' if bool(value.isfinite().all()) else 'NOT FINITE'}"
        for name, value in encoded.items()
    }
    return describe_backbone(backbone) | {
        "batch": f"{len(pixels)} images in {min(seconds[1:]) * 1000:,.0f} ms ({len(pixels) / min(seconds[1:]):,.1f} images/s)",
        "output": checked,
    }
