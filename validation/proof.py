"""Proof of an artifact: its weights against the checkpoint, its logits in its runtime against a reference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.excerpt import find_excerpt
from converter.checkpoint.opened import Checkpoint
from converter.errors import CheckpointError, DestinationError, TargetError, UsageError, ValidationError
from targets.target import Plan, StoredTensor, check_installed, find_target
from validation import baseline as baselines
from validation import choice as choosing
from validation import gates, unrounded
from validation import limits as limiting
from validation.as_built import Built, built
from validation.choice import Refusal, Trial
from validation.engine import measure_engine, scored_positions
from validation.exactness import WeightExactness, measure
from validation.excerpt import cut_checkpoint, cut_tensors
from validation.gates import Gate, judge, judge_engine, not_run, noted
from validation.limits import ANSWERS, DECODE, GRAPH, Limits, OwnLoss
from validation.logits import map_logits, next_tokens
from validation.metrics import LogitMetrics, compare
from validation.own_weights import disk_shortage, write_checkpoint
from validation.reference.ahead import logits_of
from validation.reference.logits import Model, OwnLogits, own_logits
from validation.report.entries import logits_entry, number, weights_entry
from validation.room import Room
from validation.runners import AS_IT_IS, Engine, Runner, Runtime, TextRuntime, runtime_of
from validation.settings import Prepared, Progress, prepare, read_settings, reference_entry, stage_of
from validation.subject import Subject, read_subject, subject_of
from validation.text import Tokens
from validation.tokenization import read_text_side

#: Relative error of a tensor that is the checkpoint's but for the rounding of its type: bfloat16 of codes
#: times scales has 0.002, Q8_0 0.007, rounding to four bits 0.07 and more.
_ROUNDED = 0.01
#: How often speeds are measured again before they may decide against the preferred way.
_TURNS = 2


@dataclass(frozen=True, slots=True)
class Proof:
    """``entry`` is the target's entry of report.json without ``artifact``, ``bytes`` and ``bits_per_weight``,
    ``choice`` the way to run the artifact that it is about, ``artifact`` its main file: the one that was
    given, or another that the choice took."""

    entry: dict[str, Any]
    choice: Mapping[str, object]
    artifact: Path


def validate(
    checkpoint: Checkpoint,
    target: str,
    artifact: Path,
    *,
    plan: Plan | None = None,
    source: Mapping[str, object] | None = None,
    scratch: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    **settings: Any,
) -> dict[str, Any]:
    """``prepare`` and ``prove`` in one; ``settings`` is what ``read_settings`` takes.

    Returns ``{"entry": ..., "reference": ...}``, the target's entry and the reference of report.json.
    """
    chosen = read_settings(settings)
    chosen.runner(target)  # what it lacks shows before any work
    with prepare(checkpoint, chosen, progress) as prepared:
        proof = prove(
            prepared,
            target,
            artifact,
            plan or inferred_plan(target, artifact, checkpoint, progress),
            source=source,
            scratch=scratch,
            progress=progress,
        )
        return {"entry": proof.entry, "reference": reference_entry(prepared)}


def inferred_plan(
    target: str,
    artifact: Path,
    checkpoint: Checkpoint,
    progress: Progress = lambda stage, done, total: None,
    options: Mapping[str, object] | None = None,
) -> Plan:
    """How an artifact is to be if it was converted by ``options``, by default those that it shows itself.

    Raises ``CheckpointError`` for a damaged artifact, ``TargetError`` and ``UsageError`` where the target
    could not have written it.
    """
    format = find_target(target)
    chosen = dict(format.infer_options(artifact, checkpoint) if options is None else options)
    name = str(chosen.pop("name", None) or artifact.name.removesuffix(format.suffix))
    return format.plan(checkpoint, name, chosen, progress)


def prove(
    prepared: Prepared,
    target: str,
    artifact: Path,
    plan: Plan,
    *,
    choices: Sequence[Mapping[str, object]] = (),
    source: Mapping[str, object] | None = None,
    scratch: Path | None = None,
    others: Path | None = None,
    settle: Callable[[], object] = lambda: None,
    unchanged: Callable[[], object] = lambda: None,
    progress: Progress = lambda stage, done, total: None,
) -> Proof:
    """Measure ``artifact`` (a path; the first file of a split GGUF) and judge it by the gates; a gate that
    fails is a result.

    ``plan`` is how it is to be. With ``choices`` (the target's), each is measured and judged, and
    ``choice.best`` says which one the proof is about; without, the artifact is run as it was written. Where a
    choice takes an artifact of its own, ``artifact`` is that of the first, the others are written below the
    directory ``others`` (default: one that is gone at the end), in order, until one passes.
    ``settle`` is called before the runtime is: whoever has other work going on waits for its end there, since
    speed is measured.

    ``source`` identifies the checkpoint for the cache of reference logits: a mapping with the digests of its
    ``files``; otherwise they are hashed. A commit does not, as files can be damaged. ``unchanged`` raises if
    a file is not what was hashed any more: logits that were computed of it are not kept. Temporary files go
    to a directory in ``scratch`` that is gone at the end (default: where ``TMPDIR`` says). Raises
    ``ValidationError`` for what cannot be run or measured.
    """
    settings, runner = prepared.settings, prepared.settings.runner(target)
    with tempfile.TemporaryDirectory(prefix=".validation-", dir=scratch) as name:
        reference = logits_of(prepared, source, Path(name), unchanged, progress)
        bench = _Bench(prepared, target, runner, reference, Path(name), others or Path(name), progress)
        settle()
        proof, options = bench.measure(artifact, plan, choices)
        proof.entry["runtime"]["runner"] = runtime_of(target, settings.runtimes.get(target))
        if settings.baseline is not None:
            measured = bench.measure_baseline(options, _way(proof))
            proof.entry["baseline"] = {"name": settings.baseline, **measured}
    return proof


@dataclass(frozen=True, slots=True)
class _Own:
    """Logits of the artifact's own weights as they were ``made``, and their ``metrics`` beside the reference:
    what the weights alone cost."""

    made: OwnLogits
    metrics: LogitMetrics


@dataclass(frozen=True, slots=True)
class _Bench:
    """What an artifact and its baseline are measured with, the same for both."""

    prepared: Prepared
    target: str
    runner: Runner
    reference: NDArray[np.float32]
    scratch: Path
    others: Path
    progress: Progress

    @property
    def checkpoint(self) -> Checkpoint:
        return self.prepared.checkpoint

    @property
    def tokens(self) -> Tokens:
        return self.prepared.tokens

    @property
    def limits(self) -> Limits:
        """Of the gates, for this model in this runtime if it predicts the text."""
        return limiting.absolute(
            self.prepared.settings.gates,
            experts=self.checkpoint.architecture.experts is not None,
            allowances=self.runner.allowances,
            own=self.prepared.evaluation.limits.get(self.target, {}),
            off_lattice=self.prepared.settings.off_lattice,
        )

    def measure(
        self, artifact: Path, plan: Plan, choices: Sequence[Mapping[str, object]]
    ) -> tuple[Proof, Mapping[str, object]]:
        """The artifact's entry of the report, in the best way to run it, and the options by which it is
        written."""
        target = find_target(self.target)
        first = target.written(plan, choices[0]) if choices else plan
        given = read_subject(target, self.checkpoint, artifact, first, self.progress)
        own = self._own_logits(given.stored)  # first, since limits may go by what each way loses beside them
        tried = self._timed_again(self._try_all(given, choices or (AS_IT_IS,), own))
        trials = [trial for trial in tried if isinstance(trial, Trial)]
        chosen = choosing.best(trials)
        runtime, subject = chosen.runtime, chosen.subject
        artifact = subject.artifact
        described: dict[str, Any] = {"name": runtime.name, "version": runtime.version, **runtime.settings}
        described |= chosen.choice
        built = self._as_built(artifact, subject.plan)
        described |= self._same_weights(own, chosen)
        graph = self._graph(artifact, subject.stored, own, trials, described)
        judged = (*chosen.gates, graph, *built.gates)
        if self.runner.engine is not None and self.runner.engine.takes(artifact):
            described["engine"] = self._engine(self.runner.engine, artifact)
            judged = (*judged, *self._judge_engine(chosen.limits, described["engine"]))
        elif self.runner.text is not None and self.runner.text.takes(artifact):
            judged = (*judged, *self._text_side(self.runner.text, artifact, described))
        entry = {
            "passed": gates.verdict(judged),
            "weights": weights_entry(subject.weights),
            "logits": logits_entry(chosen.metrics),
            "runtime": described,
            "gates": [gate.entry() for gate in judged],
            **built.entry,
        }
        if len(tried) > 1:
            entry["alternatives"] = choosing.alternatives(tried, chosen)
        return Proof(entry, chosen.choice, artifact), subject.plan.options

    def _as_built(self, artifact: Path, plan: Plan) -> Built:
        """What differs from what the converter makes; a gate unless the artifact is another tool's."""
        settings, target = self.prepared.settings, find_target(self.target)
        try:
            check_installed([target])
        except UsageError as error:  # it takes the target's own libraries to build anything
            missing = not_run(gates.SAME_AS_BUILT, 0, str(error), settings.allow_unrun)
            return Built(() if settings.foreign else (missing,), {"foreign": settings.foreign})
        return built(
            target.differences(artifact, self.checkpoint, plan, self.progress), foreign=settings.foreign
        )

    def _try_all(
        self,
        given: Subject,
        choices: Sequence[Mapping[str, object]],
        own: _Own | str,
    ) -> list[Trial | Refusal]:
        """Every choice in order; where they have artifacts of their own, up to the first that passes. Raises
        the first error if the runtime refuses them all."""
        tried: list[Trial | Refusal] = []
        errors = []
        for turn, choice in enumerate(choices):
            suffix = "".join(f" {name} {value}" for name, value in choice.items()) if len(choices) > 1 else ""
            try:
                subject = self._subject(given, choice, self.others / str(turn)) if turn else given
                trial = self._try(subject, choice, own, suffix.replace("_", " "))
            except ValidationError as error:
                tried.append(Refusal(choice, str(error)))
                errors.append(error)
                continue
            tried.append(trial)
            if trial.passed and self._costs_an_artifact(given, choices[turn + 1 :]):
                break
        if len(errors) == len(tried):
            raise errors[0]
        return choosing.with_lost_cache(tried)

    def _subject(self, given: Subject, choice: Mapping[str, object], directory: Path) -> Subject:
        """What runs as ``choice``. Raises ``ValidationError`` if it cannot be written."""
        directory.mkdir()
        target = find_target(self.target)
        try:
            return subject_of(target, self.checkpoint, choice, given, directory, self.progress)
        except (DestinationError, TargetError) as error:  # what was measured before is not lost
            raise ValidationError(str(error)) from error

    def _costs_an_artifact(self, given: Subject, choices: Sequence[Mapping[str, object]]) -> bool:
        """Whether one of ``choices`` would have to be written first."""
        target = find_target(self.target)
        return any(target.written(given.plan, choice) != given.plan for choice in choices)

    def _timed_again(self, tried: Sequence[Trial | Refusal]) -> Sequence[Trial | Refusal]:
        """``tried``, with more runs in turn as long as speed alone decides against the preferred way."""
        for _ in range(_TURNS):
            if not choosing.surprising([trial for trial in tried if isinstance(trial, Trial)]):
                break
            tried = [
                replace(trial, again=(*trial.again, self._timed(trial.subject.artifact, trial.choice)))
                if isinstance(trial, Trial) and trial.passed
                else trial
                for trial in tried
            ]
        return tried

    def _timed(self, artifact: Path, choice: Mapping[str, object]) -> Runtime:
        output, runtime = self._run(artifact, "runtime again", choice)
        output.unlink()
        return runtime

    def _try(
        self,
        subject: Subject,
        choice: Mapping[str, object],
        own: _Own | str,
        suffix: str,
    ) -> Trial:
        output, runtime = self._run(subject.artifact, f"runtime{suffix}", choice)
        logits = map_logits(output, self.tokens.positions)
        metrics = self._compare(self.reference, logits, f"metrics{suffix}")
        loss: OwnLoss | str = (
            own if isinstance(own, str) else self._own_loss(own, subject.weights, logits, suffix)
        )
        limits = limiting.in_force(self.limits, metrics.ppl_reference, self.reference.shape[1], loss)
        decode = runtime.settings.get("decode")
        judged = judge(
            limits.values,
            subject.weights,
            metrics,
            decode if isinstance(decode, Mapping) else None,
            rounded=choosing.rounds(runtime),
        )
        lacking = [name for name in limits.lacking if name not in ANSWERS and (decode or name not in DECODE)]
        judged = self._noted(limits, judged, lacking)
        same = None if isinstance(loss, str) else loss.same_weights
        return Trial(choice, subject, runtime, output, metrics, same, limits, judged)

    def _own_loss(
        self, own: _Own, weights: WeightExactness, logits: NDArray[np.float32], suffix: str
    ) -> OwnLoss:
        same = self._compare(own.made.logits, logits, f"same weights metrics{suffix}")
        right = all(not tensor.wrong and tensor.rms_error <= _ROUNDED for tensor in weights.tensors)
        return OwnLoss(same, own.metrics if right else None, scored_positions(self.prepared))

    def _noted(self, limits: Limits, judged: Sequence[Gate], lacking: Sequence[str]) -> tuple[Gate, ...]:
        """The gates ``judged``, with what there is to say of their limits, and those that have none."""
        allowed = self.prepared.settings.allow_unrun
        unrun = [not_run(name, None, limits.lacking[name], allowed) for name in lacking]
        return (*noted(judged, limits.notes), *unrun)

    def _judge_engine(self, limits: Limits, engine: Mapping[str, Any]) -> tuple[Gate, ...]:
        return self._noted(
            limits,
            judge_engine(limits.values, engine),
            [name for name in limits.lacking if name in ANSWERS and "greedy" in engine],
        )

    def measure_baseline(self, options: Mapping[str, object], choice: Mapping[str, object]) -> dict[str, Any]:
        """Weights and logits of the naive requantisation, written by ``options`` and run in the same way."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as directory:
            naive = baselines.write_naive_q4_0(
                self.target,
                self.checkpoint,
                Path(directory),
                options,
                stage_of(self.progress, "baseline"),
            )
            stored = find_target(self.target).describe(naive, self.checkpoint)
            weights = measure(self.checkpoint, stored, stage_of(self.progress, "baseline weights"))
            output, _ = self._run(naive, "baseline runtime", choice)
            logits = map_logits(output, self.tokens.positions)
            metrics = self._compare(self.reference, logits, "baseline metrics")
        return {"weights": weights_entry(weights), "logits": logits_entry(metrics)}

    def _run(
        self,
        artifact: Path,
        stage: str,
        choice: Mapping[str, object] = AS_IT_IS,
        tokens: Tokens | None = None,
    ) -> tuple[Path, Runtime]:
        tokens = tokens or self.tokens
        output = self.scratch / f"{stage.replace(' ', '-')}.npy"
        runtime = self.runner.logits(
            artifact,
            tokens.sequences,
            self.reference.shape[1],
            output,
            stage_of(self.progress, stage),
            choice=choice,
            firsts=tokens.firsts,
        )
        return output, runtime

    def _compare(
        self,
        reference: NDArray[np.float32],
        logits: NDArray[np.float32],
        stage: str,
        tokens: Tokens | None = None,
    ) -> LogitMetrics:
        tokens = tokens or self.tokens
        following = next_tokens(tokens.sequences, tokens.firsts)
        return compare(reference, logits, following, stage_of(self.progress, stage))

    def _engine(self, engine: Engine, artifact: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            return measure_engine(self.prepared, engine, artifact, self.reference, Path(name), self.progress)

    def _text_side(self, runtime: TextRuntime, artifact: Path, described: dict[str, Any]) -> tuple[Gate, ...]:
        """The gates of the runtime's text side; what it found goes to ``described``. An artifact that it
        cannot read fails them: the logits say what they say."""
        if missing := runtime.missing():
            return gates.text_not_run(self.limits.values, missing, self.prepared.settings.allow_unrun)
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            try:
                found = read_text_side(self.prepared, runtime, artifact, Path(name), self.progress)
            except ValidationError as error:
                return gates.fail_text(self.limits.values, str(error))
        described["engine"] = found
        return self._judge_engine(self.limits, found)

    def _own_logits(self, stored: Mapping[str, StoredTensor]) -> _Own | str:
        """Logits of transformers on the artifact's own weights, or why there are none."""
        if not self.prepared.settings.same_weights:
            return "--no-same-weights leaves out the logits that it is compared with"
        if shortage := disk_shortage(self.checkpoint, self._room().disk, self.tokens.ids):
            return shortage
        own = self._logits_of(self.checkpoint, stored, "same weights")
        return _Own(own, self._compare(self.reference, own.logits, "own weights metrics"))

    def _logits_of(
        self,
        checkpoint: Checkpoint,
        stored: Mapping[str, StoredTensor],
        stage: str,
        tokens: Tokens | None = None,
    ) -> OwnLogits:
        """Logits of transformers on ``checkpoint`` with an artifact's weights, at the positions of ``tokens``
        (default: all)."""
        tokens = tokens or self.tokens
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            directory = Path(name)
            write_checkpoint(checkpoint, stored, directory, stage_of(self.progress, stage), tokens=tokens.ids)
            return own_logits(
                Model(directory, (), self.reference.shape[1]),
                tokens.sequences,
                firsts=tokens.firsts,
                output=self.scratch / f"{stage.replace(' ', '-')}-reference.npy",
                worker=self.prepared.worker,
                max_memory=self.prepared.settings.max_memory,
                float16_gelu=self.runner.float16_gelu,
                dense=checkpoint.architecture.experts is None,
                progress=stage_of(self.progress, f"{stage} reference"),
            )

    def _room(self) -> Room:
        return self.prepared.settings.room(self.scratch)

    def _same_weights(self, own: _Own | str, chosen: Trial) -> dict[str, object]:
        """How far the runtime is from float32 arithmetic, with the GELU that it has, on the artifact's own
        weights, and how far that is from the reference."""
        if isinstance(own, str) or (metrics := chosen.same_weights) is None:
            note = {"note": f"not measured: {own}"} if self.prepared.settings.same_weights else {}
            return {"mean_kld_same_weights": None, **note}
        return {
            "mean_kld_same_weights": number(metrics.mean_kld),
            "same_top_p_same_weights": number(metrics.same_top_p),
            "mean_abs_log_p_same_weights": number(metrics.mean_abs_log_p),
            "max_abs_same_weights": number(metrics.max_abs),
            "mean_kld_own_weights": number(own.metrics.mean_kld),
            "same_top_p_own_weights": number(own.metrics.same_top_p),
            "mean_abs_log_p_own_weights": number(own.metrics.mean_abs_log_p),
        }

    def _graph(
        self,
        artifact: Path,
        stored: Mapping[str, StoredTensor],
        own: _Own | str,
        tried: Sequence[Trial],
        described: dict[str, Any],
    ) -> Gate:
        """The runtime without rounding, on the artifact's own weights; what was measured goes to
        ``described``."""
        allowed, stage = self.prepared.settings.allow_unrun, "runtime without rounding"
        if isinstance(own, str):
            if not self.prepared.settings.same_weights:
                return unrounded.without(self.limits.values, own, allowed)
            return self._graph_of_excerpt(artifact, stored, own, described)
        try:
            lack = unrounded.shortage(self.runner, artifact, self._room())
        except ValidationError as error:
            return unrounded.without(self.limits.values, str(error), allowed)
        if lack:
            return self._graph_of_excerpt(artifact, stored, lack, described)
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            try:
                form, choice = self.runner.unrounded(
                    artifact, Path(name), stage_of(self.progress, "weights as floats")
                )
                same = [trial for trial in tried if not trial.rounded] if form == artifact else []
                tokens = unrounded.compared(self.runner, artifact, self.tokens)
                output = same[0].output if same else self._run(form, stage, choice, tokens)[0]
            except ValidationError as error:
                return unrounded.without(self.limits.values, str(error), allowed)
        logits = own.made.logits
        if tokens != self.tokens:
            logits = logits[self.tokens.rows_of(tokens)]
        metrics = self._compare(logits, map_logits(output, tokens.positions), "graph metrics", tokens)
        formed = "the artifact itself" if form == artifact else "its weights as floats"
        described["graph"] = unrounded.measured(metrics, tokens, formed, own.made.noise)
        return unrounded.judge(self._graph_limit(own.made), metrics, tokens)

    def _graph_limit(self, own: OwnLogits) -> float:
        """Of ``graph_kld``, where the user set none for what the runtime's known rounding costs."""
        limit = self.limits.values[GRAPH]
        return limit if GRAPH in self.limits.given else unrounded.limit_with_noise(limit, own.noise)

    def _graph_of_excerpt(
        self, artifact: Path, stored: Mapping[str, StoredTensor], lack: str, described: dict[str, Any]
    ) -> Gate:
        """As ``_graph``, of the model's first layers of every kind: for the whole there is no room, which
        ``lack`` says."""
        allowed = self.prepared.settings.allow_unrun
        excerpt = find_excerpt(self.checkpoint.architecture)
        if excerpt is None:
            return unrounded.without(self.limits.values, f"{lack}; no layer can be left out", allowed)
        room = self._room()
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            try:
                cut = cut_checkpoint(self.checkpoint, excerpt)
                less = disk_shortage(cut, room.disk, self.tokens.ids)
                less = less or unrounded.shortage(self.runner, artifact, room, excerpt)
                if less:
                    return unrounded.without(
                        self.limits.values, f"{lack}; for {excerpt} alone, {less}", allowed
                    )
                form, choice = self.runner.unrounded(
                    artifact, Path(name), stage_of(self.progress, "excerpt as floats"), excerpt
                )
                tokens = unrounded.compared(self.runner, artifact, self.tokens, excerpt)
                output, _ = self._run(form, "excerpt without rounding", choice, tokens)
            except (CheckpointError, ValidationError) as error:
                return unrounded.without(self.limits.values, f"{lack}; {error}", allowed)
        own = self._logits_of(cut, cut_tensors(stored, cut, excerpt), "excerpt", tokens)
        logits = map_logits(output, tokens.positions)
        metrics = self._compare(own.logits, logits, "excerpt metrics", tokens)
        described["graph"] = unrounded.measured(metrics, tokens, f"an excerpt, {excerpt}", own.noise, excerpt)
        note = f"run on {excerpt} alone, since {lack}; what is wrong in other layers does not show"
        return unrounded.judge(self._graph_limit(own), metrics, tokens, note)


def _way(proof: Proof) -> Mapping[str, object]:
    """The way in which the proven artifact was run, for another that must be run in the same."""
    level = proof.entry["runtime"].get("accuracy_level")
    return proof.choice or ({"accuracy_level": level} if isinstance(level, int) else AS_IT_IS)
