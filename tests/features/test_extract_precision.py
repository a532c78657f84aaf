from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.conftest import ImageFolderMaker
from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import Atom
from vitbench.features import precision
from vitbench.features.extract import ExtractionOptions, embedded
from vitbench.features.load import load_backbone
from vitbench.features.precision import FLOAT32_BOUND, image_layout, packed_linears
from vitbench.tasks import transforms
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import TaskOptions

CPU = torch.device("cpu")


@pytest.fixture
def repaying(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where packing repays; the kernels themselves run wherever torch brings oneDNN."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(precision, "_repays", lambda dtype: True)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24, bias=False)).requires_grad_(False)


def result(model: nn.Module, values: Tensor, dtype: str) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        output: Tensor = model(values)
        return output


@pytest.mark.usefixtures("repaying")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (3, 17, 24), (2, 5, 7, 24)])
def test_packed_layers_agree_to_the_bound_whatever_the_number_of_rows(dtype: str, shape: tuple[int, ...]) -> None:
    model, values = make_model(), torch.randn(shape)
    plain = result(model, values, dtype)
    with packed_linears([model], CPU, dtype, 34) as count:
        found = result(model, values, dtype)
    assert count == 2
    assert found.dtype == plain.dtype
    if dtype == "bfloat16":
        assert torch.equal(found, plain)
    assert float((found - plain).abs().max()) <= FLOAT32_BOUND * float(plain.abs().max())


@pytest.mark.usefixtures("repaying")
def test_a_model_is_as_it_was_afterwards_also_after_an_error() -> None:
    model, values = make_model(), torch.randn(3, 24)
    before, plain = [dict(vars(layer)) for layer in model.modules()], model(values)
    with pytest.raises(ValueError), packed_linears([model], CPU, "float32", 3):
        assert "forward" in vars(model[0])  # type: ignore[index]
        raise ValueError
    assert [set(vars(layer)) for layer in model.modules()] == [set(names) for names in before]
    assert torch.equal(model(values), plain)


@pytest.mark.usefixtures("repaying")
def test_where_a_model_switches_autocast_off_nothing_is_rounded() -> None:
    model, values = make_model(), torch.randn(3, 24)
    plain = model(values)
    with packed_linears([model], CPU, "bfloat16", 3), torch.inference_mode():
        assert torch.equal(model(values), plain)


@pytest.mark.usefixtures("repaying")
def test_only_plain_linear_layers_are_touched() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return 2 * super().forward(input)

    model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4).half(), nn.Conv2d(3, 3, 1)).requires_grad_(False)
    with packed_linears([model], CPU, "float32", 3) as count:
        assert count == 0
    with packed_linears([make_model()], torch.device("meta"), "float32", 3) as count:
        assert count == 0


@pytest.mark.usefixtures("repaying")
def test_a_layer_beyond_the_bound_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    original = precision._packed

    def wrong(layer: nn.Linear, *arguments: Any) -> Any:
        forward = original(layer, *arguments)
        assert forward is not None
        return (lambda values: forward(values) * 1.001) if layer.in_features == 24 else forward

    monkeypatch.setattr(precision, "_packed", wrong)
    model, values = make_model(), torch.randn(3, 24)
    plain = model(values)
    with packed_linears([model], CPU, "float32", 3) as count, torch.inference_mode():
        assert torch.allclose(model(values), plain, atol=1e-6)
    assert count == 1


@pytest.mark.parametrize(("maker", "intel"), [("AuthenticAMD", False), ("GenuineIntel", True), ("", True)])
def test_the_maker_of_the_processor_decides_and_not_a_timing(
    maker: str, intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.Path, "read_text", lambda *arguments, **keywords: f"vendor_id : {maker}")
    precision.made_by_intel.cache_clear()
    try:
        assert precision.made_by_intel() is intel
    finally:
        precision.made_by_intel.cache_clear()


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AVX-512."""
    monkeypatch.setattr(precision, "_is_wide", lambda: True)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "regnetx_002", "resnetv2_18"])
def test_a_convolutional_model_gets_the_channels_last_and_gives_the_same_features(name: str) -> None:
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=0).eval(), torch.randn(3, 3, 64, 64)
    layout = image_layout([model], CPU, "float32")
    assert layout == torch.channels_last
    plain, found = (result(model, values, "float32") for values in (images, images.contiguous(memory_format=layout)))
    assert float((found - plain).abs().max()) <= FLOAT32_BOUND * float(plain.abs().max())


@pytest.mark.usefixtures("wide")
def test_other_models_devices_and_dtypes_get_images_as_they_are() -> None:
    convolutional, attending = (timm.create_model(name, num_classes=0) for name in ("resnet18", "vit_tiny_patch16_224"))
    assert image_layout([attending], CPU, "float32") == torch.contiguous_format
    assert image_layout([convolutional], CPU, "bfloat16") == torch.contiguous_format
    assert image_layout([convolutional], torch.device("meta"), "float32") == torch.contiguous_format
    assert image_layout([], CPU, "float32") == torch.contiguous_format


@pytest.mark.usefixtures("wide")
def test_a_model_with_a_group_norm_gets_images_as_they_are() -> None:
    """With the channels last, torch's variance of a group cancels: pooled features of BiT were 9e-5 off."""
    with torch.device("meta"):
        model = timm.create_model("resnetv2_50x1_bit", num_classes=0)
    assert image_layout([model], CPU, "float32") == torch.contiguous_format
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert image_layout([convolutions], CPU, "float32") == torch.channels_last
    assert image_layout([convolutions, nn.GroupNorm(2, 8)], CPU, "float32") == torch.contiguous_format


@pytest.mark.usefixtures("wide")
def test_extraction_gives_a_convolutional_model_its_images_so(
    tmp_path: Path, image_folder: ImageFolderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    backbone = load_backbone(f"timm:resnet18,resolution=64,checkpoint={tmp_path / 'model.safetensors'}", device="cpu")
    split = load_task(f"imagefolder:{image_folder()}", TaskOptions()).split("test")
    seen: list[bool] = []
    original = Backbone.encode_atoms

    def watched(self: Backbone, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        seen.append(pixels.is_contiguous(memory_format=torch.channels_last))
        return original(self, pixels, atoms)

    monkeypatch.setattr(Backbone, "encode_atoms", watched)
    how, rows = transforms.parse(backbone.preprocessing), np.arange(len(split), dtype=np.int64)
    atoms = frozenset(backbone.resolve("gap"))
    found = []
    for packed in (True, False):
        batches = list(embedded(backbone, split, how, atoms, rows, ExtractionOptions(packed=packed)))
        found.append(torch.cat([values[atom] for _, values in batches for atom in atoms]))
    assert seen == [True] * (len(seen) // 2) + [False] * (len(seen) // 2)
    assert float((found[0] - found[1]).abs().max()) <= FLOAT32_BOUND * float(found[1].abs().max())
