"""How far two models' activations are apart on the same pixels: block by block, and in their final representations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.analysis.base import Images
from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError

NOISE_IMAGES = 4
_BATCH = 8
_BLOCK_LISTS = ("blocks", "layers", "layer")


@dataclass(frozen=True)
class Pixels:
    """Pixels that go through all models, read as often as they are asked for.

    Attributes:
        description: Where they come from and how they were prepared, for the report.
        batches: Gives `[n, 3, H, W]` float32 tensors, the same ones at each call.
    """

    description: str
    batches: Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Difference:
    """How far one activation of B is from A's, over all images.

    Attributes:
        name: `@0` for the input of the first block, `@L` for the output of block L, without the final norm (`gap@L` for models
            without such a row of blocks); or a final representation, `cls`, `gap`, `pooler`.
        largest: Largest absolute difference of an element.
        scale: Largest absolute element of A.
        cosine: Smallest cosine of an image's two vectors; None for a layer's tokens.
    """

    name: str
    largest: float
    scale: float
    cosine: float | None = None

    @property
    def relative(self) -> float:
        """The largest difference over the scale; a difference that is no number is infinite."""
        if self.largest == 0:
            return 0.0
        ratio = self.largest / self.scale if self.scale else float("inf")
        return ratio if ratio == ratio else float("inf")


@dataclass(frozen=True)
class Activations:
    """The activations of a pair of models on the same pixels.

    Attributes:
        layers: Per layer, in order.
        finals: Per final representation that both models have trained.
        pixels: Which pixels.
    """

    layers: Sequence[Difference]
    finals: Sequence[Difference]
    pixels: str

    @property
    def worst(self) -> float:
        """The largest relative difference of all."""
        return max((item.relative for item in (*self.layers, *self.finals)), default=0.0)

    def first_beyond(self, tolerance: float) -> Difference | None:
        """The first activation whose relative difference exceeds the tolerance."""
        return next((item for item in (*self.layers, *self.finals) if item.relative > tolerance), None)


def pixels_of_images(images: Images, backbone: Backbone, source: str) -> Pixels:
    """Images as `backbone` prepares them."""
    count = f"{len(images)} image{'s' if len(images) > 1 else ''} of {source}, prepared as the first model does"
    return Pixels(count, lambda: (pixels for _, pixels in images.batches(backbone, _BATCH)))


def noise_pixels(backbone: Backbone, seed: int) -> Pixels:
    """Uniform noise in [0, 1] per pixel, normalised as `backbone` does."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((NOISE_IMAGES, 3, *backbone.input_size), generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    batch = (noise - mean) / std
    return Pixels(f"{NOISE_IMAGES} images of uniform noise (seed {seed})", lambda: iter([batch]))


def compare_activations(a: Backbone, b: Backbone, pixels: Pixels, prefix: tuple[int, int] | None) -> Activations:
    """Run the same pixels through two models and compare what comes out of every layer.

    A ViT's layers are compared token by token, before any norm: the final norm, which `cls@L` has been through, would stretch
    small differences of early layers. Where the numbers of prefix tokens differ, patch tokens alone are compared.

    Args:
        a: The reference.
        b: The other model.
        pixels: What goes through both, and fits both.
        prefix: The numbers of tokens before the patches of two ViTs; None for models that are no plain ViTs.

    Raises:
        UsageError: The pixels do not fit `b`.
    """
    tokens = prefix is not None and find_blocks(a) is not None and find_blocks(b) is not None
    finals = _common_finals(a, b)
    layers = [] if tokens else _common_layers(a, b)
    if not tokens and not layers and not finals:
        raise UsageError(f"backbones '{a.spec.text}' and '{b.spec.text}' have no representation in common")
    totals: dict[str, _Total] = {}
    for batch in pixels.batches():
        one, other = (_encode(backbone, batch, [*layers, *finals], tokens) for backbone in (a, b))
        for name in one:
            left, right = one[name], other[name]
            if tokens and left.ndim == 3 and left.shape[1] != right.shape[1] and prefix is not None:
                left, right = left[:, prefix[0] :], right[:, prefix[1] :]
            totals.setdefault(name, _Total()).add(left, right, with_cosine=name in finals)
    differences = {name: total.difference(name) for name, total in totals.items()}
    return Activations(
        layers=[item for name, item in differences.items() if name not in finals],
        finals=[differences[name] for name in finals],
        pixels=pixels.description,
    )


def find_blocks(backbone: Backbone) -> Sequence[nn.Module] | None:
    """The row of blocks of a plain ViT, whichever library built it; None where there is none of the backbone's depth."""
    found: dict[str, Any] = {}
    for module in backbone.modules:
        for name, child in module.named_modules():
            known = name.rpartition(".")[2] in _BLOCK_LISTS and isinstance(child, nn.ModuleList | nn.Sequential)
            if known and isinstance(child, nn.ModuleList | nn.Sequential) and len(child) == backbone.depth > 0:
                found[name] = child
    # A hybrid's ResNet has blocks too, further inside.
    return found[min(found, key=lambda name: name.count("."))] if found else None


@contextmanager
def block_outputs(blocks: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect the input of the first block (0) and the output of block L (L), `[N, T, D]`, of the forward pass inside."""
    layers: dict[int, Tensor] = {}
    handles = []

    def keep_input(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        layers[0] = arguments[0] if arguments else named["hidden_states"]

    def keep_output(layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            # Blocks of transformers before 5.0 give a tuple.
            layers[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    try:
        handles.append(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
        for layer, block in enumerate(blocks, 1):
            handles.append(block.register_forward_hook(keep_output(layer)))
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def pixel_difference(a: Backbone, b: Backbone, images: Images) -> tuple[float, float]:
    """Mean and largest absolute difference of the two models' own inputs for the same images, in units of A's input.

    Raises:
        UsageError: The inputs differ in size.
    """
    total = count = largest = 0.0
    for (_, one), (_, other) in zip(images.batches(a, _BATCH), images.batches(b, _BATCH), strict=True):
        if one.shape != other.shape:
            raise UsageError(f"inputs are {list(one.shape[-2:])} and {list(other.shape[-2:])} pixels")
        apart = (one - other.to(one.device)).abs().double()
        total, count, largest = total + float(apart.sum()), count + apart.numel(), max(largest, float(apart.max()))
    return total / count, largest


def own_cosines(a: Backbone, b: Backbone, images: Images) -> Mapping[str, float]:
    """Smallest cosine over images of each final representation when each model prepares the images in its own way."""
    finals = _common_finals(a, b)
    totals = {name: _Total() for name in finals}
    for (_, one), (_, other) in zip(images.batches(a, _BATCH), images.batches(b, _BATCH), strict=True):
        left, right = a.encode(one, finals), b.encode(other, finals)
        for name in finals:
            totals[name].add(left[name], right[name].to(left[name].device), with_cosine=True)
    return {name: total.cosine for name, total in totals.items()}


class _Total:
    """The extremes over batches of one activation."""

    def __init__(self) -> None:
        self.largest = self.scale = 0.0
        self.cosine = 1.0
        self._with_cosine = False

    def add(self, a: Tensor, b: Tensor, with_cosine: bool) -> None:
        a, b = a.float(), b.to(a.device).float()
        # torch's max and min give NaN where there is one, Python's would lose it.
        self.largest = float(torch.stack([torch.tensor(self.largest), (a - b).abs().max().cpu()]).max())
        self.scale = max(self.scale, float(a.abs().max()))
        if with_cosine:
            cosines = nn.functional.cosine_similarity(a.double(), b.double(), dim=-1, eps=1e-30)
            self.cosine = float(torch.stack([torch.tensor(self.cosine).double(), cosines.min().cpu()]).min())
            self._with_cosine = True

    def difference(self, name: str) -> Difference:
        return Difference(name, self.largest, self.scale, self.cosine if self._with_cosine else None)


def _common_finals(a: Backbone, b: Backbone) -> list[str]:
    """The representations that both have trained, of equal length."""
    there = set(b.available())
    return [
        name for name in a.available() if name in there and a.representations[name].dim == b.representations[name].dim
    ]


def _common_layers(a: Backbone, b: Backbone) -> list[str]:
    if a.depth != b.depth or "gap" not in a.layer_poolings or "gap" not in b.layer_poolings:
        return []
    first = max(a.first_layer, b.first_layer)
    return [f"gap@{layer}" for layer in range(first, a.depth + 1) if a.layer_dims[layer] == b.layer_dims[layer]]


def _encode(backbone: Backbone, batch: Tensor, names: list[str], tokens: bool) -> dict[str, Tensor]:
    """Every layer's tokens where wanted (`@0`, `@1`, …), then the representations."""
    blocks = find_blocks(backbone) if tokens else None
    if blocks is None:
        return backbone.encode(batch, names)
    # Without a representation in common the blocks are run all the same.
    with block_outputs(blocks) as layers:
        vectors = backbone.encode(batch, names or backbone.available()[:1])
    return {f"@{layer}": layers[layer] for layer in range(len(blocks) + 1)} | {name: vectors[name] for name in names}
