"""The Hugging Face hub: whether it may be asked, and whether it can be reached, told at once."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"


def set_offline(offline: bool) -> None:
    """Keep this process, and those it starts, from asking the hub for anything; or let them again.

    huggingface_hub looks at its constant before every request, and transformers, timm and datasets go through it: what is on this
    machine is read, everything else is an error at once.
    """
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline
    if "datasets" in sys.modules:
        # It took a copy of the constant when it was imported.
        sys.modules["datasets"].config.HF_HUB_OFFLINE = offline
    if offline:
        os.environ[OFFLINE_VARIABLE] = "1"
    else:
        os.environ.pop(OFFLINE_VARIABLE, None)


@contextmanager
def offline() -> Iterator[None]:
    """Ask the hub nothing until the context ends."""
    before = is_offline()
    set_offline(True)
    try:
        yield
    finally:
        set_offline(before)


def is_offline() -> bool:
    """Whether the user wants to stay offline: by `--offline`, or by `HF_HUB_OFFLINE` in the environment."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def check_reachable() -> None:
    """Connect to the hub once, if nothing stands between: its own client would retry for half a minute before it gave up.

    Raises:
        OSError: It cannot be reached, or the user wants to stay offline.
    """
    from huggingface_hub import constants

    if is_offline():
        raise OSError(f"offline was asked for, by --offline or {OFFLINE_VARIABLE}")
    parts = urlsplit(constants.ENDPOINT)
    if parts.scheme not in urllib.request.getproxies():
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SECONDS).close()
