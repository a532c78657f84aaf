"""Audits of many tasks: each loaded, looked at, drawn and written; one that fails does not stop the others."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from vitbench.analysis.audit import AUDIT_FILE, SHEET_FILE, Audit, audit_task, write_audit
from vitbench.analysis.contact_sheet import TASK, sheet_preprocessing, write_sheet
from vitbench.errors import StoreError, UsageError, VitbenchError, first_line
from vitbench.execution.reporter import Reporter
from vitbench.hub import offline
from vitbench.records.atomic import check_writable, slug, write_text
from vitbench.tasks import transforms
from vitbench.tasks.catalog import expand_tasks, load_task
from vitbench.tasks.task import Task, TaskOptions

FAILURES = "failures"
"""Folder of the tracebacks of what nobody expected, below the output folder."""


@dataclass(frozen=True)
class AuditOptions:
    """What `audit_tasks` is told.

    Attributes:
        splits: Names or expressions of splits; those that are learned from and scored when empty.
        limit: Look at this many images of each split, evenly spread.
        preprocess: How the sheet's images are prepared; empty for the backbone's or the task's own way.
        backbone: Spec of the backbone whose preprocessing the sheet shows.
        sheet: Draw a contact sheet.
        task_data: Name of a task to where its data is read from.
        accept_sizes: Go on where a split has another size than expected.
        workers: Threads that decode images.
        offline: Ask the hub nothing.
    """

    splits: tuple[str, ...] = ()
    limit: int | None = None
    preprocess: str = ""
    backbone: str = ""
    sheet: bool = True
    task_data: Mapping[str, str] = field(default_factory=dict)
    accept_sizes: bool = False
    workers: int | None = None
    offline: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes:
        task: Its name.
        audit: The audit; None when it failed.
        error: Why it failed, in one line; "" when it did not.
        files: What was written.
    """

    task: str
    audit: Audit | None
    error: str = ""
    files: tuple[Path, ...] = ()


def audit_tasks(
    patterns: Sequence[str], out: Path, options: AuditOptions, reporter: Reporter | None = None
) -> Iterator[Outcome]:
    """Audit tasks one after the other; each has a folder below `out` with `audit.json` and `sheet.png`.

    Whatever goes wrong with a task is its outcome, and the others go on.

    Args:
        patterns: Names, suites, globs, task files, `imagefolder:PATH`.
        out: Where the folders go.
        options: What to look at.
        reporter: Hears of the progress.

    Raises:
        UsageError: A name, the preprocessing or a task of `task_data` cannot be meant. Nothing has been looked at then.
        StoreError: `out` cannot be written to.
    """
    names = expand_tasks(list(patterns))
    for name in options.task_data:
        if not set(expand_tasks([name])) & set(names):
            raise UsageError(f"--task-data names the task '{name}', which is not among the tasks of this audit")
    if options.preprocess and options.preprocess != TASK:
        transforms.check(options.preprocess)
    check_writable(out)
    taken = {FAILURES}
    for name in names:
        # Entered for each task alone: between two of them the caller's code runs.
        with offline() if options.offline else nullcontext():
            outcome = _outcome(name, out, taken, options, reporter)
        yield outcome


def _outcome(name: str, out: Path, taken: set[str], options: AuditOptions, reporter: Reporter | None) -> Outcome:
    try:
        task = load_task(name, TaskOptions(data=options.task_data, accept_sizes=options.accept_sizes))
        return _audit_one(task, out / _folder_name(task.name, taken), options, reporter)
    except StoreError:
        raise
    except VitbenchError as error:
        return Outcome(name, None, f"{name}: {error}" if name not in str(error) else str(error))
    except Exception as error:
        # A bug, or memory that ran out: this task is lost, the others need not be, and the traceback is kept.
        text = "".join(traceback.format_exception(error))
        path = out / FAILURES / f"{hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}.txt"
        write_text(path, text.encode("utf-8", "backslashreplace").decode())
        line = f"{type(error).__name__}: {first_line(error)} (unexpected; traceback in {path})"
        return Outcome(name, None, f"{name}: {line}")


def _audit_one(task: Task, folder: Path, options: AuditOptions, reporter: Reporter | None) -> Outcome:
    # What the sheet needs is asked for first: a wrong backbone must not cost an hour of looking at images.
    preprocessing = sheet_preprocessing(task, options.preprocess, options.backbone) if options.sheet else None
    audit = audit_task(task, options.splits, limit=options.limit, workers=options.workers, reporter=reporter)
    write_audit(audit, folder)
    files = [folder / AUDIT_FILE]
    if preprocessing is not None:
        files.append(folder / SHEET_FILE)
        write_sheet(task, [split.name for split in audit.splits], preprocessing, files[-1])
    return Outcome(task.name, audit, files=tuple(files))


def _folder_name(name: str, taken: set[str]) -> str:
    """A folder name for a task that no other task of this call has: names that differ may be one as a folder name."""
    found = base = slug(name)
    number = 1
    while found.lower() in taken:
        number += 1
        found = f"{base}-{number}"
    taken.add(found.lower())
    return found
