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
host, port, seconds, lost, ended = sys.argv[1:]
try:
    socket.create_connection((host, int(port)), timeout=float(seconds)).close()
except OSError:
    print(lost, file=sys.stderr)
else:
    print(ended, file=sys.stderr)
"""


@contextmanager
def last_word(ended: str, host: str, port: int, lost: str = "") -> Iterator[None]:
    """Inside, an end of this process that passes by Python is told on standard error, in one line.

    Args:
        ended: What has happened then.
        host: The host of what this process needs of its cluster, the head or the client server.
        port: Its port.
        lost: What has happened where nothing answers there; empty for the same.
    """
    lines = [f"error: {told}; {AGAIN}" for told in (lost or ended, ended)]
    teller = None
    with suppress(OSError):  # the run can do without
        teller = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TELLER, host, str(port), str(REACH_SECONDS), *lines],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run, which may take its time to end in order
        )
    try:
        yield
    finally:
        if teller is not None:
            with suppress(OSError):
                teller.communicate(b".")
