"""From a model's name to proven artifacts: the one place that sees checkpoint, targets and validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter import manifest, output
from converter.errors import UsageError
from converter.names import Source, printable, resolve
from converter.shards import open_shards
from targets.plan import Plan, Target, check_known, find_target, target_of

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

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
        path = printable(self.source.path.name) if self.source.path else None
        return {"repo": self.source.repo, "revision": self.revision, "path": path}


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

    output: Path | None
    report: Mapping[str, Any]
    passed: bool


def open_model(name: str, *, offline: bool = False, progress: Progress = no_progress) -> Model:
    """Resolve ``name``, download it if it is a repository, and open its checkpoint.

    Raises ``UsageError``, ``HubError`` or ``CheckpointError``.
    """
    source, path, revision = _locate(name, offline, progress)
    return _open(source, path, revision)


def _locate(name: str, offline: bool, progress: Progress) -> tuple[Source, Path, str | None]:
    """Source, directory and commit of a model, downloaded if it is a repository."""
    source = resolve(name)
    if source.kind == "gguf":
        raise UsageError(f"{name} is a GGUF file already; give the checkpoint that it was made from")
    if source.path is not None:
        return source, source.path, None
    from converter.hub import download

    snapshot = download(
        source, offline=offline, progress=lambda done, total: progress("download", done, total)
    )
    return source, snapshot.path, snapshot.revision


def convert(
    conversion: Conversion, progress: Progress = no_progress, warn: Callable[[str], None] = print
) -> Outcome:
    """Write, prove and publish the artifacts of every target; nothing is left behind on an error.

    ``warn`` gets one line for each warning. Raises a ``QatconvertError``.
    """
    names = list(dict.fromkeys(conversion.targets))
    check_known(names)
    destination = conversion.output or Path(f"{resolve(conversion.model).name}-qatconvert")
    output.check_destination(destination, conversion.force)
    if conversion.validation is not None:
        from validation.runners import check_available

        check_available(names)
    source, path, revision = _locate(conversion.model, conversion.offline, progress)
    if source.note:
        warn(source.note)
    with closing(manifest.Digests()) as digests:
        # Digests take as long as the conversion itself, so they begin before all else, the import of what
        # compiles included.
        digests.add(open_shards(path).files)
        model = _open(source, path, revision)
        digests.add(model.checkpoint.files)
        targets = [find_target(name) for name in names]
        return _convert(conversion, model, targets, destination, digests, progress, warn)


def _open(source: Source, path: Path, revision: str | None) -> Model:
    from converter.checkpoint import open_checkpoint

    return Model(source, open_checkpoint(path), revision)


def _convert(
    conversion: Conversion,
    model: Model,
    targets: Sequence[Target],
    destination: Path,
    digests: manifest.Digests,
    progress: Progress,
    warn: Callable[[str], None],
) -> Outcome:
    options = {**model.record(), **conversion.options}
    plans = [target.plan(model.checkpoint, model.source.name, options) for target in targets]
    for warning in dict.fromkeys(line for plan in plans for line in plan.warnings):
        warn(warning)
    output.check_source(destination, model.checkpoint.files)
    made = [Path(name) for plan in plans for name in (*plan.artifacts, *plan.companions)]
    output.check_places(destination, [*made, Path(output.MANIFEST)])
    output.check_space(destination, sum(plan.bytes for plan in plans))
    with output.scratch_directory(destination) as scratch:
        _write(model, targets, plans, scratch, progress, warn)
        digests.add(manifest.files_of(scratch))
        sources = digests.entries(model.checkpoint.path)
        report = _prove(conversion.validation, model, plans, sources, scratch, progress)
        _record(model, plans, sources, report, digests, scratch)
        output.publish(scratch, destination)
    return Outcome(destination, report, _passed(report))


def _passed(report: Mapping[str, Any]) -> bool:
    """Whether no gate failed; where nothing was validated, none did."""
    return all(entry["passed"] is not False for entry in report["targets"].values())


def _write(
    model: Model,
    targets: Sequence[Target],
    plans: Sequence[Plan],
    scratch: Path,
    progress: Progress,
    warn: Callable[[str], None],
) -> None:
    total = sum(weight.stored_bytes for weight in model.checkpoint.weights.values())
    for target, plan in zip(targets, plans, strict=True):
        done = 0

        def advance(count: int, stage: str = f"write {target.name}") -> None:
            nonlocal done
            done += count
            progress(stage, done, total)

        for warning in target.write(model.checkpoint, plan, scratch, advance):
            warn(warning)


def _prove(
    settings: Mapping[str, Any] | None,
    model: Model,
    plans: Sequence[Plan],
    sources: Sequence[Mapping[str, object]],
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The report of everything in ``scratch``; without ``settings`` nothing is run."""
    entries: dict[str, dict[str, object]] = {}
    reference = None
    for plan in plans:
        entry: dict[str, object] = {
            "artifact": plan.artifacts[0],
            "bytes": sum((scratch / name).stat().st_size for name in plan.artifacts),
            "bits_per_weight": round(plan.bits_per_weight, 4),
            "passed": None,
        }
        if settings is not None:
            digests = [source["sha256"] for source in sources]
            found = _measure(model, plan.target, scratch / plan.artifacts[0], settings, progress, digests)
            entry |= found["entry"]
            reference = found["reference"]
        entries[plan.target] = entry
    return _assemble(model, reference, entries)


def _measure(
    model: Model,
    target: str,
    artifact: Path,
    settings: Mapping[str, Any],
    progress: Progress,
    digests: Sequence[object] | None = None,
) -> dict[str, Any]:
    from validation.validation import validate as measure

    identity = {**model.record(), **({"files": digests} if digests else {})}
    return measure(model.checkpoint, target, artifact, source=identity, progress=progress, **settings)


def _assemble(
    model: Model, reference: Mapping[str, object] | None, entries: Mapping[str, Mapping[str, object]]
) -> dict[str, Any]:
    from validation.report import assemble

    source = {**model.record(), "format": model.checkpoint.format}
    return assemble(model.source.name, source, reference, entries)


def validate(
    artifact: Path,
    reference: str,
    *,
    offline: bool = False,
    output_directory: Path | None = None,
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
    warn: Callable[[str], None] = print,
) -> Outcome:
    """Prove an existing artifact against the checkpoint called ``reference``.

    Reports go to ``output_directory`` if given. Raises a ``QatconvertError``.
    """
    from validation.report import write
    from validation.runners import check_available

    target = target_of(artifact)
    check_available([target.name])
    if output_directory is not None:
        output.check_destination(output_directory, force)
    model = open_model(reference, offline=offline, progress=progress)
    if model.source.note:
        warn(model.source.note)
    if output_directory is not None:
        output.check_source(output_directory, model.checkpoint.files)
    stored = target.describe(artifact, model.checkpoint)
    values = sum(weight.size for weight in model.checkpoint.weights.values())
    found = _measure(model, target.name, artifact, settings or {}, progress)
    entry = {
        "artifact": printable(artifact.name),
        "bytes": sum(file.stat().st_size for file in target.files(artifact)),
        "bits_per_weight": round(8 * sum(tensor.bytes for tensor in stored.values()) / values, 4),
        **found["entry"],
    }
    report = _assemble(model, found["reference"], {target.name: entry})
    if output_directory is not None:
        with output.scratch_directory(output_directory) as scratch, closing(manifest.Digests()) as digests:
            write(scratch, report)
            digests.add(manifest.files_of(scratch))
            before = output.earlier_manifest(output_directory)
            if earlier := manifest.renewed(before, digests.entries(scratch)):
                manifest.write(scratch / output.MANIFEST, earlier)
            output.publish(scratch, output_directory, keep=True)
    return Outcome(output_directory, report, _passed(report))


def _record(
    model: Model,
    plans: Sequence[Plan],
    sources: Sequence[Mapping[str, object]],
    report: Mapping[str, Any],
    digests: manifest.Digests,
    scratch: Path,
) -> None:
    """Write the reports and, last, the manifest of all that lies in ``scratch``."""
    from validation.report import write

    write(scratch, report)
    digests.add(manifest.files_of(scratch))
    content = manifest.build(
        model.checkpoint,
        model.record(),
        sources,
        {plan.target: plan.as_dict() for plan in plans},
        digests.entries(scratch),
    )
    manifest.write(scratch / output.MANIFEST, content)
