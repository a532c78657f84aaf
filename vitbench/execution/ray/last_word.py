"""What is said where Ray ends this process: past Python, and without a word.

Ray's compiled part does so at once when the node of the cluster that this process belongs to is lost, and after a minute without
the cluster's head. A small process beside this one waits for its end, and tells of one that came like that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

REACH_SECONDS = 5.0
"""How long the head of a cluster that still runs may take to take a connection."""
AGAIN = "what was stored is kept; run the same command again to go on from here"
_TELLER = """
import socket, sys
if sys.stdin.buffer.read(1):
    sys.exit()
host, port, seconds, lost, killed = sys.argv[1:]
try:
    socket.create_connection((host, int(port)), timeout=float(seconds)).close()
except OSError:
    print(lost, file=sys.stderr)
else:
    print(killed, file=sys.stderr)
"""


@contextmanager
def last_word(cluster: str, host: str, port: int) -> Iterator[None]:
    """Inside, an end of this process that passes by Python is told on standard error, in one line.

    Args:
        cluster: How messages name the cluster.
        host: The host of what this process needs of it, its head or its client server.
        port: Its port.
    """
    lost = f"error: {cluster} is lost, and Ray ended this run with it; {AGAIN}"
    killed = f"error: this run was killed, or the node of {cluster} that it belonged to was lost; {AGAIN}"
    teller = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _TELLER, host, str(port), str(REACH_SECONDS), lost, killed],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the run, which may take its time to end in order
    )
    try:
        yield
    finally:
        with suppress(OSError):
            teller.communicate(b".")
