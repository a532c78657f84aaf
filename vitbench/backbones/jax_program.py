"""A `.jaxexport` file: one zip of `manifest.json` and `program.bin`.

The program is what `jax.export` serialises; the manifest says what the program cannot: how pixels are prepared, what the outputs
are called, where the weights come from. Both are in one file, so that neither is lost or paired with another's. The same program
and manifest always make the same bytes. Nothing here needs jax, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vitbench.backbones.spec import Atom, parse_representation
from vitbench.errors import UsageError, WeightsError
from vitbench.records.atomic import write_file

FORMAT = "vitbench-jaxexport"
MANIFEST, PROGRAM = "manifest.json", "program.bin"
MANIFEST_LIMIT = 2**20
EPOCH = (1980, 1, 1, 0, 0, 0)

_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)


class Manifest(BaseModel):
    """What a program is. Every name is one of the program's outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    format: Literal["vitbench-jaxexport"] = Field("vitbench-jaxexport", description="what kind of file this is")
    version: Literal[1] = Field(1, description="version of the manifest's fields")
    architecture: str = Field(min_length=1, description="the model, in the author's words, for the identity of results")
    resolution: tuple[int, int] = Field(description="height and width in pixels of what the program takes")
    preprocessing: str = Field(min_length=1, description="preprocessing string (vitbench.tasks.transforms)")
    mean: tuple[float, float, float] = Field(
        description="per-channel mean of the model's normalisation, pixels in [0, 1]"
    )
    std: tuple[float, float, float] = Field(description="per-channel standard deviation of the same")
    representations: dict[str, int] = Field(min_length=1, description="output name (cls, gap@6, map) to its length D")
    aliases: dict[str, str] = Field(default={}, description="output name to the output that it equals exactly")
    depth: int = Field(0, ge=0, description="number of blocks; 0 when no output carries a layer")
    num_parameters: int = Field(0, ge=0, description="number of parameters; 0 when nobody counted")
    notes: tuple[str, ...] = Field((), description="lines on the weights that a careful reader wants to see")
    jax_version: str = Field(description="the JAX that exported the program")
    program_bytes: int = Field(gt=0, description="size of the program")
    program_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the program")

    @property
    def atoms(self) -> dict[Atom, int]:
        """The outputs as atoms, with the length of each."""
        return {parse_representation(name)[0]: dim for name, dim in self.representations.items()}

    @model_validator(mode="after")
    def _check_names(self) -> Manifest:
        for name, dim in self.representations.items():
            if dim < 1:
                raise ValueError(f"representation '{name}' has {dim} dimensions")
            try:
                parts = parse_representation(name)
            except UsageError as error:
                raise ValueError(
                    f"'{name}' is no name of an output: write cls, gap, map, or a layer as in cls@6"
                ) from error
            if len(parts) != 1 or (parts[0].layer or 0) < 0 or str(parts[0]) != name:
                raise ValueError(f"'{name}' is no name of an output: write cls, gap, map, or a layer as in cls@6")
        dims: dict[int, int] = {}
        for atom, dim in self.atoms.items():
            if atom.layer is None:
                continue
            if atom.layer > self.depth:
                raise ValueError(f"'{atom}' is beyond depth {self.depth}: give depth, the number of the model's blocks")
            if atom.pooling not in self.representations:
                raise ValueError(f"'{atom}' is given without '{atom.pooling}', the same at the model's output")
            if dims.setdefault(atom.layer, dim) != dim:
                raise ValueError(f"the outputs of layer {atom.layer} differ in length ({dims[atom.layer]} and {dim})")
        for name, target in self.aliases.items():
            if not {name, target} <= self.representations.keys() or name == target:
                raise ValueError(f"alias '{name}' of '{target}': both must be outputs")
        if min(self.resolution) < 1:
            raise ValueError("resolution must be above 0")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self


def problem(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong with a manifest, in one line."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    return f"{field}: {message[0].lower()}{message[1:]}" if field else message


def write_program(path: Path, manifest: Manifest, program: bytes) -> None:
    """Write a `.jaxexport` file, whole or not at all; equal input makes equal bytes.

    Raises:
        StoreError: It cannot be written.
    """
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, content in ((MANIFEST, text.encode()), (PROGRAM, program)):
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                archive.writestr(entry, content)

    write_file(path, write)


def read_program(path: Path) -> tuple[Manifest, bytearray]:
    """Read a `.jaxexport` file: its manifest, and the program, which is what the manifest says, to the bit.

    Raises:
        WeightsError: It is no such file, or is truncated or damaged, or its manifest says what cannot be.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
        if not head.startswith(b"PK"):
            kind = "a pickle, which is never read" if head.startswith(b"\x80") else f"it begins with {head!r}"
            raise WeightsError(
                f"'{path}' is no .jaxexport file ({kind}): make one with vitbench.backbones.jax_export.save"
            )
        with zipfile.ZipFile(path) as archive:
            if missing := {MANIFEST, PROGRAM} - set(archive.namelist()):
                raise WeightsError(
                    f"'{path}' has no {' and no '.join(sorted(missing))}, so it is no .jaxexport file: "
                    "make one with vitbench.backbones.jax_export.save"
                )
            if archive.getinfo(MANIFEST).file_size > MANIFEST_LIMIT:
                raise WeightsError(f"'{path}': its {MANIFEST} is over {MANIFEST_LIMIT} bytes, which no manifest is")
            manifest = _parse_manifest(archive.read(MANIFEST), path)
            # Checked before reading, so that a small file cannot unpack to a huge one.
            if (size := archive.getinfo(PROGRAM).file_size) != manifest.program_bytes:
                raise WeightsError(
                    f"'{path}': its program has {size} bytes, and its manifest says {manifest.program_bytes}: "
                    "fetch or export it again"
                )
            program = bytearray(archive.read(PROGRAM))
    except _READ_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise WeightsError(f"'{path}' is truncated or damaged ({reason}): fetch or export it again") from error
    if hashlib.sha256(program).hexdigest() != manifest.program_sha256:
        raise WeightsError(
            f"'{path}' is damaged: its program is not the one that its manifest names: fetch or export it again"
        )
    return manifest, program


def _parse_manifest(text: bytes, path: Path) -> Manifest:
    fields = json.loads(text)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise WeightsError(f"'{path}': its {MANIFEST} is not that of a .jaxexport file (format is not '{FORMAT}')")
    if fields.get("version") != 1:
        raise WeightsError(
            f"'{path}' is of version {fields.get('version')} of the format, and this vitbench reads version 1: update vitbench"
        )
    try:
        return Manifest.model_validate(fields)
    except pydantic.ValidationError as error:
        raise WeightsError(f"'{path}': its {MANIFEST} cannot be meant: {problem(error)}") from error
