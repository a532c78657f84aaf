"""Backbones from JAX: `.npz` ViT checkpoints of `vit_jax` and big_vision, computed in PyTorch as Flax computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from vitbench.backbones import from_scratch
from vitbench.backbones.base import Backbone, Representation, count_parameters, weights_digest
from vitbench.backbones.classifier import NPZ_FILE, Classifier, imagenet_classes, make_classifier, read_head_file
from vitbench.backbones.jax_arrays import NpzArrays, open_npz
from vitbench.backbones.jax_files import find_file
from vitbench.backbones.jax_initialise import initialise
from vitbench.backbones.jax_layout import Layout, find_layout, read_config, read_state, slots
from vitbench.backbones.jax_vit import JaxViT, JaxViTConfig
from vitbench.backbones.positions import resize_note, resize_positions
from vitbench.backbones.spec import Atom, BackboneSpec
from vitbench.errors import UsageError


class JaxBackbone(Backbone):
    """A ViT, or ResNet+ViT hybrid, from a JAX `.npz` file.

    Everything about the model is read from the names and shapes of the file's arrays. The classifier head is left in the file.
    JAX checkpoints carry no preprocessing: it is `vit_jax`'s evaluation protocol, a squash to the input size, in [-1, 1].

    Args:
        spec: `jax:FILE.npz[,resolution=R][,positions=jax]`; FILE is a path, relative to the working directory.

    Raises:
        UsageError: An option that does not apply, or a resolution that the patches do not divide.
        WeightsError: The file is missing, damaged, no ViT, or not complete.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        if spec.positions == "library":
            raise UsageError(
                f"backbone '{spec.text}': positions=library is not for jax, which resizes position embeddings as JAX does "
                "(positions=jax); and timm's way is that of a converted checkpoint (vitbench convert)"
            )
        path = find_file(spec)
        with open_npz(path) as arrays:
            layout = find_layout(arrays)
            stored = read_config(arrays, layout)
            config = replace(stored, grid=_grid(spec, stored))
            notes = [_layout_note(layout), *_ignored_arrays(arrays, stored, layout)]
            state = {} if spec.initialise else read_state(arrays, stored, layout)
            if arrays.bfloat16 and not spec.initialise:
                notes.append("weights stored as bfloat16, read as float32")
        if spec.initialise:
            notes.append(from_scratch.NOTE)
        elif config.grid != stored.grid:
            state["pos_embedding"] = resize_positions(state["pos_embedding"], config.grid, config.cls_has_position)
            notes.append(resize_note((stored.grid, stored.grid), (config.grid, config.grid)))
        with torch.device("meta"):
            model = JaxViT(config)
        if spec.initialise:
            model = model.to_empty(device="cpu")
            initialise(model, from_scratch.FIRST_SEED)
        else:
            model.load_state_dict(state, assign=True)
        self._model = model.eval().requires_grad_(False)
        self._describe(config)
        self.provenance_notes = tuple(notes)
        if not spec.initialise:
            self.files = (path,)

    def initialise(self, seed: int) -> None:
        """As `Backbone.initialise`, by the scheme of `vit_jax` or big_vision, whichever the file's layout is of."""
        from_scratch.check_initialised(self.spec)
        initialise(self._model, seed)

    def _describe(self, config: JaxViTConfig) -> None:
        self.depth = config.depth
        self.layer_dims = (config.width,) * (config.depth + 1)
        self.layer_poolings = ("cls", "gap") if config.cls else ("gap",)
        self.representations = _representations(config)
        side = config.grid * config.stride
        self.input_size = (side, side)
        self.preprocessing = f"tf_resize({side}x{side},bilinear)|value_range(-1,1)"
        self.mean = self.std = (0.5, 0.5, 0.5)
        self.architecture = str(config)
        self.weights_digest = from_scratch.WEIGHTS_DIGEST if self.spec.initialise else weights_digest(self._model)
        self.num_parameters = count_parameters(self._model)

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The one module that holds the weights, without a classifier head."""
        return (self._model,)

    def save(self, folder: str | Path, head: Classifier | None = None, preprocessing: str = "") -> str:
        """As `Backbone.save`: as Hugging Face's ViT where it has a `pre_logits` layer, else as timm's, a hybrid as `.npz`."""
        from vitbench.backbones.saving import save_jax

        return save_jax(self, Path(folder), head, preprocessing)

    def _stored_classifier(self) -> Classifier | str:
        if self.spec.initialise:
            return "it is trained from scratch"
        path = find_file(self.spec)
        if path.name == NPZ_FILE and (beside := read_head_file(path.parent)) is not None:
            return beside
        with open_npz(path) as arrays:
            prefix = find_layout(arrays).prefix
            keys = [f"{prefix}head/kernel", f"{prefix}head/bias"]
            kernel, bias = (torch.from_numpy(arrays.read(key)) if key in arrays.keys else None for key in keys)
        pooler = self.representations["pooler"]
        names, subset = imagenet_classes(0 if bias is None else len(bias))
        source = f"'{path.name}', {keys[0]}" + (f"; taken for the classes of {subset}" if subset else "")
        weight = None if kernel is None or kernel.ndim != 2 else kernel.T
        return make_classifier(pooler.alias_of or "pooler", pooler.dim, weight, bias, names, source)

    def _forward(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        if tuple(pixels.shape[-2:]) != self.input_size:
            height, width = pixels.shape[-2:]
            side = self.input_size[0]
            raise UsageError(
                f"backbone '{self.spec.text}' takes images of {side}x{side} pixels, got {height}x{width}: "
                "its position embeddings fit no other size (see resolution=)"
            )
        wanted: dict[int, list[Atom]] = {}
        for atom in atoms:
            wanted.setdefault(self.depth if atom.layer is None else atom.layer, []).append(atom)
        computed: dict[Atom, Tensor] = {}
        for layer, tokens in self._model.layers(pixels):
            if layer in wanted:
                normed = self._model.encoder_norm(tokens)
                computed |= {atom: self._model.pool(normed, atom.pooling) for atom in wanted[layer]}
            if len(computed) == len(atoms):
                break
        return computed


def _grid(spec: BackboneSpec, config: JaxViTConfig) -> int:
    """Patches per side at the resolution asked for."""
    if spec.resolution is None:
        return config.grid
    grid, rest = divmod(spec.resolution, config.stride)
    if rest or not grid:
        choices = [str(n * config.stride) for n in (grid, grid + 1) if n]
        raise UsageError(
            f"backbone '{spec.text}': resolution {spec.resolution} is no multiple of the patch size {config.stride}; "
            f"the nearest that are: {', '.join(choices)}"
        )
    return grid


def _representations(config: JaxViTConfig) -> dict[str, Representation]:
    cls = Representation("cls", config.width)
    if not config.cls:
        cls = replace(cls, provenance="absent", reason="the checkpoint has no CLS token")
    own = config.map_head is not None or config.pre_logits > 0
    pooler = Representation("pooler", config.pooled_dim, alias_of=None if own else config.native_pooling)
    return {"cls": cls, "gap": Representation("gap", config.width), "pooler": pooler}


def _layout_note(layout: Layout) -> str:
    prefix = f" under '{layout.prefix}'" if layout.prefix else ""
    return f"{layout.numbering} numbering{prefix}{', blocks scanned' if layout.scanned else ''}"


def _ignored_arrays(arrays: NpzArrays, config: JaxViTConfig, layout: Layout) -> list[str]:
    """Lines about the arrays of the file that are not part of the model: its head, optimiser state, a text tower."""
    used = {slot.key for slot in slots(config, layout)}
    head, groups, lines = f"{layout.prefix}head/", Counter[str](), []
    for key in sorted(arrays.keys - used):
        if key == f"{head}kernel":
            lines.append(f"classifier head not used: '{key}' {list(arrays.shape(key))}")
        elif not key.startswith(head):
            parts = key.split("/")
            shared = sum(
                1
                for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, layout.prefix.split("/"), strict=False))
            )
            groups["/".join(parts[: shared + 1])] += 1
    if groups:
        lines.append("arrays not used: " + ", ".join(f"{name} ({count})" for name, count in sorted(groups.items())))
    return lines
