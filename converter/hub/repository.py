"""What the Hub says a repository holds, and which of its files make a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from converter.errors import CheckpointError, HubError
from converter.filenames import CONFIG, INDEX, WEIGHTS
from converter.names import printable
from converter.system.untrusted import PICKLES, parse_object

COMMIT = re.compile(r"[0-9a-f]{40}")

_DESCRIPTION = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|evaluation_text\.json|tokenizer\.model|merges\.txt|chat_template\.(jinja|json)"
)
_ABOUT = re.compile(r"LICENSE(\.txt|\.md)?|README\.md")
#: Ends of names of files that hold weights otherwise than as safetensors.
_OTHERS = (*PICKLES, ".msgpack", ".h5", ".npz")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_DATE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z")
_FOLDER = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    name: str
    #: In bytes, None where not known.
    size: int | None = None
    #: Of the content, in hexadecimal, None where not known. 64 digits are the SHA-256 of a file in large
    #: storage. 40 digits are git's blob id of any other file: SHA-1 of `blob SIZE`, a zero byte and the
    #: content (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
    digest: str | None = None
    #: What the server calls the content where it gives no digest. It is safe as a file's name.
    etag: str | None = None

    @property
    def blob(self) -> str:
        """The name of the content in the cache; ValueError before the file is described."""
        if name := self.digest or self.etag:
            return name
        raise ValueError(f"{self.name} has neither digest nor ETag")

    @property
    def is_described(self) -> bool:
        """Whether size and digest are known, so that the server need not be asked."""
        return self.size is not None and self.digest is not None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    repo: str
    #: 40 hexadecimal digits on the Hub. Any other server's is at least safe as a folder's name.
    commit: str
    #: Every file by its name.
    files: dict[str, RemoteFile]
    #: When the commit was made, in UTC to the second (`2026-04-02T12:34:56Z`), None where not told.
    date: str | None = None


def is_digest(text: str) -> bool:
    """Whether `text` can be the digest of a content."""
    return _DIGEST.fullmatch(text) is not None


def content_digest(digest: str | None, size: int | None) -> hashlib._Hash:
    """A hash of the kind of ``digest`` (SHA-256 if there is none) for a content of ``size`` bytes."""
    if digest is None or len(digest) == 64:
        return hashlib.sha256()
    return git_digest(size)


def git_digest(size: int | None) -> hashlib._Hash:
    """The hash that git names a content of ``size`` bytes by, which is still to be added."""
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % (size or 0))
    return digest


def read_listing(document: object, repo: str) -> Listing:
    """Check the Hub's description of `repo` (a JSON value) and return what it lists.

    A size, digest or date that is missing or malformed is None. Raises HubError for a file name that could
    lead out of a folder, and for a commit that is missing or could.
    """
    told = document if isinstance(document, dict) else {}
    commit, siblings = told.get("sha"), told.get("siblings")
    if not isinstance(commit, str) or not names_commit(commit) or not isinstance(siblings, list):
        raise HubError(f"{repo}: the Hub's description names no commit or no files: check HF_ENDPOINT")
    files = [_listed_file(sibling, repo) for sibling in siblings]
    return Listing(repo, commit, {file.name: file for file in files}, checked_date(told.get("lastModified")))


def checked_date(value: object) -> str | None:
    """`value` if it is a moment in UTC as the Hub writes it, to the second; else None."""
    found = _DATE.fullmatch(value) if isinstance(value, str) else None
    return f"{found[1]}Z" if found else None


def names_commit(text: str) -> bool:
    """Whether `text` can be a commit, and thereby the name of a folder."""
    return _FOLDER.fullmatch(text) is not None


def refuse_unless_model(listing: Listing) -> None:
    """Raise HubError, by name, for a repository that has no configuration or no safetensors weights."""
    repo, names = listing.repo, sorted(listing.files)
    weights = WEIGHTS in names or INDEX in names
    others = [name for name in names if name.lower().endswith(_OTHERS)]
    if others and not any(name.endswith(".safetensors") for name in names):
        raise HubError(
            f"{repo} holds its weights as {others[0]}, not as safetensors: "
            "such files can run code when they are read and are never downloaded"
        )
    if CONFIG in names and weights:
        return
    gguf = [name for name in names if name.endswith(".gguf")]
    hint = f"; its GGUF can be read from disk: download {gguf[0]} and give the path" if gguf else ""
    lacks = f"{WEIGHTS}, nor the index of its shards" if CONFIG in names else CONFIG
    raise HubError(f"{repo} is no checkpoint: it has no {lacks}{hint}")


def model_files(names: Collection[str], index: str | None, repo: str) -> set[str]:
    """The files of a model, where `names` are there and `index` is the text of the shards' index, if any.

    They are configuration, tokenizer, chat template, model card and licence as far as they are in `names`.
    The weights are among them whether in `names` or not: the shards that the index names, else
    `model.safetensors`. Raises HubError when the index is damaged.
    """
    beside = {name for name in names if is_description(name) or _ABOUT.fullmatch(name)}
    return beside | ({WEIGHTS} if index is None else {INDEX} | _shards(index, repo))


def _listed_file(sibling: object, repo: str) -> RemoteFile:
    entry = sibling if isinstance(sibling, dict) else {}
    name = entry.get("rfilename")
    if not isinstance(name, str) or not _is_safe(name):
        raise HubError(f"{repo}: the Hub lists a file named {printable(repr(name))}, which is refused")
    large = entry.get("lfs")
    size = large.get("size") if isinstance(large, dict) else entry.get("size")
    digest = large.get("sha256") if isinstance(large, dict) else entry.get("blobId")
    return RemoteFile(
        name,
        size if type(size) is int and size >= 0 else None,
        digest if isinstance(digest, str) and is_digest(digest) else None,
    )


def _is_safe(name: str) -> bool:
    unsafe_part = any(part in ("", ".", "..") for part in name.split("/"))
    return name.isprintable() and not unsafe_part and not set(name).intersection('\\:"<>|?*')


def is_description(name: str) -> bool:
    """Whether a file says what a model is: configuration, tokenizer or chat template."""
    return _DESCRIPTION.fullmatch(name) is not None


def is_weights(name: str) -> bool:
    """Whether a file holds weights that the checkpoint reader takes."""
    return name.endswith(".safetensors") and "/" not in name


def _shards(index: str, repo: str) -> set[str]:
    try:
        weight_map = parse_object(index, f"{repo}: {INDEX}").get("weight_map")
    except CheckpointError as error:
        raise HubError(printable(str(error), 300)) from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise HubError(f"{repo}: {INDEX} names no shards")
    shards = set(map(str, weight_map.values()))
    for shard in sorted(shards):
        if not _is_safe(shard) or not is_weights(shard):
            raise HubError(f"{repo}: {INDEX} names a shard {printable(repr(shard))}, which is refused")
    return shards
