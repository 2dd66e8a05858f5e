"""A sharp test of an artifact's graph and metadata: its runtime without rounding, on its own weights.

A runtime that rounds activations is off by more than most wrong graphs are: its noise hides a wrong epsilon,
a window that is too long, a RoPE base. So the runtime runs the artifact once more in a form in which it
rounds nothing, to static grids of activations neither, with the artifact's own metadata, graph and weights.
It is compared with transformers in float32 on the same weights. What is left between both is float
arithmetic. (One unit in the last place beside the edge of a grid is a whole step of it: with grids no two
programs agree so far.)

A model for which there is no room is run as an excerpt, its first layers of every kind. What is wrong in a
layer that is left out does not show then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.excerpt import Excerpt, find_excerpt
from converter.errors import CheckpointError, ValidationError
from converter.system.amounts import amount
from validation.choice import Trial
from validation.excerpt import cut_checkpoint, cut_tensors
from validation.gates import Gate, judge_graph, not_run
from validation.judging import limits_of
from validation.limits import GRAPH
from validation.logits import map_logits
from validation.metrics import LogitMetrics
from validation.own_weights import disk_shortage
from validation.reference.logits import OwnLogits
from validation.room import Room
from validation.runners import Runner
from validation.running import Bench, compare_logits, run
from validation.same_weights import OwnWeights, logits_of_weights
from validation.subject import Subject
from validation.text import Tokens

#: How much more than a shared rounding itself the graph may be off, and the most that this may allow.
_TIMES: Final = 4
_MOST: Final = 1e-4
#: Bytes of weights that a stepwise runtime reads for all positions together, some 30 s on two processors, and
#: the fewest positions whatever it takes.
_READ: Final = 200_000_000_000
_FEWEST: Final = 64


@dataclass(frozen=True, slots=True)
class Graph:
    """What came of the runtime without rounding."""

    gate: Gate
    #: The ``graph`` block of the report, ``None`` where nothing was run.
    entry: dict[str, Any] | None = None


def measure_graph(bench: Bench, subject: Subject, own: OwnWeights | str, trials: Sequence[Trial]) -> Graph:
    """The runtime without rounding beside transformers, both on the artifact's ``own`` weights.

    A model for which there is no room is run as an excerpt. One of ``trials`` that rounds nothing is not run
    again where the artifact itself is the unrounded form.
    """
    if isinstance(own, str):
        return _measure_excerpt(bench, subject, own) if bench.settings.same_weights else _without(bench, own)
    try:
        lack = shortage(bench.runner, subject.artifact, bench.room)
    except ValidationError as error:
        return _without(bench, str(error))
    return _measure_excerpt(bench, subject, lack) if lack else _measure_whole(bench, subject, own, trials)


def _measure_whole(bench: Bench, subject: Subject, own: OwnWeights, trials: Sequence[Trial]) -> Graph:
    """All layers of the artifact."""
    artifact = subject.artifact
    with bench.directory() as name:
        try:
            form, choice = bench.runner.unrounded(
                artifact, Path(name), bench.stage(f"widening {bench.target.name} to floats")
            )
            same = [trial for trial in trials if _is_unrounded(trial)] if form == artifact else []
            tokens = compared(bench.runner, artifact, bench.tokens)
            title = f"running {bench.runner.name} without rounding"
            output = same[0].output if same else run(bench, form, title, choice, tokens)[0]
        except ValidationError as error:
            return _without(bench, str(error))
    logits = own.made.logits
    if tokens != bench.tokens:
        logits = logits[bench.tokens.rows_of(tokens)]
    found = map_logits(output, tokens.positions)
    metrics = compare_logits(bench, logits, found, tokens)
    formed = "the artifact itself" if form == artifact else "its weights as floats"
    entry = measured(metrics, tokens, formed, own.made.noise)
    return Graph(judge(_limit(bench, own.made), metrics, tokens), entry)


def _is_unrounded(trial: Trial) -> bool:
    """Whether a way to run an artifact rounds neither to integers nor to static grids."""
    return not trial.rounded and not trial.subject.plan.applies_grids


def _measure_excerpt(bench: Bench, subject: Subject, lack: str) -> Graph:
    """The model's first layers of every kind: for the whole there is no room, which ``lack`` says."""
    excerpt = find_excerpt(bench.checkpoint.architecture)
    if excerpt is None:
        return _without(bench, f"{lack}; no layer can be left out")
    room, layers = bench.room, f"layers of {bench.target.name}"
    with bench.directory() as name:
        try:
            cut = cut_checkpoint(bench.checkpoint, excerpt)
            less = disk_shortage(cut, room.disk, bench.tokens.ids)
            less = less or shortage(bench.runner, subject.artifact, room, excerpt)
            if less:
                return _without(bench, f"{lack}; for {excerpt} alone, {less}")
            form, choice = bench.runner.unrounded(
                subject.artifact,
                Path(name),
                bench.stage(f"widening {layers} to floats"),
                excerpt,
            )
            tokens = compared(bench.runner, subject.artifact, bench.tokens, excerpt)
            output, _ = run(bench, form, f"running {bench.runner.name} on some layers", choice, tokens)
        except (CheckpointError, ValidationError) as error:
            return _without(bench, f"{lack}; {error}")
    own = logits_of_weights(bench, cut, cut_tensors(subject.stored, cut, excerpt), layers, tokens)
    found = map_logits(output, tokens.positions)
    metrics = compare_logits(bench, own.logits, found, tokens)
    note = f"run on {excerpt} alone, since {lack}; what is wrong in other layers does not show"
    return Graph(
        judge(_limit(bench, own), metrics, tokens, note),
        measured(metrics, tokens, f"an excerpt, {excerpt}", own.noise, excerpt),
    )


def _limit(bench: Bench, own: OwnLogits) -> float:
    """Of ``graph_kld``, where the user set none for what the runtime's known rounding costs."""
    limits = limits_of(bench)
    limit = limits.values[GRAPH]
    return limit if GRAPH in limits.given else limit_with_noise(limit, own.noise)


def _without(bench: Bench, why: str) -> Graph:
    """An artifact whose unrounded form was not run."""
    return Graph(not_run(GRAPH, limits_of(bench).values[GRAPH], why, bench.settings.allow_unrun))


def shortage(runner: Runner, artifact: Path, room: Room, excerpt: Excerpt | None = None) -> str | None:
    """One line on what the unrounded form of ``artifact``, or of an excerpt, lacks in ``room``. ``None`` if
    it lacks nothing. Raises ``ValidationError`` for an artifact that cannot be read or cut."""
    needed = runner.unrounded_bytes(artifact, excerpt)
    held = needed * runner.weights_held
    for size, free, what in ((needed, room.disk, "temporary files"), (held, room.memory, "memory")):
        if size > free:
            return f"the run without rounding needs {amount(size)} of {what}, it may take {amount(free)}"
    return None


def compared(runner: Runner, artifact: Path, tokens: Tokens, excerpt: Excerpt | None = None) -> Tokens:
    """The positions at which the unrounded form of ``artifact``, or of an excerpt, is compared.

    They are all, or as many as a runtime that reads all weights for each has time for. What is wrong in a
    graph shows at every position. Raises ``ValidationError`` as ``shortage`` does.
    """
    size = runner.unrounded_bytes(artifact, excerpt) if runner.stepwise else 0
    return tokens.fewer(max(_FEWEST, _READ // max(1, size)))


def limit_with_noise(limit: float, noise: float) -> float:
    """The limit where a rounding that the runtime and the reference share costs this model ``noise``.

    Both do the same, but not of the same numbers: one whose last bit differs is now and then rounded to
    another neighbour. In a shallow model that is rare; through many layers it adds up to as much as the
    rounding itself."""
    return max(limit, min(limit + _TIMES * noise, _MOST))


def measured(
    metrics: LogitMetrics, tokens: Tokens, formed: str, noise: float, excerpt: Excerpt | None = None
) -> dict[str, Any]:
    """The ``graph`` block of the report: divergences over all positions and beyond the window alone.

    ``formed`` says how the artifact was run, ``noise`` what a rounding that both share costs. ``excerpt``
    says which of its layers were run, if not all.
    """
    beyond = metrics.kld[tokens.beyond]
    return {
        "form": formed,
        **({} if excerpt is None else {"layers": list(excerpt.layers), "layers_of": excerpt.of}),
        "positions": metrics.positions,
        "mean_kld": _finite(metrics.mean_kld),
        "max_kld": _finite(metrics.max_kld),
        "mean_kld_beyond_window": _finite(_mean(beyond)) if beyond.size else None,
        **({"mean_kld_of_float16_gelu": _finite(noise)} if noise else {}),
    }


def judge(limit: float, metrics: LogitMetrics, tokens: Tokens, note: str = "") -> Gate:
    """The gate: the mean divergence over all positions, or over those beyond the window if it is larger
    there, so that neither hides the other. ``note`` goes before the gate's own."""
    beyond = metrics.kld[tokens.beyond]
    value = max(metrics.mean_kld, _mean(beyond)) if beyond.size else metrics.mean_kld
    gate = judge_graph(limit, value)
    return replace(gate, note="; ".join(filter(None, (note, gate.note))))


def _mean(klds: NDArray[np.float64]) -> float:
    return float(klds.mean())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
