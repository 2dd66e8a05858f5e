"""A conversion done again from its source and its manifest, compared with the first one byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from converter.checkpoint.card import telling_order
from converter.errors import CheckpointError, DestinationError, UsageError
from converter.filenames import MANIFEST, REPORTS
from converter.names import SHIPPED, file_name, printable
from converter.pipeline.listing import Listed, Manifest
from converter.pipeline.manifest import library_versions
from converter.pipeline.opening import Model, open_model
from converter.pipeline.origin import named_source
from converter.pipeline.verification import Finding, Rebuild, Verification
from converter.system.amounts import amount
from converter.system.digests import Digests
from converter.system.memory import check_memory
from converter.system.output import scratch_directory
from converter.system.progress import Progress, begin, no_progress
from converter.system.untrusted import shown
from targets.target import Plan, Target, check_installed, find_target, known_targets, planning

_PIECE: Final = 8 << 20
#: What the manifest records of a plan and the same plan has again. Warnings are not among it: some are about
#: files elsewhere.
_PLANNED: Final = ("bytes", "bits_per_weight", "operators", "memory", "kv_cache", "parts", "tensors")


def rebuild(
    found: Verification,
    *,
    reference: str | None = None,
    offline: bool = False,
    progress: Progress = no_progress,
    tell: Callable[[str], None] = print,
) -> Rebuild:
    """Convert the manifest's source again with the manifest's options and choices, and compare each file.

    ``found`` is what ``verify`` found in an output directory. ``reference`` is the source where the manifest
    has but a directory's name. ``tell`` gets a line for each program of another version before the work
    begins. What is made lies in a temporary directory beside the output (or where ``TMPDIR`` says) and is
    gone at the end. Nothing is validated, and reports, which hold measured figures, are not made again.

    Raises ``CheckpointError`` for another source than the manifest's and for a manifest that no conversion
    leaves. Raises ``DestinationError`` where there is no room, ``UsageError`` for packages that are not
    installed, and whatever opening and converting a checkpoint raises.
    """
    manifest = found.manifest
    targets = _targets(manifest)
    check_installed(target for target, _ in targets)
    others = {target.name: _other_versions(manifest, target) for target, _ in targets}
    versions = list(dict.fromkeys(line for lines in others.values() for line in lines))
    for line in versions:
        tell(f"this was written by {line}: bytes may differ for that reason")
    model = _source(manifest, reference, offline, progress)
    planned = [_plan(manifest, model, target, record, progress) for target, record in targets]
    for one in planned:
        check_memory(one.plan.target, one.plan.memory)
    same: list[str] = []
    findings: list[Finding] = [finding for one in planned for finding in one.findings]
    with _scratch(found.output, max((one.plan.size for one in planned), default=0)) as scratch:
        for one in planned:
            made = _make(one, model, scratch, progress)
            differing = _differing(made, scratch, found, others[one.target.name], progress)
            findings += differing
            same += sorted({*made} & found.regular - {finding.path for finding in differing})
            _clear(scratch)
    apart = {name: "holds measured figures" for name in REPORTS if name in manifest.files}
    findings += _not_made(manifest, planned, apart)
    options = {one.target.name: {**one.plan.options, **(one.choice or {})} for one in planned}
    return Rebuild(versions, options, sorted(same), apart, findings)


def _not_made(manifest: Manifest, planned: Sequence[_Planned], apart: Mapping[str, str]) -> Iterator[Finding]:
    """The listed files that no target makes, but for those that are kept ``apart``, and then those that
    cannot be made here."""
    lacking = {name: why for one in planned for name, why in one.lacking.items()}
    made = {name for one in planned for name in one.files}
    for name in sorted(set(manifest.files) - made - set(apart) - set(lacking)):
        yield Finding(name, "is made by none of the manifest's targets")
    for name, why in lacking.items():
        yield Finding(name, f"was not made again: {why}")


@dataclass(frozen=True, slots=True)
class _Planned:
    """A target's plan, made again."""

    target: Target
    plan: Plan
    #: What was measured.
    choice: Mapping[str, object] | None
    #: Files that cannot be made here, and why.
    lacking: Mapping[str, str]
    #: Where the manifest records something else.
    findings: Sequence[Finding]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that are made."""
        return (*self.plan.artifacts, *self.plan.companions)


def _targets(manifest: Manifest) -> list[tuple[Target, Mapping[str, object]]]:
    known = known_targets()
    for name in manifest.targets:
        if name not in known:
            raise CheckpointError(
                f"{manifest.path}: target {shown(name)} is none (known: {', '.join(known)})"
            )
    return [(find_target(name), record) for name, record in manifest.targets.items()]


def _other_versions(manifest: Manifest, target: Target) -> list[str]:
    """A text for each program that makes ``target``'s bytes and is here in another version than it was."""
    installed = {"qatconvert": version("qatconvert"), **library_versions(target.libraries)}
    recorded = {"qatconvert": manifest.tool, **manifest.libraries}
    lines = []
    for name in ("qatconvert", *target.libraries):
        then, now = recorded.get(name), installed.get(name)
        if then != now:
            was = f"{name} {printable(then, 60)}" if then else f"an unrecorded {name}"
            lines.append(f"{was}, {f'{now} is' if now else 'which is not'} installed")
    return lines


def _source(manifest: Manifest, reference: str | None, offline: bool, progress: Progress) -> Model:
    """The opened checkpoint, whose files are the manifest's, byte for byte."""
    origin = manifest.origin
    if reference is not None:
        name, told = reference, printable(reference)
    else:
        name = named_source(manifest)
        told = (
            f"{name}, {'as it ships with this version' if name in SHIPPED else 'which the manifest names'},"
        )
    model = open_model(name, offline=offline, progress=progress)
    begin(progress, "hashing the source")
    with closing(Digests()) as digests:
        digests.add(model.checkpoint.files)
        entries: list[dict[str, Any]] = model.checkpoint.source.entries(digests)
    found = {one["path"]: Listed(one["bytes"], one["sha256"]) for one in entries}
    for path in telling_order({*found, *origin.files}):
        if found.get(path) != origin.files.get(path):
            what = (
                "is not in it"
                if path not in found
                else "is new in it"
                if path not in origin.files
                else "differs"
            )
            hint = "" if reference is not None else "; --reference MODEL gives another"
            raise CheckpointError(f"{told} is not the source that was converted: {path} {what}{hint}")
    return model


def _plan(
    manifest: Manifest, model: Model, target: Target, record: Mapping[str, object], progress: Progress
) -> _Planned:
    """The plan of the manifest's options; raises ``CheckpointError`` for options that no conversion has."""
    place = f"{MANIFEST}: targets.{target.name}"
    recorded = record.get("options")
    name = recorded.get("name") if isinstance(recorded, dict) else None
    if not isinstance(recorded, dict) or not isinstance(name, str) or file_name(name) != name:
        raise CheckpointError(
            f"{manifest.path}: targets.{target.name}.options has no model's name for its files"
        )
    origin = {"repo": manifest.origin.repo, "revision": manifest.origin.revision}
    # a place outside the output is no part of the plan: nothing may be written where a manifest says
    outside = {option.name for option in target.options if option.outside}
    options = {key: value for key, value in recorded.items() if key not in {*origin, *outside}}
    options |= {key: value for key, value in origin.items() if value is not None}
    begin(progress, planning(target))
    try:
        plan = target.plan(model.checkpoint, name, options, progress)
        made, lacking = _without_sdk(target, plan, model, options, progress)
    except (UsageError, TypeError, ValueError) as error:
        raise CheckpointError(f"{manifest.path}: targets.{target.name}.options: {error}") from error
    found = _as_json(plan.as_dict())
    again: dict[str, object] = found["options"]
    findings = [
        Finding(
            f"{place}.options.{printable(key)}",
            f"is {shown(recorded.get(key))}, expected {shown(again.get(key))}",
        )
        for key in sorted({*recorded, *again})
        if recorded.get(key) != again.get(key)
    ]
    findings += [
        Finding(f"{place}.{key}", "is not what the source and the options give")
        for key in _PLANNED
        if record.get(key) != found.get(key)
    ]
    return _Planned(target, made, _choice(target, plan, record, manifest), lacking, findings)


def _without_sdk(
    target: Target, plan: Plan, model: Model, options: Mapping[str, object], progress: Progress
) -> tuple[Plan, dict[str, str]]:
    """``plan``, or where what makes further files beside the artifact is not installed the plan of all other
    files, and why not of these. Raises ``UsageError`` for options that mean nothing."""
    try:
        target.check(options)
    except UsageError as error:
        extra = [option.name for option in target.options if option.extra_files and options.get(option.name)]
        if not extra:
            raise
        kept = _possible(target, options, extra)
        less = target.plan(model.checkpoint, str(options["name"]), kept, progress)
        lacking = {*plan.artifacts, *plan.companions} - {*less.artifacts, *less.companions}
        return less, dict.fromkeys(sorted(lacking), str(error))
    return plan, {}


def _possible(target: Target, options: Mapping[str, object], extra: Sequence[str]) -> dict[str, object]:
    """The options without the first of ``extra`` that is in the way, or without them all."""
    for name in extra:
        kept = {key: value for key, value in options.items() if key != name}
        with suppress(UsageError):
            target.check(kept)
            return kept
    return {key: value for key, value in options.items() if key not in extra}


def _choice(
    target: Target, plan: Plan, record: Mapping[str, object], manifest: Manifest
) -> Mapping[str, object] | None:
    """What was measured and chosen, ``None`` where nothing was to be chosen."""
    choices = target.choices(plan)
    chosen = record.get("chosen")
    if not choices and chosen is None:
        return None
    for choice in choices:
        if choice == chosen:
            return choice
    raise CheckpointError(
        f"{manifest.path}: targets.{target.name}.chosen is {shown(chosen)}, which is no way to run it"
    )


def _as_json(value: Mapping[str, object]) -> dict[str, Any]:
    """``value`` as a manifest that was written and read has it."""
    again: dict[str, Any] = json.loads(json.dumps(value))
    return again


def _make(one: _Planned, model: Model, scratch: Path, progress: Progress) -> tuple[str, ...]:
    """Write a target's files and make the recorded choice; the names of the files."""
    plan = one.plan if one.choice is None else one.target.written(one.plan, one.choice)
    one.target.write(model.checkpoint, plan, scratch, progress)
    if one.choice is not None:
        one.target.choose(scratch / one.plan.artifacts[0], one.choice)
    return one.files


def _differing(
    names: Sequence[str], scratch: Path, found: Verification, others: Sequence[str], progress: Progress
) -> list[Finding]:
    """The files in ``scratch`` that are not the same in the output. ``others`` are the programs of other
    versions that may be the reason."""
    total = sum((scratch / name).stat().st_size for name in names)
    findings, done = [], 0
    for name in names:
        there = name in found.regular
        place = _first_difference(scratch / name, found.output / name) if there else None
        done += (scratch / name).stat().st_size
        progress("comparing files", done, total)
        if not there:
            findings.append(Finding(name, "is not there or not listed, and the source gives such a file"))
        elif place is not None:
            problem = f"is not what the source gives, from byte {place} on"
            if others:
                problem += f", but versions differ ({'; '.join(others)}): no sign of tampering by itself"
            findings.append(Finding(name, problem, bool(others)))
    return findings


def _first_difference(one: Path, other: Path) -> int | None:
    """Offset of the first byte in which two files differ, which may be the end of the shorter one."""
    place = 0
    with one.open("rb") as ours, other.open("rb") as theirs:
        while True:
            first, second = ours.read(_PIECE), theirs.read(_PIECE)
            if first != second:
                length = min(len(first), len(second))
                one_, other_ = (np.frombuffer(piece, np.uint8, length) for piece in (first, second))
                differing = np.flatnonzero(one_ != other_)
                return place + (int(differing[0]) if differing.size else length)
            if not first:
                return None
            place += len(first)


@contextmanager
def _scratch(output: Path, needed: int) -> Iterator[Path]:
    """An empty directory with room for ``needed`` bytes, beside ``output`` or where ``TMPDIR`` says; it is
    removed at the end. Raises ``DestinationError`` where there is no such place."""
    output = output.resolve()
    beside, elsewhere = output.parent, Path(tempfile.gettempdir())
    free = {place: shutil.disk_usage(place).free for place in (beside, elsewhere)}
    with ExitStack() as stack:
        if os.access(beside, os.W_OK | os.X_OK) and free[beside] >= needed:
            yield stack.enter_context(scratch_directory(beside / f"{output.name}.rebuild"))
        elif os.access(elsewhere, os.W_OK | os.X_OK) and free[elsewhere] >= needed:
            yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qatconvert-", dir=elsewhere)))
        else:
            raise DestinationError(
                f"{beside}: {amount(needed)} needed to convert again, {amount(free[beside])} free, and "
                f"{amount(free[elsewhere])} in {elsewhere}; make room, or set TMPDIR to a place that has it"
            )


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
