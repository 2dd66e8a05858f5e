"""Where a model's files lie, local or from the Hub, and the checkpoint that they are, watched for changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from converter.checkpoint.source import find_kind, open_source
from converter.errors import UsageError
from converter.filenames import WEIGHTS
from converter.hub.repository import is_description
from converter.names import Source, printable, resolve
from converter.system.amounts import amount
from converter.system.files import FileState, Watch, watch
from converter.system.progress import Progress, StageProgress, begin, no_progress, stage_of

if TYPE_CHECKING:
    from converter.checkpoint.opened import Checkpoint
    from converter.hub import Check, Missing
    from targets.target import Target

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")


@dataclass(frozen=True)
class Place:
    """Where the files of a model lie."""

    source: Source
    path: Path
    #: It began before any of the files was read.
    watch: Watch
    #: The commit of a repository.
    revision: str | None = None
    #: How each file of a repository was compared with what the Hub lists.
    checks: Mapping[str, Check] = field(default_factory=dict)
    #: When the commit was made, in UTC to the second, where the Hub tells it.
    date: str | None = None

    def known(self) -> dict[Path, str]:
        """The SHA-256 of files that are known by comparing them."""
        digests = {self.path / name: check.digest for name, check in self.checks.items()}
        return {path: digest for path, digest in digests.items() if digest and len(digest) == 64}

    def shard_files(self) -> Sequence[Path]:
        """The files that hold weights; raises ``CheckpointError`` if one is not what it was."""
        with self.watch.around():
            return open_source(self.path).tensors().files


@dataclass(frozen=True)
class Model:
    """An opened checkpoint and where it came from."""

    place: Place
    checkpoint: Checkpoint

    @property
    def source(self) -> Source:
        """What the model's name meant."""
        return self.place.source

    def unchanged(self) -> AbstractContextManager[None]:
        """Around work that reads the checkpoint: raises ``CheckpointError`` if one of its files changed."""
        return self.place.watch.around(self.checkpoint.files)

    def check_unchanged(self) -> None:
        """Raise ``CheckpointError`` if a file changed since the model was opened, or before."""
        self.place.watch.check(self.checkpoint.files)

    def record(self) -> dict[str, object]:
        """The source as reports and manifests name it: repository and commit, or a directory's own name."""
        path = printable(self.source.path.name) if self.source.path else None
        return {"repo": self.source.repo, "revision": self.place.revision, "path": path}

    def described(self) -> dict[str, object]:
        """The same with the date of the commit, how the checkpoint stores its weights (the form's name, and
        what it is in words), and how many of its files were read and compared with the Hub's digests."""
        form, read = self.checkpoint.form, self.checkpoint.files
        compared = {self.place.path / name for name, check in self.place.checks.items() if check.kind}
        return {
            **self.record(),
            "date": self.place.date,
            "format": form.name,
            "stored_as": form.describes,
            "files": {"read": len(read), "compared": sum(file in compared for file in read)},
        }


def open_model(
    name: str,
    *,
    offline: bool = False,
    targets: Sequence[Target] = (),
    options: Mapping[str, object] | None = None,
    progress: Progress = no_progress,
) -> Model:
    """Resolve ``name``, download it if it is a repository, and open its checkpoint.

    A repository is refused before its weights are downloaded if its description shows already that it cannot
    be read, or not be held by one of ``targets`` with ``options``. Raises ``UsageError``, ``HubError``,
    ``CheckpointError`` or ``TargetError``.
    """
    source = resolve(name)
    begin(progress, opening(source))
    place = local_place(source) or examined_place(source, offline, targets, options or {}, progress)
    return open_place(place, progress)


def examined_place(
    source: Source,
    offline: bool,
    targets: Sequence[Target],
    options: Mapping[str, object],
    progress: Progress,
) -> Place:
    """A repository's files, once its description is found to be what the targets can hold. Raises as
    ``download_place`` does, and what ``Target.check_model`` raises."""

    def examine(described: Checkpoint) -> None:
        for target in targets:
            target.check_model(described, options)

    return download_place(source, offline, examine, stage_of(progress, f"downloading {source.name}"))


def local_place(source: Source) -> Place | None:
    """The files of a local source; ``None`` for a repository. Raises ``UsageError`` for a GGUF that no kind
    of source reads."""
    if source.path is None:
        return None
    if source.kind == "gguf" and find_kind(source.path)[0] is None:
        raise UsageError(f"{source.path} is a GGUF file already; give the checkpoint that it was made from")
    return Place(source, source.path, _watch(source.path))


def download_place(
    source: Source,
    offline: bool,
    examine: Callable[[Checkpoint], object],
    progress: StageProgress,
) -> Place:
    """A repository's files; ``examine`` gets its description, without weights, and raises if it is not worth
    the download. Raises ``HubError`` or ``CheckpointError``."""
    from converter.checkpoint.opened import open_description
    from converter.hub import download

    snapshot = download(
        source,
        offline=offline,
        examine=lambda folder: examine(open_description(folder)),
        progress=progress,
    )
    _LOG.info("%s is at commit %s in %s", source.repo, snapshot.revision, snapshot.path)
    for name, check in snapshot.checks.items():
        _LOG.debug("%s: compared with the Hub's digest %s", name, check.digest)
    compared = {name: check.state for name, check in snapshot.checks.items()}
    watched = _watch(snapshot.path, compared)
    return Place(source, snapshot.path, watched, snapshot.revision, snapshot.checks, snapshot.date)


def described_place(
    source: Source, offline: bool, targets: Sequence[Target], options: Mapping[str, object]
) -> tuple[Place, Missing]:
    """A repository's description, and what there is of its weights. Offline, they must all be in the cache.
    Raises as ``examined_place`` does."""
    from converter.checkpoint.opened import open_description
    from converter.hub import download, is_offline, missing_weights

    def examine(folder: Path) -> None:
        described = open_description(folder)
        for target in targets:
            target.check_model(described, options)

    snapshot = download(source, offline=offline, weights=is_offline(offline), examine=examine)
    compared = {name: check.state for name, check in snapshot.checks.items()}
    watched = _watch(snapshot.path, compared)
    place = Place(source, snapshot.path, watched, snapshot.revision, snapshot.checks, snapshot.date)
    return place, missing_weights(snapshot)


def opening(source: Source) -> str:
    """What the stage is called in which a model is found, looked at and opened."""
    return f"opening {source.name}"


def open_place(place: Place, progress: Progress = no_progress) -> Model:
    """The checkpoint there; raises ``CheckpointError``, for one that changes meanwhile too."""
    from converter.checkpoint.opened import open_checkpoint

    begin(progress, opening(place.source))
    with place.watch.around():
        model = Model(place, open_checkpoint(place.path))
    model.check_unchanged()
    checkpoint = model.checkpoint
    _LOG.info(
        "%s: %s %s, %d weights, %s stored, %s",
        place.path,
        checkpoint.architecture.family,
        checkpoint.form.name,
        len(checkpoint.weights),
        amount(checkpoint.stored_bytes),
        f"{len(checkpoint.left_out)} tensors left out",
    )
    for file in checkpoint.files:
        _LOG.debug("%s: %s", file, amount(file.stat().st_size))
    return model


def _watch(path: Path, earlier: Mapping[str, FileState] | None = None) -> Watch:
    """The files of a directory; of a source in one file, that one among those beside it."""
    if path.is_file():
        return watch(path.parent, lambda name: name == path.name)
    return watch(path, _matters, earlier)


def _matters(name: str) -> bool:
    """Whether a file may be read, by us or by transformers, which takes one in place of shards."""
    return is_description(name) or name == WEIGHTS
