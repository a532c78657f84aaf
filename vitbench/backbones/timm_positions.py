"""Position embeddings of a timm model, resized as JAX does while its checkpoint is loaded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any

import timm.models
from torch import Tensor, nn

from vitbench.backbones.positions import resize_note, resize_positions
from vitbench.errors import UsageError, WeightsError

TABLE = "pos_embed"
_RESIZE = "resample_abs_pos_embed"
_LOCK = threading.Lock()


def check_positions(model: Any, where: str) -> None:
    """Check that `positions=jax` can be meant for a model.

    Raises:
        UsageError: The model has no table of absolute position embeddings, or resizes it in every forward pass.
    """
    table = getattr(model, TABLE, None)
    if not isinstance(table, nn.Parameter) or table.ndim != 3 or not hasattr(_module_of(model), _RESIZE):
        raise UsageError(
            f"{where}: timm's {type(model).__name__} has no table of position embeddings that positions=jax "
            "could resize: drop the option"
        )
    if getattr(model, "dynamic_img_size", False):
        raise UsageError(
            f"{where}: model.dynamic_img_size resizes position embeddings in every pass, as timm does: drop it or "
            "positions=jax"
        )


def _module_of(model: Any) -> Any:
    """The module of the nearest family of timm's that resizes such tables, or the model's own."""
    modules = [sys.modules[kind.__module__] for kind in type(model).__mro__]
    return next((module for module in modules if hasattr(module, _RESIZE)), modules[0])


@contextmanager
def aligned_corners(wanted: bool) -> Iterator[list[str]]:
    """Let timm's loaders resize tables of position embeddings as JAX does, and collect a line on each that they resize.

    timm's families find the table under the many names that checkpoints have for it, and hand it to one function, named in the
    module of every family; the function alone is replaced.

    Args:
        wanted: Whether to do so; timm's own way is left as it is otherwise.
    """
    notes: list[str] = []

    def resize(
        table: Tensor,
        new_size: Sequence[int],
        old_size: Sequence[int] | None = None,
        num_prefix_tokens: int = 1,
        *arguments: object,
        **options: object,
    ) -> Tensor:
        side = isqrt(table.shape[1] - num_prefix_tokens)
        old, new = tuple(old_size or (side, side)), (int(new_size[0]), int(new_size[1]))
        if old == new:
            return table
        if old != (side, side):
            raise WeightsError(
                f"positions=jax resizes square grids of position embeddings, and this one is {old[0]}x{old[1]}"
            )
        resized = resize_positions(table, new, num_prefix_tokens)
        notes.append(resize_note((side, side), new))
        return resized

    if not wanted:
        yield notes
        return
    prefix = f"{timm.models.__name__}."
    with _LOCK:
        originals = {
            name: getattr(module, _RESIZE)
            for name, module in list(sys.modules.items())
            if name.startswith(prefix) and hasattr(module, _RESIZE)
        }
        try:
            for name in originals:
                setattr(sys.modules[name], _RESIZE, resize)
            yield notes
        finally:
            for name, original in originals.items():
                setattr(sys.modules[name], _RESIZE, original)
