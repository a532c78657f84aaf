from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ImageFolderMaker
from vitbench.analysis import faithfulness
from vitbench.analysis.attention import TokenLayout, capture_attention
from vitbench.analysis.base import Images, Options, images_of_folder
from vitbench.analysis.faithfulness import area, curves, explain, filled, verdict
from vitbench.analysis.output import Output
from vitbench.analysis.rollout import rollout
from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone
from vitbench.errors import RepresentationError, UsageError

LAYOUT = TokenLayout(1, 2, 2, 16, 16, True)


@pytest.fixture(scope="module")
def backbone(tiny_vit: str) -> Backbone:
    loaded = load_backbone(tiny_vit, device="cpu")
    model: Any = loaded.modules[0]
    for block in model.blocks:
        block.attn.qkv.weight.mul_(15)  # far from uniform attention
    return loaded


@pytest.fixture
def images(image_folder: ImageFolderMaker) -> Images:
    return images_of_folder(image_folder(train=1, test=1))


def similarity(backbone: Backbone, one: Tensor, other: Tensor) -> float:
    first, second = (backbone.encode(pixels[None], ["cls"])["cls"].double() for pixels in (one, other))
    return float(nn.functional.cosine_similarity(first, second))


def test_curves_are_those_of_images_disturbed_by_hand(backbone: Backbone) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    background = torch.zeros_like(pixels)
    order = torch.tensor([[2, 0, 1, 3], [1, 3, 0, 2]])
    deletion, insertion = curves(backbone, pixels, background, order, np.array([0, 1, 4]), "cls", LAYOUT)
    for image, (row, column) in enumerate([(1, 0), (0, 1)]):  # patches 2 and 1, the first to go
        place = (slice(None), slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        without, alone = pixels[image].clone(), background[image].clone()
        without[place], alone[place] = 0, pixels[image][place]
        blank = similarity(backbone, background[image], pixels[image])
        expected = [1, similarity(backbone, without, pixels[image]), blank]
        np.testing.assert_allclose(deletion[image], expected, atol=1e-6)
        expected = [blank, similarity(backbone, alone, pixels[image]), 1]
        np.testing.assert_allclose(insertion[image], expected, atol=1e-6)


def test_pixels_beyond_the_patches_stay() -> None:
    mask = faithfulness._pixel_mask(torch.ones(1, 4, dtype=torch.bool), LAYOUT, torch.zeros(1, 3, 35, 33))
    assert mask.shape == (1, 1, 35, 33)
    assert mask.sum() == 32 * 32
    assert mask[..., :32, :32].all()


def test_area_is_that_of_trapezoids() -> None:
    fraction = np.array([0.0, 0.25, 1.0])
    assert area(np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.5, 1.0]]), fraction).tolist() == [1.0, 0.125, 0.625]


def test_a_map_that_knows_what_matters_beats_random_and_its_reverse(backbone: Backbone) -> None:
    """Three of the four patches are the background already, so that only one patch can matter."""
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., 16:, :16] = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    counts, fraction = np.arange(5), np.arange(5) / 4
    areas = {}
    for name, order in (("best", [2, 0, 1, 3]), ("middle", [0, 2, 1, 3]), ("worst", [0, 1, 3, 2])):
        both = curves(backbone, pixels, torch.zeros_like(pixels), torch.tensor([order]), counts, "cls", LAYOUT)
        areas[name] = [area(curve.numpy(), fraction).item() for curve in both]
    assert areas["best"][0] < areas["middle"][0] < areas["worst"][0]
    assert areas["best"][1] > areas["middle"][1] > areas["worst"][1]


def test_what_is_judged_is_the_rollout_and_the_last_attention(backbone: Backbone) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    attention: dict[int, Tensor] = {}
    capture_attention(backbone, pixels, attention.__setitem__)
    weights = explain(backbone, pixels)
    torch.testing.assert_close(weights["rollout"], rollout(backbone, pixels))
    torch.testing.assert_close(weights["attention"], attention[2].mean(1)[:, 0, 1:].view(2, 2, 2))


def test_fills() -> None:
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    mean = filled(pixels, "mean")
    torch.testing.assert_close(mean[1, 2], torch.full((32, 48), pixels[1, 2].mean().item()))
    blurred = filled(pixels, "blur")
    assert blurred.shape == pixels.shape
    assert blurred.std() < 0.3 * pixels.std()
    torch.testing.assert_close(filled(mean, "blur"), mean.contiguous())


def run(backbone: Backbone, images: Images, folder: Path, **given: str) -> list[str]:
    return faithfulness.analyse([backbone], images, Output(folder), Options(given, faithfulness.DEFAULTS))


def test_analysis(backbone: Backbone, images: Images, tmp_path: Path) -> None:
    lines = run(backbone, images, tmp_path / "out", steps="4", draws="2")
    assert [re.sub(r"\d\.\d{3}", "#", line).split(";")[0] for line in lines] == [
        f"{curve} AUC ({better} is better): rollout # ± #, last-layer attention # ± #, random order # ± #"
        for curve, better in (("deletion", "lower"), ("insertion", "higher"))
    ]
    arrays = np.load(tmp_path / "out" / "faithfulness.npz")
    areas = pd.read_csv(tmp_path / "out" / "faithfulness-auc.csv").set_index(["curve", "method"])
    points = pd.read_csv(tmp_path / "out" / "faithfulness.csv")
    assert len(points) == 2 * 3 * 5
    for curve, sign in (("deletion", -1), ("insertion", 1)):
        reference = area(arrays[f"{curve}_random"], arrays["fraction"])
        for method in faithfulness.METHODS:
            values = arrays[f"{curve}_{method}"]
            assert values.shape == (6, 5)
            own = area(values, arrays["fraction"])
            row = areas.loc[(curve, method)]
            assert row["auc"] == pytest.approx(own.mean())
            assert row["standard_error"] == pytest.approx(own.std(ddof=1) / np.sqrt(6))
            gain = sign * (own - reference)
            assert row["gain_over_random"] == pytest.approx(gain.mean(), abs=1e-12)
            assert row["gain_standard_error"] == pytest.approx(gain.std(ddof=1) / np.sqrt(6), abs=1e-12)
            chosen = points[(points["curve"] == curve) & (points["method"] == method)]
            np.testing.assert_allclose(chosen["similarity"], values.mean(axis=0))


def test_random_orders_do_not_depend_on_the_batch(
    backbone: Backbone, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(backbone, images, tmp_path / "one", steps="3")
    monkeypatch.setattr(faithfulness, "batch_size", lambda layout: 4)
    monkeypatch.setattr(faithfulness, "_BATCH", 5)
    run(backbone, images, tmp_path / "other", steps="3")
    one, other = (np.load(tmp_path / name / "faithfulness.npz") for name in ("one", "other"))
    for name in one.files[:-1]:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)
    run(backbone, images, tmp_path / "seed", steps="3", seed="1")
    third = np.load(tmp_path / "seed" / "faithfulness.npz")
    assert not np.allclose(one["deletion_random"], third["deletion_random"], atol=1e-5)


def test_one_image_has_no_standard_error(backbone: Backbone, images: Images, tmp_path: Path) -> None:
    alone = Images(images.names[:1], images.sources[:1])
    lines = run(backbone, alone, tmp_path, steps="2", draws="1", fill="blur")
    assert all("on this one image, which proves nothing" in line and "±" not in line for line in lines)


def test_verdicts() -> None:
    assert verdict(0.1, 0.04) == "better than random"
    assert verdict(-0.1, 0.04) == "worse than random"
    assert verdict(0.1, 0.06).startswith("no better than random")
    assert verdict(0.1, float("nan")).startswith("better than random on this one image")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": "5"}, "option steps must be from 1 to 4, the number of patches, got 5"),
        ({"fill": "grey"}, "unknown value of option fill 'grey'; choose from blur, mean"),
        ({"draws": "0"}, "at least 1 and 0, got 0 and 0"),
        ({"steps": "2", "heads": "maxi"}, "unknown value of option heads 'maxi'; did you mean 'max'"),
    ],
)
def test_bad_options(backbone: Backbone, images: Images, tmp_path: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(backbone, images, tmp_path, **{"steps": "2"} | given)
    with pytest.raises(RepresentationError, match="unknown representation 'clas'"):
        run(backbone, images, tmp_path, representation="clas")
