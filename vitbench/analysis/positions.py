"""Where each library keeps a model's position embeddings, and which of their rows are patches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vitbench.analysis.filters import Stop, first_convolution, run_until_stopped
from vitbench.backbones.base import Backbone
from vitbench.backbones.jax_vit import JaxViT
from vitbench.errors import UsageError

FloatArray = npt.NDArray[np.float64]

# Families of timm that add their table in `forward_features` itself, and the number of its rows before the patches.
_CLASS_ROW = {"Beit": 1, "Cait": 0, "ConVit": 0, "PoolingVisionTransformer": 0, "VOLO": 0, "VisionTransformerSAM": 0}
_POSITION_NAME = re.compile(r"(^|[._])pos([._]|$)|attention_bias|relative")
_CHANNELS_FIRST = {"PoolingVisionTransformer"}


@dataclass(frozen=True)
class Absolute:
    """A position embedding per patch.

    Attributes:
        table: `[h, w, D]` float64, as it is added to the patch embeddings at the backbone's input size.
        left_out: Number of rows of the table for class, distillation and register tokens.
    """

    table: FloatArray
    left_out: int


@dataclass(frozen=True)
class Relative:
    """A bias on the attention logits for every displacement.

    Attributes:
        layer: The module that it belongs to.
        maps: `[heads, 2h - 1, 2w - 1]` float64: the bias from a query to the key that lies (dy, dx) patches away, no
            displacement in the middle.
        left_out: Number of class, distillation and register tokens in the window.
    """

    layer: str
    maps: FloatArray
    left_out: int


def displacement_maps(bias: FloatArray, window: tuple[int, int]) -> FloatArray:
    """Turn a bias per pair of positions into one per displacement.

    A relative bias is B[i, j] = b(y_j - y_i, x_j - x_i). Each displacement occurs for (h - |dy|)(w - |dx|) pairs, whose mean is
    taken; they are equal.

    Args:
        bias: `[heads, h * w, h * w]`, query by key.
        window: h and w.

    Returns:
        `[heads, 2h - 1, 2w - 1]`, displacement (0, 0) in the middle.
    """
    height, width = window
    y, x = (axis.ravel() for axis in np.mgrid[:height, :width])
    rows = y[None, :] - y[:, None] + height - 1
    columns = x[None, :] - x[:, None] + width - 1
    index = (rows * (2 * width - 1) + columns).ravel()
    size = (2 * height - 1) * (2 * width - 1)
    counts = np.bincount(index, minlength=size)
    sums = np.stack([np.bincount(index, weights=head.ravel(), minlength=size) for head in bias])
    return (sums / counts).reshape(len(bias), 2 * height - 1, 2 * width - 1)


def read_positions(backbone: Backbone) -> Absolute | list[Relative]:
    """The position embeddings of a backbone at its input size, resized as the backbone itself does it.

    Raises:
        UsageError: It has none that could be shown: none at all, rotary ones, or a layout that is not known.
    """
    kind = backbone.spec.kind
    if not backbone.modules:
        refuse(backbone, "it has no weights that can be looked at")
    if kind == "jax":
        return _jax(backbone)
    if kind == "hf":
        return _huggingface(backbone)
    if kind == "timm":
        return _timm(backbone)
    return refuse(backbone, f"where backbones of kind '{kind}' keep them is not known")


def refuse(backbone: Backbone, reason: str) -> NoReturn:
    """Say in one line why there is nothing to show.

    Raises:
        UsageError: Always.
    """
    raise UsageError(f"the position embeddings of backbone '{backbone.spec.text}' cannot be shown: {reason}")


def _grid(rows: Tensor, grid: Sequence[int], left_out: int, backbone: Backbone) -> Absolute:
    """Rows `[h * w, D]`, without those of other tokens, as a grid."""
    height, width = grid
    if len(rows) != height * width:
        refuse(
            backbone, f"they are {len(rows)} rows where its patches are {height}x{width}, a layout that is not known"
        )
    return Absolute(rows.detach().cpu().double().reshape(height, width, -1).numpy(), left_out)


def _jax(backbone: Backbone) -> Absolute:
    model = backbone.modules[0]
    if not isinstance(model, JaxViT):
        refuse(backbone, "it is no ViT from an npz file")
    prefix, side = int(model.config.cls_has_position), model.config.grid
    return _grid(model.pos_embedding[0, prefix:], (side, side), prefix, backbone)


def _huggingface(backbone: Backbone) -> Absolute | list[Relative]:
    from vitbench.backbones import hf_families

    model: Any = backbone.modules[0]
    family = hf_families.FAMILIES[model.config.model_type]
    if family.positions == "rotary":
        refuse(backbone, "they are rotary (RoPE), turned into queries and keys in every layer, and not a table")
    if family.positions == "none":
        refuse(backbone, "it is convolutional, and has none")
    if family.positions == "windows":
        return _relative(backbone, prefix=0)
    tokens = _embedded_black(backbone)
    prefix = hf_families.prefix_tokens(family, model.config)
    patch = model.config.patch_size
    patches = (patch, patch) if isinstance(patch, int) else patch
    grid = [side // length for side, length in zip(backbone.input_size, patches, strict=True)]
    # Registers join after the positions: they have no rows in the table.
    return _grid(tokens[prefix:], grid, family.prefix, backbone)


def _embedded_black(backbone: Backbone) -> Tensor:
    """The tokens `[T, D]` that a Hugging Face model makes of an image whose patch embeddings are zero.

    Where the patch embedding gives 0, what the patches have after the embedding layer is their position embedding and nothing
    else, resized by the model itself where it resizes.
    """
    model = backbone.modules[0]
    kept: list[Tensor] = []

    def nothing(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0])
        raise Stop

    embeddings = next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "embeddings")
    hooks = [first_convolution(backbone).register_forward_hook(nothing), embeddings.register_forward_hook(keep)]
    try:
        run_until_stopped(backbone)
    finally:
        for hook in hooks:
            hook.remove()
    return kept[0]


def _timm(backbone: Backbone) -> Absolute | list[Relative]:
    model: Any = backbone.modules[0]
    families = {kind.__name__ for kind in type(model).__mro__}
    table = getattr(model, "pos_embed", None)
    if "NaFlexVit" in families:
        table = getattr(model.embeds, "pos_embed", None)
    if isinstance(table, nn.Parameter):
        return _timm_table(backbone, model, table, families)
    if any(_has_bias(module) for module in model.modules()):
        return _relative(backbone, prefix=int(getattr(model, "num_prefix_tokens", 0)))
    if getattr(model, "rope", None) is not None:
        refuse(backbone, "they are rotary (RoPE), turned into queries and keys in every layer, and not a table")
    named = next((name for name, _ in model.named_parameters() if _POSITION_NAME.search(name)), None)
    return refuse(backbone, f"how it lays out its {named} is not known" if named else "it has none")


def _timm_table(backbone: Backbone, model: Any, table: Tensor, families: set[str]) -> Absolute:
    if "NaFlexVit" in families and table.ndim == 4:
        return _grid(table[0].flatten(0, 1), table.shape[1:3], 0, backbone)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    if families & {"VisionTransformer", "VisionTransformerDistilled", "Eva"}:
        grid = model.patch_embed.grid_size
        if model.dynamic_img_size:
            grid = model.patch_embed.dynamic_feat_size(backbone.input_size)
        blank = torch.zeros(1, *grid, table.shape[-1], device=table.device)
        # The model's own code, on patch embeddings of 0: what it adds, resized by itself when its size is dynamic.
        with torch.inference_mode():
            tokens = model._pos_embed(blank if model.dynamic_img_size else blank.flatten(1, 2))
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return _grid(tokens[0, prefix:], grid, 0 if model.no_embed_class else prefix, backbone)
    known = families & _CLASS_ROW.keys()
    if not known:
        refuse(backbone, f"how the {type(model).__name__} of timm lays them out is not known")
    left_out = _CLASS_ROW[known.pop()]
    if table.ndim == 4:
        cells = table[0].permute(1, 2, 0) if families & _CHANNELS_FIRST else table[0]
        return _grid(cells.flatten(0, 1), cells.shape[:2], 0, backbone)
    return _grid(table[0, left_out:], model.patch_embed.grid_size, left_out, backbone)


def _has_bias(module: nn.Module) -> bool:
    """A module with a relative position bias: one of timm's that can be asked for it, or the attention of BEiT or Swin."""
    index = getattr(module, "relative_position_index", None)
    return hasattr(module, "window_size") and (hasattr(module, "get_bias") or isinstance(index, Tensor))


def _bias(module: Any) -> Tensor:
    """`[heads, T, T]`: the bias that a module adds to its attention logits, query by key."""
    if hasattr(module, "get_bias"):
        bias: Tensor = module.get_bias()
        return bias.reshape(bias.shape[-3:])
    if hasattr(module, "relative_coords_table"):
        mlp = module.cpb_mlp if hasattr(module, "cpb_mlp") else module.continuous_position_bias_mlp
        # Swin v2 (Liu et al. 2022, in both libraries): a network on log-spaced displacements, its output squashed to 0..16.
        values = mlp(module.relative_coords_table)
        values = 16 * torch.sigmoid(values.reshape(-1, values.shape[-1]))
    else:
        values = module.relative_position_bias_table
    index = module.relative_position_index.reshape(-1)
    side = isqrt(len(index))
    return values[index].reshape(side, side, -1).permute(2, 0, 1)  # type: ignore[no-any-return]


def _relative(backbone: Backbone, prefix: int) -> list[Relative]:
    """The relative bias of every layer that has one of its own, in order."""
    found = []
    for name, module in backbone.modules[0].named_modules():
        if not _has_bias(module):
            continue
        size: Any = module.window_size
        height, width = (size, size) if isinstance(size, int) else size
        with torch.inference_mode():
            bias = _bias(module).detach().cpu().double().numpy()
        left_out = bias.shape[-1] - height * width
        if left_out not in (0, prefix):
            refuse(backbone, f"'{name}' has a bias for {bias.shape[-1]} tokens in a window of {height}x{width} patches")
        maps = displacement_maps(bias[:, left_out:, left_out:], (height, width))
        found.append(Relative(name, maps, left_out))
    return found
