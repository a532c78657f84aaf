"""The arrays of a JAX checkpoint in an `.npz` file, read on demand and never unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from vitbench.errors import WeightsError, listed, one_line

FloatArray = npt.NDArray[np.float32]
Shape = tuple[int, ...]

_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)


class NpzArrays:
    """The arrays of an open `.npz` file, read when asked for.

    Attributes:
        path: Where the file is, for messages.
        keys: Names of its arrays.
        bfloat16: Whether any array read so far was stored as bfloat16.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self.path = path
        self.keys = frozenset(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
        self.bfloat16 = False

    def shape(self, key: str) -> Shape:
        """Shape of array `key`, from its header alone."""
        with self._member(key) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
            return tuple(read(member)[0])

    def read(self, key: str) -> FloatArray:
        """Array `key` as float32.

        Raises:
            WeightsError: The array is missing, damaged, not of floating type, or not finite.
        """
        with self._member(key) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
        if array.dtype == np.dtype("V2"):
            self.bfloat16 = True
            array = decode_bfloat16(array)
        elif array.dtype.kind != "f":
            raise WeightsError(f"'{self.path}': array '{key}' holds {array.dtype}, not floating-point numbers")
        if not np.isfinite(array).all():
            raise WeightsError(
                f"'{self.path}': array '{key}' holds values that are not finite: the checkpoint is broken"
            )
        return array.astype(np.float32, copy=False)

    @contextmanager
    def _member(self, key: str) -> Iterator[IO[bytes]]:
        if key not in self.keys:
            raise missing_arrays(self.path, [key])
        try:
            with self._archive.open(f"{key}.npy") as member:
                yield member
        except _READ_ERRORS as error:
            if "allow_pickle" in str(error):
                raise WeightsError(
                    f"'{self.path}': array '{key}' holds pickled objects, which are never read"
                ) from error
            raise WeightsError(
                f"'{self.path}' is damaged at array '{key}' ({one_line(error)}): fetch the file again"
            ) from error


def decode_bfloat16(array: npt.NDArray[np.void]) -> FloatArray:
    """Read bfloat16, which npz files hold as raw two-byte `|V2`, as float32.

    A bfloat16 is the upper half of the float32 of the same value: shift its 16 bits up and fill with zeros.
    """
    bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32)
    return (bits << np.uint32(16)).view(np.float32).reshape(array.shape)


PICKLES = (b"\x02", b"\x03", b"\x04", b"\x05")
"""What follows the first byte, 0x80, of a pickle: its protocol."""


@contextmanager
def open_npz(path: Path) -> Iterator[NpzArrays]:
    """Open an `.npz` file. Nothing in it is ever unpickled.

    Raises:
        WeightsError: The file is no complete zip archive.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(24)
        if not head.startswith(b"PK"):
            kind = (
                "a pickle, which is never read"
                if head[:1] == b"\x80" and head[1:2] in PICKLES
                else f"it begins with {head!r}"
            )
            raise WeightsError(f"'{path}' is no .npz archive ({kind}): fetch the checkpoint again")
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"'{path}' is no complete .npz archive ({one_line(error)}): it is truncated or damaged, fetch it again"
        ) from error
    with archive:
        yield NpzArrays(archive, path)


def missing_arrays(path: Path, keys: Sequence[str]) -> WeightsError:
    """The error for arrays that the model needs and the file lacks."""
    return WeightsError(
        f"'{path}' lacks array {listed([repr(key) for key in keys], 1)}: the checkpoint is incomplete, or of an unknown layout"
    )
