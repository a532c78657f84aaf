"""The weights that `vit_jax` and big_vision begin training with.

Sources: `vit_jax/models_vit.py`, `vit_jax/models_resnet.py`, `big_vision/models/vit.py` and the defaults of Flax's layers.

* Position embeddings: normal, with standard deviation 0.02 in `vit_jax` (the layout whose CLS token has a position) and
  1/sqrt(width) in big_vision. The CLS token is 0.
* Attention and MLP kernels, and the probe of a MAP head: Xavier uniform. Flax draws a query's kernel as one `[width, heads *
  head_dim]` matrix, so its fans are those of our `nn.Linear`. Attention's biases are 0, the MLP's normal with deviation 1e-6.
* The patch embedding, the ResNet's convolutions and `pre_logits` have Flax's default, LeCun normal: a normal cut off at two
  standard deviations, of variance 1/fan_in after the cut.
* Norms: scale 1 and bias 0, but for the last norm of a residual unit, whose scale is 0, so that the unit begins as its shortcut.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import init

from vitbench.backbones.jax_vit import Attention, JaxViT, Mlp, ResidualUnit, StdConv

PAPER_POSITION_STD = 0.02
MLP_BIAS_STD = 1e-6
CUT_NORMAL_STD = 0.87962566103423978
"""Standard deviation of a standard normal that is cut off at -2 and 2: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1))."""


def initialise(model: JaxViT, seed: int) -> None:
    """Draw every weight of a model anew, in place. Equal seeds give equal weights on every device."""
    generator = torch.Generator().manual_seed(seed)
    device = model.pos_embedding.device
    with torch.no_grad():
        model.to("cpu")  # drawn on the CPU: a GPU's generator gives other numbers
        _initialise(model, generator)
        model.to(device)


def _initialise(model: JaxViT, generator: torch.Generator) -> None:
    config = model.config
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, StdConv | nn.Conv2d):
            _lecun_normal(module.weight, generator)
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Attention):
            for layer in (module.query, module.key, module.value, module.out):
                init.xavier_uniform_(layer.weight, generator=generator)
                init.zeros_(layer.bias)
        elif isinstance(module, Mlp):
            for layer in (module.dense0, module.dense1):
                init.xavier_uniform_(layer.weight, generator=generator)
                init.normal_(layer.bias, std=MLP_BIAS_STD, generator=generator)
    for module in model.modules():
        if isinstance(module, ResidualUnit):
            init.zeros_(module.gn3.weight)
    position_std = PAPER_POSITION_STD if config.cls_has_position else 1 / math.sqrt(config.width)
    init.normal_(model.pos_embedding, std=position_std, generator=generator)
    if model.cls is not None:
        init.zeros_(model.cls)
    if model.map_head is not None:
        init.xavier_uniform_(model.map_head.probe[0], generator=generator)  # `[1, width]`, fans 1 and width
    if model.pre_logits is not None:
        _lecun_normal(model.pre_logits.weight, generator)
        init.zeros_(model.pre_logits.bias)


def _lecun_normal(weight: Tensor, generator: torch.Generator) -> None:
    """Fill a kernel `[outputs, inputs, …]`."""
    std = 1 / math.sqrt(weight[0].numel()) / CUT_NORMAL_STD
    init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
