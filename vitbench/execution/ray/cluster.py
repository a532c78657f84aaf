"""The cluster that carries out a run: joining it, what one job gets of it, and whether its workers compute as this process does.

What a Ray of our own listens on is in `joining`; how an address that does not answer is told, in `address`.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitbench.errors import UsageError, listed, one_line
from vitbench.execution.config import AUTO, RunConfig
from vitbench.execution.ray import environment
from vitbench.execution.ray.address import parse_address
from vitbench.execution.ray.joining import imported, joined, own
from vitbench.records.atomic import TEMPORARY_PREFIX, check_writable, write_text
from vitbench.records.provenance import LIBRARIES

CHECK_SECONDS = 60.0
"""How long a node may take to start a worker and to say what it has; an idle one takes a second or two."""
MOST_CPUS_WITH_GPUS = 16
MOST_CPUS = 4


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's name for it, in hexadecimal.
        name: Its host's name, with the start of its id where several nodes have that.
        cpus: CPU cores that Ray may give away there.
        gpus: GPUs that Ray may give away there.
    """

    id: str
    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class PerJob:
    """What one job gets.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs; below one it shares a GPU with others.
        slots: How many such jobs the cluster runs at once.
    """

    cpus: int
    gpus: float
    slots: int


@contextmanager
def connected(address: str) -> Iterator[list[Node]]:
    """Join a cluster, and leave it afterwards; the nodes that it has.

    The Ray that this process has initialised already is taken as it is, whatever the address, and is left running.

    Args:
        address: `""` for a Ray of our own on this machine, `auto`, `HOST:PORT` or `ray://HOST:PORT`.

    Raises:
        UsageError: Ray is not installed, the address has none of these forms, or no cluster answers there in bounded time that
            takes this process.
        StoreError: A Ray of our own does not start.
    """
    if imported().is_initialized():
        yield nodes()
        return
    with joined(parse_address(address)) if address else own():
        yield nodes()


def nodes() -> list[Node]:
    """The nodes that are alive now, by name."""
    alive = [node for node in imported().nodes() if node["Alive"]]
    hosts = Counter(node["NodeManagerHostname"] for node in alive)
    found = []
    for node in alive:
        host, identity, resources = node["NodeManagerHostname"], node["NodeID"], node["Resources"]
        name = host if hosts[host] == 1 else f"{host} ({identity[:8]})"
        found.append(Node(identity, name, float(resources.get("CPU", 0)), float(resources.get("GPU", 0))))
    return sorted(found, key=lambda node: node.name)


def per_job(nodes: Sequence[Node], config: RunConfig, *, trains: bool = False) -> PerJob:
    """What one job of a run gets, as asked for or by default.

    By default a job has one GPU where there are any that the run may use, and with it that GPU's share of its node's cores, at
    most 16. Without GPUs it has 4 cores, or all that the smallest node has; where that would be one worker in all, it has half of
    the node's cores, rounded down, for two workers (three where there are three cores), which embed more images: the threads of
    one worker wait for each other. A job that trains has the cores to itself all the same.

    Args:
        nodes: The cluster.
        config: The run's configuration.
        trains: Whether a job trains its backbone.

    Raises:
        UsageError: No node has what one job needs; or GPUs are asked for on the CPU.
    """
    gpus = config.gpus_per_job
    if gpus is None:
        may = config.device == AUTO or config.device.startswith("cuda")
        gpus = 1.0 if may and (config.device != AUTO or any(node.gpus >= 1 for node in nodes)) else 0.0
    if gpus and config.device == "cpu":
        raise UsageError(f"gpus-per-job is {gpus:g}, and device is cpu: leave one of them out")
    cpus = config.cpus_per_job or _default_cpus(nodes, gpus, trains=trains)
    slots = sum(_slots(node, cpus, gpus) for node in nodes)
    if not slots:
        raise UsageError(_lacking(nodes, cpus, gpus))
    return PerJob(cpus, gpus, slots)


def recounted(nodes: Sequence[Node], per_job: PerJob) -> PerJob:
    """What one job gets stays as it was decided; how many fit on these nodes.

    Raises:
        UsageError: None does.
    """
    slots = sum(_slots(node, per_job.cpus, per_job.gpus) for node in nodes)
    if not slots:
        raise UsageError(_lacking(nodes, per_job.cpus, per_job.gpus))
    return replace(per_job, slots=slots)


def _default_cpus(nodes: Sequence[Node], gpus: float, *, trains: bool) -> int:
    if gpus:
        # Every job on the node with the fewest cores per GPU must find its share, or that node's GPUs would stand idle.
        share = min((node.cpus / node.gpus for node in nodes if node.gpus >= gpus), default=1.0)
        return max(1, min(MOST_CPUS_WITH_GPUS, math.floor(share * gpus)))
    cores = [math.floor(node.cpus) for node in nodes if node.cpus >= 1]
    cpus = min([MOST_CPUS, *cores])
    alone = sum(core // cpus for core in cores) == 1
    return max(1, cores[0] // 2) if alone and not trains else cpus


def _slots(node: Node, cpus: int, gpus: float) -> int:
    fit = math.floor(node.cpus / cpus)
    if not gpus:
        return fit
    # Jobs that take a part of a GPU do not take it from two; 1e-9 makes up for what 1 / 0.1 loses in floating point.
    on_gpus = math.floor(node.gpus / gpus) if gpus >= 1 else math.floor(node.gpus) * math.floor(1 / gpus + 1e-9)
    return min(fit, on_gpus)


def _lacking(nodes: Sequence[Node], cpus: int, gpus: float) -> str:
    """What no node has enough of."""
    if not any(node.cpus >= 1 for node in nodes):
        return "the Ray cluster has no node with a CPU core for a job: start one with `ray start --address=HOST:PORT`"
    widest, richest = max(nodes, key=lambda node: node.cpus), max(nodes, key=lambda node: node.gpus)
    if gpus > richest.gpus:
        most = f"the largest node, {richest.name}, has {richest.gpus:g}" if richest.gpus else "no node has any"
        advice = "take --gpus-per-job 0 with --device cpu" if not richest.gpus else "lower --gpus-per-job"
        return f"one job needs {_count(gpus, 'GPU')}, and {most}: {advice}, or add nodes that have them"
    if cpus > widest.cpus:
        return (
            f"one job needs {_count(cpus, 'CPU core')}, and the largest node, {widest.name}, has {widest.cpus:g}: "
            "lower --cpus-per-job, or add larger nodes"
        )
    return (
        f"one job needs {_count(cpus, 'CPU core')} and {_count(gpus, 'GPU')} on one node, and none has both: the node with most "
        f"cores, {widest.name}, has {widest.cpus:g} and {_count(widest.gpus, 'GPU')}, the one with most GPUs, {richest.name}, "
        f"has {richest.cpus:g} and {_count(richest.gpus, 'GPU')}: lower --cpus-per-job or --gpus-per-job"
    )


def _count(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'s' if number > 1 or not number else ''}"


def check_workers(nodes: Sequence[Node], out: Path, writer: str) -> bool:
    """See that every node that may run something computes as this process does.

    A worker is started on each. It must have the same vitbench, of the same sources, the same minor version of Python and the
    same versions of the libraries that records name: a record says what computed it.

    Args:
        nodes: The nodes; those with neither CPU nor GPU (a head that only manages) are left out.
        out: The output folder; it is made where it is missing.
        writer: `workers` where they are to write to the output folder, else `auto` or `driver`.

    Returns:
        Whether all of them read and write the output folder under the path that it has here.

    Raises:
        UsageError: A node lacks something, or has another version; it does not start a worker in bounded time; or it does not see
            the output folder, and `writer` is `workers`. The node is named.
        StoreError: The output folder cannot be written to from here.
    """
    working = [node for node in nodes if node.cpus or node.gpus]
    folder = out.absolute()
    content = secrets.token_hex(8)
    probe = folder / f"{TEMPORARY_PREFIX}probe-{content}"
    answers = {node.id: f"{probe}-{node.id[:16]}" for node in working}
    check_writable(folder)
    try:
        write_text(probe, content)
        found = _asked(working, probe, content, answers)
        unseen: dict[str, str] = {}
        for node in working:
            if node.id in found and (problem := found[node.id]["folder"] or _unanswered(answers[node.id], content)):
                unseen[node.name] = problem
    finally:
        for path in (probe, *map(Path, answers.values())):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    here = environment.describe(LIBRARIES)
    for node in working:
        if node.id in found and (problem := environment.difference(here, found[node.id])):
            raise UsageError(
                f"the Ray worker on node {node.name} {problem}: records would not say what made them; give every node the "
                "environment that this process has"
            )
    if unseen and writer == "workers":
        name, problem = next(iter(unseen.items()))
        raise UsageError(
            f"--writer workers needs an output folder that every node sees, and {folder} is not one on node {name}: {problem}"
            f"{f' (so on {listed(unseen)})' if len(unseen) > 1 else ''}; name a shared one with --out, or take --writer driver"
        )
    return not unseen


def _asked(working: Sequence[Node], probe: Path, content: str, answers: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Node to what a worker there says; nodes that were lost meanwhile are left out.

    Raises:
        UsageError: One says nothing, or all were lost.
    """
    ray = imported()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # By value: a node without vitbench could not take a function of it by name.
    ray.cloudpickle.register_pickle_by_value(environment)
    try:
        examine = ray.remote(num_cpus=0, max_retries=0)(environment.examine)
        asked = {
            examine.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                LIBRARIES, str(probe), content, answers[node.id]
            ): node
            for node in working
        }
    finally:
        ray.cloudpickle.unregister_pickle_by_value(environment)
    done, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS) if asked else ([], [])
    alive = {node.id for node in nodes()}
    found: dict[str, dict[str, Any]] = {}
    for reference in (*done, *waiting):
        node = asked[reference]
        if node.id not in alive:
            continue
        try:
            found[node.id] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError as error:
            raise UsageError(
                f"node {node.name} of the Ray cluster started no worker within {CHECK_SECONDS:g} s: see its log folder there, or "
                "take the node out of the cluster"
            ) from error
        except ray.exceptions.RayError as error:
            raise UsageError(
                f"no worker can be asked on node {node.name} of the Ray cluster: {one_line(error)}"
            ) from error
    if not found:
        raise UsageError("the Ray cluster has no node left that can run a job: start one with `ray start`")
    return found


def _unanswered(answer: str, content: str) -> str:
    """What is wrong with the file that a worker wrote into the output folder; `""` where it came."""
    try:
        return "" if Path(answer).read_text() == content else "another folder has that path there"
    except OSError:
        return "another folder has that path there"
