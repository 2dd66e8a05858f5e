"""What a repository gets of an output directory: verified, proven, each file where clients look for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converter.errors import CheckpointError
from converter.filenames import MANIFEST, REPORT
from converter.hub.publication import Upload
from converter.pipeline.listing import Manifest
from converter.pipeline.verification import verify
from converter.system.progress import Progress
from converter.system.untrusted import read_bytes, read_object
from targets.publishing import LARGEST, place_of, publishable

#: The digest of every file but the card, as ``sha256sum -c`` reads it.
SUMS: Final = "SHA256SUMS"
#: The model card, which people edit.
CARD: Final = "README.md"
#: Names that no artifact may have in a repository.
_OURS: Final = frozenset({SUMS, CARD, MANIFEST})
_REPORT_BYTES: Final = 64 << 20
_PASSED: Final = "passed"


@dataclass(frozen=True, slots=True)
class Contents:
    """An output directory as a repository will hold it."""

    output: Path
    manifest: Manifest
    report: Mapping[str, Any]
    #: All but the card, by name; the digests are those of the manifest.
    files: tuple[Upload, ...]
    #: Of each target that did not pass, what the report says of it.
    unproven: Mapping[str, str]

    def of(self, target: str) -> tuple[str, ...]:
        """The files of a target below the output directory, the one that was proven first."""
        main = self.report["targets"][target].get("artifact")
        return tuple(sorted(files_of(self.manifest, target), key=lambda name: name != main))


def read_contents(output: Path, allow_failed: bool, progress: Progress) -> Contents:
    """Verify ``output`` and say what a repository gets of it.

    Raises ``CheckpointError`` if a file differs from the manifest or is not listed, if there is no report, or
    one that lacks a target. Unless ``allow_failed``, it is raised too for a target that failed a gate, or of
    which a gate did not run. It is raised for two files with one name in the repository.
    """
    found = verify(output, progress)
    if found.differences:
        first = found.differences[0]
        count = len(found.differences)
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise CheckpointError(
            f"{output}: not published, it is not as its manifest says: {first.path} {first.problem}{more}: "
            "convert again"
        )
    targets = found.manifest.targets
    for target in targets:
        if found.verdicts.get(target, "not validated") == "not validated":
            raise CheckpointError(
                f"{output}: not published, {target} has no proof in {REPORT}: convert without --no-validate, "
                "or validate it"
            )
    unproven = {target: text for target, text in found.verdicts.items() if text != _PASSED}
    if unproven and not allow_failed:
        told = ", ".join(f"{target} {text}" for target, text in unproven.items())
        raise CheckpointError(
            f"{output}: not published, the report says: {told}: see {REPORT}, or publish it with "
            "--allow-failed, which the card will say"
        )
    report = read_object(output / REPORT, _REPORT_BYTES)
    return Contents(output, found.manifest, report, _files(output, found.manifest), unproven)


def files_of(manifest: Manifest, target: str) -> tuple[str, ...]:
    """The files of a target that a manifest lists, by their names below the output directory."""
    named = manifest.targets[target].get("files")
    listed = named if isinstance(named, list) else []
    return tuple(name for name in listed if isinstance(name, str) and name in manifest.files)


def owners(manifest: Manifest) -> dict[str, str]:
    """The target of each file that belongs to one."""
    return {name: target for target in manifest.targets for name in files_of(manifest, target)}


def sums(files: Mapping[str, str]) -> bytes:
    """The content of ``SHA256SUMS`` for digests by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())).encode("utf-8")


def read_sums(text: str) -> dict[str, str]:
    """Digests by name of a ``SHA256SUMS``; raises ``ValueError`` with the number of a line that is none."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        digest, gap, name = line[:64], line[64:66], line[66:]
        if gap not in ("  ", " *") or not name or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"line {number} is no digest with a name")
        if name in found:
            raise ValueError(f"line {number} names {name} again")
        found[name] = digest
    return found


def _files(output: Path, manifest: Manifest) -> tuple[Upload, ...]:
    uploads: dict[str, Upload] = {}
    owned = owners(manifest)
    for name in sorted(manifest.files):
        upload = _upload(output, name, owned.get(name), manifest)
        if upload.path in uploads or upload.path in _OURS:
            raise CheckpointError(f"{output}: two files would be {upload.path} in a repository: {name}")
        uploads[upload.path] = upload
    uploads[MANIFEST] = _own(MANIFEST, read_bytes(output / MANIFEST, _REPORT_BYTES))
    listed = sums({path: upload.sha256 for path, upload in uploads.items()})
    uploads[SUMS] = _own(SUMS, listed)
    return tuple(uploads[path] for path in sorted(uploads))


def _upload(output: Path, name: str, target: str | None, manifest: Manifest) -> Upload:
    listed, path = manifest.files[name], place_of(target, name)
    told = publishable(target) if target is not None else None
    if told is not None and listed.bytes <= LARGEST:
        changed = told.published(name, read_bytes(output / name, LARGEST))
        if changed is not None:
            return _own(path, changed)
    return Upload(path, output / name, listed.bytes, listed.sha256)


def _own(path: str, content: bytes) -> Upload:
    return Upload(path, content, len(content), hashlib.sha256(content).hexdigest())
