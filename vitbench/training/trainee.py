"""What is trained: a backbone with a linear head on one of its representations."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError
from vitbench.training.recipe import Lora, Recipe

if TYPE_CHECKING:
    from vitbench.backbones.classifier import Classifier

_ATTENTION = (
    "qkv",
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "out",
    "proj",
    "out_proj",
    "attention.output.dense",
)
_HEAD_STD = 0.02


class Trainee(nn.Module):
    """A copy of a backbone, free to change, and its head: `[N, 3, H, W]` to logits `[N, K]` float32.

    Attributes:
        backbone: The copy. Its modules are this module's `trunk`.
        representation: Canonical name of what the head reads.
        head: `[K, D]` weights and `[K]` biases.
    """

    def __init__(
        self, backbone: Backbone, representation: str, num_classes: int, recipe: Recipe, head: Classifier | None = None
    ) -> None:
        """Copy the backbone and put a head on it. Newly initialised weights come from torch's global generator.

        Args:
            backbone: With the weights to begin with.
            representation: What the head reads.
            num_classes: K.
            recipe: How it will be trained.
            head: The head to begin with, its classes those of the task in order; for `head_init: checkpoint`.

        Raises:
            UsageError: The recipe asks for what this backbone does not have.
            RepresentationError: The backbone lacks the representation, or its weights there are untrained.
        """
        super().__init__()
        if not backbone.modules:
            raise UsageError(f"backbone '{backbone.spec.text}' has no weights to train; --protocol ridge scores it")
        self.representation = backbone.canonical(representation)
        self.backbone = copy.deepcopy(backbone)
        if recipe.from_scratch:
            self.backbone.initialise(int(torch.randint(2**31, ()).item()))
        self.trunk = nn.ModuleList(self.backbone.modules)
        self.trunk.requires_grad_(not recipe.head_only)
        self.frozen = recipe.head_only
        where = f"recipe '{recipe.name}' on backbone '{backbone.spec.text}'"
        if recipe.dropout:
            _set_dropout(self.trunk, recipe.dropout, where)
        if recipe.drop_path:
            _set_drop_path(self.trunk, recipe.drop_path, where)
        self._adapters = [_add_lora(module, recipe.lora, where) for module in self.trunk] if recipe.lora else []
        self.dropout = nn.Dropout(recipe.head_dropout)
        self.head = nn.Linear(backbone.dim(representation), num_classes)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.head.weight)
        if recipe.head_init == "trunc_normal":
            nn.init.trunc_normal_(self.head.weight, std=_HEAD_STD)
        elif recipe.head_init == "checkpoint":
            if head is None or head.weight.shape != self.head.weight.shape:
                raise UsageError(f"{where}: head_init: checkpoint needs a checkpoint with a head on '{representation}'")
            self.head.load_state_dict({"weight": head.weight, "bias": head.bias})

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[N, K]` float32 of pixels `[N, 3, H, W]` float32."""
        features = self.backbone.differentiable(pixels, self.representation)
        logits: Tensor = self.head(self.dropout(features))
        return logits.float()

    def train(self, mode: bool = True) -> Trainee:
        """Training mode; a frozen trunk stays in evaluation mode, its batch norms with it."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def merge(self) -> None:
        """Fold low-rank adapters into the weights that they adapt, so that the backbone has its own layers again."""
        for adapters in self._adapters:
            adapters.merge_and_unload()
        self._adapters = []


def _set_dropout(trunk: nn.Module, rate: float, where: str) -> None:
    # The JAX code drops after the position embedding and in the MLPs and projections; attention's own dropout stays 0.
    layers = [
        module
        for name, module in trunk.named_modules()
        if isinstance(module, nn.Dropout) and not name.endswith(("attn_drop", "attention.dropout"))
    ]
    if not layers:
        raise UsageError(f"{where}: dropout is not used: the model has no dropout layer (--set dropout=0)")
    for layer in layers:
        layer.p = rate


def _set_drop_path(trunk: nn.Module, rate: float, where: str) -> None:
    blocks: list[Any] = [
        block for block in trunk.modules() if hasattr(block, "drop_path") or hasattr(block, "drop_path1")
    ]
    if not blocks:
        raise UsageError(
            f"{where}: drop_path is not used: the model has no residual blocks that can be dropped (--set drop_path=0)"
        )
    for number, block in enumerate(blocks):
        share = rate * number / max(len(blocks) - 1, 1)
        for name in ("drop_path", "drop_path1", "drop_path2"):
            if hasattr(block, name):
                setattr(block, name, DropPath(share) if share else nn.Identity())


def _add_lora(module: nn.Module, lora: Lora, where: str) -> Any:
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise UsageError(f"{where}: lora needs peft: pip install 'vitbench[lora]'") from error
    ends = lora.targets or _ATTENTION
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and any(name == end or name.endswith(f".{end}") for end in ends)
    ]
    if not names:
        linear = sorted(
            {name.rpartition(".")[2] for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        )
        raise UsageError(f"{where}: lora finds none of {', '.join(ends)} (lora.targets may name {', '.join(linear)})")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # peft divides by the rank
        lora_dropout=lora.dropout,
        target_modules=names,
    )
    return LoraModel(module, config, "default")
