"""What the analyses of weights and features say of a real ViT, and that its copies are told to be the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from vitbench.analysis.run import analyze

VIT_TINY = "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors"


def timm_spec(test_data: Path, options: str = "") -> str:
    return f"timm:vit_tiny_patch16_224,checkpoint={test_data / 'weights' / VIT_TINY}{options}"


def test_filters_of_two_copies_are_equal(test_data: Path, tmp_path: Path) -> None:
    specs = [timm_spec(test_data), f"hf:{test_data / 'weights' / 'vit_tiny_hf'}"]
    analyze("filters", specs, out=tmp_path, device="cpu")
    first, second = (np.load(path) for path in sorted(tmp_path.glob("*/filters.npz")))
    stored = load_file(test_data / "weights" / VIT_TINY)["patch_embed.proj.weight"].float().numpy()
    for name in ("weight", "components", "explained_variance_ratio"):
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(first["weight"], stored)


def test_positions_know_rows_and_columns(test_data: Path, tmp_path: Path) -> None:
    specs = [timm_spec(test_data), f"hf:{test_data / 'weights' / 'vit_tiny_hf'}"]
    analyze("posembed", specs, out=tmp_path, device="cpu")
    first, second = (
        np.load(path)["cosine"].reshape(14, 14, 14, 14) for path in sorted(tmp_path.glob("*/posembed.npz"))
    )
    np.testing.assert_allclose(first, second, atol=1e-6)
    here = first[6, 6]
    assert here[6, 7] > 0.7
    assert here[7, 6] > 0.7
    # As in the paper's figure: the row and the column of a position are more like it than the rest.
    rest = np.delete(np.delete(here, 6, axis=0), 6, axis=1).mean()
    assert np.delete(here[6], 6).mean() > rest + 0.1
    assert np.delete(here[:, 6], 6).mean() > rest + 0.1


@pytest.mark.parametrize("name", ["paper_augreg", "paper_pre_logits", "bigvision_tok", "bigvision_map"])
def test_positions_of_jax_checkpoints(name: str, test_data: Path, tmp_path: Path) -> None:
    file = test_data / "jax_vit" / f"{name}.npz"
    analyze("posembed", [f"jax:{file}"], out=tmp_path, device="cpu")
    with np.load(file) as arrays:
        (key,) = (key for key in arrays.files if key.endswith("pos_embedding"))
        stored = arrays[key][0]
    if name.startswith("paper"):
        stored = stored[1:]
    np.testing.assert_array_equal(np.load(tmp_path / "posembed.npz")["table"].reshape(stored.shape), stored)


def test_similarity_of_two_copies_is_one(test_data: Path, tmp_path: Path) -> None:
    preprocess = ",preprocess=resize(224x224,bicubic)|normalize(0.5,0.5)"
    page = analyze(
        "similarity",
        [timm_spec(test_data, preprocess), f"hf:{test_data / 'weights' / 'vit_tiny_hf'}{preprocess}"],
        out=tmp_path,
        folder=test_data / "images" / "imagenette160" / "val",
        limit=8,
        options={"representation": "cls"},
        device="cpu",
    )
    values = np.load(tmp_path / "similarity.npz")
    np.testing.assert_allclose(np.diag(values["similarity-1-2"])[1:], 1, atol=1e-5)
    assert values["similarity-1-2"][1, 12] < 0.9
    assert "cls@0 is the same for every image" in page.read_text()
