"""Every way to run an artifact, in order: written where it takes an artifact of its own, run, judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from converter.errors import DestinationError, TargetError, ValidationError
from validation import choice as choosing
from validation.choice import Refusal, Trial
from validation.judging import judge_run
from validation.logits import map_logits
from validation.runners import AS_IT_IS, Runtime
from validation.running import Bench, compare_logits, run
from validation.same_weights import OwnWeights, own_loss
from validation.subject import Subject, subject_of

#: How often speeds are measured again before they may decide against the preferred way.
_TURNS: Final = 2


def try_ways(
    bench: Bench,
    given: Subject,
    choices: Sequence[Mapping[str, object]],
    own: OwnWeights | str,
    others: Path,
) -> Sequence[Trial | Refusal]:
    """Every one of ``choices`` in order (default: the artifact as it was written).

    Where they have artifacts of their own, these are written below ``others``. There, and where the plan
    orders them by speed, the first way that passes is the last that is tried. Speeds are measured again as
    long as they alone decide against the preferred way. Raises the first ``ValidationError`` if the runtime
    refuses them all.
    """
    return _timed_again(bench, _try_all(bench, given, choices or (AS_IT_IS,), own, others))


def _try_all(
    bench: Bench,
    given: Subject,
    choices: Sequence[Mapping[str, object]],
    own: OwnWeights | str,
    others: Path,
) -> list[Trial | Refusal]:
    tried: list[Trial | Refusal] = []
    errors = []
    for turn, choice in enumerate(choices):
        suffix = "".join(f", {name} {value}" for name, value in choice.items()) if len(choices) > 1 else ""
        try:
            subject = _subject(bench, given, choice, others / str(turn)) if turn else given
            trial = _try(bench, subject, choice, own, suffix.replace("_", " "))
        except ValidationError as error:
            tried.append(Refusal(choice, str(error)))
            errors.append(error)
            continue
        tried.append(trial)
        if trial.passed and _are_slower(bench, given, choices[turn + 1 :]):
            break
    if len(errors) == len(tried):
        raise errors[0]
    return choosing.with_lost_cache(tried)


def _subject(bench: Bench, given: Subject, choice: Mapping[str, object], directory: Path) -> Subject:
    """What runs as ``choice``. Raises ``ValidationError`` if it cannot be written."""
    directory.mkdir()
    try:
        return subject_of(bench.target, bench.checkpoint, choice, given, directory, bench.progress)
    except (DestinationError, TargetError) as error:  # what was measured before is not lost
        raise ValidationError(str(error)) from error


def _are_slower(bench: Bench, given: Subject, choices: Sequence[Mapping[str, object]]) -> bool:
    """Whether ``choices`` are known to be slower than those before them: the plan says so, or one of them
    would have to be written first."""
    if given.plan.choices_by_speed:
        return True
    return any(bench.target.written(given.plan, choice) != given.plan for choice in choices)


def _try(
    bench: Bench, subject: Subject, choice: Mapping[str, object], own: OwnWeights | str, suffix: str
) -> Trial:
    """One way, run and judged. ``suffix`` tells its stage from those of others."""
    output, runtime = run(bench, subject.artifact, f"running {bench.runner.name}{suffix}", choice)
    logits = map_logits(output, bench.tokens.positions)
    metrics = compare_logits(bench, bench.reference_for(subject.plan), logits)
    loss = own if isinstance(own, str) else own_loss(bench, own.under(subject.plan), subject.weights, logits)
    grids = subject.plan.applies_grids
    limits, judged = judge_run(bench, runtime, subject.weights, metrics, loss, grids=grids)
    same = None if isinstance(loss, str) else loss.same_weights
    return Trial(choice, subject, runtime, output, metrics, same, limits, judged)


def _timed_again(bench: Bench, tried: Sequence[Trial | Refusal]) -> Sequence[Trial | Refusal]:
    """``tried``, with more runs in turn as long as speed alone decides against the preferred way."""
    for _ in range(_TURNS):
        if not choosing.surprising([trial for trial in tried if isinstance(trial, Trial)]):
            break
        tried = [
            replace(trial, again=(*trial.again, _timed(bench, trial.subject.artifact, trial.choice)))
            if isinstance(trial, Trial) and trial.passed
            else trial
            for trial in tried
        ]
    return tried


def _timed(bench: Bench, artifact: Path, choice: Mapping[str, object]) -> Runtime:
    output, runtime = run(bench, artifact, f"running {bench.runner.name} again", choice)
    output.unlink()
    return runtime
