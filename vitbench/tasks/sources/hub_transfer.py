"""Answers and bytes from the hub: patient with a server that is busy, and with a connection that breaks.

huggingface_hub's own download retries some of this within one call, but throws a half download away when the process ends, waits
as long as a server tells it to, and never looks at the checksum. Here a half download stays and goes on where it stopped, waits
have a bound, and a file gets its name only when its size and its checksum are those of the hub's list. Nor is an answer believed
that does not have the shape of a hub's: what stands between (a proxy, a login page) often says that all is well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urljoin

from pydantic import BaseModel, Field, TypeAdapter

from vitbench.tasks.sources.rows import file_digest

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before the second, third, … attempt. A download that gained some bytes starts over with the first."""
LONGEST_WAIT = 30.0
"""Seconds; a server that asks for more (`Retry-After`) is asked again after these."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
CHUNK_BYTES = 1 << 20
LIST_SECONDS = 30.0
"""How long the hub may take to answer a question."""
SHA256_DIGITS = 64

Result = TypeVar("Result")
Progress = Callable[[int], None]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
Bytes = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it.

    Attributes:
        size: Bytes.
        digest: What the hub names its content by: sha256 (64 digits) for large files, git's blob sha1 (40 digits) for others.
    """

    size: int
    digest: str


class DamagedError(Exception):
    """Content that is not what the hub's list says; the message says how it differs."""


class AnswerError(Exception):
    """An answer of success that no hub gives: a page for people, nothing at all, or a list of another shape."""


class _LargeFile(BaseModel):
    oid: Digest


class _File(BaseModel):
    type: Literal["file"]
    path: str = Field(min_length=1)
    oid: Digest
    size: Bytes
    lfs: _LargeFile | None = None


class _Folder(BaseModel):
    type: Literal["directory"]


class _Info(BaseModel):
    sha: str = Field(pattern=r"^[0-9a-f]{40}$")


_LIST: TypeAdapter[list[_File | _Folder]] = TypeAdapter(list[Annotated[_File | _Folder, Field(discriminator="type")]])
_KEPT: TypeAdapter[dict[str, tuple[Bytes, Digest]]] = TypeAdapter(dict[str, tuple[Bytes, Digest]])


def newest_commit(repo: str) -> str:
    """The commit of a dataset's main branch.

    Raises:
        AnswerError: What answers is no hub.
        OSError: Nothing answers, or the hub refuses.
    """
    from huggingface_hub import constants

    response = _ask(f"{constants.ENDPOINT}/api/datasets/{repo}/revision/main")
    try:
        return _Info.model_validate_json(response.content).sha
    except ValueError as error:
        raise AnswerError from error


def listed_files(repo: str, commit: str) -> dict[str, HubFile]:
    """The files of a dataset at a commit, by name; empty when it has none. All pages of the list, or an error.

    Raises:
        AnswerError: What answers is no hub.
        OSError: Nothing answers, or the hub refuses.
    """
    # huggingface_hub's own function for this waits as long as a server asks for.
    from huggingface_hub import constants

    files: dict[str, HubFile] = {}
    for page in _pages(f"{constants.ENDPOINT}/api/datasets/{repo}/tree/{commit}?recursive=true&expand=false"):
        try:
            entries = _LIST.validate_json(page)
        except ValueError as error:
            raise AnswerError from error
        for entry in entries:
            if isinstance(entry, _File):
                files[entry.path] = HubFile(entry.size, entry.lfs.oid if entry.lfs else entry.oid)
    return files


def kept_files(content: bytes) -> dict[str, HubFile]:
    """The files of a list that was kept as JSON, name to size and digest.

    Raises:
        ValueError: It is no such list.
    """
    return {name: HubFile(size, digest) for name, (size, digest) in _KEPT.validate_json(content).items()}


def _pages(address: str) -> Iterator[bytes]:
    """The content of a list's pages: each names the next."""
    seen: set[str] = set()
    while address:
        if address in seen or not re.fullmatch(r"https?://[^\s/\[\]]+/\S*", address):
            raise AnswerError(f"the list goes on at '{address}'")
        seen.add(address)
        response = _ask(address)
        yield response.content
        following = response.links.get("next", {}).get("url", "")
        try:
            address = urljoin(address, following) if following else ""
        except ValueError as error:
            raise AnswerError(f"the list goes on at '{following}'") from error


def _ask(address: str) -> Any:
    """The hub's response to a question."""
    tools = http_tools()

    def once() -> Any:
        response = tools.get_session().get(address, headers=tools.build_hf_headers(), timeout=LIST_SECONDS)
        raise_refusal(response)
        return response

    return retried(once)


def raise_refusal(response: Any) -> None:
    """Raise huggingface_hub's error for a response that says no.

    Raises:
        HfHubHTTPError: It does.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        http_tools().hf_raise_for_status(response)
    except (AttributeError, TypeError, ValueError) as error:
        # It looks for the reason in the body, and stumbles over one that no hub would send.
        raise HfHubHTTPError(f"status {response.status_code}", response=response) from error


def http_tools() -> Any:
    """huggingface_hub's session, headers and errors, which its documentation names and its types do not."""
    from huggingface_hub import utils

    return utils


def retried(action: Callable[[], Result]) -> Result:
    """Do what asks the hub for something, again when it fails for a reason that passes."""
    for pause in WAITS:
        try:
            return action()
        except Exception as error:
            if not is_passing(error):
                raise
            sleep(_pause(error, pause))
    return action()


def is_passing(error: Exception) -> bool:
    """Whether the same request may well succeed in a while: a busy server, a connection that broke."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return is_transport_error(error)


def is_transport_error(error: BaseException) -> bool:
    """Whether the HTTP library raised it. Which library that is changes with the version of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError.__bases__[0])


def download(url: str, target: Path, wanted: HubFile, progress: Progress) -> None:
    """Fetch a file completely; what an interrupted call left in `target` is gone on from.

    Args:
        url: Where it is.
        target: The half download, then the whole one.
        wanted: Its size and digest.
        progress: Called with the number of bytes that came; with a negative one when bytes had to be thrown away.

    Raises:
        DamagedError: What comes, twice, is not what is wanted. Nothing of it is kept.
        OSError: The network or the disk fails; what came until then is kept.
    """
    for attempt in (1, 2):
        try:
            if _size(target) > wanted.size:
                raise DamagedError(f"it has {_size(target):,} bytes where {wanted.size:,} are expected")
            _fill(url, target, wanted.size, progress)
            if problem := damage(target, wanted):
                raise DamagedError(problem)
            return
        except DamagedError:
            progress(-_size(target))
            target.unlink(missing_ok=True)
            if attempt == 2:
                raise


def damage(path: Path, wanted: HubFile) -> str:
    """How the content of a file differs from what is wanted; empty when it does not."""
    if (size := _size(path)) != wanted.size:
        return f"it has {size:,} bytes where {wanted.size:,} are expected"
    found = file_digest(path) if len(wanted.digest) == SHA256_DIGITS else git_digest(path)
    return "" if found == wanted.digest else digest_problem(found, wanted.digest)


def digest_problem(found: str, wanted: str) -> str:
    """Two different digests, in words."""
    kind = "sha256" if len(wanted) == SHA256_DIGITS else "git sha1"
    return f"its {kind} is {found[:12]}… where {wanted[:12]}… is expected"


def git_digest(path: Path) -> str:
    """The name that git gives to a file's content: the sha1 of `blob SIZE`, a zero byte, and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _fill(url: str, target: Path, size: int, progress: Progress) -> None:
    """Append to `target` until it has `size` bytes."""
    waits = list(WAITS)
    target.touch()
    while (before := _size(target)) < size:
        try:
            _append(url, target, before, size, progress)
        except Exception as error:
            if not is_passing(error):
                raise
            if _size(target) > before:
                waits = list(WAITS)
            if not waits:
                raise
            sleep(_pause(error, waits.pop(0)))


def _append(url: str, target: Path, start: int, size: int, progress: Progress) -> None:
    """One request for what follows the first `start` bytes."""
    from huggingface_hub import constants

    tools = http_tools()
    # Compression would give ranges and lengths of other bytes than the file's.
    headers = {**tools.build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with tools.get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == 416:
            raise DamagedError(f"it ends before byte {start:,} where {size:,} bytes are expected")
        raise_refusal(response)
        continued = response.status_code == 206
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise DamagedError(f"the server gave other bytes than those from byte {start:,} on")
        if start and not continued:
            # The server does not know ranges, and sends the file from its start.
            progress(-start)
        have = start if continued else 0
        with target.open("ab" if continued else "wb") as handle:
            # Without a chunk size: what has come is written at once, and is not lost with the connection.
            for chunk in response.iter_bytes():
                have += len(chunk)
                handle.write(chunk)
                progress(len(chunk))
                if have > size:
                    raise DamagedError(f"it has more than the {size:,} bytes that are expected")
    if have < size:
        raise DamagedError(f"it has {have:,} bytes where {size:,} are expected")


def _pause(error: Exception, pause: float) -> float:
    """Seconds until the next attempt: as the server asks, within bounds."""
    asked = 0.0
    response: Any = getattr(error, "response", None)
    with suppress(AttributeError, TypeError, ValueError):
        asked = float(response.headers.get("Retry-After"))
    return max(pause, min(asked, LONGEST_WAIT))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
