"""This process while Ray is in it: its variables, its signals and its terminal stay as its user knows them."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from vitbench.errors import StoppedError

LOOPBACK = "127.0.0.1"
TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_came: set[int] = set()
"""SIGTERM, if it has: a handler can be interrupted by itself, so nothing here may lock."""


def is_loopback(host: str) -> bool:
    """Whether it names this machine alone."""
    return host in (LOOPBACK, "::1", "localhost")


@contextmanager
def loopback_kept(host: str = LOOPBACK) -> Iterator[None]:
    """Inside, Ray takes the loopback address as it is; otherwise it puts the machine's own address in its place.

    Ray does so for the address that it is to listen on, and is then open to the network, as well as for the one it is to join.
    """
    import ray._private.ray_constants as constants

    before = constants.ENABLE_RAY_CLUSTER
    if is_loopback(host):
        constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def hung_up_on() -> Iterator[None]:
    """Inside, a client that is not taken in hangs up and tells it at once; Ray's first waits half a minute for streams to end."""
    try:
        client: Any = importlib.import_module("ray.util.client.worker").Worker
    except ImportError:  # a Ray without its client
        yield
        return
    before = client.close

    def close(worker: Any) -> None:
        worker._in_shutdown = True
        if worker.channel:
            worker.channel.close()
        before(worker)

    client.close = close
    try:
        yield
    finally:
        client.close = before


@contextmanager
def native_silence() -> Iterator[None]:
    """Keep Ray's compiled part, in this process and until it ends, from writing to the terminal.

    Ray Data's actors make it print an error that is none (constructor arguments in the object store). Its level is only read
    while Ray starts, which it tells in a line of its own; so what is written meanwhile goes nowhere.
    """
    before = os.environ.get(_LEVEL)
    os.environ[_LEVEL] = "fatal"
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in kept:
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        if before is None:
            os.environ.pop(_LEVEL, None)
        else:
            os.environ[_LEVEL] = before


@contextmanager
def token_kept() -> Iterator[None]:
    """Ray's variables about tokens are as before afterwards; `ray.init` sets them."""
    before = {name: os.environ.get(name) for name in TOKEN}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        forget_token()


def forget_token() -> None:
    """Make Ray's library, which keeps them, read the variables about tokens again when it is asked for another cluster."""
    with suppress(ImportError, AttributeError):  # a Ray that knows no tokens
        library: Any = importlib.import_module("ray._raylet")
        library.Config.initialize("")
        library.AuthenticationTokenLoader.instance().reset_cache()


def heed_sigterm() -> None:
    """End what is under way if SIGTERM has come: one that came while an object was let go Python has only printed.

    Raises:
        StoppedError: It has, since `sigterm_kept` was entered.
    """
    if _came:
        raise StoppedError(
            "stopped by SIGTERM: run the same command again to go on from here", 128 + signal.SIGTERM
        ) from None


@contextmanager
def sigterm_kept() -> Iterator[Callable[[], None]]:
    """What SIGTERM does is afterwards as it was before; inside, what is under way ends in order, as at Ctrl-C.

    That is so once Ray is there and the function that is given was called: Ray's compiled part, which `ray.init` brings in,
    prints its stack otherwise. `training.signals` replaces it again. Only the main thread can do so; in another nothing changes.

    Raises:
        StoppedError: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)
    _came.clear()

    def end(number: int, frame: FrameType | None) -> None:
        _came.add(number)
        sys.exit(128 + number)

    def end_in_order() -> None:
        signal.signal(signal.SIGTERM, end)

    try:
        yield end_in_order
    except BaseException:
        # Not by its kind or code: where Ray's compiled part waits for something, it makes any exit one of status 1, and what
        # cleans up on the way out may fail.
        heed_sigterm()
        raise
    finally:
        if before is not None:  # None is a handler that Python did not set, and cannot set again
            signal.signal(signal.SIGTERM, before)
        _came.clear()


@contextmanager
def silent() -> Iterator[None]:
    """What Ray prints about lost workers and nodes, dozens of lines each, goes nowhere: the run tells of them in its own."""
    library: Any = importlib.import_module("ray._private.worker")
    before = getattr(library, "print_to_stdstream", None)
    library.print_to_stdstream = lambda *arguments, **named: None
    try:
        yield
    finally:
        library.print_to_stdstream = before
