"""Limits of the gates, and which of them apply to a model.

A model that predicts the text is judged by absolute limits: at most twice what a right artifact loses on a
real model, Gemma 3 270M on the built-in text (``benchmarks/real_gemma.py``). Each runtime has its own
(``Runner.limits``), as each rounds in its own way. A checkpoint's own text may come with narrower ones
(``validation.evaluation``): the shipped model loses a fiftieth of a real one. A checkpoint never widens any.

A model of random weights predicts nothing: its distributions are flat, the top token hangs on the last bits,
and what rounding costs says nothing of any other model. It is judged by what the runtime loses on the
artifact's own weights in the same run, where only the weights can be wrong. Trained on nothing, it is worse
than a guess; the plainest model that has seen text is better than ``CHANCE`` of one.

The limits that concern weights, graph and text say whether something is right: they are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from converter.errors import UsageError
from validation.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, LogitMetrics

#: Gates of the weights, read back from the file.
WEIGHTS: Final = ("exact_fraction", "exact_values", "on_lattice_fraction")
#: The runtime without rounding against the reference on the same weights; ``gates.judge_graph`` judges it.
GRAPH: Final = "graph_kld"
#: Gates that apply only where the runtime decodes token by token, by the key of what it measures then.
DECODE: Final[Mapping[str, str]] = MappingProxyType({"decode_mean_kld": "mean_kld"})
#: Gates of a runtime's text side: tokenizer, chat template and ends of answers, by the block of ``engine``
#: that each judges. They apply where the artifact has a tokenizer, and that of the prompts where the
#: checkpoint has a chat template.
TEXT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "engine_same_tokens": "tokenizer",
        "engine_same_prompts": "prompts",
        "engine_same_ends": "ends",
    }
)
#: Gates that apply only where an engine answered with the artifact.
ANSWERS: Final = ("engine_gap", "engine_mean_abs")
ENGINE: Final = (*TEXT, *ANSWERS)
#: Where the value must be at least the limit.
AT_LEAST: Final = (*WEIGHTS, *HIGHER_IS_BETTER, *TEXT)
#: Everything that may be given a limit.
KNOWN: Final = (*WEIGHTS, *HIGHER_IS_BETTER, GRAPH, *LOWER_IS_BETTER, *DECODE, *ENGINE)

#: Limits of what a runtime loses, for a trained model that is dense. Runtimes have narrower ones.
DENSE: Final[Mapping[str, float]] = MappingProxyType(
    {
        "exact_fraction": 1.0,
        "exact_values": 1.0,
        "on_lattice_fraction": 0.999,
        GRAPH: 1e-4,
        "mean_kld": 0.012,
        "same_top_p": 0.9,
        "decode_mean_kld": 0.005,
        "engine_same_tokens": 1.0,
        "engine_same_prompts": 1.0,
        "engine_same_ends": 1.0,
        "engine_gap": 1.0,
        "engine_mean_abs": 0.1,
    }
)
#: The same for a trained mixture of experts, where rounding also flips near-ties of the router.
EXPERTS: Final[Mapping[str, float]] = MappingProxyType(
    {
        **DENSE,
        GRAPH: 1e-2,
        "mean_kld": 0.15,
        "same_top_p": 0.72,
        "decode_mean_kld": 0.06,
        "engine_gap": 2.0,
        "engine_mean_abs": 0.6,
    }
)
#: Gates whose limit is relative in a model that predicts nothing.
RELATIVE: Final = ("mean_kld", "same_top_p", *DECODE, *ANSWERS)
#: Both agree to 1e-11 where activations are float32, to 1e-5 where they are float16: then the gate of
#: decoding is as narrow as this, unless it is set narrower.
UNROUNDED_DECODE: Final = 1e-3
#: Said of a limit that comes with the checkpoint's text, and of one that lacks what it is relative to.
OWN_NOTE: Final = "limit: the checkpoint's own, on its text"
_NEEDED: Final = "which the limit is relative to,"
#: A model whose perplexity is more than this share of the vocabulary does not predict the text. A guess has
#: the whole vocabulary; models of random weights have more than that.
CHANCE: Final = 0.25


@dataclass(frozen=True, slots=True)
class OwnLoss:
    """What the runtime loses on the artifact's own weights, by which relative limits go: divergence, share of
    other top tokens, and by how many nats a token's log-probability is off on average."""

    mean_kld: float
    other_top: float
    mean_abs: float

    @classmethod
    def of(cls, metrics: LogitMetrics) -> OwnLoss:
        """From the runtime's logits beside those of float32 arithmetic on the same weights."""
        return cls(metrics.mean_kld, 1 - metrics.same_top_p, metrics.mean_abs_log_p)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in force by gate, in order: their ``values``, and ``notes`` on how those came about that are not
    the general ones. ``given`` are those that the user set. ``lacking`` says of gates why there is nothing to
    judge them by."""

    values: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    lacking: Mapping[str, str] = field(default_factory=dict)


def check(given: Mapping[str, float]) -> None:
    """Raise ``UsageError`` for an unknown gate or a limit that is no number."""
    for name, limit in given.items():
        if name not in KNOWN:
            raise UsageError(f"unknown gate {name!r}; known: {', '.join(KNOWN)}")
        if not math.isfinite(limit):
            raise UsageError(f"gate {name}: {limit} is no limit")


def absolute(
    given: Mapping[str, float],
    *,
    experts: bool = False,
    allowances: Mapping[str, float] = MappingProxyType({}),
    own: Mapping[str, float] = MappingProxyType({}),
    off_lattice: bool = False,
) -> Limits:
    """The limits of a trained model that is dense, or has ``experts``.

    ``allowances`` are the runtime's own for dense models, ``own`` the checkpoint's, which count where they
    are narrower, ``given`` the user's, which count in any case; ``off_lattice`` says that the user accepts
    matrices on no lattice. Raises ``UsageError`` as ``check`` does.
    """
    check(given)
    general: dict[str, float] = {**EXPERTS} if experts else {**DENSE, **allowances}
    narrow = _narrower(general, own)
    accepted = {"on_lattice_fraction": 0.0} if off_lattice else {}
    notes = {name: OWN_NOTE for name in narrow if name not in given}
    return Limits({**general, **narrow, **accepted, **given}, notes, frozenset(given))


def in_force(limits: Limits, perplexity: float, vocabulary: int, own: OwnLoss | str) -> Limits:
    """``limits`` for a model whose reference has this ``perplexity`` on the text: relative ones for one that
    does not predict it, by what the runtime loses of itself (``own``, or in a line why that is unknown).

    What the user set stays as it is, and what the checkpoint narrows stays as narrow.
    """
    if not perplexity > CHANCE * vocabulary:
        return limits
    why = f"since the reference does not predict this text (perplexity {perplexity:,.0f} of {vocabulary:,})"
    names = [name for name in RELATIVE if name in limits.values and name not in limits.given]
    if isinstance(own, str):
        values = {name: value for name, value in limits.values.items() if name not in names}
        return Limits(values, limits.notes, limits.given, {name: f"{own}, {_NEEDED} {why}" for name in names})
    values, notes = dict(limits.values), dict(limits.notes)
    for name in names:
        value, rule = _relative(name, own)
        narrowed = name in limits.notes and not _is_narrower(name, value, limits.values[name])
        if not narrowed:
            values[name], notes[name] = value, f"limit: {rule}, {why}"
    return Limits(values, notes, limits.given)


def _narrower(general: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """Those of the checkpoint's ``own`` limits that are narrower than the general ones."""
    return {
        name: limit
        for name, limit in own.items()
        if name not in general or _is_narrower(name, limit, general[name])
    }


def _is_narrower(name: str, limit: float, other: float) -> bool:
    return limit > other if name in AT_LEAST else limit < other


def _relative(name: str, own: OwnLoss) -> tuple[float, str]:
    """The limit of a gate in ``RELATIVE``, and the rule in words."""
    if name == "mean_kld":
        return 1.1 * own.mean_kld + 1e-4, "1.1 x mean_kld_same_weights + 1e-4"
    if name == "same_top_p":
        return 1 - 1.1 * own.other_top - 0.01, "1 - 1.1 x (1 - same_top_p_same_weights) - 0.01"
    if name in DECODE:
        return 2 * own.mean_kld + 1e-4, "2 x mean_kld_same_weights + 1e-4"
    if name == "engine_gap":
        return 6 * own.mean_abs + 0.1, "6 x mean_abs_log_p_same_weights + 0.1"
    return 1.1 * own.mean_abs + 0.01, "1.1 x mean_abs_log_p_same_weights + 0.01"
