"""The Hugging Face hub: whether it can be reached, told at once."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0


def check_reachable() -> None:
    """Connect to the hub once, if nothing stands between: its own client would retry for half a minute before it gave up.

    Raises:
        OSError: It cannot be reached, or the user wants to stay offline.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    parts = urlsplit(constants.ENDPOINT)
    if parts.scheme not in urllib.request.getproxies():
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SECONDS).close()
