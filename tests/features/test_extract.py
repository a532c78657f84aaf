from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.backbones.base import Backbone
from vitbench.errors import DataError, UsageError
from vitbench.features.extract import ExtractionOptions, feature_set
from vitbench.features.profile import Profile, recording
from vitbench.features.store import FeatureStore
from vitbench.tasks import transforms
from vitbench.tasks.task import Split


@pytest.fixture
def setting(image_folder: ImageFolderMaker, tiny_vit: str, tmp_path: Path) -> dict[str, Any]:
    backbone = vitbench.load_backbone(tiny_vit, device="cpu")
    return {
        "backbone": backbone,
        "split": vitbench.load_task(f"imagefolder:{image_folder(train=8)}").split("train"),
        "preprocessing": transforms.parse(backbone.preprocessing),
        "store": FeatureStore(tmp_path, "vit", "shoes", "train", {"weights": "abcd"}),
    }


def get(setting: dict[str, Any], names: list[str], rows: list[int], **options: Any) -> torch.Tensor:
    features = feature_set(
        **setting, names=names, rows=np.array(rows, dtype=np.int64), options=ExtractionOptions(**options)
    )
    return torch.cat([features.representations[name] for name in names], dim=1)


def expected(setting: dict[str, Any], names: list[str], rows: list[int]) -> torch.Tensor:
    """One image at a time, straight through the model."""
    backbone: Backbone = setting["backbone"]
    split: Split = setting["split"]
    vectors = []
    for row in rows:
        encoded = backbone.encode(setting["preprocessing"]([split.image(row)]), names)
        vectors.append(torch.cat([encoded[name] for name in names], dim=1))
    return torch.cat(vectors)


def test_features_are_those_of_the_right_images(setting: dict[str, Any]) -> None:
    names = ["cls", "gap@1", "cls+gap"]
    assert torch.allclose(
        get(setting, names, [1, 2, 5, 17], batch_size=3), expected(setting, names, [1, 2, 5, 17]), atol=1e-5
    )


def test_one_pass_whatever_number_of_representations(setting: dict[str, Any], encoded: list[int]) -> None:
    get(setting, ["cls", "gap", "pooler", "cls@1", "gap@0", "cls+gap"], list(range(10)), batch_size=4)
    assert encoded == [4, 4, 2]


def test_the_store_grows_by_rows_and_by_representations(setting: dict[str, Any], encoded: list[int]) -> None:
    get(setting, ["cls"], [0, 1, 2, 3])
    get(setting, ["cls"], [2, 3, 4])
    assert encoded == [4, 1]
    get(setting, ["cls", "gap"], [3, 4, 5])
    assert sorted(encoded[2:]) == [1, 2], "rows 3 and 4 lack gap alone, row 5 lacks both"
    encoded.clear()
    get(setting, ["cls+gap"], [3, 4, 5])
    assert encoded == []


def test_an_interruption_keeps_what_was_done_and_the_rest_is_bit_identical(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(range(20))
    undisturbed = get(
        setting | {"store": FeatureStore(tmp_path, "u", "t", "train", {"a": 1})}, ["cls", "gap"], rows, batch_size=4
    )
    original = Backbone.encode_atoms
    calls = 0

    def interrupted(self: Backbone, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Backbone, "encode_atoms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get(setting, ["cls", "gap"], rows, batch_size=4)
    missing = setting["store"].missing(["cls", "gap"], np.arange(20))
    assert sum(map(len, missing.values())) == 8
    calls = 100
    assert torch.equal(get(setting, ["cls", "gap"], rows, batch_size=4), undisturbed)
    assert calls == 102


def test_a_broken_image_is_named_and_the_batches_before_it_are_kept(setting: dict[str, Any]) -> None:
    split: Split = setting["split"]
    image = split.source.image

    def broken(row: int) -> Any:
        if row == 9:
            raise DataError("row 9 (boot/009.png): cannot be read")
        return image(row)

    object.__setattr__(split.source, "image", broken)
    with pytest.raises(DataError, match="row 9"):
        get(setting, ["cls"], list(range(16)), batch_size=4)
    assert [len(rows) for rows in setting["store"].missing(["cls"], np.arange(16)).values()] == [8]


def out_of_memory_above(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    original = Backbone.encode_atoms

    def limited(self: Backbone, pixels: torch.Tensor, atoms: Any) -> Any:
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return original(self, pixels, atoms)

    monkeypatch.setattr(Backbone, "encode_atoms", limited)


def test_running_out_of_memory_halves_the_batch_once_and_for_all(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(range(24))
    right = expected(setting, ["cls"], rows)
    out_of_memory_above(monkeypatch, 5)
    said: list[str] = []
    assert torch.allclose(get(setting, ["cls"], rows, message=said.append), right, atol=1e-5)
    assert said == [f"out of memory on cpu: going on with {size} images at once" for size in (8, 4)]


def test_out_of_memory_with_a_fixed_batch_or_a_single_image_is_one_clear_line(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(
        UsageError, match="out of memory with 4 images at once on cpu: use --batch-size auto or a smaller"
    ):
        get(setting, ["cls"], list(range(8)), batch_size=4)
    with pytest.raises(UsageError, match="out of memory with a single image on cpu"):
        get(setting, ["cls"], list(range(8)))


def test_profiled_features_are_the_same_and_a_broken_image_is_told_as_ever(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    plain = get(setting, ["cls", "gap"], list(range(8)))
    recorded = Profile()
    with recording(recorded):
        other = setting | {"store": FeatureStore(tmp_path, "p", "t", "train", {"a": 1})}
        assert torch.equal(get(other, ["cls", "gap"], list(range(8))), plain)
        split: Split = setting["split"]
        object.__setattr__(split.source, "raw", lambda row: tmp_path / "gone.png")
        with pytest.raises(DataError, match="cannot be read"):
            get(other, ["cls"], [9])
    counted = {row.stage: row.calls for row in recorded.rows()}
    assert counted["read"] == 9
    assert counted["decode"] == 9
    assert counted["transform"] == 8


def test_packed_weights_change_no_feature_beyond_rounding(setting: dict[str, Any], tmp_path: Path) -> None:
    other = setting | {"store": FeatureStore(tmp_path, "p", "t", "train", {"a": 1})}
    packed = get(setting, ["cls", "gap"], list(range(10)), batch_size=4)
    plain = get(other, ["cls", "gap"], list(range(10)), batch_size=4, packed=False)
    assert torch.allclose(packed, plain, atol=1e-5)


def test_a_bug_in_a_backbone_is_not_taken_for_lack_of_memory(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(self: Backbone, *arguments: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Backbone, "encode_atoms", buggy)
    with pytest.raises(RuntimeError, match="mat1"):
        get(setting, ["cls"], [0, 1])


def test_decoding_overlaps_with_the_forward_pass(setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """While batch k is in the model, images of batch k + 1 have been asked for."""
    split: Split = setting["split"]
    image, asked = split.source.image, []

    def counting(row: int) -> Any:
        asked.append(row)
        return image(row)

    object.__setattr__(split.source, "image", counting)
    original = Backbone.encode_atoms
    seen: list[int] = []

    def forward(self: Backbone, *arguments: Any) -> Any:
        result = original(self, *arguments)
        for _ in range(200):
            if len(asked) > 4 * (len(seen) + 1):
                break
            os.sched_yield()
            torch.randn(50, 50).mm(torch.randn(50, 50))
        seen.append(len(asked))
        return result

    monkeypatch.setattr(Backbone, "encode_atoms", forward)
    get(setting, ["cls"], list(range(12)), batch_size=4)
    assert seen[0] > 4
