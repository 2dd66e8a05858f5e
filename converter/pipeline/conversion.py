"""From a model's name to proven artifacts: written, measured, chosen, recorded and published."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from typing import Any, Final

from converter.errors import QatconvertError
from converter.names import resolve
from converter.pipeline import manifest
from converter.pipeline.command import convert_command
from converter.pipeline.destination import check_destination, check_room
from converter.pipeline.earlier import check_staying, with_earlier_report
from converter.pipeline.opening import examined_place, local_place, open_place, opening
from converter.pipeline.proving import (
    Proving,
    check_validation,
    prepared_for,
    prove,
    reference_ahead,
    reference_process,
)
from converter.pipeline.recording import record, report_of, stored_beside_text
from converter.pipeline.running import Conversion, Outcome, Running, all_passed
from converter.pipeline.writing import write
from converter.system import output
from converter.system.digests import Digests
from converter.system.progress import Progress, begin, no_progress
from targets.target import Plan, Target, check_installed, check_known, check_options, find_target, planning
from targets.trying import try_lines

__all__ = ["Conversion", "Outcome", "convert"]

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")


def convert(
    conversion: Conversion, progress: Progress = no_progress, warn: Callable[[str], None] = print
) -> Outcome:
    """Write, prove and publish the artifacts of every target; nothing is left behind on an error.

    ``warn`` gets one line for each warning. Raises a ``QatconvertError``.
    """
    names = list(dict.fromkeys(conversion.targets))
    check_known(names)
    source, destination = resolve(conversion.model), conversion.destination
    begin(progress, opening(source))
    output.settle(destination, f"conversion of {conversion.model}")
    check_destination(destination, names, conversion.force)
    with closing(Digests()) as digests:
        # Digests take as long as the conversion itself, so they begin before all else, the import of what
        # compiles included.
        place = local_place(source)
        if place is not None:
            digests.add(place.shard_files())
        targets = usable_targets(names, conversion)
        if place is None:
            place = examined_place(source, conversion.offline, targets, conversion.options, progress)
            digests.know(place.known())
            digests.add(place.shard_files())
        with nullcontext() if conversion.validation is None else reference_process() as worker:
            model = open_place(place, progress)
            digests.add(model.checkpoint.files)
            return _convert(Running(conversion, model, targets, destination, digests, worker, progress, warn))


def usable_targets(names: Sequence[str], conversion: Conversion) -> list[Target]:
    """The targets of these names. Raises ``UsageError`` for options or a validation that they do not take,
    and for packages that are not installed."""
    targets = [find_target(name) for name in names]
    check_options(targets, conversion.options)
    check_installed(targets)
    for target in targets:
        target.check(conversion.options)
    if conversion.validation is not None:
        check_validation(names, conversion.validation)
    return targets


def _convert(run: Running) -> Outcome:
    """The conversion of an opened model."""
    model, settings = run.model, run.settings
    with model.unchanged():
        plans = [_plan(run, target) for target in run.targets]
    _warn(run, plans)
    check_room(run, plans)
    with ExitStack() as stack:
        proving = None
        if settings is not None:
            # before anything is written: options that mean nothing must not cost a conversion
            prepared = stack.enter_context(prepared_for(model, settings, plans, run.worker, run.progress))
            proving = Proving(prepared, model, run.digests, run.progress)
        work = f"conversion of {model.source.name}"
        scratch = stack.enter_context(output.scratch_directory(run.destination, work))
        # once more, now that nobody else can write: another run may have come before this one
        earlier = check_destination(run.destination, run.names, run.request.force)
        if earlier is not None:
            check_staying(earlier, run.names, model.checkpoint.source.entries(run.digests))
        ahead = nullcontext(run.progress) if proving is None else reference_ahead(proving)
        with model.unchanged(), ahead as progress:
            made = write(run, plans, scratch, progress, measured=proving is not None)
        changing = set().union(*(one.changing for one in made))
        run.digests.add(path for path in manifest.files_of(scratch) if path not in changing)
        with model.unchanged():  # the last of it is read here, by children too
            proven = [prove(proving, one) for one in made]
            entries = {one.target: one.entry for one in proven}
            begin(run.progress, "writing the report")
            report = report_of(
                model,
                None if proving is None else proving.prepared,
                entries,
                plans,
                convert_command(run.request, model),
            )
            whole = report if earlier is None else with_earlier_report(earlier, report)
            record(run, made, proven, whole, earlier, scratch)
        output.publish(scratch, run.destination, force=run.request.force)
        _LOG.info("published as %s", run.destination.absolute())
    errors = [*_errors(report), *_deliver(run, plans, report)]
    tried = [
        line
        for target, plan in zip(run.targets, plans, strict=True)
        for line in try_lines(target, plan, run.destination)
    ]
    return Outcome(run.destination, whole, all_passed(report), errors, tried)


def _plan(run: Running, target: Target) -> Plan:
    begin(run.progress, planning(target))
    plan = target.plan(run.model.checkpoint, run.model.source.name, run.options, run.progress)
    bits = plan.bits_per_weight
    _LOG.info("%s: %s, %.2f bits per weight; options %s", target.name, plan.artifacts, bits, plan.options)
    return plan


def _warn(run: Running, plans: Sequence[Plan]) -> None:
    """Tell what the plans warn of, and what is left out."""
    notes = [run.model.source.note] if run.model.source.note else []
    for warning in dict.fromkeys([*notes, *(line for plan in plans for line in plan.warnings)]):
        run.warn(warning)
    if parts := run.model.checkpoint.parts_left_out(stored_beside_text(plans)):
        from validation.report.texts import left_out_text

        run.warn(f"left out: {left_out_text(parts)}")


def _errors(report: Mapping[str, Any]) -> list[str]:
    """A line for each artifact that could not be validated."""
    return [
        f"{entry['artifact']} could not be validated: {entry['error']}"
        for entry in report["targets"].values()
        if "error" in entry
    ]


def _deliver(run: Running, plans: Sequence[Plan], report: Mapping[str, Any]) -> list[str]:
    """Have each target lay out elsewhere what it was asked to, and say what failed. What is written and
    proven stays."""
    errors = []
    for target, plan in zip(run.targets, plans, strict=True):
        passed = report["targets"][target.name]["passed"] is not False
        try:
            for warning in target.deliver(plan, run.destination, run.options, passed, run.progress):
                run.warn(warning)
        except QatconvertError as error:
            errors.append(str(error))
    return errors
