from __future__ import annotations

import ctypes
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import ray

import vitbench
from vitbench.errors import StoppedError, StoreError, UsageError
from vitbench.execution.config import RunConfig, make_config
from vitbench.execution.ray import environment, joining
from vitbench.execution.ray.address import parse_address
from vitbench.execution.ray.address import refusal as refusal_of
from vitbench.execution.ray.cluster import Node, PerJob, check_workers, connected, nodes, per_job, recounted
from vitbench.execution.ray.course import Course
from vitbench.execution.ray.process import heed_sigterm
from vitbench.records.provenance import LIBRARIES

ClusterMaker = Callable[..., AbstractContextManager[Any]]


def a_config(**fields: Any) -> RunConfig:
    return make_config(fields)


def a_node(name: str, cpus: float, gpus: float = 0) -> Node:
    return Node(name * 8, name, cpus, gpus)


def refusal(address: str) -> str:
    """What is told when an address cannot be joined: always one line."""
    with pytest.raises(UsageError) as caught, connected(address):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("head:6379", "head", 6379),
        ("10.0.0.7:6379", "10.0.0.7", 6379),
        ("ray://head.example:10001", "head.example", 10001),
        ("[::1]:6379", "::1", 6379),
        ("auto", "", 0),
    ],
)
def test_an_address_has_one_of_three_forms(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.text, address.host, address.port) == (text, host, port)
    assert address.client == text.startswith("ray://")


@pytest.mark.parametrize(
    "text", ["head", "head:", "head:0", "head:99999", "http://head:80", "ray:head:1", "a b:1", "local"]
)
def test_a_malformed_address_is_told_with_the_forms(text: str) -> None:
    with (
        pytest.raises(
            UsageError, match=r"no address of a Ray cluster: write auto, HOST:PORT, ray://HOST:PORT"
        ) as caught,
        connected(text),
    ):
        pass
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_auto_is_what_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert parse_address("auto").text == "head:6379"
    assert parse_address("auto").told == "--address auto (RAY_ADDRESS=head:6379)"
    assert parse_address("other:1").text == "other:1"
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(UsageError, match="RAY_ADDRESS=nonsense"):
        parse_address("auto")


@contextmanager
def a_port(taken: bool) -> Iterator[int]:
    """A port where nothing listens, or where something does that never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if taken:
            listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_a_port_that_takes_no_connection_is_told_at_once(prefix: str) -> None:
    with a_port(taken=False) as port:
        told = refusal(f"{prefix}127.0.0.1:{port}")
    assert f"no Ray cluster answers at --address {prefix}127.0.0.1:{port}: Connection refused; see that" in told
    assert "`ray start --head`" in told
    assert ("10001" if prefix else "6379") in told


def test_an_unknown_host_is_told() -> None:
    assert "no Ray cluster answers at --address no-such-host.invalid:6379: " in refusal("no-such-host.invalid:6379")


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_a_port_that_takes_connections_and_says_nothing_is_given_up(
    prefix: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(joining, "JOIN_SECONDS", 3.0)
    with a_port(taken=True) as port:
        told = refusal(f"{prefix}127.0.0.1:{port}")
    assert "nothing came within 3 s, though something takes connections there" in told
    assert capfd.readouterr() == ("", "")
    assert not ray.is_initialized()


@pytest.mark.parametrize(("seconds", "asked"), [(60, joining.CLIENT_STARTS), (-1, 1)])
def test_a_client_server_is_asked_again_until_time_is_up(
    seconds: float, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    class Failing:
        @staticmethod
        def init(address: str, **settings: object) -> None:
            tries.append(address)
            raise ConnectionError("Starting Ray client server failed")

        @staticmethod
        def shutdown() -> None:
            pass

    monkeypatch.setattr(joining, "imported", lambda: Failing)
    with pytest.raises(ConnectionError):
        joining._join(parse_address("ray://127.0.0.1:10001"), time.monotonic() + seconds)
    assert len(tries) == asked


def test_auto_without_a_cluster_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Other Rays of this machine would be found by their processes: look as on a machine without any.
    monkeypatch.setattr(
        joining, "_REHEARSAL", f"import psutil\npsutil.process_iter = lambda *_: []\n{joining._REHEARSAL}"
    )
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with (
        pytest.raises(
            UsageError, match=r"--address auto finds no Ray cluster on this machine: start one with `ray start --head`"
        ),
        connected("auto"),
    ):
        pass


def test_auto_takes_no_ray_of_another_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(*raylets: tuple[str, str]) -> None:
        """Only these raylets run, each with its session's folder and the cluster's address."""
        found = [
            SimpleNamespace(
                info={"cmdline": ["/x/raylet", "--head", f"--session_dir={place}", f"--gcs-address={address}"]}
            )
            for place, address in raylets
        ]
        others = [SimpleNamespace(info={"cmdline": words}) for words in (None, [], ["/x/raylet"], ["python", "raylet"])]
        monkeypatch.setattr(joining, "psutil", SimpleNamespace(process_iter=lambda fields: [*others, *found]))

    private = ("/tmp/vitbench-ray-abcdefgh/ray/session_1", "127.0.0.1:1")
    machine(private)
    assert refusal("auto").startswith("--address auto finds no Ray cluster on this machine: start one")
    machine(private, ("/tmp/ray/session_2", "127.0.0.1:2"), ("/tmp/ray/session_2", "127.0.0.1:2"))
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: None)
    assert "finds 127.0.0.1:2 on this machine, and beside it another run's own Ray" in refusal("auto")
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: "127.0.0.1:2")
    joining._refuse_private()


MISMATCH = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.11.4\n"
    "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\n"
)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (
            ["RuntimeError", MISMATCH, ""],
            "runs Ray 2.9.0 on Python 3.11.4, and this process Ray 2.60.0 on Python 3.12.1: both",
        ),
        (
            ["ConnectionError", "Failed", "No node info found matching attributes"],
            "this machine is no node of the cluster",
        ),
        (["AuthenticationError", "Invalid token", ""], "asks for a token that this process lacks"),
        (["ImportError", "No module named 'grpc'", ""], 'pip install "vitbench[ray]"'),
        (
            ["ConnectionAbortedError", "Initialization failure:\nStarting Ray client server failed. See", ""],
            "fails again and again to start a process for this driver: see ray_client_server.err",
        ),
        (["ValueError", "odd. And more\nlines", ""], "no Ray cluster answers at --address head:6379: odd; see that"),
    ],
)
def test_a_refusal_is_told_in_one_line(problem: list[str], words: str) -> None:
    told = refusal_of(parse_address("head:6379"), problem)
    assert words in told
    assert "\n" not in told


def test_a_cluster_of_another_version_of_ray_is_refused(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The process that tries the address says another version of itself than the cluster has, as it would with another Ray.
    monkeypatch.setattr(
        joining,
        "_REHEARSAL",
        joining._REHEARSAL.replace("import ray\n", "import ray\n    ray.__version__ = '1.0.0'\n"),
    )
    with (
        pytest.raises(
            UsageError, match=rf"runs Ray {ray.__version__} on Python [\d.]+, and this process Ray 1\.0\.0 on Python"
        ),
        connected(cluster.address),
    ):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "vitbench\[ray\]", or take --executor local'), connected(""):
        pass


# Connecting


def test_a_cluster_is_joined_and_left(cluster: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with connected(cluster.address) as found:
        assert ray.is_initialized()
        assert [(node.cpus, node.gpus) for node in found] == [(1, 0), (1, 0)]
        assert len({node.name for node in found}) == len({node.id for node in found}) == 2
        assert found == nodes()
    assert not ray.is_initialized()
    assert cluster.remaining_processes_alive()
    assert capfd.readouterr() == ("", "")


def test_the_ray_that_is_there_is_taken_and_left_running(cluster: Any) -> None:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
    with connected("never.asked:1") as found:
        assert len(found) == 2
    assert ray.is_initialized()


def test_joining_leaves_sigterm_as_it_was(cluster: Any) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with connected(cluster.address):
            pass
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("waiting", ["for Ray", "for something else"])
def test_sigterm_ends_in_order_whatever_is_waited_for(cluster: Any, waiting: str) -> None:
    """Where Ray's compiled part waits, it makes any exit one of status 1."""
    with (
        pytest.raises(StoppedError, match=r"^stopped by SIGTERM: run the same command again") as stopped,
        connected(cluster.address),
    ):
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        if waiting == "for Ray":
            forever: Any = ray.remote(num_cpus=0)(lambda: time.sleep(30))
            ray.get(forever.remote())
        time.sleep(30)
    assert stopped.value.status == 143
    assert not ray.is_initialized()


def test_sigterm_that_python_only_prints_is_heeded_later(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised while an object is let go goes nowhere."""

    class LetGo:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: printed.append(told.exc_type))
    with pytest.raises(StoppedError), connected(cluster.address):
        LetGo()
        gc.collect()
        assert SystemExit in printed
        Course.listen(Course.__new__(Course))
    heed_sigterm()  # nothing is left of it


def test_a_connection_that_fails_is_a_jobs_own_failure_in_a_run_that_was_not_joined_from_outside(cluster: Any) -> None:
    lost: list[Any] = []
    with connected(cluster.address) as found:
        course: Any = Course(cast(Any, None), cast(Any, None), per_job(found, RunConfig()), found)
        course.lose = lambda job, problem: lost.append(problem.text)
        with course.keeping(None):
            raise ConnectionError("a store that does not answer")
    assert lost == ["ConnectionError: a store that does not answer"]


def test_sigterm_is_told_though_what_cleans_up_fails(cluster: Any) -> None:
    def cleaned() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            raise RuntimeError

    with pytest.raises(StoppedError, match="stopped by SIGTERM"), connected(cluster.address):
        cleaned()


def test_a_lost_node_is_no_node(make_cluster: ClusterMaker) -> None:
    with make_cluster({"resources": {"left": 1}}) as made, connected(made.address) as found:
        assert len(found) == 2
        made.remove_node(next(iter(made.worker_nodes)))
        deadline = time.monotonic() + 60
        while len(nodes()) > 1 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert [node.id for node in nodes()] == [made.head_node.node_id]


def test_a_worker_of_a_ray_of_our_own_outlives_an_actor_that_takes_all_cores() -> None:
    class Actor:
        def work(self) -> int:
            time.sleep(3)  # an idle worker beyond the limit is ended after one second
            return os.getpid()

    with joining.own(cores=1):
        process: Any = ray.remote(num_cpus=1)(lambda: os.getpid())
        first = ray.get(process.remote())
        remote: Any = ray.remote(num_cpus=1)(Actor)
        actor = remote.remote()
        assert ray.get(actor.work.remote()) != first
        ray.kill(actor)
        assert ray.get(process.remote()) == first


def listening(process: psutil.Process) -> list[str]:
    return [item.laddr.ip for item in process.net_connections("inet") if item.status == psutil.CONN_LISTEN]


class HangsAtExit:
    """An actor whose process, once it exits, waits for ever, as it does where gRPC's threads wait for each other."""

    def begin(self) -> int:
        """Its process."""
        library = ctypes.CDLL(None)
        library.on_exit(library.pause, None)
        return os.getpid()


def test_a_worker_that_does_not_end_with_its_ray_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "END_SECONDS", 2.0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as another:
        with connected(""):
            actor = ray.remote(HangsAtExit).remote()
            worker = psutil.Process(ray.get(actor.begin.remote()))
            del actor  # it exits by itself, and Ray does not look after it any more
            time.sleep(1)
        worker.wait(timeout=5)
        assert another.poll() is None, "it is none of Ray's"
        another.communicate(b"\n")


@pytest.mark.parametrize("mode", [None, "token"])
def test_a_ray_of_our_own_is_quiet_private_and_gone_afterwards(
    mode: str | None,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_ADDRESS", "never.asked:1")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    variables = dict(os.environ)
    before = set(psutil.Process().children(recursive=True))
    with connected("") as found:
        assert [node.cpus for node in found] == [len(os.sched_getaffinity(0))]
        assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
        started = set(psutil.Process().children(recursive=True)) - before
        ports = [ip for process in [psutil.Process(), *started] for ip in listening(process)]
        assert ports, "Ray listens nowhere: this test looks in the wrong place"
        assert {ip.removeprefix("::ffff:") for ip in ports} == {"127.0.0.1"}
        folder = Path(ray._private.worker._global_node.get_temp_dir_path())
        assert folder.parent.name.startswith("vitbench-ray-")
        assert folder.parent.stat().st_mode & 0o777 == 0o700
    psutil.wait_procs(started, timeout=10)
    assert not [process for process in started if process.is_running()]
    assert not folder.parent.exists()
    assert not list(home.iterdir()), "nothing is left in the user's folder, a token least of all"
    assert {name: value for name, value in os.environ.items() if "RAY" in name} == {
        name: value for name, value in variables.items() if "RAY" in name
    } | joining._QUIET
    assert capfd.readouterr() == ("", "")


def test_after_a_ray_of_our_own_a_cluster_without_tokens_can_be_joined(cluster: Any) -> None:
    with connected(""):
        pass
    with connected(cluster.address) as found:
        assert len(found) == 2


def test_a_ray_of_our_own_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(StoreError, match=r"Ray does not start on this machine: OSError.*No space left"), connected(""):
        pass
    assert not ray.is_initialized()


OWNER = """
import sys
from vitbench.execution.ray.cluster import connected
with connected(""):
    print("up", flush=True)
    sys.stdin.read()
"""


def test_a_killed_driver_leaves_no_process_and_the_next_one_removes_its_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = Path("/tmp") / f"vb{os.getpid() % 10**5}"  # Ray's sockets need a short path
    parent.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(parent))
    try:
        driver = subprocess.Popen(
            [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert driver.stdout is not None
        assert driver.stdout.readline() == "up\n"
        started = psutil.Process(driver.pid).children(recursive=True)
        # Ray's agents try for a minute to tell the control service of the loss, and end then: too long for a test.
        agents = [process for process in started if "Agent" in process.name()]
        assert len(started) - len(agents) >= 3
        [left] = parent.glob("vitbench-ray-*")
        with joining._temporary_folder():
            assert left.exists(), "the folder of a Ray that runs was removed"
        driver.kill()
        driver.communicate()
        _, alive = psutil.wait_procs(set(started) - set(agents), timeout=30)
        assert not alive
        for agent in agents:
            agent.kill()
        psutil.wait_procs(agents, timeout=10)
        with joining._temporary_folder() as mine:
            assert list(parent.iterdir()) == [mine.parent]
        assert not list(parent.iterdir())
    finally:
        shutil.rmtree(parent)


# What a job gets


def test_without_gpus_a_job_has_what_the_smallest_node_has_and_at_most_four_cores() -> None:
    assert per_job([a_node("a", 1), a_node("b", 1)], a_config()) == PerJob(1, 0, 2)
    assert per_job([a_node("a", 3), a_node("b", 64)], a_config()) == PerJob(3, 0, 22)
    assert per_job([a_node("a", 64)], a_config()) == PerJob(4, 0, 16)
    assert per_job([a_node("head", 0), a_node("b", 2), a_node("c", 2)], a_config()) == PerJob(2, 0, 2), (
        "a head without cores runs nothing"
    )


def test_where_there_would_be_one_worker_in_all_a_job_has_half_the_cores_unless_it_trains() -> None:
    alone = {cores: per_job([a_node("head", 0), a_node("a", cores)], a_config()) for cores in (1, 2, 3, 4, 7, 8)}
    assert alone == {
        1: PerJob(1, 0, 1),
        2: PerJob(1, 0, 2),
        3: PerJob(1, 0, 3),
        4: PerJob(2, 0, 2),
        7: PerJob(3, 0, 2),
        8: PerJob(4, 0, 2),
    }
    assert per_job([a_node("a", 2)], a_config(), trains=True) == PerJob(2, 0, 1)
    assert per_job([a_node("a", 2)], a_config(cpus_per_job=2)) == PerJob(2, 0, 1), "as it was asked for"


def test_with_gpus_a_job_has_one_and_its_share_of_the_cores() -> None:
    assert per_job([a_node("a", 64, 8)], a_config()) == PerJob(8, 1, 8)
    assert per_job([a_node("a", 96, 2)], a_config()) == PerJob(16, 1, 2)
    assert per_job([a_node("a", 64, 8), a_node("b", 12, 4)], a_config()) == PerJob(3, 1, 12), "no GPU stands idle"
    assert per_job([a_node("a", 64, 8), a_node("b", 32)], a_config()) == PerJob(8, 1, 8)
    assert per_job([a_node("a", 16, 8)], a_config(gpus_per_job=2)) == PerJob(4, 2, 4)
    assert per_job([a_node("a", 64, 8)], a_config(device="cpu")) == PerJob(4, 0, 16)
    assert per_job([a_node("a", 64, 8)], a_config(gpus_per_job=0)) == PerJob(4, 0, 16)


def test_parts_of_a_gpu_are_not_taken_from_two() -> None:
    assert per_job([a_node("a", 64, 2)], a_config(gpus_per_job=0.4, cpus_per_job=1)).slots == 4
    assert per_job([a_node("a", 64, 1)], a_config(gpus_per_job=0.1, cpus_per_job=1)).slots == 10


@pytest.mark.parametrize(
    ("there", "asked", "words"),
    [
        ([], {}, "the Ray cluster has no node with a CPU core for a job"),
        ([a_node("head", 0)], {}, "the Ray cluster has no node with a CPU core for a job"),
        (
            [a_node("a", 2), a_node("b", 6)],
            {"cpus_per_job": 8},
            "one job needs 8 CPU cores, and the largest node, b, has 6: lower --cpus-per-job",
        ),
        (
            [a_node("a", 2)],
            {"device": "cuda"},
            "one job needs 1 GPU, and no node has any: take --gpus-per-job 0 with --device cpu",
        ),
        (
            [a_node("a", 8, 2)],
            {"gpus_per_job": 4},
            "one job needs 4 GPUs, and the largest node, a, has 2: lower --gpus-per-job",
        ),
        (
            [a_node("a", 2, 4), a_node("b", 64)],
            {"cpus_per_job": 8, "gpus_per_job": 1},
            "b, has 64 and 0 GPUs, the one with most GPUs, a",
        ),
        ([a_node("a", 8, 2)], {"gpus_per_job": 1, "device": "cpu"}, "gpus-per-job is 1, and device is cpu"),
    ],
)
def test_what_no_node_has_is_named(there: list[Node], asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        per_job(there, a_config(**asked))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_gpus_of_a_real_cluster_are_counted(make_cluster: ClusterMaker) -> None:
    with make_cluster({"num_cpus": 4, "num_gpus": 2}) as made, connected(made.address) as found:
        assert per_job(found, a_config()) == PerJob(2, 1, 2)
        with pytest.raises(UsageError, match=r"one job needs 3 GPUs, and the largest node, .*, has 2"):
            per_job(found, a_config(gpus_per_job=3))


# The workers' environment


def test_workers_like_this_process_pass_and_see_the_folder(cluster: Any, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with connected(cluster.address) as found:
        assert check_workers(found, out, "workers") is True
        assert check_workers(found, out, "auto") is True
    assert not list(out.iterdir()), "the probes are gone"


def test_a_relative_output_folder_is_the_drivers(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(cluster.address) as found:
        monkeypatch.chdir(tmp_path)
        assert check_workers(found, Path("results"), "workers") is True


@pytest.mark.skipif(
    not Path("/proc/self/cwd").exists(), reason="needs a path that is another folder in another process"
)
def test_a_folder_that_the_workers_do_not_see_is_told(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(cluster.address) as found:
        monkeypatch.chdir(tmp_path)  # the workers are in another folder, so that this path is not the same there
        out = Path("/proc/self/cwd/out")
        assert check_workers(found, out, "auto") is False
        assert check_workers(found, out, "driver") is False
        with pytest.raises(
            UsageError, match="--writer workers needs an output folder that every node sees, and"
        ) as caught:
            check_workers(found, out, "workers")
    assert found[0].name in str(caught.value)
    assert "--writer driver" in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


@contextmanager
def workers_with(cluster: Any, folder: Path) -> Iterator[list[Node]]:
    """Join a cluster so that its workers look for packages in `folder` first."""
    variables = {"PYTHONPATH": str(folder)}
    ray.init(
        address=cluster.address, log_to_driver=False, logging_level="CRITICAL", runtime_env={"env_vars": variables}
    )
    with connected("") as found:
        yield found
    ray.shutdown()


def test_workers_without_vitbench_are_refused(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packages = tmp_path / "packages"
    packages.mkdir()
    # Python reads it at its start: in the worker there is no vitbench then, however it is installed here.
    packages.joinpath("sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'vitbench':\n"
        "            raise ModuleNotFoundError(\"No module named 'vitbench'\", name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    with (
        workers_with(cluster, packages) as found,
        pytest.raises(
            UsageError, match=rf"has no vitbench {vitbench.__version__} \(.*No module named 'vitbench'\)"
        ) as caught,
    ):
        check_workers(found, tmp_path / "out", "auto")
    assert found[0].name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.0.7", f"has vitbench 0.0.7, and this process vitbench {vitbench.__version__}"),
        (vitbench.__version__, f"has another code of vitbench {vitbench.__version__} than this process"),
    ],
)
def test_workers_with_another_vitbench_are_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "packages" / "vitbench"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text(f"__version__ = {version!r}\n")
    with workers_with(cluster, package.parent) as found, pytest.raises(UsageError) as caught:
        check_workers(found, tmp_path / "out", "auto")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"the Ray worker on node {found[0].name} has ")


def test_workers_with_another_library_are_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metadata = tmp_path / "packages" / "timm-0.1.2.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.1.2\n")
    # The workers see this process's own sources, whatever its folder is.
    metadata.parent.joinpath("vitbench").symlink_to(Path(vitbench.__file__).parent)
    with (
        workers_with(cluster, metadata.parent) as found,
        pytest.raises(UsageError, match=r"has timm 0\.1\.2, and this process \d"),
    ):
        check_workers(found, tmp_path / "out", "auto")


def test_a_node_that_starts_no_worker_is_named(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitbench.execution.ray.cluster.CHECK_SECONDS", 0.0)
    with connected(cluster.address) as found, pytest.raises(UsageError, match="started no worker within 0 s") as caught:
        check_workers(found, tmp_path, "auto")
    assert any(node.name in str(caught.value) for node in found)


def test_a_node_that_only_manages_is_not_asked(make_cluster: ClusterMaker, tmp_path: Path) -> None:
    with make_cluster({}, head={"num_cpus": 0}) as made, connected(made.address) as found:
        assert check_workers(found, tmp_path, "workers") is True
        assert per_job(found, a_config()) == PerJob(1, 0, 1)


HERE = environment.describe(LIBRARIES)


def test_a_description_names_what_records_name() -> None:
    assert HERE["vitbench"] == vitbench.__version__
    assert HERE["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert set(HERE["libraries"]) == set(LIBRARIES)
    assert len(HERE["code"]) == 12
    assert HERE["problem"] == ""


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({}, ""),
        ({"python": "2.7"}, f"has Python 2.7, and this process Python {HERE['python']}"),
        ({"vitbench": "", "problem": "gone"}, f"has no vitbench {HERE['vitbench']} (gone)"),
        (
            {"libraries": {**HERE["libraries"], "numpy": "1.0"}},
            f"has numpy 1.0, and this process {HERE['libraries']['numpy']}",
        ),
        ({"libraries": {**HERE["libraries"], "torch": ""}}, "has torch not at all, and this process"),
    ],
)
def test_the_first_difference_is_told(there: dict[str, Any], words: str) -> None:
    assert environment.difference(HERE, {**HERE, **there}).startswith(words)
    assert bool(environment.difference(HERE, {**HERE, **there})) is bool(words)


def test_what_a_job_gets_stays_as_it_was_decided_when_nodes_are_lost() -> None:
    large, small, with_gpu = Node("a", "a", 8, 0), Node("b", "b", 2, 0), Node("c", "c", 1, 1)
    on_cores = per_job([large, small], RunConfig())
    assert (on_cores.cpus, on_cores.slots) == (2, 5)
    assert recounted([large], on_cores) == PerJob(2, 0.0, 4)
    on_gpus = per_job([large, with_gpu], RunConfig())
    assert on_gpus.gpus == 1
    with pytest.raises(UsageError, match="one job needs 1 GPU, and no node has any"):
        recounted([large], on_gpus)
