"""The `pixels` baseline: an image's own pixels, the floor of every leaderboard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from vitbench.backbones.base import Backbone, Representation
from vitbench.backbones.spec import Atom, BackboneSpec
from vitbench.errors import UsageError

DEFAULT_RESOLUTION = 32


class PixelsBackbone(Backbone):
    """Resizes an image to a small square and flattens it. `resolution=` sets the side, 32 pixels if not given.

    Its one representation is `pixels`, `[N, 3*R*R]`, in the range [-1, 1].
    """

    is_floor: ClassVar[bool] = True

    def __init__(self, spec: BackboneSpec) -> None:
        """Make the baseline.

        Raises:
            UsageError: The spec names a model, a checkpoint or a constructor option, none of which pixels have.
        """
        if spec.name or spec.checkpoint or spec.model_options:
            raise UsageError(
                f"backbone '{spec.text}': pixels take no name or weights, only resolution, dtype and preprocess"
            )
        side = spec.resolution or DEFAULT_RESOLUTION
        self.spec = spec
        self.input_size = (side, side)
        self.mean = self.std = (0.5, 0.5, 0.5)
        self.preprocessing = f"resize({side}x{side},bilinear)|normalize(0.5,0.5)"
        self.representations = {"pixels": Representation("pixels", 3 * side * side)}
        self.architecture = "pixels"
        self.weights_digest = hashlib.sha256(b"").hexdigest()

    @property
    def modules(self) -> Sequence[nn.Module]:
        """None: there are no weights."""
        return ()

    def _forward(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        return dict.fromkeys(atoms, pixels.flatten(1))
