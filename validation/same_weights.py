"""Transformers on the artifact's own weights: tells what the weights cost from what the runtime costs.

The reference on the checkpoint and the runtime on the artifact differ for two reasons. Float32 arithmetic on
the artifact's weights stands between them: beside the reference it shows what the weights lost, beside the
runtime what the runtime's arithmetic loses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.architecture import GELU_TANH
from converter.checkpoint.opened import Checkpoint
from targets.target import Plan, StoredTensor
from validation.engine import scored_positions
from validation.exactness import WeightExactness
from validation.limits import OwnLoss
from validation.metrics import LogitMetrics
from validation.own_weights import StaticScales, disk_shortage, static_scales, write_checkpoint
from validation.reference.logits import Computation, Model, OwnLogits, own_logits
from validation.report.entries import number
from validation.running import Bench, compare_logits
from validation.text import Tokens

#: Relative error of a tensor that is the checkpoint's but for the rounding of its type: bfloat16 of codes
#: times scales has 0.002, Q8_0 0.007, rounding to four bits 0.07 and more.
_ROUNDED: Final = 0.01


@dataclass(frozen=True, slots=True)
class OwnWeights:
    """Transformers on the artifact's own weights."""

    #: The logits as they were made.
    made: OwnLogits
    #: Theirs beside the reference: what the weights alone cost.
    metrics: LogitMetrics
    #: The mean divergence of static grids by themselves, 0 where modules do not round to them.
    grids: float = 0.0
    #: The same of a model that rounds activations to the checkpoint's static grids, ``None`` if no way to run
    #: the artifact does.
    gridded: OwnWeights | None = None

    def under(self, plan: Plan) -> OwnWeights:
        """What an artifact of ``plan`` is beside."""
        return self.gridded if plan.applies_grids and self.gridded is not None else self


def own_weights(bench: Bench, stored: Mapping[str, StoredTensor], plans: Iterable[Plan]) -> OwnWeights | str:
    """Transformers on the weights of an artifact (canonical name to tensor), or in a line why it was not
    run. It is run with static grids too if an artifact of ``plans`` applies them."""
    if not bench.settings.same_weights:
        return "--no-same-weights leaves out the logits that it is compared with"
    if shortage := disk_shortage(bench.checkpoint, bench.room.disk, bench.tokens.ids):
        return shortage
    made, of = partial(logits_of_weights, bench, bench.checkpoint, stored), f"{bench.target.name}'s weights"
    gridded = None
    if grids := next((plan for plan in plans if plan.applies_grids), None):
        reference = bench.reference_for(grids)
        own = made(f"{of} with grids", scales=static_scales(bench.checkpoint))
        alone = bench.grids_alone.mean_kld if bench.grids_alone is not None else 0.0
        gridded = OwnWeights(own, compare_logits(bench, reference, own.logits), alone)
    own = made(of)
    return OwnWeights(own, compare_logits(bench, bench.reference, own.logits), gridded=gridded)


def logits_of_weights(
    bench: Bench,
    checkpoint: Checkpoint,
    stored: Mapping[str, StoredTensor],
    of: str,
    tokens: Tokens | None = None,
    scales: Mapping[str, StaticScales] | None = None,
) -> OwnLogits:
    """Logits of transformers on ``checkpoint`` with an artifact's weights, at the positions of ``tokens``
    (default: all). ``of`` names the weights in its stages. Modules round to the static ``scales`` of their
    inputs and outputs. Raises ``ValidationError`` for weights of which it makes no model."""
    tokens, stage = tokens or bench.tokens, f"transformers on {of}"
    architecture = checkpoint.architecture
    computation = Computation(
        bench.prepared.worker,
        max_memory=bench.settings.max_memory,
        float16_gelu=bench.runner.float16_gelu and architecture.activation == GELU_TANH,
    )
    with bench.directory() as name:
        directory = Path(name)
        write_checkpoint(checkpoint, stored, directory, bench.stage(f"dequantizing {of}"), tokens=tokens.ids)
        return own_logits(
            Model(directory, (), bench.vocabulary, scales=scales or {}),
            tokens,
            computation,
            bench.file(stage),
            dense=architecture.experts is None and not scales,
            progress=bench.stage(stage),
        )


def own_loss(bench: Bench, own: OwnWeights, weights: WeightExactness, logits: NDArray[np.float32]) -> OwnLoss:
    """What the runtime loses on the artifact's own weights, by which relative limits go. ``logits`` are the
    runtime's."""
    same = compare_logits(bench, own.made.logits, logits)
    right = all(not tensor.wrong and tensor.rms_error <= _ROUNDED for tensor in weights.tensors)
    return OwnLoss(same, own.metrics if right else None, scored_positions(bench.prepared), own.grids)


def same_weights_entry(bench: Bench, own: OwnWeights | str, same: LogitMetrics | None) -> dict[str, object]:
    """For the report's ``runtime`` block: how far the runtime is from float32 arithmetic, with the GELU that
    it has, on the artifact's own weights (``same``), and how far that is from the reference."""
    if isinstance(own, str) or same is None:
        note = {"note": f"not measured: {own}"} if bench.settings.same_weights else {}
        return {"mean_kld_same_weights": None, **note}
    return {
        "mean_kld_same_weights": number(same.mean_kld),
        "same_top_p_same_weights": number(same.same_top_p),
        "mean_abs_log_p_same_weights": number(same.mean_abs_log_p),
        "max_abs_same_weights": number(same.max_abs),
        "mean_kld_own_weights": number(own.metrics.mean_kld),
        "same_top_p_own_weights": number(own.metrics.same_top_p),
        "mean_abs_log_p_own_weights": number(own.metrics.mean_abs_log_p),
    }
