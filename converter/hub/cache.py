"""One repository in huggingface_hub's own cache: its blobs, snapshots and references.

The layout is the documented one (https://huggingface.co/docs/huggingface_hub/guides/manage-cache), so that
transformers finds what was downloaded here, and the other way round. One more file per commit,
`qatconvert/COMMIT.json`, records which files make the model and their digests, so that an incomplete or a
damaged copy is known offline.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.errors import CheckpointError, HubError
from converter.filenames import CONFIG, INDEX
from converter.hub.repository import (
    COMMIT,
    RemoteFile,
    checked_date,
    is_digest,
    is_weights,
    model_files,
    names_commit,
)
from converter.hub.verification import Check, check
from converter.system.replacing import write_whole
from converter.system.untrusted import read_object

_RECORD_LIMIT = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """A model on disk."""

    #: Holds the files of `repo` at the commit `revision`.
    path: Path
    repo: str
    #: 40 digits on the Hub.
    revision: str
    #: How the content of each file, by name, was compared with what the Hub lists.
    checks: Mapping[str, Check]
    #: When the commit was made, in UTC to the second, None where no server told.
    date: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, by name."""
        return tuple(self.path / name for name in sorted(self.checks))


@dataclass(frozen=True)
class Store:
    """The part of the cache that belongs to `repo`."""

    #: Absolute; it need not exist yet.
    cache: Path
    repo: str

    @property
    def folder(self) -> Path:
        """The repository's own folder."""
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    def blob(self, file: RemoteFile) -> Path:
        """Where the verified content of `file` lies."""
        return self.folder / "blobs" / file.blob

    def partial(self, file: RemoteFile) -> Path:
        """Where the content of `file` gathers until it is whole."""
        return self.folder / "blobs" / f"{file.blob}.incomplete"

    def snapshot_folder(self, commit: str) -> Path:
        """Where the files of a commit have their own names."""
        return self.folder / "snapshots" / commit

    def has_blob(self, file: RemoteFile) -> bool:
        """Whether the content is there, whole by its size."""
        return _is_there(self.blob(file), file.size)

    def holds(self, commit: str, file: RemoteFile) -> bool:
        """Whether the snapshot of `commit` has the file, whole by its size."""
        pointer = self.snapshot_folder(commit) / file.name
        if not COMMIT.fullmatch(commit) and pointer.resolve().name != file.blob:
            return False  # what is no digest may mean something else by now
        return _is_there(pointer, file.size)

    def missing_bytes(self, file: RemoteFile, *, damaged: bool = False) -> int:
        """How many bytes of `file` are still to be received, as far as its size is known. A blob that is
        `damaged` counts for nothing."""
        if file.size is None or (self.has_blob(file) and not damaged):
            return 0
        return file.size - min(_size(self.partial(file)) or 0, file.size)

    @contextlib.contextmanager
    def lock(self, file: RemoteFile) -> Iterator[None]:
        """Waits for, then keeps off, other processes that want this content (huggingface_hub's too)."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        path = self.cache / ".locks" / self.folder.name / f"{file.blob}.lock"
        with contextlib.ExitStack() as stack:
            with local_files(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(WeakFileLock(path))
            yield

    def keep(self, file: RemoteFile) -> None:
        """Make the finished partial file the blob."""
        with local_files(self.blob(file)):
            os.replace(self.partial(file), self.blob(file))

    def point(self, commit: str, file: RemoteFile) -> None:
        """Lead from the snapshot to the blob: by a symbolic link, or a hard one where those are refused."""
        pointer, blob = self.snapshot_folder(commit) / file.name, self.blob(file)
        with local_files(pointer):
            pointer.parent.mkdir(parents=True, exist_ok=True)
            pointer.unlink(missing_ok=True)
            try:
                pointer.symlink_to(os.path.relpath(blob, pointer.parent))
            except OSError:
                pointer.hardlink_to(blob)

    def set_reference(self, revision: str, commit: str) -> None:
        """Remember which commit a branch or tag means."""
        _write(self.folder / "refs" / revision, commit)

    def record(self, commit: str, files: Iterable[RemoteFile], date: str | None) -> None:
        """Write down which files make the model, with their sizes and digests, and when the commit was made
        (null where not known)."""
        sizes, digests = {}, {}
        for file in files:
            sizes[file.name], digests[file.name] = file.size, file.digest
        text = json.dumps({"schema": 1, "files": sizes, "digests": digests, "date": date}, indent=1) + "\n"
        _write(self._record(commit), text)

    def has_record(self, commit: str) -> bool:
        """Whether `record` was called for this commit."""
        return self._record(commit).is_file()

    def recorded(self, commit: str) -> dict[str, RemoteFile]:
        """What was recorded of the model's files, by name; empty without a record.

        Where an older version wrote it, which kept no digests, they are those by which blobs are named.
        """
        document = self._document(commit)
        sizes, digests = document.get("files"), document.get("digests")
        if not isinstance(sizes, dict) or not all(
            size is None or type(size) is int for size in sizes.values()
        ):
            return {}
        if not isinstance(digests, dict) or not all(map(_may_be_digest, digests.values())):
            digests = {name: self._named_digest(commit, name) for name in sizes}
        return {name: RemoteFile(name, size, digests.get(name)) for name, size in sizes.items()}

    def date(self, commit: str) -> str | None:
        """When the commit was made, as it was recorded; None without a record."""
        return checked_date(self._document(commit).get("date"))

    def find(self, revision: str, weights: bool = True) -> tuple[str, list[RemoteFile]]:
        """The commit of a model that is in the cache, and its files by name, those that hold weights only
        with `weights`. HubError, naming what is missing, unless these are there in full by their sizes.

        Without a record of its files (another program filled the cache) it is complete when it has its
        configuration and, by the index, every shard.
        """
        commit = self._commit(revision)
        folder = self.snapshot_folder(commit)
        known = self.recorded(commit) or self._expected_files(commit)
        files = [file for name, file in sorted(known.items()) if weights or not is_weights(name)]
        missing = [file.name for file in files if not _is_there(folder / file.name, file.size)]
        if missing:
            names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            raise HubError(
                f"{self.repo}: the copy in {self.cache} lacks {names} (commit {commit[:12]}): "
                "run once without --offline"
            )
        return commit, files

    def damage(self, commit: str, name: str) -> HubError:
        """What to say of a file whose content is not the commit's, where it cannot be fetched anew."""
        return HubError(
            f"{self.snapshot_folder(commit) / name}: is damaged, its content is not what {self.repo} has at "
            f"commit {commit[:12]}: run once without --offline, which fetches it anew"
        )

    def _commit(self, revision: str) -> str:
        commit = revision
        if not COMMIT.fullmatch(revision):
            with contextlib.suppress(OSError, ValueError):
                commit = (self.folder / "refs" / revision).read_text("ascii").strip()
        if not names_commit(commit) or not self.snapshot_folder(commit).is_dir():
            raise HubError(
                f"{self.repo}@{revision} is not in the cache {self.cache}: run once without --offline"
            )
        return commit

    def _document(self, commit: str) -> Mapping[str, object]:
        try:
            return read_object(self._record(commit), _RECORD_LIMIT)
        except CheckpointError:
            return {}

    def _record(self, commit: str) -> Path:
        return self.folder / "qatconvert" / f"{commit}.json"

    def _expected_files(self, commit: str) -> dict[str, RemoteFile]:
        folder = self.snapshot_folder(commit)
        names = {path.name for path in folder.iterdir()}
        index = None
        if INDEX in names:
            with local_files(folder / INDEX):
                listed = RemoteFile(INDEX, digest=self._named_digest(commit, INDEX))
                if check(folder / INDEX, listed) is None:
                    raise self.damage(commit, INDEX)
                index = (folder / INDEX).read_text("utf-8", "replace")
        expected = model_files(names, index, self.repo) | {CONFIG}
        return {name: RemoteFile(name, digest=self._named_digest(commit, name)) for name in expected}

    def _named_digest(self, commit: str, name: str) -> str | None:
        """The digest by which the blob of a file is named; None for a name that is none."""
        try:
            blob = Path(os.readlink(self.snapshot_folder(commit) / name)).name
        except OSError:  # no link, but the file itself
            return None
        return blob if is_digest(blob) else None


@contextlib.contextmanager
def local_files(path: Path) -> Iterator[None]:
    """Turns a failure of the local file system into a HubError that names `path`."""
    try:
        yield
    except OSError as error:
        if hasattr(error, "response"):  # huggingface_hub's HTTP errors are OSErrors too
            raise
        reason = error.strerror or type(error).__name__
        raise HubError(f"{path}: {reason}: the cache is where HF_HOME or HF_HUB_CACHE says") from None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _is_there(path: Path, size: int | None) -> bool:
    actual = _size(path)
    return actual is not None and size in (None, actual)


def _may_be_digest(value: object) -> bool:
    return value is None or (isinstance(value, str) and is_digest(value))


def _write(path: Path, text: str) -> None:
    """Replace a small file in one step, unless it has this text already."""
    with local_files(path):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if path.read_text("utf-8") == text:
                return
        write_whole(path, text)
