"""What an analysis is given: backbones, images, a place for its output, and options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError, nearest, unknown
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

    def subset(self, count: int) -> Images:
        """At most `count` of them, spread evenly over all."""
        indices = spread(len(self), count)
        return Images([self.names[index] for index in indices], [self.sources[index] for index in indices])

    def crop(self, backbone: Backbone, index: int) -> Tensor:
        """The image as the backbone sees it, undone to `[H, W, 3]` float32 in [0, 1] on the CPU, to draw on."""
        preprocessing = transforms.resolve(
            backbone.spec.preprocess, backbone.preprocessing, backbone.input_size, backbone.mean, backbone.std
        )
        pixels = preprocessing.geometry(self.picture(index), self.names[index])
        return (pixels.float() / 255).clamp(0, 1).permute(1, 2, 0)


def spread(total: int, count: int | None) -> list[int]:
    """`count` of the indices 0..total-1, evenly spread and in order; all of them when there are no more, or count is None."""
    count = total if count is None else min(count, total)
    return [index * total // count for index in range(count)]


def images_of_folder(folder: Path, limit: int | None = None) -> Images:
    """Every image below a folder, in order of path; or a single image file. When limited, spread evenly over them.

    Hidden files and folders are passed over: what file managers leave behind (`._photo.jpg`) is no image.

    Raises:
        UsageError: There is no such folder, or no image in it.
    """
    if folder.is_file():
        return Images([folder.stem], [folder])
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = nearest(folder.name, siblings, count=1)
        raise UsageError(f"there is no folder {folder}{f'; did you mean {folder.parent / near[0]}?' if near else ''}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise UsageError(f"there are no images in {folder} ({', '.join(sorted(e.lstrip('.') for e in EXTENSIONS))})")
    files = [files[index] for index in spread(len(files), limit)]
    names = ["-".join(path.relative_to(folder).with_suffix("").parts) for path in files]
    return Images(_unique(names), files)


def _unique(names: Sequence[str]) -> list[str]:
    """The names, those that occur more than once numbered: `a.jpg` and `a.png` are `a-1` and `a-2`."""
    counts, seen, taken = Counter(names), Counter[str](), set(names)
    unique = []
    for name in names:
        new = name
        while counts[name] > 1 and new in taken:
            seen[name] += 1
            new = f"{name}-{seen[name]}"
        taken.add(new)
        unique.append(new)
    return unique


def images_of_task(name: str, limit: int | None = None) -> Images:
    """Images of a task's test split, spread evenly over it when limited.

    Raises:
        UsageError: No task is called that.
        DataError: Its data is missing.
    """
    split = load_task(name).test
    rows = spread(len(split), limit)
    return Images([f"{name.split('/')[-1]}-{row}" for row in rows], [lambda row=row: split.image(row) for row in rows])


def only(backbones: Sequence[Backbone], kind: str) -> Backbone:
    """The one backbone that an analysis takes.

    Raises:
        UsageError: There is not exactly one.
    """
    if len(backbones) != 1:
        raise UsageError(f"{kind} takes one backbone, got {len(backbones)}")
    return backbones[0]


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Options:
    """Options of an analysis, given as texts.

    Attributes:
        given: Key to value as `KEY=VALUE` said it.
        defaults: Key to default value of every option that the analysis has; its type is what a value is turned into, a
            default of None leaves a text.
    """

    given: Mapping[str, str]
    defaults: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        """The value of an option.

        Raises:
            UsageError: What was given is not of the option's type.
        """
        default = self.defaults[key]
        if key not in self.given or default is None:
            return self.given.get(key, default)
        text = self.given[key]
        try:
            # bool("false") is True: a switch is read by its word.
            return _BOOLEANS[text.lower()] if isinstance(default, bool) else type(default)(text)
        except (ValueError, KeyError) as error:
            kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default), "another value")
            raise UsageError(f"option {key} takes {kind}, got '{text}'") from error

    def check(self, kind: str) -> None:
        """Check every key and the type of every value.

        Args:
            kind: The analysis, for the message.

        Raises:
            UsageError: The analysis has no such option (the nearest are offered), or a value is not of its type, or negative
                where the default is not.
        """
        for key in self.given:
            if key not in self.defaults:
                if not self.defaults:
                    raise UsageError(f"{kind} has no options, got '{key}'")
                raise unknown(f"option of {kind}", key, self.defaults)
            value, default = self[key], self.defaults[key]
            if isinstance(default, int) and default >= 0 and value < 0:
                raise UsageError(f"option {key} takes a whole number from 0, got {value}")
