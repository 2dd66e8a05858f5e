"""One connection to a Hub: its documents, and single files that resume where they broke off.

The HTTP session, its proxies and certificates, the user's token, the headers of files and the classes of
errors are huggingface_hub's. What its 2.4 does otherwise is done here, and a test of the library
(tests/converter/hub/test_library.py) fails once it need not be. `hf_hub_download` writes each download to a
file of its own and deletes it on failure: a second run begins at byte 0, over HTTP and over Xet. A partial
file here is `blobs/DIGEST.incomplete`, is kept, and is continued by a Range request. `http_get` with
`resume_size` appends whatever part arrives and sleeps as long as a server says. `model_info` reads a listing
of any length.

Routes and headers: https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from converter.errors import HubError
from converter.hub.cache import local_files
from converter.hub.repository import RemoteFile, git_digest
from converter.names import printable
from converter.system.amounts import amount
from converter.system.digests import hexdigest

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

Answer = TypeVar("Answer")

_AGENT = "qatconvert"
_JSON_LIMIT = 64 << 20
_LONGEST_WAIT = 60.0
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a server has to send."""

    #: So many in any `seconds`.
    bytes: int
    seconds: float


#: 1 kB/s: by a slow telephone line in 30 s, by a server that only keeps the connection open never.
SLOWEST = Rate(30_000, 30.0)


class InterruptedTransferError(Exception):
    """This transfer was told to stop because another one failed."""


class ShortAnswerError(Exception):
    """The server ended an answer before the file was whole, without an error."""


class SlowAnswerError(Exception):
    """The server sends less than the slowest rate."""


@dataclass(frozen=True)
class Connection:
    """Where the Hub is and who asks."""

    endpoint: str
    #: Never printed.
    token: str | None = field(repr=False)
    #: Seconds before each retry.
    waits: tuple[float, ...] = (1.0, 2.0, 4.0)
    #: The rate below which an answer is given up.
    slowest: Rate = SLOWEST

    @property
    def address(self) -> str:
        """The endpoint as it may be printed: without user, password and query."""
        parts = urlsplit(self.endpoint)
        return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")

    def file_url(self, repo: str, commit: str, name: str) -> str:
        """Where the Hub has a file of a repository at a commit."""
        return f"{self.endpoint}/{repo}/resolve/{commit}/{quote(name)}"

    def document(self, route: str, parameters: Mapping[str, str]) -> object:
        """The JSON value at `route` (relative to the endpoint). Raises the errors of `answer`, HubError for
        an endless one, ValueError or RecursionError for what is no JSON."""
        return self.patiently(lambda: self._json(f"{self.endpoint}/{route}", parameters))

    def metadata(self, url: str) -> HfFileMetadata:
        """The size, ETag and commit of a file by its headers. Raises the errors of `answer`."""
        from huggingface_hub import get_hf_file_metadata

        # False, not None: huggingface_hub would look for a token of its own.
        token = self.token or False
        headers = {"user-agent": _AGENT}
        return self.patiently(
            lambda: self._soon(
                lambda: get_hf_file_metadata(url, token=token, headers=headers, endpoint=self.endpoint)
            )
        )

    def patiently(
        self,
        request: Callable[[], Answer],
        arrived: Callable[[], int] | None = None,
        stop: threading.Event | None = None,
    ) -> Answer:
        """What `request` returns, which is made again after failures that may pass.

        `arrived` counts the bytes of a file: while they grow, failures are forgiven, and so is a server that
        cannot be reached for a moment. Raises InterruptedTransferError once `stop` is set, or the last error.
        """
        failures = 0
        while True:
            before = arrived() if arrived else 0
            try:
                return request()
            except Exception as error:
                # Of a server that drips, every attempt brings a little.
                grown = arrived is not None and arrived() >= before + self.slowest.bytes
                failures = 1 if grown else failures + 1
                unreachable = arrived is None and isinstance(error, http_library().ConnectError)
                wait = None if unreachable else self._patience(error, failures)
                if wait is None:
                    raise
            if (stop or threading.Event()).wait(wait):
                raise InterruptedTransferError

    def _json(self, url: str, parameters: Mapping[str, str]) -> object:
        body = bytearray()
        with self.answer(url, {"Accept": "application/json"}, params=dict(parameters)) as response:
            for chunk in self.steady(response.iter_bytes()):
                body += chunk
                if len(body) > _JSON_LIMIT:
                    raise HubError(
                        f"{self.address}: the list of the repository's files is too long to be one"
                    )
        return json.loads(body)

    @contextmanager
    def answer(self, url: str, headers: Mapping[str, str], **options: Any) -> Iterator[Any]:
        """A GET request's streamed answer, redirects followed; the token goes to the endpoint's origin only.

        Raises huggingface_hub's and the HTTP library's own errors.
        """
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        authorization = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        everything = {"User-Agent": _AGENT, **headers, **authorization}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT

        def begin() -> Any:
            request = get_session().stream("GET", url, headers=everything, timeout=timeout, **options)
            response = stack.enter_context(request)
            hf_raise_for_status(response)  # may read a body that says why
            return response

        with ExitStack() as stack:
            yield self._soon(begin)

    def _soon(self, request: Callable[[], Answer]) -> Answer:
        """What `request` returns; SlowAnswerError if that takes too long. The HTTP library's limits are for
        each read, which a server that drips keeps. What it brings later is left to its thread."""
        from huggingface_hub import constants

        answer: Future[Answer] = Future()

        def run() -> None:
            try:
                answer.set_result(request())
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=run, name="request", daemon=True).start()
        done, _ = wait([answer], self.slowest.seconds + constants.HF_HUB_DOWNLOAD_TIMEOUT)
        if not done:
            raise SlowAnswerError
        return answer.result()

    def steady(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """`chunks` as they arrive; SlowAnswerError once they come slower than the slowest rate."""
        begin, arrived = time.monotonic(), 0
        for chunk in chunks:
            yield chunk
            arrived += len(chunk)
            if (now := time.monotonic()) >= begin + self.slowest.seconds:
                if arrived < self.slowest.bytes:
                    raise SlowAnswerError
                begin, arrived = now, 0

    def _patience(self, error: Exception, failures: int) -> float | None:
        """Seconds to wait before the next attempt after `failures` fruitless ones; None when it is no use."""
        if failures > len(self.waits) or not is_transient(error):
            return None
        asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
        return max(self.waits[failures - 1], min(float(asked), _LONGEST_WAIT) if asked.isdecimal() else 0.0)


def fetch(
    connection: Connection,
    url: str,
    file: RemoteFile,
    path: Path,
    received: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Bring `path` to the full length of `file`, going on from the bytes that it holds already. What they
    are is compared later, as of any file in the cache.

    `received` is told every change of the number of bytes at hand, first those that were there. Raises
    HubError when the connection breaks off for good (what arrived is kept), or when it cannot be written.
    Raises InterruptedTransferError once `stop` is set, and otherwise what `Connection.answer` raises.
    """
    resumed = _fill(connection, url, file, path, received, stop)
    if resumed and _contradicts_etag(path, file):
        # Not every server's ETag is a digest, so that it refuses nothing; but the part that lay here may
        # be damaged, which a transfer in one piece is not.
        received(-path.stat().st_size)
        path.unlink()
        _fill(connection, url, file, path, received, stop)


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    library = http_library()
    if isinstance(
        error,
        (
            ShortAnswerError,
            SlowAnswerError,
            library.TimeoutException,
            library.NetworkError,
            library.RemoteProtocolError,
        ),
    ):
        return True
    return getattr(getattr(error, "response", None), "status_code", None) in _AGAIN


def http_library() -> Any:
    """The HTTP library under huggingface_hub: httpx2 since its 2.x, httpx before."""
    from huggingface_hub.errors import HfHubHTTPError

    base = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return importlib.import_module(base.__module__.partition(".")[0])


class _Partial:
    """The file that a transfer fills, and how many bytes it holds.

    Where the size is not known, `size` is None until an answer tells it. What an earlier run left is of no
    use then: it may be whole.
    """

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self.file = file
        self.path = path
        self.size = file.size
        with local_files(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab")
        self.position = self._stream.tell()
        if self.size is None or self.position > self.size:
            self.restart()

    def close(self) -> None:
        with local_files(self.path):
            self._stream.close()

    def restart(self) -> None:
        with local_files(self.path):
            self._stream.truncate(0)
        self.position = 0

    def append(self, chunk: bytes) -> None:
        if self.size is not None and self.position + len(chunk) > self.size:
            self.restart()
            raise HubError(
                f"{self.file.name}: the server sends more than the {self.size} bytes that it listed"
            )
        with local_files(self.path):
            self._stream.write(chunk)
        self.position += len(chunk)

    def is_full(self) -> bool:
        return self.size is not None and self.position >= self.size


def _contradicts_etag(path: Path, file: RemoteFile) -> bool:
    """Whether, for want of a digest, the ETag looks like a SHA-1 but is neither git's nor a plain one."""
    if file.digest is not None or not re.fullmatch(r"[0-9a-f]{40}", file.etag or ""):
        return False
    with local_files(path):
        digests = (git_digest(path.stat().st_size), hashlib.sha1(usedforsecurity=False))
        return file.etag not in [hexdigest(path, digest) for digest in digests]


def _fill(
    connection: Connection,
    url: str,
    file: RemoteFile,
    path: Path,
    received: Callable[[int], None],
    stop: threading.Event,
) -> int:
    """Bring what is missing at `path`; how many bytes were there before."""
    with closing(_Partial(path, file)) as partial:
        before = partial.position
        received(before)

        def go_on() -> None:
            if not partial.is_full():
                _receive(connection, url, partial, received, stop)

        try:
            connection.patiently(go_on, lambda: partial.position, stop)
        except Exception as error:
            raise (_broken_off(error, partial) or error) from None
        return before


def _receive(
    connection: Connection,
    url: str,
    partial: _Partial,
    received: Callable[[int], None],
    stop: threading.Event,
) -> None:
    start = partial.position
    # Only unencoded bytes can be counted, resumed and compared with the listed size.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with connection.answer(url, headers) as response:
        encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        if encoded and response.status_code == 206:
            raise HubError(f"{partial.file.name}: the server compresses its answer against the request")
        if start and response.status_code != 206:
            partial.restart()
            received(-start)
        elif start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise HubError(
                f"{partial.file.name}: the server answers with another part of the file than asked for"
            )
        length = "" if encoded or response.status_code == 206 else response.headers.get("Content-Length", "")
        if partial.size is None and length.isdecimal():
            partial.size = int(length)
        for chunk in connection.steady(response.iter_bytes() if encoded else response.iter_raw()):
            if stop.is_set():
                raise InterruptedTransferError
            partial.append(chunk)
            received(len(chunk))
    if partial.size is None:
        partial.size = partial.position
    if partial.position < partial.size:
        raise ShortAnswerError


def _broken_off(error: Exception, partial: _Partial) -> HubError | None:
    if hasattr(error, "response") or not is_transient(error):
        return None
    done, size = amount(partial.position), "" if partial.size is None else f" of {amount(partial.size)}"
    what = (
        "the server all but stopped sending"
        if isinstance(error, SlowAnswerError)
        else "the connection broke off"
    )
    return HubError(
        f"{partial.file.name}: {what} at {done}{size}: run the same command again, it goes on from there"
    )
