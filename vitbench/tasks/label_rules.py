"""From a column of values to labels: the rules of task files, by which VTAB's structured tasks make classes of measurements.

The column is an arrow column as parquet files hold it, nested or not, or a NumPy array. What cannot be a label is refused with
the row that holds it; nothing is clipped or rounded into range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vitbench.errors import DataError, nearest
from vitbench.tasks.source_spec import Count, FloorDivide, LabelRule, Offset, Threshold
from vitbench.tasks.sources.rows import LABEL_LIMIT, IntArray, LabelSets, no_label

Where = Callable[[int], str]
Column = Any
"""A `pyarrow.ChunkedArray` or `pyarrow.Array`: pyarrow has no types that mypy can read."""


def apply_rule(
    rule: LabelRule | None,
    values: Column | npt.NDArray[Any],
    where: Where,
    column: str = "the label column",
    types: Column | None = None,
) -> IntArray:
    """Turn the values of a label column into labels.

    Args:
        rule: The task file's rule; None where the values are the labels.
        values: `[N]`: an arrow column (numbers, lists, mappings, and lists or mappings of these) or an array of numbers.
        where: Row to where it is, for messages.
        column: What the values are to the user, for messages: `train.parquet: the label column 'label'`.
        types: The column of the objects' types, where a `Threshold` finds them in another column than the distances.

    Returns:
        `[N]` int64, from 0 to below `LABEL_LIMIT`. Booleans are 0 and 1.

    Raises:
        DataError: A value is missing, of the wrong type or shape, or has no label by the rule; its row is named.
    """
    try:
        values = _plain(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{column} holds {values.dtype}, which cannot be labels") from error
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    labels: npt.NDArray[Any]
    match rule:
        case None:
            labels = _integers(values, where, column)
        case Offset():
            labels = _add(_integers(values, where, column), rule.add)
        case FloorDivide():
            with np.errstate(over="ignore"):  # to infinity, which is refused below
                labels = np.floor(_numbers(values, where, column) / rule.by)
        case Count():
            labels = _add(_counts(values, where, column), rule.add)
        case Threshold():
            labels = _buckets(rule, values, where, column, None if types is None else _plain(types))
    if len(labels) and labels.min() < 0:
        row = int(np.argmax(labels < 0))
        made = f" by the rule {rule.kind}" if rule else ""
        hidden = " (-1 is how some data sets hide their test labels)" if rule is None and labels[row] == -1 else ""
        raise DataError(
            f"{where(row)}: the label is {_shown(labels[row])}{made}, and labels are whole numbers from 0{hidden}"
        )
    if len(labels) and labels.max() >= LABEL_LIMIT:
        row = int(np.argmax(labels >= LABEL_LIMIT))
        raise no_label(_shown(labels[row]), where(row))
    return labels.astype(np.int64, copy=False)


def _add(values: IntArray, number: int) -> IntArray:
    """The sums; what would leave int64 stops at its end, and so is no label."""
    ends = np.iinfo(np.int64)
    if number > 0:
        return np.minimum(values, ends.max - number) + number
    return np.maximum(values, ends.min - number) + number


def _shown(label: Any) -> str:
    return f"{label:g}" if isinstance(label, np.floating) else str(label)


def apply_hits(values: Column, where: Where, column: str, num_classes: int | None) -> LabelSets:
    """Turn a column of lists of whole numbers into the sets of right labels; a list may be empty.

    Args:
        values: `[N]`: an arrow column of lists.
        where: Row to where it is, for messages.
        column: What the values are to the user, for messages.
        num_classes: The number of classes, where the task file tells it.

    Raises:
        DataError: A list is missing, holds something else than labels, or a label beyond the classes; its row is named.
    """
    values = _plain(values)
    if not _is_list(values.type):
        raise DataError(f"{column} holds {values.type}, not lists of whole numbers")
    lengths = _lengths(values, where, column)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    flat = pc.list_flatten(values)
    if pa.types.is_boolean(flat.type):
        raise DataError(
            f"{column} holds {values.type}: list the numbers of the right classes, not a flag for every class"
        )
    labels = apply_rule(None, flat, lambda number: where(int(owner[number])), column)
    if num_classes and len(labels) and labels.max() >= num_classes:
        number = int(np.argmax(labels >= num_classes))
        raise DataError(
            f"{where(int(owner[number]))}: the label {labels[number]} of {column} is outside 0 to {num_classes - 1}"
        )
    return LabelSets(labels, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _buckets(rule: Threshold, values: Column, where: Where, column: str, types: Column | None) -> IntArray:
    """Label = largest i with thresholds[i] < d, where d is the smallest distance of an image's objects.

    The reference compares in float32 (task_adaptation's clevr.py and kitti.py on TFDS's float32 features), so that a distance
    which a file keeps in float64 is rounded as it is there.
    """
    lengths, flat, kinds = _objects(rule, values, where, column, types)
    owner = np.repeat(np.arange(len(lengths)), lengths)

    def object_where(number: int) -> str:
        return where(int(owner[number]))

    with np.errstate(over="ignore"):  # to infinity, which is in no bucket
        distances = _numbers(flat, object_where, column).astype(np.float32)
    if kinds is not None and rule.below is not None:
        kept = _integers(kinds, object_where, f"the types '{rule.types}' of {column}") < rule.below
        owner, distances = owner[kept], distances[kept]
    least = np.full(len(lengths), np.inf if rule.sentinel is None else rule.sentinel, dtype=np.float32)
    np.minimum.at(least, owner, distances)
    counting = np.bincount(owner, minlength=len(lengths))
    if rule.sentinel is None and not counting.all():
        raise DataError(
            f"{where(int(np.argmin(counting > 0)))}: no object counts, so there is no distance: the label_rule needs a sentinel"
        )
    thresholds = np.array(rule.thresholds, dtype=np.float32)
    # side="left" counts the thresholds that are strictly below the distance.
    labels = np.searchsorted(thresholds, least, side="left").astype(np.int64) - 1
    outside = (labels < 0) | (labels >= rule.buckets)
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(
            f"{where(row)}: the distance {least[row]:g} is in no bucket of the label_rule, whose thresholds run from "
            f"{thresholds[0]:g} to {thresholds[-1]:g}"
        )
    return labels


def _objects(
    rule: Threshold, values: Column, where: Where, column: str, types: Column | None
) -> tuple[IntArray, Column, Column | None]:
    """`[N]`, the number of objects of each image; `[M]`, the distances of all objects; `[M]`, their types or None."""
    kinds = types if rule.types else None
    mappings = pa.types.is_struct(values.type)
    if mappings:  # of lists: how the hub's parquet keeps a list of mappings
        kinds = _own_types(rule, values, kinds)
        values = _member(values, rule.field, column)
    lengths = _lengths(values, where, column)
    if kinds is not None:
        differs = _lengths(kinds, where, f"the types '{rule.types}' of {column}") != lengths
        if differs.any():
            raise DataError(f"{where(int(np.argmax(differs)))}: there are not as many types as objects")
        kinds = _flat(kinds)
    flat = _flat(values)
    if pa.types.is_struct(flat.type):
        kinds = _own_types(rule, flat, kinds)
        flat = _member(flat, rule.field, column)
    elif rule.field and not mappings:
        raise DataError(f"{column} holds no mappings: label_rule.field has no meaning")
    if rule.types and kinds is None:
        raise DataError(
            f"{column}: there is no field or column '{rule.types}' with the objects' types (label_rule.types)"
        )
    return lengths, _item(flat, rule.item, column), kinds


def _own_types(rule: Threshold, mappings: Column, otherwise: Column | None) -> Column | None:
    """The types of objects from the mappings themselves if they have them."""
    own = rule.types in [field.name for field in mappings.type]
    return _plain(pc.struct_field(mappings, rule.types)) if own else otherwise


def _item(objects: Column, item: int | None, column: str) -> Column:
    """One number of each object, where objects are lists of numbers."""
    nested = _is_list(objects.type)
    if nested and item is None:
        raise DataError(f"{column}: objects are lists of numbers: say by label_rule.item which of them is the distance")
    if item is None:
        return objects
    if not nested:
        raise DataError(f"{column}: objects are no lists of numbers: label_rule.item has no meaning")
    try:
        return pc.list_element(objects, item)
    except pa.ArrowInvalid as error:
        raise DataError(f"{column}: an object has no number {item} (label_rule.item counts from 0)") from error


def _member(mappings: Column, name: str, column: str) -> Column:
    """The field of the mappings that `label_rule.field` names."""
    names = [field.name for field in mappings.type]
    if name in names:
        return _plain(pc.struct_field(mappings, name))
    close = nearest(name, names, count=1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(names)}"
    raise DataError(f"{column} holds mappings without the field '{name}' (label_rule.field): {hint}")


def _counts(values: Column, where: Where, column: str) -> IntArray:
    """`[N]`, the number of items of each list, or of the lists of each mapping."""
    if not pa.types.is_struct(values.type):
        if not _is_list(values.type):
            raise DataError(f"{column} holds {values.type}, not lists whose items can be counted")
        return _lengths(values, where, column)
    parts = [_plain(pc.struct_field(values, field.name)) for field in values.type]
    counts = [_lengths(part, where, column) for part in parts if _is_list(part.type)]
    if not counts:
        raise DataError(f"{column} holds mappings without a list whose items can be counted")
    for other in counts[1:]:
        if (other != counts[0]).any():
            raise DataError(f"{where(int(np.argmax(other != counts[0])))}: the lists of {column} differ in length")
    return counts[0]


def _lengths(values: Column, where: Where, column: str) -> IntArray:
    """`[N]`, the length of each list; 1 for what is none."""
    _refuse_nulls(values, where, column)
    if not _is_list(values.type):
        return np.ones(len(values), dtype=np.int64)
    return np.asarray(pc.list_value_length(values).to_numpy(zero_copy_only=False), dtype=np.int64)


def _integers(values: Column, where: Where, column: str) -> IntArray:
    if not pa.types.is_integer(values.type):
        text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        hint = ": number the classes, and list their names in class_names" if text else ""
        raise DataError(f"{column} holds {values.type}, not whole numbers from 0{hint}")
    _refuse_nulls(values, where, column)
    try:
        values = values.cast(pa.int64())
    except pa.ArrowInvalid as error:
        row = pc.index(pc.greater(values, pa.scalar((1 << 63) - 1, values.type)), True).as_py()
        raise no_label(values[row].as_py(), where(row)) from error
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)


def _numbers(values: Column, where: Where, column: str) -> npt.NDArray[np.float64]:
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DataError(f"{column} holds {values.type} where the label_rule needs numbers")
    _refuse_nulls(values, where, column)
    numbers = np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise DataError(f"{where(row)}: the value is {numbers[row]}, which has no label")
    return numbers


def _refuse_nulls(values: Column, where: Where, column: str) -> None:
    if values.null_count:
        row = pc.index(pc.is_null(values), True).as_py()
        raise DataError(f"{column} is empty in {values.null_count} rows, the first of them {where(row)}")


def _flat(values: Column) -> Column:
    return _plain(pc.list_flatten(values)) if _is_list(values.type) else values


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _plain(values: Column | npt.NDArray[Any]) -> Column:
    """An arrow column of a plain type: `datasets` keeps arrays in an extension type, which hides that they are lists."""
    if isinstance(values, np.ndarray):
        return pa.array(values.astype(values.dtype.newbyteorder("="), copy=False))
    if isinstance(values, pa.Array):
        values = pa.chunked_array([values])
    if isinstance(values.type, pa.ExtensionType):
        return pa.chunked_array([chunk.storage for chunk in values.chunks], type=values.type.storage_type)
    return values
