"""Fetch what tasks need from the hub, before they are run: exactly the files behind the splits in use, each once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.filesize import decimal

from vitbench.errors import DataError, StoreError, VitbenchError, unknown
from vitbench.tasks.catalog import find_task
from vitbench.tasks.source_spec import HubSource
from vitbench.tasks.sources import SOURCES
from vitbench.tasks.sources.hub import check_apart, split_files
from vitbench.tasks.sources.hub_files import (
    Repository,
    bytes_there,
    check_whole,
    obtain,
    repository_files,
    repository_of,
)
from vitbench.tasks.spec import TaskSpec
from vitbench.tasks.splits import parse
from vitbench.tasks.task import Task, TaskOptions


@dataclass(frozen=True)
class FetchItem:
    """One file to be had, for one or several tasks.

    Attributes:
        tasks: Full names of the tasks that need it.
        splits: The stored splits that it is part of.
        repository: Where it is.
        file: Its name there.
        bytes: Its size.
        there: How many bytes of it need not be fetched any more.
    """

    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    repository: Repository
    file: str
    bytes: int
    there: int

    @property
    def cached(self) -> bool:
        """Whether it is there completely."""
        return self.there == self.bytes


@dataclass(frozen=True)
class TaskPlan:
    """What fetching one task means.

    Attributes:
        task: Full name.
        spec: Its task file; None when it could not be found.
        base: The folder of its task file.
        splits: What was asked for: names or expressions.
        stored: The stored splits behind these.
        repository: Where its files are; None for a task that lies on this machine or that fails.
        pinned: The commit was found, not named by the task file.
        error: Why it cannot be fetched; empty when it can.
    """

    task: str
    spec: TaskSpec | None = None
    base: Path = Path()
    splits: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    repository: Repository | None = None
    pinned: bool = False
    error: str = ""

    @property
    def local(self) -> bool:
        """There is nothing to fetch: it lies on this machine, or is made here."""
        return self.repository is None and not self.error

    @property
    def estimate(self) -> int | None:
        """Bytes by the task file, where the hub did not say which files there are; None when they are known, or nobody says.

        A task file states the size of what its evaluation reads, so it says nothing of other splits.
        """
        if self.spec is None or not isinstance(self.spec.source, HubSource) or self.repository is not None:
            return None
        return self.spec.download_bytes if set(self.stored) == set(stored_behind(self.spec, self.spec.used())) else None


@dataclass(frozen=True)
class FetchPlan:
    """What is to be fetched.

    Attributes:
        tasks: In the order asked for.
        items: Every file once.
        options: How the tasks are to be read.
    """

    tasks: tuple[TaskPlan, ...]
    items: tuple[FetchItem, ...]
    options: TaskOptions = field(default_factory=TaskOptions)

    def of(self, task: str) -> list[FetchItem]:
        """The files that a task needs."""
        return [item for item in self.items if task in item.tasks]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(item.bytes for item in self.items)

    @property
    def to_fetch(self) -> int:
        """Bytes that are not there yet."""
        return sum(item.bytes - item.there for item in self.items)

    @property
    def estimated(self) -> int:
        """Bytes by the task files, of the tasks that the hub said nothing of. Files that tasks share count for each."""
        return sum(task.estimate or 0 for task in self.tasks)


@dataclass(frozen=True)
class Fetched:
    """What became of one task.

    Attributes:
        task: Full name.
        images: Split to number of images, of the splits that were asked for.
        classes: Number of classes; 0 when only the test images were asked for and nobody says.
        error: Why it cannot be used; empty when it can.
        notes: What else there is to say.
    """

    task: str
    images: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()


def plan(names: Sequence[str], splits: Sequence[str] = (), options: TaskOptions | None = None) -> FetchPlan:
    """See what tasks need. The hub is asked for lists of files only.

    Args:
        names: Tasks, as `expand_tasks` gives them.
        splits: Names or expressions of splits, of every task; those that its evaluation reads when empty.
        options: How the tasks are to be read.

    Returns:
        The plan; a task that cannot be had is in it with its error.
    """
    options = options or TaskOptions()
    tasks: list[TaskPlan] = []
    items: dict[tuple[Repository, str], FetchItem] = {}
    for name in names:
        task = TaskPlan(name)
        try:
            full, path, spec = find_task(name, options)
            wanted = tuple(splits or dict.fromkeys(_used(spec, options)))
            task = TaskPlan(full, spec, path.parent, wanted, stored_behind(spec, wanted))
            if isinstance(spec.source, HubSource):
                task = _plan_hub(task, spec.source, items)
        except VitbenchError as error:
            task = replace(task, error=str(error))
        tasks.append(task)
    return FetchPlan(tuple(tasks), tuple(items.values()), options)


def _used(spec: TaskSpec, options: TaskOptions) -> list[str]:
    given = {spec.evaluation.train: options.train_split, spec.evaluation.test: options.test_split}
    return [given.get(name) or name for name in spec.used()]


def stored_behind(spec: TaskSpec, expressions: Sequence[str]) -> tuple[str, ...]:
    """The stored splits that some splits take their images from, in the order of the task file.

    Raises:
        UsageError: There is no such split; the nearest are offered.
    """

    def behind(expression: str) -> Iterator[str]:
        for term in parse(expression):
            if term.name not in spec.splits:
                raise unknown("split", term.name, spec.splits)
            if term.name in spec.selections:
                yield from behind(spec.selections[term.name])
            else:
                yield term.name

    found = {name for expression in expressions for name in behind(expression)}
    return tuple(name for name in spec.stored if name in found)


def _plan_hub(task: TaskPlan, source: HubSource, items: dict[tuple[Repository, str], FetchItem]) -> TaskPlan:
    assert task.spec is not None
    repository = repository_of(source)
    files = repository_files(repository)
    check_apart(repository, task.spec)
    needed: dict[str, list[str]] = {}
    for split in task.stored:
        for name in split_files(repository, task.spec.splits[split].files):
            needed.setdefault(name, []).append(split)
    if source.class_names_file:
        needed.setdefault(split_files(repository, [source.class_names_file])[0], [])
    for name, splits in needed.items():
        known = items.get((repository, name))
        items[repository, name] = FetchItem(
            (*known.tasks, task.task) if known else (task.task,),
            tuple(dict.fromkeys((*known.splits, *splits) if known else splits)),
            repository,
            name,
            files[name].size,
            bytes_there(repository, name, files[name]),
        )
    return TaskPlan(task.task, task.spec, task.base, task.splits, task.stored, repository, pinned=not source.revision)


def check_space(plan: FetchPlan) -> None:
    """Refuse a plan that the disk has no room for: parquet needs it twice, as `datasets` opens a copy of its own.

    Raises:
        StoreError: It has not; both numbers are named.
    """
    import datasets
    from huggingface_hub import constants

    parquet = {task.task for task in plan.tasks if task.repository and _is_parquet(task)}
    copies = sum(item.bytes - item.there for item in plan.items if parquet & set(item.tasks))
    needs: dict[int, tuple[Path, int]] = {}
    for folder, size in ((constants.HF_HUB_CACHE, plan.to_fetch), (datasets.config.HF_DATASETS_CACHE, copies)):
        place = existing(Path(folder))
        device = place.stat().st_dev
        needs[device] = (needs.get(device, (place, 0))[0], needs.get(device, (place, 0))[1] + size)
    for place, size in needs.values():
        if (free := shutil.disk_usage(place).free) < size:
            raise StoreError(
                f"{decimal(size)} are needed below {place}, and {decimal(free)} are free: make room, or set HF_HOME to a "
                f"folder on a larger disk"
            )


def _is_parquet(task: TaskPlan) -> bool:
    return task.spec is not None and isinstance(task.spec.source, HubSource) and task.spec.source.format == "parquet"


def existing(folder: Path) -> Path:
    """The nearest folder above, or the folder itself, that is there."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def free_bytes() -> int:
    """What is free where the hub's files go."""
    from huggingface_hub import constants

    return shutil.disk_usage(existing(Path(constants.HF_HUB_CACHE))).free


def fetch(plan: FetchPlan, progress: Callable[[FetchItem, int], None] = lambda item, count: None) -> list[Fetched]:
    """Fetch the files of a plan, and prove that every task can be loaded from them.

    A task that fails does not stop the others. What was fetched when this is interrupted stays, a half file too, and the next
    call goes on from there.

    Args:
        plan: What to fetch.
        progress: Called with a file and the number of bytes that came since.

    Returns:
        One for each task of the plan.

    Raises:
        StoreError: The disk is full or the cache cannot be written to.
    """
    failed = {task.task: task.error for task in plan.tasks if task.error}
    for item in plan.items:
        if set(item.tasks) <= set(failed):
            continue
        try:
            _obtain_whole(item, partial(progress, item))
        except DataError as error:
            failed |= {name: str(error) for name in item.tasks if name not in failed}
    return [
        Fetched(task.task, error=failed[task.task]) if task.task in failed else _loaded(task, plan.options)
        for task in plan.tasks
    ]


def _obtain_whole(item: FetchItem, progress: Callable[[int], None]) -> None:
    if item.repository.path(item.file).is_file():
        try:
            check_whole(item.repository, [item.file])
        except DataError:
            # It was removed, and is fetched anew; where it could not be removed, the check below says so.
            progress(-item.there)
    obtain(item.repository, item.file, progress)
    check_whole(item.repository, [item.file])


def _loaded(task: TaskPlan, options: TaskOptions) -> Fetched:
    """Load what was fetched, as a run would."""
    assert task.spec is not None
    if task.local:
        return Fetched(task.task, notes=("nothing to fetch",))
    try:
        if set(stored_behind(task.spec, _used(task.spec, options))) <= set(task.stored):
            loaded = Task(task.task, task.spec, task.base, options)
            loaded.tuning_splits()
            images = {name: len(loaded.split(name)) for name in task.splits}
            classes, notes = loaded.num_classes, tuple(loaded.deviations)
        else:
            images, classes = _check_stored(task, options)
            notes = ()
    except VitbenchError as error:
        return Fetched(task.task, error=str(error))
    return Fetched(task.task, images, classes, notes=notes + _findings(task, images, classes))


def _check_stored(task: TaskPlan, options: TaskOptions) -> tuple[dict[str, int], int]:
    """Sizes and labels of the stored splits that were fetched, where a task cannot be loaded for lack of the others."""
    assert task.spec is not None
    images, top = {}, 0
    for name in task.stored:
        rows = SOURCES.load(task.spec.source.kind)(task.spec, name, task.base)
        count, expected = len(rows.labels), task.spec.splits[name].size
        if expected not in (None, count) and not options.accept_sizes:
            raise DataError(
                f"task '{task.task}': split '{name}' has {count:,} images where the task file expects {expected:,}"
            )
        low, high = int(rows.labels.min(initial=0)), int(rows.labels.max(initial=0))
        if low < 0 or high >= (task.spec.num_classes or high + 1):
            raise DataError(
                f"task '{task.task}': split '{name}' has labels from {low} to {high} where the task file expects "
                f"{task.spec.num_classes} classes"
            )
        images[name], top = count, max(top, high + 1)
    return images, task.spec.num_classes or top


def _findings(task: TaskPlan, images: dict[str, int], classes: int) -> tuple[str, ...]:
    """What is to be said of a task whose source nobody had seen."""
    if task.spec is None or not task.spec.unverified or task.repository is None:
        return ()
    sizes = ", ".join(f"{name} {count:,}" for name, count in images.items())
    found = f"unverified until now: found {sizes} images of {classes} classes"
    return (f"{found}; pinned to commit {task.repository.commit}" if task.pinned else found,)
