"""Serve a report on this machine alone."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from vitbench.errors import UsageError

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder: no listing of folders, no link out of it, and no other host's name for this machine."""

    server_version = "vitbench"
    sys_version = ""

    def send_head(self) -> Any:
        """Refuse what does not lie in the folder, then do as usual."""
        # A page elsewhere could give its own name this machine's address and so read the report through the reader's browser.
        name = self.headers.get("Host", "").rsplit(":", 1)[0]
        if name not in (HOST, "localhost"):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        if not Path(self.translate_path(self.path)).resolve().is_relative_to(Path(self.directory).resolve()):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> BinaryIO | None:  # type: ignore[override]
        """There is no listing."""
        self.send_error(HTTPStatus.NOT_FOUND)
        return None

    def end_headers(self) -> None:
        """A report that was made anew is shown anew."""
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing is said of each request."""


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the files below `folder` on 127.0.0.1; `serve_forever()` starts it.

    Args:
        folder: The report.
        port: Where it listens; 0 takes a free one.

    Raises:
        UsageError: The port is taken or may not be used.
    """
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"port {port} cannot be used ({reason}): name another with --port, or 0 for a free one"
        ) from error
