"""A task whose data lies elsewhere: `--task-data vtab/resisc45=PATH`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitbench.errors import DataError, UsageError
from vitbench.tasks.source_spec import CifarSource, FileSource, FolderSource, HubSource, ListSource, NpzSource, Source
from vitbench.tasks.sources.local import matching_files
from vitbench.tasks.spec import SplitSpec, TaskSpec

FOLDER_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}


def relocated(spec: TaskSpec, place: Path, name: str, train_split: str = "", test_split: str = "") -> TaskSpec:
    """The task with its data read from `place`; sizes, classes, selections and all else stay as they are.

    What lies there is recognised by what the splits in use need, in this order: the files that the task file names; a text file
    per split with a path and a label a line (`train800.txt`, the layout of the VTAB-1k archives that go around); a folder per
    split with a folder per class in it. A selection may lie there as a whole (`train800val200.txt`) where its parts do not.
    Labels of lists and folders are final: the task's label rule has nothing to do with them.

    Args:
        spec: The task file.
        place: A folder.
        name: The task's name, for messages.
        train_split: Name or expression of what is learned from; empty for what the task file says.
        test_split: The same for what is scored.

    Raises:
        UsageError: The task has no files that could lie elsewhere.
        DataError: There is no such folder, or it holds nothing of that.
    """
    if not isinstance(spec.source, HubSource | FileSource | NpzSource | CifarSource | ListSource | FolderSource):
        raise UsageError(f"--task-data: task '{name}' is made by a program ({spec.source.kind}) and has no files")
    if not place.is_dir():
        raise DataError(f"--task-data: there is no folder {place} for task '{name}'")
    used = (train_split or spec.evaluation.train, test_split or spec.evaluation.test)
    needed = sorted({part for expression in used for part in spec.stored_parts(expression)})
    if all(_has_own(place, spec, spec.splits[split]) for split in needed):
        return spec.model_copy(update={"source": _same_kind(spec.source, place)})
    scale = {"path": str(place), "pixel_scale": getattr(spec.source, "pixel_scale", 1)}
    lists = {split: {"files": (f"{split}.txt",)} for split in spec.splits if (place / f"{split}.txt").is_file()}
    folders = {split: {"folder": found} for split in spec.splits if (found := _folder(place, split))}
    for there, source in (
        (lists, ListSource(kind="imagelist", **scale)),
        (folders, FolderSource(kind="imagefolder", **scale)),
    ):
        splits = _stored_there(spec, there)
        moved = spec.model_copy(update={"source": source, "splits": splits})
        if all(moved.stored_parts(expression) <= set(there) for expression in used):
            return moved
    files = [pattern for split in needed for pattern in spec.splits[split].files]
    wanted = f"the files {', '.join(files)}; " if files else ""
    raise DataError(
        f"--task-data: {place} holds nothing that task '{name}' could read: {wanted}"
        f"lists {', '.join(f'{split}.txt' for split in needed)}; or folders {', '.join(f'{split}/' for split in needed)} "
        f"with a folder per class"
    )


def _stored_there(spec: TaskSpec, there: Mapping[str, Mapping[str, Any]]) -> dict[str, SplitSpec]:
    """The splits with those that lie elsewhere stored there; a selection stays one where its parts lie there too."""
    bare = {"files": (), "folder": "", "rows": None, "fraction": None, "select": "", "index": ""}
    return {
        name: split.model_copy(update={**bare, **there[name]})
        if name in there and not (split.select and spec.stored_parts(name) <= set(there))
        else split
        for name, split in spec.splits.items()
    }


def _has_own(place: Path, spec: TaskSpec, split: SplitSpec) -> bool:
    """Whether what the task file names for a split is there."""
    if isinstance(spec.source, FolderSource):
        return (place / split.folder).is_dir()
    return bool(split.files) and all(matching_files(place, pattern, "--task-data") for pattern in split.files)


def _folder(place: Path, split: str) -> str:
    """The folder of a split, by its own name or another in use; empty when there is none with folders in it."""
    for name in (split, *FOLDER_NAMES.get(split, ())):
        if (place / name).is_dir() and any(child.is_dir() for child in (place / name).iterdir()):
            return name
    return ""


def _same_kind(source: Source, place: Path) -> Source:
    if isinstance(source, HubSource):
        fields = source.model_dump(exclude={"kind", "repo", "revision", "format"})
        return FileSource(kind=source.format, path=str(place), **fields)
    return source.model_copy(update={"path": str(place)})
