from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import vitbench

TRAIN_IMAGES, TEST_IMAGES = 6, 3
"""Images per class, of 12 classes: 108 in all."""


def split(folder: Path, per_class: int) -> tuple[list[Path], np.ndarray]:
    classes = [sorted(path.iterdir())[:per_class] for path in sorted(folder.iterdir()) if path.is_dir()]
    return [path for paths in classes for path in paths], np.repeat(np.arange(len(classes)), per_class)


@pytest.fixture(scope="module")
def flowers(test_data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """CLS features of ViT-Ti, by plain timm, and labels."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=200)
    weights = load_file(test_data / "weights" / "vit_tiny_patch16_224.tinyimagenet.fp16.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model.eval()

    def features(paths: list[Path]) -> np.ndarray:
        images = [Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR) for path in paths]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return model.forward_features(pixels / 127.5 - 1)[:, 0].numpy()

    folder = test_data / "images" / "flowers12"
    train_paths, train_y = split(folder / "train", TRAIN_IMAGES)
    test_paths, test_y = split(folder / "test", TEST_IMAGES)
    return features(train_paths), train_y, features(test_paths), test_y


def reference_accuracy(data: tuple[np.ndarray, ...], shot: int, seed: int, l2: float) -> float:
    """big_vision's few-shot evaluator in numpy and float64, solved as a least-squares problem with λ as extra rows."""
    train_x, train_y, test_x, test_y = data
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(np.where(train_y == c)[0])[:shot] for c in range(12)])
    x = train_x[rows].astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    z, tests = (np.c_[(a - mean) / std, np.full(len(a), 100.0)] for a in (x, test_x))
    y = 2.0 * np.eye(12)[train_y[rows]] - 1
    features = z.shape[1]
    penalised = np.r_[z, np.sqrt(l2) * np.eye(features)]
    weights = np.linalg.lstsq(penalised, np.r_[y, np.zeros((features, 12))], rcond=None)[0]
    return float(np.mean(np.argmax(tests @ weights, axis=1) == test_y))


def test_the_paper_protocol_on_real_features(flowers: tuple[np.ndarray, ...]) -> None:
    table = vitbench.fewshot(*flowers, shots=(1, 3, 5, 10))
    assert len(table) == 12
    for row in table.itertuples():
        assert row.accuracy == reference_accuracy(flowers, row.shot, row.seed, 1024.0)
    means = table.groupby("shot")["accuracy"].mean()
    assert 0.4 < means[1] < means[5]
    assert means[5] > 0.75
    short = table[table["shot"] == 10]
    assert (short["n_support"] == 12 * TRAIN_IMAGES).all()
    assert short["warnings"].str.contains("12 of 12 classes have fewer than 10 train images").all()


def test_leave_one_out_on_real_features(flowers: tuple[np.ndarray, ...]) -> None:
    table = vitbench.fewshot(*flowers, shots=(3, 5), l2="loo")
    for row in table.itertuples():
        assert row.accuracy == reference_accuracy(flowers, row.shot, row.seed, row.l2)
    assert not table["l2_on_edge"].any()
    assert (table["loo_accuracy"] > 0.6).all()
