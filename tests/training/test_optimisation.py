"""Golden: the schedule and the update of the paper's recipe against an independent NumPy version, step by step."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from torch import nn

from vitbench.backbones.load import load_backbone
from vitbench.errors import UsageError
from vitbench.training.optimisation import (
    _by_depth,
    clip_gradients,
    make_optimizer,
    make_schedule,
    round_momentum,
)
from vitbench.training.recipe import Recipe
from vitbench.training.trainee import Trainee

STEPS = 50

Array = npt.NDArray[np.float32]


def rate(recipe: Recipe, step: int) -> float:
    """protocols.md 1.6, for every schedule, written anew."""
    top, end, warmup, total = recipe.learning_rate, recipe.final_learning_rate, recipe.warmup_steps, recipe.steps
    if step < warmup:
        return top * step / warmup
    progress = (step - warmup) / (total - warmup)
    if recipe.schedule == "cosine":
        return end + (top - end) * 0.5 * (1 + math.cos(math.pi * progress))
    if recipe.schedule == "linear":
        return end + (top - end) * (1 - progress)
    if recipe.schedule == "step":
        return top * recipe.decay_rate ** sum(step >= share * total for share in recipe.decay_at)
    return top


def rates(recipe: Recipe) -> list[float]:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=recipe.learning_rate)
    schedule = make_schedule(optimizer, recipe)
    found = []
    for step in range(recipe.steps):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("warmup", [0, 1, 10, 49])
@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "cosine"},
        {"schedule": "cosine", "final_learning_rate": 0.01},
        {"schedule": "linear", "final_learning_rate": 0.02},
        {"schedule": "step"},
        {"schedule": "step", "decay_at": (0.9, 0.5), "decay_rate": 0.2},
        {"schedule": "constant"},
    ],
)
def test_the_learning_rate_of_every_update(fields: dict[str, object], warmup: int) -> None:
    recipe = Recipe.model_validate({"learning_rate": 0.3, "steps": STEPS, "warmup_steps": warmup, **fields})
    found = rates(recipe)
    np.testing.assert_allclose(found, [rate(recipe, step) for step in range(STEPS)], rtol=1e-12, atol=1e-15)
    if warmup:
        assert found[0] == 0.0


def test_vtab_light_falls_at_30_60_and_90_percent() -> None:
    found = rates(Recipe(schedule="step", learning_rate=1.0, steps=1000, warmup_steps=80))
    falls = [step for step in range(81, 1000) if found[step] < found[step - 1]]
    assert falls == [300, 600, 900]


def bfloat16(values: Array) -> Array:
    """Rounded to the nearest of the 8 bits that bfloat16 has, of two as near to the even one."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


class _Weights(nn.Module):
    """Two tensors that stand for all weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.one = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.two = nn.Parameter(torch.randn(5, generator=generator))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("clip", [1.0, None])
def test_fifty_updates_are_those_of_numpy(dtype: str, clip: float | None) -> None:
    recipe = Recipe.model_validate(
        {"learning_rate": 0.3, "steps": STEPS, "warmup_steps": 5, "momentum_dtype": dtype, "clip_norm": clip}
    )
    model = _Weights()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.3, momentum=recipe.momentum)
    schedule = make_schedule(optimizer, recipe)
    weights = [parameter.detach().numpy().copy() for parameter in parameters]
    momentum = [np.zeros_like(weight) for weight in weights]
    generator = np.random.default_rng(1)
    for step in range(STEPS):
        # Of norms from far below 1 to far above it.
        size = 10 ** generator.uniform(-2, 2)
        gradients = [
            generator.standard_normal(weight.shape).astype(np.float32) * np.float32(size) for weight in weights
        ]
        norm = math.sqrt(sum(float((gradient.astype(np.float64) ** 2).sum()) for gradient in gradients))
        scale = np.float32(1.0 if clip is None else min(1.0, clip / norm))
        for index, gradient in enumerate(gradients):
            momentum[index] = np.float32(0.9) * momentum[index] + gradient * scale
            weights[index] = weights[index] - np.float32(rate(recipe, step)) * momentum[index]
            if dtype == "bfloat16":
                momentum[index] = bfloat16(momentum[index])
        schedule.step_update(step)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        assert clip_gradients(parameters, recipe.clip_norm) == pytest.approx(norm, rel=1e-5)
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer.step()
        round_momentum(optimizer, recipe.momentum_dtype)
        for index, parameter in enumerate(parameters):
            held = optimizer.state[parameter]["momentum_buffer"].numpy()
            # A rounding may fall to the other side: one unit of bfloat16's 8 bits, which then is carried on.
            tolerance = {"rtol": 2e-5, "atol": 1e-4} if dtype == "float32" else {"rtol": 2**-7, "atol": 2e-2}
            np.testing.assert_allclose(held, momentum[index], **tolerance)
            np.testing.assert_allclose(parameter.detach().numpy(), weights[index], **tolerance)
            if dtype == "bfloat16":
                assert np.array_equal(held, bfloat16(held)), "kept as bfloat16 would keep it"
                momentum[index] = held.copy()  # so that the next step is compared by itself
                weights[index] = parameter.detach().numpy().copy()
            if step == 0:
                assert torch.equal(parameter, before[index]), "the first update has rate 0"


def test_the_rounding_is_torch_s_and_numpy_s() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert np.array_equal(bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())
    model = _Weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    round_momentum(optimizer, "float32")
    assert all(torch.equal(a, s["momentum_buffer"]) for a, s in zip(before, optimizer.state.values(), strict=True))
    round_momentum(optimizer, "bfloat16")
    for a, state in zip(before, optimizer.state.values(), strict=True):
        assert np.array_equal(state["momentum_buffer"].numpy(), bfloat16(a.numpy()))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("nesterov", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("lamb", object)],
)
def test_every_optimiser_is_the_one_that_is_named(name: str, kind: type, tiny_vit: str) -> None:
    recipe = Recipe.model_validate({"optimizer": name, "learning_rate": 0.5})
    optimizer = make_optimizer(Trainee(load_backbone(tiny_vit, device="cpu"), "cls", 3, recipe), recipe)
    assert isinstance(optimizer, kind)
    group = optimizer.param_groups[0]
    if kind is torch.optim.SGD:
        assert (group["momentum"], group["dampening"], group["nesterov"]) == (0.9, 0, name == "nesterov")
    if name == "lamb":
        assert optimizer.defaults["max_grad_norm"] is None, "the recipe's clip_norm alone clips"


def groups(trainee: Trainee, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Parameter to its weight decay and its share of the learning rate."""
    named = {id(parameter): name for name, parameter in trainee.named_parameters()}
    optimizer = make_optimizer(trainee, recipe)
    return {
        named[id(parameter)].removeprefix("trunk.0."): (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_weight_decay_is_not_on_biases_norms_and_embeddings(tiny_vit: str) -> None:
    recipe = Recipe(weight_decay=0.1)
    trainee = Trainee(load_backbone(tiny_vit, device="cpu"), "cls", 3, recipe)
    found = groups(trainee, recipe)
    assert found.keys() == {name.removeprefix("trunk.0.") for name, _ in trainee.named_parameters()}
    decayed = {name for name, (decay, _) in found.items() if decay}
    matrices = {name for name, p in trainee.named_parameters() if p.ndim > 1}
    assert decayed == {name.removeprefix("trunk.0.") for name in matrices} - {"cls_token", "pos_embed"}
    assert {decay for decay, _ in found.values()} == {0.0, 0.1}


def test_head_only_trains_the_head_alone(tiny_vit: str) -> None:
    recipe = Recipe(head_only=True)
    assert set(groups(Trainee(load_backbone(tiny_vit, device="cpu"), "cls", 3, recipe), recipe)) == {
        "head.weight",
        "head.bias",
    }


def test_layer_decay_of_timm(tiny_vit: str) -> None:
    recipe = Recipe(layer_decay=0.5, weight_decay=0.1)
    trainee = Trainee(load_backbone(tiny_vit, device="cpu"), "cls", 3, recipe)
    found = groups(trainee, recipe)
    assert found.keys() == {name.removeprefix("trunk.0.") for name, _ in trainee.named_parameters()}
    assert found["cls_token"] == (0.0, 0.125)
    assert found["patch_embed.proj.weight"] == (0.1, 0.125)
    assert found["blocks.0.attn.qkv.weight"] == (0.1, 0.25)
    assert found["blocks.1.attn.qkv.bias"] == (0.0, 0.5)
    assert found["norm.weight"] == (0.0, 0.5)
    assert found["head.weight"] == (0.1, 1.0)
    optimizer = make_optimizer(trainee, recipe)
    schedule = make_schedule(optimizer, recipe)
    schedule.step_update(recipe.warmup_steps)
    assert {group["lr"] / recipe.learning_rate for group in optimizer.param_groups} == {0.125, 0.25, 0.5, 1.0}
    assert optimizer.param_groups[-1]["lr"] == recipe.learning_rate, "the head's, which the history shows"


def test_layer_decay_of_a_model_that_is_not_timm_s() -> None:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=24, image_size=32, patch_size=16
    )
    model = transformers.ViTModel(config)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        named[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in _by_depth(model, Recipe(layer_decay=0.5, weight_decay=0.1), (), "here")
        for parameter in group["params"]
    }
    assert found.keys() == set(named.values())
    for name, (scale, decay) in found.items():
        block = next((number for number in range(3) if f"layer.{number}." in name or f"layers.{number}." in name), None)
        outer = 0 if name.startswith("embeddings") else 3
        assert scale == 0.5 ** (4 - (outer if block is None else block + 1)), name
        assert (decay > 0) == (model.get_parameter(name).ndim > 1)
    with pytest.raises(UsageError, match="here: layer_decay is not used: the model has no blocks that are counted"):
        _by_depth(nn.Linear(2, 2), Recipe(layer_decay=0.5), (), "here")
