"""A run from its configuration: what it says is checked, and an executor carries it out."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec

import torch

from vitbench.backbones import BACKBONES
from vitbench.backbones.spec import parse_backbone_spec, parse_representation
from vitbench.errors import StoppedError, UsageError
from vitbench.execution.config import AUTO, TASK, RunConfig
from vitbench.execution.journal import Journal, NoJournal
from vitbench.execution.local import LocalRun
from vitbench.execution.plan import RunResult
from vitbench.execution.reporter import Reporter
from vitbench.features.profile import Profile, recording
from vitbench.hub import offline
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Protocol
from vitbench.records.atomic import check_writable, sweep
from vitbench.tasks import transforms
from vitbench.tasks.catalog import expand_tasks
from vitbench.tasks.splits import parse
from vitbench.training import processes


def execute(config: RunConfig, reporter: Reporter, command: str, *, dry_run: bool = False) -> RunResult:
    """Carry out a run: every task on every backbone. A failing job does not stop the others.

    Args:
        config: What to run.
        reporter: Hears of the progress.
        command: What started the run, for the records.
        dry_run: Prepare every job, write nothing, and stop.

    Raises:
        StoppedError: A training was asked to end; its state is saved.
        UsageError: A name cannot be meant, or the cluster cannot be used (nothing has been done then).
        StoreError: The output folder cannot be written to (nothing has been done then).
    """
    protocol: Protocol = PROTOCOLS.load(config.protocol).from_options(config.options)
    task_names = expand_tasks(list(config.tasks))
    _check(config, task_names)
    if processes.count() > 1:
        processes.join(cpu=config.device == "cpu" or not torch.cuda.is_available())
        if not processes.is_main():
            return _beside_the_main_process(config, protocol, command, task_names)
    if not dry_run:
        check_writable(config.out)
        sweep(config.out / "records")
        config.save()
    name = executor(config)
    if config.executor == AUTO and name == "local" and _several_gpus(config):
        reporter.line('one of several GPUs is used: pip install "vitbench[ray]" to use them all')
    if name == "local" and (given := _of_no_use(config)):
        reporter.warn(f"{', '.join(given)}: for --executor ray, and of no use here")
    jobs = [(parse_backbone_spec(spec).text, task) for spec in config.backbones for task in task_names]
    profile = Profile() if config.profile and not dry_run else None
    with (
        NoJournal() if dry_run else Journal(config.out, command, name, jobs, reporter.warn) as journal,
        recording(profile),
        offline() if config.offline else nullcontext(),
    ):
        run = _runs(name)(config, protocol, reporter, command, dry_run, journal)
        run.carry_out(task_names)
    if profile is not None:
        run.result.profile, run.result.trace = profile, profile.save(config.out / "profile")
    return run.result


def executor(config: RunConfig) -> str:
    """The executor of a run: the one that is named, else Ray where there is a cluster or several GPUs, else this process."""
    if config.executor != AUTO:
        return config.executor
    if config.address:
        return "ray"
    return "ray" if _several_gpus(config) and find_spec("ray") is not None else "local"


def _of_no_use(config: RunConfig) -> list[str]:
    """The options that were given and say nothing to the local executor."""
    fields = ("gpus_per_job", "cpus_per_job", "max_failures", "timeout_per_job", "writer")
    changed = [name for name in fields if getattr(config, name) != RunConfig.model_fields[name].default]
    return [f"--{name.replace('_', '-')}" for name in changed]


def _several_gpus(config: RunConfig) -> bool:
    """Whether this machine has several GPUs that the run may use, and no launcher has shared them out already."""
    return config.device in (AUTO, "cuda") and torch.cuda.device_count() > 1 and processes.count() == 1


def _runs(name: str) -> type[LocalRun]:
    if name == "local":
        return LocalRun
    from vitbench.execution.ray.joining import imported

    imported()  # which says what to install where Ray is missing
    from vitbench.execution.ray.run import RayRun

    return RayRun


def _check(config: RunConfig, task_names: list[str]) -> None:
    """Refuse names and options that cannot be meant, before anything is done."""
    for spec in config.backbones:
        BACKBONES.check(parse_backbone_spec(spec).kind)
    for name in config.representations:
        parse_representation(name)
    if config.preprocess != TASK:
        transforms.check(config.preprocess)
    for name in config.task_data:
        if not set(expand_tasks([name])) & set(task_names):
            raise UsageError(f"--task-data names the task '{name}', which is not among the tasks of this run")
    for split in (config.train_split, config.test_split):
        if split:
            parse(split)
    if config.executor == "local" and config.address:
        raise UsageError("--address is where a Ray cluster is: use --executor ray, or leave it out")
    if executor(config) == "ray" and processes.count() > 1:
        raise UsageError("--executor ray starts its own processes: run it without torchrun or accelerate launch")


def _beside_the_main_process(config: RunConfig, protocol: Protocol, command: str, task_names: list[str]) -> RunResult:
    """What a process does that shares the trainings of a run: no more than that, and in silence.

    Raises:
        SystemExit: A training was asked to end, which the main process tells.
    """
    if protocol.trains:
        run = LocalRun(config, protocol, Reporter(), command, dry_run=False)
        with offline() if config.offline else nullcontext():
            try:
                run.carry_out(task_names)
            except StoppedError as stopped:
                raise SystemExit(stopped.status) from None
    return RunResult()
