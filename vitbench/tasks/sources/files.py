"""Parquet and arrow files, read by Hugging Face `datasets` (memory-mapped, so that any row is at hand)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitbench.errors import DataError, nearest
from vitbench.tasks.images import decode_rgb
from vitbench.tasks.sources.digests import file_digests
from vitbench.tasks.sources.rows import IntArray, Rows, text_digest
from vitbench.tasks.spec import TaskSpec


def read_parquet(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the parquet files of one split, named relative to the task file.

    Raises:
        DataError: A file is missing or damaged, or a column is missing or of the wrong type.
    """
    files = _expand(spec, split, base)
    return rows_of(open_parquet(files), spec, files, fingerprint=file_digests(base, files))


def read_arrow(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the arrow files of one split (as `datasets` saves them), named relative to the task file.

    Raises:
        DataError: A file is missing or damaged, or a column is missing or of the wrong type.
    """
    import datasets
    import pyarrow as pa

    files = _expand(spec, split, base)
    try:
        data = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in files])
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise DataError(f"{files[0].parent}: damaged or no arrow file: {str(error).splitlines()[0]}") from error
    return rows_of(data, spec, files, fingerprint=file_digests(base, files))


def open_parquet(files: Sequence[Path]) -> Any:
    """Open parquet files as one `datasets.Dataset`.

    Raises:
        DataError: A file is damaged or no parquet.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            pq.ParquetFile(path).close()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is damaged or no parquet file: {str(error).splitlines()[0]}") from error
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.Dataset.from_parquet([str(path) for path in files])
    except datasets.exceptions.DatasetGenerationError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"{files[0]}: the parquet files of this split cannot be read as one table: {cause}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def rows_of(data: Any, spec: TaskSpec, files: Sequence[Path], fingerprint: Sequence[str]) -> Rows:
    """Turn a `datasets.Dataset` with an image and a label column into `Rows`.

    Args:
        data: The dataset.
        spec: Its task, which names the columns.
        files: The files it was read from, for messages.
        fingerprint: What identifies the files' contents.
    """
    import datasets

    source: Any = spec.source
    for role, column in (("image", source.image), ("label", source.label)):
        if column not in data.column_names:
            close = nearest(column, data.column_names, count=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise DataError(
                f"{files[0]} has no {role} column '{column}'{hint} (it has: {', '.join(data.column_names)})"
            )
    feature = data.features[source.label]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) and feature.names else ()
    images = data.data.column(source.image)
    place = files[0].name if len(files) == 1 else f"{files[0].name} … {files[-1].name}"

    def where(row: int) -> str:
        return f"row {row} ({place})"

    def image(row: int) -> Any:
        value = images[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise DataError(f"{where(row)}: column '{source.image}' holds no image bytes")
        return decode_rgb(content, where(row))

    return Rows(
        labels=_labels(data, source.label, files[0]),
        class_names=names,
        fingerprint=text_digest([spec.source.kind, source.image, source.label, *fingerprint]),
        image=image,
        where=where,
    )


def _labels(data: Any, column: str, file: Path) -> IntArray:
    import pyarrow as pa

    values = data.data.column(column)
    if not pa.types.is_integer(values.type):
        raise DataError(f"{file}: the label column '{column}' holds {values.type}, not whole numbers from 0")
    if values.null_count:
        raise DataError(f"{file}: the label column '{column}' is empty in {values.null_count} rows")
    return np.asarray(values.to_numpy(), dtype=np.int64)


def _expand(spec: TaskSpec, split: str, base: Path) -> list[Path]:
    source: Any = spec.source
    base = base / Path(source.path).expanduser()
    files: list[Path] = []
    for pattern in spec.splits[split].files:  # type: ignore[index]
        found = sorted(base.glob(pattern))
        if not found:
            near = nearest(Path(pattern).name, [path.name for path in (base / pattern).parent.glob("*")], count=1)
            raise DataError(
                f"split '{split}': there is no file {base / pattern}{f'; did you mean {near[0]}?' if near else ''}"
            )
        files += found
    return files
