"""From a model's name to proven artifacts: the one place that sees checkpoint, targets and validation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from converter.errors import DestinationError, QatconvertError, UsageError
from converter.names import Source, one_line, printable, resolve
from converter.pipeline import manifest
from converter.pipeline.earlier import (
    Earlier,
    check_staying,
    check_targets,
    read_earlier,
    with_earlier_manifest,
    with_earlier_report,
)
from converter.pipeline.opening import Model, Place, download_place, local_place, open_place
from converter.system import output
from converter.system.digests import Digests, sha256
from converter.system.memory import check_memory
from targets.target import (
    Plan,
    Progress,
    Target,
    accepts_off_lattice,
    artifact_of,
    check_installed,
    check_known,
    check_options,
    find_target,
    no_progress,
    target_of,
)

if TYPE_CHECKING:
    from converter.checkpoint.opened import Checkpoint
    from converter.system.child import Worker
    from validation.proof import Proof
    from validation.settings import Prepared


@dataclass(frozen=True)
class Conversion:
    """What to convert and how; ``options`` go to the targets, each of which takes those that it declares;
    ``validation`` (``None``: skip it) is what ``validation.settings.read_settings`` takes: fields of
    ``Settings`` and options of runtimes."""

    model: str
    targets: Sequence[str]
    output: Path | None = None
    force: bool = False
    offline: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    validation: Mapping[str, Any] | None = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Where the result lies, its report, and whether every gate passed.

    ``errors`` has one line for each artifact that was written but could not be validated, or not laid out
    elsewhere.
    """

    output: Path | None
    report: Mapping[str, Any]
    passed: bool
    errors: Sequence[str] = ()

    @property
    def exit_status(self) -> int:
        """0 if every gate passed, 1 after errors, 3 if a gate failed."""
        return 1 if self.errors else 0 if self.passed else 3


def open_model(
    name: str,
    *,
    offline: bool = False,
    targets: Sequence[Target] = (),
    options: Mapping[str, object] | None = None,
    progress: Progress = no_progress,
) -> Model:
    """Resolve ``name``, download it if it is a repository, and open its checkpoint.

    A repository whose description shows already that it cannot be read, or not be held by one of ``targets``
    with ``options``, is refused before its weights are downloaded. Raises ``UsageError``, ``HubError``,
    ``CheckpointError`` or ``TargetError``.
    """
    source = resolve(name)
    place = local_place(source) or _examined(source, offline, targets, options or {}, progress)
    return open_place(place)


def _examined(
    source: Source,
    offline: bool,
    targets: Sequence[Target],
    options: Mapping[str, object],
    progress: Progress,
) -> Place:
    """A repository's files, once its description is found to be what the targets can hold."""

    def examine(described: Checkpoint) -> None:
        for target in targets:
            target.check_model(described, options)

    return download_place(source, offline, examine, lambda done, total: progress("download", done, total))


def convert(
    conversion: Conversion, progress: Progress = no_progress, warn: Callable[[str], None] = print
) -> Outcome:
    """Write, prove and publish the artifacts of every target; nothing is left behind on an error.

    ``warn`` gets one line for each warning. Raises a ``QatconvertError``.
    """
    names = list(dict.fromkeys(conversion.targets))
    check_known(names)
    destination = conversion.output or Path(f"{resolve(conversion.model).name}-qatconvert")
    output.settle(destination, f"conversion of {conversion.model}")
    _check_destination(conversion, names, destination)
    with closing(Digests()) as digests:
        # Digests take as long as the conversion itself, so they begin before all else, the import of what
        # compiles included.
        source = resolve(conversion.model)
        place = local_place(source)
        if place is not None:
            digests.add(place.shard_files())
        targets = [find_target(name) for name in names]
        check_options(targets, conversion.options)
        check_installed(targets)
        for target in targets:
            target.check(conversion.options)
        if conversion.validation is not None:
            _check_validation(names, conversion.validation)
        if place is None:
            place = _examined(source, conversion.offline, targets, conversion.options, progress)
            digests.know(place.known())
            digests.add(place.shard_files())
        with _reference_worker(conversion.validation is not None) as worker:
            model = open_place(place)
            digests.add(model.checkpoint.files)
            return _convert(conversion, model, targets, destination, digests, progress, warn, worker)


def _check_destination(conversion: Conversion, names: Sequence[str], destination: Path) -> Earlier | None:
    """The earlier conversion to which these targets can be added, if there is one; raises
    ``DestinationError``."""
    earlier = read_earlier(destination)
    output.check_destination(destination, conversion.force or earlier is not None)
    if earlier is not None and not conversion.force:
        check_targets(earlier, names)
    return earlier


def _check_validation(targets: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for what shows without a model: names, packages, the runtimes, the text."""
    from validation.settings import check_runtimes, read_settings
    from validation.text import read_passages

    check_runtimes(read_settings(settings), targets)
    read_passages(settings.get("text"))


def _convert(
    conversion: Conversion,
    model: Model,
    targets: Sequence[Target],
    destination: Path,
    digests: Digests,
    progress: Progress,
    warn: Callable[[str], None],
    worker: Worker | None,
) -> Outcome:
    options = {**model.record(), **conversion.options}
    with model.unchanged():
        plans = [target.plan(model.checkpoint, model.source.name, options, progress) for target in targets]
    pairs = list(zip(targets, plans, strict=True))
    notes = [model.source.note] if model.source.note else []
    for warning in dict.fromkeys([*notes, *(line for plan in plans for line in plan.warnings)]):
        warn(warning)
    if parts := model.checkpoint.parts_left_out():
        from validation.report.texts import left_out_text

        warn(f"left out: {left_out_text(parts)}")
    output.check_source(destination, model.checkpoint.files)
    made = [Path(name) for plan in plans for name in (*plan.artifacts, *plan.companions)]
    output.check_places(destination, [*made, Path(output.MANIFEST)])
    output.check_space(destination, sum(plan.bytes + plan.companion_bytes for plan in plans))
    for plan in plans:
        if plan.elsewhere is not None:
            output.check_elsewhere(plan.elsewhere, destination)
        check_memory(plan.target, plan.memory)
    with ExitStack() as stack:
        prepared = None
        if conversion.validation is not None:
            # before anything is written: options that mean nothing must not cost a conversion
            settings = _settings(conversion, conversion.validation)
            prepared = stack.enter_context(_prepare(model, settings, plans, progress, worker))
            _check_context(plans, prepared)
        work = f"conversion of {model.source.name}"
        scratch = stack.enter_context(output.scratch_directory(destination, work))
        # once more, now that nobody else can write: another run may have come before this one
        names = [target.name for target in targets]
        earlier = _check_destination(conversion, names, destination)
        if earlier is not None:
            check_staying(earlier, names, digests.entries(model.checkpoint.path))
        with model.unchanged(), _reference_ahead(prepared, model, digests, progress) as one_by_one:
            told, files = _write(model, pairs, scratch, one_by_one, warn, measured=prepared is not None)
        changing = {scratch / name for target, plan in pairs for name in _changing(target, plan)}
        digests.add(path for path in manifest.files_of(scratch) if path not in changing)
        with model.unchanged():  # the last of it is read here, by children too
            report, choices = _prove(prepared, model, pairs, told, digests, scratch, progress)
            stored = {plan.target: {**plan.as_dict(), "files": files[plan.target]} for plan in plans}
            for name, choice in choices.items():
                stored[name]["chosen"] = dict(choice)
            whole = with_earlier_report(earlier, report) if earlier is not None else report
            _record(_options(conversion), model, stored, whole, digests, scratch, earlier)
        output.publish(scratch, destination, force=conversion.force)
    errors = _errors(report)
    for target, plan in pairs:
        passed = report["targets"][target.name]["passed"] is not False
        try:
            for warning in target.deliver(plan, destination, options, passed, progress):
                warn(warning)
        except QatconvertError as error:  # what is written and proven stays
            errors.append(str(error))
    return Outcome(destination, whole, _passed(report), errors)


def _check_context(plans: Sequence[Plan], prepared: Prepared) -> None:
    """Raise ``UsageError`` for an artifact that could not be given the text that it is to be judged on."""
    longest = max(map(len, prepared.tokens.sequences))
    for plan in plans:
        if plan.context is not None and plan.context < longest:
            raise UsageError(
                f"{plan.target}: the validation has passages of up to {longest} tokens, more than "
                f"the context of {plan.context}: give a longer context, fewer --positions, or --no-validate"
            )


def _passed(report: Mapping[str, Any]) -> bool:
    """Whether no gate failed and all have run but those that the user does without; where nothing was
    validated, none failed."""
    entries = report["targets"].values()
    gates = [gate for entry in entries for gate in entry.get("gates", ())]
    return all(entry["passed"] is not False for entry in entries) and all(
        gate["passed"] is not None or gate.get("allowed") for gate in gates
    )


def _errors(report: Mapping[str, Any]) -> list[str]:
    return [
        f"{entry['artifact']} could not be validated: {entry['error']}"
        for entry in report["targets"].values()
        if "error" in entry
    ]


def _write(
    model: Model,
    pairs: Sequence[tuple[Target, Plan]],
    scratch: Path,
    progress: Progress,
    warn: Callable[[str], None],
    *,
    measured: bool,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Write all artifacts; what each target warned of, before and after, which is told here, and the paths of
    its files. ``measured`` says that measuring is to choose among the ways of a target."""
    told: dict[str, list[str]] = {}
    files: dict[str, list[str]] = {}
    before: set[Path] = set()
    for target, plan in pairs:
        choice = _written_choice(target, plan, measured)
        made = plan if choice is None else target.written(plan, choice)
        warnings = target.write(model.checkpoint, made, scratch, progress)
        for warning in warnings:
            warn(warning)
        told[target.name] = [*plan.warnings, *warnings]
        written = set(manifest.files_of(scratch))
        files[target.name] = sorted(path.relative_to(scratch).as_posix() for path in written - before)
        before = written
    return told, files


def _replaced(target: Target, plan: Plan) -> bool:
    """Whether a choice takes an artifact of its own."""
    return any(target.written(plan, choice) is not plan for choice in target.choices(plan))


def _changing(target: Target, plan: Plan) -> Sequence[str]:
    """The files that a choice may change or replace once they are written."""
    if not target.choices(plan):
        return ()
    return (*plan.artifacts, *plan.companions) if _replaced(target, plan) else plan.artifacts[:1]


def _written_choice(target: Target, plan: Plan, measured: bool) -> Mapping[str, object] | None:
    """The choice by which a target's artifact is written: the most accurate one, but the first where they are
    to be measured and each has an artifact of its own; ``None`` where nothing is to be chosen."""
    choices = target.choices(plan)
    if not choices:
        return None
    return choices[0] if measured and _replaced(target, plan) else choices[-1]


@contextmanager
def _reference_worker(wanted: bool) -> Iterator[Worker | None]:
    """The process that holds transformers, if it is wanted: it imports it while the checkpoint is opened and
    converted."""
    if not wanted:
        yield None
        return
    from validation.reference.process import reference_worker

    with reference_worker() as worker:
        worker.start()
        yield worker


def _prepare(
    model: Model,
    settings: Mapping[str, Any],
    plans: Sequence[Plan],
    progress: Progress,
    worker: Worker | None,
) -> AbstractContextManager[Prepared]:
    from validation.settings import prepare, read_settings

    context = min((plan.context for plan in plans if plan.context is not None), default=None)
    return prepare(model.checkpoint, read_settings(settings), progress, context, worker)


def _settings(conversion: Conversion, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the validation, and whether matrices on no lattice are accepted."""
    from validation.settings import OFF_LATTICE

    targets = [find_target(name) for name in dict.fromkeys(conversion.targets)]
    return {**given, OFF_LATTICE: accepts_off_lattice(targets, conversion.options)}


@contextmanager
def _reference_ahead(
    prepared: Prepared | None, model: Model, digests: Digests, progress: Progress
) -> Iterator[Progress]:
    """Have the reference's logits computed while the block writes artifacts; gives the ``progress`` that the
    block is to use, since another thread has some too."""
    if prepared is None:
        yield progress
        return
    from validation.reference.ahead import computed_ahead

    lock = Lock()

    def one_by_one(stage: str, done: int, total: int) -> None:
        with lock:
            progress(stage, done, total)

    def source() -> dict[str, object]:
        return {"files": [entry["sha256"] for entry in digests.entries(model.checkpoint.path)]}

    with computed_ahead(prepared, source, model.check_unchanged, one_by_one):
        yield one_by_one


def _prove(
    prepared: Prepared | None,
    model: Model,
    pairs: Sequence[tuple[Target, Plan]],
    told: Mapping[str, Sequence[str]],
    digests: Digests,
    scratch: Path,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Mapping[str, object]]]:
    """The report of everything in ``scratch``, and the choice of each target that has several; if nothing is
    ``prepared``, nothing is run, and the choice is the most accurate one.

    What cannot be validated is told in its entry: it must neither look proven nor be lost.
    """
    entries: dict[str, dict[str, object]] = {}
    chosen: dict[str, Mapping[str, object]] = {}
    for target, plan in pairs:
        artifact, choices = scratch / plan.artifacts[0], target.choices(plan)
        choice = _written_choice(target, plan, prepared is not None)
        measured: dict[str, object] = {"passed": None}
        if prepared is not None:
            try:
                with tempfile.TemporaryDirectory(prefix=".others-", dir=scratch) as name:
                    others = Path(name)
                    proof = _measure(
                        prepared, model, plan, artifact, scratch, progress, digests, choices, others
                    )
                    measured, choice = proof.entry, proof.choice if choices else None
                    _take(proof.artifact, artifact, scratch, (*plan.artifacts, *plan.companions))
            except (QatconvertError, OSError, MemoryError) as error:
                measured = {"passed": False, "error": _reason(error)}
        if choice is not None:
            target.choose(artifact, choice)
            chosen[target.name] = choice
        entries[target.name] = {
            "artifact": plan.artifacts[0],
            "bytes": sum((scratch / name).stat().st_size for name in plan.artifacts),
            "bits_per_weight": round(plan.bits_per_weight, 4),
            **_needs(plan),
            **({"warnings": list(told[target.name])} if told[target.name] else {}),
            **measured,
        }
    return _assemble(model, prepared, entries), chosen


def _needs(plan: Plan) -> dict[str, object]:
    """What an artifact needs of whoever runs it: versions, and memory before the first token."""
    return {
        **({"requires": dict(plan.requires)} if plan.requires else {}),
        **({"kv_cache": asdict(plan.kv_cache)} if plan.kv_cache is not None else {}),
    }


def _take(chosen: Path, artifact: Path, scratch: Path, names: Sequence[str]) -> None:
    """Put the files of the artifact that was chosen in the place of those that were written at first, by
    their names below the directory of each."""
    if chosen == artifact:
        return
    directory = chosen.parents[len(Path(names[0]).parts) - 1]
    for name in names:
        os.replace(directory / name, scratch / name)


def _reason(error: Exception) -> str:
    """One line for the report, which names no directory of this machine."""
    from converter.system.child import without_directories

    text = "out of memory" if isinstance(error, MemoryError) else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return one_line(without_directories(text))


def _measure(
    prepared: Prepared,
    model: Model,
    plan: Plan,
    artifact: Path,
    scratch: Path | None,
    progress: Progress,
    digests: Digests,
    choices: Sequence[Mapping[str, object]] = (),
    others: Path | None = None,
) -> Proof:
    """The measured part of a target's entry. Temporary files lie in ``scratch``, where there is room for
    models, and are gone when this returns; artifacts of other choices than the first, in ``others``."""
    from validation.proof import prove

    files = digests.entries(model.checkpoint.path)
    return prove(
        prepared,
        plan.target,
        artifact,
        plan,
        choices=choices,
        source={"files": [entry["sha256"] for entry in files]},
        scratch=scratch,
        others=others,
        settle=digests.wait,
        unchanged=model.check_unchanged,
        progress=progress,
    )


def _assemble(
    model: Model, prepared: Prepared | None, entries: Mapping[str, Mapping[str, object]]
) -> dict[str, Any]:
    from validation.report.files import assemble

    reference = None
    if prepared is not None:
        from validation.settings import reference_entry

        reference = reference_entry(prepared)
    source = {**model.record(), "format": model.checkpoint.format}
    return assemble(model.source.name, source, reference, entries, model.checkpoint.parts_left_out())


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
    from validation.settings import OFF_LATTICE

    artifact = artifact_of(artifact)
    target = target_of(artifact)
    _check_validation([target.name], settings or {})
    if output_directory is not None:
        output.check_destination(output_directory, force)
    model = open_model(reference, offline=offline, progress=progress)
    if output_directory is not None:
        output.check_source(output_directory, model.checkpoint.files)
    with ExitStack() as stack:
        worker = stack.enter_context(_reference_worker(True))
        stored = target.describe(artifact, model.checkpoint)
        if model.source.note:
            warn(model.source.note)
        values = sum(weight.size for weight in model.checkpoint.weights.values())
        plan, options = _converted(target, artifact, model, progress)
        digests = stack.enter_context(closing(Digests()))
        digests.know(model.place.known())
        digests.add(model.checkpoint.files)
        accepted = {OFF_LATTICE: options.accepted, **(settings or {})}
        prepared = stack.enter_context(_prepare(model, accepted, [plan], progress, worker))
        _check_context([plan], prepared)
        scratch = None
        if output_directory is not None:
            work = f"validation of {printable(artifact.name)}"
            scratch = stack.enter_context(output.scratch_directory(output_directory, work))
            output.check_destination(output_directory, force)  # another run may have come before this one
        with model.unchanged():
            proof = _measure(prepared, model, plan, artifact, scratch, progress, digests)
        entry = {
            "artifact": printable(artifact.name),
            "bytes": sum(file.stat().st_size for file in target.files(artifact)),
            "bits_per_weight": round(8 * sum(tensor.bytes for tensor in stored.values()) / values, 4),
            **_needs(plan),
            "options": {"from": options.origin, **plan.options},
            **proof.entry,
        }
        report = _assemble(model, prepared, {target.name: entry})
        if output_directory is not None and scratch is not None:
            whole = _with_others(report, output_directory, digests.entries(model.checkpoint.path), warn)
            _publish_reports(whole, scratch, output_directory)
    return Outcome(output_directory, report, _passed(report))


@dataclass(frozen=True)
class _Recorded:
    """How an artifact was converted: ``values`` are the target's options, ``None`` if nothing tells them;
    ``accepted`` whether matrices on no lattice were accepted; ``origin`` where this is known from."""

    values: Mapping[str, object] | None
    accepted: bool
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

    output_directory = artifact.absolute().parent.parent
    content = output.earlier_manifest(output_directory)
    entry = _section(_section(content, "targets"), target.name)
    options = {**_section(entry, "options"), **_section(entry, "chosen")}
    if not options:
        return _Recorded(None, False, "artifact")
    accepted = _section(_section(content, "options"), "validation").get(OFF_LATTICE)
    return _Recorded(options, accepted is True, output.MANIFEST)


def _section(content: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _with_others(
    report: Mapping[str, Any],
    directory: Path,
    files: Sequence[Mapping[str, object]],
    warn: Callable[[str], None],
) -> Mapping[str, Any]:
    """``report`` of one target with what the report in ``directory`` says of others, if these lie there and
    are of the same checkpoint, whose ``files`` are given with their digests."""
    earlier = read_earlier(directory)
    if earlier is None:
        return report
    try:
        check_staying(earlier, list(report["targets"]), files)
    except DestinationError as error:
        warn(f"the new report has one target only: {error}")
        return report
    return with_earlier_report(earlier, report)


def _publish_reports(report: Mapping[str, Any], scratch: Path, directory: Path) -> None:
    """Put the reports beside what is in ``directory`` and renew the manifest that may be there."""
    from validation.report.files import write

    with closing(Digests()) as digests:
        write(scratch, report)
        digests.add(manifest.files_of(scratch))
        before = output.earlier_manifest(directory)
        if earlier := manifest.renewed(before, digests.entries(scratch)):
            manifest.write(scratch / output.MANIFEST, earlier)
        output.publish(scratch, directory, keep=True)


def _options(conversion: Conversion) -> dict[str, object]:
    """What was asked for, as the manifest records it beside each target's own options. Paths mean nothing
    elsewhere: a text is recorded by its digest, and where the cache lies is not."""
    if conversion.validation is None:
        return {"validation": None}
    settings = {key: value for key, value in conversion.validation.items() if key != "cache"}
    text = settings.get("text")
    recorded = {**settings, "text": sha256(text) if text else None}
    return {"validation": _settings(conversion, recorded)}


def _source_files(model: Model, digests: Digests) -> list[dict[str, object]]:
    """Every file of the checkpoint, and how it was compared with what the Hub lists: by its ``sha256``, by
    its blob id of ``git``, or (``None``: a directory, or a server without digests) not at all."""
    kinds = {name: check.kind for name, check in model.place.checks.items()}
    files = digests.entries(model.checkpoint.path)
    return [{**entry, "verified": kinds.get(str(entry["path"]))} for entry in files]


def _record(
    options: Mapping[str, object],
    model: Model,
    targets: Mapping[str, Mapping[str, object]],
    report: Mapping[str, Any],
    digests: Digests,
    scratch: Path,
    earlier: Earlier | None,
) -> None:
    """Write the reports and, last, the manifest of all that lies in ``scratch`` and of what stays."""
    from validation.report.files import write

    write(scratch, report)
    digests.add(manifest.files_of(scratch))
    content = manifest.build(
        options,
        model.checkpoint,
        model.record(),
        _source_files(model, digests),
        targets,
        digests.entries(scratch),
    )
    if earlier is not None:
        content = with_earlier_manifest(earlier, content)
    manifest.write(scratch / output.MANIFEST, content)
