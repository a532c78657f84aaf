"""Programs exported from JAX as black-box backbones: pixels in, a dict of representations out.

`save` makes a `.jaxexport` file of a jittable function, and `jax:FILE.jaxexport` runs it. The program is StableHLO, serialised by
`jax.export`, with the weights in it as constants. It is run by XLA: load it only from whom you trust with your machine. jax is
imported when a program is loaded or saved, and never by anything else in vitbench.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor, nn

from vitbench.backbones.base import Backbone, Representation
from vitbench.backbones.jax_files import find_file
from vitbench.backbones.jax_program import Manifest, problem, read_program, write_program
from vitbench.backbones.jax_stablehlo import (
    check_program,
    deserialize,
    export_program,
    find_devices,
    output_dims,
    unreadable,
)
from vitbench.backbones.spec import Atom, BackboneSpec
from vitbench.errors import RepresentationError, UsageError, WeightsError, one_line, unknown

SUFFIX = ".jaxexport"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class JaxExportBackbone(Backbone):
    """A function from pixels to representations, exported from JAX.

    Its representations are the program's outputs; `cls`, `gap` and `pooler` are absent unless they are among them. Outputs called
    `cls@6` are layer 6. It computes in float32 on JAX's own device: the GPU when the backbone is on one and JAX has it, else the
    TPU or the CPU. A batch is padded to the size that the program was exported for, or else to the next power of two, so that XLA
    compiles few programs.

    Args:
        spec: `jax:FILE.jaxexport`; FILE is a path, relative to the working directory.

    Raises:
        UsageError: jax is not installed, or an option does not apply.
        WeightsError: The file is missing, damaged or no exported program; the program is of a JAX that this one cannot read,
            for a platform that is not here, or not what its manifest says.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        path = find_file(spec)
        self._where = f"backbone '{spec.text}'"
        self._jax = _import_jax(self._where)
        self._manifest, program = read_program(path)
        self._check_resolution()
        exported = deserialize(self._jax, program, self._manifest, self._where)
        check_program(self._jax, exported, self._manifest, self._where)
        self._devices = find_devices(self._jax, exported.platforms, self._where)
        self._device = next(iter(self._devices.values()))
        self._call = self._jax.jit(exported.call)
        batch = exported.in_avals[0].shape[0]
        self._batch = None if self._jax.export.is_symbolic_dim(batch) else int(batch)
        self._describe(exported.platforms)
        self._lower()

    def _describe(self, platforms: Sequence[str]) -> None:
        manifest = self._manifest
        layered = [atom for atom in manifest.atoms if atom.layer is not None]
        self.representations = _representations(manifest)
        if layered:
            self.depth = manifest.depth
            dims = {atom.layer: manifest.atoms[atom] for atom in layered}
            self.first_layer = min(atom.layer or 0 for atom in layered)
            self.layer_dims = [dims.get(layer, 0) for layer in range(self.depth + 1)]
            self.layer_poolings = tuple(dict.fromkeys(atom.pooling for atom in layered))
        self.input_size = manifest.resolution
        self.preprocessing = manifest.preprocessing
        self.mean, self.std = manifest.mean, manifest.std
        self.architecture = "jaxexport({},input={}x{})".format(manifest.architecture, *manifest.resolution)
        self.weights_digest = manifest.program_sha256
        self.num_parameters = manifest.num_parameters
        batch = "of any size" if self._batch is None else f"of {self._batch}, padded"
        made = f"exported by JAX {manifest.jax_version} for {', '.join(platforms)}; batch {batch}"
        layers = [f"layers given: {', '.join(map(str, layered))}"] if layered else []
        self.provenance_notes = (made, *layers, *manifest.notes)

    @property
    def modules(self) -> Sequence[nn.Module]:
        """None: the weights are constants of the program."""
        return ()

    def to(self, device: torch.device | str, dtype: str = "auto") -> Backbone:
        """Choose where results go, and JAX's device to match; the computation is float32.

        Raises:
            UsageError: Another dtype is asked for.
        """
        if dtype not in ("auto", "float32"):
            raise UsageError(
                f"{self._where}: dtype {dtype} does not apply: an exported program computes as it was exported, "
                "on float32 pixels; leave dtype out"
            )
        super().to(device, "float32")
        order = ("cuda", "rocm", "tpu", "cpu") if self.device.type == "cuda" else ("tpu", "cpu", "cuda", "rocm")
        self._device = next(self._devices[name] for name in order if name in self._devices)
        return self

    def _forward(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        if tuple(pixels.shape[-2:]) != self.input_size:
            raise UsageError(
                "{} takes images of {}x{} pixels, got {}x{}: it was exported for that size".format(
                    self._where, *self.input_size, *pixels.shape[-2:]
                )
            )
        images = pixels.permute(0, 2, 3, 1).cpu().numpy()
        size = self._batch or 1 << (len(images) - 1).bit_length()
        names = [str(atom) for atom in atoms]
        parts = [self._run(images[i : i + size], size, names) for i in range(0, len(images), size)]
        return {
            atom: torch.from_numpy(np.concatenate([part[str(atom)] for part in parts])).to(self.device)
            for atom in atoms
        }

    def _run(
        self, images: npt.NDArray[np.float32], size: int, names: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run up to `size` images `[n, H, W, 3]`, padded with zeros to `size`; the first n rows of each output."""
        padded = np.zeros((size, *images.shape[1:]), np.float32)
        padded[: len(images)] = images
        try:
            given = self._call(self._jax.device_put(padded, self._device))
            # np.array copies: the buffer is JAX's, and torch wants one that it may write to.
            return {name: np.array(given[name], np.float32)[: len(images)] for name in names}
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise MemoryError(one_line(error)) from error
            raise WeightsError(
                f"{self._where}: the program fails on a batch of {size} ({one_line(error)}): export it again"
            ) from error

    def _lower(self) -> None:
        """Have JAX read the StableHLO now: one that it cannot read shows here, and not in the middle of a run."""
        shape = (self._batch or 1, *self.input_size, 3)
        pixels = self._jax.ShapeDtypeStruct(
            shape, np.float32, sharding=self._jax.sharding.SingleDeviceSharding(self._device)
        )
        try:
            self._call.lower(pixels)
        except Exception as error:
            raise unreadable(self._jax, error, self._manifest, self._where) from error

    def _check_resolution(self) -> None:
        height, width = self._manifest.resolution
        if self.spec.resolution not in (None, height) or (self.spec.resolution and height != width):
            raise UsageError(
                f"{self._where}: resolution {self.spec.resolution} does not apply: the program was exported for "
                f"{height}x{width} pixels"
            )

    def _resolve_atom(self, atom: Atom, name: str) -> Atom:
        found = super()._resolve_atom(atom, name)
        if found not in self._manifest.atoms:
            layers = [str(one) for one in self._manifest.atoms if one.layer is not None and one.pooling == atom.pooling]
            raise RepresentationError(f"{self._where} has no '{found}': of layers it gives {', '.join(layers)}")
        return found


def save(
    fn: Callable[..., Any],
    path: str | Path,
    *,
    resolution: int | tuple[int, int],
    preprocessing: str,
    architecture: str,
    params: Any = None,
    representations: Sequence[str] | None = None,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    batch: int | Literal["symbolic"] = "symbolic",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    aliases: Mapping[str, str] | None = None,
    depth: int = 0,
    num_parameters: int | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Export a JAX function and write it as a `.jaxexport` file, which `jax:FILE.jaxexport` runs as a backbone.

    Matrix products run at JAX's highest precision unless `fn` says otherwise, so that GPUs and TPUs give what the CPU gives. The
    file holds no path or line of your source; the same function and weights make the same bytes.

    Args:
        fn: Jittable and free of side effects: pixels `[b, H, W, 3]` float32, preprocessed, to a dict of name to `[b, D]` of a
            floating type; a bare array counts as `pooler`. Names are `cls` (class token after the final norm), `gap` (mean of the
            patch tokens after it), `pooler` (the model's own trained pooling), any other of your own (`map`), and `cls@6` for
            the output of block 6, passed through the final norm; a layer needs its like at the output (`cls`) beside it.
        path: Where to write; it must end in `.jaxexport`.
        resolution: Height and width of the input in pixels, or the side of a square.
        preprocessing: How an image becomes pixels, as a string: `tf_resize(224x224,bilinear)|value_range(-1,1)`. It must give
            images of `resolution`.
        architecture: What the model is, in a few words (`vit-b16-sigreg-ema`). Part of the identity of results.
        params: If given, `fn` is called as `fn(params, pixels)`. It becomes part of the program either way.
        representations: The outputs to keep, all if not given.
        mean: Per-channel mean of the model's normalisation, on pixels in [0, 1]; for presets ending in `+native`.
        std: Per-channel standard deviation of the same.
        batch: `symbolic`, for any size; or the one size that `fn` can be traced with, to which batches are then padded.
        platforms: What it may run on: `cpu`, `cuda`, `rocm`, `tpu`. It is exported for all of them from any of them.
        aliases: Outputs that equal another exactly, such as `{"pooler": "cls"}`.
        depth: Number of blocks of the model; to be given when outputs carry layers, so that `cls@-1` is the last block.
        num_parameters: Number of parameters; counted in `params` if not given.
        notes: Lines on the weights, shown and recorded: checkpoint, step, EMA.

    Returns:
        The path.

    Raises:
        UsageError: jax is not installed; `fn` gives something else than described; it cannot be exported so. What `fn` itself
            raises on a batch of concrete size goes through as it is.
        StoreError: The file cannot be written.
    """
    path = Path(path)
    where = f"'{path}'"
    if path.suffix != SUFFIX:
        raise UsageError(f"{where} does not end in {SUFFIX}, by which exported programs are known: name it so")
    for platform in platforms:
        if platform not in PLATFORMS:
            raise unknown("platform", platform, PLATFORMS)
    if batch != "symbolic" and (not isinstance(batch, int) or batch < 1):
        raise UsageError(f"{where}: batch must be 'symbolic' or a number of images above 0, got {batch!r}")
    jax = _import_jax(where)
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)

    def outputs(pixels: Any) -> dict[str, Any]:
        given = fn(pixels) if params is None else fn(params, pixels)
        return dict(given) if isinstance(given, Mapping) else {"pooler": given}

    dims = output_dims(jax, outputs, (3 if batch == "symbolic" else batch, *size, 3), representations, where)

    def program(pixels: Any) -> dict[str, Any]:
        given = outputs(pixels)
        return {name: given[name].astype(np.float32) for name in dims}

    serialized = export_program(jax, program, size, batch, platforms, where)
    if num_parameters is None:
        num_parameters = sum(int(np.size(leaf)) for leaf in jax.tree_util.tree_leaves(params))
    try:
        manifest = Manifest.model_validate(
            {
                "architecture": architecture,
                "resolution": size,
                "preprocessing": preprocessing,
                "mean": tuple(mean),
                "std": tuple(std),
                "representations": dims,
                "aliases": dict(aliases or {}),
                "depth": depth,
                "num_parameters": num_parameters,
                "notes": tuple(notes),
                "jax_version": jax.__version__,
                "program_bytes": len(serialized),
                "program_sha256": hashlib.sha256(serialized).hexdigest(),
            }
        )
    except pydantic.ValidationError as error:
        raise UsageError(f"{where} cannot be made: {problem(error)}") from error
    write_program(path, manifest, serialized)
    return path


def _import_jax(where: str) -> Any:
    try:
        import jax
        import jax.export

        # jax.export reads and writes by flatbuffers, which jax itself does not install.
        import_module("flatbuffers")
    except ImportError as error:
        raise UsageError(
            f"{where}: exported programs need jax, which cannot be imported here ({one_line(error)}): "
            "pip install 'vitbench[jax]'"
        ) from error
    return jax


def _representations(manifest: Manifest) -> dict[str, Representation]:
    reason = "the exported program does not give it"
    found = {name: Representation(name, 0, "absent", reason=reason) for name in ("cls", "gap", "pooler")}
    for atom, dim in manifest.atoms.items():
        if atom.layer is None:
            found[atom.pooling] = Representation(atom.pooling, dim, alias_of=manifest.aliases.get(atom.pooling))
    return found
