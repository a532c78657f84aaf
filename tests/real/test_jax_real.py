from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitbench.backbones.load import load_backbone

CASES = {
    "paper_pre_logits": ("paper_pre_logits", ""),
    "paper_augreg": ("paper_augreg", ""),
    "paper_augreg.resolution64": ("paper_augreg", ",resolution=64"),
    "bigvision_tok": ("bigvision_tok", ""),
    "bigvision_map": ("bigvision_map", ""),
}


def read(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_flax(case: str, test_data: Path) -> None:
    name, options = CASES[case]
    folder = test_data / "jax_vit"
    expected = read(folder / f"{case}.expected.npz")
    weights = {key.removeprefix("params/"): array for key, array in read(folder / f"{name}.npz").items()}
    backbone = load_backbone(f"jax:{folder / name}.npz{options}", device="cpu")
    pixels = expected.pop("pixels").permute(0, 3, 1, 2)
    computed = {"tokens": backbone.modules[0](pixels), **backbone.encode(pixels, backbone.available())}
    computed["logits"] = computed["pooler"] @ weights["head/kernel"] + weights["head/bias"]
    computed["head_input"] = computed["pre_logits"] = computed["pooler"]
    assert {"tokens", "gap"} <= expected.keys()
    assert ("cls" in expected) == ("cls" in backbone.available())
    for key, value in expected.items():
        torch.testing.assert_close(computed[key], value, atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    own = sum(array.numel() for key, array in weights.items() if not key.startswith("head/"))
    assert backbone.num_parameters == own or options


def test_timms_loader_agrees_once_its_gelu_is_flaxs(test_data: Path) -> None:
    """timm uses the exact GELU, and features move by far more than rounding."""
    path = test_data / "jax_vit" / "paper_augreg.npz"
    expected = read(path.with_suffix(".expected.npz"))
    pixels = expected["pixels"].permute(0, 3, 1, 2)
    got = load_backbone(f"jax:{path}", device="cpu").encode(pixels, ["cls", "gap"])
    for activation, same in ((nn.GELU, False), (partial(nn.GELU, approximate="tanh"), True)):
        peer = VisionTransformer(
            48, 16, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2, num_classes=0, act_layer=activation
        )
        peer.load_pretrained(str(path))
        with torch.inference_mode():
            tokens = peer.eval().forward_features(pixels)
        gaps = [(tokens[:, 0] - got["cls"]).abs().max(), (tokens[:, 1:].mean(1) - got["gap"]).abs().max()]
        assert all(bool(gap < 1e-5) == same for gap in gaps), (activation, gaps)
