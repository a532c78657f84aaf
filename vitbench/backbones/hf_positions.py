"""Position embeddings of a Hugging Face model, resized as JAX does before the model is used."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from vitbench.backbones import hf_families
from vitbench.backbones.from_scratch import FIRST_SEED
from vitbench.backbones.hf_families import Family
from vitbench.backbones.hf_loading import build
from vitbench.backbones.positions import resize_note, resize_positions
from vitbench.errors import UsageError

_TABLE_KEY = re.compile(r"(^|\.)position_embeddings?(\.weight)?$")
_WHY_NOT = {
    "rotary": "its position embeddings are rotary, computed for any grid",
    "windows": "its positions are relative, within windows",
    "none": "it is convolutional, and has no position embeddings",
}


def check_positions(family: Family, config: Any, size: tuple[int, int], where: str) -> None:
    """Check that `positions=jax` can be meant for a model run on images of `size` (height and width in pixels).

    Raises:
        UsageError: The model has no table of position embeddings, or its images are not square.
    """
    if family.positions in _WHY_NOT:
        raise UsageError(f"{where}: {_WHY_NOT[family.positions]}, which positions=jax cannot resize: drop the option")
    if size[0] != size[1] and size != hf_families.native_size(config):
        raise UsageError(f"{where}: positions=jax is for square images, and its own are {size[0]}x{size[1]}")


def resized_model(model: nn.Module, family: Family, config: Any, size: tuple[int, int]) -> tuple[nn.Module, str]:
    """The model built for images of `size`, its table of position embeddings resized once and for all.

    Args:
        model: With its weights, built for the size of `config`.
        family: Its family; one with a table of position embeddings.
        config: Its config.
        size: Height and width in pixels.

    Returns:
        The new model with a config of its own, and a line on what was done; the model itself and "" where its grid is that of
        `size` already.
    """
    native = hf_families.native_size(config)
    if native is None or native == size:
        return model, ""
    old, new = ((height // config.patch_size, width // config.patch_size) for height, width in (native, size))
    target = build(family, hf_families.sized_config(config, size), FIRST_SEED)
    state = model.state_dict()
    key = next(name for name in state if _TABLE_KEY.search(name))
    state[key] = _resized(state[key], new, family.prefix)
    target.load_state_dict(state)
    return target, resize_note(old, new)


def _resized(table: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """`[1, rows, D]` of a ViT or `[rows, D]` of CLIP's and SigLIP's `nn.Embedding`, in the same form."""
    return resize_positions(table, grid, prefix) if table.ndim == 3 else resize_positions(table[None], grid, prefix)[0]
