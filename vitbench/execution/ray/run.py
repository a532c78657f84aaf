"""The Ray executor: the jobs of a run on the workers of a cluster, with the records that the local executor writes.

The driver plans, hands out, and writes; workers load backbones, embed images and score features. What is there is looked up, as
everywhere: a driver that was killed and started again goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from vitbench.backbones.base import Backbone
from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import GivenUpError
from vitbench.execution.config import AUTO, RunConfig
from vitbench.execution.estimate import Rate, longest_first, speed
from vitbench.execution.job import Job, load_for, looks_at_classifier, prepare
from vitbench.execution.local import LocalRun
from vitbench.execution.ray import cluster
from vitbench.execution.ray.course import Course
from vitbench.execution.ray.extraction import extract
from vitbench.execution.ray.scoring import Scoring
from vitbench.execution.ray.tasks import Piece
from vitbench.execution.ray.training import train
from vitbench.execution.ray.watch import start_watch
from vitbench.execution.ray.worker import Problem, Setting, describe, measure
from vitbench.features.remembered import RememberedBackbone
from vitbench.records.identity import key
from vitbench.tasks.task import Task


class RayRun(LocalRun):
    """One run under way on a cluster."""

    def carry_out(self, task_names: list[str]) -> None:
        """Every job of the run.

        Raises:
            UsageError: The cluster cannot be reached, or has not what one job needs.
        """
        tasks = list(self.load_tasks(task_names))
        left = {spec: found for spec in self.config.backbones if (found := self._left(spec, tasks))}
        if not left:
            return
        if self.config.profile:
            self.reporter.warn("--profile shows what this process does; what workers do is not in it")
        with cluster.connected(self.config.address) as nodes:
            per_job = cluster.per_job(nodes, self.config, trains=self.protocol.trains)
            setting = Setting(
                config=self._for_workers(nodes, per_job),
                protocol=self.protocol,
                command=self.command,
                folder=str(Path.cwd()),
                cpus=per_job.cpus,
                watch=start_watch(),
                writes=self._shared(nodes) and self.config.writer != "driver",
            )
            course = Course(self, setting, per_job, nodes)
            self._on_cluster(course, left)

    def _shared(self, nodes: Sequence[cluster.Node]) -> bool:
        """Whether every worker sees the output folder; that they compute as this process does is made sure of besides."""
        if not self.config.address:
            return True
        writer, there = "driver" if self.config.out_url else self.config.writer, self.config.out.exists()
        try:
            return cluster.check_workers(nodes, self.config.out, writer) or bool(self.config.out_url)
        finally:
            if self.dry_run and not there:
                with suppress(OSError):  # it was made to look whether workers see it
                    self.config.out.rmdir()

    def _for_workers(self, nodes: Sequence[cluster.Node], per_job: cluster.PerJob) -> RunConfig:
        """The configuration for workers: those that Ray gives no GPU see them all, and are told to leave them alone."""
        if per_job.gpus or self.config.device != AUTO or not any(node.gpus for node in nodes):
            return self.config
        return self.config.model_copy(update={"device": "cpu"})

    def _left(self, spec: str, tasks: Sequence[Task]) -> list[Task]:
        """The tasks that have something to be done for a backbone, as far as this machine can tell."""
        known = None if self.config.address else self._known(spec)
        return [task for task in tasks if known is None or not self._all_there(known, task)]

    def _known(self, spec: str) -> Backbone | None:
        """What a backbone is, as far as this machine can tell without loading weights."""
        if parse_backbone_spec(spec).kind == "pixels" and not (
            self.protocol.trains or looks_at_classifier(self.protocol)
        ):
            return load_for(spec, self.config, self.protocol)
        return self._remembered(spec)

    def _on_cluster(self, course: Course, left: dict[str, list[Task]]) -> None:
        backbones = self._described(course, left)
        if not backbones:
            return
        self._measure(course, list(backbones.values()))
        if self.config.budget is not None:
            tasks = list({task.name: task for found in left.values() for task in found}.values())
            kept = {task.name for task in self.fitted(list(backbones.values()), tasks, course.per_job.slots)}
            left = {spec: [task for task in found if task.name in kept] for spec, found in left.items()}
        todo = [(backbones[spec], task) for spec, tasks in left.items() if spec in backbones for task in tasks]
        while todo:
            jobs, todo = self._planned(todo)
            if self.dry_run:
                for job in jobs:
                    self.result.planned.append(self.announce(job))
                continue
            jobs = longest_first([(job, estimate.alone if (estimate := self.estimate(job)) else 0.0) for job in jobs])
            course.begin(jobs)
            if self.protocol.trains:
                train(course, jobs)
            else:
                scoring = Scoring(course)
                extract(course, jobs, scoring)
                scoring.finish()

    def _described(self, course: Course, specs: Iterable[str]) -> dict[str, Backbone]:
        """Spec to what the backbone is; one that cannot be loaded is noted among the failures."""
        found: dict[str, Backbone] = {}
        supervisor = course.supervisor()
        remote: Any = ray.remote(max_retries=0, num_cpus=course.per_job.cpus, num_gpus=course.per_job.gpus)(describe)
        for spec in specs:
            known = None if self.config.address else self._known(spec)
            if known is not None:
                found[spec] = known
                continue

            def done(result: RememberedBackbone, spec: str = spec) -> None:
                found[spec] = result

            def failed(problem: Problem, spec: str = spec) -> None:
                # What the backbone's own error says names it; that its worker hung or was lost does not.
                course.note(problem, f"loading {spec}: " if problem.kind == GivenUpError.__name__ else "", spec, "")

            def submit(spec: str = spec) -> Any:
                return remote.remote(course.told_to_workers, spec)

            supervisor.add(Piece(spec, submit, done, failed))
        course.wait_for(supervisor)
        return found

    def _measure(self, course: Course, backbones: Sequence[Backbone]) -> None:
        """Find out how fast one worker is, for the estimates."""
        course.run.result.slots = course.per_job.slots
        remote: Any = ray.remote(max_retries=0, num_cpus=course.per_job.cpus, num_gpus=course.per_job.gpus)(measure)
        supervisor = course.supervisor()
        device = str(backbones[0].device)
        dtypes = sorted({backbone.dtype for backbone in backbones})

        def submit() -> Any:
            return remote.remote(course.told_to_workers, device, dtypes, course.per_job.gpus)

        def done(rate: Rate) -> None:
            self.rates |= {(device, dtype): rate for dtype in dtypes}

        def failed(problem: Problem) -> None:
            self.reporter.warn(f"no worker could be measured, so estimates are of this machine's cores: {problem.text}")
            self.rates |= {(device, dtype): speed("cpu", dtypes=dtypes) for dtype in dtypes}

        supervisor.add(Piece("measuring a worker", submit, done, failed))
        course.wait_for(supervisor)

    def _planned(self, pairs: Sequence[tuple[Backbone, Task]]) -> tuple[list[Job], list[tuple[Backbone, Task]]]:
        """The jobs that can begin, and what has to wait for them, because it is to make the same records."""
        jobs: list[Job] = []
        later: list[tuple[Backbone, Task]] = []
        claimed: set[str] = set()
        for backbone, task in pairs:
            with self._failing_alone(f"{backbone.spec.label} on {task.name}: ", backbone.spec.text, task.name):
                job = prepare(self.config, backbone, task, self.protocol, self.results, self.made)
                wanted = {key(job.identities[name, cell]) for name, cells in job.wanted.items() for cell in cells}
                if wanted & claimed:
                    later.append((backbone, task))
                else:
                    claimed |= wanted
                    jobs.append(job)
        return jobs, later
