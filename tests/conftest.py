"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import Atom


class ImageFolderMaker(Protocol):
    """What the fixture `image_folder` gives."""

    def __call__(
        self,
        name: str = ...,
        classes: tuple[str, ...] = ...,
        train: int = ...,
        test: int = ...,
        size: tuple[int, int] = ...,
    ) -> Path: ...


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """Two test workers on two cores: one thread each, or they fight."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Tests send Ctrl-C to processes that they start, which would inherit from a shell's background job that it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache; processes that tests start inherit this."""
    os.environ["VITBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and real weights; tests that ask for it are skipped where there is none."""
    folder = os.environ.get("VITBENCH_TEST_DATA")
    if not folder:
        pytest.skip("VITBENCH_TEST_DATA is not set: the real images and weights are not at hand")
    path = Path(folder).resolve()
    assert path.is_dir(), f"VITBENCH_TEST_DATA={folder} is no folder"
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolderMaker:
    """Make a small folder of PNG images, one folder per class; the classes differ in colour, so that pixels can tell them."""

    def make(
        name: str = "shoes",
        classes: tuple[str, ...] = ("boot", "clog", "loafer"),
        train: int = 6,
        test: int = 4,
        size: tuple[int, int] = (24, 20),
    ) -> Path:
        generator = np.random.default_rng(0)
        for split, count in (("train", train), ("test", test)):
            for label, folder in enumerate(classes):
                target = tmp_path / name / split / folder
                target.mkdir(parents=True)
                for index in range(count):
                    colour = np.eye(3)[label % 3] * 150
                    pixels = colour + generator.uniform(0, 105, (*size, 3))
                    Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index:03d}.png")
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of a tiny random ViT (32 px, 2 blocks, width 24), loaded from a real checkpoint file by the timm adapter."""
    options = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **options)
    path = tmp_path_factory.mktemp("weights") / "tiny_vit.safetensors"
    save_file(model.state_dict(), path)
    given = ",".join(f"model.{name}={value}" for name, value in options.items())
    return f"timm:vit_tiny_patch16_224,checkpoint={path},{given}"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every forward pass from here on, in order."""
    sizes: list[int] = []
    original = Backbone.encode_atoms

    def counting(self: Backbone, pixels: torch.Tensor, atoms: frozenset[Atom]) -> dict[Atom, torch.Tensor]:
        sizes.append(len(pixels))
        return original(self, pixels, atoms)

    monkeypatch.setattr(Backbone, "encode_atoms", counting)
    return sizes
