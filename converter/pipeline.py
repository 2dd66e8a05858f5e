"""From a model's name to proven artifacts: the one place that sees checkpoint, targets and validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter import manifest, output
from converter.checkpoint import Checkpoint, open_checkpoint
from converter.errors import UsageError
from converter.names import Source, resolve
from targets.plan import Plan, Target, find_target

#: Called with a stage's name, how much of it is done and how much there is (bytes, or steps).
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Model:
    """An opened checkpoint and where it came from."""

    source: Source
    checkpoint: Checkpoint
    revision: str | None = None

    def record(self) -> dict[str, object]:
        """The source as reports and manifests name it: repository and commit, or a directory's own name."""
        path = self.source.path
        return {"repo": self.source.repo, "revision": self.revision, "path": path.name if path else None}


@dataclass(frozen=True)
class Conversion:
    """What to convert and how; ``options`` go to the targets, ``validation`` (``None``: skip it) to
    ``validation.validation.validate``."""

    model: str
    targets: Sequence[str]
    output: Path | None = None
    force: bool = False
    offline: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    validation: Mapping[str, Any] | None = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Where the result lies, its report, and whether every gate passed."""

    output: Path
    report: Mapping[str, Any]
    passed: bool


def open_model(name: str, *, offline: bool = False, progress: Progress = no_progress) -> Model:
    """Resolve ``name``, download it if it is a repository, and open its checkpoint.

    Raises ``UsageError``, ``HubError`` or ``CheckpointError``.
    """
    source = resolve(name)
    if source.kind == "gguf":
        raise UsageError(f"{name} is a GGUF file already; give the checkpoint that it was made from")
    if source.path is not None:
        return Model(source, open_checkpoint(source.path))
    from converter.hub import download

    snapshot = download(
        source, offline=offline, progress=lambda done, total: progress("download", done, total)
    )
    return Model(source, open_checkpoint(snapshot.path), snapshot.revision)


def convert(
    conversion: Conversion, progress: Progress = no_progress, warn: Callable[[str], None] = print
) -> Outcome:
    """Write, prove and publish the artifacts of every target; nothing is left behind on an error.

    ``warn`` gets one line for each warning. Raises a ``QatconvertError``.
    """
    targets = [find_target(name) for name in dict.fromkeys(conversion.targets)]
    destination = conversion.output or Path(f"{resolve(conversion.model).name}-qatconvert")
    output.check_destination(destination, conversion.force)
    if conversion.validation is not None:
        from validation.runners import check_available

        check_available([target.name for target in targets])
    model = open_model(conversion.model, offline=conversion.offline, progress=progress)
    if model.source.note:
        warn(model.source.note)
    options = {**model.record(), **conversion.options}
    plans = [target.plan(model.checkpoint, model.source.name, options) for target in targets]
    for warning in dict.fromkeys(line for plan in plans for line in plan.warnings):
        warn(warning)
    output.check_space(destination, sum(plan.bytes for plan in plans))
    with output.scratch_directory(destination) as scratch:
        digests = manifest.SourceDigests(model.checkpoint.files)
        try:
            _write(model, targets, plans, scratch, progress)
            report = _report(conversion, model, targets, plans, scratch, progress)
            _record(model, plans, digests, scratch)
        finally:
            digests.close()
        output.publish(scratch, destination)
    passed = conversion.validation is None or all(entry["passed"] for entry in report["targets"].values())
    return Outcome(destination, report, passed)
