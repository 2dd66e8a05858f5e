"""An artifact that is there already, proven against the checkpoint that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.opened import Checkpoint
from converter.filenames import MANIFEST
from converter.names import printable
from converter.pipeline.command import validate_command
from converter.pipeline.opening import Model, open_model
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
from targets.target import Plan, StoredTensor, Target, artifact_of, target_of

#: In how many directories above an artifact the manifest is looked for.
_HIGHEST: Final = 4


def validate(
    artifact: Path,
    reference: str,
    *,
    target: str | None = None,
    offline: bool = False,
    output_directory: Path | None = None,
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
    warn: Callable[[str], None] = print,
) -> Outcome:
    """Prove an existing artifact against the checkpoint called ``reference``.

    ``target`` chooses among several whose artifacts are named alike. Reports go to ``output_directory`` if
    given. Raises a ``QatconvertError``.
    """
    from validation.proof import Artifact
    from validation.settings import OFF_LATTICE

    artifact = artifact_of(artifact, target)
    found = target_of(artifact, target)
    check_validation([found.name], settings or {})
    if output_directory is not None:
        output.check_destination(output_directory, force)
    model = open_model(reference, offline=offline, progress=progress)
    if output_directory is not None:
        output.check_source(output_directory, model.checkpoint.files)
    with ExitStack() as stack:
        worker = stack.enter_context(reference_process())
        begin(progress, "reading the artifact")
        stored = found.describe(artifact, model.checkpoint)
        if model.source.note:
            warn(model.source.note)
        plan, recorded = _converted(found, artifact, model, progress)
        digests = stack.enter_context(closing(Digests()))
        digests.know(model.place.known())
        digests.add(model.checkpoint.files)
        accepted = {OFF_LATTICE: recorded.accepted, **(settings or {})}
        prepared = stack.enter_context(prepared_for(model, accepted, [plan], worker, progress))
        scratch = None
        if output_directory is not None:
            work = f"validation of {printable(artifact.name)}"
            scratch = stack.enter_context(output.scratch_directory(output_directory, work))
            output.check_destination(output_directory, force)  # another run may have come before this one
        with model.unchanged():
            proving = Proving(prepared, model, digests, progress)
            proof = measure(proving, Artifact(artifact, plan), scratch)
        *_, directory = artifact.absolute().parents[: len(Path(plan.artifacts[0]).parts)]
        entry = {
            "artifact": printable(artifact.name),
            "bytes": sum(file.stat().st_size for file in found.files(artifact)),
            **_held(stored, model.checkpoint),
            **needs(plan),
            "options": {"from": recorded.origin, **plan.options},
            **proof.entry,
            **parts_entry(plan, directory, proof.entry.get("parts", {})),
        }
        begin(progress, "writing the report")
        command = validate_command(artifact, model, settings or {})
        report = report_of(model, prepared, {found.name: entry}, [plan], command)
        if output_directory is not None and scratch is not None:
            files = model.checkpoint.source.entries(digests)
            publish_reports(report, files, scratch, output_directory, warn)
    return Outcome(output_directory, report, all_passed(report))


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
