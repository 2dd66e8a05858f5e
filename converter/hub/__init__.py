"""Models from the Hugging Face Hub: the files that a conversion needs, at one commit."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from converter.errors import HubError
from converter.filenames import CONFIG, INDEX
from converter.hub.cache import Snapshot, Store, local_files
from converter.hub.connection import SLOWEST, Connection, Rate, fetch
from converter.hub.description import describe, list_repository
from converter.hub.failures import explain
from converter.hub.repository import COMMIT, Listing, RemoteFile, is_weights, model_files, refuse_unless_model
from converter.hub.session import endpoint, quiet_libraries, token
from converter.hub.verification import Check, check, check_all
from converter.names import Source
from converter.system.amounts import amount
from converter.system.files import state_of
from converter.system.progress import StageProgress

__all__ = [
    "Check",
    "Missing",
    "Repository",
    "Snapshot",
    "download",
    "is_offline",
    "missing_weights",
    "open_repository",
]

_STREAMS = 4


def download(
    source: Source,
    *,
    offline: bool = False,
    weights: bool = True,
    examine: Callable[[Path], object] | None = None,
    progress: StageProgress | None = None,
    cache_dir: Path | None = None,
    free_bytes: Callable[[Path], int] | None = None,
    waits: Sequence[float] = (1.0, 2.0, 4.0),
    slowest: Rate = SLOWEST,
) -> Snapshot:
    """The files of `source.repo` that a conversion reads, downloaded as far as they are missing.

    One request resolves the revision to a commit and lists the files. Everything else is fetched at that
    commit: configuration, tokenizer, chat template, model card, licence and safetensors files (those that the
    index names, where there is one). A file that broke off goes on where it stopped. Sizes and digests are
    those that the Hub lists. A server of its protocol that lists only names is asked for the rest file by
    file. Every file is compared with its digest, also one that was in the cache: what is damaged is fetched
    anew.

    `offline` (or HF_HUB_OFFLINE) uses the cache alone, and the digests that were recorded beside it. Without
    `weights`, only what describes the model is brought. `examine` is given the snapshot's folder when it has
    that. What it raises keeps the weights from being brought. `progress(done, total)` counts the bytes of all
    these files, those already at hand as they are compared. Its calls never overlap, but come from several
    threads. `cache_dir` stands for huggingface_hub's own folder, `free_bytes` for the room on its disk.
    `waits` are the seconds before each retry, `slowest` is the rate below which a server is given up.
    HF_ENDPOINT and HF_TOKEN are read at each call. Raises HubError.
    """
    if source.repo is None:
        raise ValueError(f"{source.name} is not a repository")
    from huggingface_hub import constants

    store = Store(Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute(), source.repo)
    revision = source.revision or constants.DEFAULT_REVISION
    cached = _Cached(store, examine, progress)
    if is_offline(offline):
        return cached.snapshot(revision, weights)
    if COMMIT.fullmatch(revision) and store.has_record(revision):
        with contextlib.suppress(HubError):
            return cached.snapshot(revision, weights)
    connection = Connection(endpoint(), token(), tuple(waits), slowest)
    transfer = _Transfer(connection, store, free_bytes or _free_bytes, examine, progress)
    try:
        with quiet_libraries():
            return transfer.snapshot(revision, weights)
    except Exception as error:
        explained = explain(error, source, connection)
        if explained is None:
            raise
        # The cause is not chained: its text may repeat what the server wrote.
        raise HubError(f"{explained}{_cached_hint(store, revision, error)}") from None


@dataclass(frozen=True)
class Repository:
    """A repository at one commit, of which single files are brought."""

    name: str
    #: The commit.
    revision: str
    #: Every file that it has.
    names: frozenset[str]
    _listing: Listing
    _transfer: _Transfer
    _source: Source

    def bring(
        self, names: Iterable[str], progress: StageProgress | None = None
    ) -> Mapping[str, tuple[Path, str | None]]:
        """Download the files ``names``, which it must have, as far as they are missing in the cache, and
        compare them with the digests that the Hub lists. Where each lies, and its SHA-256 if that was
        compared. Raises ``HubError``."""
        wanted = sorted(names)
        with _explained(self._source, self._transfer.connection):
            listing = self._transfer._described(self._listing, wanted)
            tally = _Tally(sum(listing.files[name].size or 0 for name in wanted), progress)
            checks = self._transfer._bring_all(listing, wanted, tally)
        folder = self._transfer.store.snapshot_folder(self.revision)
        return {
            name: (folder / name, checks[name].digest if checks[name].kind == "sha256" else None)
            for name in wanted
        }


def open_repository(source: Source) -> Repository:
    """Look at ``source.repo``, which need not be a model that can be converted. Raises ``HubError``."""
    if source.repo is None:
        raise ValueError(f"{source.name} is not a repository")
    from huggingface_hub import constants

    if is_offline(False):
        raise HubError(f"HF_HUB_OFFLINE forbids to look at {source.repo}: unset it")
    store = Store(Path(constants.HF_HUB_CACHE).expanduser().absolute(), source.repo)
    connection = Connection(endpoint(), token())
    with _explained(source, connection):
        listing = list_repository(connection, source.repo, source.revision or constants.DEFAULT_REVISION)
    transfer = _Transfer(connection, store, _free_bytes, None, None)
    return Repository(source.repo, listing.commit, frozenset(listing.files), listing, transfer, source)


@contextlib.contextmanager
def _explained(source: Source, connection: Connection) -> Iterator[None]:
    try:
        with quiet_libraries():
            yield
    except Exception as error:
        explained = explain(error, source, connection)
        if explained is None:
            raise
        raise explained from None


@dataclass(frozen=True)
class Missing:
    """Bytes of a model's weights: all, and those that are still to be downloaded."""

    total: int
    missing: int


def missing_weights(snapshot: Snapshot, cache_dir: Path | None = None) -> Missing:
    """What is still to be downloaded of the weights of a model that was described (``download`` without
    ``weights``), by the sizes that the Hub lists."""
    from huggingface_hub import constants

    store = Store(Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute(), snapshot.repo)
    files = [file for name, file in store.recorded(snapshot.revision).items() if is_weights(name)]
    missing = [file for file in files if not store.holds(snapshot.revision, file)]
    left = [store.missing_bytes(file) if file.digest else file.size or 0 for file in missing]
    return Missing(sum(file.size or 0 for file in files), sum(left))


def is_offline(asked: bool) -> bool:
    """Whether the cache alone is used: as it was asked for, or by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return asked or constants.HF_HUB_OFFLINE


@dataclass(frozen=True)
class _Cached:
    """A model that is in the cache already."""

    store: Store
    examine: Callable[[Path], object] | None
    progress: StageProgress | None

    def snapshot(self, revision: str, weights: bool) -> Snapshot:
        commit, files = self.store.find(revision, weights)
        folder = self.store.snapshot_folder(commit)
        sizes = [file.size or (folder / file.name).stat().st_size for file in files]
        tally = _Tally(sum(sizes), self.progress)
        checks = self._check(commit, [file for file in files if not is_weights(file.name)], tally)
        if self.examine:
            self.examine(folder)
        checks |= self._check(commit, [file for file in files if is_weights(file.name)], tally)
        return Snapshot(folder, self.store.repo, commit, checks, self.store.date(commit))

    def _check(self, commit: str, files: Sequence[RemoteFile], tally: _Tally) -> dict[str, Check]:
        folder = self.store.snapshot_folder(commit)
        with local_files(folder):
            checks = check_all(folder, files, tally.add)
        for file in files:
            if file.name not in checks:
                raise self.store.damage(commit, file.name)
        return checks


@dataclass(frozen=True)
class _Transfer:
    """A download in progress: where from, where to, and who is told."""

    connection: Connection
    store: Store
    free_bytes: Callable[[Path], int]
    examine: Callable[[Path], object] | None
    progress: StageProgress | None

    def snapshot(self, revision: str, weights: bool) -> Snapshot:
        repo = self.store.repo
        listing = list_repository(self.connection, repo, revision)
        refuse_unless_model(listing)
        listing = replace(listing, date=listing.date or self.store.date(listing.commit))
        folder = self.store.snapshot_folder(listing.commit)
        # The index says which weights are needed; a gated repository refuses here, before anything large.
        first = [name for name in (CONFIG, INDEX) if name in listing.files]
        listing = self._described(listing, first)
        self._bring_all(listing, first, _Tally(0, None))
        index = None
        if INDEX in listing.files:
            with local_files(folder / INDEX):
                index = (folder / INDEX).read_text("utf-8", "replace")
        wanted = sorted(model_files(listing.files, index, repo))
        if absent := [name for name in wanted if name not in listing.files]:
            raise HubError(f"{repo}: {INDEX} names the shard {absent[0]}, which the repository does not have")
        listing = self._described(listing, wanted)
        self.store.record(listing.commit, [listing.files[name] for name in wanted], listing.date)
        large = [name for name in wanted if weights and is_weights(name)]
        small = [name for name in wanted if not is_weights(name)]
        tally = _Tally(sum(listing.files[name].size or 0 for name in (*small, *large)), self.progress)
        checks = self._bring_all(listing, small, tally)
        if self.examine:
            self.examine(folder)
        checks |= self._bring_all(listing, large, tally)
        self._record(listing, wanted, checks)
        if revision != listing.commit:
            self.store.set_reference(revision, listing.commit)
        return Snapshot(folder, repo, listing.commit, checks, listing.date)

    def _described(self, listing: Listing, names: Sequence[str]) -> Listing:
        """The listing with size and digest of the files `names`, by what the server tells, or else by what
        an earlier run found out."""
        listing = describe(self.connection, listing, names)
        known = self.store.recorded(listing.commit)
        found = {}
        for file in [listing.files[name] for name in names if name in known]:
            if file.digest is None and file.size is not None and file.etag == known[file.name].digest:
                found[file.name] = replace(file, digest=file.etag)
        return replace(listing, files={**listing.files, **found})

    def _record(self, listing: Listing, wanted: Iterable[str], checks: Mapping[str, Check]) -> None:
        found = {name: check.digest for name, check in checks.items() if check.digest is not None}
        files = (listing.files[name] for name in wanted)
        self.store.record(
            listing.commit,
            [replace(file, digest=found.get(file.name, file.digest)) for file in files],
            listing.date,
        )

    def _bring_all(self, listing: Listing, names: Iterable[str], tally: _Tally) -> dict[str, Check]:
        """Bring what is missing or damaged of the files `names`, and compare them all."""
        files = [listing.files[name] for name in names]
        folder = self.store.snapshot_folder(listing.commit)
        held = [file for file in files if self.store.holds(listing.commit, file)]
        with local_files(folder):
            checks = check_all(folder, held, tally.add)
        missing = [file for file in files if file.name not in checks]
        missing.sort(key=lambda file: file.size or 0)
        self._check_room(missing, damaged=held)
        stop = threading.Event()
        with ThreadPoolExecutor(_STREAMS, thread_name_prefix="download") as threads:
            jobs = {threads.submit(self._bring, listing, file, tally, stop): file.name for file in missing}
            try:
                for job in as_completed(jobs):
                    checks[jobs[job]] = job.result()
            except BaseException:
                stop.set()
                threads.shutdown(wait=True, cancel_futures=True)
                raise
        return checks

    def _bring(self, listing: Listing, file: RemoteFile, tally: _Tally, stop: threading.Event) -> Check:
        url = self.connection.file_url(listing.repo, listing.commit, file.name)
        blob, pointer = self.store.blob(file), self.store.snapshot_folder(listing.commit) / file.name
        with self.store.lock(file):
            found = None
            if self.store.has_blob(file):
                with local_files(blob):
                    found = check(blob, file, stop, tally.add)
            if found is None:
                partial = self.store.partial(file)
                fetch(self.connection, url, file, partial, tally.add, stop)
                with local_files(partial):
                    found = check(partial, file, stop)
                    if found is None:
                        partial.unlink()
                        raise HubError(
                            f"{file.name}: the content that arrived is not the one the Hub lists (its digest "
                            f"differs from {file.blob[:12]}…) and was deleted: run the same command again"
                        )
                self.store.keep(file)
            self.store.point(listing.commit, file)
        return replace(found, state=state_of(pointer) or found.state)  # another name changes a file's times

    def _check_room(self, missing: Sequence[RemoteFile], damaged: Collection[RemoteFile]) -> None:
        needed = sum(self.store.missing_bytes(file, damaged=file in damaged) for file in missing)
        folder = self.store.cache
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        free = self.free_bytes(folder) if needed else 0
        if needed > free:
            raise HubError(
                f"{self.store.cache}: too little room: {self.store.repo} needs {amount(needed)} more, "
                f"{amount(free)} are free: make room, or set HF_HOME to a folder on a larger disk"
            )


class _Tally:
    """Bytes at hand, out of `total`, over all threads; `total` grows by what had no known size."""

    def __init__(self, total: int, progress: StageProgress | None) -> None:
        self.total = total
        self._done = 0
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            self.total = max(self.total, self._done)
            if self._progress:
                self._progress(self._done, self.total)


def _free_bytes(folder: Path) -> int:
    with local_files(folder):
        return shutil.disk_usage(folder).free


def _cached_hint(store: Store, revision: str, error: Exception) -> str:
    if isinstance(error, HubError) or hasattr(error, "response"):
        return ""
    try:
        store.find(revision)
    except HubError:
        return ""
    return "; a complete copy is in the cache: use --offline"
