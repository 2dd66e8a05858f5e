"""A bundle laid out as assets of an Android app, with a manifest that the app reads.

LiteRT-LM wants a path, and an asset is none: an app copies the bundle to a file first. So a bundle that is
too large for one of Google Play's asset packs loses nothing by lying in parts, which the app copies one
behind the other.

Limits hold for the compressed download
(https://support.google.com/googleplay/android-developer/answer/9859372 and
https://developer.android.com/google/play/on-device-ai, read in 2026-11). Weights do not compress. The base
module may have 200 MB (copies of that page that are as new say 500), an asset pack 1.5 GB, and an app with
all that is installed with it 4 GB. An APK is a ZIP file without ZIP64, which ends at 4 GiB.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Final

from converter.errors import CheckpointError, DestinationError
from converter.system.amounts import amount
from converter.system.output import (
    check_destination,
    check_space,
    replace,
    scratch_directory,
    settle,
    sync_tree,
)
from converter.system.progress import StageProgress, no_progress
from converter.system.untrusted import read_object
from targets.litert.bundle import read_sections

#: Bytes of a base module, of an asset pack and of an app that Google Play takes.
BASE_MODULE: Final = 200_000_000
ASSET_PACK: Final = 1_500_000_000
APP: Final = 4_000_000_000
#: Bytes of a part: an asset pack's, with room for what is around it.
PART: Final = 1_450_000_000
#: Version of the manifest's keys, of which more may come.
SCHEMA: Final = 1

_WRITTEN_BY: Final = "qatconvert"
_MANIFEST_BYTES: Final = 1 << 20
_MOST_PARTS: Final = 16
_CHUNK: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the assets and what it holds of the bundle."""

    file: str
    bytes: int
    sha256: str


def manifest_name(model: str) -> str:
    """Name of the manifest of a model's assets."""
    return f"{model}.litertlm.json"


def check_assets(model: str, size: int) -> tuple[str, ...]:
    """Warnings, one line each, about a bundle of ``size`` bytes in an app's assets.

    Raises ``DestinationError`` for one that no app can hold. Meant for the planned size, before any work.
    """
    if size > APP:
        raise DestinationError(
            f"{model}: a bundle of {amount(size)} is too large for the assets of an app, which Google Play "
            f"takes up to {amount(APP)}; leave out --android-assets and let the app download the bundle"
        )
    if size > PART:
        return (
            f"android: {amount(size)} are more than an asset pack holds ({amount(ASSET_PACK)}): the assets "
            f"are in {_count(size)} parts, each for an asset pack of its own",
        )
    if size > BASE_MODULE:
        return (
            f"android: {amount(size)} are more than an app's base module holds ({amount(BASE_MODULE)}): "
            "put the assets into an asset pack",
        )
    return ()


def check_directory(directory: Path, model: str) -> None:
    """Raise ``DestinationError`` if assets of ``model`` cannot be written to ``directory``: what lies there
    under their names and was not written here before is not replaced."""
    with _own_option():
        check_destination(directory, force=True)
        settle(directory, _work(model))  # what a killed run left halfway would look like somebody else's
    earlier = _earlier(directory, model)
    for name in [manifest_name(model), *_names(model, _MOST_PARTS), *_names(model, 1)]:
        place = directory / name
        if os.path.lexists(place) and (name not in earlier or not place.is_file()):
            raise DestinationError(
                f"{place} is in the way and was not written by qatconvert: move it, or choose another "
                "--android-assets"
            )


def write_assets(
    bundle: Path,
    directory: Path,
    *,
    model: str,
    context_length: int,
    processor: str | None = None,
    progress: StageProgress = no_progress,
) -> Path:
    """Copy a bundle into ``directory`` as the assets of ``model``, and write their manifest; its path.

    ``context_length`` is in tokens, ``processor`` the neural one that the bundle was compiled for.
    ``progress(done, total)`` counts bytes. Everything is copied under temporary names and renamed when it is
    whole, the manifest last; earlier assets of the model are replaced. Equal bundles give equal bytes.

    Raises ``DestinationError`` as ``check_assets`` and ``check_directory`` do, and where there is too little
    room, and ``CheckpointError`` for a damaged bundle.
    """
    sections = read_sections(bundle)
    size = bundle.stat().st_size
    warnings = check_assets(model, size)
    check_directory(directory, model)
    with _own_option():
        check_space(directory, size)
        with scratch_directory(directory, _work(model)) as scratch:
            check_directory(directory, model)  # once more: another run may have come before this one
            parts, digest = _copied(bundle, scratch, _names(model, _count(size)), progress)
            manifest = {
                "schema": SCHEMA,
                "written_by": f"{_WRITTEN_BY} {version(_WRITTEN_BY)}",
                "model": model,
                "file": f"{model}.litertlm",
                "bytes": size,
                "sha256": digest,
                "parts": [asdict(part) for part in parts],
                "context_length": context_length,
                "processor": processor,
                "delivery": _delivery(size),
                "sections": [
                    {"kind": one.kind, "model_type": one.model_type, "bytes": one.size} for one in sections
                ],
                "warnings": list(warnings),
            }
            name = manifest_name(model)
            (scratch / name).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            _publish(scratch, directory, model, [part.file for part in parts])
    return directory / name


def _delivery(size: int) -> str:
    """Where assets of a size fit: ``base-module``, ``asset-pack`` or, in parts, ``asset-packs``."""
    return "asset-packs" if size > PART else "asset-pack" if size > BASE_MODULE else "base-module"


def _count(size: int) -> int:
    return max(1, -(-size // PART))


def _names(model: str, count: int) -> list[str]:
    """Names of the parts; all end in ``.litertlm``, so that one setting keeps a build from packing them."""
    if count == 1:
        return [f"{model}.litertlm"]
    return [f"{model}.part{index}.litertlm" for index in range(count)]


def _copied(
    bundle: Path, scratch: Path, names: Sequence[str], progress: StageProgress
) -> tuple[list[Part], str]:
    """The parts of a bundle, written to ``scratch``, and the SHA-256 of it all."""
    whole, parts, done, total = hashlib.sha256(), [], 0, bundle.stat().st_size
    with bundle.open("rb") as source:
        for name in names:
            digest, start = hashlib.sha256(), done
            with (scratch / name).open("xb") as stream:
                for data in _pieces(source, PART):
                    stream.write(data)
                    digest.update(data)
                    whole.update(data)
                    done += len(data)
                    progress(done, total)
            parts.append(Part(name, done - start, digest.hexdigest()))
    if done != total:
        raise CheckpointError(f"{bundle}: changed while it was copied")
    return parts, whole.hexdigest()


def _pieces(source: BinaryIO, limit: int) -> Iterator[bytes]:
    while limit and (data := source.read(min(limit, _CHUNK))):
        limit -= len(data)
        yield data


def _work(model: str) -> str:
    """What another run is told of this one."""
    return f"Android assets of {model}"


def _publish(scratch: Path, directory: Path, model: str, parts: Sequence[str]) -> None:
    """Move the assets to their place; without a manifest an app finds none, so it goes first and comes
    last."""
    sync_tree(scratch)
    directory.mkdir(parents=True, exist_ok=True)
    manifest = Path(manifest_name(model))
    gone = map(Path, _earlier(directory, model))
    replace(scratch, directory, [*map(Path, parts), manifest], gone, last=manifest)


def _earlier(directory: Path, model: str) -> frozenset[str]:
    """Names of the files that an earlier run left for ``model``."""
    name = manifest_name(model)
    try:
        manifest = read_object(directory / name, _MANIFEST_BYTES)
    except CheckpointError:
        return frozenset()
    if not str(manifest.get("written_by")).startswith(f"{_WRITTEN_BY} ") or manifest.get("model") != model:
        return frozenset()
    listed = manifest.get("parts")
    entries = listed if isinstance(listed, list) else []
    files = {entry.get("file") for entry in entries if isinstance(entry, dict)}
    known = {*_names(model, 1), *_names(model, _MOST_PARTS)}  # no other name is ours, whatever it says
    return frozenset({name, *(one for one in files if one in known)})


@contextmanager
def _own_option() -> Iterator[None]:
    """Let messages about places name the option that chose this one."""
    try:
        yield
    except DestinationError as error:
        raise DestinationError(str(error).replace("--output", "--android-assets")) from error
