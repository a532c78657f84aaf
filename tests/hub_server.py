"""A small Hugging Face hub on 127.0.0.1, for tests of the real hub code.

It serves folders as repositories, in the hub's own way: lists with sizes and checksums, ETags (sha256 for large files, git's sha1
for others), large files behind a redirect to another host, ranges, commits that come and go, gated repositories. A test can make
it fail in the ways in which networks fail, and reads in its log what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 10_000_000
LARGE_SUFFIXES = (".parquet", ".safetensors", ".tar")
"""What a hub repository's settings keep outside git, whatever its size."""
PIECE = 1 << 14


@dataclass
class Fault:
    """What goes wrong with one request for a file's content, or for a list.

    Attributes:
        status: Answer with this status.
        retry_after: And ask to wait so many seconds.
        cut_after: Break the connection after so many bytes of the answer.
        content: Send this content in place of the file's, of the list, or of the reason for the status.
        delay: Seconds to wait after every piece of the answer.
        no_ranges: Send the whole file, whatever range is asked for.
    """

    status: int = 0
    retry_after: int | None = None
    cut_after: int | None = None
    content: bytes | None = None
    delay: float = 0.0
    no_ranges: bool = False


@dataclass
class Request:
    """One request, as the log has it."""

    method: str
    path: str
    range: str
    authorized: bool
    sent: int = 0
    status: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Hub:
    """The server, as a test sees it.

    Attributes:
        root: `root/datasets/ORG/NAME` and `root/models/ORG/NAME` are its repositories, at the commit `COMMIT`.
        endpoint: For `HF_ENDPOINT`.
        log: Every request.
        commits: `datasets/ORG/NAME` to its commits and their folders, where there are others than `COMMIT`; the last is main.
        gated: Repositories whose files need an account that accepted their terms.
        faults: End of a file's name to what goes wrong with the next requests for its content (or `tree`, for lists, or
            `revision`, for the newest commit).
        page: How many files a list has at most before it goes on elsewhere.
    """

    root: Path
    endpoint: str = ""
    log: list[Request] = field(default_factory=list)
    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    page: int = 1000

    def fail(self, name: str, fault: Fault, times: int = 1) -> None:
        """Let the next requests for the content of `name` fail."""
        self.faults.setdefault(name, []).extend([fault] * times)

    def contents(self, name: str = "") -> list[Request]:
        """The requests that were for a file's content, or got a part of it."""
        return [
            item
            for item in self.log
            if item.method == "GET" and "/api/" not in item.path and item.path.endswith(name) and item.status != 302
        ]

    def files(self) -> list[str]:
        """The names of the files whose content was asked for, each once."""
        return list(dict.fromkeys(item.path.rsplit("/", 1)[-1] for item in self.contents()))

    def versions(self, repo: str) -> dict[str, Path]:
        """The commits of a repository and their folders; empty when there is no such repository."""
        folder = self.root / repo
        return self.commits.get(repo) or ({COMMIT: folder} if folder.is_dir() else {})

    def fault(self, path: str) -> Fault:
        """What goes wrong with this request, taken from the list."""
        waiting = next((queue for name, queue in self.faults.items() if queue and path.endswith(name)), [])
        return waiting.pop(0) if waiting else Fault()


@contextmanager
def serve_hub(root: Path) -> Iterator[Hub]:
    """Serve the repositories below `root` until the context ends."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: _Handler(hub, *arguments))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """Point huggingface_hub, datasets and vitbench in this process at a server and at caches of their own."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    _http.close_session()
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        # Set first, so that the state before is put back even if it was unset.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("VITBENCH_CACHE", str(home / "vitbench"))


def etag(content: bytes, name: str) -> str:
    """What the hub names content by."""
    if _is_large(content, name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(content: bytes, name: str) -> bool:
    return name.endswith(LARGE_SUFFIXES) or len(content) > LARGE_BYTES


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        """Stay quiet."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        authorized = bool(self.headers.get("Authorization"))
        self.record = Request(self.command, f"/{path}", self.headers.get("Range", ""), authorized)
        self.hub.log.append(self.record)
        place, api = path.removeprefix("api/").removeprefix("cdn/"), path.startswith("api/")
        parts = place.split("/")
        kind = parts.pop(0) if parts[0] in ("datasets", "models") else "models"
        repo = "/".join([kind, *parts[:2]])
        versions = self.hub.versions(repo)
        verb, asked = (*parts[2:4], "", "")[:2]
        commit = list(versions)[-1] if versions and asked in ("main", "") else asked
        if not versions:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif commit not in versions:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._list(verb, parts, commit, versions[commit])
        elif repo in self.hub.gated and not authorized and not path.startswith("cdn/"):
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        else:
            self._file(path, "/".join(parts[4:]), commit, versions[commit])

    def _list(self, verb: str, parts: list[str], commit: str, folder: Path) -> None:
        fault = self.hub.fault(verb)
        if fault.status:
            self._fail(fault)
            return
        if fault.content is not None:
            self._send(200, fault.content)
            return
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        if verb != "tree":
            siblings = [{"rfilename": name} for name in files]
            self._send(200, json.dumps({"id": "/".join(parts[:2]), "sha": commit, "siblings": siblings}).encode())
            return
        entries = [_entry(name, content) for name, content in files.items()]
        start = int(dict(item.split("=") for item in urlsplit(self.path).query.split("&") if item).get("cursor", "0"))
        headers = {}
        if start + self.hub.page < len(entries):
            following = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={start + self.hub.page}"
            headers["Link"] = f'<{following}>; rel="next"'
        self._send(200, json.dumps(entries[start : start + self.hub.page]).encode(), headers)

    def _file(self, path: str, name: str, commit: str, folder: Path) -> None:
        file = folder / name
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = file.read_bytes()
        tag = f'"{etag(content, name)}"'
        if _is_large(content, name) and not path.startswith("cdn/"):
            # As on the hub, the content is at another host, which must not see the user's token.
            other = self.hub.endpoint.replace("127.0.0.1", "localhost")
            headers = {"X-Linked-ETag": tag, "X-Linked-Size": str(len(content)), "X-Repo-Commit": commit}
            self._send(302, b"", {**headers, "Location": f"{other}/cdn/{path}"})
            return
        fault = self.hub.fault(name) if self.command == "GET" else Fault()
        if fault.status:
            self._fail(fault)
            return
        content = content if fault.content is None else fault.content
        headers = {"ETag": tag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = (
            0 if fault.no_ranges or not self.record.range else int(self.record.range.removeprefix("bytes=").rstrip("-"))
        )
        if start >= len(content) and start:
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        elif start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], headers, fault)
        else:
            self._send(200, content, headers, fault)

    def _fail(self, fault: Fault) -> None:
        content = b"busy" if fault.content is None else fault.content
        self._send(fault.status, content, {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        fault = fault or Fault()
        self.record.status = status
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        whole = content if fault.cut_after is None else content[: fault.cut_after]
        for start in range(0, len(whole), PIECE):
            piece = whole[start : start + PIECE]
            self.wfile.write(piece)
            self.record.sent += len(piece)
            if fault.delay:
                threading.Event().wait(fault.delay)
        if len(whole) < len(content):
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()


def _entry(name: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"type": "file", "oid": oid, "size": len(content), "path": name}
    if _is_large(content, name):
        # git itself holds a pointer, which is what its own hash is of.
        sha = hashlib.sha256(content).hexdigest()
        entry |= {
            "oid": hashlib.sha1(sha.encode()).hexdigest(),
            "lfs": {"oid": sha, "size": len(content), "pointerSize": 134},
        }
    return entry
