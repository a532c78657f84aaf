"""What is asked of `jax.export`: trace, lower and serialise a function; read a program and compare it with its manifest.

Every function is given the module `jax`, which only `vitbench.backbones.jax_export` imports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from vitbench.backbones.jax_program import Manifest
from vitbench.errors import UsageError, VitbenchError, WeightsError, one_line, unknown

LARGEST_PROGRAM = 2**31 - 2**24
"""Bytes of the largest program: jax.export serialises by flatbuffers, which end at 2 GB."""


def output_dims(
    jax: Any,
    outputs: Callable[[Any], dict[str, Any]],
    shape: tuple[int, ...],
    wanted: Sequence[str] | None,
    where: str,
) -> dict[str, int]:
    """Name to length D of the outputs that are kept, from a trace with a batch of concrete size.

    Args:
        jax: The module.
        outputs: Pixels `[b, H, W, 3]` to a dict.
        shape: Shape of the pixels to trace with.
        wanted: Names of the outputs to keep; None for all.
        where: What is being made, for messages.

    Raises:
        UsageError: An output is not there, or not floating-point `[b, D]`.
    """
    given = jax.eval_shape(outputs, jax.ShapeDtypeStruct(shape, np.float32))
    if wanted is not None:
        for name in wanted:
            if name not in given:
                raise unknown(f"representation for {where}:", name, map(str, given))
        given = {name: given[name] for name in wanted}
    for name, value in given.items():
        if not isinstance(name, str):
            raise UsageError(f"{where}: the function's outputs must be named by strings, got {name!r}")
        if not hasattr(value, "shape") or not _is_pooled(jax, value, shape[0]):
            got = _aval(value) if hasattr(value, "shape") else f"a {type(value).__name__}"
            raise UsageError(
                f"{where}: the function's output '{name}' is {got} for a batch of {shape[0]}, not floating-point numbers "
                f"[{shape[0]}, D]: pool tokens to one vector per image first"
            )
    return {name: value.shape[1] for name, value in sorted(given.items())}


def export_program(
    jax: Any,
    program: Callable[[Any], dict[str, Any]],
    size: tuple[int, ...],
    batch: int | Literal["symbolic"],
    platforms: Sequence[str],
    where: str,
) -> bytes:
    """Trace, lower and serialise a function of pixels.

    Args:
        jax: The module.
        program: Pixels `[b, H, W, 3]` float32 to a dict of arrays.
        size: H and W.
        batch: `symbolic`, or b.
        platforms: What it may run on.
        where: What is being made, for messages.

    Raises:
        UsageError: JAX cannot export it so, or it is over 2 GB.
    """
    symbolic = batch == "symbolic"
    try:
        shape = jax.export.symbolic_shape("b, {}, {}, 3".format(*size)) if symbolic else (batch, *size, 3)
        with _without_surroundings(jax):
            exported = jax.export.export(jax.jit(program), platforms=tuple(platforms))(
                jax.ShapeDtypeStruct(shape, np.float32)
            )
    except Exception as error:
        advice = "give batch=8 or another fixed size, " if symbolic else ""
        raise UsageError(
            f"{where}: the function cannot be exported for {', '.join(platforms)} with {'a symbolic' if symbolic else 'its'} "
            f"batch ({one_line(error)}): {advice}or fewer platforms"
        ) from error
    if len(exported.mlir_module_serialized) > LARGEST_PROGRAM:
        raise UsageError(f"{where}: the program with its weights is over 2 GB, which jax.export cannot write")
    return bytes(exported.serialize())


@contextmanager
def _without_surroundings(jax: Any) -> Iterator[None]:
    """Leave out of the program the paths and lines of the source, and the precision that the surroundings happen to have."""
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def deserialize(jax: Any, program: bytearray, manifest: Manifest, where: str) -> Any:
    """The `jax.export.Exported` of a serialised program; its StableHLO is not read yet.

    Raises:
        WeightsError: This JAX cannot read it.
    """
    try:
        exported = jax.export.deserialize(program)
        # JAX runs a program of another calling convention without a word.
        convention = exported.calling_convention_version
        oldest = jax.export.minimum_supported_calling_convention_version
        newest = jax.export.maximum_supported_calling_convention_version
        if not oldest <= convention <= newest:
            raise ValueError(f"calling convention {convention}, of {oldest} to {newest} that are known")
    except Exception as error:
        raise unreadable(jax, error, manifest, where) from error
    return exported


def check_program(jax: Any, exported: Any, manifest: Manifest, where: str) -> None:
    """See that the program is what its manifest says.

    Raises:
        WeightsError: It takes something else, does not give what the manifest names, or runs on several devices.
    """
    if exported.nr_devices != 1:
        raise WeightsError(f"{where}: the program is sharded over {exported.nr_devices} devices: export it for one")
    height, width = manifest.resolution
    trees = jax.tree_util
    one_array = exported.in_tree == trees.tree_structure(((0,), {}))
    pixels = exported.in_avals[0] if one_array else None
    if pixels is None or tuple(pixels.shape[1:]) != (height, width, 3) or pixels.dtype != np.float32:
        raise WeightsError(
            f"{where}: the program takes ({', '.join(map(_aval, exported.in_avals))}), "
            f"not float32[b,{height},{width},3] as its manifest says: export it again"
        )
    given = trees.tree_unflatten(exported.out_tree, exported.out_avals)
    given = given if isinstance(given, dict) else {}
    if missing := sorted(manifest.representations.keys() - given.keys()):
        raise WeightsError(
            f"{where}: its manifest names '{missing[0]}', which the program does not give (it gives: "
            f"{', '.join(map(str, given)) or 'no dict of arrays'}): export it again"
        )
    for name, dim in manifest.representations.items():
        value = given[name]
        if not _is_pooled(jax, value, pixels.shape[0]) or value.shape[1] != dim:
            raise WeightsError(
                f"{where}: the program's '{name}' is {_aval(value)}, not [b,{dim}] as its manifest says: export it again"
            )


def find_devices(jax: Any, platforms: Sequence[str], where: str) -> dict[str, Any]:
    """The first device that JAX has of each platform that the program was exported for.

    Raises:
        WeightsError: It has none.
    """
    found = {}
    for platform in platforms:
        try:
            found[platform] = jax.devices(platform)[0]
        except RuntimeError:
            continue
    if not found:
        raise WeightsError(
            f"{where}: the program was exported for {', '.join(platforms)} only, and JAX here has {jax.default_backend()}: "
            f"export it again with platforms=('{jax.default_backend()}',)"
        )
    return found


def unreadable(jax: Any, error: Exception, manifest: Manifest, where: str) -> VitbenchError:
    """The error for a program that JAX cannot read: newer than this JAX, older than it reads, or broken."""
    made, here = manifest.jax_version, jax.__version__
    if _numbers(made) > _numbers(here):
        what = f"was made by JAX {made}, newer than the {here} here, which cannot read it"
        advice = "update jax, or export it again with the older one"
    elif _numbers(made) < _numbers(here):
        what = f"was made by JAX {made}, and JAX {here} no longer reads it"
        advice = "export it again, or install the older jax"
    else:
        what, advice = f"cannot be read by JAX {here}, which made it", "export it again"
    return WeightsError(f"{where}: the program {what} ({one_line(error)}): {advice}")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _is_pooled(jax: Any, value: Any, batch: Any) -> bool:
    return (
        len(value.shape) == 2
        and value.shape[0] == batch
        and isinstance(value.shape[1], int)
        and bool(jax.numpy.issubdtype(value.dtype, jax.numpy.floating))
    )


def _aval(value: Any) -> str:
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
