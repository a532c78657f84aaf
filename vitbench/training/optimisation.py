"""The optimiser and the learning rate of a recipe, by timm; gradient clipping by torch.

One update of the paper's recipe, with gradient g, momentum m and weights w:

    g ← g · min(1, 1 / ‖g‖)        ‖·‖ over all weights together
    m ← 0.9 m + g                  rounded to bfloat16 before the next update, as optax's `accumulator_dtype` has it
    w ← w - η(t) m

    η(t) = η · ½ (1 + cos(π · clip((t - W) / (T - W), 0, 1))) · min(1, t / W)       t = 0 … T - 1

W is the number of warm-up steps and T that of all, so that the first update has rate 0 and the cosine's clock starts after the
warm-up. Source: big_vision's `configs/transfer.py` and `optax.py`, vit_jax's `utils.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from fnmatch import fnmatch
from typing import Any

import timm.optim
import timm.scheduler
import torch
from timm.models import group_parameters
from timm.scheduler.scheduler import Scheduler
from torch import nn

from vitbench.errors import UsageError
from vitbench.training.recipe import Recipe
from vitbench.training.trainee import Trainee

_optim: Any = timm.optim  # its re-exports are not typed, nor are those of the schedules
_schedules: Any = timm.scheduler

_TIMM_NAMES = {"sgd": "momentum", "nesterov": "sgd", "adamw": "adamw", "lamb": "lamb"}
"""timm's `sgd` is Nesterov's; its `momentum` is plain."""

_BLOCK = re.compile(r"(?!resnet\.)(?:\D*\.)?(?:layers?|blocks)\.(\d+)\.")
"""A parameter of a numbered block, as transformers and the JAX models name them."""


def make_optimizer(trainee: Trainee, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser over every weight that is to be trained."""
    own: dict[str, Any] = {"momentum": recipe.momentum} if recipe.optimizer in ("sgd", "nesterov") else {}
    if recipe.optimizer == "lamb":
        own = {"max_grad_norm": None}  # timm's would clip besides what the recipe says
    optimizer: torch.optim.Optimizer = _optim.create_optimizer_v2(
        _groups(trainee, recipe),
        opt=_TIMM_NAMES[recipe.optimizer],
        lr=recipe.learning_rate,
        weight_decay=0.0,
        **own,
    )
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> Scheduler:
    """The learning rate over updates: `schedule.step_update(t)` sets that of update t, counted from 0."""
    warmup: dict[str, Any] = {"warmup_t": recipe.warmup_steps, "warmup_lr_init": 0.0, "t_in_epochs": False}
    rest, end = recipe.steps - recipe.warmup_steps, recipe.final_learning_rate
    schedule: Scheduler
    if recipe.schedule == "cosine":
        schedule = _schedules.CosineLRScheduler(optimizer, t_initial=rest, lr_min=end, warmup_prefix=True, **warmup)
    elif recipe.schedule == "linear":
        schedule = _schedules.PolyLRScheduler(
            optimizer, t_initial=rest, power=1.0, lr_min=end, warmup_prefix=True, **warmup
        )
    else:
        # timm has a fall at t in force from update t - 1 on.
        falls = (
            sorted(round(share * recipe.steps) + 1 for share in recipe.decay_at) if recipe.schedule == "step" else []
        )
        schedule = _schedules.MultiStepLRScheduler(
            optimizer, decay_t=falls, decay_rate=recipe.decay_rate, warmup_prefix=False, **warmup
        )
    return schedule


def clip_gradients(parameters: list[nn.Parameter], norm: float | None) -> float:
    """Clip the gradients to a global norm, and give their norm as it was; nothing is clipped where `norm` is None."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, norm if norm is not None else math.inf))


def round_momentum(optimizer: torch.optim.Optimizer, dtype: str) -> None:
    """Round every momentum buffer to `dtype` and back, in place: what keeping it in that dtype between updates does."""
    if dtype == "float32":
        return
    for state in optimizer.state.values():
        if (buffer := state.get("momentum_buffer")) is not None:
            buffer.copy_(buffer.to(getattr(torch, dtype)))


def _groups(trainee: Trainee, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups: weight decay on matrices alone, a share of the learning rate by depth where the recipe asks for it."""
    head = _optim.param_groups_weight_decay(trainee.head, recipe.weight_decay)
    if recipe.head_only:
        return list(head)
    trunk = []
    for module in trainee.trunk:
        without: Any = getattr(module, "no_weight_decay", None)
        never = without() if callable(without) else ()
        if recipe.layer_decay < 1:
            trunk += _by_depth(module, recipe, never, f"recipe '{recipe.name}' on '{trainee.backbone.spec.text}'")
        else:
            trunk += _optim.param_groups_weight_decay(module, recipe.weight_decay, no_weight_decay_list=never)
    return [group for group in [*trunk, *head] if group["params"]]


def _by_depth(module: nn.Module, recipe: Recipe, never: Collection[str], where: str) -> list[dict[str, Any]]:
    """Groups with the share d^(L + 1 - l) of the head's learning rate: d is `layer_decay`, l the layer of L.

    As in BEiT, layer 0 is the embeddings, 1 the first block, and so on; what is behind the last block belongs to it, as timm has
    it. timm's own function has all of a model that is not timm's in one group, where nothing decays, and takes the last block
    of a model without head for the head.

    Raises:
        UsageError: The model has no blocks that are counted.
    """
    matcher: Any = getattr(module, "group_matcher", None)
    layers: dict[str, int] = (
        group_parameters(module, matcher(coarse=False), reverse=True) if callable(matcher) else _numbered(module)
    )
    last = max(layers.values(), default=0)
    if not last:
        raise UsageError(
            f"{where}: layer_decay is not used: the model has no blocks that are counted (--set layer_decay=1)"
        )
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            layer, decays = (
                layers.get(name, last),
                parameter.ndim > 1 and not any(fnmatch(name, kept) for kept in never),
            )
            group = groups.setdefault(
                (layer, decays),
                {
                    "params": [],
                    "weight_decay": recipe.weight_decay if decays else 0.0,
                    "lr_scale": recipe.layer_decay ** (last + 1 - layer),
                },
            )
            group["params"].append(parameter)
    return list(groups.values())


def _numbered(module: nn.Module) -> dict[str, int]:
    """Parameter to layer by the numbers in names."""
    layers: dict[str, int] = {}
    layer = 0
    for name, _ in module.named_parameters():
        match = _BLOCK.match(name)
        layer = int(match[1]) + 1 if match else layer
        layers[name] = layer
    return layers
