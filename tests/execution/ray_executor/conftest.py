"""Real Ray clusters of several nodes on this machine, which are gone when their test or module is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.execution.ray_executor.running import install_faulty
from vitbench.backbones import BACKBONES
from vitbench.execution.ray.process import token_kept
from vitbench.protocols import PROTOCOLS

OBJECT_STORE = 80 * 2**20
SOON_DEAD = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500}
"""For the head of a cluster that is to notice within seconds that a node was removed."""

ray = pytest.importorskip("ray")


@contextmanager
def running_cluster(*workers: dict[str, Any], head: dict[str, Any] | None = None) -> Iterator[Any]:
    """A cluster of a head and of one more node per item of `workers`, on the loopback address.

    Args:
        workers: Arguments of each further node, such as `{"num_cpus": 2, "num_gpus": 1, "resources": {"left": 1}}`.
        head: Those of the head.

    Yields:
        The `ray.cluster_utils.Cluster`: `address`, `add_node(**arguments)`, `remove_node(node)`, `worker_nodes`. A node
        that a test adds needs `**node_arguments()`.
    """
    from ray.cluster_utils import Cluster

    before = set(psutil.Process().children(recursive=True))
    cluster = Cluster()
    try:
        for arguments in (head or {}, *workers):
            cluster.add_node(**node_arguments(**arguments))
        cluster.wait_for_nodes()
        yield cluster
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        try:
            ray.shutdown()
            cluster.shutdown()
        finally:
            _, left = psutil.wait_procs(started, timeout=10)
            for process in left:
                process.kill()
            _, immortal = psutil.wait_procs(left, timeout=10)
        assert not immortal, f"processes of the cluster outlive it: {immortal}"


def node_arguments(**given: Any) -> dict[str, Any]:
    """What a small node of a test cluster is started with: one CPU, 80 MB of objects, no dashboard, no port to the outside."""
    small = {"num_cpus": 1, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    return {**small, "node_ip_address": "127.0.0.1", **given}


@contextmanager
def with_faulty(folder: Path) -> Iterator[None]:
    """Inside, this process and those that it starts know the package `faulty`, which is put into `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in install_faulty(folder).items():
            patch.setenv(name, value)
        patch.setitem(BACKBONES._builtin, "faulty", "faulty:FaultyBackbone")
        patch.setitem(PROTOCOLS._builtin, "faulty", "faulty:FaultyNeighbours")
        yield


@pytest.fixture(autouse=True, scope="package")
def _ray_on_loopback() -> Iterator[None]:
    """Ray keeps 127.0.0.1 as an address, here and in the processes that tests start; nobody's token is looked at."""
    import ray._private.ray_constants as constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def _no_ray_left() -> Iterator[None]:
    """A test that fails half-way leaves no connection to the next one, and none a variable about tokens."""
    with token_kept():
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one more node of one CPU each, for a module's tests."""
    with running_cluster({}) as made:
        yield made


@pytest.fixture
def make_cluster() -> Callable[..., AbstractContextManager[Any]]:
    """`running_cluster`: clusters of other shapes, `with make_cluster({"num_cpus": 2}, head={"num_cpus": 0}) as cluster:`."""
    return running_cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two nodes, whose workers know the package `faulty`."""
    head = {"_system_config": SOON_DEAD}
    with with_faulty(tmp_path_factory.mktemp("faulty")), running_cluster({}, head=head) as made:
        yield made


@pytest.fixture
def joined(nodes: Any) -> Any:
    """The cluster, of which this process is a driver."""
    ray.init(address=nodes.address, log_to_driver=False, logging_level="CRITICAL")
    return nodes


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make the folder that says what goes wrong: a file per argument, with its text."""

    def make(name: str, **files: object) -> Path:
        made = tmp_path / name
        made.mkdir()
        for file, text in files.items():
            (made / file.replace("_", "-")).write_text(str(text))
        return made

    return make
