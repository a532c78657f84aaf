"""One naming for the weights of plain ViTs, whichever library's copy they are in, and what else decides the computation.

The names are timm's, with the fused `qkv` taken apart:

| name | shape |
|---|---|
| `patch_embed.{weight,bias}` | `[D, 3, P, P]`, `[D]` |
| `cls_token`, `dist_token`, `reg_token` | `[1, 1, D]`, `[1, 1, D]`, `[1, R, D]` |
| `pos_embed` | `[1, G², D]`: the patches' rows, row by row (`stored_weights`: after the rows of the prefix tokens) |
| `norm_pre.{weight,bias}` | `[D]`: the norm before the first block (CLIP) |
| `blocks.N.{norm1,norm2}.{weight,bias}` | `[D]` |
| `blocks.N.attn.{q,k,v,proj}.{weight,bias}` | `[D, D]`, `[D]` |
| `blocks.N.{ls1,ls2}` | `[D]`: layer scale |
| `blocks.N.mlp.{fc1,fc2}.{weight,bias}` | `[M, D]`, `[M]`, `[D, M]`, `[D]` |
| `blocks.N.mlp.gate.{weight,bias}` | `[M, D]`, `[M]`: SwiGLU's half that goes through the activation |
| `norm.{weight,bias}` | `[D]`: the final norm, before or after the pooling |
| `pooler.{weight,bias}` | `[E, D]`, `[E]`: dense + tanh behind the pooling (Hugging Face's pooler, JAX's `pre_logits`) |
| `map_head.probe`, `map_head.attn.{q,k,v,proj}`, `map_head.norm`, `map_head.mlp.{fc1,fc2}` | attention pooling, as a block |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError

PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
"""The tokens that stand before the patches, in their order."""
HF_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model")
"""The `model_type` of the plain ViTs of transformers that have learned positions."""

_Rule = tuple[str, str, tuple[str, ...]]
_WB = r"\.(weight|bias)"
_B = r"(?:encoder\.)?layers?\.(\d+)\."
_QKV = ("q", "k", "v")

# Pattern of a library's name, our name ({} is the part), and the parts that the tensor holds one after the other.
_TIMM: Sequence[_Rule] = (
    (r"patch_embed\.proj" + _WB, r"patch_embed.\1", ()),
    (r"(cls_token|dist_token|reg_token|pos_embed)", r"\1", ()),
    (r"blocks\.(\d+)\.attn\.qkv" + _WB, r"blocks.\1.attn.{}.\2", _QKV),
    (r"blocks\.(\d+)\.(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)" + _WB, r"blocks.\1.\2.\3", ()),
    (r"blocks\.(\d+)\.(ls[12])\.gamma", r"blocks.\1.\2", ()),
    (r"norm_pre" + _WB, r"norm_pre.\1", ()),
    (r"(?:fc_)?norm" + _WB, r"norm.\1", ()),
    (r"pooler\.dense" + _WB, r"pooler.\1", ()),
    (r"attn_pool\.latent", r"map_head.probe", ()),
    (r"attn_pool\.kv" + _WB, r"map_head.attn.{}.\1", ("k", "v")),
    (r"attn_pool\.(q|proj)" + _WB, r"map_head.attn.\1.\2", ()),
    (r"attn_pool\.(norm|mlp\.fc1|mlp\.fc2)" + _WB, r"map_head.\1.\2", ()),
)
# transformers renamed the modules inside its models within version 5; the files stayed as they were.
_HF: Sequence[_Rule] = (
    (r"embeddings\.patch_embeddings?(?:\.projection)?" + _WB, r"patch_embed.\1", ()),
    (r"embeddings\.(?:cls_token|class_embedding)", r"cls_token", ()),
    (r"embeddings\.distillation_token", r"dist_token", ()),
    (r"embeddings\.register_tokens", r"reg_token", ()),
    (r"embeddings\.(?:position_embeddings|position_embedding\.weight)", r"pos_embed", ()),
    (_B + r"(?:layernorm_before|norm1|layer_norm1)" + _WB, r"blocks.\1.norm1.\2", ()),
    (_B + r"(?:layernorm_after|norm2|layer_norm2)" + _WB, r"blocks.\1.norm2.\2", ()),
    (_B + r"(?:attention|self_attn)\.(?:attention\.)?(q|k|v)(?:_proj|uery|ey|alue)" + _WB, r"blocks.\1.attn.\2.\3", ()),
    (_B + r"(?:attention\.o_proj|attention\.output\.dense|self_attn\.out_proj)" + _WB, r"blocks.\1.attn.proj.\2", ()),
    (_B + r"(?:mlp\.fc1|mlp\.up_proj|mlp\.weights_in|intermediate\.dense)" + _WB, r"blocks.\1.mlp.fc1.\2", ()),
    (_B + r"(?:mlp\.fc2|mlp\.down_proj|mlp\.weights_out|output\.dense)" + _WB, r"blocks.\1.mlp.fc2.\2", ()),
    (_B + r"mlp\.gate_proj" + _WB, r"blocks.\1.mlp.gate.\2", ()),
    (_B + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2", ()),
    (r"pre_layrnorm" + _WB, r"norm_pre.\1", ()),
    (r"(?:post_)?layernorm" + _WB, r"norm.\1", ()),
    (r"pooler\.dense" + _WB, r"pooler.\1", ()),
    (r"head\.probe", r"map_head.probe", ()),
    (r"head\.attention\.in_proj_(weight|bias)", r"map_head.attn.{}.\1", _QKV),
    (r"head\.attention\.out_proj" + _WB, r"map_head.attn.proj.\1", ()),
    (r"head\.layernorm" + _WB, r"map_head.norm.\1", ()),
    (r"head\.mlp\.(fc1|fc2)" + _WB, r"map_head.mlp.\1.\2", ()),
)
_JAX: Sequence[_Rule] = (
    (r"embedding" + _WB, r"patch_embed.\1", ()),
    (r"cls", r"cls_token", ()),
    (r"pos_embedding", r"pos_embed", ()),
    (r"encoder_norm" + _WB, r"norm.\1", ()),
    (r"pre_logits" + _WB, r"pooler.\1", ()),
    (r"map_head\.probe", r"map_head.probe", ()),
    (r"(blocks\.\d+|map_head)\.(norm[12]?)" + _WB, r"\1.\2.\3", ()),
    (r"(blocks\.\d+|map_head)\.attention\.(q|k|v)(?:uery|ey|alue)" + _WB, r"\1.attn.\2.\3", ()),
    (r"(blocks\.\d+|map_head)\.attention\.out" + _WB, r"\1.attn.proj.\2", ()),
    (r"(blocks\.\d+|map_head)\.mlp\.dense0" + _WB, r"\1.mlp.fc1.\2", ()),
    (r"(blocks\.\d+|map_head)\.mlp\.dense1" + _WB, r"\1.mlp.fc2.\2", ()),
)
_RULES = {"timm": _TIMM, "hf": _HF, "jax": _JAX}
_NO_WEIGHT = re.compile(r"(^|\.)(mask_token|position_ids)$")

_GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh", "quick_gelu": "quick"}
_RESIZE = {
    "timm": "at load, bicubic with antialias",
    "hf": "at every pass, bicubic",
    "jax": "at load, bilinear with aligned corners",
}


def canonical_weights(backbone: Backbone) -> dict[str, Tensor]:
    """The trunk's weights under the names above, so that equal models have equal tensors, bit for bit.

    Copies differ in where the position of the CLS token is. The paper's layout has a row for it in the table; big_vision and
    timm's `no_embed_class` add their table to the patches alone, and what was the CLS row has gone into the token. A model only
    ever uses the sum: x_cls = cls + pos_cls, in float32. So `cls_token` here is that sum, rounded as the model rounds it, and
    `pos_embed` the rows of the patches; the same goes for distillation and register tokens. `stored_weights` has them apart.

    Args:
        backbone: A plain ViT: timm's VisionTransformer (DeiT's distilled one too), one of `HF_TYPES`, or a JAX npz.

    Returns:
        Name to float32 tensor on the CPU. Tensors may share memory with the model. A pooler that was
        newly initialised at load is not among them, nor is a classifier.

    Raises:
        UsageError: The backbone is no plain ViT; the message says what is in the way.
    """
    weights = stored_weights(backbone)
    if "pos_embed" not in weights:
        return weights
    table = weights["pos_embed"]
    rows = table.shape[1] - patches(backbone)
    weights["pos_embed"] = table[:, rows:]
    for name in PREFIX_TOKENS:
        if name in weights and rows:
            count = weights[name].shape[1]
            weights[name] = weights[name] + table[:, :count]
            table, rows = table[:, count:], rows - count
    return weights


def stored_weights(backbone: Backbone) -> dict[str, Tensor]:
    """As `canonical_weights`, with the tokens and the position embedding as the model holds them.

    `pos_embed` is `[1, prefix rows + G², D]`; there may be fewer prefix rows than prefix tokens, for the first of them.
    """
    kind = family(backbone)
    weights: dict[str, Tensor] = {}
    untrained = backbone.representations["pooler"].provenance == "untrained"
    for name, tensor in _model(backbone).state_dict().items():
        names = canonical_names(kind, name)
        if names is None:
            raise _not_plain(backbone, f"its '{name}' has no place in one")
        for ours, part in zip(names, tensor.chunk(max(len(names), 1)), strict=False):
            if not (untrained and ours.startswith("pooler.")):
                weights[ours] = part.detach().float().cpu()
    _split_gates(weights, kind == "timm" and getattr(_model(backbone).blocks[0].mlp, "gate_last", False))
    for name in (*PREFIX_TOKENS, "pos_embed"):
        if name in weights:  # CLIP and SigLIP keep them without the leading axes
            weights[name] = weights[name].reshape(1, -1, weights[name].shape[-1])
    return weights


def _split_gates(weights: dict[str, Tensor], gate_last: bool) -> None:
    """Take apart the SwiGLUs that keep their two halves in one tensor, in place."""
    for name in [name for name in weights if name.endswith("mlp.fc2.weight")]:
        stem = name.removesuffix("fc2.weight")
        if f"{stem}fc1.weight" not in weights or len(weights[f"{stem}fc1.weight"]) != 2 * weights[name].shape[1]:
            continue
        for part in ("weight", "bias"):
            if f"{stem}fc1.{part}" in weights:
                first, second = weights[f"{stem}fc1.{part}"].chunk(2)
                gate, up = (second, first) if gate_last else (first, second)
                weights[f"{stem}gate.{part}"], weights[f"{stem}fc1.{part}"] = gate, up


def canonical_names(kind: str, name: str) -> tuple[str, ...] | None:
    """Our names for what a library's tensor holds, one after the other along its first axis.

    Args:
        kind: `timm`, `hf` or `jax` (the state dict of `JaxViT`, not the arrays of a file).
        name: The library's name.

    Returns:
        Empty for what is no weight (a mask token); None where a plain ViT has no such tensor.
    """
    name = name.removeprefix("vision_model.")
    if _NO_WEIGHT.search(name):
        return ()
    for pattern, ours, parts in _RULES[kind]:
        if match := re.fullmatch(pattern, name):
            target = match.expand(ours)
            return tuple(target.format(part) for part in parts) or (target,)
    return None


def family(backbone: Backbone) -> str:
    """Whose code computes the backbone: `timm`, `hf` or `jax`.

    Raises:
        UsageError: The backbone is no plain ViT.
    """
    if not backbone.modules:
        raise _not_plain(backbone, "it has no weights")
    model = _model(backbone)
    kind = type(model).__name__
    if kind == "JaxViT":
        return "jax"
    if kind in ("VisionTransformer", "VisionTransformerDistilled") and hasattr(model, "num_prefix_tokens"):
        blocks = {type(block).__name__ for block in model.blocks}
        if blocks != {"Block"}:
            raise _not_plain(backbone, f"its blocks are {', '.join(sorted(blocks))}")
        return "timm"
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in HF_TYPES:
        return "hf"
    raise _not_plain(backbone, f"it is {kind}")


def _not_plain(backbone: Backbone, reason: str) -> UsageError:
    return UsageError(
        f"backbone '{backbone.spec.text}' is no plain ViT ({reason}): what works is timm's VisionTransformer models, Hugging "
        "Face's ViT, DeiT, DINOv2, CLIP and SigLIP, and JAX ViT .npz files"
    )


def _model(backbone: Backbone) -> Any:
    return backbone.modules[0]


def patches(backbone: Backbone) -> int:
    """Rows of the position embedding that belong to patches: the grid that the table was made for."""
    model, kind = _model(backbone), family(backbone)
    if kind == "timm":
        return int(model.patch_embed.num_patches)
    if kind == "jax":
        return int(model.config.grid**2)
    height, width = pair(model.config.image_size)
    side, breadth = pair(model.config.patch_size)
    return (height // side) * (width // breadth)


def pair(size: Any) -> tuple[int, int]:
    """A side, or a pair of height and width, as a pair."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def configuration(backbone: Backbone) -> dict[str, Any]:
    """What decides the computation apart from the weights, in one vocabulary.

    Returns:
        `source` (`timm`, `hf`, `jax`), `width`, `depth`, `heads`, `map_heads` (0 without a MAP head), `mlp` (hidden width),
        `mlp_kind` (`mlp` or `swiglu`), `patch_size` and `image_size` (height, width; the size the position table is for),
        `input_size` (the size it runs at), `prefix_tokens`, `cls_token`, `dist_token`, `register_tokens`, `position_embedding`
        (`prefix and patches`, `CLS and patches`, `patches` or `none`: to which tokens a row is added), `position_resize`,
        `layer_norm_eps` (a float, or a sorted tuple where norms differ), `gelu` (`erf`, `tanh`, `quick`, or the activation's own
        name), `qkv_bias`, `layer_scale`, `pre_norm`, `final_norm` (`tokens`, `pooled` or `none`), `pooling` (`cls`, `gap`, `map`,
        or `own` for timm's others, with `+dense` where dense + tanh follows: what the model's own classifier reads), `dropout`
        and `attention_dropout` (of training; they do nothing here), `preprocessing`.

    Raises:
        UsageError: The backbone is no plain ViT.
    """
    kind, weights, model = family(backbone), stored_weights(backbone), _model(backbone)
    grid_rows = patches(backbone)
    prefix = {name: weights[name].shape[1] if name in weights else 0 for name in PREFIX_TOKENS}
    swiglu = "blocks.0.mlp.gate.weight" in weights
    sizes = {
        "source": kind,
        "width": weights["patch_embed.weight"].shape[0],
        "depth": backbone.depth,
        "heads": _heads(model, kind),
        "map_heads": _map_heads(model, kind) if "map_head.probe" in weights else 0,
        "mlp": weights["blocks.0.mlp.fc2.weight"].shape[1],
        "mlp_kind": "swiglu" if swiglu else "mlp",
        "patch_size": tuple(weights["patch_embed.weight"].shape[2:]),
        "image_size": _image_size(model, kind),
        "input_size": tuple(backbone.input_size),
        "prefix_tokens": sum(prefix.values()),
        "cls_token": bool(prefix["cls_token"]),
        "dist_token": bool(prefix["dist_token"]),
        "register_tokens": prefix["reg_token"],
    }
    computation = {
        "position_embedding": _positions(weights, prefix, grid_rows),
        "position_resize": _RESIZE[kind],
        "layer_norm_eps": _eps(model),
        "gelu": _gelu(model, kind),
        "qkv_bias": "blocks.0.attn.q.bias" in weights,
        "layer_scale": "blocks.0.ls1" in weights,
        "pre_norm": "norm_pre.weight" in weights,
        "final_norm": _final_norm(model, kind, weights),
        "pooling": _pooling(backbone, kind, weights),
    }
    return sizes | computation | _dropout(model, kind) | {"preprocessing": backbone.preprocessing}


def _heads(model: Any, kind: str) -> int:
    if kind == "hf":
        return int(model.config.num_attention_heads)
    return int(model.config.block.heads if kind == "jax" else model.blocks[0].attn.num_heads)


def _map_heads(model: Any, kind: str) -> int:
    if kind == "timm":
        return int(model.attn_pool.num_heads)
    return int(model.config.map_head.heads) if kind == "jax" else _heads(model, kind)


def _image_size(model: Any, kind: str) -> tuple[int, int]:
    if kind == "jax":
        return pair(model.config.grid * model.config.stride)
    return pair(model.config.image_size if kind == "hf" else model.patch_embed.img_size)


def _positions(weights: Mapping[str, Tensor], prefix: Mapping[str, int], grid_rows: int) -> str:
    if "pos_embed" not in weights:
        return "none"
    rows = weights["pos_embed"].shape[1] - grid_rows
    if not rows:
        return "patches"
    return "prefix and patches" if rows == sum(prefix.values()) else "CLS and patches"


def _eps(model: nn.Module) -> float | tuple[float, ...]:
    found = sorted({float(module.eps) for module in model.modules() if isinstance(module, nn.LayerNorm)})
    return found[0] if len(found) == 1 else tuple(found)


def _gelu(model: Any, kind: str) -> str:
    if kind == "jax":
        return "tanh"
    if kind == "hf":
        name = "silu" if getattr(model.config, "use_swiglu_ffn", False) else str(model.config.hidden_act)
        return _GELU.get(name, name)
    activation = model.blocks[0].mlp.act
    if getattr(activation, "approximate", "none") == "tanh":
        return "tanh"
    names = {"GELU": "erf", "GELUTanh": "tanh", "QuickGELU": "quick"}
    return names.get(type(activation).__name__, type(activation).__name__.lower())


def _final_norm(model: Any, kind: str, weights: Mapping[str, Tensor]) -> str:
    if "norm.weight" not in weights:
        return "none"
    return "pooled" if kind == "timm" and isinstance(model.norm, nn.Identity) else "tokens"


def _pooling(backbone: Backbone, kind: str, weights: Mapping[str, Tensor]) -> str:
    if "map_head.probe" in weights:
        pooling = "map"
    elif kind == "timm" and "pooler.weight" not in weights:
        pooling = backbone.representations["pooler"].alias_of or "own"
    else:  # the pooler of a Hugging Face classifier is no part of it: its classifier reads CLS
        pooling = "cls" if "cls_token" in weights else "gap"
    return f"{pooling}+dense" if "pooler.weight" in weights else pooling


def _dropout(model: Any, kind: str) -> dict[str, float]:
    hidden = attention = 0.0  # JAX's files do not say; the models of the papers' repositories differ
    if kind == "hf":
        hidden = float(getattr(model.config, "hidden_dropout_prob", 0.0))
        names = ("attention_probs_dropout_prob", "attention_dropout")
        attention = max(float(getattr(model.config, name, 0.0)) for name in names)
    elif kind == "timm":
        hidden = max(float(model.pos_drop.p), float(model.blocks[0].attn.proj_drop.p))
        attention = float(model.blocks[0].attn.attn_drop.p)
    return {"dropout": hidden, "attention_dropout": attention}


def bit_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two float32 tensors agree in shape and in every bit, but for the sign of zero (x + 0 loses it)."""
    return one.shape == other.shape and bool(torch.equal(one, other))
