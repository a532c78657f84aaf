from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vitbench.errors import StoreError
from vitbench.records.costs import Cost, cost_path, read_cost, read_costs, write_cost
from vitbench.records.provenance import provenance


def make_cost(**changes: Any) -> Cost:
    fields: dict[str, Any] = {
        "backbone": "timm:vit_tiny_patch16_224",
        "backbone_name": "timm-vit_tiny_patch16_224-abcd",
        "architecture": "timm:vit",
        "input_size": (224, 224),
        "dtype": "float32",
        "device": "cpu (A Processor, 2 threads)",
        "num_parameters": 5_500_000,
        "representations": {"cls": 192, "gap": 192},
        "flops": 2_500_000_000,
        "images_per_second": 20.0,
        "batch_size": 32,
        "batch_seconds": [1.6, 1.5, 1.7],
        "memory_bytes": 150_000_000,
        "memory_method": "weights + growth",
        "provenance": provenance("a test", "cpu", []),
    }
    return Cost(**(fields | changes))


def test_a_measurement_comes_back_as_it_was(tmp_path: Path) -> None:
    cost = make_cost(flops=None, memory_bytes=None)
    path = write_cost(tmp_path, cost)
    assert path.parent == tmp_path / "costs"
    assert path.name == "timm-vit_tiny_patch16_224-abcd-cpu-A-Processor-2-threads-224x224-float32.json"
    assert read_cost(path) == cost
    assert read_costs(tmp_path) == ([cost], [])
    assert not list(path.parent.glob(".tmp-*"))


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": (384, 384)},
        {"dtype": "bfloat16"},
        {"device": "cuda (NVIDIA H200)"},
        {"backbone_name": "other-abcd"},
    ],
)
def test_what_is_another_computation_or_device_is_another_file(tmp_path: Path, change: dict[str, Any]) -> None:
    write_cost(tmp_path, make_cost())
    write_cost(tmp_path, make_cost(**change))
    assert len(read_costs(tmp_path)[0]) == 2


def test_a_new_measurement_takes_the_old_ones_place(tmp_path: Path) -> None:
    write_cost(tmp_path, make_cost())
    write_cost(tmp_path, make_cost(images_per_second=99.0))
    assert [cost.images_per_second for cost in read_costs(tmp_path)[0]] == [99.0]


def test_names_never_climb_out_of_the_folder(tmp_path: Path) -> None:
    cost = make_cost(backbone_name="../../etc/x", device="cuda (../..)", dtype="../float32")
    assert cost_path(tmp_path, cost).resolve().parent == (tmp_path / "costs").resolve()


def test_costs_are_found_from_the_records_too(tmp_path: Path) -> None:
    write_cost(tmp_path, make_cost())
    inside = tmp_path / "records" / "a" / "b"
    inside.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "records", inside):
        assert len(read_costs(place)[0]) == 1
    assert read_costs(tmp_path / "nothing") == ([], [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSON"),
        (json.dumps({"schema_version": 2}), "schema_version"),
        ("[]", "object"),
    ],
)
def test_a_damaged_measurement_is_named_and_left_out(tmp_path: Path, text: str, reason: str) -> None:
    path = write_cost(tmp_path, make_cost())
    write_cost(tmp_path, make_cost(dtype="bfloat16"))
    path.write_text(text)
    found, damaged = read_costs(tmp_path)
    assert [cost.dtype for cost in found] == ["bfloat16"]
    assert len(damaged) == 1
    assert str(path) in damaged[0]
    assert reason in damaged[0]
    assert "vitbench cost" in damaged[0]
    with pytest.raises(StoreError):
        read_cost(path)


def test_an_unknown_field_or_a_nonsense_value_is_refused() -> None:
    with pytest.raises(ValidationError, match="other"):
        make_cost(other=1)
    with pytest.raises(ValidationError, match="images_per_second"):
        make_cost(images_per_second=0.0)
