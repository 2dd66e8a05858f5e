"""An output directory beside its manifest: every listed file as it was written, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Final

from converter.errors import CheckpointError
from converter.filenames import MANIFEST, REPORT
from converter.pipeline.listing import Entry, Listed, Manifest, folders, read_manifest, walk
from converter.system.digests import hexdigest
from converter.system.processors import processors
from converter.system.progress import Progress, counted, no_progress, stage_of
from converter.system.untrusted import Settings, read_object

_REPORT_BYTES: Final = 64 << 20
_MOST_THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    #: A name below the output directory, or a place in its manifest.
    path: str
    problem: str
    #: Other versions than the present ones wrote the file, so that the difference alone is no sign of
    #: tampering.
    versions_differ: bool = False


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A conversion that was done again from its source."""

    #: A line for each program that has another version than the one that wrote the output.
    versions: Sequence[str]
    #: Those that the manifest records, by target.
    options: Mapping[str, Mapping[str, object]]
    #: The files that came out byte for byte.
    same: Sequence[str]
    #: The files that are not made again, and why.
    apart: Mapping[str, str]
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class Verification:
    """What an output directory is beside its ``manifest``."""

    #: The directory.
    output: Path
    manifest: Manifest
    #: The listed files that are there.
    regular: frozenset[str]
    bytes: int
    #: Every difference by path.
    findings: Sequence[Finding]
    #: What the report says of each target: ``passed``, ``failed``, ``not fully proven`` or ``not validated``.
    #: Empty if there is no report that can be read.
    verdicts: Mapping[str, str] = field(default_factory=dict)
    #: ``None`` where nothing was converted again.
    rebuild: Rebuild | None = None
    #: The repository and the commit that was verified, ``None`` for a directory.
    published: str | None = None

    @property
    def shown(self) -> str:
        """What was verified, for people."""
        return self.published or str(self.output)

    @property
    def differences(self) -> list[Finding]:
        """All findings, those of the manifest first."""
        return [*self.findings, *(self.rebuild.findings if self.rebuild else ())]

    @property
    def exit_status(self) -> int:
        """0 if nothing differs, else 3."""
        return 3 if self.differences else 0


def verify(
    output: Path, progress: Progress = no_progress, known: Mapping[str, str] | None = None
) -> Verification:
    """Compare every file of ``output`` with its manifest, by size and SHA-256, and look for files that it
    does not list. Reads no model. ``known`` are digests of files that need not be read again.

    Raises ``CheckpointError`` for a directory or a manifest that cannot be read.
    """
    manifest = read_manifest(output)
    found = walk(output)
    present = {name for name in manifest.files if found.get(name, Entry("")).kind == "file"}
    same_size = [name for name in sorted(present) if found[name].bytes == manifest.files[name].bytes]
    told = {name: digest for name, digest in (known or {}).items() if name in same_size}
    unread = [name for name in same_size if name not in told]
    digests = told | _digests(output, unread, manifest.files, progress)
    problems = {name: problem for name, problem in _listed_problems(manifest.files, found, digests)}
    problems |= dict(_unlisted(manifest.files, found))
    findings = [Finding(name, problems[name]) for name in sorted(problems)]
    return Verification(
        output,
        manifest,
        frozenset(present),
        sum(found[name].bytes for name in present),
        findings,
        {} if REPORT in problems or REPORT not in present else read_verdicts(output / REPORT),
    )


def read_verdicts(report: Path) -> dict[str, str]:
    """What a ``report.json`` says of each target; empty for a file that is no report."""
    try:
        targets = Settings(read_object(report, _REPORT_BYTES), str(report)).section("targets")
    except CheckpointError:
        return {}
    entries = targets.values if targets is not None else {}
    return {name: _verdict(entry) for name, entry in entries.items() if isinstance(entry, dict)}


def _verdict(entry: Mapping[str, object]) -> str:
    gates = entry.get("gates")
    passed = (
        [gate.get("passed") for gate in gates if isinstance(gate, dict)] if isinstance(gates, list) else []
    )
    if entry.get("passed") is False or False in passed:
        return "failed"
    if entry.get("passed") is True and None not in passed:
        return "passed"
    return "not fully proven" if passed else "not validated"


def _listed_problems(
    listed: Mapping[str, Listed], found: Mapping[str, Entry], digests: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """What is wrong with the files that the manifest lists."""
    for name, expected in listed.items():
        entry = found.get(name)
        if entry is None:
            links = [folder for folder in folders(name) if found.get(folder, Entry("")).kind == "link"]
            yield name, f"is missing ({links[0]} is a link, which is not followed)" if links else "is missing"
        elif entry.kind == "link":
            yield name, "is a link, which is not followed"
        elif entry.kind != "file":
            yield name, "cannot be read" if entry.kind == "unreadable" else "is no regular file"
        elif entry.bytes != expected.bytes:
            yield name, f"has {entry.bytes} bytes, the manifest says {expected.bytes}"
        elif digests[name] != expected.sha256:
            yield name, _wrong_digest(digests[name], expected.sha256)


def _wrong_digest(found: str, expected: str) -> str:
    if found.startswith("cannot"):
        return found
    return f"has SHA-256 {found[:16]}..., the manifest says {expected[:16]}..."


def _unlisted(listed: Mapping[str, Listed], found: Mapping[str, Entry]) -> Iterator[tuple[str, str]]:
    """What lies there and is not listed: of a directory, what is in it, or itself if that is nothing."""
    holding = {folder for name in (*listed, *found) for folder in folders(name)}
    for name, entry in found.items():
        if name in listed or name == MANIFEST or (entry.kind == "directory" and name in holding):
            continue
        if entry.kind == "unreadable":
            yield name, "cannot be read"
        else:
            kinds = {
                "file": "a file",
                "directory": "an empty directory",
                "link": "a link",
                "special": "no file",
            }
            yield name, f"is {kinds[entry.kind]} that the manifest does not list"


def _digests(
    output: Path, names: Sequence[str], listed: Mapping[str, Listed], progress: Progress
) -> dict[str, str]:
    """SHA-256 of files, on all cores; for one that cannot be read, why, which begins with ``cannot``."""
    total = sum(listed[name].bytes for name in names)
    stop, advance = Event(), counted(stage_of(progress, "hashing files"), total)

    def digest(name: str) -> str:
        try:
            return hexdigest(output / name, hashlib.sha256(), stop, advance)
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    with ThreadPoolExecutor(min(_MOST_THREADS, processors())) as pool:
        try:
            # the largest first: the last thread to end has a small one
            order = sorted(names, key=lambda name: -listed[name].bytes)
            return dict(zip(order, pool.map(digest, order), strict=True))
        finally:
            stop.set()
