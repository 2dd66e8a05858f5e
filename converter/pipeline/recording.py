"""Reports and manifest of a conversion: what was asked for, read, written and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import DestinationError
from converter.filenames import MANIFEST
from converter.pipeline import manifest
from converter.pipeline.earlier import (
    Earlier,
    check_staying,
    read_earlier,
    with_earlier_manifest,
    with_earlier_report,
)
from converter.pipeline.opening import Model
from converter.pipeline.proving import Proven
from converter.pipeline.running import Running
from converter.pipeline.writing import Written
from converter.system import output
from converter.system.digests import Digests
from targets.target import Plan

if TYPE_CHECKING:
    from validation.settings import Prepared


def report_of(
    model: Model,
    prepared: Prepared | None,
    entries: Mapping[str, Mapping[str, object]],
    plans: Sequence[Plan],
    command: str,
) -> dict[str, Any]:
    """The content of report.json with the ``entries`` of targets, which ``command`` makes again; nothing was
    validated if nothing is ``prepared``.

    What none of ``plans`` has a place for is left out. A target that has less than the others of the run says
    so in its entry.
    """
    from validation.report.files import assemble

    reference = None
    if prepared is not None:
        from validation.settings import reference_entry

        reference = reference_entry(prepared)
    left_out = model.checkpoint.parts_left_out(stored_beside_text(plans))
    whole = {plan.target: {**entries[plan.target], **_left_out_alone(model, plan, plans)} for plan in plans}
    return assemble(model.source.name, model.described(), reference, whole, left_out, command)


def stored_beside_text(plans: Sequence[Plan]) -> frozenset[str]:
    """Names of the weights beside the text model for which one of ``plans`` has a place."""
    return frozenset().union(*(plan.beside_text for plan in plans))


def _left_out_alone(model: Model, plan: Plan, plans: Sequence[Plan]) -> dict[str, object]:
    """For a target's entry, what it leaves out that another target of the run has a place for."""
    checkpoint, others = model.checkpoint, stored_beside_text(plans) - plan.beside_text
    kept = {item.weight for item in checkpoint.left_out} - others
    parts = checkpoint.parts_left_out(kept)
    return {"left_out": parts} if parts else {}


def record(
    run: Running,
    made: Sequence[Written],
    proven: Sequence[Proven],
    report: Mapping[str, Any],
    earlier: Earlier | None,
    scratch: Path,
) -> None:
    """Write the reports and, last, the manifest of all that lies in ``scratch`` and of what stays."""
    from validation.report.files import write

    stored = {one.plan.target: {**one.plan.as_dict(), "files": list(one.files)} for one in made}
    for one in proven:
        if one.choice is not None:
            stored[one.target]["chosen"] = dict(one.choice)
    write(scratch, report)
    run.digests.add(manifest.files_of(scratch))
    checkpoint, beside = run.model.checkpoint, stored_beside_text([one.plan for one in made])
    content = manifest.build(
        _options(run),
        _source(run),
        stored,
        [item for item in checkpoint.left_out if item.weight not in beside],
        run.digests.entries(scratch),
        _runtimes(run),
    )
    if earlier is not None:
        content = with_earlier_manifest(earlier, content)
    manifest.write(scratch / MANIFEST, content)


def _runtimes(run: Running) -> list[str]:
    """Distributions of the runtimes that the artifacts are run in."""
    if run.settings is None:
        return []
    from validation.settings import read_settings

    chosen = read_settings(run.settings)
    return [library for target in run.targets for library in chosen.runner(target.name).libraries]


def _options(run: Running) -> dict[str, object]:
    """What was asked for, as the manifest records it beside each target's own options."""
    if run.settings is None:
        return {"validation": None}
    from validation.settings import recordable

    return {"validation": recordable({"text": None, **run.settings})}


def _source(run: Running) -> dict[str, object]:
    """What was read, as the manifest records it."""
    files = _source_files(run.model, run.digests)
    card = run.model.checkpoint.card.as_dict()
    return {
        **run.model.record(),
        "format": run.model.checkpoint.form.name,
        **({"card": card} if card else {}),
        "files": files,
    }


def _source_files(model: Model, digests: Digests) -> list[dict[str, object]]:
    """Every file of the checkpoint, and how it was compared with what the Hub lists: by its ``sha256``, by
    its blob id of ``git``, or not at all. The last is ``None``, for a directory or a server without
    digests."""
    kinds = {name: check.kind for name, check in model.place.checks.items()}
    files = model.checkpoint.source.entries(digests)
    return [{**entry, "verified": kinds.get(str(entry["path"]))} for entry in files]


def publish_reports(
    report: Mapping[str, Any],
    files: Sequence[Mapping[str, object]],
    scratch: Path,
    directory: Path,
    warn: Callable[[str], None],
) -> None:
    """Put the reports of one target beside what is in ``directory`` and renew the manifest that may be there.
    ``files`` are those of the checkpoint with their digests."""
    from validation.report.files import write

    whole = _with_others(report, directory, files, warn)
    with closing(Digests()) as digests:
        write(scratch, whole)
        digests.add(manifest.files_of(scratch))
        before = output.earlier_manifest(directory)
        if earlier := manifest.renewed(before, digests.entries(scratch)):
            manifest.write(scratch / MANIFEST, earlier)
        output.publish(scratch, directory, keep=True)


def _with_others(
    report: Mapping[str, Any],
    directory: Path,
    files: Sequence[Mapping[str, object]],
    warn: Callable[[str], None],
) -> Mapping[str, Any]:
    """``report`` of one target with what the report in ``directory`` says of others, if these lie there and
    are of the same checkpoint."""
    earlier = read_earlier(directory)
    if earlier is None:
        return report
    try:
        check_staying(earlier, list(report["targets"]), files)
    except DestinationError as error:
        warn(f"the new report has one target only: {error}")
        return report
    return with_earlier_report(earlier, report)
