"""Find tasks by name: files below `tasks/`, suites, globs, a task file's path, or `imagefolder:PATH`."""

from __future__ import annotations

import fnmatch
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from vitbench.errors import DataError, UsageError, unknown
from vitbench.validation import user_path

if TYPE_CHECKING:
    from vitbench.tasks.spec import TaskSpec
    from vitbench.tasks.suite import SuiteSpec
    from vitbench.tasks.task import Task, TaskOptions

FOLDER_PREFIX = "imagefolder:"
SUITE_FILE = "suite.yaml"


def task_folder() -> Path:
    """The folder of the task files that ship with vitbench: in the package when installed, else the checkout's `tasks/`."""
    package = Path(__file__).resolve().parent.parent
    bundled = package / "_bundled" / "tasks"
    return bundled if bundled.is_dir() else package.parent / "tasks"


@cache
def task_files() -> dict[str, Path]:
    """Every known task's full name (`paper/cifar10`) and file, in order of name.

    Other packages add tasks by an entry point of the group `vitbench.tasks` that names a package holding YAML files; the
    entry's name is their suite.
    """
    found = {_name(path, task_folder()): path for path in _yaml_files(task_folder())}
    for point in entry_points(group="vitbench.tasks"):
        module = point.load()
        for folder in map(Path, module.__path__):
            for path in _yaml_files(folder):
                name = f"{point.name}/{_name(path, folder)}"
                if name in found:
                    raise UsageError(f"two tasks are called '{name}': {found[name]} and {path}")
                found[name] = path
    return found


def suites() -> dict[str, list[str]]:
    """Each suite (folder of tasks) and the full names of the tasks in it, subfolders included."""
    result: dict[str, list[str]] = {}
    for name in task_files():
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            result.setdefault("/".join(parts[:depth]), []).append(name)
    return result


def suite_spec(name: str) -> SuiteSpec:
    """How the tasks of a suite are evaluated together, as its authors do.

    Raises:
        UsageError: There is no such suite, or none that says how it is evaluated; the nearest is offered.
        DataError: Its file cannot be read.
    """
    from vitbench.tasks.suite import read_suite_file

    path = task_folder() / name / SUITE_FILE
    above = name.split("/")[0]
    if name in suites() and above != name and (task_folder() / above / SUITE_FILE).is_file():
        raise UsageError(f"'{name}' is a part of the suite '{above}': write --suite {above} --tasks {name}")
    if name not in suites() or not path.is_file():
        named = [suite for suite in suites() if (task_folder() / suite / SUITE_FILE).is_file()]
        raise unknown("suite", name, named, hint="vitbench ls suites")
    return read_suite_file(path)


def expand_tasks(patterns: list[str]) -> list[str]:
    """Turn names, suites, globs, task files and `imagefolder:PATH` into task names, each once, in the order given.

    Raises:
        UsageError: A pattern fits nothing (the nearest names are offered), or a short name fits several tasks.
    """
    expanded = list(dict.fromkeys(name for pattern in patterns for name in _expand(pattern)))
    called: dict[str, str] = {}
    for name in expanded:
        own = own_name(name)
        if own in called:
            raise UsageError(f"two tasks are called '{own}': {called[own]} and {name}: rename one")
        called[own] = name
    return expanded


def own_name(name: str) -> str:
    """The name under which a task's records are kept."""
    if name.startswith(FOLDER_PREFIX):
        return f"imagefolder/{user_path(name.removeprefix(FOLDER_PREFIX), UsageError).resolve().name}"
    return name if name in task_files() else Path(name).stem


def _shortens(pattern: str, name: str) -> bool:
    """Whether a short name fits: the last part alone, or the first parts and the last (`vtab/resisc45`)."""
    *folders, last = pattern.split("/")
    return name.split("/")[-1] == last and (not folders or name.startswith(f"{'/'.join(folders)}/"))


def _expand(pattern: str) -> list[str]:
    if pattern == FOLDER_PREFIX:
        raise UsageError(f"task '{pattern}' names no folder: write imagefolder:PATH")
    if pattern.startswith(FOLDER_PREFIX) or pattern.endswith((".yaml", ".yml")):
        return [pattern]
    names = list(task_files())
    if pattern in names:
        return [pattern]
    if pattern in suites():
        return suites()[pattern]
    if any(character in pattern for character in "*?["):
        if found := [name for name in names if fnmatch.fnmatchcase(name, pattern)]:
            return found
    else:
        found = [name for name in names if _shortens(pattern, name)]
        if len(found) == 1:
            return found
        if found:
            raise UsageError(f"task '{pattern}' could be {' or '.join(found)}: write the full name")
    if Path(pattern).is_dir():
        raise UsageError(f"task '{pattern}' is a folder: to use its images write {FOLDER_PREFIX}{pattern}")
    short = [name.split("/")[-1] for name in names]
    choices = [*names, *(name for name in short if short.count(name) == 1), *suites()]
    raise unknown("task", pattern, choices, hint="vitbench ls tasks, a task file's path, or imagefolder:PATH")


def load_task(name: str, options: TaskOptions | None = None) -> Task:
    """Load a task: its labels, its splits, its identity. Images are read when they are asked for.

    Args:
        name: A task's name (`paper/cifar10`, `cifar10`), a task file's path, or `imagefolder:PATH`.
        options: Where its data lies, which splits are used, whether other sizes are accepted.

    Raises:
        UsageError: No task is called that; the nearest names are offered.
        DataError: Its data is missing, or is not what the task file says.
    """
    from vitbench.tasks.task import Task

    full, path, spec = find_task(name, options)
    return Task(full, spec, base=path.parent, options=options)


def find_task(name: str, options: TaskOptions | None = None) -> tuple[str, Path, TaskSpec]:
    """Find a task without loading its data.

    Returns:
        Its full name, its file (for `imagefolder:PATH` the folder), and its specification.

    Raises:
        UsageError: No task is called that; the nearest names are offered.
        DataError: The task file or the image folder is missing or cannot be read.
    """
    from vitbench.tasks.relocate import relocated
    from vitbench.tasks.source_spec import FolderSource
    from vitbench.tasks.spec import SplitSpec, TaskSpec, read_task_file

    full = _single(name)
    if full.startswith(FOLDER_PREFIX):
        from vitbench.tasks.sources.imagefolder import split_folders

        if any(_single(asked) == full for asked in (options.data if options else {})):
            raise UsageError(f"--task-data: '{full}' says itself where its data is")
        folder = user_path(full.removeprefix(FOLDER_PREFIX), UsageError).resolve()
        spec = TaskSpec(
            title=folder.name,
            source=FolderSource(kind="imagefolder", path=folder.name),
            splits={split: SplitSpec(**fields) for split, fields in split_folders(folder).items()},
        )
        return own_name(full), folder, spec
    path = (task_files().get(full) or user_path(full, UsageError)).resolve()
    if not path.is_file():
        raise DataError(f"there is no task file {path}")
    spec = read_task_file(path)
    for asked, place in (options.data if options else {}).items():
        if _single(asked) == full:
            used = (options.train_split, options.test_split) if options else ("", "")
            spec = relocated(spec, user_path(place, UsageError).resolve(), full, *used)
    return own_name(full), path, spec


def _single(name: str) -> str:
    found = expand_tasks([name])
    if len(found) != 1:
        raise UsageError(f"'{name}' is {len(found)} tasks: {', '.join(found[:5])}{', …' if len(found) > 5 else ''}")
    return found[0]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*.y*ml") if path.suffix in (".yaml", ".yml") and path.name != SUITE_FILE
    )
