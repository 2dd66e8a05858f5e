"""Limits of the gates, and which of them apply to a model.

A model that predicts the text is judged by absolute limits. They are at most twice what a right artifact
loses on a real model, Gemma 3 270M on the built-in text (``benchmarks/real_gemma.py``). They are far below
what naive rounding does. A runtime may have limits of its own (``Runner.allowances``), as each rounds in its
own way. A checkpoint's own text may come with narrower ones (``validation.evaluation``): the shipped model
loses a fiftieth of what a real one does. A checkpoint never widens any.

A model of random weights predicts nothing. Its distributions are flat and the top token hangs on the last
bits, so what rounding costs it says nothing of another model. It is judged by what the runtime loses on the
artifact's own weights in the same run: what is lost beyond that, the weights have lost.

Limits that concern weights, graph and text say whether something is right. They are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from converter.errors import UsageError
from validation.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, LogitMetrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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

#: Of a dense model. What right artifacts and naive rounding lose stands in docs/validation.md, "Gates".
DENSE: Final[Mapping[str, float]] = MappingProxyType(
    {
        "exact_fraction": 1.0,
        "exact_values": 1.0,
        "on_lattice_fraction": 0.999,
        GRAPH: 1e-4,
        "mean_kld": 0.009,
        "same_top_p": 0.86,
        "decode_mean_kld": 0.0065,
        "engine_same_tokens": 1.0,
        "engine_same_prompts": 1.0,
        "engine_same_ends": 1.0,
        "engine_gap": 1.0,
        "engine_mean_abs": 0.1,
    }
)
#: Of a mixture of experts, where rounding also flips near-ties of the router. No trained one was
#: measured (docs/validation.md, "Gates").
EXPERTS: Final[Mapping[str, float]] = MappingProxyType(
    {
        **DENSE,
        GRAPH: 1e-2,
        "mean_kld": 0.08,
        "same_top_p": 0.78,
        "decode_mean_kld": 0.03,
        "engine_mean_abs": 0.4,
    }
)
#: Gates whose limit is relative in a model that predicts nothing.
RELATIVE: Final = ("mean_kld", "same_top_p", *DECODE, *ANSWERS)
#: Both agree to 1e-11 where activations are float32, to 1e-5 where they are float16: then the gate of
#: decoding is as narrow as this, unless it is set narrower.
UNROUNDED_DECODE: Final = 1e-3
#: Said of a limit that comes with the checkpoint's text, and of one that lacks what it is relative to.
OWN_NOTE: Final = "limit: the checkpoint's own, on its text"
#: The gate that an artifact with static grids must pass by less: what it is off by must be little beside what
#: the grids do, or applying them is for nothing. No less than this is asked for.
MEAN: Final = "mean_kld"
_OF_GRIDS: Final = 0.5
_LEAST_OF_GRIDS: Final = 1e-3
_GRIDS_RULE: Final = "half of what the static grids do by themselves (activation_grids.mean_kld)"
GRIDS_NOTE: Final = f"limit: {_GRIDS_RULE}"
_NEEDED: Final = "and the limit would be relative to them,"
#: A model whose perplexity is more than this share of the vocabulary does not predict the text: a guess has
#: all of it (docs/validation.md, "Gates").
CHANCE: Final = 0.5


@dataclass(frozen=True, slots=True)
class OwnLoss:
    """What the runtime loses on the artifact's own weights, by which relative limits go."""

    #: The runtime beside float32 arithmetic on the artifact's weights.
    same_weights: LogitMetrics
    #: That arithmetic beside the reference, for an artifact in which every value is the checkpoint's but for
    #: the rounding of its type; ``None`` for any other. Codes times scales differ from the checkpoint too,
    #: which rounds them to bfloat16.
    own_weights: LogitMetrics | None = None
    #: Positions whose following token an engine scores, ``None`` for all.
    scored: NDArray[np.intp] | None = None
    #: The mean divergence that static grids of activations make by themselves, of an artifact that applies
    #: them: beside an edge, the last bit of a number decides over a whole step.
    grids: float = 0.0

    def sum(self, figure: Callable[[LogitMetrics], float]) -> float:
        """A figure over both parts."""
        parts = (self.same_weights, self.own_weights)
        return sum(figure(part) for part in parts if part is not None)

    def scored_log_p(self, part: LogitMetrics) -> float:
        """``mean_abs_log_p`` over the tokens that an engine scores."""
        if self.scored is None or not self.scored.size:
            return part.mean_abs_log_p
        return float(part.abs_log_p[self.scored].mean())

    def told(self, name: str, less: str = "") -> str:
        """What is summed, by the keys of the report, behind ``less``."""
        same = f"{less}{name}_same_weights"
        if self.own_weights is None:
            return f"({same})" if less else same
        return f"({same} + {less}{name}_own_weights)"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in force by gate, in order."""

    values: Mapping[str, float]
    #: How limits came about that are not the general ones.
    notes: Mapping[str, str] = field(default_factory=dict)
    #: The gates whose limits the user set.
    given: frozenset[str] = frozenset()
    #: Why there is nothing to judge a gate by.
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
    grids: float | None = None,
) -> Limits:
    """The limits of a trained model that is dense, or has ``experts``.

    ``allowances`` are the runtime's own for dense models. ``own`` are the checkpoint's, which count where
    they are narrower. ``given`` are the user's, which count in any case. ``off_lattice`` says that the user
    accepts matrices on no lattice. ``grids`` is the mean divergence that static grids make by themselves, of
    an artifact that applies them. Raises ``UsageError`` as ``check`` does.
    """
    check(given)
    general: dict[str, float] = {**EXPERTS} if experts else {**DENSE, **allowances}
    narrow = _narrower(general, own)
    accepted = {"on_lattice_fraction": 0.0} if off_lattice else {}
    notes = {name: OWN_NOTE for name in narrow if name not in given}
    if grids is not None and (most := _most_of_grids(grids)) < {**general, **narrow}[MEAN]:
        narrow[MEAN] = most
        if MEAN not in given:
            notes[MEAN] = GRIDS_NOTE
    return Limits({**general, **narrow, **accepted, **given}, notes, frozenset(given))


def in_force(limits: Limits, perplexity: float, vocabulary: int, own: OwnLoss | str) -> Limits:
    """``limits`` for a model whose reference has this ``perplexity`` on the text.

    For a model that does not predict the text they are relative: they go by what the runtime loses of itself
    (``own``, or in a line why that is unknown). What the user set stays as it is, and what the checkpoint
    narrows stays as narrow.
    """
    if not perplexity > CHANCE * vocabulary:
        return limits
    why = (
        "since the reference does not predict this text"
        f" (perplexity {perplexity:,.0f}, of {vocabulary:,} tokens)"
    )
    names = [name for name in RELATIVE if name in limits.values and name not in limits.given]
    if isinstance(own, str):
        values = {name: value for name, value in limits.values.items() if name not in names}
        return Limits(values, limits.notes, limits.given, dict.fromkeys(names, f"{own}, {_NEEDED} {why}"))
    values, notes = dict(limits.values), dict(limits.notes)
    for name in names:
        value, rule = _relative(name, own)
        narrowed = name in limits.notes and not _is_narrower(name, value, limits.values[name])
        if math.isfinite(value) and not narrowed:  # what is not finite fails whatever the limit is
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


def _most_of_grids(alone: float) -> float:
    """The limit of ``mean_kld`` where static grids make so much divergence by themselves."""
    return max(_OF_GRIDS * alone, _LEAST_OF_GRIDS)


def _relative(name: str, own: OwnLoss) -> tuple[float, str]:
    """The limit of a gate in ``RELATIVE``, and the rule in words."""
    kld, log_p = own.sum(lambda part: part.mean_kld), own.sum(lambda part: part.mean_abs_log_p)
    told, told_log_p = own.told("mean_kld"), own.told("mean_abs_log_p")
    mean = 1.1 * kld + 1e-4, f"1.1 x {told} + 1e-4"
    if own.grids and _most_of_grids(own.grids) < mean[0]:
        mean = _most_of_grids(own.grids), _GRIDS_RULE
    rules = {
        "mean_kld": mean,
        "same_top_p": (
            1 - 1.1 * own.sum(lambda part: 1 - part.same_top_p) - 0.01,
            f"1 - 1.1 x {own.told('same_top_p', '1 - ')} - 0.01",
        ),
        "decode_mean_kld": (
            2 * kld + own.grids + 1e-4,
            f"2 x {told} + {'activation_grids.mean_kld + ' if own.grids else ''}1e-4",
        ),
        "engine_gap": (6 * log_p + 0.1, f"6 x {told_log_p} + 0.1"),
        "engine_mean_abs": (
            1.1 * own.sum(own.scored_log_p) + 0.01,
            f"1.1 x {told_log_p}{'' if own.scored is None else ' of the scored tokens'} + 0.01",
        ),
    }
    return rules[name]
