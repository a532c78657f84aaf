"""Build the report: read records, make pages, write a folder whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

import jinja2
from markupsafe import Markup, escape

import vitbench
from vitbench.errors import StoreError, UsageError, VitbenchError, first_line, listed
from vitbench.hub import offline
from vitbench.records.atomic import TEMPORARY_PREFIX, write_problem
from vitbench.records.costs import Cost, read_costs
from vitbench.reporting.published import read_published
from vitbench.reporting.site.collection import Collection, collect
from vitbench.reporting.site.content import Page
from vitbench.reporting.site.cost_page import cost_page
from vitbench.reporting.site.evidence import weigh
from vitbench.reporting.site.methods import methods_page
from vitbench.reporting.site.model_pages import ablations_page, model_pages
from vitbench.reporting.site.pages import AREAS, Report, board_pages, models_page, runs_page, settings, tasks_page
from vitbench.reporting.site.task_pages import record_pages, task_pages
from vitbench.tasks.catalog import load_task, suites
from vitbench.tasks.task import Task, TaskOptions

MARK = "vitbench-report.json"
"""The file that makes a folder a report; it lists every file of it, so that nothing else is ever deleted."""

ASSETS = ("report.css", "theme.js", "tables.js", "plots.js")
PLOTLY = "plotly.min.js"

POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file: 'unsafe-inline'; img-src 'self' file: data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""What a page may load: files beside it, pictures inside it. Plotly writes styles of its own, hence `unsafe-inline` for these."""


@dataclass(frozen=True)
class Built:
    """What was written.

    Attributes:
        folder: The report.
        pages: Number of pages.
        size: Bytes of all files.
        records: Records that it tells of.
        problems: Records that it leaves out, and why, a line each.
    """

    folder: Path
    pages: int
    size: int
    records: int
    problems: tuple[str, ...]


def build_report(
    results: Path,
    out: Path,
    *,
    task_data: Mapping[str, str] | None = None,
    images: bool = True,
    say: Callable[[str], object] = lambda line: None,
) -> Built:
    """Make a report of the records below a folder.

    It is written to a folder beside `out` and then takes its name; a report that was there is replaced, anything else is not.

    Args:
        results: A run's output folder.
        out: The folder to make.
        task_data: Name of a task to the folder, file or task file that its test images are read from.
        images: Show test images of the tasks that are on this machine; nothing is fetched.
        say: Told what is being done, a line at a time.

    Raises:
        UsageError: There are no records, `out` holds something that is no report, or `task_data` names a task without records.
        StoreError: The folder cannot be written.
    """
    target = out.expanduser().resolve()
    check_target(target, results)
    collection = collect(results)
    say(f"{len(collection.records):,} records of {len(collection.models)} backbones on {len(collection.tasks)} tasks")
    tasks = _tasks(collection, task_data or {}, images)
    evidence = weigh(collection.records)
    boards, without = settings(collection, suites(), read_published())
    costs, damaged = read_costs(results)
    report = Report(collection, evidence, boards, tasks, [*without, *damaged])
    temporary = target.parent / f"{TEMPORARY_PREFIX}{target.name}-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        count = _write_pages(all_pages(report, costs), temporary, collection)
        _write_assets(temporary)
        size = _write_mark(temporary)
        check_target(target, results)
        _take_place(temporary, target)
    except OSError as error:
        raise StoreError(
            f"cannot write the report {out}: {write_problem(error)}; what was there before is intact"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Built(out, count, size, len(collection.records), collection.problems)


def all_pages(report: Report, costs: Sequence[Cost] = ()) -> Iterator[Page]:
    """Every page, one after the other: all at once would not fit into memory."""
    return chain(
        board_pages(report),
        [
            tasks_page(report),
            models_page(report),
            ablations_page(report),
            cost_page(report, costs),
            runs_page(report),
            methods_page(),
        ],
        task_pages(report),
        model_pages(report),
        record_pages(report),
    )


def check_target(target: Path, results: Path) -> None:
    """Refuse a folder that holds anything but a report, and one among the records.

    Raises:
        UsageError: It does.
    """
    if (results / "records").resolve() in [target, *target.parents]:
        raise UsageError(f"{target} lies among the records: name another folder with --out")
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file: name a folder with --out")
    there = {
        path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir() or path.is_symlink()
    }
    if not there:
        return
    mark = target / MARK
    try:
        own = set(json.loads(mark.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{target} is no vitbench report and is not empty, so nothing in it is touched: name another folder with --out"
        ) from None
    if strange := sorted(there - own - {MARK}):
        raise UsageError(
            f"{target} holds files that the report did not make ({listed(strange)}): move them away, or name another folder with "
            "--out"
        )


def environment() -> jinja2.Environment:
    """The templates, which escape whatever they are given."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"breakable": breakable, "target": address}
    return made


def breakable(text: str) -> Markup:
    """`text`, escaped, with places where a long name may go on in the next line."""
    # Entities such as &#39; hold none of these characters.
    safe = str(escape(text))
    for mark in "/_,=":
        safe = safe.replace(mark, f"{mark}<wbr>")
    return Markup(safe)


def address(href: str, root: str) -> str:
    """What a link's target is on a page whose way to the site's root is `root`; empty where it is none that may be followed."""
    if not href or href.startswith("#"):
        return href
    parts = urlsplit(href)
    if parts.scheme in ("http", "https") and parts.netloc:
        return href
    if parts.scheme or parts.netloc or href.startswith("/") or ".." in PurePosixPath(parts.path).parts:
        return ""
    return f"{root}{quote(parts.path)}" + (f"#{parts.fragment}" if parts.fragment else "")


def _tasks(collection: Collection, task_data: Mapping[str, str], images: bool) -> dict[str, Task | str]:
    """Every task with its data where that is on this machine, else why it is not."""
    if unknown := [name for name in task_data if name not in collection.tasks]:
        raise UsageError(
            f"--task-data: there are no records of '{unknown[0]}'; there are {listed(collection.tasks, most=8)}"
        )
    found: dict[str, Task | str] = {}
    firsts = collection.records.drop_duplicates("task")
    splits = dict(zip(firsts["task"], zip(firsts["train_split"], firsts["test_split"], strict=True), strict=True))
    for name in collection.tasks if images else ():
        place = task_data.get(name, "")
        source = (
            place
            if place.endswith((".yaml", ".yml"))
            else f"imagefolder:{place}"
            if name.startswith("imagefolder/")
            else name
        )
        data = {name: place} if place and source == name else {}
        train, test = splits[name]
        try:
            with offline():
                found[name] = load_task(
                    source,
                    TaskOptions(data, accept_sizes=True, train_split=train, test_split=test),
                )
        except (VitbenchError, OSError) as error:
            found[name] = first_line(error)
    return found


def _write_pages(pages: Iterable[Page], folder: Path, collection: Collection) -> int:
    template = environment().get_template("page.html.j2")
    made_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    count = 0
    for page in pages:
        text = template.render(
            page=page,
            areas=AREAS,
            policy=POLICY,
            version=vitbench.__version__,
            made_from=f"{len(collection.records):,} records",
            made_at=made_at,
        )
        path = folder / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        count += 1
    return count


def _write_assets(folder: Path) -> None:
    from plotly.offline import get_plotlyjs

    assets = folder / "assets"
    assets.mkdir()
    for name in ASSETS:
        shutil.copyfile(Path(__file__).parent / "static" / name, assets / name)
    (assets / PLOTLY).write_text(get_plotlyjs(), encoding="utf-8")


def _write_mark(folder: Path) -> int:
    """List all files; the bytes of all of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    (folder / MARK).write_text(json.dumps({"vitbench_report": 1, "files": names}) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in files)


def _take_place(made: Path, target: Path) -> None:
    """Give the new report its name; the old one goes only after that, and comes back if that fails."""
    old = target.parent / f"{made.name}-old"
    if target.exists():
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        with suppress(OSError):
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
