"""What `--address` may say, and what is told where no cluster is found at an address, or it does not take this process in."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass

from vitbench.errors import UsageError

_FORMS = "auto, HOST:PORT, ray://HOST:PORT, or nothing for a Ray on this machine"
NO_CLUSTER = (
    "--address auto finds no Ray cluster on this machine: start one with `ray start --head`, name one by HOST:PORT or "
    "ray://HOST:PORT, or leave --address out for a Ray of this run's own"
)
_TOKEN_HINT = (
    "set RAY_AUTH_MODE=token; the token is read from ~/.ray/auth_token, where `ray start` has put it, or from the file that "
    "RAY_AUTH_TOKEN_PATH names"
)
NOT_STARTED = re.compile(r"Starting Ray client server failed|psutil\.(ZombieProcess|NoSuchProcess)")
"""What a client server says that has not started the process which it needs for a driver."""


@dataclass(frozen=True)
class Address:
    """Where a cluster is asked for.

    Attributes:
        text: What `ray.init` takes.
        told: How messages name it.
        host: Its host; `""` for `auto`.
        port: Its port.
    """

    text: str
    told: str
    host: str = ""
    port: int = 0

    @property
    def client(self) -> bool:
        """Whether it is joined from outside, through its client server."""
        return self.text.startswith("ray://")


def parse_address(text: str) -> Address:
    """Read `--address`; `auto` is what the variable RAY_ADDRESS says, where it is set.

    Raises:
        UsageError: It has none of the forms.
    """
    told = f"--address {text}"
    if text == "auto" and (text := os.environ.get("RAY_ADDRESS", "").strip() or "auto") != "auto":
        told = f"--address auto (RAY_ADDRESS={text})"
    if text == "auto":
        return Address(text, told)
    match = re.fullmatch(r"(?:ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})", text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise UsageError(f"{told} is no address of a Ray cluster: write {_FORMS}")
    return Address(text, told, match["host"].strip("[]"), int(match["port"]))


def refusal(address: Address, problem: list[str]) -> str:
    """What to tell of an error that joining raised: its type, its text, and its cause's."""
    kind, text, cause = problem
    both = f"{text}\n{cause}"
    if NOT_STARTED.search(both):
        return (
            f"the client server of {address.told} takes connections and fails again and again to start a process for "
            "this driver: see ray_client_server.err in the log folder of the cluster's head, or start the run on a node of the "
            "cluster with its HOST:PORT"
        )
    if "ersion mismatch" in both or "rotocol version" in both:
        found = re.findall(r"(?:Ray|Python): *(\S+)", both)
        cluster = f"Ray {found[0]} on Python {found[1]}" if len(found) == 4 else "another version of Ray or Python"
        here = (
            f"Ray {found[2]} on Python {found[3]}"
            if len(found) == 4
            else f"Ray {importlib.import_module('ray').__version__}"
        )
        return (
            f"the cluster of {address.told} runs {cluster}, and this process {here}: both must be the same; install the "
            "cluster's versions here, or start the cluster with this environment"
        )
    if "Could not find any running Ray instance" in both:
        return NO_CLUSTER
    if "node info" in both:
        return (
            f"this machine is no node of the cluster of {address.told}: make it one with `ray start "
            f"--address={address.text}`, or join from outside with ray://HOST:10001 (Ray's client port)"
        )
    if "uthenticat" in both or "token" in both.lower():
        return f"the cluster of {address.told} asks for a token that this process lacks or has another one of: {_TOKEN_HINT}"
    if kind == "ImportError" and "grpc" in both:
        return f'{address.told} needs Ray\'s client: pip install "vitbench[ray]"'
    said = re.split(r"\n|\. ", text.strip() or kind, maxsplit=1)[0][:200]
    return f"no Ray cluster answers at {address.told}: {said}; {advice(address)}"


def silent_advice(address: Address) -> str:
    """What to do where something takes connections and says nothing."""
    # A client server that asks for a token says so in its own log alone.
    return f"if it asks for a token, {_TOKEN_HINT}; else {advice(address)}" if address.client else advice(address)


def advice(address: Address) -> str:
    """What to do where no cluster answers."""
    if not address.host:
        return (
            "it may be another user's, or ask for a token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH): name the cluster by "
            "HOST:PORT, or leave --address out for a Ray of this run's own"
        )
    port = (
        "its client port, 10001 unless said otherwise," if address.client else "its port, 6379 unless said otherwise,"
    )
    return (
        f"see that the cluster's head runs (`ray start --head`) and that {port} can be reached from here, or leave "
        "--address out for a Ray on this machine"
    )
