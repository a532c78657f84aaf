"""Canonical ViT weights in the names and layouts of files: timm's, those of Hugging Face's ViT, and the two of JAX.

Nothing here touches a file. `obstacle` says what a layout has no place for; the other functions assume that it said nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitbench.backbones.jax_arrays import FloatArray
from vitbench.backbones.jax_layout import Layout, slots
from vitbench.backbones.jax_vit import AttentionShape, JaxViTConfig
from vitbench.backbones.vit_names import canonical_names

FORMATS = {
    "hf": "a Hugging Face ViT folder",
    "timm": "a timm checkpoint (.safetensors)",
    "npz": "a JAX .npz file in the paper's layout",
    "npz-bigvision": "a JAX .npz file in big_vision's layout",
}

_SIZES = {
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
}
_TIMM_GELU = {"erf": "", "tanh": "gelu_tanh", "quick": "quick_gelu"}
_HF_GELU = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


@dataclass(frozen=True)
class Head:
    """A linear classifier.

    Attributes:
        weight: `[K, E]` float32, on the model's pooled vector.
        bias: `[K]` float32.
        labels: Names of the K classes, or empty.
    """

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...] = ()


def obstacle(form: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """What of a model the format has no place for, as a clause; empty when all of it has one.

    Args:
        form: One of `FORMATS`.
        config: What `vit_names.configuration` gives.
        weights: What `vit_names.stored_weights` gives.
    """
    if form == "timm":
        found = {
            "a SwiGLU MLP, which no option of a spec can ask for": config["mlp_kind"] == "swiglu",
            f"the activation '{config['gelu']}'": config["gelu"] not in _TIMM_GELU,
            "LayerNorms of different eps": isinstance(config["layer_norm_eps"], tuple),
            "a model without position embeddings": config["position_embedding"] == "none",
            "a MAP head of other sizes than its blocks": config["map_heads"]
            and (config["map_heads"], _rows(weights, "map_head.mlp.fc1")) != (config["heads"], config["mlp"]),
            "a distillation token without a position": config["dist_token"]
            and config["position_embedding"] != "prefix and patches",
        }
        return next((what for what, there in found.items() if there), "")
    jax = form.startswith("npz")
    found = {
        "register tokens": config["register_tokens"],
        "a distillation token": config["dist_token"],
        "layer scale": config["layer_scale"],
        "a norm before the first block": config["pre_norm"],
        "a SwiGLU MLP": config["mlp_kind"] == "swiglu",
        "a MAP head (timm and npz-bigvision have one)": config["map_heads"] and form != "npz-bigvision",
        "a final norm after the pooling": config["final_norm"] == "pooled",
        "a model without a final norm": config["final_norm"] == "none",
        "a model without position embeddings": config["position_embedding"] == "none",
        "a model without a CLS token": not jax and not config["cls_token"],
        "queries, keys and values without bias": jax and not config["qkv_bias"],
        "layers without bias": not {"patch_embed.bias", "blocks.0.attn.proj.bias"} <= weights.keys(),
        f"the activation '{config['gelu']}'": config["gelu"] not in (("erf", "tanh") if jax else _HF_GELU),
        "LayerNorms of different eps": isinstance(config["layer_norm_eps"], tuple),
        "patches or a grid that are not square": jax
        and (len(set(config["patch_size"])) > 1 or len(set(config["image_size"])) > 1),
    }
    return next((what for what, there in found.items() if there), "")


def _rows(weights: Mapping[str, Tensor], name: str) -> int:
    return weights[f"{name}.weight"].shape[0]


def timm_state(weights: Mapping[str, Tensor], config: Mapping[str, Any], head: Head | None) -> dict[str, Tensor]:
    """The tensors of a timm `VisionTransformer` checkpoint; a pooler, if any, as `pooler.dense`."""
    state = {}
    final = "fc_norm" if config["final_norm"] == "pooled" else "norm"
    for name, tensor in weights.items():
        if match := re.fullmatch(r"(.*attn)\.(q|k|v)\.(weight|bias)", name):
            first, parts = ("q", "qkv") if match[1].startswith("blocks") else ("k", "kv")
            stem = match[1] if first == "q" else "attn_pool"
            if match[2] == first:
                state[f"{stem}.{parts}.{match[3]}"] = torch.cat([weights[f"{match[1]}.{p}.{match[3]}"] for p in parts])
            elif match[2] not in parts:
                state[f"{stem}.q.{match[3]}"] = tensor
            continue
        renamed = re.sub(r"^patch_embed\.", "patch_embed.proj.", name)
        renamed = re.sub(r"^norm\.", f"{final}.", renamed)
        renamed = re.sub(r"^pooler\.", "pooler.dense.", renamed)
        renamed = re.sub(r"^(blocks\.\d+\.ls[12])$", r"\1.gamma", renamed)
        renamed = re.sub(r"^map_head\.(attn\.)?", "attn_pool.", renamed)
        state[renamed.replace("attn_pool.probe", "attn_pool.latent")] = tensor
    if head is not None:
        state |= {"head.weight": head.weight, "head.bias": head.bias}
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def timm_model(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """The name of timm's architecture, and the `model.KEY=VALUE` options with which it computes what the source does."""
    import timm

    width, depth, heads, (height, breadth) = (config[key] for key in ("width", "depth", "heads", "image_size"))
    patch = config["patch_size"]
    stem = "deit_{}_distilled" if config["dist_token"] else "vit_{}"
    size = _SIZES.get((width, depth, heads), "tiny")
    names = [f"{stem.format(size)}_patch{patch[0]}_{side}" for side in (height, 224)]
    name = next((name for name in names if timm.is_model(name)), f"{stem.format('tiny')}_patch16_224")
    parts = re.fullmatch(r"\w+?_(\w+?)_.*patch(\d+)_(\d+)", name)
    assert parts is not None
    default = next(sizes for sizes, word in _SIZES.items() if word == parts[1])
    options: dict[str, Any] = {}
    if (width, depth, heads) != default:
        options |= {"embed_dim": width, "depth": depth, "num_heads": heads}
    if patch != (int(parts[2]),) * 2:
        options["patch_size"] = _side(patch)
    if (height, breadth) != (int(parts[3]),) * 2:
        options["img_size"] = _side((height, breadth))
    if config["mlp"] != 4 * width:
        # timm takes the ratio and rounds the product down
        exact = config["mlp"] / width
        options["mlp_ratio"] = exact if int(width * exact) == config["mlp"] else (config["mlp"] + 0.5) / width
    options |= _timm_computation(config, weights)
    return name, [f"model.{key}={value}" for key, value in options.items()]


def _timm_computation(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    pool = {"map": "map", "gap": "avg"}.get(config["pooling"].removesuffix("+dense"), "token")
    options: dict[str, Any] = {}
    if not config["cls_token"]:
        options["class_token"] = "false"
    if pool != "token" and not config["dist_token"]:
        options["global_pool"] = pool
    if (config["final_norm"] == "pooled") != (pool == "avg") and config["final_norm"] != "none":
        options["fc_norm"] = str(pool != "avg").lower()
    if config["final_norm"] == "none":
        options["final_norm"] = "false"
    if config["position_embedding"] != "prefix and patches" and config["prefix_tokens"]:
        options["no_embed_class"] = "true"
    if config["register_tokens"]:
        options["reg_tokens"] = config["register_tokens"]
    if config["layer_scale"]:
        options["init_values"] = 1.0
    if config["pre_norm"]:
        options["pre_norm"] = "true"
    if not config["qkv_bias"]:
        options["qkv_bias"] = "false"
    if "blocks.0.attn.proj.bias" not in weights:
        options["proj_bias"] = "false"
    if config["gelu"] != "erf":
        options["act_layer"] = _TIMM_GELU[config["gelu"]]
    if config["layer_norm_eps"] != 1e-6:
        options["norm_eps"] = config["layer_norm_eps"]
    return options


def _side(size: tuple[int, int]) -> Any:
    return size[0] if size[0] == size[1] else f"({size[0]},{size[1]})"


def with_cls_row(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights with a row for CLS in the position embedding: zeros where the model has none, which add nothing."""
    table = weights["pos_embed"]
    if config["position_embedding"] != "patches" or not config["cls_token"]:
        return dict(weights)
    return {**weights, "pos_embed": torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)}


_HF_NAMES = (
    (r"^patch_embed\.", "embeddings.patch_embeddings.projection."),
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^norm\.", "layernorm."),
    (r"^pooler\.", "pooler.dense."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def hf_state(weights: Mapping[str, Tensor], config: Mapping[str, Any], head: Head | None) -> dict[str, Tensor]:
    """The tensors of a Hugging Face ViT file: `ViTModel`'s, or with a head `ViTForImageClassification`'s.

    The names are those in the files of the hub, which every version of transformers reads, not those in its modules.
    """
    state, prefix = {}, "" if head is None else "vit."
    for name, tensor in with_cls_row(weights, config).items():
        renamed = name
        for pattern, replacement in _HF_NAMES:
            renamed = re.sub(pattern, replacement, renamed)
        state[prefix + renamed] = tensor.contiguous().clone()
    if head is not None:
        state |= {"classifier.weight": head.weight.contiguous(), "classifier.bias": head.bias.contiguous()}
    return state


def hf_config(config: Mapping[str, Any], weights: Mapping[str, Tensor], head: Head | None) -> dict[str, Any]:
    """The `config.json` of a Hugging Face ViT that computes what the source does."""
    fields: dict[str, Any] = {
        "architectures": ["ViTModel" if head is None else "ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": config["width"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "intermediate_size": config["mlp"],
        "hidden_act": _HF_GELU[config["gelu"]],
        "hidden_dropout_prob": config["dropout"],
        "attention_probs_dropout_prob": config["attention_dropout"],
        "layer_norm_eps": config["layer_norm_eps"],
        "image_size": _json_side(config["image_size"]),
        "patch_size": _json_side(config["patch_size"]),
        "num_channels": 3,
        "qkv_bias": config["qkv_bias"],
        "dtype": "float32",
    }
    if "pooler.weight" in weights:
        fields |= {"pooler_output_size": _rows(weights, "pooler"), "pooler_act": "tanh"}
    if head is not None:
        labels = head.labels or tuple(f"LABEL_{index}" for index in range(len(head.bias)))
        fields["id2label"] = {str(index): label for index, label in enumerate(labels)}
        fields["label2id"] = {label: index for index, label in enumerate(labels)}
    return fields


def _json_side(size: tuple[int, int]) -> Any:
    return size[0] if size[0] == size[1] else list(size)


def npz_arrays(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], head: Head | None, big_vision: bool
) -> dict[str, FloatArray]:
    """The arrays of a JAX file.

    Args:
        weights: For the paper's layout as stored; for big_vision's with the position of CLS in the token (canonical).
        config: The source's configuration.
        head: Its classifier, or None.
        big_vision: Linen numbering under `params/`, in the place of the paper's.
    """
    if big_vision:
        layout = Layout("params/", "linen", False, "params/pos_embedding")
    else:
        weights = with_cls_row(weights, config)
        layout = Layout("", "paper", False, "Transformer/posembed_input/pos_embedding")
    width, patch = config["width"], config["patch_size"][0]
    grid = config["image_size"][0] // patch
    model = JaxViTConfig(
        width=width,
        depth=config["depth"],
        block=AttentionShape(config["heads"], width // config["heads"], config["mlp"]),
        patch=patch,
        grid=grid,
        cls=config["cls_token"],
        cls_has_position=weights["pos_embed"].shape[1] != grid**2,
        map_head=_map_shape(weights, config) if config["map_heads"] else None,
        pre_logits=_rows(weights, "pooler") if "pooler.weight" in weights else 0,
    )
    arrays = {}
    for slot in slots(model, layout):
        (name,) = canonical_names("jax", slot.names[0]) or ("",)
        arrays[slot.key] = _to_flax(slot.key, weights[name], slot.shape)
    if head is not None:
        arrays[f"{layout.prefix}head/kernel"] = head.weight.T.contiguous().numpy()
        arrays[f"{layout.prefix}head/bias"] = head.bias.contiguous().numpy()
    return arrays


def _map_shape(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> AttentionShape:
    heads = config["map_heads"]
    return AttentionShape(heads, config["width"] // heads, _rows(weights, "map_head.mlp.fc1"))


def _to_flax(key: str, tensor: Tensor, shape: tuple[int, ...]) -> FloatArray:
    """PyTorch's layout to Flax's, the inverse of `jax_layout.to_torch_layout`."""
    if key.endswith("kernel"):
        tensor = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    array: FloatArray = tensor.reshape(shape).contiguous().numpy()
    return array
