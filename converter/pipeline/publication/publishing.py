"""An output directory published: compared, planned, sent and committed in one step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from converter.errors import HubError, UsageError
from converter.filenames import MANIFEST
from converter.hub.publication import Commit, Head, Publication, Upload
from converter.names import printable, resolve
from converter.pipeline.publication.card import Fields, card, is_ours
from converter.pipeline.publication.contents import CARD, SUMS, Contents, read_contents, read_sums
from converter.system.progress import Progress, begin, counted, no_progress, stage_of

#: What is done with a file of the repository.
NEW: Final = "new"
CHANGED: Final = "changed"
SAME: Final = "same"
DELETED: Final = "deleted"


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be published, and how."""

    output: Path
    #: ``OWNER/NAME``.
    repo: str
    fields: Fields = field(default_factory=Fields)
    #: If the repository is to be made, whether others may see it.
    private: bool = False
    #: As a pull request, instead of on the main branch.
    create_pr: bool = False
    tag: str | None = None
    #: The first line of the commit's message.
    message: str | None = None
    #: Also what did not pass, which the card says then.
    allow_failed: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A file of the repository, and what becomes of it."""

    path: str
    #: ``NEW``, ``CHANGED``, ``SAME`` or ``DELETED``.
    change: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Planned:
    """What a publication will do."""

    repo: str
    head: Head
    contents: Contents
    changes: tuple[Change, ...]
    #: Those that are new or changed.
    uploads: tuple[Upload, ...]
    message: str

    @property
    def nothing(self) -> bool:
        """Whether the repository has all of it already."""
        return all(one.change == SAME for one in self.changes)

    def as_dict(self) -> dict[str, Any]:
        """The plan for programs."""
        return {
            "schema": 1,
            "repo": self.repo,
            "exists": self.head.commit is not None,
            "head": self.head.commit,
            "message": self.message,
            "unproven": dict(self.contents.unproven),
            "files": [
                {"path": one.path, "change": one.change, "bytes": one.bytes, "sha256": one.sha256}
                for one in self.changes
            ],
            "upload_bytes": sum(upload.bytes for upload in self.uploads),
        }


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication did."""

    plan: Planned
    #: The commit that has the files, an earlier one where there was nothing to do.
    commit: str | None
    url: str
    pull_request: str | None = None
    tag: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result for programs."""
        return {
            **self.plan.as_dict(),
            "changed": not self.plan.nothing,
            "commit": self.commit,
            "url": self.url,
            "pull_request": self.pull_request,
            "tag": self.tag,
        }


def plan_publication(request: Request, progress: Progress = no_progress) -> Planned:
    """Say what publishing would do; changes nothing. Raises as ``publish`` does."""
    return _planned(request, _checked(request), progress)


def look(request: Request) -> Head:
    """What the repository holds now. Raises as ``publish`` does for a token, a repository or options that
    forbid to publish; no file is read."""
    publication = _checked(request)
    return _head(request, publication)


def publish(request: Request, progress: Progress = no_progress) -> Published:
    """Publish ``request.output`` to ``request.repo`` in one commit, or do nothing where all of it is there.

    The token and the repository are checked before any file is hashed or sent. Raises ``UsageError`` for a
    name that is no repository's and options that contradict each other, ``CheckpointError`` for an output
    that may not be published (see ``read_contents``), and ``HubError`` for what the Hub refuses, a head that
    moved meanwhile and a tag that names another commit.
    """
    publication = _checked(request)
    plan = _planned(request, publication, progress)
    url = publication.page
    if plan.nothing:
        commit = plan.head.commit
    else:
        done = _send(request, publication, plan, progress)
        commit, url = done.commit, done.url
        if done.pull_request is not None:
            return Published(plan, commit, url, done.pull_request)
    if request.tag is not None and commit is not None:
        publication.tag(request.tag, commit)
    return Published(plan, commit, url, None, request.tag)


def _checked(request: Request) -> Publication:
    if not is_repository(request.repo):
        raise UsageError(f"{printable(request.repo)} is no repository: --repo takes OWNER/NAME")
    if request.create_pr and request.tag is not None:
        raise UsageError(
            "--tag names a commit of the main branch, --create-pr makes none: leave out one of them"
        )
    if request.create_pr and request.private:
        raise UsageError(
            "--private is for a repository that is yet to be made, --create-pr for one that is there"
        )
    return Publication(request.repo)


def is_repository(name: str) -> bool:
    """Whether ``name`` is ``OWNER/NAME``, which means no alias and no path."""
    try:
        return "@" not in name and resolve(f"{name}@main").repo == name
    except UsageError:
        return False


def _planned(request: Request, publication: Publication, progress: Progress) -> Planned:
    begin(progress, f"looking at {request.repo}")
    head = _head(request, publication)
    contents = read_contents(request.output, request.allow_failed, progress)
    earlier = publication.text(head, CARD)
    text = card(request.repo, contents, request.fields, earlier)
    own = Upload(CARD, text, len(text), hashlib.sha256(text).hexdigest())
    files = (*contents.files, own)
    gone = _no_longer(publication, head, files) if is_ours(earlier) else ()
    changes = [
        *(Change(one.path, _change(one, head), one.bytes, one.sha256) for one in files),
        *(Change(name, DELETED, head.files[name].size or 0, None) for name in gone),
    ]
    plan = Planned(
        request.repo,
        head,
        contents,
        tuple(sorted(changes, key=lambda one: one.path)),
        tuple(one for one in files if _change(one, head) != SAME),
        request.message or f"{contents.report['model']}, by qatconvert {version('qatconvert')}",
    )
    _check_tag(request, publication, plan)
    return plan


def _head(request: Request, publication: Publication) -> Head:
    head = publication.head()
    if head.commit is None and request.create_pr:
        raise HubError(f"{request.repo}: there is no such repository, so nothing to make a pull request to")
    if head.commit is not None and request.private and not publication.is_private():
        raise HubError(
            f"{request.repo} is public, which --private does not change: change it in its settings"
        )
    return head


def _change(upload: Upload, head: Head) -> str:
    if upload.path not in head.files:
        return NEW
    return SAME if upload.is_in(head.files[upload.path]) else CHANGED


def _no_longer(publication: Publication, head: Head, files: Sequence[Upload]) -> tuple[str, ...]:
    """What an earlier publication wrote and this one does not have."""
    try:
        listed: Mapping[str, str] = read_sums(publication.text(head, SUMS) or "")
    except ValueError:
        return ()
    kept = {upload.path for upload in files}
    return tuple(sorted(name for name in listed if name in head.files and name not in kept))


def _check_tag(request: Request, publication: Publication, plan: Planned) -> None:
    """A tag that is there is not moved."""
    if request.tag is None or plan.head.commit is None:
        return
    at = publication.tags().get(request.tag)
    if at is not None and not (plan.nothing and at == plan.head.commit):
        raise HubError(
            f"{request.repo} has a tag {request.tag} already, at commit {at[:12]}: give another one"
        )


def _send(request: Request, publication: Publication, plan: Planned, progress: Progress) -> Commit:
    head = plan.head
    if head.commit is None:
        publication.create(request.private)
        head = publication.head()
    total = sum(upload.bytes for upload in plan.uploads)
    sent = counted(stage_of(progress, f"sending to {request.repo}"), total)
    deleted = [one.path for one in plan.changes if one.change == DELETED]
    # the files that take long go first: what says what they are comes behind them
    uploads = sorted(plan.uploads, key=lambda upload: (upload.path in (CARD, MANIFEST, SUMS), -upload.bytes))
    return publication.send(head, uploads, deleted, plan.message, request.create_pr, sent)
