from __future__ import annotations

import pytest
import torch

from vitbench.solvers import products


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WORTHWHILE", 0)


@pytest.mark.parametrize(("rows", "features", "columns"), [(3, 5, 4), (100, 700, 90), (1000, 257, 33), (2000, 4, 600)])
def test_a_product_is_that_of_float32(rows: int, features: int, columns: int) -> None:
    rng = torch.Generator().manual_seed(rows)
    x, matrix = torch.randn(rows, features, generator=rng), torch.randn(features, columns, generator=rng)
    exact = x.double() @ matrix.double()
    bound = (features + 2) * 2.0**-24 * (x.double().abs() @ matrix.double().abs())
    multiply = products.times(matrix, rows)
    for part in (x, x[:1], x[:0]):
        found = multiply(part)
        assert found.dtype == torch.float32
        assert ((found - exact[: len(part)]).abs() <= bound[: len(part)]).all()


def test_other_dtypes_keep_theirs() -> None:
    x, matrix = torch.ones(3000, 50, dtype=torch.float64), torch.ones(50, 60, dtype=torch.float64)
    assert torch.equal(products.times(matrix, len(x))(x), x @ matrix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_that_round_what_they_multiply_are_found_out(dtype: torch.dtype) -> None:
    matrix = torch.randn(200, 60, generator=torch.Generator().manual_seed(0))

    def rounds(value: torch.Tensor) -> torch.Tensor:
        return value.to(dtype).to(torch.float32)

    assert products._in_full(lambda x: x @ matrix, matrix)
    assert not products._in_full(lambda x: rounds(x) @ matrix, matrix)
    assert not products._in_full(lambda x: x @ rounds(matrix), matrix)
    ones = torch.ones(200, 60)
    assert not products._in_full(lambda x: rounds(x) @ ones, ones), "a matrix that no rounding changes"


def test_where_onednn_refuses_the_plain_product_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(products, "_in_full", refuse)
    x, matrix = torch.randn(2000, 100), torch.randn(100, 60)
    assert torch.equal(products.times(matrix, len(x))(x), x @ matrix)
