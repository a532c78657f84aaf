"""Identity: what must be equal for a feature or a result to be used again.

The lists below are allow-lists. What is in them can change a number; what is not in them cannot, or is none of the result's
business: device, batch size, worker count, executor, output path, how a spec was spelled. A golden test pins the keys; whoever
changes a list or the meaning of a field raises `IDENTITY_VERSION`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

IDENTITY_VERSION = 1

FEATURE_FIELDS = ("architecture", "dtype", "preprocessing", "split_fingerprint", "weights")
"""What decides the features of one row of a split, apart from the representation."""

RECORD_FIELDS = (
    "architecture",
    "dtype",
    "limit",
    "num_classes",
    "parameters",
    "preprocessing",
    "protocol",
    "representation",
    "seed",
    "shot",
    "test_fingerprint",
    "train_fingerprint",
    "weights",
)
"""What decides the outcome that one record holds."""

DEFAULTS: Mapping[str, Any] = {"features_dtype": "float32"}
"""Fields that came later, with the value that everything before them had. Such a field is in an identity only where it has
another value, so that features and records keep their keys: `features_dtype`, what a feature was rounded to before use."""


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def identity(fields: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """The identity made of exactly `fields`, in order of name, with the version of the scheme.

    Args:
        fields: `FEATURE_FIELDS` or `RECORD_FIELDS`.
        values: Field to value; those of `DEFAULTS` may be among them.

    Raises:
        ValueError: `values` has other fields than these.
    """
    if not set(fields) <= set(values) <= {*fields, *DEFAULTS}:
        raise ValueError(f"an identity of {sorted(fields)} cannot be made of {sorted(values)}")
    kept = {name: value for name, value in values.items() if name in fields or value != DEFAULTS[name]}
    return {"identity_version": IDENTITY_VERSION, **{name: kept[name] for name in sorted(kept)}}


def key(identity: Mapping[str, Any]) -> str:
    """The name of an identity: the first 20 hexadecimal digits (80 bits) of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:20]
