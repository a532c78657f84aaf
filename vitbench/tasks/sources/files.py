"""Parquet and arrow files, read by Hugging Face `datasets` (memory-mapped, so that any row is at hand).

Parquet cannot be mapped, so `datasets` makes an arrow copy of it. It lies in `arrow` in vitbench's cache folder
(`$VITBENCH_CACHE`), in a folder whose name is the content's digest: other content is another copy. Copies may be deleted.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitbench.errors import DataError, StoreError, first_line, nearest
from vitbench.records.atomic import write_problem
from vitbench.tasks.label_rules import apply_hits, apply_rule
from vitbench.tasks.sources.digests import cache_folder, file_digests
from vitbench.tasks.sources.local import check_name, identities, local_folder, matching_files
from vitbench.tasks.sources.rows import IntArray, Rows, scale_setting, text_digest
from vitbench.tasks.spec import TaskSpec


def read_parquet(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the parquet files of one split, named relative to the task file.

    Raises:
        DataError: A file is missing or damaged, or a column is missing or of the wrong type.
    """
    files = local_files(spec, split, base)
    digests = file_digests(base, files)
    rows = rows_of(open_parquet(files, digests), spec, files, digests, local_names_file(spec, base))
    return replace(rows, files=lambda: identities(files))


def read_arrow(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read the arrow files of one split (as `datasets` saves them), named relative to the task file.

    Raises:
        DataError: A file is missing or damaged, or a column is missing or of the wrong type.
    """
    import datasets
    import pyarrow as pa

    files = local_files(spec, split, base)
    try:
        data = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in files])
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise DataError(f"{files[0].parent}: damaged or no arrow file: {str(error).splitlines()[0]}") from error
    rows = rows_of(data, spec, files, file_digests(base, files), local_names_file(spec, base))
    return replace(rows, files=lambda: identities(files))


def open_parquet(files: Sequence[Path], digests: Sequence[str] | None = None) -> Any:
    """Open parquet files as one `datasets.Dataset`, by way of an arrow copy that only the same content shares.

    Args:
        files: In order of row.
        digests: sha256 of each file's content; computed where it is left out.

    Raises:
        DataError: A file is damaged or no parquet, or the files have not the same columns.
        StoreError: The copy cannot be written.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            pq.ParquetFile(path).close()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is damaged or no parquet file: {str(error).splitlines()[0]}") from error
    # `datasets` itself knows its copies by path and time of change: a file written anew within both would keep its old labels.
    content = text_digest(digests or file_digests(files[0].parent, files))
    place = cache_folder() / "arrow" / content[:20]
    try:
        with _quiet():
            return datasets.Dataset.from_parquet([str(path) for path in files], cache_dir=str(place))
    except (OSError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError):
            raise StoreError(
                f"the arrow copy of {files[0]} cannot be written to {place}: {write_problem(cause)}; VITBENCH_CACHE names "
                f"another cache folder"
            ) from error
        raise DataError(
            f"{files[0]}: the parquet files of this split cannot be read as one table: {first_line(cause)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` without its progress bars, and without its log lines on errors that are told by an exception anyway."""
    import datasets

    shown, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


def rows_of(
    data: Any, spec: TaskSpec, files: Sequence[Path], fingerprint: Sequence[str], names_file: Path | None = None
) -> Rows:
    """Turn a `datasets.Dataset` with an image and a label column into `Rows`. No image is read for it.

    Args:
        data: The dataset, memory-mapped and in its stored order.
        spec: Its task, which names the columns.
        files: The files it was read from, for messages.
        fingerprint: What identifies the files' contents.
        names_file: The text file with the classes' names, where the task file names one.

    Raises:
        DataError: A column is missing or of the wrong type, or a value is no label; file, column and row are named.
    """
    import pyarrow.compute as pc

    source: Any = spec.source
    _check_columns(data, source, files[0])
    images = data.data.column(source.image)
    # The names alone: a whole row would load its image too.
    paths = pc.struct_field(images, "path") if "path" in _fields(images.type) else None
    place = files[0].name if len(files) == 1 else f"{files[0].name} … {files[-1].name}"

    def where(row: int) -> str:
        return f"row {row} ({place})"

    def raw(row: int) -> bytes:
        value = images[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise DataError(f"{where(row)}: column '{source.image}' holds no image bytes")
        return content

    hits = None
    if source.hits:
        described = f"{files[0]}: the hits column '{source.hits}'"
        hits = apply_hits(data.data.column(source.hits), where, described, spec.num_classes)
    return Rows(
        labels=_labels(data, source, where, files[0]),
        class_names=class_names(spec, names_file, _stored_names(data, source), files[0]),
        fingerprint=text_digest([source.kind, source.image, source.label, *settings(source, names_file), *fingerprint]),
        raw=raw,
        where=where,
        name=lambda row: Path(paths[row].as_py() or "").name if paths is not None else "",
        pixel_scale=source.pixel_scale,
        hits=hits,
    )


def _check_columns(data: Any, source: Any, file: Path) -> None:
    import pyarrow as pa

    columns = {role: name for role in ("image", "label", "hits") if (name := getattr(source, role))}
    for role, column in columns.items():
        if column not in data.column_names:
            close = nearest(column, data.column_names, count=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise DataError(f"{file} has no {role} column '{column}'{hint} (it has: {', '.join(data.column_names)})")
    kind = data.data.column(source.image).type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or "bytes" in _fields(kind)):
        raise DataError(f"{file}: the image column '{source.image}' holds {kind}, not image files")


def _fields(kind: Any) -> list[str]:
    """The fields of a column of mappings; none for another column."""
    import pyarrow as pa

    return [field.name for field in kind] if pa.types.is_struct(kind) else []


def _stored_names(data: Any, source: Any) -> tuple[str, ...]:
    """The classes' names in order of the values of the label column: of no use when a rule makes labels of those."""
    import datasets

    feature = data.features[source.label]
    named = isinstance(feature, datasets.ClassLabel) and feature.names and source.label_rule is None
    return tuple(feature.names) if named else ()


def _labels(data: Any, source: Any, where: Callable[[int], str], file: Path) -> IntArray:
    types = getattr(source.label_rule, "types", "")
    kinds = data.data.column(types) if types in data.column_names else None
    described = f"{file}: the label column '{source.label}'"
    return apply_rule(source.label_rule, data.data.column(source.label), where, described, kinds)


def settings(source: Any, names_file: Path | None = None) -> list[str]:
    """What a task file says of its source beyond the plain columns, as canonical text for a fingerprint.

    Empty for a source that uses none of it, so that the records of such tasks keep their keys.
    """
    texts = []
    if (given := getattr(source, "label_rule", None)) is not None:
        # Defaults are left out, so that a rule keeps its text when rules learn something new.
        rule = given.model_dump(mode="json", exclude_defaults=True)
        texts.append(f"label_rule={json.dumps(rule, sort_keys=True)}")
    texts += scale_setting(source.pixel_scale)
    if getattr(source, "hits", ""):
        texts.append(f"hits={source.hits}")
    if names_file is not None:
        texts.append(f"class_names={file_digests(names_file.parent, [names_file])[0]}")
    return texts


def class_names(
    spec: TaskSpec, names_file: Path | None, stored: tuple[str, ...] = (), place: Path | str = ""
) -> tuple[str, ...]:
    """The names of the classes, from a text file if there is one, else as they are stored with the data.

    Args:
        spec: The task, which may list the names itself.
        names_file: A text file with one name a line, in order of label.
        stored: The names that are stored with the data.
        place: Where those are, for messages.

    Raises:
        DataError: The file cannot be read, or has not a name for every class; or two lists hold the same names in another
            order, so that one of them would swap labels.
    """
    named = _read_names(names_file, spec.num_classes) if names_file is not None else ()
    lists = [(spec.class_names, "the task file"), (named, names_file), (stored, place)]
    for (one, first), (other, second) in itertools.combinations([part for part in lists if part[0]], 2):
        if one != other and sorted(one) == sorted(other):
            label = next(number for number, (name, twin) in enumerate(zip(one, other, strict=True)) if name != twin)
            raise DataError(
                f"{second} has the classes of {first} in another order: label {label} is '{other[label]}' there and "
                f"'{one[label]}' here"
            )
    return named or stored


def _read_names(path: Path, count: int | None) -> tuple[str, ...]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"the file of class names {path} cannot be read: {error}") from error
    if "" in names or not names:
        raise DataError(f"{path}:{names.index('') + 1 if names else 1}: a class has no name")
    if count is not None and len(names) != count:
        raise DataError(f"{path} names {len(names)} classes where the task file expects {count}")
    return tuple(names)


def local_names_file(spec: TaskSpec, base: Path) -> Path | None:
    """The text file with the classes' names that a source of local files names; None when it names none.

    Raises:
        DataError: Its path climbs out of the folder.
    """
    source: Any = spec.source
    name = str(getattr(source, "class_names_file", ""))
    if not name:
        return None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"source.class_names_file: '{name}' climbs out of its folder")
    check_name(name, "source.class_names_file")
    return local_folder(base, source.path) / name


def local_files(spec: TaskSpec, split: str, base: Path) -> list[Path]:
    """The local files of one split, in the order of the task file; those of a glob in order of name.

    Raises:
        DataError: There is no such file, one comes twice, whatever its spelling, or a pattern is none.
    """
    source: Any = spec.source
    folder = local_folder(base, source.path)
    files: list[Path] = []
    for pattern in spec.splits[split].files:
        found = matching_files(folder, pattern, f"splits.{split}")
        if not found:
            near = nearest(Path(pattern).name, [path.name for path in (folder / pattern).parent.glob("*")], count=1)
            raise DataError(
                f"split '{split}': there is no file {folder / pattern}{f'; did you mean {near[0]}?' if near else ''}"
            )
        files += found
    known: dict[str, Path] = {}
    for path, identity in zip(files, identities(files), strict=True):
        if identity in known:
            other = f", also as {known[identity].name}" if known[identity].name != path.name else ""
            raise DataError(f"split '{split}' takes the file {path} twice{other}")
        known[identity] = path
    return files
