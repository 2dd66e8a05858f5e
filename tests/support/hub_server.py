"""A Hub on this machine: local directories served as model repositories over the Hub's protocol.

It answers what huggingface_hub asks when it downloads (model description, tree, HEAD and GET of files,
ranges, redirects of large files to a storage host of another origin) with the Hub's own status codes, error
codes and headers. Attributes switch what goes wrong; `requests` says what was asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from support.hub_writing import Storage, write

LARGE = (".safetensors", ".bin", ".gguf", ".onnx", ".onnx.data", ".litertlm", ".pt", "tokenizer.json")
PLAIN = frozenset({"blobs", "tree", "codes", "storage"})
#: When every commit was made.
DATE = "2026-04-02T12:34:56.000Z"
TOKEN = "hf_aValidTokenOfThisServer"
_DROPPED_ENVIRONMENT = (
    "HF_",
    "HUGGING",
    "TRANSFORMERS_",
    "QATCONVERT_",
    "HTTP_",
    "HTTPS_",
    "ALL_PROXY",
    "NO_PROXY",
)


@dataclass(frozen=True)
class Request:
    """One request and how it was answered; `host` is "hub" or "storage", `sent` counts body bytes."""

    host: str
    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    sent: int

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Repository:
    """Commits (hexadecimal) and the directories that hold their files; branches and tags lead to commits."""

    commits: dict[str, Path] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    def publish(self, directory: Path, reference: str = "main") -> str:
        contents = "".join(f"{name}:{blob_id(path)}\n" for name, path in files_of(directory).items())
        commit = hashlib.sha1(contents.encode()).hexdigest()
        self.commits[commit] = directory
        self.references[reference] = commit
        return commit


class HubServer:
    """`with HubServer({"owner/name": directory}) as server:` serves until the block ends.

    Switches, all of which may be changed while it runs: `gated` and `private` repositories; `members`, the
    tokens that may read gated repositories (`TOKEN` is valid, but no member unless added); `failing`, path
    fragment -> (status, how often; -1 for ever); `drop_after`, file name -> bytes of each answer after which
    the connection breaks; `drip_after`, file name (or "listing", "headers") -> bytes of the file after which
    one follows every `drip_seconds`; `announced`, file name -> false size; `edit_listing`, a change to the
    JSON of a model's description; `corrupt`, files whose content is altered; `ignore_ranges`; `shift_ranges`,
    files of which another part is sent than was asked for; `retry_after`, the seconds that every failure asks
    to wait; `xet`, whether large files say that they can be had over Xet (of which there is no storage here);
    `etag`, the header for a file that is sent directly.

    `without` names what a simpler server lacks: "blobs" (sizes and digests in descriptions), "queries" (an
    address with a query that huggingface_hub does not send is unknown), "revision" (descriptions at a
    revision), "model" (descriptions without one), "tree", "codes" (X-Error-Code), "json" (JSON in errors),
    "storage" (large files elsewhere), "head" (HEAD of files), "branches" (files of a branch), "length"
    (Content-Length of files). `PLAIN` is a server that speaks the least of the protocol.

    With a `writing` folder it can be written to (see `hub_writing`): by the tokens of `writers`, in the name
    of `user`, who may also write for `organisations`; not to `forbidden` repositories, and with none of the
    `expired` tokens. Files of more than `part_bytes` are sent in parts. `before_commit` is called before a
    commit is looked at. `storage_of` says what was written.
    """

    def __init__(self, repositories: Mapping[str, Path], writing: Path | None = None) -> None:
        self.repositories = {name: Repository() for name in repositories}
        for name, directory in repositories.items():
            self.repositories[name].publish(directory)
        self.requests: list[Request] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.members: set[str] = set()
        self.failing: dict[str, tuple[int, int]] = {}
        self.drop_after: dict[str, int] = {}
        self.drip_after: dict[str, int] = {}
        self.drip_seconds = 0.05
        self.announced: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.ignore_ranges = False
        self.shift_ranges: set[str] = set()
        self.retry_after = ""
        self.xet = False
        self.without: set[str] = set()
        self.etag: Callable[[Path], str] = lambda path: f'"{content_id(path)}"'
        self.edit_listing: Callable[[dict[str, Any]], object] = lambda listing: listing
        self.writers: set[str] = set()
        self.user = "owner"
        self.organisations: list[str] = []
        self.forbidden: set[str] = set()
        self.expired: set[str] = set()
        self.part_bytes = 1 << 40
        self.before_commit: Callable[[], object] = lambda: None
        self._storage_of = None if writing is None else Storage(writing)
        self.lock = threading.RLock()
        self._hosts = [_Host(self, "hub"), _Host(self, "storage")]
        self.endpoint, self.storage = (f"http://127.0.0.1:{host.server_port}" for host in self._hosts)

    def __enter__(self) -> HubServer:
        for host in self._hosts:
            threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts:
            host.shutdown()
            host.server_close()

    def environment(self, folder: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process whose Hub this is, with its caches and settings below `folder`."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.upper().startswith(_DROPPED_ENVIRONMENT)
        }
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(folder / "huggingface"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "QATCONVERT_HOME": str(folder / "qatconvert"),
            **({"HF_TOKEN": token} if token else {}),
        }

    @property
    def storage_of(self) -> Storage:
        """What was written."""
        assert self._storage_of is not None, "this server cannot be written to"
        return self._storage_of

    def commit(self, repo: str, reference: str = "main") -> str:
        return self.repositories[repo].references[reference]

    def asked_for(self, name: str) -> list[Request]:
        """The GET requests for a file's content, without those that were redirected."""
        digests = {sha256(path) for repo in self.repositories.values() for path in paths_named(repo, name)}
        wanted = {name, *digests}
        with self.lock:
            gets = [request for request in self.requests if request.method == "GET" and request.status != 302]
        return [request for request in gets if request.path.rsplit("/", 1)[-1] in wanted]

    def names_asked_for(self) -> set[str]:
        """The files that were asked of the hub itself, by name."""
        with self.lock:
            paths = [request.path for request in self.requests if request.host == "hub"]
        return {path.partition("/resolve/")[2].partition("/")[2] for path in paths if "/resolve/" in path}


def files_of(directory: Path) -> dict[str, Path]:
    """Every file below `directory` by its name in the repository."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path for path in paths}


def paths_named(repository: Repository, name: str) -> list[Path]:
    found = [files_of(directory).get(name) for directory in repository.commits.values()]
    return [path for path in found if path is not None]


def blob_id(path: Path) -> str:
    """Git's name of a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content_id(path: Path) -> str:
    """The Hub's name of a file's content."""
    return sha256(path) if path.name.endswith(LARGE) else blob_id(path)


class _Host(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, name: str) -> None:
        self.hub = hub
        self.name = name
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no failure of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Host

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub = self.server.hub
        url = urlsplit(self.path)
        self.route = url.path
        self.query = parse_qs(url.query)
        # read whatever the answer is: what is left would be taken for the next request
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.body = (
            self._chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        )
        with self.hub.lock:
            for fragment, (status, times) in self.hub.failing.items():
                if fragment in self.route and times:
                    self.hub.failing[fragment] = (status, times - 1)
                    return self._error(
                        status, "", "Internal Error - We're working hard to fix this as soon as possible!"
                    )
        if self._written():
            return None
        if self.server.name == "storage":
            return self._storage()
        prefix, parts = self.route.split("/")[1:3], [unquote(part) for part in self.route.split("/")[1:]]
        if prefix == ["api", "models"] and len(parts) >= 4:
            return self._api("/".join(parts[2:4]), parts[4:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._error(404, "", "Sorry, we can't find the page you are looking for.")

    def _written(self) -> bool:
        """Whether the request was one of who publishes."""
        if self.hub._storage_of is None:
            return False
        return write(self, self.route, self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _api(self, repo: str, rest: list[str]) -> None:
        if self._refused(repo):
            return None
        lacking = self.hub.without
        kind, revision = (rest[0], rest[1]) if len(rest) >= 2 else ("model", "main")
        if kind in lacking or ("queries" in lacking and "blobs" in self.query):
            return self._error(404, "", "Not Found")
        commit = self._commit(repo, revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = files_of(self.hub.repositories[repo].commits[commit])
        if kind == "tree":
            return self._json([self._tree_entry(name, path) for name, path in files.items()])
        siblings = [self._sibling(name, path) for name, path in files.items()]
        gated = "manual" if repo in self.hub.gated else False
        listing = {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "lastModified": DATE,
            "private": repo in self.hub.private,
        }
        return self._json(self.hub.edit_listing({**listing, "gated": gated, "siblings": siblings}))

    def _sibling(self, name: str, path: Path) -> dict[str, object]:
        if "blobs" not in self.query or "blobs" in self.hub.without:
            return {"rfilename": name}
        size = self._size(name, path)
        large = (
            {"lfs": {"sha256": sha256(path), "size": size, "pointerSize": 134}}
            if name.endswith(LARGE)
            else {}
        )
        return {"rfilename": name, "size": size, "blobId": blob_id(path), **large}

    def _tree_entry(self, name: str, path: Path) -> dict[str, object]:
        size = self._size(name, path)
        large = (
            {"lfs": {"oid": sha256(path), "size": size, "pointerSize": 134}} if name.endswith(LARGE) else {}
        )
        xet = {"xetHash": sha256(path)} if large and self.hub.xet else {}
        return {"type": "file", "path": name, "size": size, "oid": blob_id(path), **large, **xet}

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        if self._refused(repo, content=True):
            return None
        commit = self._commit(repo, revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        path = files_of(self.hub.repositories[repo].commits[commit]).get(name)
        headers = {"X-Repo-Commit": commit}
        if path is None:
            return self._error(404, "EntryNotFound", "Entry not found", headers)
        lacking = self.hub.without
        if ("head" in lacking and self.command == "HEAD") or ("branches" in lacking and revision != commit):
            return self._error(405 if revision == commit else 404, "", "Not Allowed")
        if "storage" in lacking or not name.endswith(LARGE):
            return self._content(name, path, headers | {"ETag": self.hub.etag(path)})
        digest = sha256(path)
        linked = {"X-Linked-Size": str(self._size(name, path)), "X-Linked-ETag": f'"{digest}"'}
        if self.hub.xet:
            route = f"{self.hub.endpoint}/api/models/{repo}/xet-read-token/{commit}"
            linked |= {"X-Xet-Hash": digest, "Link": f'<{route}>; rel="xet-auth"'}
        location = f"{self.hub.storage}/{quote(repo)}/{digest}?X-Signature=aSignatureThatNobodyMayPrint"
        return self._send(302, headers | linked | {"Location": location})

    def _storage(self) -> None:
        digest = self.route.rsplit("/", 1)[-1]
        for repository in self.hub.repositories.values():
            for directory in repository.commits.values():
                for name, path in files_of(directory).items():
                    if sha256(path) == digest:
                        return self._content(name, path, {"ETag": f'"{digest}"'})
        return self._error(403, "", "Access Denied")

    def _content(self, name: str, path: Path, headers: Mapping[str, str]) -> None:
        content = path.read_bytes()
        if name in self.hub.corrupt:
            content = bytes([content[0] ^ 0xFF]) + content[1:]
        first = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and asked.endswith("-") and not self.hub.ignore_ranges:
            first = int(asked[6:-1])
        last = len(content) - 1
        if first and name in self.hub.shift_ranges:
            first, last = first // 2, last - first + first // 2
        ranged = {"Content-Range": f"bytes {first}-{last}/{len(content)}"} if first else {}
        self._send(
            206 if first else 200,
            {"Accept-Ranges": "bytes", **headers, **ranged},
            content[first : last + 1],
            self.hub.drop_after.get(name),
            max(0, self.hub.drip_after[name] - first) if name in self.hub.drip_after else None,
        )

    def _refused(self, repo: str, *, content: bool = False) -> bool:
        """Answers as the Hub does when the caller may not see the repository, or know that it is there."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = token == TOKEN or token in self.hub.members or token in self.hub.writers
        known = known and token not in self.hub.expired
        if token and not known:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif repo not in self.hub.repositories and "codes" in self.hub.without:
            self._error(404, "", "Not Found")
        elif repo not in self.hub.repositories or (repo in self.hub.private and not known):
            if token:
                self._error(404, "RepoNotFound", "Repository not found")
            else:
                self._error(401, "", "Invalid username or password.")
        elif content and repo in self.hub.gated and token not in self.hub.members:
            restricted = f"Access to model {repo} is restricted"
            if token:
                self._error(403, "GatedRepo", f"{restricted} and you are not in the authorized list.")
            else:
                self._error(401, "GatedRepo", f"{restricted}. You must be authenticated to access it.")
        else:
            return False
        return True

    def _commit(self, repo: str, revision: str) -> str | None:
        repository = self.hub.repositories[repo]
        return revision if revision in repository.commits else repository.references.get(revision)

    def _size(self, name: str, path: Path) -> int:
        return self.hub.announced.get(name, path.stat().st_size)

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        # The token that was sent comes back, beside a control sequence: no client may repeat either.
        body = {"error": f"{message} \x1b[31m{self.headers.get('Authorization', '')}"}
        codes = {"X-Error-Code": code} if code else {}
        named = {} if "codes" in self.hub.without else {**codes, "X-Error-Message": f"{message}"}
        text = "<html>No.</html>" if "json" in self.hub.without else json.dumps(body)
        kind = "text/html" if "json" in self.hub.without else "application/json"
        later = {"Retry-After": self.hub.retry_after} if self.hub.retry_after else {}
        return self._send(status, {**(headers or {}), **named, **later}, text.encode(), kind=kind)

    def _json(self, document: object) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self._send(200, {}, body, drip=self.hub.drip_after.get("listing"), kind="application/json")

    def _send(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes = b"",
        drop: int | None = None,
        drip: int | None = None,
        kind: str = "application/octet-stream",
    ) -> None:
        self.send_response(status)
        endless = "length" in self.hub.without and kind == "application/octet-stream"
        length = {"Connection": "close"} if endless else {"Content-Length": str(len(body))}
        for key, value in {"Content-Type": kind, **length, **headers}.items():
            self.send_header(key, value)
        if "headers" in self.hub.drip_after:
            self.flush_headers()
            self._drip(b"X-Padding: " + bytes([65]) * 60_000 + b"\r\n")
        self.end_headers()
        sent = body[:drop] if self.command != "HEAD" else b""
        record = Request(
            self.server.name,
            self.command,
            self.route,
            {key.lower(): value for key, value in self.headers.items()},
            status,
            len(sent),
        )
        with self.hub.lock:
            self.hub.requests.append(record)
        self.wfile.write(sent[:drip])
        self._drip(sent[len(sent[:drip]) :])
        if len(sent) < len(body) and self.command != "HEAD":
            self.wfile.flush()
            self.close_connection = True

    def _drip(self, content: bytes) -> None:
        """Send byte by byte, to a client that waits or until the server is told to stop."""
        for number in range(len(content)):
            if not self.hub.drip_after:
                self.wfile.write(content[number:])
                return
            self.wfile.write(content[number : number + 1])
            self.wfile.flush()
            time.sleep(self.hub.drip_seconds)
