"""The artifacts of one model, each from a step of its own, as one output directory with one manifest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from converter.errors import CheckpointError, DestinationError
from converter.filenames import MANIFEST, REPORT, REPORTS
from converter.pipeline import manifest
from converter.pipeline.earlier import Earlier, read_earlier, with_earlier_manifest, with_earlier_report
from converter.pipeline.verification import verify
from converter.system import output
from converter.system.digests import Digests
from converter.system.untrusted import read_object

_REPORT_BYTES: Final = 256 << 20
_ASIDE: Final = frozenset((MANIFEST, *REPORTS))


def assemble(outputs: Sequence[Path], destination: Path, work: str) -> bool:
    """Make ``destination`` of the conversions in ``outputs``, one for each target of the same model, if it is
    not that already; whether something was written.

    Files are links to those in ``outputs`` where the file system has such. Raises ``DestinationError`` for a
    destination that something else is in, and for conversions of different sources.
    """
    merged, report = _merged(outputs)
    if _is_there(outputs, destination, merged):
        return False
    from validation.report.files import write

    with output.scratch_directory(destination, work) as scratch:
        for own in outputs:
            for path in manifest.files_of(own):
                name = path.relative_to(own).as_posix()
                if name not in _ASIDE:
                    _link(path, scratch / name)
        write(scratch, report)
        with closing(Digests()) as digests:
            digests.add(scratch / name for name in REPORTS)
            entries = digests.entries(scratch)
        content = manifest.renewed(merged, entries)
        manifest.write(scratch / MANIFEST, content)
        output.publish(scratch, destination)
    return True


def _merged(outputs: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the report of all, as one conversion after the other would have left them."""
    content: dict[str, Any] = {}
    report: dict[str, Any] = {}
    for own in reversed(outputs):  # what they share is told as the first has it
        earlier = read_earlier(own)
        if earlier is None:
            raise DestinationError(f"{own} is no conversion: remove it, and run the release again")
        if content:
            sources = [one["source"].get("files") for one in (content, earlier.manifest)]
            if sources[0] != sources[1]:
                raise DestinationError(f"{own}: its checkpoint is another one than that of its neighbours")
            staying = Earlier(own, content, report)
            content = with_earlier_manifest(staying, earlier.manifest)
            report = with_earlier_report(staying, earlier.report)
        else:
            content, report = dict(earlier.manifest), dict(earlier.report)
    return content, report


def _is_there(outputs: Sequence[Path], destination: Path, merged: Mapping[str, Any]) -> bool:
    """Whether ``destination`` has these artifacts, with reports and a manifest that say so."""
    try:
        there = read_object(destination / MANIFEST, manifest.LARGEST)
    except CheckpointError:
        return False
    artifacts = [entry for entry in merged["artifacts"] if entry["path"] not in _ASIDE]
    listed = there.get("artifacts")
    if not isinstance(listed, list) or {**there, "artifacts": 0} != {**merged, "artifacts": 0}:
        return False
    if [entry for entry in listed if entry.get("path") not in _ASIDE] != artifacts:
        return False
    linked = all(_is_link(outputs, destination, entry["path"]) for entry in artifacts)
    if linked:  # of the store, whose files were hashed: the rest is small
        digests = {entry["path"]: entry["sha256"] for entry in listed if entry.get("path") in _ASIDE}
        with closing(Digests()) as found:
            try:
                found.add(destination / name for name in digests)
                return all(digests[str(one["path"])] == one["sha256"] for one in found.entries(destination))
            except (CheckpointError, OSError):
                return False
    try:
        return not verify(destination).differences
    except CheckpointError:
        return False


def _is_link(outputs: Sequence[Path], destination: Path, name: str) -> bool:
    try:
        here = (destination / name).stat()
        return any((own / name).exists() and os.path.samestat((own / name).stat(), here) for own in outputs)
    except OSError:
        return False


def _link(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, place)


def verdicts(destination: Path) -> Mapping[str, Any]:
    """The report in an output directory, by target; empty if there is none that can be read."""
    try:
        report = read_object(destination / REPORT, _REPORT_BYTES)
    except CheckpointError:
        return {}
    targets = report.get("targets")
    return targets if isinstance(targets, dict) else {}
