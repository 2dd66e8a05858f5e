"""Proof of an artifact: its weights against the checkpoint, its logits in its runtime against a reference."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.opened import Checkpoint
from converter.system.progress import Progress, begin, no_progress
from targets.target import Plan, find_target
from validation import choice as choosing
from validation import gates
from validation.as_built import compare_as_built
from validation.baseline import write_naive_q4_0
from validation.choice import Trial
from validation.exactness import measure
from validation.grids import grids_entry
from validation.logits import map_logits
from validation.parts import measure_parts
from validation.reference.ahead import Identity, identity_of, logits_of
from validation.reference.source import gridded_modules
from validation.report.entries import logits_entry, weights_entry
from validation.runners import runtime_of
from validation.running import Bench, compare_logits, run
from validation.same_weights import own_weights, same_weights_entry
from validation.settings import Prepared, prepare, read_settings, reference_entry
from validation.subject import read_subject
from validation.text_side import measure_text_side
from validation.unrounded import measure_graph
from validation.ways import try_ways

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")


@dataclass(frozen=True, slots=True)
class Proof:
    """What is proven of an artifact."""

    #: The target's entry of report.json without ``artifact``, ``bytes`` and ``bits_per_weight``.
    entry: dict[str, Any]
    #: The way to run the artifact that the entry is about.
    choice: Mapping[str, object]
    #: The main file of the artifact: the one that was given, or another that the choice took.
    artifact: Path


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact that is to be proven."""

    #: Its main file; of a split GGUF, the first.
    path: Path
    #: How it is to be, which also says whose target it is.
    plan: Plan
    #: Ways to run it, of the target's ``choices``: ``path`` is what the first one takes. Each is measured and
    #: judged, and ``choice.best`` says which one the proof is about. Without any, the artifact is run as it
    #: was written.
    choices: Sequence[Mapping[str, object]] = ()
    #: The directory below which the artifacts of other choices are written, in order, until one passes.
    #: ``None`` for one that is gone at the end.
    others: Path | None = None


def validate(
    checkpoint: Checkpoint,
    target: str,
    artifact: Path,
    *,
    plan: Plan | None = None,
    scratch: Path | None = None,
    progress: Progress = no_progress,
    **settings: Any,
) -> dict[str, Any]:
    """``prepare`` and ``prove`` in one. ``settings`` is what ``read_settings`` takes.

    Returns ``{"entry": ..., "reference": ...}``, the target's entry and the reference of report.json.
    """
    chosen = read_settings(settings)
    chosen.runner(target)  # what it lacks shows before any work
    with prepare(checkpoint, chosen, progress) as prepared:
        proof = prove(
            prepared,
            Artifact(artifact, plan or inferred_plan(target, artifact, checkpoint, progress)),
            scratch=scratch,
            progress=progress,
        )
        return {"entry": proof.entry, "reference": reference_entry(prepared)}


def inferred_plan(
    target: str,
    artifact: Path,
    checkpoint: Checkpoint,
    progress: Progress = no_progress,
    options: Mapping[str, object] | None = None,
) -> Plan:
    """How an artifact is to be if it was converted by ``options``, by default those that it shows itself.

    Raises ``CheckpointError`` for a damaged artifact, ``TargetError`` and ``UsageError`` where the target
    could not have written it.
    """
    writer = find_target(target)
    chosen = dict(writer.infer_options(artifact, checkpoint) if options is None else options)
    name = str(chosen.pop("name", None) or artifact.name.removesuffix(writer.suffix))
    return writer.plan(checkpoint, name, chosen, progress)


def prove(
    prepared: Prepared,
    artifact: Artifact,
    *,
    identity: Identity | None = None,
    scratch: Path | None = None,
    settle: Callable[[], object] = lambda: None,
    progress: Progress = no_progress,
) -> Proof:
    """Measure an artifact and judge it by the gates. A gate that fails is a result.

    ``identity`` finds the checkpoint's reference logits in the cache. Without it, files are hashed.
    ``settle`` is called before the runtime is: whoever has other work going on waits for its end there, since
    speed is measured. Temporary files go to a directory in ``scratch`` that is gone at the end (default:
    where ``TMPDIR`` says). Raises ``ValidationError`` for what cannot be run or measured.
    """
    settings, target = prepared.settings, artifact.plan.target
    writer, runner = find_target(target), settings.runner(target)
    with tempfile.TemporaryDirectory(prefix=".validation-", dir=scratch) as name:
        identity = identity or identity_of(prepared.checkpoint, progress)
        reference = logits_of(prepared, identity, Path(name), progress)
        gridded = None
        if gridded_modules(prepared.checkpoint):
            gridded = logits_of(prepared, identity, Path(name), progress, grids=True)
        bench = Bench(prepared, writer, runner, reference, Path(name), progress, gridded)
        if gridded is not None:
            bench = replace(bench, grids_alone=compare_logits(bench, gridded, reference))
        begin(progress, "hashing files")
        settle()
        proof, plan, way = _prove(bench, artifact)
        proof.entry["runtime"]["runner"] = runtime_of(target, settings.runtimes.get(target))
        if settings.baseline is not None:
            measured = _measure_baseline(bench, plan, way)
            proof.entry["baseline"] = {"name": settings.baseline, **measured}
    return proof


def _prove(bench: Bench, artifact: Artifact) -> tuple[Proof, Plan, Mapping[str, object]]:
    """The artifact's entry of the report, in the best way to run it. With it come the plan by which it is
    written, and the way in which it was run, for another that must be run in the same."""
    plan, choices = artifact.plan, artifact.choices
    first = bench.target.written(plan, choices[0]) if choices else plan
    given = read_subject(bench.target, bench.checkpoint, artifact.path, first, bench.progress)
    plans = [bench.target.written(plan, choice) for choice in choices] or [plan]
    own = own_weights(bench, given.stored, plans)  # first: limits may go by what each way loses beside them
    tried = try_ways(bench, given, choices, own, artifact.others or bench.scratch)
    trials = [trial for trial in tried if isinstance(trial, Trial)]
    chosen = choosing.best(trials)
    subject = chosen.subject
    own_of = own if isinstance(own, str) else own.under(subject.plan)
    built = compare_as_built(bench, subject.artifact, subject.plan)
    graph = measure_graph(bench, subject, own, trials)
    text = measure_text_side(bench, subject, chosen.limits)
    parts = measure_parts(bench, subject)
    judged = (*chosen.gates, graph.gate, *built.gates, *text.gates)
    for gate in judged:
        verdict = {True: "passed", False: "failed", None: "did not run"}[gate.passed]
        told = (bench.target.name, gate.name, verdict, gate.value, gate.limit, gate.note)
        _LOG.info("%s: gate %s %s: %s, limit %s %s", *told)
    entry = {
        "passed": gates.verdict((*judged, *(gate for part in parts for gate in part.gates))),
        "weights": weights_entry(subject.weights),
        "logits": logits_entry(chosen.metrics),
        "runtime": {
            "name": chosen.runtime.name,
            "version": chosen.runtime.version,
            **chosen.runtime.settings,
            **chosen.choice,
            **same_weights_entry(bench, own_of, chosen.same_weights),
            **({} if graph.entry is None else {"graph": graph.entry}),
            **({} if text.engine is None else {"engine": text.engine}),
        },
        **grids_entry(bench, subject.plan, chosen.output),
        "gates": [gate.entry() for gate in judged],
        **built.entry,
        **({"parts": {part.name: part.entry() for part in parts}} if parts else {}),
    }
    if len(tried) > 1:
        entry["alternatives"] = choosing.alternatives(tried, chosen)
    way = chosen.choice or chosen.runtime.way
    return Proof(entry, chosen.choice, subject.artifact), subject.plan, way


def _measure_baseline(bench: Bench, plan: Plan, choice: Mapping[str, object]) -> dict[str, Any]:
    """Weights and logits of the naive requantisation, written by the options of ``plan`` and run in the same
    way."""
    with bench.directory() as directory:
        naive = write_naive_q4_0(
            bench.target.name,
            bench.checkpoint,
            Path(directory),
            plan.options,
            bench.stage(f"writing the baseline ({bench.target.name})"),
        )
        stored = bench.target.describe(naive, bench.checkpoint)
        weights = measure(
            bench.checkpoint, stored, bench.stage(f"checking weights ({bench.target.name}, baseline)")
        )
        output, _ = run(bench, naive, f"running {bench.runner.name} (baseline)", choice)
        logits = map_logits(output, bench.tokens.positions)
        metrics = compare_logits(bench, bench.reference_for(plan), logits)
    return {"weights": weights_entry(weights), "logits": logits_entry(metrics)}
