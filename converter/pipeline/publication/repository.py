"""A published repository verified: its files against ``SHA256SUMS``, its artifacts against their manifest.

Only files that it names are downloaded, and none of them is run or unpickled. They are laid out as the output
directory that was published, which is then verified as any other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from converter.errors import CheckpointError
from converter.filenames import MANIFEST
from converter.hub import Repository, open_repository
from converter.names import Source, printable
from converter.pipeline.listing import Manifest, read_manifest
from converter.pipeline.publication.contents import CARD, SUMS, owners, read_sums
from converter.pipeline.verification import Finding, Verification, verify
from converter.system.digests import hexdigest
from converter.system.progress import Progress, no_progress, stage_of
from converter.system.untrusted import read_bytes, read_text
from targets.publishing import LARGEST, place_of, publishable

#: What a repository has beside what was published.
_OTHERS: Final = frozenset({CARD, SUMS, ".gitattributes"})
#: Ends of names of files that runtimes load: one that is not listed is no matter of taste.
_LOADED: Final = (".gguf", ".onnx", ".data", ".litertlm", ".tflite", ".safetensors", ".bin", "Modelfile")
_SUMS_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class PublishedOutput:
    """A repository, as the output directory that was published to it."""

    #: ``OWNER/NAME at commit COMMIT``.
    text: str
    #: Exists as long as the context that gives it.
    output: Path
    #: Names in the repository, by those below ``output``.
    places: Mapping[str, str]
    #: Digests of files below ``output`` that are those of the repository, byte for byte.
    digests: Mapping[str, str]
    #: What ``SHA256SUMS`` says otherwise than the files are, and what it does not list.
    findings: tuple[Finding, ...]

    def verify(self, progress: Progress = no_progress) -> Verification:
        """Every finding, by the name of the file in the repository."""
        found = verify(self.output, progress, self.digests)
        own = [replace(one, path=self.places.get(one.path, one.path)) for one in found.findings]
        known = {one.path for one in self.findings}
        rest = [one for one in own if one.path not in known]
        findings = sorted([*self.findings, *rest], key=lambda one: one.path)
        return replace(found, findings=findings, published=self.text)


@contextmanager
def published_output(source: Source, progress: Progress = no_progress) -> Iterator[PublishedOutput]:
    """Download what the repository names and lay it out as the output that was published.

    Raises ``HubError`` for what cannot be had, and ``CheckpointError`` for a repository that has no digests
    or no manifest, or a damaged one.
    """
    repository = open_repository(source)
    where = f"{repository.name} at commit {repository.revision}"
    listed = _sums(repository, where)
    findings = [
        *(Finding(name, "is missing") for name in listed if name not in repository.names),
        *_unlisted(repository, listed),
    ]
    present = [name for name in listed if name in repository.names]
    brought = repository.bring(present, stage_of(progress, f"bringing {repository.name}"))
    files = {name: path for name, (path, _) in brought.items()}
    digests = {name: found or hexdigest(path, hashlib.sha256()) for name, (path, found) in brought.items()}
    for name, digest in digests.items():
        if digest != listed[name]:
            findings.append(
                Finding(name, f"has SHA-256 {digest[:16]}..., {SUMS} says {listed[name][:16]}...")
            )
    with tempfile.TemporaryDirectory(prefix="qatconvert-verify-", dir=_beside(files)) as folder:
        output = Path(folder) / repository.name.rpartition("/")[2]
        output.mkdir()
        _put(files[MANIFEST], output / MANIFEST)
        manifest = read_manifest(output)
        places = _lay_out(manifest, files, output)
        known = {
            name: digests[place] for name, place in places.items() if _is_same(output / name, files, place)
        }
        yield PublishedOutput(where, output, places, known, tuple(findings))


def _sums(repository: Repository, where: str) -> dict[str, str]:
    if SUMS not in repository.names:
        raise CheckpointError(f"{where}: has no {SUMS}: it was not published by qatconvert publish")
    text = read_text(repository.bring([SUMS])[SUMS][0], _SUMS_BYTES)
    try:
        found = read_sums(text)
    except ValueError as error:
        raise CheckpointError(f"{where}: {SUMS}: {printable(str(error))}") from None
    if MANIFEST not in found or MANIFEST not in repository.names:
        raise CheckpointError(f"{where}: has no {MANIFEST}: it was not published by qatconvert publish")
    return found


def _unlisted(repository: Repository, listed: Mapping[str, str]) -> Iterator[Finding]:
    for name in sorted(repository.names - listed.keys() - _OTHERS):
        if name.endswith(_LOADED):
            yield Finding(name, f"is a file that {SUMS} does not list")


def _lay_out(manifest: Manifest, files: Mapping[str, Path], output: Path) -> dict[str, str]:
    """Put each file that the manifest lists and the repository has where it was written."""
    owned, places = owners(manifest), {}
    for name in manifest.files:
        target = owned.get(name)
        place = place_of(target, name)
        places[name] = place
        if (path := files.get(place)) is None:
            continue
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        told = publishable(target) if target is not None else None
        if told is None or path.stat().st_size > LARGEST:
            _put(path, output / name)
            continue
        content = read_bytes(path, LARGEST)
        with suppress(CheckpointError):  # a damaged one differs as it is
            content = told.original(name, content)
        (output / name).write_bytes(content)
    return places


def _is_same(path: Path, files: Mapping[str, Path], place: str) -> bool:
    """Whether a file is a link to the one that was brought; a copy is read again."""
    return place in files and path.exists() and path.samefile(files[place])


def _beside(files: Mapping[str, Path]) -> Path:
    """A folder on the file system of the files, which then need not be copied."""
    return files[MANIFEST].resolve().parent.parent


def _put(path: Path, place: Path) -> None:
    try:
        os.link(path.resolve(), place)
    except OSError:
        shutil.copyfile(path, place)
