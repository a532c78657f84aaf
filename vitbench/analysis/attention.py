"""Attention weights of plain ViTs, recomputed from the queries and keys that a model's own forward pass makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitbench.backbones.base import Backbone
from vitbench.backbones.hf_families import FAMILIES, prefix_tokens
from vitbench.backbones.jax_vit import JaxViT
from vitbench.backbones.timm_heads import read_layout
from vitbench.errors import UsageError

Visit = Callable[[int, Tensor], object]

_WORKS = (
    "attention is read from plain ViTs: timm (ViT, DeiT, BEiT, EVA, DINOv2, DINOv3), "
    "hf (vit, deit, dinov2, dinov2_with_registers, dinov3_vit, clip, siglip), jax .npz"
)
# The weights of one layer and one batch, `[N, heads, T, T]` float32, are kept below this many bytes where N can be chosen.
_LAYER_BYTES = 2**28
_TYPICAL_HEADS = 16
_LARGEST_BATCH = 16


@dataclass(frozen=True)
class TokenLayout:
    """Where the patches are in a model's row of tokens, and in its image.

    Attributes:
        prefix: Tokens before the patches: class, distillation and register tokens.
        grid_h: Rows of patches; the patches follow the prefix row by row.
        grid_w: Patches per row.
        patch_h: Distance in pixels between the centres of patches that are one below the other.
        patch_w: The same for patches side by side.
        has_cls: Whether token 0 is a class token.
    """

    prefix: int
    grid_h: int
    grid_w: int
    patch_h: int
    patch_w: int
    has_cls: bool

    @property
    def tokens(self) -> int:
        """Length T of the row of tokens."""
        return self.prefix + self.grid_h * self.grid_w

    @property
    def reader(self) -> str:
        """Whose attention `to_patches` gives, for titles."""
        return "CLS token" if self.has_cls else "mean over patches (the model has no CLS token)"

    def to_patches(self, attention: Tensor) -> Tensor:
        """Attention paid to the patches by CLS, or, where there is none, by the mean patch.

        Args:
            attention: `[..., T, T]`, rows are queries.

        Returns:
            `[..., grid_h, grid_w]`. It sums to 1 less what went to the prefix tokens.
        """
        rows = attention[..., 0, :] if self.has_cls else attention[..., self.prefix :, :].mean(dim=-2)
        patches = rows[..., self.prefix :]
        return patches.reshape(*patches.shape[:-1], self.grid_h, self.grid_w)


def one_backbone(backbones: Sequence[Backbone], kind: str) -> tuple[Backbone, TokenLayout]:
    """The one backbone that an analysis of attention takes, and its layout.

    Raises:
        UsageError: There is not exactly one, or it is no plain ViT.
    """
    if len(backbones) != 1:
        raise UsageError(
            f"{kind} takes one backbone, got {len(backbones)}: run it once for each, with an --out of its own"
        )
    return backbones[0], token_layout(backbones[0])


def token_layout(backbone: Backbone) -> TokenLayout:
    """The layout of a plain ViT's tokens, from the model's own attributes and never from the shape of a tensor.

    Raises:
        UsageError: The backbone is no plain ViT: a CNN, a pyramid, a mixer, pixels, an exported program.
    """
    model: Any = backbone.modules[0] if len(backbone.modules) == 1 else None
    layout = None
    if isinstance(model, JaxViT):
        config = model.config
        layout = TokenLayout(int(config.cls), config.grid, config.grid, config.stride, config.stride, config.cls)
    elif getattr(getattr(model, "config", None), "model_type", None) in FAMILIES:
        layout = _hf_layout(model, backbone.input_size)
    elif hasattr(model, "pretrained_cfg"):
        layout = _timm_layout(model, backbone.input_size)
    if layout is None:
        raise UsageError(
            f"backbone '{backbone.spec.text}' has no row of patch tokens that attend to each other; {_WORKS}"
        )
    return layout


def _hf_layout(model: Any, size: tuple[int, int]) -> TokenLayout | None:
    family, patch = FAMILIES[model.config.model_type], getattr(model.config, "patch_size", None)
    if family.staged or patch is None:
        return None
    height, width = (patch, patch) if isinstance(patch, int) else patch
    prefix = prefix_tokens(family, model.config)
    return TokenLayout(prefix, size[0] // height, size[1] // width, height, width, family.prefix > 0)


def _timm_layout(model: Any, size: tuple[int, int]) -> TokenLayout | None:
    layout = read_layout(model)
    # Mixers are plain rows of blocks on tokens too, without heads.
    if not layout.plain or not any(hasattr(module, "num_heads") for module in model.blocks.modules()):
        return None
    embed = getattr(model, "patch_embed", None) or model.embeds  # NaFlexVit has the latter
    grid_h, grid_w = embed.dynamic_feat_size(size)
    patch_h, patch_w = embed.feat_ratio(as_scalar=False)
    return TokenLayout(layout.prefix, grid_h, grid_w, patch_h, patch_w, layout.has_class_token)


def batch_size(layout: TokenLayout) -> int:
    """Images per batch such that one layer's weights stay near 256 MiB, at least 1 and at most 16."""
    return max(1, min(_LARGEST_BATCH, _LAYER_BYTES // (4 * _TYPICAL_HEADS * layout.tokens**2)))


def block_number(backbone: Backbone, layer: int) -> int:
    """`layer` counted from 1, as in `cls@L`; negative numbers count from the last block, -1.

    Raises:
        UsageError: The model has no such block.
    """
    number = layer if layer >= 0 else backbone.depth + 1 + layer
    if not 1 <= number <= backbone.depth:
        raise UsageError(
            f"backbone '{backbone.spec.text}' has no block {layer}: blocks go from 1 to {backbone.depth}, "
            f"or from -{backbone.depth} to -1"
        )
    return number


def capture_attention(
    backbone: Backbone, pixels: Tensor, visit: Visit, layers: Collection[int] | None = None
) -> TokenLayout:
    """Run one batch through the model and show the attention weights of each block as they come.

    The model runs as it always does, through `scaled_dot_product_attention`; each call is watched, and the weights are computed
    a second time from its queries and keys. Those are as the model made them: normed, rotated, with their scale, and with the
    position bias that is added. So nothing is known here of any family, and a model that was set to compute its weights
    explicitly (timm without fused attention, Hugging Face `eager`) is set to the fused way while it runs, and set back.

    Only one block's weights exist at a time, unless `visit` keeps them.

    Args:
        backbone: A plain ViT.
        pixels: `[N, 3, H, W]` float32, preprocessed.
        visit: Called with the number of the block (from 1) and its weights `[N, heads, T, T]` float32; rows are queries and
            sum to 1. It runs in inference mode.
        layers: Blocks to compute, counted from 1 or, if negative, from the end; all by default.

    Returns:
        The layout of the tokens.

    Raises:
        UsageError: The backbone is no plain ViT, or its blocks attend in another way than once over all tokens.
    """
    layout = token_layout(backbone)
    every = range(1, backbone.depth + 1)
    wanted = frozenset(every if layers is None else (block_number(backbone, layer) for layer in layers))
    watch = _Watch(layout.tokens, wanted, visit)
    with _fused(backbone.modules[0]), watch:
        backbone.encode(pixels, ["gap"])
    if watch.calls != backbone.depth:
        raise UsageError(
            f"backbone '{backbone.spec.text}' attends {watch.calls} times over all its {layout.tokens} tokens in "
            f"{backbone.depth} blocks, where once in each block is needed; {_WORKS}"
        )
    return layout


class _Watch(TorchFunctionMode):
    """Sees every `scaled_dot_product_attention` of the forward pass inside it, and counts those over all tokens."""

    def __init__(self, tokens: int, wanted: frozenset[int], visit: Visit) -> None:
        super().__init__()
        self.tokens, self.wanted, self.visit = tokens, wanted, visit
        self.calls = 0

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        if function is functional.scaled_dot_product_attention:
            bound = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), arguments, strict=False))
            self._look(**bound | keywords)
        return function(*arguments, **keywords)

    def _look(self, query: Tensor, key: Tensor, **rest: Any) -> None:
        # Attention pooling (SigLIP, MAP heads) has one query for all tokens, and is none of the blocks.
        if not query.shape[-2] == key.shape[-2] == self.tokens:
            return
        self.calls += 1
        if self.calls in self.wanted:
            with torch.autocast(query.device.type, enabled=False):
                self.visit(self.calls, attention_weights(query, key, **rest))


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights inside `torch.nn.functional.scaled_dot_product_attention`, with its arguments: softmax(QKᵀ · scale + mask).

    Args:
        query: `[N, heads, T, d]`.
        key: `[N, heads, T, d]`, or fewer heads with `enable_gqa`.
        value: Not used, nor is `dropout_p`: backbones are frozen.
        attn_mask: What is added to the scores, or a boolean mask of what may be attended to; broadcast to `[N, heads, T, T]`.
        dropout_p: Not used.
        is_causal: Whether a token attends to none after it.
        scale: 1/√d if None.
        enable_gqa: Whether a key's head serves several heads of queries.

    Returns:
        `[N, heads, T, T]` float32.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query.float() * scale) @ key.float().transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask.float()
    return scores.softmax(dim=-1)


@contextmanager
def _fused(model: Any) -> Iterator[None]:
    """Let a model compute its attention by `scaled_dot_product_attention`, and set it back as it was."""
    unfused: list[nn.Module] = [
        module for module in model.modules() if getattr(module, "fused_attn", None) is False
    ]  # timm
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)  # Hugging Face
    try:
        for module in unfused:
            module.fused_attn = True  # type: ignore[assignment]
        if implementation not in (None, "sdpa"):
            model.set_attn_implementation("sdpa")
        yield
    finally:
        for module in unfused:
            module.fused_attn = False  # type: ignore[assignment]
        if implementation not in (None, "sdpa"):
            model.set_attn_implementation(implementation)
