"""The `demo` backbone: a small ViT that ships with vitbench, so that a first run needs no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitbench.backbones.huggingface import HuggingFaceBackbone
from vitbench.backbones.spec import BackboneSpec
from vitbench.errors import UsageError

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "demo"
"""In the layout of transformers, and so also `hf:` and this path; `card.md` in it says how it was made."""


class DemoBackbone(HuggingFaceBackbone):
    """A ViT of 2.8 million parameters for 32 px, pretrained on 65,000 images by `recipes/pretrain_demo.yaml`.

    It has a class token and a trained dense pooler. It shows what vitbench does; nobody should use its features.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        """Load it.

        Raises:
            UsageError: The spec names a model or a revision, neither of which the demo has.
        """
        if spec.name or spec.revision:
            raise UsageError(f"backbone '{spec.text}': demo takes no name, only resolution, dtype and preprocess")
        super().__init__(replace(spec, name=str(FOLDER)))
        self.spec = spec
