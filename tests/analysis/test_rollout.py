from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ImageFolderMaker
from vitbench.analysis import heatmap, rollout
from vitbench.analysis.attention import capture_attention
from vitbench.analysis.base import Options, images_of_folder
from vitbench.analysis.output import Output
from vitbench.analysis.overlay import concentration, relative, shortened
from vitbench.analysis.rollout import rollout_step
from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone
from vitbench.errors import UsageError

# Two heads of a block on two tokens, by hand. The mean is [[0.5, 0.5], [0.4, 0.6]].
BLOCK = torch.tensor([[[[0.2, 0.8], [0.4, 0.6]], [[0.8, 0.2], [0.4, 0.6]]]])
SECOND = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])


def test_golden_mean() -> None:
    # (A + I) / 2
    first = rollout_step(None, BLOCK)
    torch.testing.assert_close(first, torch.tensor([[[0.75, 0.25], [0.2, 0.8]]]))
    # ([[0, 1], [.5, .5]] + I) / 2 = [[.5, .5], [.25, .75]], times the above: the later block on the left
    second = rollout_step(first, SECOND)
    torch.testing.assert_close(second, torch.tensor([[[0.475, 0.525], [0.3375, 0.6625]]]))


def test_golden_max_and_min() -> None:
    # max: [[.8, .8], [.4, .6]] + I = [[1.8, .8], [.4, 1.6]], rows divided by 2.6 and 2
    biggest = rollout_step(None, BLOCK, "max")
    torch.testing.assert_close(biggest, torch.tensor([[[9 / 13, 4 / 13], [0.2, 0.8]]]))
    # min: [[.2, .2], [.4, .6]] + I = [[1.2, .2], [.4, 1.6]], rows divided by 1.4 and 2
    smallest = rollout_step(None, BLOCK, "min")
    torch.testing.assert_close(smallest, torch.tensor([[[6 / 7, 1 / 7], [0.2, 0.8]]]))


def test_golden_discard() -> None:
    # A quarter of the four weights [[.5, .5], [.4, .6]] is one: .4 goes; rows [1.5, .5] / 2 and [0, 1.6] / 1.6
    torch.testing.assert_close(rollout_step(None, BLOCK, discard=0.25), torch.tensor([[[0.75, 0.25], [0.0, 1.0]]]))
    torch.testing.assert_close(rollout_step(None, BLOCK, discard=0.2), rollout_step(None, BLOCK))


@given(st.integers(0, 1000), st.sampled_from(rollout.HEADS), st.floats(0, 0.95))
def test_rows_stay_distributions(seed: int, heads: str, discard: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rolled = None
    for _ in range(3):
        attention = torch.randn(2, 3, 5, 5, generator=generator).mul(3).softmax(-1)
        rolled = rollout_step(rolled, attention, heads, discard)
    assert rolled is not None
    assert rolled.min() >= 0
    torch.testing.assert_close(rolled.sum(-1), torch.ones(2, 5))


def test_identity_attention_rolls_out_to_identity() -> None:
    eye = torch.eye(4).expand(1, 2, 4, 4)
    torch.testing.assert_close(rollout_step(rollout_step(None, eye), eye), torch.eye(4)[None])


@pytest.fixture(scope="module")
def backbone(tiny_vit: str) -> Backbone:
    loaded = load_backbone(tiny_vit, device="cpu")
    model: Any = loaded.modules[0]
    for block in model.blocks:
        block.attn.qkv.weight.mul_(15)  # far from uniform attention
    return loaded


def test_rollout_of_a_model_is_its_blocks_multiplied(backbone: Backbone) -> None:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    attention: dict[int, torch.Tensor] = {}
    capture_attention(backbone, pixels, attention.__setitem__)
    first, second = ((attention[layer].mean(1) + torch.eye(5)) / 2 for layer in (1, 2))
    expected = (second @ first)[:, 0, 1:].view(3, 2, 2)
    torch.testing.assert_close(rollout.rollout(backbone, pixels), expected)
    torch.testing.assert_close(rollout.rollout(backbone, pixels[1:2]), expected[1:2])  # whatever the batch


def test_analysis_writes_one_grid_and_a_few_single_figures(
    backbone: Backbone, image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    images = images_of_folder(image_folder(train=6, test=1))
    options = Options({"heads": "max", "shown": "4", "files": "2"}, rollout.DEFAULTS)
    (line,) = rollout.analyse([backbone], images, Output(tmp_path / "out"), options)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "rollout-test-boot-000.png", "rollout-test-clog-000.png", "rollout.png",
    ]  # fmt: skip
    arrays = np.load(tmp_path / "out" / "rollout.npz")
    assert arrays["rollout"].shape == (21, 2, 2)
    assert arrays["names"].tolist() == list(images.names)
    assert "rollout (max of the heads) of 21 images" in line


def test_one_image_has_one_figure(backbone: Backbone, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    images = images_of_folder(next(image_folder().rglob("*.png")))
    rollout.analyse([backbone], images, Output(tmp_path / "out"), Options({}, rollout.DEFAULTS))
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["rollout.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": "men"}, "unknown value of option heads 'men'; did you mean 'mean'"),
        ({"discard": "1"}, "option discard is a share from 0 to below 1, got 1"),
        ({"discard": "much"}, "option discard takes .*, got 'much'"),
    ],
)
def test_bad_options(
    backbone: Backbone, image_folder: ImageFolderMaker, tmp_path: Path, given: dict[str, str], message: str
) -> None:
    images = images_of_folder(image_folder())
    with pytest.raises(UsageError, match=message):
        rollout.analyse([backbone], images, Output(tmp_path), Options(given, rollout.DEFAULTS))


def test_heatmap_is_the_cls_row_of_a_block(backbone: Backbone, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    images = images_of_folder(image_folder(train=6, test=1))
    options = Options({"layer": "1", "files": "1"}, heatmap.DEFAULTS)
    (line,) = heatmap.analyse([backbone], images, Output(tmp_path / "out"), options)
    maps = np.load(tmp_path / "out" / "heatmap.npz")["attention"]
    expected = []
    for _, pixels in images.batches(backbone, 5):
        capture_attention(backbone, pixels, lambda layer, a: expected.append(a[:, :, 0, 1:]) if layer == 1 else None)
    np.testing.assert_allclose(maps, torch.cat(expected).numpy().reshape(21, 3, 2, 2), rtol=1e-5)
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["heatmap-test-boot-000.png"]
    assert line.startswith("block 1: ")
    with pytest.raises(UsageError, match="has no block 7"):
        heatmap.analyse([backbone], images, Output(tmp_path), Options({"layer": "7"}, heatmap.DEFAULTS))


def test_relative_weights_and_concentration() -> None:
    weights = np.array([[[1.0, 3.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]], dtype=np.float32)
    assert relative(weights).tolist() == [[[0.5, 1.5], [0, 2]], [[0, 0], [0, 0]]]
    assert concentration(weights[0], share=0.5) == pytest.approx(7 / 8)
    assert concentration(np.ones((10, 10), dtype=np.float32)) == pytest.approx(0.1)
    assert concentration(weights[1]) == 0


def test_captions_are_kept_short() -> None:
    assert shortened("a-short-name") == "a-short-name"
    assert shortened("a" * 20 + "b" * 20) == "a" * 11 + "…" + "b" * 12
