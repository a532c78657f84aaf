"""What every backbone is: pixels in, representations out, with its preprocessing and the provenance of its weights."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vitbench.backbones.classifier import Classifier
from vitbench.backbones.spec import Atom, BackboneSpec, parse_representation, representation_name
from vitbench.errors import RepresentationError, UsageError, nearest

Provenance = Literal["trained", "untrained", "absent"]


@dataclass(frozen=True)
class Representation:
    """One vector per image that a backbone can give.

    Attributes:
        name: `cls`, `gap`, `pooler`, or a name of the adapter's own.
        dim: Length D of the vector.
        provenance: `trained`; `untrained` when its weights were newly initialised at load; `absent` when the model has none.
        alias_of: The representation that this one equals exactly (a pooler that is plain CLS or a plain mean), or None.
        reason: Why it is absent or untrained, as a clause for error messages.
    """

    name: str
    dim: int
    provenance: Provenance = "trained"
    alias_of: str | None = None
    reason: str = ""


class Backbone(ABC):
    """A frozen model that turns preprocessed pixels into named vectors.

    An adapter sets the attributes in its `__init__` and implements `_forward`. Everything else is here.

    Attributes:
        spec: The spec it was loaded from.
        representations: Name to `Representation` for `cls`, `gap` and `pooler` (absent ones included, with the reason).
        depth: Number of blocks (or stages); `@L` takes `first_layer` to depth. 0 when the model has no layers to read.
        first_layer: 0 where the input of the first block can be read, else 1.
        layer_poolings: The poolings that may carry `@L`.
        layer_dims: Length of the vector of layer 0, 1, …, depth; empty when `depth` is 0.
        preprocessing: The model's own preprocessing as a printable string (see `vitbench.tasks.transforms`); empty when
            nobody knows it, in which case the adapter loads only with `preprocess=` in the spec.
        input_size: Height and width in pixels that the model was built for.
        mean: Per-channel mean of the model's own normalisation, on pixels in [0, 1].
        std: Per-channel standard deviation of the same.
        architecture: What decides the computation apart from the weights, for the identity (`timm:vit_tiny_patch16_224`).
        weights_digest: sha256 over the loaded weights.
        num_parameters: Number of parameters of the loaded model.
        provenance_notes: Lines about the weights that a careful reader wants to see (ignored keys, resized embeddings).
        files: Files, and folders with all files in them, that decided with the spec what was loaded; empty where something else
            did too, such as what the hub has today. See `vitbench.features.remembered`.
        device: Where the model is.
        dtype: The dtype of the computation: `float32`, `bfloat16` or `float16` (the latter two by autocast).
        allow_untrained: Let representations with newly initialised weights through; they are refused otherwise.
    """

    is_floor: ClassVar[bool] = False
    """True for a baseline that is not a model: it is always scored with its one representation, whatever a run asks for."""

    spec: BackboneSpec
    representations: Mapping[str, Representation]
    depth: int = 0
    first_layer: int = 0
    layer_poolings: tuple[str, ...] = ()
    layer_dims: Sequence[int] = ()
    preprocessing: str
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    architecture: str
    weights_digest: str
    num_parameters: int = 0
    provenance_notes: Sequence[str] = ()
    files: Sequence[Path] = ()
    device: torch.device = torch.device("cpu")
    dtype: str = "float32"
    allow_untrained: bool = False

    @abstractmethod
    def _forward(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        """Compute every atom in one pass.

        Args:
            pixels: `[N, 3, H, W]` float32 on `self.device`, preprocessed.
            atoms: What to compute; layers are in 0..depth, never negative.

        Returns:
            Atom to `[N, D]`, any float dtype.
        """

    @property
    @abstractmethod
    def modules(self) -> Sequence[nn.Module]:
        """The modules that hold the weights; empty for a backbone without any."""

    def to(self, device: torch.device | str, dtype: str = "auto") -> Backbone:
        """Move the model and choose the dtype of its computation (`auto`: bfloat16 on CUDA with native support).

        float32 on CUDA switches TF32 off for the process.
        """
        self.device = torch.device(device)
        if dtype == "auto":
            native = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = "bfloat16" if native else "float32"
        self.dtype = dtype
        if self.device.type == "cuda" and dtype == "float32":
            # By default cuDNN rounds float32 convolutions to TF32, and then a GPU's features would not be a CPU's.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        for module in self.modules:
            module.to(self.device)
        return self

    def initialise(self, seed: int) -> None:
        """Draw every weight anew, in place, by the scheme of the architecture's own library; for training from scratch.

        Equal seeds give equal weights, and the process's random numbers are as they were before.

        Args:
            seed: A whole number.

        Raises:
            UsageError: The backbone cannot be trained from scratch, or was not loaded with `from_scratch=True`.
        """
        raise UsageError(f"backbone '{self.spec.text}' cannot be trained from scratch")

    def classifier(self) -> Classifier | None:
        """The linear classifier that the checkpoint brings along, as it is stored; None where there is none.

        Raises:
            WeightsError: The file, which was loaded before, can no longer be read.
        """
        found = self._stored_classifier()
        return found if isinstance(found, Classifier) else None

    @property
    def no_classifier(self) -> str:
        """Why `classifier` gives None, as a clause; empty where it gives one."""
        found = self._stored_classifier()
        return "" if isinstance(found, Classifier) else found

    def _stored_classifier(self) -> Classifier | str:
        """The checkpoint's classifier, or a clause why there is none."""
        return "it brings none along"

    def save(self, folder: str | Path, head: Classifier | None = None, preprocessing: str = "") -> str:
        """Write the weights as they are now, and a classifier on them, as a folder that its own library loads as well.

        See `vitbench.backbones.saving`. The folder appears whole or not at all, in the place of one that was saved before.

        Args:
            folder: Where to.
            head: The classifier, on any representation of this backbone; None for none.
            preprocessing: How images were prepared, where that is not as the backbone's spec says.

        Returns:
            The backbone spec that loads it again, with representations equal to 1e-6.

        Raises:
            UsageError: The backbone has no weights to save, or the folder holds something else.
            StoreError: The folder cannot be written.
        """
        raise UsageError(f"backbone '{self.spec.text}' has no weights that could be saved")

    def resolve(self, name: str) -> tuple[Atom, ...]:
        """The atoms of representation `name`, with layers counted from 0 and every atom checked against the model.

        Raises:
            RepresentationError: The model lacks it, or has no such layer.
            UsageError: The name cannot be read.
        """
        return tuple(self._resolve_atom(atom, name) for atom in parse_representation(name))

    def canonical(self, name: str) -> str:
        """`name` with its layers counted from 0: `gap@-2` of a 12-block model is `gap@11`."""
        return representation_name(self.resolve(name))

    def provenance(self, name: str) -> Literal["trained", "untrained"]:
        """`untrained` if any part of representation `name` comes from newly initialised weights, else `trained`."""
        parts = [self.representations[atom.pooling].provenance for atom in self.resolve(name)]
        return "untrained" if "untrained" in parts else "trained"

    def alias_of(self, name: str) -> str | None:
        """The representation that `name` equals exactly on this model, or None."""
        atoms = self.resolve(name)
        if len(atoms) > 1:
            return None
        (atom,) = atoms
        if atom.layer == self.depth and self.representations[atom.pooling].provenance == "trained":
            return atom.pooling
        return self.representations[atom.pooling].alias_of if atom.layer is None else None

    def dim(self, name: str) -> int:
        """Length of the vector of representation `name`."""
        return sum(
            self.representations[atom.pooling].dim if atom.layer is None else self.layer_dims[atom.layer]
            for atom in self.resolve(name)
        )

    def available(self) -> list[str]:
        """The names of the representations that the model has, trained ones only."""
        return [name for name, item in self.representations.items() if item.provenance == "trained"]

    def encode(self, pixels: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Run one batch through the model once and return every representation asked for.

        Args:
            pixels: `[N, 3, H, W]` float32, preprocessed, on any device.
            names: Representation names, such as `cls`, `gap@-2`, `cls+gap`; or one of them.

        Returns:
            Name to `[N, D]` float32 on `self.device`.

        Raises:
            RepresentationError: The model lacks one of them.
        """
        wanted = {name: self.resolve(name) for name in ([names] if isinstance(names, str) else names)}
        atoms = frozenset(atom for parts in wanted.values() for atom in parts)
        computed = self.encode_atoms(pixels, atoms)
        return {name: torch.cat([computed[atom] for atom in parts], dim=1) for name, parts in wanted.items()}

    def differentiable(self, pixels: Tensor, name: str) -> Tensor:
        """One representation with gradients, for training: no inference mode, and no autocast but the caller's.

        Args:
            pixels: `[N, 3, H, W]` float32 on `self.device`, preprocessed.
            name: Representation name.

        Returns:
            `[N, D]` float32.

        Raises:
            RepresentationError: The model lacks it.
        """
        atoms = self.resolve(name)
        computed = self._forward(pixels, frozenset(atoms))
        return torch.cat([computed[atom].float() for atom in atoms], dim=1)

    def encode_atoms(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        """As `encode`, for resolved atoms."""
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
            given = list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise UsageError(f"pixels must be a tensor [N, 3, H, W] with at least one image, got {given}")
        autocast = (
            nullcontext()
            if self.dtype == "float32"
            else torch.autocast(self.device.type, dtype=getattr(torch, self.dtype))
        )
        with torch.inference_mode(), autocast:
            computed = self._forward(pixels.to(self.device, torch.float32, non_blocking=True), atoms)
        return {atom: computed[atom].float() for atom in atoms}

    def _resolve_atom(self, atom: Atom, name: str) -> Atom:
        item = self.representations.get(atom.pooling)
        has = ", ".join(self.available()) or "none"
        where = f"backbone '{self.spec.text}'"
        if item is None:
            close = nearest(atom.pooling, self.representations)
            hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
            raise RepresentationError(f"unknown representation '{name}' for {where}{hint} (it has: {has})")
        if item.provenance == "absent":
            raise RepresentationError(f"{where} has no '{atom.pooling}': {item.reason} (it has: {has})")
        if item.provenance == "untrained" and not self.allow_untrained:
            raise RepresentationError(
                f"the '{atom.pooling}' of {where} is untrained: {item.reason}; its features would be noise. "
                f"Use one of {has}, or --allow-untrained to score it all the same, marked as untrained"
            )
        if atom.layer is None:
            return atom
        if not self.depth or atom.pooling not in self.layer_poolings:
            layered = ", ".join(f"{pooling}@L" for pooling in self.layer_poolings) or "no layers"
            raise RepresentationError(f"{where} has no '{atom.pooling}' by layer (it has: {layered})")
        layer = atom.layer if atom.layer >= 0 else self.depth + 1 + atom.layer
        if not self.first_layer <= layer <= self.depth:
            raise RepresentationError(
                f"{where} has no layer {atom.layer} in '{name}': layers go from {self.first_layer} to {self.depth}"
            )
        return Atom(atom.pooling, layer)


def weights_digest(module: nn.Module) -> str:
    """sha256 over every tensor of the module's state dict, in order of name: name, shape and float32 bytes.

    Floating tensors are read as float32, so that a half-precision file and its float32 copy of equal values are one model.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu()
        value = value.float() if value.is_floating_point() else value.to(torch.int64)
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, each shared one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())
