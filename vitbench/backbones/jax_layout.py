"""The layouts of JAX ViT checkpoints: recognising them, reading a model's sizes from shapes, and naming its arrays.

Two numberings of the same modules exist. Before Flax's Linen, submodules of a block were numbered together (`LayerNorm_0`,
`MultiHeadDotProductAttention_1`, `LayerNorm_2`, `MlpBlock_3`): the files of the ViT and AugReg papers. Linen and big_vision
number them by class (`LayerNorm_0`, `MultiHeadDotProductAttention_0`, `LayerNorm_1`, `MlpBlock_0`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from vitbench.backbones.jax_arrays import FloatArray, NpzArrays, Shape, missing_arrays
from vitbench.backbones.jax_vit import GROUPS, ROOT_KERNEL, AttentionShape, JaxViTConfig
from vitbench.errors import WeightsError

PREFIXES = ("", "params/", "params/img/", "opt/target/", "opt/target/img/", "img/")
POSITION_KEYS = ("pos_embedding", "Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding")
_TRUNK = re.compile(
    r"(embedding|cls|pos_embedding|Transformer|MAPHead_0|pre_logits|conv_root|gn_root|block\d+)(/|$)",
)


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names its arrays.

    Attributes:
        prefix: What stands before every key of the image model.
        numbering: `paper` or `linen`.
        scanned: Whether all blocks share one set of arrays with a leading depth axis.
        position_key: Key of the position embedding, with the prefix.
    """

    prefix: str
    numbering: str
    scanned: bool
    position_key: str

    @property
    def modules(self) -> tuple[str, str, str]:
        """Names of a block's attention, second norm and MLP."""
        if self.numbering == "paper":
            return "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"
        return "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"

    @property
    def first_block(self) -> str:
        """Key of the first block, with the prefix; of all blocks when scanned."""
        return f"{self.prefix}Transformer/encoderblock{'' if self.scanned else '_0'}"


def find_layout(arrays: NpzArrays) -> Layout:
    """Recognise the layout of a ViT checkpoint by its keys.

    Raises:
        WeightsError: The file holds no ViT.
    """
    keys = arrays.keys
    prefix = next((p for p in PREFIXES if any(key.startswith(f"{p}Transformer/encoderblock") for key in keys)), None)
    if prefix is None:
        if any("MixerBlock_" in key for key in keys):
            raise WeightsError(f"'{arrays.path}' is an MLP-Mixer checkpoint: only ViTs and ResNet+ViT hybrids are read")
        found = ", ".join(sorted(keys)[:4]) or "nothing"
        raise WeightsError(
            f"'{arrays.path}' holds no ViT: looked for 'embedding/kernel' and 'Transformer/encoderblock…', also under "
            f"{', '.join(p for p in PREFIXES if p)}; found {found}"
        )
    trunk = f"{prefix}Transformer/encoderblock"
    paper = any(
        re.search(r"/(MultiHeadDotProductAttention_1|LayerNorm_2|MlpBlock_3)/", k) for k in keys if k.startswith(trunk)
    )
    position = next((prefix + key for key in POSITION_KEYS if prefix + key in keys), None)
    if position is None:
        raise WeightsError(
            f"'{arrays.path}' lacks array '{prefix}{POSITION_KEYS[0]}' (or '{prefix}{POSITION_KEYS[1]}'): models with fixed "
            "sin-cos position embeddings are not read"
        )
    return Layout(prefix, "paper" if paper else "linen", any(k.startswith(f"{trunk}/") for k in keys), position)


def read_config(arrays: NpzArrays, layout: Layout) -> JaxViTConfig:
    """Read the model's sizes from the shapes of a few arrays; the rest are checked against them by `read_state`.

    Raises:
        WeightsError: One of these arrays is missing or of an impossible shape.
    """
    prefix = layout.prefix
    units = _resnet_units(arrays, prefix)
    kernel = _shape(arrays, f"{prefix}embedding/kernel", "[P, P, C, D]")
    patch, width = kernel[0], kernel[3]
    block = _attention_shape(arrays, layout.first_block, layout, width)
    cls = f"{prefix}cls" in arrays.keys
    rows = _shape(arrays, layout.position_key, f"[1, rows, {width}]")[1]
    cls_has_position = cls and isqrt(rows) ** 2 != rows
    grid = isqrt(rows - cls_has_position)
    if grid**2 != rows - cls_has_position:
        expected = f"G² or 1 + G² for a model with '{prefix}cls'" if cls else f"G² for a model without '{prefix}cls'"
        raise WeightsError(
            f"'{arrays.path}': array '{layout.position_key}' has {rows} rows, which is not {expected}: "
            "only square grids are read"
        )
    has_map = any(key.startswith(f"{prefix}MAPHead_0/") for key in arrays.keys)
    linen = Layout(prefix, "linen", False, "")
    return JaxViTConfig(
        width=width,
        depth=_depth(arrays, layout),
        block=block,
        patch=patch,
        grid=grid,
        cls=cls,
        cls_has_position=cls_has_position,
        map_head=_attention_shape(arrays, f"{prefix}MAPHead_0", linen, width) if has_map else None,
        pre_logits=_pre_logits(arrays, prefix, width),
        resnet=units,
        root_width=0 if units is None else _root_width(arrays, prefix),
    )


def _shape(arrays: NpzArrays, key: str, pattern: str) -> Shape:
    """Shape of array `key`, which must match `pattern`: a number stands for itself, a name for any positive size."""
    shape = arrays.shape(key)
    wanted = [int(part) if part.isdigit() else None for part in pattern.strip("[]").split(", ")]
    if len(shape) != len(wanted) or any(n < 1 or n != (w or n) for n, w in zip(shape, wanted, strict=True)):
        raise WeightsError(f"'{arrays.path}': array '{key}' has shape {list(shape)}, expected {pattern}")
    return shape


def _attention_shape(arrays: NpzArrays, block: str, layout: Layout, width: int) -> AttentionShape:
    attention, _, mlp = layout.modules
    depth = "depth, " if layout.scanned else ""
    query = _shape(arrays, f"{block}/{attention}/query/kernel", f"[{depth}{width}, heads, D/heads]")
    dense = _shape(arrays, f"{block}/{mlp}/Dense_0/kernel", f"[{depth}{width}, mlp]")
    if query[-2] * query[-1] != width:
        raise WeightsError(
            f"'{arrays.path}': array '{block}/{attention}/query/kernel' has shape {list(query)}: "
            f"heads times their length must be {width}"
        )
    return AttentionShape(heads=query[-2], head_dim=query[-1], mlp=dense[-1])


def _pre_logits(arrays: NpzArrays, prefix: str, width: int) -> int:
    if not any(key.startswith(f"{prefix}pre_logits/") for key in arrays.keys):
        return 0
    return _shape(arrays, f"{prefix}pre_logits/kernel", f"[{width}, rep]")[1]


def _depth(arrays: NpzArrays, layout: Layout) -> int:
    if layout.scanned:
        return _shape(arrays, f"{layout.first_block}/LayerNorm_0/scale", "[depth, D]")[0]
    return len(_numbers(arrays, rf"{layout.prefix}Transformer/encoderblock_(\d+)/"))


def _resnet_units(arrays: NpzArrays, prefix: str) -> tuple[int, ...] | None:
    """Units per block of a hybrid's ResNet; a gap in the numbering later shows as a missing array."""
    blocks = len(_numbers(arrays, rf"{prefix}block(\d+)/"))
    if not blocks and f"{prefix}conv_root/kernel" not in arrays.keys:
        return None
    return tuple(max(len(_numbers(arrays, rf"{prefix}block{b}/unit(\d+)/")), 1) for b in range(1, blocks + 1))


def _numbers(arrays: NpzArrays, pattern: str) -> set[str]:
    return {match[1] for key in arrays.keys if (match := re.match(pattern, key))}


def _root_width(arrays: NpzArrays, prefix: str) -> int:
    key = f"{prefix}conv_root/kernel"
    width = _shape(arrays, key, f"[{ROOT_KERNEL}, {ROOT_KERNEL}, 3, width]")[3]
    if width % GROUPS:
        raise WeightsError(
            f"'{arrays.path}': array '{key}' has {width} output channels, expected a multiple of {GROUPS}"
        )
    return width


@dataclass(frozen=True)
class Slot:
    """Where one array of the file goes.

    Attributes:
        key: Its key in the file.
        shape: Its shape in the file.
        names: The entries of the module's state dict that it fills: one, or one per block when `stacked`.
        stacked: Whether its leading axis runs over the blocks.
    """

    key: str
    shape: Shape
    names: tuple[str, ...]
    stacked: bool = False


def slots(config: JaxViTConfig, layout: Layout) -> Iterator[Slot]:
    """Every array of a model of this configuration in a file of this layout."""
    prefix, width = layout.prefix, config.width
    if config.resnet is not None:
        yield from (Slot(prefix + key, shape, (f"resnet.{name}",)) for key, shape, name in _resnet(config))
    model: list[tuple[str, Shape, str]] = [
        (f"{prefix}embedding/kernel", (config.patch, config.patch, config.channels, width), "embedding.weight"),
        (f"{prefix}embedding/bias", (width,), "embedding.bias"),
        (layout.position_key, (1, config.positions, width), "pos_embedding"),
        *_norm(f"{prefix}Transformer/encoder_norm", "encoder_norm", width),
    ]
    if config.cls:
        model.append((f"{prefix}cls", (1, 1, width), "cls"))
    if config.map_head is not None:
        base, modules = f"{prefix}MAPHead_0/", ("MultiHeadDotProductAttention_0", "LayerNorm_0", "MlpBlock_0")
        model.append((f"{base}probe", (1, 1, width), "map_head.probe"))
        model += ((base + k, s, f"map_head.{n}") for k, s, n in _attention_mlp(width, config.map_head, modules, "norm"))
    if config.pre_logits:
        model += _dense(f"{prefix}pre_logits", "pre_logits", width, config.pre_logits)
    yield from (Slot(key, shape, (name,)) for key, shape, name in model)
    block = [
        *_norm("LayerNorm_0", "norm1", width),
        *_attention_mlp(width, config.block, layout.modules, "norm2"),
    ]
    for key, shape, name in block:
        names = tuple(f"blocks.{i}.{name}" for i in range(config.depth))
        if layout.scanned:
            yield Slot(f"{layout.first_block}/{key}", (config.depth, *shape), names, stacked=True)
        else:
            yield from (Slot(f"{prefix}Transformer/encoderblock_{i}/{key}", shape, (n,)) for i, n in enumerate(names))


_Entries = list[tuple[str, Shape, str]]


def _norm(key: str, name: str, width: int) -> _Entries:
    return [(f"{key}/scale", (width,), f"{name}.weight"), (f"{key}/bias", (width,), f"{name}.bias")]


def _dense(key: str, name: str, inputs: int, outputs: int) -> _Entries:
    return [(f"{key}/kernel", (inputs, outputs), f"{name}.weight"), (f"{key}/bias", (outputs,), f"{name}.bias")]


def _attention_mlp(width: int, shape: AttentionShape, modules: tuple[str, str, str], norm_name: str) -> _Entries:
    attention, norm, mlp = modules
    heads, dim = shape.heads, shape.head_dim
    entries: _Entries = []
    for part in ("query", "key", "value"):
        entries.append((f"{attention}/{part}/kernel", (width, heads, dim), f"attention.{part}.weight"))
        entries.append((f"{attention}/{part}/bias", (heads, dim), f"attention.{part}.bias"))
    return [
        *entries,
        (f"{attention}/out/kernel", (heads, dim, width), "attention.out.weight"),
        (f"{attention}/out/bias", (width,), "attention.out.bias"),
        *_norm(norm, norm_name, width),
        *_dense(f"{mlp}/Dense_0", "mlp.dense0", width, shape.mlp),
        *_dense(f"{mlp}/Dense_1", "mlp.dense1", shape.mlp, width),
    ]


def _resnet(config: JaxViTConfig) -> Iterator[tuple[str, Shape, str]]:
    inputs = config.root_width
    yield "conv_root/kernel", (ROOT_KERNEL, ROOT_KERNEL, 3, inputs), "conv_root.weight"
    yield from _norm("gn_root", "gn_root", inputs)
    for block, units in enumerate(config.resnet or ()):
        features = config.root_width * 2**block
        for unit in range(units):
            convs = [("1", 1, inputs, features), ("2", 3, features, features), ("3", 1, features, 4 * features)]
            if unit == 0:
                convs.append(("_proj", 1, inputs, 4 * features))
            for suffix, kernel, c_in, c_out in convs:
                key, name = f"block{block + 1}/unit{unit + 1}/", f"blocks.{block}.{unit}."
                yield f"{key}conv{suffix}/kernel", (kernel, kernel, c_in, c_out), f"{name}conv{suffix}.weight"
                yield from _norm(f"{key}gn{suffix}", f"{name}gn{suffix}", c_out)
            inputs = 4 * features


def read_state(arrays: NpzArrays, config: JaxViTConfig, layout: Layout) -> dict[str, Tensor]:
    """Read every array of the model into a state dict of `JaxViT`.

    Raises:
        WeightsError: An array is missing, has another shape, or is part of the model but has no place in it.
    """
    places = list(slots(config, layout))
    if missing := [slot.key for slot in places if slot.key not in arrays.keys]:
        raise missing_arrays(arrays.path, missing)
    if strange := _strange_arrays(arrays, config, layout, {slot.key for slot in places}):
        raise WeightsError(
            f"'{arrays.path}': array '{strange[0]}' belongs to the model but to no known ViT layout"
            + (f" (and {len(strange) - 1} more)" if len(strange) > 1 else "")
            + ": without it the features would be wrong"
        )
    state = {}
    for slot in places:
        array = arrays.read(slot.key)
        if array.shape == (1, 1, 1, *slot.shape):  # GroupNorm parameters of old Flax versions
            array = array.reshape(slot.shape)
        if array.shape != slot.shape:
            raise WeightsError(
                f"'{arrays.path}': array '{slot.key}' has shape {list(array.shape)}, expected {list(slot.shape)}"
            )
        for name, part in zip(slot.names, array if slot.stacked else [array], strict=True):
            state[name] = torch.from_numpy(to_torch_layout(slot.key, part))
    return state


def to_torch_layout(key: str, array: FloatArray) -> FloatArray:
    """Turn a Flax array into PyTorch's layout.

    Convolutions go from HWIO to OIHW, dense kernels from `[in, out]` to `[out, in]`, with the heads of attention kernels
    (`[D, heads, dim]`, and `[heads, dim, D]` for `out`) and biases merged into one axis. Tokens stay as they are.
    """
    if not key.endswith("kernel"):
        merged = array.reshape(-1) if key.endswith("bias") else array
    elif array.ndim == 4:
        merged = array.transpose(3, 2, 0, 1)
    else:
        merged = (array.reshape(-1, array.shape[-1]) if key.endswith("out/kernel") else array.reshape(len(array), -1)).T
    return np.ascontiguousarray(merged)


def _strange_arrays(arrays: NpzArrays, config: JaxViTConfig, layout: Layout, used: set[str]) -> list[str]:
    """Arrays that the model's computation would need, but that have no place in it: inside its trunk, or a token of its width."""
    strange = []
    for key in sorted(arrays.keys - used):
        name = key.removeprefix(layout.prefix)
        if not key.startswith(layout.prefix):
            continue
        if _TRUNK.match(name):
            strange.append(key)
        elif "/" not in name:
            shape = arrays.shape(key)
            if len(shape) == 3 and shape[0] == 1 and shape[2] == config.width:
                strange.append(key)
    return strange
