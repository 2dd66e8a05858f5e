"""An artifact run in several ways, of which the measurements choose one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from validation.gates import Gate, verdict
from validation.limits import DECODE, Limits
from validation.metrics import LogitMetrics
from validation.runners import Runtime
from validation.subject import Subject

#: How many times as fast a way must be that comes after another: less may be noise.
_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to run an artifact, and what came of it."""

    #: The way.
    choice: Mapping[str, object]
    #: What was run.
    subject: Subject
    runtime: Runtime
    #: The file in which its logits lie.
    output: Path
    #: Against the reference.
    metrics: LogitMetrics
    #: Against float32 arithmetic on the artifact's own weights; ``None`` if that was not measured.
    same_weights: LogitMetrics | None
    #: The limits in force.
    limits: Limits
    #: What these limits say.
    gates: tuple[Gate, ...]
    #: Further runs, for their speed alone.
    again: tuple[Runtime, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate passed. One that did not run says nothing for this way."""
        return verdict(self.gates) is True

    @property
    def mean_kld(self) -> float:
        """Divergence from the reference, infinite where it is not finite."""
        return self.metrics.mean_kld if math.isfinite(self.metrics.mean_kld) else math.inf

    @property
    def decode(self) -> Mapping[str, Any] | None:
        """What was measured while tokens were decoded one by one, ``None`` if the runtime does not."""
        return _decode(self.runtime)

    @property
    def rounded(self) -> bool:
        """Whether the runtime rounds activations to integers, so far as it says."""
        return rounds(self.runtime)

    @property
    def speed(self) -> float:
        """Decoded tokens per second at the fastest step of all runs, 0 where they are not measured. Other
        work on the machine slows steps down and speeds none up."""
        decodes = [_decode(runtime) for runtime in (self.runtime, *self.again)]
        return max((float(one["fastest_tokens_per_second"]) for one in decodes if one), default=0.0)


def rounds(runtime: Runtime) -> bool:
    """Whether a runtime rounds activations to integers. One that does not say is taken to."""
    return bool(runtime.settings.get("rounded_activations", True))


def _decode(runtime: Runtime) -> Mapping[str, Any] | None:
    found = runtime.settings.get("decode")
    return found if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class Refusal:
    """One way in which the runtime does not run the artifact."""

    choice: Mapping[str, object]
    #: Why, in one line.
    error: str


def best(trials: Sequence[Trial]) -> Trial:
    """The trial to keep, of at least one.

    It is the first that passes its gates, unless a later one that passes is more than a tenth faster at
    decoding. If none passes, it is the one with the smallest mean KLD.
    """
    passing = [trial for trial in trials if trial.passed]
    if not passing:
        return min(trials, key=lambda trial: trial.mean_kld)
    kept = passing[0]
    for trial in passing[1:]:
        if trial.speed > _MARGIN * kept.speed:
            kept = trial
    return kept


def with_lost_cache(trials: Sequence[Trial | Refusal]) -> list[Trial | Refusal]:
    """The trials, all of them failed if one without rounded activations shows that decoding is not what the
    whole sequence is.

    The graph is the same in all, and the noise of rounding only hides it.
    """
    lost = [
        gate
        for trial in trials
        if isinstance(trial, Trial) and not trial.rounded
        for gate in trial.gates
        if gate.name in DECODE and not gate.passed
    ]
    return [
        replace(trial, gates=(*(gate for gate in trial.gates if gate.name not in DECODE), *lost))
        if lost and isinstance(trial, Trial)
        else trial
        for trial in trials
    ]


def surprising(trials: Sequence[Trial]) -> bool:
    """Whether the one to keep is not the first that passes: the clock has the word, and is asked again."""
    passing = [trial for trial in trials if trial.passed]
    return bool(passing) and best(trials) is not passing[0]


def alternatives(trials: Sequence[Trial | Refusal], chosen: Trial) -> list[dict[str, Any]]:
    """The ``alternatives`` block of the report: every way that was tried, in order."""
    return [
        {**trial.choice, "chosen": False, "passed": False, "error": trial.error}
        if isinstance(trial, Refusal)
        else _entry(trial, trial is chosen)
        for trial in trials
    ]


def _entry(trial: Trial, chosen: bool) -> dict[str, Any]:
    figures = {name: float(getattr(trial.metrics, name)) for name in ("mean_kld", "same_top_p", "max_abs")}
    decode = trial.decode or {}
    return {
        **trial.choice,
        "chosen": chosen,
        "passed": verdict(trial.gates),
        **{name: value if math.isfinite(value) else None for name, value in figures.items()},
        "decode_mean_kld": decode.get("mean_kld"),
        "decode_tokens_per_second": decode.get("tokens_per_second"),
        "gates": [gate.entry() for gate in trial.gates],
    }
