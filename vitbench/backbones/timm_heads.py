"""How the features of a timm model are read: which tokens are patches, how they are pooled, and what its head does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vitbench.backbones.checkpoints import SAFETENSORS_SUFFIX
from vitbench.backbones.classifier import imagenet_classes
from vitbench.backbones.from_scratch import FIRST_SEED, seeded

# Families whose features are patch tokens and nothing else, though they do not say so by `num_prefix_tokens`.
_PATCH_TOKENS_ONLY = {"MlpMixer", "Twins", "EfficientFormer", "Hiera", "Levit"}

# Families whose features only their own head can read.
_OPAQUE = {
    "CoaT": "its features are a list of token grids",
    "CrossVit": "its features are two lists of tokens",
    "EfficientViM": "its features are a list, one entry per stage",
    "Gemma4VitClassifier": "its padding tokens are masked by its own pooling",
    "PoolingVisionTransformer": "its features are class tokens without patches",
    "VOLO": "it does not tell its class token from its patches",
}

# Families whose forward pass is: embed to [N, L, D], run `blocks` one after another on it, apply `norm`.
_PLAIN = {"VisionTransformer", "VisionTransformerRelPos", "Eva", "Beit", "MlpMixer", "NaFlexVit"}

_PROBE_IMAGES = 2
_PROBE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
_ALIAS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Layout:
    """How the output of `forward_features` is to be read.

    Attributes:
        kind: `tokens` `[N, L, D]`, `nchw` `[N, D, H, W]`, `nhwc` `[N, H, W, D]`, or `opaque`: only the model's head can read it.
        prefix: Number of tokens before the patch tokens: class, distillation and register tokens.
        has_class_token: Whether the first of them is a class token.
        plain: Whether the model is a row of blocks on one sequence of tokens, so that every block's output can be read.
        opaque_reason: Why it is opaque, as a clause.
    """

    kind: Literal["tokens", "nchw", "nhwc", "opaque"]
    prefix: int = 0
    has_class_token: bool = False
    plain: bool = False
    opaque_reason: str = ""


def read_layout(model: Any) -> Layout:
    """The layout of a timm model, from its attributes and its family, never from the shape of a tensor.

    A map with 5 more rows would be 5 more patches; 5 register tokens look the same. Hence no guessing from shapes.
    """
    families = {kind.__name__ for kind in type(model).__mro__}
    if known := sorted(families & _OPAQUE.keys()):
        return Layout("opaque", opaque_reason=_OPAQUE[known[0]])
    if getattr(model, "output_fmt", None) == "NHWC":
        return Layout("nhwc")
    plain = bool(families & _PLAIN) and len(getattr(model, "blocks", ())) > 0
    if hasattr(model, "num_prefix_tokens"):
        class_token = getattr(model, "has_class_token", None)
        if class_token is None:
            class_token = getattr(model, "cls_token", None) is not None
        return Layout("tokens", int(model.num_prefix_tokens), bool(class_token), plain)
    if families & _PATCH_TOKENS_ONLY and not getattr(model, "use_conv", False):  # LeViT can be built of convolutions
        return Layout("tokens", plain=plain)
    return Layout("nchw")


def mean_of_patches(features: Tensor, layout: Layout) -> Tensor:
    """Mean over the patch tokens, or over the map, `[N, D]` float32; class, distillation and register tokens are left out."""
    features = features.float()
    if layout.kind == "tokens":
        return features[:, layout.prefix :].mean(dim=1)
    return features.mean(dim=(2, 3) if layout.kind == "nchw" else (1, 2))


def post_pool_norm(model: Any) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The norm that a model applies after its pooling instead of before it.

    LN(mean of tokens) differs from mean of LN(tokens), and only the former was trained in such a model: ViTs with `fc_norm`
    (MAE-style fine-tunes, BEiT), ConvNeXt and its kin.

    Returns:
        Its module's name, empty when there is none, and the function from `[N, D]` to `[N, D]`.
    """
    fc_norm = getattr(model, "fc_norm", None)
    if isinstance(fc_norm, nn.Module) and not isinstance(fc_norm, nn.Identity):
        return "fc_norm", fc_norm
    head = getattr(model, "head", None)
    norm = getattr(head, "norm", None)
    if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
        if type(head).__name__ == "ClNormMlpClassifierHead":
            return "head.norm", norm
        pools_then_norms = isinstance(head, nn.Sequential) and hasattr(head, "global_pool") and hasattr(head, "flatten")
        if type(head).__name__ == "NormMlpClassifierHead" or pools_then_norms:
            return "head.norm", lambda pooled: norm(pooled[:, :, None, None]).flatten(1)
    return "", nn.Identity()


class DensePooler(nn.Module):
    """tanh(dense(CLS)): the pooler of Hugging Face's ViT, JAX's `pre_logits` layer; timm's models have no place for it.

    `vitbench convert --keep-pooler` writes it into a timm checkpoint as `pooler.dense.{weight,bias}`.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, dim)

    def forward(self, cls: Tensor) -> Tensor:
        """The class token `[N, D]` to `[N, dim]`."""
        return torch.tanh(self.dense(cls))


def classifier_names(model: Any) -> list[str]:
    """The names of the modules that turn pooled features into logits, outermost only, in the order of the model.

    From the model's `pretrained_cfg` and its `get_classifier()`, which do not always agree: the classifier of LeViT is `head`, a
    norm and a linear layer, of which the config names the latter alone; that of Sequencer is the head with its pooling, of which
    only the config's `head.fc` is a classifier.
    """
    named = model.pretrained_cfg.get("classifier") or ()
    names = {named} if isinstance(named, str) else set(named)
    classifiers = list(_flat(model.get_classifier()))
    for name, module in model.named_modules():
        if any(module is classifier for classifier in classifiers) and not hasattr(module, "global_pool"):
            names.add(name)
    return [name for name in sorted(names) if name and not any(name.startswith(f"{other}.") for other in names)]


def _flat(modules: object) -> Iterator[nn.Module]:
    if isinstance(modules, nn.Module):
        yield modules
    elif isinstance(modules, list | tuple):
        for module in modules:
            yield from _flat(module)


def remove_classifier(model: nn.Module, names: list[str]) -> None:
    """Put `nn.Identity` in the place of the classifier's modules; `forward_head(pre_logits=True)` never calls them."""
    for name in names:
        parent, _, child = name.rpartition(".")
        try:
            owner = model.get_submodule(parent)
        except AttributeError:
            continue
        if isinstance(getattr(owner, child, None), nn.Module):
            setattr(owner, child, nn.Identity().eval())


def class_names(path: Path, config: Mapping[str, Any], count: int) -> tuple[tuple[str, ...], str]:
    """The names of a checkpoint's classes, and where they are from as the end of a line; empty where nobody knows them.

    They are in the header of a file that `vitbench convert` wrote, or in the model's configuration. ImageNet's are known by
    their number.

    Args:
        path: The checkpoint.
        config: The model's `pretrained_cfg`.
        count: Number of classes.
    """
    if path.suffix == SAFETENSORS_SUFFIX:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get("vitbench", "{}")
        labels = json.loads(told).get("labels", [])
        if labels and len(labels) == count:
            return tuple(map(str, labels)), "; class names from its header"
    names = config.get("label_names") or ()
    if isinstance(names, list | tuple) and names and len(names) == count:
        return tuple(map(str, names)), "; class names from the model's configuration"
    known, subset = imagenet_classes(count)
    return known, f"; taken for the classes of {subset}, which has {count:,}" if subset else ""


@dataclass(frozen=True)
class LinearHead:
    """The classifier of a model, where it is one linear layer on the model's own pooling.

    Attributes:
        name: The module's name; empty where it is no such layer.
        reason: Why it is none, as a clause; empty where it is.
        convolution: Whether it is written as a 1x1 convolution.
        bias: Whether it has a bias.
    """

    name: str
    reason: str = ""
    convolution: bool = False
    bias: bool = True


def find_linear_head(model: Any, layout: Layout, size: tuple[int, int]) -> LinearHead:
    """Find out whether a model's logits are one linear layer on `forward_head(pre_logits=True)`, by running both.

    To be called before `remove_classifier`: the classifier's weights are replaced by random numbers.

    Args:
        model: The model, as built, in eval mode. One that was built without a classifier gets one, to see where it goes.
        layout: Its layout.
        size: Height and width of its images in pixels.
    """
    names = classifier_names(model)
    if len(names) != 1:
        return LinearHead(
            "", f"it has {len(names)} classifiers ({', '.join(names)})" if names else "its model has none"
        )
    (name,) = names
    features = random_features(model, layout, size)
    if features is None:
        return LinearHead("", layout.opaque_reason)
    generator = torch.Generator().manual_seed(0)
    try:
        if layout.plain and isinstance(model.get_submodule(name), nn.Identity):
            with seeded(FIRST_SEED):
                model.reset_classifier(_PROBE_IMAGES)
        layer: Any = model.get_submodule(name)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            return LinearHead("", f"its classifier '{name}' is no linear layer but {type(layer).__name__}")
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(generator=generator)
            logits = model.forward_head(features)
            pooled = model.forward_head(features, pre_logits=True).flatten(1)
            bias = 0.0 if layer.bias is None else layer.bias
            expected = pooled @ layer.weight.flatten(1).T + bias
    except _PROBE_ERRORS:
        return LinearHead("", f"its classifier '{name}' does not read its pooled features alone")
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-4, atol=1e-4):
        return LinearHead("", f"its classifier '{name}' does not read its pooled features alone")
    return LinearHead(name, convolution=isinstance(layer, nn.Conv2d), bias=layer.bias is not None)


def feature_stages(model: Any, layout: Layout) -> list[dict[str, Any]]:
    """What timm tells of every stage that `forward_intermediates` gives (`num_chs`, `reduction`), in order.

    Empty when it gives none, or none whose patches are those of the output: in a token model of one resolution that is no plain
    row of blocks, class tokens join on the way (CaiT, XCiT, ConViT) or come in pairs (TNT).
    """
    if not hasattr(model, "forward_intermediates") or layout.kind == "opaque":
        return []
    stages = _feature_info(model)
    return [] if layout.kind == "tokens" and len({stage["reduction"] for stage in stages}) < 2 else stages


def _feature_info(model: Any) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", None) or []
    return list(getattr(info, "info", info))


def random_features(model: Any, layout: Layout, size: tuple[int, int]) -> Tensor | None:
    """Random numbers in the shape of the model's features for an image of `size` pixels, or None where that is not known."""
    generator = torch.Generator().manual_seed(0)
    width = int(model.num_features)
    if layout.kind == "opaque":
        return None
    if layout.kind == "tokens":
        patches = int(getattr(getattr(model, "patch_embed", None), "num_patches", None) or 16)
        return torch.randn(_PROBE_IMAGES, layout.prefix + patches, width, generator=generator)
    stages = _feature_info(model) or [{"reduction": 32}]
    height, breadth = (math.ceil(side / stages[-1]["reduction"]) for side in size)
    shape = (width, height, breadth) if layout.kind == "nchw" else (height, breadth, width)
    return torch.randn(_PROBE_IMAGES, *shape, generator=generator)


@dataclass(frozen=True)
class Pooler:
    """What `forward_head(pre_logits=True)` is.

    Attributes:
        dim: Length of its vector; 0 when it gives no vector.
        alias_of: `cls` or `gap` when it equals that, else None.
    """

    dim: int
    alias_of: str | None


def probe_pooler(model: Any, features: Tensor | None, poolings: dict[str, Callable[[Tensor], Tensor]]) -> Pooler:
    """Find out what the model's own pooling is by running it, and ours, on the same random features. The trunk does not run.

    Args:
        model: The model, with its weights loaded.
        features: What `random_features` gave.
        poolings: `cls` and `gap` as functions from features to `[N, D]`, those that the model has.
    """
    width = int(getattr(model, "head_hidden_size", None) or model.num_features)
    if features is None:
        return Pooler(width, None)
    try:
        with torch.no_grad():
            pooled = model.forward_head(features, pre_logits=True)
    except _PROBE_ERRORS:
        return Pooler(width, None)
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        return Pooler(0, None)
    for name, pool in poolings.items():
        with torch.no_grad():
            ours = pool(features)
        if ours.shape == pooled.shape and torch.allclose(ours, pooled, rtol=_ALIAS_TOLERANCE, atol=_ALIAS_TOLERANCE):
            return Pooler(pooled.shape[1], name)
    return Pooler(pooled.shape[1], None)


def head_modules(model: Any, features: Tensor | None) -> set[str]:
    """The names of the modules whose parameters the model's own pooling uses, found by differentiating it.

    The trunk does not run. Empty where the pooling has no parameters, or does not run on `features`.
    """
    if features is None:
        return set()
    names, parameters = zip(*model.named_parameters(), strict=True)
    try:
        with torch.enable_grad():
            pooled = model.forward_head(features, pre_logits=True)
            gradients = torch.autograd.grad(pooled.sum(), parameters, allow_unused=True)
    except _PROBE_ERRORS:
        return set()
    used = (name for name, gradient in zip(names, gradients, strict=True) if gradient is not None)
    return {name.rpartition(".")[0] for name in used}
