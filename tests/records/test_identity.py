from __future__ import annotations

import pytest

from vitbench.records.identity import FEATURE_FIELDS, RECORD_FIELDS, canonical_json, identity, key

FEATURES = {
    "architecture": "timm:vit_tiny_patch16_224",
    "dtype": "float32",
    "preprocessing": "resize(224x224,bicubic)|normalize(0.5,0.5)",
    "split_fingerprint": "00ff",
    "weights": "abcd",
}
RECORD = {
    "architecture": "timm:vit_tiny_patch16_224",
    "dtype": "float32",
    "limit": None,
    "num_classes": 10,
    "parameters": {"l2": "paper"},
    "preprocessing": "resize(224x224,bicubic)|normalize(0.5,0.5)",
    "protocol": "fewshot",
    "representation": "cls",
    "seed": 0,
    "shot": 5,
    "test_fingerprint": "11",
    "train_fingerprint": "22",
    "weights": "abcd",
}


def test_the_keys_are_pinned() -> None:
    """These keys name files on people's disks: a change here means a new IDENTITY_VERSION."""
    assert key(identity(FEATURE_FIELDS, FEATURES)) == "fef281699673c084adeb"
    assert key(identity(RECORD_FIELDS, RECORD)) == "d8bcec07ea9fdbc56176"


def test_canonical_json_is_sorted_tight_and_ascii() -> None:
    assert canonical_json({"b": 1, "a": [None, True, 0.5, "é"]}) == '{"a":[null,true,0.5,"\\u00e9"],"b":1}'
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


@pytest.mark.parametrize("field", RECORD_FIELDS)
def test_every_field_changes_the_key(field: str) -> None:
    changed = RECORD | {field: "something else"}
    assert key(identity(RECORD_FIELDS, changed)) != key(identity(RECORD_FIELDS, RECORD))


def test_only_the_allowed_fields_are_taken() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        identity(RECORD_FIELDS, RECORD | {"batch_size": 8})
    with pytest.raises(ValueError):
        identity(RECORD_FIELDS, {name: value for name, value in RECORD.items() if name != "seed"})


@pytest.mark.parametrize(("fields", "values"), [(FEATURE_FIELDS, FEATURES), (RECORD_FIELDS, RECORD)])
def test_a_field_that_came_later_changes_a_key_only_where_it_has_another_value(
    fields: tuple[str, ...], values: dict[str, object]
) -> None:
    before = identity(fields, values)
    assert identity(fields, values | {"features_dtype": "float32"}) == before
    half = identity(fields, values | {"features_dtype": "float16"})
    assert half == before | {"features_dtype": "float16"}
    assert key(half) != key(before)
