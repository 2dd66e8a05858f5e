"""What was measured of an artifact, judged by the limits in force for its model in its runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from validation import limits as limiting
from validation.choice import rounds
from validation.evaluation import WITH_GRIDS
from validation.exactness import WeightExactness
from validation.gates import Gate, judge, judge_engine, not_run, noted
from validation.limits import ANSWERS, DECODE, Limits, OwnLoss
from validation.metrics import LogitMetrics
from validation.runners import Runtime
from validation.running import Bench


def limits_of(bench: Bench, *, grids: bool = False) -> Limits:
    """Of the gates, for this model in this runtime if it predicts the text. ``grids`` says that the artifact
    applies static grids of activations, for which the checkpoint's text has limits of their own."""
    own = bench.target.name + WITH_GRIDS * grids
    return limiting.absolute(
        bench.settings.gates,
        experts=bench.checkpoint.architecture.experts is not None,
        allowances=bench.runner.allowances,
        own=bench.prepared.evaluation.limits.get(own, {}),
        off_lattice=bench.settings.off_lattice,
        grids=bench.grids_alone.mean_kld if grids and bench.grids_alone is not None else None,
    )


def judge_run(
    bench: Bench,
    runtime: Runtime,
    weights: WeightExactness,
    metrics: LogitMetrics,
    loss: OwnLoss | str,
    *,
    grids: bool = False,
) -> tuple[Limits, tuple[Gate, ...]]:
    """The limits in force for one way to run an artifact, and the gates of its weights and logits. ``loss``
    is what the runtime loses on the artifact's own weights, or in a line why that is unknown, ``grids`` as
    for ``limits_of``."""
    limits = limiting.in_force(limits_of(bench, grids=grids), metrics.ppl_reference, bench.vocabulary, loss)
    decode = runtime.settings.get("decode")
    judged = judge(
        limits.values,
        weights,
        metrics,
        decode if isinstance(decode, Mapping) else None,
        rounded=rounds(runtime),
    )
    lacking = [name for name in limits.lacking if name not in ANSWERS and (decode or name not in DECODE)]
    return limits, _noted(bench, limits, judged, lacking)


def judge_text(bench: Bench, limits: Limits, engine: Mapping[str, Any]) -> tuple[Gate, ...]:
    """The gates of what an engine or a runtime's text side made of text: the report's ``engine``."""
    lacking = [name for name in limits.lacking if name in ANSWERS and "greedy" in engine]
    return _noted(bench, limits, judge_engine(limits.values, engine), lacking)


def _noted(bench: Bench, limits: Limits, judged: Sequence[Gate], lacking: Sequence[str]) -> tuple[Gate, ...]:
    """The gates ``judged``, with what there is to say of their limits, and those that have none."""
    unrun = [not_run(name, None, limits.lacking[name], bench.settings.allow_unrun) for name in lacking]
    return (*noted(judged, limits.notes), *unrun)
