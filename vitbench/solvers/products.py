"""Products of many rows with one float32 matrix, by the faster of the two libraries that torch multiplies with on a CPU.

torch multiplies float32 matrices on x86 by MKL. On a processor with AVX-512 that is not Intel's MKL takes a generic path, and
oneDNN, which torch brings along for convolutions, takes half as long; on Intel's own they are as fast. Both sum the same float32
products, in another order. oneDNN can be told to round what it multiplies (by a setting of torch's, or a variable of the
environment), and a bound on float32's rounding would not hold then; so a matrix is tried first, on rows of which the exact
product is known.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WORTHWHILE = 1 << 27
"""Multiplications below which laying out and trying a matrix, 0.3 ms, does not repay: 1,750 rows, 768 features, 100 classes."""

_UNIT = 2.0**-24


def float32_is_float32() -> bool:
    """Whether products of float32 matrices are computed as such: not in bfloat16 or TF32, as a process may have asked for.

    torch refuses to say where the process has asked by newer names, backend by backend; that counts as no.
    """
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        return False


def times(matrix: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """The product with a matrix: `x` `[n, D]`, contiguous, to `x @ matrix` `[n, K]`, of one dtype, in it throughout.

    Args:
        matrix: `[D, K]`; only of float32 is there a choice. A later change to it may or may not have an effect.
        rows: How many rows it is expected to be multiplied with in all; any number is right.
    """
    packed = _packed(matrix, rows)
    return packed if packed is not None else lambda x: x @ matrix


def _packed(matrix: Tensor, rows: int) -> Callable[[Tensor], Tensor] | None:
    """The product by oneDNN; None where it does not repay, is not there, refuses, or rounds what it multiplies."""
    if matrix.dtype != torch.float32 or matrix.device.type != "cpu" or rows * matrix.numel() < WORTHWHILE:
        return None
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.enabled:
        return None
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(matrix.T.contiguous(), rows)

        def product(x: Tensor) -> Tensor:
            found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            return found

        return product if _in_full(product, matrix) else None
    except (AttributeError, RuntimeError):
        return None


def _in_full(product: Callable[[Tensor], Tensor], matrix: Tensor) -> bool:
    """Whether a product rounds nothing but its result.

    Row d of the trial is 1 + 2⁻²² in column d and 0 elsewhere, so that its product with the matrix is row d of that, times
    1 + 2⁻²², and its rounding to float32 is all that may be off. With fewer bits than float32 has, the factor would be lost.
    """
    size = min(16, len(matrix))
    trial = torch.zeros(size, len(matrix)).fill_diagonal_(1 + 2.0**-22)
    expected = matrix[:size].to(torch.float64) * (1 + 2.0**-22)
    found = product(trial)
    return bool(((found - expected).abs() <= 2 * _UNIT * expected.abs()).all())
