"""What an analysis is given: backbones, images, a place for its output, and options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError, nearest
from vitbench.tasks import transforms
from vitbench.tasks.catalog import load_task
from vitbench.tasks.images import decode_rgb
from vitbench.tasks.sources.imagefolder import EXTENSIONS


@dataclass(frozen=True)
class Images:
    """Some images, read when they are asked for.

    Attributes:
        names: A short name per image, unique and fit for a file name.
        sources: Per image, a path, or the row of a task's split.
    """

    names: Sequence[str]
    sources: Sequence[Any]

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Image:
        """The image as it is, RGB.

        Raises:
            DataError: It is broken; it is named.
        """
        source = self.sources[index]
        return decode_rgb(source, str(source)) if isinstance(source, Path) else source()

    def batches(self, backbone: Backbone, size: int = 16) -> Iterator[tuple[list[int], Tensor]]:
        """The images preprocessed for a backbone: indices and `[n, 3, H, W]` float32 on its device, n at most `size`."""
        preprocessing = transforms.resolve(
            backbone.spec.preprocess, backbone.preprocessing, backbone.input_size, backbone.mean, backbone.std
        )
        for first in range(0, len(self), size):
            indices = list(range(first, min(first + size, len(self))))
            yield indices, preprocessing([self.picture(index) for index in indices]).to(backbone.device)

    def crop(self, backbone: Backbone, index: int) -> Tensor:
        """The image as the backbone sees it, undone to `[H, W, 3]` float32 in [0, 1] on the CPU, to draw on."""
        preprocessing = transforms.resolve(
            backbone.spec.preprocess, backbone.preprocessing, backbone.input_size, backbone.mean, backbone.std
        )
        pixels = preprocessing.geometry(self.picture(index), self.names[index])
        return (pixels.float() / 255).clamp(0, 1).permute(1, 2, 0)


def images_of_folder(folder: Path, limit: int | None = None) -> Images:
    """Every image below a folder, in order of path; or a single image file.

    Raises:
        UsageError: There is no such folder, or no image in it.
    """
    if folder.is_file():
        return Images([folder.stem], [folder])
    if not folder.is_dir():
        near = (
            nearest(folder.name, [path.name for path in folder.parent.glob("*")], count=1)
            if folder.parent.is_dir()
            else []
        )
        raise UsageError(f"there is no folder {folder}{f'; did you mean {folder.parent / near[0]}?' if near else ''}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())[:limit]
    if not files:
        raise UsageError(f"there are no images in {folder} ({', '.join(sorted(e.lstrip('.') for e in EXTENSIONS))})")
    names = ["-".join(path.relative_to(folder).with_suffix("").parts) for path in files]
    names = [
        name if names.count(name) == 1 else f"{name}-{path.suffix.lstrip('.')}"
        for name, path in zip(names, files, strict=True)
    ]
    return Images(names, files)


def images_of_task(name: str, limit: int | None = None) -> Images:
    """Images of a task's test split, spread evenly over it when limited.

    Raises:
        UsageError: No task is called that.
        DataError: Its data is missing.
    """
    split = load_task(name).split("test")
    count = min(limit or len(split), len(split))
    rows = [index * len(split) // count for index in range(count)]
    return Images([f"{name.split('/')[-1]}-{row}" for row in rows], [lambda row=row: split.image(row) for row in rows])


@dataclass(frozen=True)
class Options:
    """Options of an analysis, as `KEY=VALUE` texts; one that is never asked for is an error at the end.

    Attributes:
        given: Key to value.
        defaults: Key to default value of every option that the analysis has; its type is what a value is turned into.
    """

    given: Mapping[str, str]
    defaults: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        default = self.defaults[key]
        if key not in self.given:
            return default
        try:
            return type(default)(self.given[key]) if default is not None else self.given[key]
        except ValueError as error:
            raise UsageError(f"option {key} takes {type(default).__name__}, got '{self.given[key]}'") from error
