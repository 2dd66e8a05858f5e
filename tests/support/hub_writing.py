"""The part of the local Hub that is written to: tokens, commits, large files, tags, pull requests.

It answers what huggingface_hub asks when it publishes, with the Hub's own status codes. What a commit names
must have been sent before; a commit on another parent than the head is refused with 412.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from support.hub_server import HubServer

#: A token that may write, and one that may only read.
WRITER, READER = "hf_writer", "hf_reader"


@dataclass
class Storage:
    """Where what is written lies, and what was asked for."""

    #: Large contents by SHA-256, and the directories of commits.
    folder: Path
    #: Parts of contents that are still being sent, by SHA-256 and number.
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    #: Messages of commits, in order.
    messages: list[str] = field(default_factory=list)
    #: Tags by repository and name.
    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    #: Digests of the contents that were sent, in order, each as often as it was.
    sent: list[str] = field(default_factory=list)

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest

    def keep(self, digest: str, content: bytes) -> bool:
        """Keep a content if it is the one that its digest names."""
        if hashlib.sha256(content).hexdigest() != digest:
            return False
        self.blob(digest).parent.mkdir(exist_ok=True)
        self.blob(digest).write_bytes(content)
        self.sent.append(digest)
        return True


class _Answering(Protocol):
    """What the handler has beside this."""

    hub: HubServer
    path: str
    headers: Any
    rfile: Any
    command: str
    body: bytes

    def _error(self, status: int, code: str, message: str) -> None: ...
    def _json(self, document: object) -> None: ...
    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None: ...


def write(self: _Answering, route: str, token: str) -> bool:
    """Answer a request that changes something, or that only who publishes asks; whether it was one."""
    query = parse_qs(urlsplit(self.path).query)
    parts = [unquote(part) for part in route.split("/")[1:]]
    match self.command, parts:
        case "GET", ["api", "whoami-v2"]:
            _whoami(self, token)
        case "POST", ["api", "validate-yaml"]:
            self._json({"warnings": [], "errors": []})
        case "POST", ["api", "repos", "create"]:
            _create(self, token)
        case "GET", ["api", "models", owner, name, "auth-check", "write"]:
            _auth_check(self, f"{owner}/{name}", token)
        case "GET", ["api", "models", owner, name, "refs"]:
            _refs(self, f"{owner}/{name}")
        case "POST", ["api", "models", owner, name, "preupload", _]:
            _preupload(self, f"{owner}/{name}", token)
        case "POST", ["api", "models", owner, name, "commit", revision]:
            _commit(self, f"{owner}/{name}", revision, token, "create_pr" in query)
        case "POST", ["api", "models", owner, name, "tag", revision]:
            _tag(self, f"{owner}/{name}", revision, token)
        case "POST", [owner, git, "info", "lfs", "objects", "batch"] if git.endswith(".git"):
            _batch(self, f"{owner}/{git.removesuffix('.git')}", token)
        case "PUT", ["upload", digest]:
            _put(self, digest, None)
        case "PUT", ["upload", digest, number]:
            _put(self, digest, int(number))
        case "POST", ["complete", digest]:
            _complete(self, digest)
        case "POST", ["verify", _]:
            self._json({})
        case _:
            return False
    return True


def _whoami(self: _Answering, token: str) -> None:
    if not _known(self, token):
        return self._error(401, "", "Invalid username or password.")
    role = "write" if token in self.hub.writers else "read"
    orgs = [{"name": name, "roleInOrg": "write"} for name in self.hub.organisations]
    return self._json(
        {
            "type": "user",
            "name": self.hub.user,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": role}},
        }
    )


def _known(self: _Answering, token: str) -> bool:
    from support.hub_server import TOKEN

    return token not in self.hub.expired and (token in (TOKEN, *self.hub.members, *self.hub.writers))


def _may_write(self: _Answering, repo: str, token: str) -> bool:
    """Answers with a refusal if not."""
    if token in self.hub.expired:
        self._error(401, "", "User Access Token is expired")
    elif token not in self.hub.writers or repo in self.hub.forbidden:
        self._error(403, "", "Forbidden: you must have write access")
    elif repo not in self.hub.repositories:
        self._error(404, "RepoNotFound", "Repository not found")
    else:
        return True
    return False


def _auth_check(self: _Answering, repo: str, token: str) -> None:
    if _may_write(self, repo, token):
        self._json({})


def _create(self: _Answering, token: str) -> None:
    from support.hub_server import Repository

    asked = json.loads(self.body)
    repo = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
    if token not in self.hub.writers:
        return self._error(403, "", "You don't have the rights to create a model under this namespace")
    if repo in self.hub.repositories:
        return self._error(409, "", "You already created this model repo")
    place = self.hub.storage_of.folder / "empty" / repo.replace("/", "--")
    place.mkdir(parents=True)
    (place / ".gitattributes").write_text("*.gguf filter=lfs diff=lfs merge=lfs -text\n")
    self.hub.repositories[repo] = Repository()
    self.hub.repositories[repo].publish(place)
    if asked.get("private") or asked.get("visibility") == "private":
        self.hub.private.add(repo)
    return self._json({"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo})


def _refs(self: _Answering, repo: str) -> None:
    repository = self.hub.repositories[repo]
    tags = [
        {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
        for (one, name), commit in self.hub.storage_of.tags.items()
        if one == repo
    ]
    branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.references["main"]}
    self._json({"branches": [branch], "tags": tags, "converts": []})


def _preupload(self: _Answering, repo: str, token: str) -> None:
    from support.hub_server import LARGE, blob_id, files_of, sha256

    if not _may_write(self, repo, token):
        return
    repository = self.hub.repositories[repo]
    held = files_of(repository.commits[repository.references["main"]])
    answer = []
    for file in json.loads(self.body)["files"]:
        name, path = file["path"], held.get(file["path"])
        large = name.endswith(LARGE)
        oid = None if path is None else sha256(path) if large else blob_id(path)
        answer.append(
            {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
        )
    self._json({"files": answer})


def _batch(self: _Answering, repo: str, token: str) -> None:
    if not _may_write(self, repo, token):
        return
    objects = []
    for one in json.loads(self.body)["objects"]:
        digest, size = one["oid"], one["size"]
        entry: dict[str, Any] = {"oid": digest, "size": size}
        if not self.hub.storage_of.blob(digest).exists():
            entry["actions"] = {"upload": _upload(self, digest, size)}
            entry["actions"]["verify"] = {"href": f"{self.hub.endpoint}/verify/{digest}"}
        objects.append(entry)
    self._json({"transfer": "basic", "objects": objects})


def _upload(self: _Answering, digest: str, size: int) -> dict[str, Any]:
    part = self.hub.part_bytes
    if size <= part:
        return {"href": f"{self.hub.storage}/upload/{digest}"}
    numbers = range(1, -(-size // part) + 1)
    urls = {str(number): f"{self.hub.storage}/upload/{digest}/{number}" for number in numbers}
    return {"href": f"{self.hub.endpoint}/complete/{digest}", "header": {"chunk_size": str(part), **urls}}


def _put(self: _Answering, digest: str, number: int | None) -> None:
    storage = self.hub.storage_of
    if number is not None:
        storage.parts[digest, number] = self.body
    elif not storage.keep(digest, self.body):
        return self._error(400, "", "the content has another digest")
    return self._send(200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})


def _complete(self: _Answering, digest: str) -> None:
    storage, asked = self.hub.storage_of, json.loads(self.body)
    numbers = [part["partNumber"] for part in asked["parts"]]
    content = b"".join(storage.parts.pop((digest, number)) for number in numbers)
    if not storage.keep(digest, content):
        return self._error(400, "", "the parts make another content")
    return self._json({})


def _commit(self: _Answering, repo: str, revision: str, token: str, proposed: bool) -> None:
    if not _may_write(self, repo, token):
        return None
    lines = [json.loads(line) for line in self.body.splitlines() if line]
    header = lines[0]["value"]
    repository, storage = self.hub.repositories[repo], self.hub.storage_of
    self.hub.before_commit()
    head = repository.references[revision]
    if header.get("parentCommit") not in (None, head):
        return self._error(412, "", "A commit has happened since. Please refresh and try again.")
    place = storage.folder / "commits" / f"{len(storage.messages)}"
    shutil.copytree(repository.commits[head], place, copy_function=os.link)
    for line in lines[1:]:
        value = line["value"]
        path = place / value["path"]
        if line["key"] == "deletedFile":
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # the file of an earlier commit stays as it is
        if line["key"] == "lfsFile":
            if not storage.blob(value["oid"]).exists():
                shutil.rmtree(place)
                return self._error(400, "", f"{value['path']}: its content was never sent")
            os.link(storage.blob(value["oid"]), path)
        else:
            path.write_bytes(base64.b64decode(value["content"]))
    storage.messages.append(header["summary"])
    number = len(storage.messages)
    reference = f"refs/pr/{number}" if proposed else revision
    commit = repository.publish(place, reference)
    answer = {
        "success": True,
        "commitOid": commit,
        "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}",
    }
    if proposed:
        answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{number}"
    return self._json(answer)


def _tag(self: _Answering, repo: str, revision: str, token: str) -> None:
    if not _may_write(self, repo, token):
        return None
    name, tags = json.loads(self.body)["tag"], self.hub.storage_of.tags
    if (repo, name) in tags:
        return self._error(409, "", "Tag reference exists already")
    repository = self.hub.repositories[repo]
    tags[repo, name] = repository.references.get(revision, revision)
    repository.references[name] = tags[repo, name]
    return self._json({})
