"""What a server says of a repository and its files, asked for in as few requests as it allows.

The Hub answers one request with the commit and every file's size and digest. Mirrors and simple servers of
its protocol say less: names only, a commit and a tree, or nothing but the headers of each file. All of them
will do, as they do for huggingface_hub. Routes and headers: https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from converter.errors import HubError
from converter.filenames import CONFIG
from converter.hub.connection import Connection
from converter.hub.repository import COMMIT, Listing, RemoteFile, read_listing

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_UNKNOWN_ROUTE = frozenset({400, 404, 405, 501})
_BLOB_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?")
_OTHER_FILES = (".incomplete", ".lock")


def list_repository(connection: Connection, repo: str, revision: str) -> Listing:
    """The commit that `revision` means and the files there, with as much about each as the server lists.

    Raises HubError for a description that cannot be used, and the errors of `Connection.document`.
    """
    refusal: Exception | None = None
    for route, parameters in _descriptions(repo, revision):
        try:
            document = connection.document(route, parameters)
            break
        except Exception as error:
            if not _is_unknown_route(error):
                raise
            refusal = refusal or error
    else:
        commit = _commit(connection, repo, revision)
        siblings = _tree(connection, repo, commit) if commit else []
        if refusal and not siblings:
            raise refusal
        document = {"sha": commit, "siblings": siblings}
    if isinstance(document, dict) and isinstance(document.get("sha"), str) and not document.get("siblings"):
        document = {**document, "siblings": _tree(connection, repo, document["sha"])}
    return read_listing(document, repo)


def describe(connection: Connection, listing: Listing, names: Iterable[str]) -> Listing:
    """`listing` with the size and blob name of each of the files `names`; those that it lacks are asked for.

    Raises the errors of `Connection.metadata`.
    """
    lacking = [listing.files[name] for name in names if not listing.files[name].is_described]
    found = {file.name: _described(connection, listing, file) for file in lacking}
    return replace(listing, files={**listing.files, **found})


def _descriptions(repo: str, revision: str) -> Iterator[tuple[str, dict[str, str]]]:
    from huggingface_hub import constants

    at_revision = f"api/models/{repo}/revision/{quote(revision, safe='')}"
    yield at_revision, {"blobs": "true"}
    yield at_revision, {}
    if revision == constants.DEFAULT_REVISION:
        yield f"api/models/{repo}", {}


def _commit(connection: Connection, repo: str, revision: str) -> str | None:
    """The commit of a revision by the headers of a file, where the server describes no repositories."""
    if COMMIT.fullmatch(revision):
        return revision
    found = _metadata(connection, repo, quote(revision, safe=""), CONFIG)
    return found.commit_hash if found else None


def _tree(connection: Connection, repo: str, commit: str) -> list[dict[str, object]]:
    """The names of the files (at most a page, which is 1000), in the form of a description."""
    try:
        entries = connection.document(
            f"api/models/{repo}/tree/{quote(commit, safe='')}", {"recursive": "true", "expand": "false"}
        )
    except Exception as error:
        if _is_unknown_route(error):
            return []
        raise
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise HubError(f"{repo}: what answers lists no files: check HF_ENDPOINT")
    return [{"rfilename": entry.get("path")} for entry in entries if entry.get("type") != "directory"]


def _described(connection: Connection, listing: Listing, file: RemoteFile) -> RemoteFile:
    found = _metadata(connection, listing.repo, listing.commit, file.name, needed=True)
    size, etag = file.size, found.etag if found else None
    if size is None and found and found.size is not None and found.size >= 0:
        size = found.size
    # The ETag is the digest where it has the length of a SHA-256, or is what the server listed as digest.
    # Any other is a name for the content: 40 digits are git's digest on the Hub, but not on every server.
    digest = file.digest if etag in (None, file.digest) else None
    if etag and re.fullmatch(r"[0-9a-f]{64}", etag):
        digest = etag
    if digest and len(digest) == 40 and size is None:
        etag, digest = digest, None  # git's digest begins with the size
    return RemoteFile(file.name, size, digest, _blob_name(etag, listing.commit, file.name))


def _blob_name(etag: str | None, commit: str, name: str) -> str:
    """What huggingface_hub calls the blob: the ETag, unless that is none that may name a file."""
    if etag and _BLOB_NAME.fullmatch(etag) and not etag.endswith(_OTHER_FILES):
        return etag
    return f"unnamed-{hashlib.sha256(f'{etag or commit}/{name}'.encode()).hexdigest()[:40]}"


def _metadata(
    connection: Connection, repo: str, commit: str, name: str, *, needed: bool = False
) -> HfFileMetadata | None:
    """What the headers say of a file; None from a server that answers no HEAD requests (or, unless it is
    `needed`, does not have the file)."""
    try:
        return connection.metadata(connection.file_url(repo, commit, name))
    except Exception as error:
        missing = getattr(getattr(error, "response", None), "status_code", None) == 404
        if not _is_unknown_route(error) or (needed and missing):
            raise
        return None


def _is_unknown_route(error: Exception) -> bool:
    """Whether the server does not know what was asked; it may know the same by another address."""
    from huggingface_hub import errors

    named = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError)
    if not isinstance(error, errors.HfHubHTTPError) or isinstance(error, named):
        return False
    return error.response.status_code in _UNKNOWN_ROUTE
