"""Gates: the limits that an artifact must keep to be called proven.

The defaults leave room for what runtimes lose by themselves over 512 positions. llama.cpp, onnxruntime and
LiteRT round activations to 8 bits, which costs a mean KLD of 1e-4 to 1.6e-2 on models of a few million
parameters, most on random ones: their distributions are flat, and the top token agrees in as little as 83 %
of positions. Larger models lose less. LiteRT rounds a whole row of activations by one scale and so loses the
most: 1.5e-4 on the shipped model, 1e-3 to 9e-3 on random models like Gemma 3, E2B, 12B and 31B, 1.2e-2 to
1.6e-2 on those like E4B. A naive Q4_0 of a QAT checkpoint costs 0.02 (the shipped model), 0.05 (E2B,
reported) and up to 1 (small random models). In a mixture of experts the same rounding flips near-ties of the
router, which costs more: 0.05 to 0.07 on small random models, where naive Q4_0 costs 0.95, and the top token
agrees in 78 % of positions; that of 26B-A4B agrees in 86 % and 70 % (reported).

A runtime that decodes token by token is compared with itself, all positions at once. In float32 both agree to
a mean KLD of 1e-11; where activations are rounded to 8 bits, a small difference moves some to the next step,
which costs onnxruntime 6e-5 (the shipped model) to 2.5e-3 on small random dense models, up to 1.5e-2 with
experts, and LiteRT nothing: its prefill leaves the same keys and values to the last bit. Keys and values that
are lost cost more: 0.1 (the shipped model) to 1.3 if it is those of the first token alone, 0.5 to 3 if it is
all.

An engine, which takes and gives text, must make the checkpoint's own tokens of every text. Where its
likeliest text leaves the reference's, the reference holds the two tokens nearly equal: up to 0.31 nats apart
in small random dense models and 0.45 with experts (0.02 in the shipped model); with weights of another scheme
the largest gap of four prompts is 2.4 to 7. Its log-probabilities of the evaluated tokens are off by 0.04
to 0.13 nats on average in small random dense models, by 0.2 with experts (0.014 in the shipped model); with
weights of another scheme by 0.7 to 1.4, with those that the shipped model had before its last training by
0.33.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from converter.errors import UsageError
from validation.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, LogitMetrics
from validation.weights import NAN_ULP, WeightExactness

#: Limits that apply unless the user sets others, for dense models and for mixtures of experts.
DENSE: Mapping[str, float] = {
    "exact_fraction": 0.9999,
    "mean_kld": 0.015,
    "same_top_p": 0.8,
    "decode_mean_kld": 0.01,
    "engine_same_tokens": 1.0,
    "engine_gap": 1.0,
    "engine_mean_abs": 0.25,
}
EXPERTS: Mapping[str, float] = {
    "exact_fraction": 0.9999,
    "mean_kld": 0.15,
    "same_top_p": 0.72,
    "decode_mean_kld": 0.06,
    "engine_same_tokens": 1.0,
    "engine_gap": 2.0,
    "engine_mean_abs": 0.6,
}
#: Both agree to 1e-11 where activations are float32, to 1e-5 where they are float16: then the gate of
#: decoding is as narrow as this, unless it is set narrower.
UNROUNDED_DECODE = 1e-3
#: Gates that apply only where the runtime decodes token by token, by the key of what it measures then.
DECODE: Mapping[str, str] = {"decode_mean_kld": "mean_kld"}
#: Gates that apply only where an engine ran the artifact.
ENGINE = ("engine_same_tokens", "engine_gap", "engine_mean_abs")
_AT_LEAST = ("exact_fraction", *HIGHER_IS_BETTER)
#: Everything that may be given a limit.
KNOWN = (*_AT_LEAST, *LOWER_IS_BETTER, *DECODE, *ENGINE)


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit and the value measured against it; ``note`` says why where the numbers do not."""

    name: str
    limit: float
    value: float | None
    passed: bool
    note: str = ""

    def entry(self) -> dict[str, object]:
        """The gate as it stands in report.json."""
        entry: dict[str, object] = {
            "name": self.name,
            "limit": self.limit,
            "value": self.value,
            "passed": self.passed,
        }
        return entry | {"note": self.note} if self.note else entry


def limits(
    overrides: Mapping[str, float],
    *,
    experts: bool = False,
    allowances: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    """The limits that apply to a dense model, or to one with ``experts``.

    ``allowances`` are the runtime's own for dense models, ``overrides`` what the user set. Raises
    ``UsageError`` for an unknown gate or a limit that is no number.
    """
    for name, limit in overrides.items():
        if name not in KNOWN:
            raise UsageError(f"unknown gate {name!r}; known: {', '.join(KNOWN)}")
        if not math.isfinite(limit):
            raise UsageError(f"gate {name}: {limit} is no limit")
    return {**(EXPERTS if experts else {**DENSE, **allowances}), **overrides}


def judge(
    limits: Mapping[str, float],
    weights: WeightExactness,
    logits: LogitMetrics,
    decode: Mapping[str, float | None] | None = None,
    *,
    rounded: bool = True,
) -> tuple[Gate, ...]:
    """Every gate of ``limits`` but those of ``ENGINE``, in order. A value that is not finite fails its gate.

    ``decode`` is what the runtime measured while it decoded (see ``runners.Runner``), ``None`` where it did
    not: the gates of ``DECODE`` are left out then. ``rounded`` says that activations are rounded to integers.
    """
    gates = []
    for name, limit in limits.items():
        if name == "exact_fraction":
            gates.append(_exactness(limit, weights))
        elif name in ENGINE:
            continue
        elif name not in DECODE:
            gates.append(_logits(name, limit, logits))
        elif decode is not None:
            narrow = limit if rounded else min(limit, UNROUNDED_DECODE)
            gates.append(_decode(name, narrow, decode[DECODE[name]]))
    return tuple(gates)


def judge_engine(limits: Mapping[str, float], engine: Mapping[str, Any]) -> tuple[Gate, ...]:
    """The gates of ``ENGINE`` in ``limits``, in order, for what ``engine.measure_engine`` found."""
    tokens, scores = engine["tokenizer"], engine["scores"]
    gates = []
    for name in (name for name in limits if name in ENGINE):
        limit = limits[name]
        if name == "engine_same_tokens":
            share = tokens["equal_fraction"]
            note = "" if share == 1 else f"the tokens of {tokens['texts'] - tokens['equal']} texts differ"
            gates.append(Gate(name, limit, share, share >= limit, note))
        elif name == "engine_gap":
            gates.append(_gap(name, limit, engine["greedy"]))
        elif scores is None:
            gates.append(Gate(name, limit, None, False, "the engine could not be given the evaluated tokens"))
        else:
            gates.append(_scores(name, limit, scores["mean_abs"]))
    return tuple(gates)


def _gap(name: str, limit: float, greedy: Mapping[str, Any]) -> Gate:
    known = any(one["divergence"] and one["divergence"]["gap"] is not None for one in greedy["texts"])
    if greedy["characters"] and not greedy["equal_characters"] and not known:
        return Gate(name, limit, None, False, "the engine gave no text that could be compared")
    return Gate(name, limit, greedy["largest_gap"], greedy["largest_gap"] <= limit)


def _scores(name: str, limit: float, value: float | None) -> Gate:
    if value is None:
        return Gate(name, limit, None, False, "log-probabilities that are not finite")
    return Gate(name, limit, value, value <= limit)


def _decode(name: str, limit: float, value: float | None) -> Gate:
    if value is None:
        return Gate(name, limit, None, False, "NaN or infinite logits, decoding token by token")
    return Gate(name, limit, value, value <= limit)


def _exactness(limit: float, weights: WeightExactness) -> Gate:
    value = weights.exact_fraction
    if value is None:
        return Gate("exact_fraction", limit, None, True, "no weight of this checkpoint lies on a lattice")
    if value >= limit:
        return Gate("exact_fraction", limit, value, True)
    return Gate("exact_fraction", limit, value, False, _inexactness(weights))


def _inexactness(weights: WeightExactness) -> str:
    count = sum(tensor.blocks - tensor.exact_blocks for tensor in weights.lattice)
    ulp = max(tensor.max_ulp for tensor in weights.lattice)
    are = "1 block is" if count == 1 else f"{count} blocks are"
    error = "values that are no numbers" if ulp >= NAN_ULP else f"largest error {ulp} bf16 ulp"
    return f"{are} not exact; {error}"


def _logits(name: str, limit: float, logits: LogitMetrics) -> Gate:
    value = float(getattr(logits, name))
    if not math.isfinite(value):
        return Gate(name, limit, None, False, _fault(logits))
    return Gate(name, limit, value, value >= limit if name in _AT_LEAST else value <= limit)


def _fault(logits: LogitMetrics) -> str:
    for count, whose in ((logits.faulty, "artifact"), (logits.faulty_reference, "reference")):
        if count:
            return f"NaN or infinite logits of the {whose} at {count} of {logits.positions} positions"
    return "the value is not finite"
