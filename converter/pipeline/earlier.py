"""What an earlier conversion left in an output directory, and how further targets are added to it.

Files and entries of a target that a run does not write stay as they are. All targets of a manifest are of one
checkpoint: what was made of another is never mixed in. Manifest and report may come from anywhere, so their
form is checked before it is relied upon.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.card import telling_order
from converter.errors import CheckpointError, DestinationError
from converter.filenames import MANIFEST, REPORT, REPORTS
from converter.system.publication import earlier_manifest, is_inside
from converter.system.untrusted import read_object

_REPORT_BYTES: Final = 256 << 20
#: Names that targets are registered by, which are parts of paths.
_NAME: Final = re.compile(r"[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*")
#: Parts of a manifest that are the same for all targets, unless these were made by several runs.
_SHARED: Final = ("tool", "libraries", "options", "source", "left_out")


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier conversion left in ``output``."""

    output: Path
    manifest: Mapping[str, Any]
    #: Empty if there is none.
    report: Mapping[str, Any]

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that lie in the output."""
        return tuple(self.manifest["targets"])

    def files(self, target: str) -> set[str]:
        """The paths of a target's files; of a manifest that does not list them, those in its directory."""
        listed = self.manifest["targets"][target].get("files")
        if isinstance(listed, list):
            return {name for name in listed if isinstance(name, str)}
        return {
            entry["path"] for entry in self.manifest["artifacts"] if entry["path"].split("/")[0] == target
        }


def read_earlier(output: Path) -> Earlier | None:
    """The earlier conversion in ``output``; ``None`` if there is none to which something could be added."""
    manifest = earlier_manifest(output)
    targets, artifacts, source = (manifest.get(key) for key in ("targets", "artifacts", "source"))
    if not isinstance(targets, dict) or not targets or not isinstance(artifacts, list):
        return None
    if not isinstance(source, dict) or not all(map(_is_file, (*artifacts, *_list(source.get("files"))))):
        return None
    if not all(_NAME.fullmatch(name) and isinstance(entry, dict) for name, entry in targets.items()):
        return None
    try:
        report = read_object(output / REPORT, _REPORT_BYTES)
    except CheckpointError:
        report = {}
    return Earlier(output, manifest, report)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_file(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    path, size, digest = entry.get("path"), entry.get("bytes"), entry.get("sha256")
    return isinstance(path, str) and path.isprintable() and type(size) is int and isinstance(digest, str)


def check_targets(earlier: Earlier, names: Collection[str]) -> None:
    """Raise ``DestinationError`` if one of the targets ``names`` lies in the output already."""
    if there := [name for name in names if name in earlier.targets]:
        raise DestinationError(
            f"{earlier.output} is not empty: it holds {' and '.join(there)} already; choose another "
            "--output, or add --force to replace it"
        )


def check_staying(earlier: Earlier, names: Collection[str], files: Sequence[Mapping[str, object]]) -> None:
    """Raise ``DestinationError`` if the targets that stay beside ``names`` were made of other files than
    ``files`` (``path`` and ``sha256`` of each), or are not what the manifest says any more."""
    staying = [name for name in earlier.targets if name not in names]
    if not staying:
        return
    before = {entry["path"]: entry["sha256"] for entry in _list(earlier.manifest["source"].get("files"))}
    now = {entry["path"]: entry["sha256"] for entry in files}
    if before != now:
        paths = telling_order({*map(str, before), *map(str, now)})
        other = next(path for path in paths if before.get(path) != now.get(path))
        raise DestinationError(
            f"{earlier.output} holds {' and '.join(staying)} of another checkpoint ({other} differs): choose "
            "another --output, or replace every target in it with --target and --force"
        )
    for name in sorted(set().union(*map(earlier.files, staying))):
        sizes = [entry["bytes"] for entry in earlier.manifest["artifacts"] if entry["path"] == name]
        place = earlier.output / name
        if not is_inside(earlier.output, Path(name)) or [place.stat().st_size] != sizes:
            raise DestinationError(f"{place} is not what {MANIFEST} says: choose another --output")
    _check_report(earlier, staying)


def _check_report(earlier: Earlier, staying: Sequence[str]) -> None:
    """Raise ``DestinationError`` if the entries that stay could not be shown again."""
    from validation.report.html import render_html
    from validation.report.markdown import render_markdown

    if not earlier.report:
        return
    try:
        targets = earlier.report["targets"]
        alone = {**earlier.report, "targets": {name: targets[name] for name in staying if name in targets}}
        render_markdown(alone)
        render_html(alone)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DestinationError(
            f"{earlier.output / REPORT} is no report of a conversion: choose another --output, or replace "
            "every target in it with --target and --force"
        ) from error


def with_earlier_report(earlier: Earlier, report: Mapping[str, Any]) -> dict[str, Any]:
    """``report`` with the entries of the targets that stay as they are. One that was measured against another
    reference, whose source has another name, or that another command or version made, keeps its own under the
    same key."""
    targets: dict[str, Any] = {}
    for name, entry in (earlier.report.get("targets") or {}).items():
        if name in earlier.targets and name not in report["targets"]:
            own = {
                key: earlier.report.get(key)
                for key in ("tool", "command", "reference", "source", "left_out")
                if earlier.report.get(key) != report.get(key)
            }
            targets[name] = {**own, **entry}
    return {**report, "targets": _by_name({**targets, **report["targets"]})}


def _by_name(targets: Mapping[str, Any]) -> dict[str, Any]:
    """Targets in one order, whichever was converted first."""
    return dict(sorted(targets.items()))


def with_earlier_manifest(earlier: Earlier, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """``manifest`` with the targets and files that stay. What of ``_SHARED`` a target that stays does not
    share with the new ones is under ``earlier`` in its entry."""
    staying, new = {}, manifest["targets"]
    for name, entry in earlier.manifest["targets"].items():
        if name not in new:
            own = {
                key: earlier.manifest.get(key)
                for key in _SHARED
                if earlier.manifest.get(key) != manifest.get(key)
            }
            own |= entry.get("earlier") or {}
            staying[name] = {**entry, **({"earlier": own} if own else {})}
    replaced = {entry["path"] for entry in manifest["artifacts"]}.union(
        REPORTS, *(earlier.files(name) for name in earlier.targets if name in new)
    )
    files = [entry for entry in earlier.manifest["artifacts"] if entry["path"] not in replaced]
    artifacts = sorted([*manifest["artifacts"], *files], key=lambda entry: str(entry["path"]))
    return {**manifest, "targets": _by_name({**staying, **new}), "artifacts": artifacts}
