"""Label rules: VTAB's structured tasks at every edge, and every nesting in which files keep objects."""

from __future__ import annotations

import math
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from vitbench.errors import DataError
from vitbench.tasks.label_rules import apply_hits, apply_rule
from vitbench.tasks.source_spec import Count, FloorDivide, LabelRule, Offset, Threshold

X_POSITION = FloorDivide(kind="floor_divide", by=2)
ORIENTATION = FloorDivide(kind="floor_divide", by=2.5)
CLEVR_COUNT = Count(kind="count", add=-3)
CLEVR = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI = (-100.0, 8.0, 20.0, 999.0)
CLEVR_DISTANCE = Threshold(kind="threshold", thresholds=CLEVR, item=2)
KITTI_DISTANCE = Threshold(
    kind="threshold", thresholds=KITTI, field="location", item=2, types="type", below=3, sentinel=1000
)
PLAIN = Threshold(kind="threshold", thresholds=CLEVR)


def where(row: int) -> str:
    return f"row {row} (train.parquet)"


def apply(rule: LabelRule | None, values: Any, types: Any = None) -> list[int]:
    column = values if isinstance(values, np.ndarray | pa.ChunkedArray | pa.Array) else pa.array(values)
    labels = apply_rule(rule, column, where, "train.parquet: the label column 'label'", types)
    assert labels.dtype == np.int64
    return [int(label) for label in labels]


def reference(thresholds: tuple[float, ...], distance: float) -> int:
    """task_adaptation's own lines: `tf.reduce_max(tf.where((thrs - dist) < 0))`, in float32."""
    return int(np.flatnonzero(np.array(thresholds, np.float32) - np.float32(distance) < 0).max())


def edges(thresholds: tuple[float, ...]) -> list[float]:
    """Each threshold and its neighbours in float32."""
    return [
        float(value)
        for threshold in np.array(thresholds, np.float32)
        for value in (np.nextafter(threshold, np.float32(-1e9)), threshold, np.nextafter(threshold, np.float32(1e9)))
    ]


def test_every_dsprites_x_position() -> None:
    assert apply(X_POSITION, list(range(32))) == [label for label in range(16) for _ in range(2)]


def test_every_dsprites_orientation() -> None:
    labels = apply(ORIENTATION, list(range(40)))
    assert labels == [math.floor(np.float32(value) / np.float32(2.5)) for value in range(40)]
    assert labels[:11] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4]
    # 2.5 values a bucket: three, then two, all through.
    assert np.bincount(labels).tolist() == [3, 2] * 8


def test_clevr_counts_begin_at_three_objects() -> None:
    assert apply(CLEVR_COUNT, [[0] * count for count in range(3, 11)]) == list(range(8))
    with pytest.raises(DataError, match=r"row 1 \(train.parquet\): the label is -1 by the rule count"):
        apply(CLEVR_COUNT, [[0] * 3, [0] * 2])
    assert apply(Offset(kind="offset", add=-3), list(range(3, 11))) == list(range(8))
    assert apply(Count(kind="count"), pa.array([[], [1]], pa.list_(pa.int64()))) == [0, 1]


@pytest.mark.parametrize("distance", edges(CLEVR)[2:-1])
def test_every_edge_of_clevr_distance(distance: float) -> None:
    far = [1.0, 1.0, 99.0]
    assert apply(CLEVR_DISTANCE, [[far, [0.0, 0.0, distance]], [far]]) == [reference(CLEVR, distance), 5]


def test_clevr_has_six_buckets_and_each_can_be_reached() -> None:
    assert CLEVR_DISTANCE.buckets == 6
    assert apply(PLAIN, [0.5, 8.0, 8.25, 8.5, 8.75, 9.0, 9.25, 9.5, 9.75, 10.0, 10.5, 100.0]) == [
        *(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    ]


@pytest.mark.parametrize("distance", [0.0, -1.0, float(np.nextafter(np.float32(100), np.float32(200))), 1e9])
def test_a_distance_in_no_bucket_is_refused(distance: float) -> None:
    with pytest.raises(DataError, match=r"row 1 \(train.parquet\): the distance .* is in no bucket .* 0 to 100$"):
        apply(PLAIN, [5.0, distance])


@pytest.mark.parametrize("distance", edges(KITTI)[2:])
def test_every_edge_of_kitti_distance(distance: float) -> None:
    rows = [[{"type": 0, "location": [0.0, 0.0, distance]}, {"type": 2, "location": [0.0, 0.0, 999.5]}]]
    assert apply(KITTI_DISTANCE, rows) == [reference(KITTI, min(distance, 999.5))]


def test_kitti_has_four_buckets_of_which_the_last_is_no_vehicle() -> None:
    assert KITTI_DISTANCE.buckets == 4
    near = [0.0, 0.0, 1.0]
    rows = [
        [],
        [{"type": kind, "location": near} for kind in range(3, 8)],
        *([{"type": kind, "location": near}] for kind in range(3)),
        [{"type": 0, "location": [0.0, 0.0, -3.0]}],
    ]
    assert apply(KITTI_DISTANCE, rows) == [3, 3, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"row 0 .*the distance -100 is in no bucket"):
        apply(KITTI_DISTANCE, [[{"type": 0, "location": [0.0, 0.0, -100.0]}]])


def test_a_float64_file_is_rounded_as_the_reference_rounds() -> None:
    assert apply(PLAIN, [8.0 + 1e-9]) == [0]
    assert apply(PLAIN, pa.array([8.5], pa.float32())) == [1]


@given(st.lists(st.lists(st.floats(0.0625, 100, width=32), min_size=1, max_size=4), min_size=1, max_size=6))
def test_labels_are_total_and_in_range(rows: list[list[float]]) -> None:
    labels = apply(PLAIN, rows)
    assert labels == [reference(CLEVR, min(row)) for row in rows]
    assert all(0 <= label < PLAIN.buckets for label in labels)


OBJECTS = [
    [{"type": 0, "location": [1.0, 2.0, 30.0]}, {"type": 5, "location": [1.0, 2.0, 3.0]}],
    [],
    [{"type": 2, "location": [9.0, 9.0, 12.0]}],
]
EXPECTED = [2, 3, 1]
LOCATIONS = [[item["location"] for item in row] for row in OBJECTS]
TYPES = [[item["type"] for item in row] for row in OBJECTS]
TRIPLE = pa.list_(pa.float32(), 3)


def as_lists_of_structs() -> pa.Array:
    return pa.array(OBJECTS)


def as_struct_of_lists() -> pa.Array:
    rows = [{"type": types, "location": places} for types, places in zip(TYPES, LOCATIONS, strict=True)]
    return pa.array(rows, pa.struct([("type", pa.list_(pa.int64())), ("location", pa.list_(TRIPLE))]))


def as_large_lists() -> pa.Array:
    item = pa.struct([("type", pa.int8()), ("location", pa.large_list(pa.float64()))])
    return pa.array(OBJECTS, pa.large_list(item))


def as_datasets_keeps_a_sequence() -> pa.ChunkedArray:
    features = datasets.Features(
        {
            "objects": datasets.Sequence(
                {
                    "type": datasets.ClassLabel(num_classes=8),
                    "location": datasets.Sequence(datasets.Value("float32"), 3),
                }
            )
        }
    )
    rows = [{"type": types, "location": places} for types, places in zip(TYPES, LOCATIONS, strict=True)]
    return datasets.Dataset.from_dict({"objects": rows}, features=features).data.column("objects")


@pytest.mark.parametrize(
    "make", [as_lists_of_structs, as_struct_of_lists, as_large_lists, as_datasets_keeps_a_sequence]
)
def test_objects_in_every_nesting(make: Any) -> None:
    column = make()
    assert apply(KITTI_DISTANCE, column) == EXPECTED
    assert apply(Count(kind="count"), column) == [2, 0, 1]
    assert apply(KITTI_DISTANCE, column.slice(1)) == EXPECTED[1:]
    assert apply(KITTI_DISTANCE, pa.chunked_array([*_chunks(column.slice(2)), *_chunks(column)])) == [1, *EXPECTED]


def _chunks(column: Any) -> list[Any]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def test_types_in_another_column() -> None:
    rule = Threshold(kind="threshold", thresholds=KITTI, item=2, types="type", below=3, sentinel=1000)
    assert apply(rule, LOCATIONS, pa.array(TYPES, pa.list_(pa.int64()))) == EXPECTED
    with pytest.raises(DataError, match=r"row 1 .*there are not as many types as objects"):
        apply(rule, LOCATIONS, pa.array([TYPES[0], [1], TYPES[2]]))
    with pytest.raises(DataError, match=r"there is no field or column 'type'"):
        apply(rule, LOCATIONS)


def test_an_array_of_the_hub_is_a_list() -> None:
    features = datasets.Features({"coords": datasets.Array2D((None, 3), "float32")})
    data = datasets.Dataset.from_dict({"coords": [[[1.0, 2.0, 9.75]], [[1.0, 2.0, 8.1]]]}, features=features)
    assert apply(CLEVR_DISTANCE, data.data.column("coords")) == [4, 1]


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        (None, ["cat"], r"holds string, not whole numbers from 0: number the classes, and list their names"),
        (None, [0.0, 1.0], r"train.parquet: the label column 'label' holds double, not whole numbers"),
        (None, [0, None], r"is empty in 1 rows, the first of them row 1 \(train.parquet\)"),
        (None, [0, -1], r"row 1 \(train.parquet\): the label is -1, .* hide their test labels"),
        (None, [0, -2], r"row 1 \(train.parquet\): the label is -2, and labels are whole numbers from 0$"),
        (None, np.array([0, 2**63], np.uint64), r"^label 9223372036854775808 at row 1 \(train.parquet\): labels are class"),
        (None, [5, 1_000_000], r"^label 1000000 at row 1 \(train.parquet\): labels are class numbers from 0, below 1,000,000$"),
        (Offset(kind="offset", add=2**63 - 1), [0, 1], r"^label 9223372036854775807 at row 0 "),
        (Offset(kind="offset", add=-(2**63)), [-1], r"row 0 .*: the label is -9223372036854775808 by the rule offset"),
        (Count(kind="count", add=2**63 - 1), [[1]], r"^label 9223372036854775807 at row 0 "),
        (FloorDivide(kind="floor_divide", by=1e-6), [0.0, 1e300], r"^label 1e\+306 at row 1 "),
        (FloorDivide(kind="floor_divide", by=1e-6), [1e308], r"^label inf at row 0 "),
        (FloorDivide(kind="floor_divide", by=1e-6), [-1e308], r"row 0 .*: the label is -inf by the rule floor_divide"),
        (PLAIN, [1e300], r"row 0 .*: the distance inf is in no bucket"),
        (None, np.array([1j]), r"holds complex128, which cannot be labels"),
        (X_POSITION, ["a"], r"holds string where the label_rule needs numbers"),
        (X_POSITION, [1.0, math.nan], r"row 1 .*the value is nan, which has no label"),
        (X_POSITION, [-1], r"row 0 .*the label is -1 by the rule floor_divide"),
        (Offset(kind="offset", add=-3), [2], r"the label is -1 by the rule offset"),
        (CLEVR_COUNT, [3], r"holds int64, not lists whose items can be counted"),
        (CLEVR_COUNT, [[1, 2, 3], None], r"is empty in 1 rows, the first of them row 1"),
        (Count(kind="count"), [{"a": [1], "b": [1, 2]}], r"row 0 .*: the lists of .* differ in length"),
        (Count(kind="count"), [{"a": 1}], r"mappings without a list"),
        (PLAIN, [[5.0], []], r"row 1 .*no object counts, so there is no distance: the label_rule needs a sentinel"),
        (PLAIN, [[5.0], [None]], r"is empty in 1 rows, the first of them row 1"),
        (PLAIN, [[5.0, math.inf]], r"row 0 .*the value is inf"),
        (PLAIN, [[[1.0, 2.0]]], r"objects are lists of numbers: say by label_rule.item"),
        (CLEVR_DISTANCE, [[1.0]], r"objects are no lists of numbers: label_rule.item has no meaning"),
        (CLEVR_DISTANCE, [[[1.0, 2.0]]], r"an object has no number 2 \(label_rule.item counts from 0\)"),
        (KITTI_DISTANCE, LOCATIONS, r"holds no mappings: label_rule.field has no meaning"),
        (KITTI_DISTANCE, [[{"type": 0, "locations": [0.0]}]], r"without the field 'location' .*did you mean 'locations'"),
        (KITTI_DISTANCE, [[{"location": [0.0, 0.0, 1.0]}]], r"no field or column 'type' with the objects' types"),
        (KITTI_DISTANCE, [[{"type": "Car", "location": [0.0, 0.0, 1.0]}]], r"the types 'type' of .* holds string"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_what_is_no_label_is_refused_in_one_line(rule: LabelRule | None, values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        apply(rule, values)
    assert "\n" not in str(caught.value)


def test_values_of_any_layout_become_labels() -> None:
    assert apply(None, np.array([0, 3], ">i2")) == [0, 3]
    assert apply(None, np.array([0, 250], np.uint8)) == [0, 250]
    assert apply(None, pa.chunked_array([[0], [1, 2]], pa.uint64())) == [0, 1, 2]
    assert apply(None, np.empty(0, np.int64)) == []


def test_booleans_are_labels() -> None:
    assert apply(None, [True, False, True]) == [1, 0, 1]
    assert apply(None, np.array([False, True])) == [0, 1]
    assert apply(Offset(kind="offset", add=1), [True, False]) == [2, 1]


def test_the_largest_label() -> None:
    assert apply(None, [999_999]) == [999_999]
    assert apply(Offset(kind="offset", add=-(10**15)), [10**15 + 7]) == [7]


UNBOUNDED: list[tuple[type[BaseModel], dict[str, Any], str]] = [
    (Offset, {"kind": "offset", "add": 10**30}, "less than or equal"),
    (Count, {"kind": "count", "add": -(10**30)}, "greater than or equal"),
    (FloorDivide, {"kind": "floor_divide", "by": math.inf}, "by"),
    (FloorDivide, {"kind": "floor_divide", "by": math.nan}, "by"),
    (FloorDivide, {"kind": "floor_divide", "by": 1e-300}, "greater than or equal"),
    (Threshold, {"kind": "threshold", "thresholds": (-1, math.nan, 5)}, "thresholds.1"),
    (Threshold, {"kind": "threshold", "thresholds": (-1, 1e300)}, "thresholds.1"),
    (Threshold, {"kind": "threshold", "thresholds": (-1, 5), "sentinel": math.nan}, "sentinel"),
    (Threshold, {"kind": "threshold", "thresholds": (-1, 5), "sentinel": math.inf}, "sentinel"),
    (Threshold, {"kind": "threshold", "thresholds": (-1, 5), "item": 10**30}, "item"),
]


def test_a_rule_that_cannot_be_meant_is_refused() -> None:
    for thresholds, message in (((0, 0), "must increase, got 0, 0"), ((1, 3, 2), "must increase, got 1, 3, 2")):
        with pytest.raises(ValidationError, match=message):
            Threshold(kind="threshold", thresholds=thresholds)
    for model, fields, message in UNBOUNDED:
        with pytest.raises(ValidationError, match=message):
            model.model_validate(fields)
    with pytest.raises(ValidationError, match="types and below are given together"):
        Threshold(kind="threshold", thresholds=(0, 1), types="type")


@pytest.mark.parametrize(("sentinel", "buckets"), [(None, 6), (5.0, 6), (100.0, 6), (101.0, 7)])
def test_the_number_of_buckets(sentinel: float | None, buckets: int) -> None:
    rule = Threshold(kind="threshold", thresholds=CLEVR, sentinel=sentinel)
    assert rule.buckets == buckets
    if sentinel is not None:
        empty = pa.array([[]], pa.list_(pa.float32()))
        assert apply(rule, empty) == [reference(CLEVR, sentinel)]
        assert apply(rule, empty)[0] < buckets


def test_hits() -> None:
    sets = apply_hits(pa.array([[1, 2], [], [0]]), where, "the hits column 'real'", 3)
    assert sets.values.tolist() == [1, 2, 0]
    assert sets.starts.tolist() == [0, 2, 2, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "the hits column 'real' holds int64, not lists of whole numbers"),
        ([[1], None], "the hits column 'real' is empty in 1 rows, the first of them row 1"),
        ([[1], [0, None]], "the hits column 'real' is empty in 1 rows, the first of them row 1"),
        ([["a"]], "the hits column 'real' holds string, not whole numbers"),
        (
            [[True, False, True]],
            "holds list<.*bool>: list the numbers of the right classes, not a flag for every class",
        ),
        ([[], [0], [1, -1]], "row 2 .train.parquet.: the label is -1"),
        ([[], [0], [1, 3]], "row 2 .train.parquet.: the label 3 of the hits column 'real' is outside 0 to 2"),
    ],
)
def test_bad_hits(values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        apply_hits(pa.array(values), where, "the hits column 'real'", 3)
