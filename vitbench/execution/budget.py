"""What of a run fits into a given time: seeds are left out first, then shots, then tasks.

A score of one seed is still a score of the same thing, one of fewer shots a part of the curve, and a task that is left out is
missing from the mean: so this order. One of each always stays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from vitbench.backbones.base import Backbone
from vitbench.errors import UsageError
from vitbench.execution.config import RunConfig
from vitbench.execution.estimate import Rate, Work, estimate_of, work_of
from vitbench.execution.job import Job, prepare
from vitbench.execution.plan import duration_text, run_seconds
from vitbench.features.featureset import IntArray
from vitbench.protocols.base import Cell, Protocol
from vitbench.records.store import ResultStore
from vitbench.tasks.catalog import expand_tasks, find_task
from vitbench.tasks.task import Task


@dataclass(frozen=True)
class Fitted:
    """A run that fits.

    Attributes:
        config: The configuration, its options and tasks as they are now.
        protocol: The protocol, with the seeds and shots that stay.
        tasks: The tasks that stay, in order.
        dropped: What was left out, a line each; empty where all fits.
        seconds: The estimate of what stays.
    """

    config: RunConfig
    protocol: Protocol
    tasks: list[Task]
    dropped: list[str]
    seconds: float


def fit(
    config: RunConfig,
    protocol: Protocol,
    backbones: Sequence[Backbone],
    tasks: Sequence[Task],
    results: ResultStore,
    seconds_available: float,
    rate: Rate,
    slots: int = 1,
) -> Fitted:
    """Leave out what does not fit. What is cached costs nothing: a run that was cut short and is started again keeps more.

    Every job is prepared once, with all its seeds and shots; what fewer of them need follows from that. A job that cannot be
    prepared counts nothing: the run itself tells why.

    Args:
        config: The run's configuration.
        protocol: Its protocol.
        backbones: Its backbones, as they are described; no weights are needed.
        tasks: Its tasks.
        results: The records that are there.
        seconds_available: The budget.
        rate: What one slot does in a second.
        slots: How many jobs run at a time.

    Raises:
        UsageError: Not even one seed of one shot of the cheapest task fits; the message holds its estimate.
    """
    jobs = _Jobs(config, protocol, backbones, tasks, results, rate, slots)
    choices = _choices(protocol)
    # What is left out never costs more time, so that the first choice that fits is found by bisection.
    first = bisect_left(choices, True, key=lambda choice: jobs.total(choice, tasks) <= seconds_available)
    chosen = choices[min(first, len(choices) - 1)]
    dropped, kept = _dropped(choices[0], chosen), list(tasks)
    while (took := jobs.total(chosen, kept)) > seconds_available:
        if len(kept) == 1:
            raise UsageError(_too_little(chosen, kept[0], took, seconds_available, len(backbones)))
        alone = {task.name: jobs.total(chosen, [task]) for task in kept}
        most = max(kept, key=lambda task: alone[task.name])
        kept.remove(most)
        dropped.append(f"task {most.name} (about {duration_text(alone[most.name])})")
    if len(kept) < len(tasks):
        config = config.model_copy(update={"tasks": _names(config, kept)})
    options = {name: list(values) for name, values in _values(chosen).items() if values != _values(protocol)[name]}
    if options:
        config = config.model_copy(update={"options": {**config.options, **options}})
    return Fitted(config, chosen, kept, dropped, took)


class _Jobs:
    """Every job of a run, prepared once, and what it costs with fewer seeds and shots."""

    def __init__(
        self,
        config: RunConfig,
        protocol: Protocol,
        backbones: Sequence[Backbone],
        tasks: Sequence[Task],
        results: ResultStore,
        rate: Rate,
        slots: int,
    ) -> None:
        self._rate, self._slots = rate, slots
        self._rows: dict[tuple[str, tuple[Cell, ...]], IntArray] = {}
        self._works: dict[tuple[int, str, str], Work] = {}
        self._backbones = backbones
        self._jobs: dict[tuple[int, str], Job] = {}
        for number, backbone in enumerate(backbones):
            for task in tasks:
                try:
                    self._jobs[number, task.name] = prepare(config, backbone, task, protocol, results)
                except Exception:  # whatever it is, it comes again when the job is run, and is told then
                    continue

    def total(self, protocol: Protocol, tasks: Sequence[Task]) -> float:
        """Seconds of every backbone on some tasks."""
        estimates = [
            (number, estimate_of(backbone, work, self._rate, self._slots))
            for number, backbone in enumerate(self._backbones)
            for task in tasks
            if (work := self._work(number, task.name, protocol)).records
        ]
        return run_seconds(estimates, self._slots)

    def _work(self, number: int, task: str, protocol: Protocol) -> Work:
        place = (number, task, str(_values(protocol)))
        if place not in self._works:
            job = self._jobs.get((number, task))
            self._works[place] = Work() if job is None else work_of(self._narrowed(job, protocol))
        return self._works[place]

    def _narrowed(self, job: Job, protocol: Protocol) -> Job:
        """A job with the cells of a protocol alone, and the rows that these need."""
        kept = set(protocol.cells())
        every = {cell for cells in job.wanted.values() for cell in cells}
        if every <= kept:
            return job
        wanted = {name: [cell for cell in cells if cell in kept] for name, cells in job.wanted.items()}
        wanted = {name: cells for name, cells in wanted.items() if cells}
        cells = tuple(sorted(every & kept))
        if not cells:
            return replace(job, wanted={}, rows={role: rows[:0] for role, rows in job.rows.items()})
        place = (job.task.name, cells)
        if place not in self._rows:
            self._rows[place] = job.protocol.train_rows(job.splits["train"].labels, job.task.num_classes, cells)
        return replace(job, wanted=wanted, rows={**job.rows, "train": self._rows[place]})


def _choices(protocol: Protocol) -> list[Protocol]:
    """The protocol, then without its last seed, and so on to one seed, then without its largest shot, and so on to one shot."""
    found, values = [protocol], _values(protocol)
    seeds, shots = list(values.get("seeds", ())), list(values.get("shots", ()))
    while len(seeds) > 1:
        seeds.pop()
        found.append(_with(protocol, seeds, shots))
    while len(shots) > 1:
        shots.remove(max(shots))
        found.append(_with(protocol, seeds, shots))
    return found


def _values(protocol: Any) -> dict[str, tuple[Any, ...]]:
    """The seeds and shots of a protocol that has such fields."""
    names = [item.name for item in fields(protocol)] if is_dataclass(protocol) else []
    found = {name: getattr(protocol, name) for name in ("seeds", "shots") if name in names}
    return {name: tuple(values) for name, values in found.items() if isinstance(values, Sequence)}


def _with(protocol: Any, seeds: Sequence[Any], shots: Sequence[Any]) -> Protocol:
    given = {"seeds": tuple(seeds), "shots": tuple(shots)}
    changed: Protocol = replace(protocol, **{name: given[name] for name in _values(protocol)})
    return changed


def _dropped(before: Protocol, after: Protocol) -> list[str]:
    """What one has and the other has not, a line for seeds and one for shots."""
    lines, left = [], _values(after)
    for name, values in _values(before).items():
        gone = [str(value) for value in values if value not in left[name]]
        if gone:
            word = name if len(gone) > 1 else name[:-1]
            stays = f"{name if len(left[name]) > 1 else name[:-1]} {', '.join(map(str, left[name]))}"
            lines.append(f"{word} {', '.join(gone)} ({stays} {'stay' if len(left[name]) > 1 else 'stays'})")
    return lines


def _names(config: RunConfig, kept: Sequence[Task]) -> tuple[str, ...]:
    """The names by which a configuration asks for some of its tasks."""
    names = {task.name for task in kept}
    return tuple(name for name in expand_tasks(list(config.tasks)) if find_task(name, config.task_options)[0] in names)


def _too_little(protocol: Protocol, task: Task, least: float, available: float, backbones: int) -> str:
    parts = [f"{name[:-1]} {values[0]}" for name, values in _values(protocol).items()]
    what = " and ".join([*parts, f"task {task.name}"])
    whom = "one backbone" if backbones == 1 else f"{backbones} backbones"
    given = duration_text(available) if available >= 1 else f"{available:g} s"
    return (
        f"--budget {given} is too short: the least that could stay, {what} on {whom}, takes about {duration_text(least)}; "
        f"give more time or fewer backbones"
    )
