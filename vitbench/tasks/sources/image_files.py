"""Images that are a file each: what a folder of images and a list of them have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path, PurePosixPath

from vitbench.tasks.sources.digests import each_digest
from vitbench.tasks.sources.local import identities
from vitbench.tasks.sources.rows import IntArray, Rows, scale_setting, text_digest


def rows_of_images(
    kind: str, root: Path, names: Sequence[str], labels: IntArray, class_names: tuple[str, ...], pixel_scale: int
) -> Rows:
    """One split; of a million images, only names and labels are held.

    Args:
        kind: The kind of source, for the fingerprint.
        root: The folder that the names are below.
        names: Of each image, with `/` between folders.
        labels: `[N]` int64.
        class_names: In order of label; empty when nobody knows them.
        pixel_scale: What pixel values are multiplied by.

    Raises:
        DataError: A file cannot be read.
    """
    digests = each_digest(root, (root / name for name in names))
    contents = (f"{name} {label} {digest}" for name, label, digest in zip(names, labels.tolist(), digests, strict=True))
    return Rows(
        labels=labels,
        class_names=class_names,
        fingerprint=text_digest(chain([kind, *scale_setting(pixel_scale)], contents)),
        raw=lambda row: root / names[row],
        where=lambda row: f"row {row} ({names[row]})",
        name=lambda row: PurePosixPath(names[row]).name,
        pixel_scale=pixel_scale,
        files=lambda: identities(root / name for name in names),
    )
