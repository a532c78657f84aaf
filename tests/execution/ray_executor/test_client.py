"""A cluster that is joined from outside, by the port of its client server, which loses some of the processes that it starts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import ray

from tests.conftest import ImageFolderMaker
from tests.execution.ray_executor.conftest import running_cluster
from tests.execution.ray_executor.running import assert_same_records, carried_out, wait_until
from vitbench.errors import StoppedError
from vitbench.execution.config import RunConfig
from vitbench.execution.job import Job
from vitbench.execution.ray.cluster import check_workers, connected, per_job
from vitbench.execution.ray.course import Course
from vitbench.execution.ray.run import RayRun
from vitbench.execution.ray.worker import Setting

pytest.importorskip("grpc")

# What gRPC does now and then to a process that a client server starts for a driver: the first and the third are aborted before
# they begin.
ABORTING = """
import os
import subprocess
class Aborted(subprocess.Popen):
    started = 0
    def __init__(self, arguments, *rest, **options):
        if "--mode=specific-server" in arguments:
            Aborted.started += 1
            if Aborted.started in (1, 3):
                options["preexec_fn"] = os.abort
        super().__init__(arguments, *rest, **options)
subprocess.Popen = Aborted
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of one node with two CPUs; `client` is where it is joined from outside."""
    packages = tmp_path_factory.mktemp("packages")
    packages.joinpath("sitecustomize.py").write_text(ABORTING)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH", "")])))
        with running_cluster(head={"num_cpus": 2, "ray_client_server_port": port}) as made:
            wait_until(lambda: answers(port), "the client server, which opens its port after the cluster is up", 60)
            made.client = f"ray://127.0.0.1:{port}"
            yield made


def answers(port: int) -> bool:
    """Whether something takes connections at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_it_is_joined_though_processes_are_lost(head: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with connected(head.client) as found:
        assert [node.id for node in found] == [head.head_node.node_id]
        assert check_workers(found, tmp_path, "workers") is True
    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")
    log = Path(head.head_node.get_logs_dir_path()) / "ray_client_server.err"
    assert log.read_text().count("New data connection from client") >= 4


def test_a_client_server_that_is_lost_is_told_in_one_line(
    head: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(
            StoppedError, match=rf"^the Ray cluster of --address {head.client} is lost; what was stored"
        ) as lost,
        connected(head.client) as found,
    ):
        run = cast(RayRun, None)
        course = Course(run, cast(Setting, None), per_job(found, RunConfig()), found)
        monkeypatch.setattr(course, "lose", lambda job, problem: pytest.fail("it is no job's"))
        monkeypatch.setattr(ray.util.client.ray.worker, "_reconnect_grace_period", 2)
        killed = 0
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "--mode=specific-server" in process.cmdline():  # of this driver, or of one that has gone
                    process.kill()
                    killed += 1
        assert killed
        work: Any = ray.remote(num_cpus=0)(lambda: 1)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with course.keeping(cast(Job, None)):
                ray.get(work.remote())
            time.sleep(0.1)
    assert lost.value.status == 1
    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")


def test_a_run_from_outside_makes_the_records_of_one_in_this_process(
    head: Any, image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "backbones": "pixels",
        "tasks": f"imagefolder:{image_folder(train=8, test=5)}",
        "protocol": "knn",
        "options": {"k": (1, 3)},
        "batch_size": 4,
    }
    result, told = carried_out(tmp_path / "ray", executor="ray", address=head.client, **fields)
    assert not result.failures
    assert told.tracked[f"extract pixels · {result.planned[0].task}"] == (3 * (8 + 5), 3 * (8 + 5))
    assert not ray.is_initialized()
    carried_out(tmp_path / "local", executor="local", **fields)
    assert_same_records(tmp_path / "ray", tmp_path / "local")
