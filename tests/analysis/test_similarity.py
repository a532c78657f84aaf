from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import ImageFolderMaker
from vitbench.analysis.base import Images, Options, images_of_folder
from vitbench.analysis.output import Output
from vitbench.analysis.similarity import (
    DEFAULTS,
    ESTIMATORS,
    analyse,
    centre,
    cka,
    collect,
    effective_rank,
    hsic,
    spectrum,
)
from vitbench.backbones.load import load_backbone
from vitbench.errors import RepresentationError, UsageError

Array = np.ndarray[Any, np.dtype[np.float64]]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def alignment(x: Array, y: Array, estimator: str = "biased") -> float:
    return float(cka([centre(x)], [centre(y)], estimator)[0, 0])


def gram_hsic(x: Array, y: Array, estimator: str) -> float:
    """The definitions, with n x n Gram matrices and the centring matrix written out."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    if estimator == "biased":
        h = np.eye(n) - np.ones((n, n)) / n
        return float(np.trace(k @ h @ l @ h))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    return float(
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ l @ one) / (n - 2)
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 30])
def test_hsic_equals_its_definition_by_gram_matrices(estimator: str, n: int) -> None:
    x, y = normal(n, 7) + 3, normal(n, 12, seed=1) @ np.diag(np.arange(12.0)) - 5
    # The definition does not centre the features for the unbiased estimate: it does not depend on their mean.
    assert hsic(centre(x), centre(y), estimator) == pytest.approx(gram_hsic(x, y, estimator), rel=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@settings(max_examples=30, deadline=None)
@given(n=st.integers(5, 30), dim=st.integers(1, 8), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_cka_is_one_up_to_rotation_scale_and_shift(estimator: str, n: int, dim: int, scale: float, seed: int) -> None:
    x = normal(n, dim, seed=seed)
    rotation = np.linalg.qr(normal(dim, dim, seed=seed + 1))[0]
    moved = scale * x @ rotation + normal(dim, seed=seed + 2)
    y = normal(n, dim + 1, seed=seed + 3)
    if np.isfinite(alignment(x, x, estimator)):
        assert alignment(x, moved, estimator) == pytest.approx(1, abs=1e-7)
        assert alignment(x, y, estimator) == pytest.approx(alignment(moved, y, estimator), abs=1e-6, nan_ok=True)
    assert alignment(x, y, estimator) == pytest.approx(alignment(y, x, estimator), nan_ok=True)


def test_cka_sees_what_is_no_rotation() -> None:
    x = normal(200, 5)
    assert alignment(x, x @ np.diag([10, 1, 1, 1, 1])) < 0.9
    assert alignment(x, normal(200, 5, seed=1)) < 0.1


def test_independent_features_in_many_dimensions() -> None:
    """With more dimensions than images the biased estimate is near 1 for noise, and the unbiased one near 0."""
    x, y = normal(40, 500), normal(40, 500, seed=1)
    assert alignment(x, y) > 0.85
    assert abs(alignment(x, y, "unbiased")) < 0.15


def test_features_that_are_the_same_for_every_image_are_like_nothing() -> None:
    constant = np.broadcast_to(np.float32(0.1) * np.arange(1, 5, dtype=np.float32), (20, 4))
    jitter = constant * (1 + 1e-7 * normal(20, 4)).astype(np.float32)
    values = cka([centre(constant), centre(jitter), centre(normal(20, 3))], [centre(normal(20, 3))])
    assert np.isnan(values[:2]).all()
    assert np.isfinite(values[2]).all()
    assert np.isnan(effective_rank(spectrum(centre(jitter))))


@pytest.mark.parametrize(("n", "dim"), [(50, 6), (6, 50)])
def test_spectrum_is_numpys(n: int, dim: int) -> None:
    x = normal(n, dim) + 4
    expected = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / (n - 1)
    found = spectrum(centre(x))
    assert found.shape == (min(n, dim),)
    np.testing.assert_allclose(found, expected, atol=1e-9 * expected[0])


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(np.ones(8)) == pytest.approx(8)
    assert effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.array([0.5, 0.25, 0.25])) == pytest.approx(2**1.5)
    assert effective_rank(spectrum(centre(np.outer(normal(60), normal(9, seed=1))))) == pytest.approx(1, abs=1e-6)


def test_effective_rank_of_an_isotropic_gaussian_tends_to_its_dimension() -> None:
    ranks = [effective_rank(spectrum(centre(normal(n, 10)))) for n in (12, 100, 10_000)]
    assert ranks[0] < ranks[1] < ranks[2] < 10
    assert ranks[2] == pytest.approx(10, rel=2e-3)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_effective_rank_is_between_1_and_the_number_of_directions(values: list[float]) -> None:
    rank = effective_rank(np.array(values))
    if sum(values) > 0:
        assert 1 - 1e-9 <= rank <= np.count_nonzero(values) * (1 + 1e-9)


@pytest.fixture
def images(image_folder: ImageFolderMaker) -> Images:
    return images_of_folder(image_folder(train=3, test=5))  # 24 images


def test_one_pass_over_the_images(tiny_vit: str, images: Images, encoded: list[int]) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    layers = collect(backbone, images, "cls")
    assert encoded == [16, 8]
    assert layers.names == ("cls@0", "cls@1", "cls@2")
    pixels = next(images.batches(backbone, 24))[1]
    expected = backbone.encode(pixels, layers.names)
    for name, features in zip(layers.names, layers.features, strict=True):
        np.testing.assert_allclose(features, expected[name].numpy(), atol=1e-5)


def test_of_one_backbone(tiny_vit: str, images: Images, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_vit, device="cpu")
    lines = analyse([backbone], images, Output(tmp_path), Options({}, DEFAULTS))
    assert lines[0].endswith(": 3 layers of gap")
    assert lines[1] == "linear CKA with the biased HSIC estimator over 24 images"
    values = np.load(tmp_path / "similarity.npz", allow_pickle=False)["similarity"]
    np.testing.assert_allclose(np.diag(values), 1)
    np.testing.assert_allclose(values, values.T)
    table = pd.read_csv(tmp_path / "similarity.csv")
    assert len(table) == 9
    assert table.query("layer_a == 'gap@0' and layer_b == 'gap@2'")["cka"].item() == pytest.approx(values[0, 2])
    layers = pd.read_csv(tmp_path / "layers.csv")
    assert list(layers["layer"]) == ["gap@0", "gap@1", "gap@2"]
    assert layers["effective_rank"].between(1, 23).all()
    assert np.load(tmp_path / "spectra.npz")["spectrum-gap@1"].shape == (24,)
    for name in ("similarity.png", "spectrum.png", "effective-rank.png"):
        assert min(Image.open(tmp_path / name).size) > 200


def test_of_two_backbones_with_themselves_and_each_other(tiny_vit: str, images: Images, tmp_path: Path) -> None:
    backbones = [load_backbone(tiny_vit, device="cpu")] * 2
    lines = analyse(backbones, images, Output(tmp_path), Options({"estimator": "unbiased"}, DEFAULTS))
    arrays = np.load(tmp_path / "similarity.npz", allow_pickle=False)
    assert set(arrays.files) == {"similarity-1", "similarity-2", "similarity-1-2"}
    np.testing.assert_allclose(arrays["similarity-1-2"], arrays["similarity-1"])
    assert any("at their outputs 1.000" in line for line in lines)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "similarity-1.png",
        "similarity-2.png",
        "similarity-1-2.png",
        "spectrum-1.png",
        "spectrum-2.png",
        "effective-rank.png",
    }


def test_a_class_token_before_the_first_block_is_said_to_be_constant(
    tiny_vit: str, images: Images, tmp_path: Path
) -> None:
    options = Options({"representation": "cls"}, DEFAULTS)
    lines = analyse([load_backbone(tiny_vit, device="cpu")], images, Output(tmp_path), options)
    assert any("cls@0 is the same for every image" in line for line in lines)
    values = np.load(tmp_path / "similarity.npz")["similarity"]
    assert np.isnan(values[0]).all()
    assert np.isfinite(values[1:, 1:]).all()


def test_of_a_backbone_without_layers(images: Images, tmp_path: Path) -> None:
    backbone = load_backbone("pixels,resolution=8", device="cpu")
    lines = analyse([backbone], images, Output(tmp_path), Options({"representation": "pixels"}, DEFAULTS))
    assert lines[0].endswith("1 layer of pixels")
    assert any("fewer images than dimensions (192)" in line for line in lines)


def test_max_images_are_spread_and_said(tiny_vit: str, images: Images, tmp_path: Path, encoded: list[int]) -> None:
    options = Options({"max_images": "6"}, DEFAULTS)
    lines = analyse([load_backbone(tiny_vit, device="cpu")], images, Output(tmp_path), options)
    assert encoded == [6]
    assert lines[1].endswith("over 6 images, evenly spread over the 24 given (option max_images)")


@pytest.mark.parametrize(
    ("options", "count", "expected"),
    [
        ({}, 1, "similarity with the biased estimator compares at least 2 images, got 1"),
        ({"estimator": "unbiased"}, 3, "compares at least 4 images, got 3"),
        ({"estimator": "unbias"}, 5, "unknown estimator 'unbias'; did you mean 'unbiased'"),
        ({"representation": "gap@1"}, 5, "one pooling without a layer"),
        ({"max_images": "-1"}, 5, "at least 2 images, got 0"),
    ],
)
def test_bad_input_is_one_line(
    options: dict[str, str], count: int, expected: str, tiny_vit: str, images: Images, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        analyse(
            [load_backbone(tiny_vit, device="cpu")], images.subset(count), Output(tmp_path), Options(options, DEFAULTS)
        )
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_representation_that_the_backbone_lacks(images: Images, tmp_path: Path) -> None:
    with pytest.raises(RepresentationError, match="it has: pixels"):
        analyse([load_backbone("pixels", device="cpu")], images, Output(tmp_path), Options({}, DEFAULTS))
