"""One call of `vitbench analyze`: what is asked for is checked, backbones and images are loaded, the page is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitbench.analysis import ANALYSES
from vitbench.analysis.base import Images, Options, images_of_folder, images_of_task
from vitbench.analysis.output import Output
from vitbench.backbones.load import load_backbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError, VitbenchError, unknown
from vitbench.execution.reporter import Reporter
from vitbench.records.atomic import check_writable, slug

Analysis = Callable[..., list[str]]


@dataclass(frozen=True)
class _Request:
    """What is asked for, apart from the backbones."""

    kind: str
    analyse: Analysis
    images: Images | None
    options: Options
    device: str
    reporter: Reporter


class PartlyFailedError(VitbenchError):
    """Some backbones could not be analysed; the others are done."""


def analyze(
    kind: str,
    backbones: Sequence[str],
    *,
    out: Path | str,
    folder: Path | str | None = None,
    task: str | None = None,
    options: Mapping[str, str] | None = None,
    limit: int | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Path:
    """Look inside backbones.

    Several backbones get a subfolder each, and a page that links to them, unless the kind compares backbones.

    Args:
        kind: One of `vitbench.analysis.ANALYSES`.
        backbones: Their specs.
        out: The folder for figures (PNG, SVG), arrays (npz), tables (CSV) and `index.html`.
        folder: A folder of images, or one image; this or `task`, for the kinds that look at images.
        task: A task whose test images are looked at.
        options: Options of the kind, as texts; see `DEFAULTS` in its module.
        limit: Look at this many images, evenly spread.
        device: `auto` or a torch device.
        reporter: Hears the summary line by line.

    Returns:
        The path of `index.html`.

    Raises:
        UsageError: An unknown kind, backbone or option, no image, or a kind that makes no sense for the backbone.
        PartlyFailedError: Some of several backbones could not be analysed; the page says why.
    """
    if kind not in ANALYSES.names():
        raise unknown("kind of analysis", kind, ANALYSES.names())
    if not backbones:
        raise UsageError("name at least one backbone, such as timm:vit_tiny_patch16_224.augreg_in21k")
    for spec in backbones:
        parse_backbone_spec(spec)
    analyse: Analysis = ANALYSES.load(kind)
    module = sys.modules[analyse.__module__]
    checked = Options(options or {}, getattr(module, "DEFAULTS", {}))
    checked.check(kind)
    reporter = reporter or Reporter()
    images = None
    if getattr(module, "NEEDS_IMAGES", True):
        images = _images(kind, folder, task, limit)
    elif folder is not None or task is not None:
        reporter.warn(f"{kind} looks at weights alone: the images are not read")
    out = Path(out)
    check_writable(out)
    request = _Request(kind, analyse, images, checked, device, reporter)
    if len(backbones) == 1 or getattr(module, "JOINT", False):
        return _analyse_into(out, backbones, request)
    return _analyse_each(out, backbones, request)


def _images(kind: str, folder: Path | str | None, task: str | None, limit: int | None) -> Images:
    if (folder is None) == (task is None):
        both = "not both" if folder is not None else f"{kind} looks at images"
        raise UsageError(f"give a folder of images (--images) or a task (--task): {both}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is a number of images, at least 1, got {limit}")
    return (
        images_of_folder(Path(folder).expanduser(), limit) if folder is not None else images_of_task(str(task), limit)
    )


def _analyse_into(out: Path, specs: Sequence[str], request: _Request) -> Path:
    """One analysis of one or more backbones, in one folder."""
    loaded = [load_backbone(spec, device=request.device) for spec in specs]
    output = Output(out)
    lines = request.analyse(loaded, request.images, output, request.options)
    for line in lines:
        request.reporter.line(line)
    if request.images is not None:
        lines = [*lines, f"looked at: {len(request.images)} image{'' if len(request.images) == 1 else 's'}"]
    if given := request.options.given:
        lines = [*lines, "options: " + ", ".join(f"{key}={value}" for key, value in given.items())]
    return output.index(f"{request.kind}: {', '.join(backbone.spec.long_label for backbone in loaded)}", lines)


def _analyse_each(out: Path, specs: Sequence[str], request: _Request) -> Path:
    """A subfolder per backbone, and a page that links to them; one that fails does not stop the others."""
    output, lines, failures = Output(out), [], []
    taken: set[str] = set()
    for spec in specs:
        label = parse_backbone_spec(spec).long_label
        name = base = slug(label)
        while name.lower() in taken:
            name = f"{base}-{len(taken) + 1}"
        taken.add(name.lower())
        try:
            page = _analyse_into(out / name, [spec], request)
        except VitbenchError as error:
            failures.append(str(error))
            lines.append(f"not analysed: {error}")
            request.reporter.warn(lines[-1])
        else:
            output.link(label, page.relative_to(out).as_posix())
    if len(failures) == len(specs):
        raise UsageError(f"none of the {len(specs)} backbones could be analysed; the first: {failures[0]}")
    index = output.index(f"{request.kind}: {len(specs)} backbones", lines)
    if failures:
        raise PartlyFailedError(
            f"{len(failures)} of {len(specs)} backbones could not be analysed, the others are at {index}"
        )
    return index
