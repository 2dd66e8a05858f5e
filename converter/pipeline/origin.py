"""The source that a manifest names, as a MODEL, and a published output by its name."""

from __future__ import annotations

from pathlib import Path

from converter.errors import CheckpointError, UsageError
from converter.names import SHIPPED, Source, printable, resolve
from converter.pipeline.listing import Manifest


def published_source(name: str) -> Source | None:
    """The repository that ``name`` means (``OWNER/NAME[@REVISION]``), ``None`` for a path."""
    if Path(name).exists() or name.partition("@")[0].count("/") != 1:
        return None
    try:
        source = resolve(name)
    except UsageError:
        return None
    return source if source.repo is not None else None


def named_source(manifest: Manifest) -> str:
    """What ``open_model`` takes for the manifest's source: a repository with its commit, or the shipped
    model. Raises ``CheckpointError`` for a directory or a file, of which a manifest has but the name, and for
    a repository that means something else here."""
    origin = manifest.origin
    if origin.repo is not None:
        return _repository(manifest)
    if origin.path in SHIPPED:
        return origin.path
    raise CheckpointError(
        f"{manifest.path}: names its source only as {origin.text}: say where it is with --reference MODEL"
    )


def _repository(manifest: Manifest) -> str:
    """The repository and the commit that the manifest names, as ``open_model`` takes them."""
    origin = manifest.origin
    name = f"{origin.repo}@{origin.revision}"
    try:
        source = resolve(name)
    except UsageError as error:
        raise CheckpointError(f"{manifest.path}: source: {error}") from error
    if (source.repo, source.revision) != (origin.repo, origin.revision):
        raise CheckpointError(
            f"{manifest.path}: source {printable(name)} means something else here: "
            "give the source with --reference MODEL"
        )
    return name
