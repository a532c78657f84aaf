"""Real Ray clusters of several nodes on this machine, which are gone when their test or module is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psutil
import pytest

OBJECT_STORE = 80 * 2**20

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
    """A test that fails half-way leaves no connection to the next one."""
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
