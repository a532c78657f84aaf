"""A small Hugging Face hub on 127.0.0.1, for tests of the real hub code: serves folders as repositories at one commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `root/datasets/ORG/NAME` and `root/models/ORG/NAME` until the context ends.

    Yields:
        The endpoint, for `HF_ENDPOINT`, and a list that grows by the path of every request.
    """
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            requests.append(f"{self.command} /{path}")
            api = path.startswith("api/")
            parts = path.removeprefix("api/").split("/")
            kind = parts.pop(0) if parts[0] in ("datasets", "models") else "models"
            folder = root / kind / "/".join(parts[:2])
            if not folder.is_dir():
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            elif len(parts) > 3 and parts[3] not in (COMMIT, "main"):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            elif api:
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                names = [file.relative_to(folder).as_posix() for file in files]
                tree = [
                    {"type": "file", "oid": _etag(file), "size": file.stat().st_size, "path": name}
                    for file, name in zip(files, names, strict=True)
                ]
                info = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                self._send(200, json.dumps(tree if parts[2:3] == ["tree"] else info).encode(), {}, body)
            elif not (file := folder / "/".join(parts[4:])).is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
            else:
                headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                self._send(200, file.read_bytes(), headers, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:40]
