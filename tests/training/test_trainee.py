"""What is trained: the copy of the backbone, its head, and what each way of training leaves alone."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vitbench.backbones.base import Backbone
from vitbench.backbones.classifier import Classifier
from vitbench.backbones.load import load_backbone
from vitbench.errors import RepresentationError, UsageError
from vitbench.protocols.finetune import FineTune
from vitbench.training.recipe import Recipe
from vitbench.training.trainee import Trainee

PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def backbone(tiny_vit: str) -> Backbone:
    return load_backbone(tiny_vit, device="cpu")


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def updates(trainee: Trainee, count: int = 3) -> None:
    """Some plain updates of whatever wants to be trained."""
    trainee.train()
    optimizer = torch.optim.SGD([p for p in trainee.parameters() if p.requires_grad], lr=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trainee(PIXELS), LABELS).backward()
        optimizer.step()


@pytest.mark.parametrize("representation", ["cls", "gap", "gap@1", "cls+gap"])
def test_every_weight_learns_and_the_backbone_given_does_not_change(backbone: Backbone, representation: str) -> None:
    before = state(backbone.modules[0])
    trainee = Trainee(backbone, representation, 3, Recipe())
    assert torch.count_nonzero(trainee.head.weight) == 0, "zeros, so that the first logits are equal for all classes"
    assert trainee.head.in_features == backbone.dim(representation)
    start = state(trainee)
    updates(trainee)
    moved = changed(start, state(trainee))
    assert {"head.weight", "trunk.0.patch_embed.proj.weight", "trunk.0.blocks.0.attn.qkv.weight"} <= moved
    assert ("trunk.0.blocks.1.attn.qkv.weight" in moved) == (representation != "gap@1")
    assert equal(before, state(backbone.modules[0]))
    assert not any(parameter.grad is not None for parameter in backbone.modules[0].parameters())


def test_logits_are_the_head_on_the_representation(backbone: Backbone) -> None:
    trainee = Trainee(backbone, "gap", 3, Recipe(head_init="trunc_normal")).eval()
    assert 0 < float(trainee.head.weight.detach().std()) < 0.03
    expected = backbone.encode(PIXELS, ["gap"])["gap"] @ trainee.head.weight.T
    torch.testing.assert_close(trainee(PIXELS), expected, rtol=1e-5, atol=1e-6)


def test_head_from_the_checkpoint(backbone: Backbone) -> None:
    head = Classifier("cls", torch.randn(3, 24), torch.randn(3))
    trainee = Trainee(backbone, "cls", 3, Recipe(head_init="checkpoint"), head)
    assert torch.equal(trainee.head.weight, head.weight)
    assert torch.equal(trainee.head.bias, head.bias)
    for wrong in (None, Classifier("cls", torch.randn(4, 24), torch.randn(4))):
        with pytest.raises(UsageError, match="head_init: checkpoint needs a checkpoint with a head on 'cls'"):
            Trainee(backbone, "cls", 3, Recipe(head_init="checkpoint"), wrong)


def test_dropout_acts_in_training_alone(backbone: Backbone) -> None:
    trainee = Trainee(backbone, "cls", 3, Recipe(dropout=0.4, head_init="trunc_normal"))
    rates = {name: layer.p for name, layer in trainee.named_modules() if isinstance(layer, nn.Dropout)}
    attention = {name for name in rates if name.endswith("attn_drop")}
    assert attention
    assert {rates[name] for name in attention} == {0.0}, "the paper drops nothing in attention"
    assert {rates[name] for name in rates if name.startswith("trunk") and name not in attention} == {0.4}
    trainee.train()
    assert not torch.equal(trainee(PIXELS), trainee(PIXELS))
    trainee.eval()
    assert torch.equal(trainee(PIXELS), trainee(PIXELS))
    assert all(layer.p == 0 for layer in backbone.modules[0].modules() if isinstance(layer, nn.Dropout))


def test_head_dropout(backbone: Backbone) -> None:
    trainee = Trainee(backbone, "cls", 3, Recipe(head_dropout=0.5, head_only=True, head_init="trunc_normal")).train()
    assert not torch.equal(trainee(PIXELS), trainee(PIXELS))


def test_drop_path_grows_with_depth(backbone: Backbone) -> None:
    trainee = Trainee(backbone, "cls", 3, Recipe(drop_path=0.6, head_init="trunc_normal"))
    blocks: Any = trainee.trunk[0].blocks
    assert isinstance(blocks[0].drop_path1, nn.Identity)
    assert isinstance(blocks[1].drop_path1, DropPath)
    assert blocks[1].drop_path1.drop_prob == blocks[1].drop_path2.drop_prob == 0.6
    trainee.train()
    assert not torch.equal(trainee(PIXELS), trainee(PIXELS))
    assert torch.equal(trainee.eval()(PIXELS), trainee(PIXELS))


class _NoDropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


@pytest.mark.parametrize("field", ["dropout", "drop_path"])
def test_what_the_model_has_no_layer_for_is_an_error(
    backbone: Backbone, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(backbone), "modules", property(lambda self: [_NoDropping()]))
    with pytest.raises(UsageError, match=rf"{field} is not used: the model has no .*\(--set {field}=0\)"):
        Trainee(backbone, "cls", 3, Recipe.model_validate({field: 0.1}))


def test_lora_trains_adapters_and_head_alone_and_merges(backbone: Backbone) -> None:
    pytest.importorskip("peft")
    names = list(state(backbone.modules[0]))
    recipe = Recipe.model_validate({"lora": {"rank": 2}})
    torch.manual_seed(0)
    trainee = Trainee(backbone, "cls", 3, recipe)
    learning = {name for name, parameter in trainee.named_parameters() if parameter.requires_grad}
    assert learning - {"head.weight", "head.bias"}
    assert all("lora_" in name for name in learning - {"head.weight", "head.bias"})
    start = state(trainee)
    updates(trainee)
    assert changed(start, state(trainee)) <= learning
    assert changed(start, state(trainee)) & {name for name in learning if "lora_B" in name}
    trainee.eval()
    before = trainee(PIXELS).detach()
    trainee.merge()
    torch.testing.assert_close(trainee(PIXELS).detach(), before, rtol=1e-5, atol=1e-5)
    assert list(state(trainee.backbone.modules[0])) == names, "the backbone's own layers, by their own names"
    assert changed(state(backbone.modules[0]), state(trainee.backbone.modules[0]))
    assert equal(state(backbone.modules[0]), state(load_backbone(backbone.spec.text, device="cpu").modules[0]))


def test_lora_finds_no_layer(backbone: Backbone) -> None:
    pytest.importorskip("peft")
    recipe = Recipe.model_validate({"lora": {"targets": ["zzz"]}})
    with pytest.raises(UsageError, match=r"lora finds none of zzz \(lora.targets may name fc1, fc2, proj, qkv\)"):
        Trainee(backbone, "cls", 3, recipe)


def test_head_only_leaves_the_trunk_alone(backbone: Backbone) -> None:
    trainee = Trainee(backbone, "cls", 3, Recipe(head_only=True))
    start = state(trainee)
    updates(trainee)
    assert changed(start, state(trainee)) == {"head.weight", "head.bias"}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of a small network with batch norms."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0)
    path = tmp_path_factory.mktemp("resnet") / "model.safetensors"
    save_file(model.state_dict(), path)
    return f"timm:resnet10t,checkpoint={path}"


def test_head_only_keeps_the_statistics_of_batch_norms(resnet: str) -> None:
    backbone = load_backbone(resnet, device="cpu")
    representation = backbone.available()[0]
    frozen = Trainee(backbone, representation, 3, Recipe(head_only=True))
    start = state(frozen)
    updates(frozen, 1)
    assert changed(start, state(frozen)) == {"head.weight", "head.bias"}
    free = Trainee(backbone, representation, 3, Recipe())
    updates(free, 1)
    assert any("running_mean" in name for name in changed(start, state(free)))


def test_from_scratch_is_a_function_of_the_seed(tiny_vit: str) -> None:
    spec = re.sub(",checkpoint=[^,]*", "", tiny_vit)
    backbone = load_backbone(spec, device="cpu", from_scratch=True)

    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return state(Trainee(backbone, "cls", 3, Recipe(from_scratch=True, head_init="trunc_normal")))

    one, again, other = weights(1), weights(1), weights(2)
    assert equal(one, again)
    assert "trunk.0.blocks.0.attn.qkv.weight" in changed(one, other)
    read = state(load_backbone(tiny_vit, device="cpu").modules[0])
    assert not np.allclose(one["trunk.0.blocks.0.attn.qkv.weight"], read["blocks.0.attn.qkv.weight"])


def test_a_backbone_without_weights() -> None:
    with pytest.raises(UsageError, match="backbone 'pixels' has no weights to train; --protocol ridge scores it"):
        Trainee(load_backbone("pixels", device="cpu"), "pixels", 3, Recipe())


def test_a_head_on_what_is_not_there(backbone: Backbone) -> None:
    with pytest.raises(RepresentationError, match=r"unknown representation 'gpa'.*did you mean 'gap'"):
        Trainee(backbone, "gpa", 3, Recipe())
    with pytest.raises(RepresentationError, match="has no layer 9 in 'gap@9'"):
        Trainee(backbone, "gap@9", 3, Recipe())


def test_a_head_on_untrained_weights(backbone: Backbone) -> None:
    untrained = copy.copy(backbone)
    item = backbone.representations["pooler"]
    untrained.representations = {
        **backbone.representations,
        "pooler": type(item)("pooler", item.dim, "untrained", None, "its weights are newly initialised"),
    }
    with pytest.raises(
        RepresentationError, match=r"the 'pooler' of .* is untrained: its weights are newly initialised"
    ):
        Trainee(untrained, "pooler", 3, Recipe())


def test_positions_as_jax_resizes_them(tiny_vit: str, tmp_path: Path) -> None:
    """A recipe with `positions: jax` at another resolution: align-corners bilinear, the class token's row kept."""
    recipe = Recipe(resolution=64, positions="jax")
    small = load_backbone(tiny_vit, device="cpu")
    spec = small.save(tmp_path / "small")
    backbone = load_backbone(spec, device="cpu", **FineTune(recipe).loading)
    trainee = Trainee(backbone, "cls", 3, recipe)
    old = small.modules[0].state_dict()["pos_embed"].double()
    new = trainee.trunk[0].state_dict()["pos_embed"].double()
    assert new.shape == (1, 1 + 4 * 4, 24)
    assert torch.equal(new[:, 0], old[:, 0])
    grid = old[0, 1:].reshape(2, 2, 24)
    for row in range(4):
        for column in range(4):
            y, x = row / 3, column / 3
            expected = (1 - y) * ((1 - x) * grid[0, 0] + x * grid[0, 1]) + y * ((1 - x) * grid[1, 0] + x * grid[1, 1])
            assert float((new[0, 1 + 4 * row + column] - expected).abs().max()) <= 1e-6
    assert trainee(torch.randn(2, 3, 64, 64)).shape == (2, 3)
