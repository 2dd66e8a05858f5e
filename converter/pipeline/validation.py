"""An artifact that is there already, proven against the checkpoint that it was made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.opened import Checkpoint
from converter.errors import CheckpointError, UsageError
from converter.filenames import MANIFEST
from converter.names import printable
from converter.pipeline.command import validate_command
from converter.pipeline.listing import Manifest, read_manifest
from converter.pipeline.opening import Model, open_model
from converter.pipeline.origin import named_source
from converter.pipeline.proving import (
    Proving,
    check_validation,
    measure,
    needs,
    parts_entry,
    prepared_for,
    reference_process,
)
from converter.pipeline.recording import publish_reports, report_of
from converter.pipeline.running import Outcome, all_passed
from converter.system import output
from converter.system.digests import Digests
from converter.system.progress import Progress, begin, no_progress
from converter.system.publication import is_inside
from targets.target import Plan, StoredTensor, Target, artifact_of, check_known, find_target, target_of

#: In how many directories above an artifact the manifest is looked for.
_HIGHEST: Final = 4


@dataclass(frozen=True, slots=True)
class Given:
    """An artifact that exists already."""

    target: Target
    #: Its main file.
    path: Path


def artifacts_of(path: Path, target: str | None = None) -> tuple[Given, ...]:
    """The artifacts at a path: a file, the one in a directory, or those of every target of a conversion if
    ``path`` is its output directory. ``target`` chooses among several.

    Raises ``UsageError`` for none or too many, and ``CheckpointError`` for a manifest that is none.
    """
    if not os.path.lexists(path / MANIFEST):
        artifact = artifact_of(path, target)
        return (Given(target_of(artifact, target), artifact),)
    listed = read_manifest(path)
    names = list(listed.targets) if target is None else [target]
    check_known(names)
    if absent := [name for name in names if name not in listed.targets]:
        raise UsageError(f"{path} holds no {absent[0]}, but {' and '.join(listed.targets)}")
    return tuple(Given(find_target(name), _main_file(listed, find_target(name))) for name in names)


def _main_file(listed: Manifest, target: Target) -> Path:
    """The main (or first) file of a target in the output directory of a conversion."""
    entry = listed.targets[target.name]
    beside = {name for part in _section(entry, "parts").values() for name in _names(part)}
    files = sorted(name for name in _names(entry) if name.endswith(target.suffix) and name not in beside)
    if not files or not is_inside(listed.path.parent, Path(files[0])):
        raise CheckpointError(f"{listed.path}: lists no artifact of {target.name}")
    return listed.path.parent / files[0]


def _names(entry: object) -> list[str]:
    files = entry.get("files") if isinstance(entry, dict) else None
    return [name for name in files if isinstance(name, str)] if isinstance(files, list) else []


def reference_of(path: Path) -> str:
    """The source that the manifest in ``path`` or in the nearest directory above it names, as a MODEL. Raises
    ``CheckpointError`` where none does, and ``UsageError`` without a manifest."""
    for directory in [path, *path.absolute().parents][:_HIGHEST]:
        if os.path.lexists(directory / MANIFEST):
            return named_source(read_manifest(directory))
    raise UsageError(
        f"{path} does not lie in the output of a conversion, whose manifest would name its source: say which "
        "checkpoint it was made from with --reference MODEL"
    )


def validate(
    artifact: Path,
    reference: str | None = None,
    *,
    target: str | None = None,
    offline: bool = False,
    output_directory: Path | None = None,
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
    warn: Callable[[str], None] = print,
) -> Outcome:
    """Prove an existing artifact, or all of the output of a conversion, against the checkpoint called
    ``reference``. By default it is the one that the manifest of their conversion names.

    ``target`` chooses among several artifacts. Reports go to ``output_directory`` if given. Raises a
    ``QatconvertError``.
    """
    from validation.settings import OFF_LATTICE

    given = artifacts_of(artifact, target)
    reference = reference_of(artifact) if reference is None else reference
    check_validation([one.target.name for one in given], settings or {})
    if output_directory is not None:
        output.check_destination(output_directory, force)
    model = open_model(reference, offline=offline, progress=progress)
    if output_directory is not None:
        output.check_source(output_directory, model.checkpoint.files)
    with ExitStack() as stack:
        worker = stack.enter_context(reference_process())
        begin(progress, "reading the artifact")
        read = [_read(one, model, progress) for one in given]
        if model.source.note:
            warn(model.source.note)
        digests = stack.enter_context(closing(Digests()))
        digests.know(model.place.known())
        digests.add(model.checkpoint.files)
        accepted = {OFF_LATTICE: all(one.recorded.accepted for one in read), **(settings or {})}
        plans = [one.plan for one in read]
        prepared = stack.enter_context(prepared_for(model, accepted, plans, worker, progress))
        scratch = None
        if output_directory is not None:
            work = f"validation of {printable(given[0].path.name)}"
            scratch = stack.enter_context(output.scratch_directory(output_directory, work))
            output.check_destination(output_directory, force)  # another run may have come before this one
        with model.unchanged():
            proving = Proving(prepared, model, digests, progress)
            entries = {one.given.target.name: _entry(one, proving, scratch) for one in read}
        begin(progress, "writing the report")
        command = validate_command([one.path for one in given], model, settings or {})
        report = report_of(model, prepared, entries, plans, command)
        if output_directory is not None and scratch is not None:
            files = model.checkpoint.source.entries(digests)
            publish_reports(report, files, scratch, output_directory, warn)
    return Outcome(output_directory, report, all_passed(report))


@dataclass(frozen=True, slots=True)
class _Read:
    """An artifact, and how it is to be."""

    given: Given
    plan: Plan
    recorded: _Recorded
    #: Bytes of its tensors of the text model, and bits for each value.
    held: Mapping[str, object]


def _read(given: Given, model: Model, progress: Progress) -> _Read:
    stored = given.target.describe(given.path, model.checkpoint)
    plan, recorded = _converted(given.target, given.path, model, progress)
    return _Read(given, plan, recorded, _held(stored, model.checkpoint))


def _entry(one: _Read, proving: Proving, scratch: Path | None) -> dict[str, object]:
    """The target's entry of the report."""
    from validation.proof import Artifact

    artifact, plan = one.given.path, one.plan
    proof = measure(proving, Artifact(artifact, plan), scratch)
    *_, directory = artifact.absolute().parents[: len(Path(plan.artifacts[0]).parts)]
    return {
        "artifact": printable(artifact.name),
        "bytes": sum(file.stat().st_size for file in one.given.target.files(artifact)),
        **one.held,
        **needs(plan),
        "options": {"from": one.recorded.origin, **plan.options},
        **proof.entry,
        **parts_entry(plan, directory, proof.entry.get("parts", {})),
    }


def _held(stored: Mapping[str, StoredTensor], checkpoint: Checkpoint) -> dict[str, object]:
    """Bytes of the artifact's tensors that are ``stored`` of the text model, and bits for each of its
    values."""
    kept = sum(tensor.bytes for name, tensor in stored.items() if name in checkpoint.weights)
    return {"weight_bytes": kept, "bits_per_weight": round(8 * kept / checkpoint.parameters, 4)}


@dataclass(frozen=True)
class _Recorded:
    """How an artifact was converted."""

    #: The target's options, ``None`` if nothing tells them.
    values: Mapping[str, object] | None
    #: Matrices on no lattice were accepted.
    accepted: bool
    #: Where this is known from.
    origin: str


def _converted(target: Target, artifact: Path, model: Model, progress: Progress) -> tuple[Plan, _Recorded]:
    """How an artifact is to be: by the options in the manifest beside it, else by those that it shows."""
    from validation.proof import inferred_plan

    recorded = _recorded(target, artifact)
    return inferred_plan(target.name, artifact, model.checkpoint, progress, recorded.values), recorded


def _recorded(target: Target, artifact: Path) -> _Recorded:
    """What the manifest of the conversion says, if ``artifact`` lies where one put it. A manifest proves
    nothing: by other options another artifact would have come out, which shows."""
    from validation.settings import OFF_LATTICE

    content = _manifest_above(artifact)
    entry = _section(_section(content, "targets"), target.name)
    options = {**_section(entry, "options"), **_section(entry, "chosen")}
    if not options:
        return _Recorded(None, False, "artifact")
    accepted = _section(_section(content, "options"), "validation").get(OFF_LATTICE)
    return _Recorded(options, accepted is True, MANIFEST)


def _manifest_above(artifact: Path) -> Mapping[str, object]:
    """The manifest in the nearest directory above that of ``artifact``, empty without one."""
    for directory in artifact.absolute().parents[1:_HIGHEST]:
        if content := output.earlier_manifest(directory):
            return content
    return {}


def _section(content: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}
