"""A repository that is written to: what it holds, who may change it, and one commit that does.

Large files are sent first and one by one, so that what a broken run has sent is not sent again. Then one
commit on the head that was looked at names them all: nobody sees half a publication, and a head that moved
meanwhile is refused. Requests are huggingface_hub's own (`preupload_lfs_files`, `create_commit` of its 2.4).
Routes: https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from converter.errors import HubError, UsageError
from converter.hub.connection import Connection
from converter.hub.description import list_repository
from converter.hub.failures import explain
from converter.hub.repository import RemoteFile, content_digest
from converter.hub.session import endpoint, quiet_libraries, token
from converter.names import Source
from converter.system.digests import hexdigest

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

#: Longest text of a repository that is read whole.
_LONGEST: Final = 4 << 20
#: Files of at most so many bytes are sent together.
_SMALL: Final = 1 << 20
_MOVED: Final = frozenset({HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT})
_LOGIN: Final = "set HF_TOKEN or run `hf auth login`"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a repository is to have."""

    #: Its name there.
    path: str
    #: Where it lies, or what it contains.
    content: Path | bytes
    bytes: int
    sha256: str

    def is_in(self, file: RemoteFile | None) -> bool:
        """Whether ``file`` has the same content, by its digest."""
        if file is None or file.digest is None or file.size not in (None, self.bytes):
            return False
        if len(file.digest) == 64:
            return file.digest == self.sha256
        return file.digest == self._git()

    def _git(self) -> str:
        digest = content_digest("0" * 40, self.bytes)
        if isinstance(self.content, Path):
            return hexdigest(self.content, digest)
        digest.update(self.content)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """The main branch of a repository as it is now."""

    #: None where there is no such repository yet.
    commit: str | None
    files: Mapping[str, RemoteFile]


@dataclass(frozen=True, slots=True)
class Commit:
    """What a publication left."""

    commit: str
    url: str
    #: Of the pull request, where one was asked for.
    pull_request: str | None = None


class Publication:
    """One repository, ``OWNER/NAME``, that is to be changed; every method asks the Hub.

    They raise ``HubError`` in one line for what the Hub refuses and for a network that fails.
    """

    def __init__(self, repo: str) -> None:
        """Raises ``HubError`` without a token, ``UsageError`` if the Hub must not be asked."""
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            raise UsageError("HF_HUB_OFFLINE forbids to publish: unset it")
        self.repo = repo
        self._source = Source("hub", repo.rpartition("/")[2], repo=repo)
        self._connection = Connection(endpoint(), token())
        if self._connection.token is None:
            raise HubError(f"publishing to {repo} needs a token that may write there: {_LOGIN}")
        self._api: HfApi = HfApi(
            endpoint=self._connection.endpoint, token=self._connection.token, library_name="qatconvert"
        )

    @property
    def page(self) -> str:
        """The address of the repository for people."""
        return f"{self._connection.address}/{self.repo}"

    def head(self) -> Head:
        """What the main branch holds, nothing where the repository is yet to be made.

        Raises ``HubError`` for a token that the Hub does not know, or that may not write there.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._explained("look at"):
            known = self._api.whoami()
            try:
                listing = list_repository(self._connection, self.repo, "main")
            except RepositoryNotFoundError:
                self._check_owner(known)
                return Head(None, {})
            self._check_may_write(known)
            return Head(listing.commit, listing.files)

    def text(self, head: Head, name: str) -> str | None:
        """A small text of the head, None where it has none of this name or it is longer than 4 MiB."""
        file = head.files.get(name)
        if head.commit is None or file is None or (file.size or 0) > _LONGEST:
            return None
        body = bytearray()
        with self._explained("read"):
            url = self._connection.file_url(self.repo, head.commit, name)
            with self._connection.answer(url, {}) as response:
                for chunk in self._connection.steady(response.iter_bytes()):
                    body += chunk
                    if len(body) > _LONGEST:
                        return None
        return body.decode("utf-8", "replace")

    def tags(self) -> dict[str, str]:
        """The commit of each tag."""
        with self._explained("list the tags of"):
            return {tag.name: tag.target_commit for tag in self._api.list_repo_refs(self.repo).tags}

    def is_private(self) -> bool:
        """Whether only its owners see the repository."""
        with self._explained("look at"):
            return bool(self._api.model_info(self.repo).private)

    def create(self, private: bool) -> None:
        """Make the repository."""
        with self._explained("make"):
            self._api.create_repo(self.repo, private=private, exist_ok=True)

    def send(
        self,
        head: Head,
        uploads: Sequence[Upload],
        deleted: Sequence[str],
        message: str,
        pull_request: bool,
        sent: Callable[[int], None],
    ) -> Commit:
        """Send ``uploads``, then commit them and the removal of ``deleted`` on ``head``.

        ``sent`` is told the bytes of each file that arrived. Raises ``HubError`` if the head moved meanwhile,
        or if a file changed while it was read; what was sent need not be sent again.
        """
        from huggingface_hub import CommitOperationDelete

        additions = []
        large = [[upload] for upload in uploads if upload.bytes > _SMALL]
        small = [upload for upload in uploads if upload.bytes <= _SMALL]
        for group in [*large, small] if small else large:
            found = [_addition(upload) for upload in group]
            with self._explained(f"send {group[0].path} to"):
                self._api.preupload_lfs_files(self.repo, found, create_pr=pull_request)
            for upload, addition in zip(group, found, strict=True):
                if addition._upload_mode == "lfs" and addition.upload_info.sha256.hex() != upload.sha256:
                    raise HubError(f"{upload.path}: changed while it was sent; nothing was published")
                sent(upload.bytes)
            additions += found
        with self._explained("commit to"):
            done = self._api.create_commit(
                self.repo,
                [*additions, *(CommitOperationDelete(path_in_repo=name) for name in deleted)],
                commit_message=message,
                parent_commit=head.commit,
                create_pr=pull_request,
            )
        return Commit(done.oid, done.commit_url, done.pr_url)

    def tag(self, name: str, commit: str) -> None:
        """Name a commit."""
        with self._explained(f"set the tag {name} in"):
            self._api.create_tag(self.repo, tag=name, revision=commit, exist_ok=True)

    def _check_owner(self, known: Mapping[str, Any]) -> None:
        """A repository that is to be made belongs to the token's user, or to an organisation of theirs."""
        owner = self.repo.partition("/")[0]
        names = [known.get("name"), *(one.get("name") for one in known.get("orgs") or ())]
        role = ((known.get("auth") or {}).get("accessToken") or {}).get("role")
        if owner not in names:
            raise HubError(
                f"{self.repo}: there is no such repository, and the token may not make one: it belongs to "
                f"{known.get('name')}, not to {owner}"
            )
        if role == "read":
            raise HubError(self._forbidden())

    def _check_may_write(self, known: Mapping[str, Any]) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        role = ((known.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise HubError(self._forbidden())
        try:
            self._api.auth_check(self.repo, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code == HTTPStatus.FORBIDDEN:
                raise HubError(self._forbidden()) from None
            # a simpler server does not know the question; it will refuse the first upload
            if error.response.status_code != HTTPStatus.NOT_FOUND:
                raise

    def _forbidden(self) -> str:
        return (
            f"{self.repo}: the token may only read there: make one that may write, at "
            f"{self._connection.address}/settings/tokens, and {_LOGIN}"
        )

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turns failures of the Hub into ``HubError``, and keeps what the library says off the terminal."""
        from huggingface_hub.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        shown = not are_progress_bars_disabled()
        try:
            with quiet_libraries(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                disable_progress_bars()
                yield
        except HubError:
            raise
        except Exception as error:
            raise self._refusal(error, what) from None
        finally:
            if shown:
                enable_progress_bars()

    def _refusal(self, error: Exception, what: str) -> Exception:
        from huggingface_hub.errors import HfHubHTTPError

        # lfs_upload wraps what went wrong
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, HfHubHTTPError) and what.startswith(("commit", "send")):
            if status in _MOVED:
                return HubError(
                    f"{self.repo} was changed by somebody else meanwhile, and nothing was published: see "
                    f"{self.page}/commits/main, then run the same command again"
                )
            if status == HTTPStatus.FORBIDDEN:
                return HubError(self._forbidden())
        if isinstance(cause, OSError) and status is None and cause.filename:
            return HubError(f"{cause.filename}: {cause.strerror}; nothing was published")
        found = explain(cause, self._source, self._connection) if isinstance(cause, Exception) else None
        if found is None:
            return error
        return HubError(f"cannot {what} {self.repo}: {found}")


def _addition(upload: Upload) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    content = upload.content if isinstance(upload.content, bytes) else str(upload.content)
    return CommitOperationAdd(path_in_repo=upload.path, path_or_fileobj=content)
