"""Starting a Ray of our own, and joining one that runs: quietly, in bounded time, and with one line where it fails.

A Ray of our own listens on the loopback address 127.0.0.1 alone: its control service, its node manager and object manager, its
runtime environment agent, this process and each worker take one port each, which the system chooses; there is no dashboard, and
no statistics are sent. Whoever connects needs a token, which is made for each Ray, lives in the environment of its processes
alone, and ends with them. Its files (sockets, logs, objects that do not fit into memory) lie in a temporary folder that only this
user can read, and are removed at the end; those of a process that was killed, by the next one. Its processes end with the
process that started it: where that is killed, what computes within seconds, and two idle helpers of Ray's (its agents, which
first try for a minute to report the loss) after that.

`ray.init` waits for well over a minute where a port is open and no Ray answers, deaf to signals, and its library can end the
process. An address is therefore tried in a process of its own first, which is killed when time is up.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import psutil

from vitbench.errors import StoppedError, StoreError, UsageError, one_line
from vitbench.execution.ray.address import (
    NO_CLUSTER,
    NOT_STARTED,
    Address,
    advice,
    refusal,
    silent_advice,
)
from vitbench.execution.ray.last_word import AGAIN, last_word
from vitbench.execution.ray.process import (
    LOOPBACK,
    forget_token,
    hung_up_on,
    is_loopback,
    loopback_kept,
    native_silence,
    sigterm_kept,
    silent,
    token_kept,
)

REACH_SECONDS = 10.0
"""How long a host may take to take a connection."""
JOIN_SECONDS = 30.0
"""How long a cluster may take to take a driver in; an idle one takes about two seconds."""
END_SECONDS = 5.0
"""How long the processes of a Ray of our own may take to end; they take about one second."""
CLIENT_STARTS = 6
"""How often at most a client server is asked to take a driver in, first to rehearse and then to join; both have `JOIN_SECONDS`
together, before which the last attempt begins. It starts a process for each, by a fork beside gRPC's threads, of which gRPC
aborts one in ten before it begins (ray-project/ray#63202), most of all on a busy machine; another one is needed then."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}
"""No statistics are sent; a driver that `uv run` started does not ship its whole folder; no late call starts another Ray."""
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable whose 0 makes it keep the loopback address where it would put the machine's own in its place."""
_FOLDER = "vitbench-ray-"
_LONGEST_FOLDER = 40
"""The path of a socket has 107 characters at most, of which Ray's own names take up to 66."""
_REHEARSAL = """
import json, sys
try:
    import ray
    from vitbench.execution.ray.process import hung_up_on
    with hung_up_on():
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
    ray.shutdown()
    problem = None
except Exception as error:
    problem = [type(error).__name__, str(error), str(error.__cause__ or "")]
print(json.dumps(problem))
"""


def imported() -> ModuleType:
    """The ray package.

    Raises:
        UsageError: It is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"--executor ray needs Ray, which cannot be imported ({one_line(error)}): "
            'pip install "vitbench[ray]", or take --executor local'
        ) from error
    return ray


@contextmanager
def own(cores: int | None = None) -> Iterator[None]:
    """A Ray of our own on this machine, with all GPUs that this process sees.

    It must be entered by a thread that outlives it (the main one): Ray's processes end with the thread that started them.

    Args:
        cores: Cores that it may give away; None for those that this process may use.

    Raises:
        StoreError: It does not start.
    """
    ray = imported()
    cores = cores or _cores()
    with _temporary_folder() as folder, token_kept(), sigterm_kept() as end_in_order, silent():
        if os.environ.get("RAY_AUTH_MODE", "token") == "token":
            # Not the user's: where there is none, Ray writes one to the user's folder.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            forget_token()
        logging.getLogger("ray").setLevel(logging.CRITICAL)  # what it says before `ray.init` sets the level
        try:
            with loopback_kept(), native_silence():
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="CRITICAL",
                    _node_ip_address=LOOPBACK,
                    _temp_dir=str(folder),
                    # Ray ends idle processes while actors hold all cores; evaluation would wait for new ones to import torch.
                    _system_config={"num_workers_soft_limit": cores},
                )
        except Exception as error:
            ray.shutdown()
            raise StoreError(
                f"Ray does not start on this machine: {one_line(error)}; see that its temporary folder has room "
                "(TMPDIR names another), or take --executor local"
            ) from error
        end_in_order()
        try:
            with last_word("this run was killed, or its Ray was lost", *_head()):
                yield
        finally:
            started = _processes(folder)
            ray.shutdown()
            _kill_late(started)


def _processes(folder: Path) -> list[psutil.Process]:
    """Ray's processes whose files lie in a folder: those that this process started, and what they did, as the workers."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(str(folder) in word for word in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _kill_late(processes: list[psutil.Process]) -> None:
    """Kill what has not ended: a worker now and then waits for ever for gRPC's threads while it exits, with all its memory."""
    for process in psutil.wait_procs(processes, timeout=END_SECONDS)[1]:
        with suppress(psutil.Error):
            process.kill()


@contextmanager
def joined(address: Address) -> Iterator[None]:
    """Be a driver of a cluster that runs.

    Raises:
        UsageError: None answers, or it does not take this process.
        StoppedError: It is lost; of one that is not joined from outside, Ray ends this process (see `last_word`).
    """
    ray = imported()
    if address.host:
        _reach(address)
    else:
        _refuse_private()
    until = time.monotonic() + JOIN_SECONDS
    _rehearse(address, until)
    with token_kept(), sigterm_kept() as end_in_order, silent():
        try:
            with loopback_kept(address.host), native_silence(), hung_up_on():
                _join(address, until)
            logging.getLogger("ray.util.client.logsclient").setLevel(logging.CRITICAL)  # `ray.init` sets another
        except Exception as error:
            ray.shutdown()
            raise UsageError(
                refusal(address, [type(error).__name__, str(error), str(error.__cause__ or "")])
            ) from error
        end_in_order()
        cluster = f"the Ray cluster of {address.told}"
        try:
            with _told_of(cluster, address):
                yield
        except Exception as error:
            if not (address.client and is_loss(error)):
                raise
            raise StoppedError(f"{cluster} is lost; {AGAIN}", status=1) from error
        finally:
            ray.shutdown()


def is_loss(error: Exception) -> bool:
    """Whether a client's error is that its cluster answers no more; with some calls it is gRPC's own."""
    grpc: Any = importlib.import_module("grpc")
    if isinstance(error, grpc.RpcError):
        return getattr(error, "code", lambda: None)() is grpc.StatusCode.UNAVAILABLE
    return type(error) is ConnectionError  # not what a pipe or a store raises


def _told_of(cluster: str, address: Address) -> AbstractContextManager[None]:
    """`last_word` for a cluster that was joined."""
    lost = f"{cluster} is lost, and this run was ended with it"
    if address.client:
        return last_word("this run was killed", address.host, address.port, lost)
    return last_word(f"this run was killed, or the node of {cluster} that it belonged to was lost", *_head(), lost)


def _head() -> tuple[str, int]:
    """Host and port of the head of the Ray that is there."""
    host, _, port = imported().get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def _join(address: Address, until: float) -> None:
    """`ray.init`; again, until a time, where the cluster has not started the process that it needs for this driver."""
    ray = imported()
    for left in reversed(range(CLIENT_STARTS)):
        try:
            ray.init(address=address.text, log_to_driver=False, logging_level="CRITICAL")
            return
        except ConnectionError as error:
            if not left or not NOT_STARTED.search(str(error)) or time.monotonic() > until:
                raise
            ray.shutdown()


def _refuse_private() -> None:
    """Refuse `auto` where Ray could take another run's own Ray, which it finds by its processes, for the cluster that is meant.

    Raises:
        UsageError: There is no other, or Ray does not know which was started last.
    """
    private, others = set[str](), set[str]()
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if Path(command[0]).name == "raylet":
            options = dict(word.removeprefix("--").split("=", 1) for word in command[1:] if "=" in word)
            if place := options.get("gcs-address"):
                (private if f"/{_FOLDER}" in options.get("session_dir", "") else others).add(place)
    if private and not others:
        raise UsageError(NO_CLUSTER)
    services: Any = importlib.import_module("ray._private.services")
    if private and services.find_bootstrap_address(None) not in others:
        raise UsageError(
            f"--address auto finds {' and '.join(sorted(others))} on this machine, and beside it another run's own Ray, which "
            "Ray cannot tell from it: name the cluster by HOST:PORT"
        )


def _reach(address: Address) -> None:
    """See that something takes connections at an address."""
    try:
        socket.create_connection((address.host, address.port), timeout=REACH_SECONDS).close()
    except OSError as error:
        reason = f"no answer within {REACH_SECONDS:g} s" if isinstance(error, TimeoutError) else error.strerror or error
        raise UsageError(f"no Ray cluster answers at {address.told}: {reason}; {advice(address)}") from error


def _rehearse(address: Address, until: float) -> None:
    """Join in a process of its own and leave again, so that what hangs or aborts there does so in bounded time."""
    for _ in range(CLIENT_STARTS):
        problem = _rehearsed(address)
        if problem is None or not NOT_STARTED.search(problem[1]) or time.monotonic() > until:
            break
    if problem is not None:
        raise UsageError(refusal(address, problem))


def _rehearsed(address: Address) -> list[str] | None:
    """What came of one rehearsal: type, text and cause of what was raised; None where it joined.

    Raises:
        UsageError: Nothing came of it in time.
    """
    timeouts = {"RAY_gcs_server_request_timeout_seconds": "10"}
    loopback = {_LOOPBACK_ONLY: "0"} if is_loopback(address.host) else {}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _REHEARSAL, address.text],
            env={**os.environ, **timeouts, **loopback},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=JOIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"no Ray cluster answers at {address.told}: nothing came within {JOIN_SECONDS:g} s, though something takes "
            f"connections there; {silent_advice(address)}"
            if address.host
            else f"the Ray cluster of {address.told} does not answer within {JOIN_SECONDS:g} s; {advice(address)}"
        ) from error
    last = done.stdout.strip().splitlines()[-1:]
    try:
        problem: list[str] | None = json.loads(last[0])
    except (IndexError, ValueError):
        problem = ["", f"the process that tried it ended with status {done.returncode}", ""]
    return problem


def _cores() -> int:
    """The cores that this process may use: Ray heeds a container's quota, and not the affinity that schedulers set."""
    from ray._private.utils import get_num_cpus

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else sys.maxsize
    return max(1, min(usable, int(get_num_cpus())))


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for the files of a Ray of our own, which is locked while it is used; unlocked ones beside it are removed."""
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    if len(f"{parent}/{_FOLDER}12345678/ray") > _LONGEST_FOLDER:
        parent = Path("/tmp")
    for left in parent.glob(f"{_FOLDER}*/lock"):
        with suppress(filelock.Timeout, OSError), filelock.FileLock(left, timeout=0):
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=parent))
    with filelock.FileLock(folder / "lock"):
        try:
            yield folder / "ray"  # Ray opens the folder that it is given to all users; ours around it stays closed
        finally:
            shutil.rmtree(folder, ignore_errors=True)
