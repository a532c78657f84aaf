"""A task whose data lies elsewhere: `--task-data vtab/resisc45=PATH`."""

from __future__ import annotations

from pathlib import Path

from vitbench.errors import DataError, UsageError
from vitbench.tasks.source_spec import CifarSource, FileSource, FolderSource, HubSource, ListSource, NpzSource, Source
from vitbench.tasks.spec import SplitSpec, TaskSpec

FOLDER_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}


def relocated(spec: TaskSpec, place: Path, name: str) -> TaskSpec:
    """The task with its data read from `place`; sizes, classes, selections and all else stay as they are.

    What lies there is recognised by what the task's splits need, in this order: the files that the task file names; a text file
    per split with a path and a label a line (`train800val200.txt`, the layout of the VTAB-1k archives that go around); a folder
    per split with a folder per class in it.

    Args:
        spec: The task file.
        place: A folder.
        name: The task's name, for messages.

    Raises:
        UsageError: The task has no files that could lie elsewhere.
        DataError: There is no such folder, or it holds nothing of that.
    """
    if not isinstance(spec.source, HubSource | FileSource | NpzSource | CifarSource | ListSource | FolderSource):
        raise UsageError(f"--task-data: task '{name}' is made by a program ({spec.source.kind}) and has no files")
    if not place.is_dir():
        raise DataError(f"--task-data: there is no folder {place} for task '{name}'")
    needed = _needed(spec)
    if all(_has_own(place, spec, spec.splits[split]) for split in needed):
        return _moved(spec, _same_kind(spec.source, place), spec.splits)
    if all((place / f"{split}.txt").is_file() for split in needed):
        lists = {split: part.model_copy(update={"files": (f"{split}.txt",)}) for split, part in spec.stored.items()}
        return _moved(spec, ListSource(kind="imagelist", path=str(place)), {**spec.splits, **lists})
    folders = {split: _folder(place, split) for split in needed}
    if all(folders.values()):
        moved = {
            split: part.model_copy(update={"files": (), "folder": folders.get(split) or split})
            for split, part in spec.stored.items()
        }
        return _moved(spec, FolderSource(kind="imagefolder", path=str(place)), {**spec.splits, **moved})
    files = [pattern for split in needed for pattern in spec.splits[split].files]
    wanted = f"the files {', '.join(files)}; " if files else ""
    raise DataError(
        f"--task-data: {place} holds nothing that task '{name}' could read: {wanted}"
        f"lists {', '.join(f'{split}.txt' for split in needed)}; or folders {', '.join(f'{split}/' for split in needed)} "
        f"with a folder per class"
    )


def _needed(spec: TaskSpec) -> list[str]:
    """The stored splits that training and testing read."""
    return sorted({part for name in (spec.evaluation.train, spec.evaluation.test) for part in spec.stored_parts(name)})


def _has_own(place: Path, spec: TaskSpec, split: SplitSpec) -> bool:
    """Whether what the task file names for a split is there."""
    if isinstance(spec.source, FolderSource):
        return (place / split.folder).is_dir()
    return bool(split.files) and all(any(place.glob(pattern)) for pattern in split.files)


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


def _moved(spec: TaskSpec, source: Source, splits: dict[str, SplitSpec]) -> TaskSpec:
    return spec.model_copy(update={"source": source, "splits": splits})
