"""The Vision Transformer of `vit_jax` and big_vision in PyTorch: it computes what the Flax models compute.

Sources: `vit_jax/models_vit.py`, `vit_jax/models_resnet.py` and `big_vision/models/vit.py`. Three Flax defaults differ from what
PyTorch ViTs do and move features by 1e-4 and more: GELU is the tanh approximation, LayerNorm's and GroupNorm's eps is 1e-6, and
padding is `SAME`, which for stride 2 puts the odd pixel after the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6
STD_CONV_EPS = 1e-5
GROUPS = 32
ROOT_KERNEL = 7

Pool = Literal["tok", "gap", "map"]


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of an attention layer and the MLP that goes with it.

    Attributes:
        heads: Number of heads.
        head_dim: Length of a head's query, key and value.
        mlp: Hidden width of the MLP.
    """

    heads: int
    head_dim: int
    mlp: int


@dataclass(frozen=True)
class JaxViTConfig:
    """What decides the computation, apart from the weights.

    Attributes:
        width: Length D of a token.
        depth: Number of encoder blocks.
        block: Sizes of the blocks.
        patch: Side of a patch, in pixels, or in cells of the ResNet's output for a hybrid.
        grid: Patches per side, G.
        cls: Whether a CLS token is put before the patches.
        cls_has_position: The paper's style: CLS first, then 1 + G² position embeddings. Otherwise big_vision's: G² position
            embeddings, added before CLS is put in front.
        map_head: Sizes of the attention-pooling (MAP) head, or None.
        pre_logits: Width of the dense + tanh layer behind the pooling; 0 for none.
        resnet: Units per block of a hybrid's ResNet, `()` for its root alone, None for a plain ViT.
        root_width: Channels of the ResNet's root; 0 for a plain ViT.
    """

    width: int
    depth: int
    block: AttentionShape
    patch: int
    grid: int
    cls: bool
    cls_has_position: bool = False
    map_head: AttentionShape | None = None
    pre_logits: int = 0
    resnet: tuple[int, ...] | None = None
    root_width: int = 0

    @property
    def pool(self) -> Pool:
        """How the model itself pools its tokens."""
        if self.map_head is not None:
            return "map"
        return "tok" if self.cls else "gap"

    @property
    def native_pooling(self) -> str:
        """What the model pools with where it has no MAP head: `cls` or `gap`."""
        return "cls" if self.cls else "gap"

    @property
    def stride(self) -> int:
        """Pixels per patch and side: the ResNet's downsampling (4, doubled by every block after the first) times `patch`."""
        if self.resnet is None:
            return self.patch
        return self.patch << (2 + max(len(self.resnet) - 1, 0))

    @property
    def channels(self) -> int:
        """Input channels of the patch embedding."""
        if self.resnet is None:
            return 3
        return 4 * self.root_width * 2 ** (len(self.resnet) - 1) if self.resnet else self.root_width

    @property
    def positions(self) -> int:
        """Rows of the position embedding."""
        return self.grid**2 + self.cls_has_position

    @property
    def pooled_dim(self) -> int:
        """Length of the model's own pooled vector."""
        return self.pre_logits or self.width

    def __str__(self) -> str:
        parts = [
            f"width={self.width}",
            f"depth={self.depth}",
            f"heads={self.block.heads}",
            f"mlp={self.block.mlp}",
            f"patch={self.patch}",
            f"posemb={'paper' if self.cls_has_position else 'bigvision'}",
            f"pool={self.pool}",
        ]
        if self.map_head is not None:
            parts.append(f"map_heads={self.map_head.heads},map_mlp={self.map_head.mlp},cls={str(self.cls).lower()}")
        if self.pre_logits:
            parts.append(f"pre_logits={self.pre_logits}")
        if self.resnet is not None:
            parts.append(f"resnet={'-'.join(map(str, self.resnet)) or 'root'},root_width={self.root_width}")
        return f"jax-vit({','.join(parts)})"


class Attention(nn.Module):
    """Flax's `MultiHeadDotProductAttention`: queries scaled by 1/sqrt(head_dim), softmax over the keys."""

    def __init__(self, width: int, shape: AttentionShape) -> None:
        super().__init__()
        self.heads = shape.heads
        inner = shape.heads * shape.head_dim
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Attend from `queries` `[N, Q, D]` to `tokens` `[N, T, D]`; `[N, Q, D]`."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, tokens), (self.value, tokens))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Flax's `MlpBlock`: dense, tanh-approximated GELU, dense."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense0 = nn.Linear(width, hidden)
        self.dense1 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        return self.dense1(functional.gelu(self.dense0(x), approximate="tanh"))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """One pre-norm block: attention and MLP, each with its residual."""

    def __init__(self, width: int, shape: AttentionShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, shape)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, shape.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, T, D]` to tokens `[N, T, D]`."""
        y = self.norm1(x)
        x = x + self.attention(y, y)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class MapHead(nn.Module):
    """big_vision's `MAPHead`: a learned probe attends to all tokens; LayerNorm and MLP with a residual follow."""

    def __init__(self, width: int, shape: AttentionShape) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = Attention(width, shape)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, shape.mlp)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[N, T, D]` to one vector `[N, D]`."""
        x = self.attention(self.probe.expand(len(tokens), -1, -1), tokens)
        return (x + self.mlp(self.norm(x)))[:, 0]  # type: ignore[no-any-return]


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad `[N, C, H, W]` as XLA's `SAME` does for a square kernel.

    The output has ceil(n / stride) cells; the last one's window ends at (ceil(n / stride) - 1) * stride + kernel. What that
    exceeds n by is the padding, half before the image (rounded down) and the rest after it.
    """
    pads = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads, value=value)


def standardize(weight: Tensor) -> Tensor:
    """Standardise a kernel `[O, I, H, W]` per output channel: (w - mean) / (std + 1e-5), with the population std.

    The eps is added to the std, not to the variance as timm and PyTorch do.
    """
    centred = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
    return centred / (centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + STD_CONV_EPS)


class StdConv(nn.Module):
    """`models_resnet.StdConv`: a bias-free convolution with standardised weights and `SAME` padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` to `[N, O, ceil(H / stride), ceil(W / stride)]`."""
        return functional.conv2d(pad_same(x, self.kernel, self.stride), standardize(self.weight), stride=self.stride)


class ResidualUnit(nn.Module):
    """`models_resnet.ResidualUnit`: 1x1, 3x3 (with the stride) and 1x1 convolutions around a shortcut."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * features
        self.projects = inputs != outputs or stride != 1
        if self.projects:
            self.conv_proj = StdConv(inputs, outputs, 1, stride)
            self.gn_proj = nn.GroupNorm(GROUPS, outputs, eps=NORM_EPS)
        self.conv1 = StdConv(inputs, features, 1)
        self.gn1 = nn.GroupNorm(GROUPS, features, eps=NORM_EPS)
        self.conv2 = StdConv(features, features, 3, stride)
        self.gn2 = nn.GroupNorm(GROUPS, features, eps=NORM_EPS)
        self.conv3 = StdConv(features, outputs, 1)
        self.gn3 = nn.GroupNorm(GROUPS, outputs, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, 4 * features, H / stride, W / stride]`."""
        y = functional.relu(self.gn1(self.conv1(x)))
        y = functional.relu(self.gn2(self.conv2(y)))
        y = self.gn3(self.conv3(y))
        return functional.relu((self.gn_proj(self.conv_proj(x)) if self.projects else x) + y)


class ResNet(nn.Module):
    """The ResNet in front of a hybrid: root (7x7 convolution, max pool, stride 4) and blocks of residual units."""

    def __init__(self, width: int, units: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_root = StdConv(3, width, ROOT_KERNEL, 2)
        self.gn_root = nn.GroupNorm(GROUPS, width, eps=NORM_EPS)
        self.blocks = nn.ModuleList()
        inputs = width
        for block, count in enumerate(units):
            features, stride = width * 2**block, 1 if block == 0 else 2
            self.blocks.append(
                nn.Sequential(
                    *(
                        ResidualUnit(4 * features if unit else inputs, features, 1 if unit else stride)
                        for unit in range(count)
                    )
                )
            )
            inputs = 4 * features

    def forward(self, pixels: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, C, H / s, W / s]` with s = 4 * 2^(blocks - 1)."""
        x = functional.relu(self.gn_root(self.conv_root(pixels)))
        x = functional.max_pool2d(pad_same(x, 3, 2, value=float("-inf")), 3, stride=2)
        for block in self.blocks:
            x = block(x)
        return x


class JaxViT(nn.Module):
    """The model without its classifier head.

    Args:
        config: Its sizes; `config.grid` is the grid it runs at.
    """

    def __init__(self, config: JaxViTConfig) -> None:
        super().__init__()
        self.config = config
        self.resnet = None if config.resnet is None else ResNet(config.root_width, config.resnet)
        self.embedding = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.width)) if config.cls else None
        self.pos_embedding = nn.Parameter(torch.zeros(1, config.positions, config.width))
        self.blocks = nn.ModuleList(EncoderBlock(config.width, config.block) for _ in range(config.depth))
        self.encoder_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.map_head = None if config.map_head is None else MapHead(config.width, config.map_head)
        self.pre_logits = nn.Linear(config.width, config.pre_logits) if config.pre_logits else None

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels `[N, 3, R, R]` in [-1, 1] to the first block's input `[N, T, D]`."""
        features = pixels if self.resnet is None else self.resnet(pixels)
        x: Tensor = self.embedding(features).flatten(2).transpose(1, 2)
        if self.cls is None:
            return x + self.pos_embedding
        cls = self.cls.expand(len(x), -1, -1)
        if self.config.cls_has_position:
            return torch.cat([cls, x], dim=1) + self.pos_embedding
        return torch.cat([cls, x + self.pos_embedding], dim=1)

    def layers(self, pixels: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Number and output `[N, T, D]`, before any final norm, of layer 0 (the first block's input), 1, …, depth."""
        x = self.embed(pixels)
        yield 0, x
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            yield number, x

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels `[N, 3, R, R]` in [-1, 1] to tokens `[N, T, D]` after the final norm."""
        x = pixels
        for _, tokens in self.layers(pixels):
            x = tokens
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def pool(self, tokens: Tensor, pooling: str) -> Tensor:
        """Pool final-normed tokens `[N, T, D]` into one vector: `cls`, `gap` (patches only) or `pooler` (the model's own)."""
        if pooling == "cls":
            return tokens[:, 0]
        if pooling == "gap":
            return tokens[:, int(self.config.cls) :].mean(dim=1)
        pooled: Tensor = (
            self.map_head(tokens) if self.map_head is not None else self.pool(tokens, self.config.native_pooling)
        )
        return torch.tanh(self.pre_logits(pooled)) if self.pre_logits is not None else pooled
