"""A folder of images: one folder per class, with or without a folder per split above."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from vitbench.errors import DataError, listed, nearest
from vitbench.tasks.source_spec import FolderSource
from vitbench.tasks.sources.image_files import rows_of_images
from vitbench.tasks.sources.local import check_name, is_folder, local_folder
from vitbench.tasks.sources.rows import IntArray, Rows
from vitbench.tasks.spec import TaskSpec

EXTENSIONS = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CLUTTER = frozenset({"thumbs.db", "desktop.ini"})
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "validation", "valid")
TRAIN_FRACTION = 0.8


def split_folders(path: Path) -> dict[str, dict[str, object]]:
    """How the folder at `path` is split: by its `train` and `test` (or `val`) folders, else 80/20 by a seeded draw per class.

    Returns:
        Split name to the fields of a `SplitSpec`.

    Raises:
        DataError: There is no such folder, or it has a train folder and none to test on.
    """
    if not is_folder(path):
        siblings = [folder.name for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
        close = nearest(path.name, siblings, count=1)
        raise DataError(
            f"there is no image folder {path}{f'; did you mean {path.parent / close[0]}?' if close else ''}"
        )
    holding = {folder.name.lower(): folder.name for folder in _folders(path) if _folders(folder)}
    train = next((holding[name] for name in TRAIN_NAMES if name in holding), None)
    tests = [holding[name] for name in TEST_NAMES if name in holding]
    if train is None:
        return {"train": {"fraction": TRAIN_FRACTION}, "test": {"fraction": round(1 - TRAIN_FRACTION, 6)}}
    if not tests:
        raise DataError(f"{path} has the folder '{train}' but none to test on: add one of {', '.join(TEST_NAMES)}")
    splits: dict[str, dict[str, object]] = {"train": {"folder": train}, "test": {"folder": tests[0]}}
    if len(tests) > 1:
        splits["validation"] = {"folder": tests[1]}
    return splits


def read_folder(spec: TaskSpec, split: str, base: Path) -> Rows:
    """Read one split of an imagefolder. Images are in order of class, and in order of file name within their class.

    Classes are in the order of the task file if it names them, else in order of folder name: of the folders of `train` if that
    is a stored split, else of the first stored split, and of a whole split rather than one that is `partial`.

    Raises:
        DataError: A folder is missing or empty, two class folders have one name but for case, the class folders are not those
            of the task file or of the split that the classes are taken from, or a file in a class folder is no image.
    """
    part = spec.splits[split]
    source = spec.source
    assert isinstance(source, FolderSource)
    root = local_folder(base, source.path)
    check_name(part.folder, f"splits.{split}")
    folder = root / part.folder
    classes = _classes_of_task(spec, root)
    _check_classes(spec, split, root, classes)
    # Names, not paths, and nothing twice: of a million images, each takes memory.
    found = [_images(root, folder / name) for name in classes]
    names = [name for of_class in found for name in of_class]
    labels = np.repeat(np.arange(len(found), dtype=np.int64), [len(of_class) for of_class in found])
    if not names:
        raise DataError(f"{folder} has no images: put one folder per class there, with images of {_extensions()}")
    if part.fraction is not None:
        drawn = _drawn_rows(labels, spec, split)
        names, labels = [names[row] for row in drawn.tolist()], labels[drawn]
    return rows_of_images("imagefolder", root, names, labels, classes, source.pixel_scale)


def _classes_of_task(spec: TaskSpec, root: Path) -> tuple[str, ...]:
    # Another order than the task file's would swap labels silently.
    return spec.class_names or _classes(root / _reference_folder(spec))


def _reference_folder(spec: TaskSpec) -> str:
    """The folder of the stored split whose class folders are the classes."""
    ordered = sorted(spec.stored, key=lambda name: (spec.stored[name].partial, name != "train"))
    return spec.stored[ordered[0]].folder


def _check_classes(spec: TaskSpec, split: str, root: Path, classes: tuple[str, ...]) -> None:
    """Refuse class folders that are no class, and, where the task file names the classes, a class without a folder."""
    folder = root / spec.splits[split].folder
    own = _classes(folder)
    if extra := sorted(set(own) - set(classes)):
        if not spec.class_names:
            reference = root / _reference_folder(spec)
            raise DataError(
                f"{folder}: the class folder '{extra[0]}' does not exist in {reference}, where the classes are taken from"
            )
        close = nearest(extra[0], classes, count=1)
        hint = f"did you mean '{close[0]}'?" if close else f"the classes are {listed(classes)}"
        raise DataError(f"{folder}: the class folder '{extra[0]}' is none of the task file's class_names; {hint}")
    missing = [name for name in classes if name not in own]
    if missing and spec.class_names and not spec.splits[split].partial:
        raise DataError(
            f"{folder} has no folder for the class '{missing[0]}' of the task file's class_names (a split that may lack "
            f"classes is marked partial: true)"
        )


def _drawn_rows(labels: IntArray, spec: TaskSpec, split: str) -> IntArray:
    """The rows of a split that is drawn: each class is shuffled once, then cut at the splits' fractions in their order."""
    generator = np.random.default_rng(spec.split_seed)
    part = spec.splits[split]
    sharing = {name: other.fraction or 0.0 for name, other in spec.stored.items() if other.folder == part.folder}
    names = [str(name) for name in sharing]
    edges = np.cumsum([0.0, *sharing.values()])
    chosen = []
    for label in np.unique(labels):
        shuffled = generator.permutation(np.flatnonzero(labels == label))
        cuts = [round(edge * len(shuffled)) for edge in edges]
        if len(shuffled) >= len(names):
            # A class that has an image for every split gives one to every split, however small the fraction.
            for place in range(1, len(names)):
                cuts[place] = min(max(cuts[place], cuts[place - 1] + 1), len(shuffled) - (len(names) - place))
        place = names.index(split)
        chosen.append(shuffled[cuts[place] : max(cuts[place + 1], cuts[place] + (len(shuffled) >= len(names)))])
    return np.sort(np.concatenate(chosen))


def _classes(folder: Path) -> tuple[str, ...]:
    if not is_folder(folder):
        raise DataError(f"there is no image folder {folder}")
    names = sorted(path.name for path in _folders(folder))
    if not names:
        raise DataError(
            f"{folder} has no class folders: put one folder per class there, with images of {_extensions()}"
        )
    alike = [name for name, count in Counter(name.strip().lower() for name in names).items() if count > 1]
    if alike:
        same = [name for name in names if name.strip().lower() == alike[0]]
        raise DataError(
            f"{folder}: the class folders {' and '.join(map(repr, same))} have the same name: merge or rename them"
        )
    return tuple(names)


def _images(root: Path, folder: Path) -> list[str]:
    """The images below a class folder, as their paths below `root`."""
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if not path.name.startswith(".") and path.name.lower() not in CLUTTER]
    strangers = [path for path in files if path.suffix.lower() not in EXTENSIONS]
    if strangers:
        raise DataError(f"{strangers[0]} is no image ({_extensions()}): move it out of the class folder")
    return [path.relative_to(root).as_posix() for path in files]


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _extensions() -> str:
    return ", ".join(sorted(extension.lstrip(".") for extension in EXTENSIONS))
