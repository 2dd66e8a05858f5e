"""Gates: what an artifact must keep to be called proven, judged by the limits in force (``limits``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converter.errors import UsageError
from targets.target import Difference
from validation.exactness import TensorExactness, WeightExactness, largest_ulps
from validation.limits import (
    AT_LEAST,
    DECODE,
    ENGINE,
    GRAPH,
    RELATIVE,
    TEXT,
    UNROUNDED_DECODE,
    WEIGHTS,
)
from validation.metrics import LogitMetrics

#: Everything beside the weights' values against what the converter makes of the checkpoint. It has no limit
#: that a user could set: what differs either decides nothing or makes another model.
SAME_AS_BUILT = "same_as_built"
#: Gates that may not have run, which a user may allow.
MAY_NOT_RUN = (GRAPH, SAME_AS_BUILT, *TEXT, *RELATIVE)


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit and the value measured against it."""

    name: str
    #: ``None`` where it is relative to what was not measured.
    limit: float | None
    value: float | None
    #: ``None`` for a gate that did not run, which ``note`` explains.
    passed: bool | None
    #: Why, where the numbers do not say so.
    note: str = ""
    #: Whether the user wants to go on without it.
    allowed: bool = False

    def entry(self) -> dict[str, object]:
        """The gate as it stands in report.json."""
        entry: dict[str, object] = {
            "name": self.name,
            "limit": self.limit,
            "value": self.value,
            "passed": self.passed,
        }
        if self.note:
            entry["note"] = self.note
        return entry | {"allowed": True} if self.allowed else entry


def not_run(name: str, limit: float | None, why: str, allowed: Collection[str]) -> Gate:
    """A gate that did not run, ``allowed`` if the user named it."""
    return Gate(name, limit, None, None, f"did not run: {why}", name in allowed)


def check_unrun(names: Collection[str]) -> None:
    """Raise ``UsageError`` for a gate that always runs."""
    for name in names:
        if name not in MAY_NOT_RUN:
            raise UsageError(f"gate {name!r} always runs; those that may not: {', '.join(MAY_NOT_RUN)}")


def verdict(gates: Iterable[Gate]) -> bool | None:
    """Whether all gates passed: ``False`` if one failed, else ``None`` if one did not run."""
    results = [gate.passed for gate in gates]
    return False if False in results else None if None in results else True


def noted(gates: Iterable[Gate], notes: Mapping[str, str]) -> tuple[Gate, ...]:
    """The gates with what ``notes`` say of their limits, by name."""
    return tuple(
        replace(gate, note="; ".join(filter(None, (gate.note, notes.get(gate.name))))) for gate in gates
    )


def judge(
    limits: Mapping[str, float],
    weights: WeightExactness,
    logits: LogitMetrics,
    decode: Mapping[str, float | None] | None = None,
    *,
    rounded: bool = True,
) -> tuple[Gate, ...]:
    """Every gate of ``limits`` but ``GRAPH`` and those of ``ENGINE``, in order. A value that is not finite
    fails its gate.

    ``decode`` is what the runtime measured while it decoded (see ``runners.Runner``), ``None`` where it did
    not: the gates of ``DECODE`` are left out then. ``rounded`` says that activations are rounded to integers.
    """
    gates = []
    for name, limit in limits.items():
        if name in WEIGHTS:
            gates.append(_WEIGHT_GATES[name](limit, weights))
        elif name == GRAPH or name in ENGINE:
            continue
        elif name not in DECODE:
            gates.append(_logits(name, limit, logits))
        elif decode is not None:
            narrow = limit if rounded else min(limit, UNROUNDED_DECODE)
            gates.append(_decode(name, narrow, decode[DECODE[name]]))
    return tuple(gates)


def judge_weights(limits: Mapping[str, float], weights: WeightExactness) -> tuple[Gate, ...]:
    """The gates of ``WEIGHTS`` in ``limits``, in order, for a part of which nothing is run."""
    return tuple(_WEIGHT_GATES[name](limits[name], weights) for name in WEIGHTS if name in limits)


def judge_engine(limits: Mapping[str, float], engine: Mapping[str, Any]) -> tuple[Gate, ...]:
    """The gates of ``ENGINE`` in ``limits``, in order, for what ``engine.measure_engine`` or
    ``tokenization.read_text_side`` found; of an engine that gave no answers, those of ``TEXT``."""
    gates = []
    for name in (name for name in limits if name in ENGINE):
        limit = limits[name]
        if name in TEXT:
            if (found := engine[TEXT[name]]) is not None:
                share = found["equal_fraction"]
                gates.append(Gate(name, limit, share, share >= limit, _TEXT_NOTES[name](found)))
        elif "greedy" not in engine:
            continue
        elif name == "engine_gap":
            gates.append(_gap(name, limit, engine["greedy"]))
        elif (scores := engine["scores"]) is None:
            gates.append(Gate(name, limit, None, False, "the engine could not be given the evaluated tokens"))
        else:
            gates.append(_scores(name, limit, scores["mean_abs"]))
    return tuple(gates)


def fail_text(limits: Mapping[str, float], why: str) -> tuple[Gate, ...]:
    """The gates of ``TEXT`` for an artifact whose text side the runtime cannot read, which ``why`` tells."""
    return tuple(Gate(name, limits[name], None, False, why) for name in TEXT)


def text_not_run(limits: Mapping[str, float], why: str, allowed: Collection[str]) -> tuple[Gate, ...]:
    """The gates of ``TEXT`` where what reads the artifact is not installed."""
    return tuple(not_run(name, limits[name], why, allowed) for name in TEXT)


def _tokens_note(found: Mapping[str, Any]) -> str:
    told = []
    limits = found.get("runtime_limits") or ()
    if different := found["texts"] - found["equal"] - len(limits):
        told.append(
            "the tokens of 1 text differ" if different == 1 else f"the tokens of {different} texts differ"
        )
    if wrong := (found.get("hidden") or {}).get("wrong"):
        several = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        told.append(f"token {wrong[0]['text']!r} is hidden or shown, which it is not to be{several}")
    return "; ".join([*told, *_limits_note(limits, "text")])


def _prompts_note(found: Mapping[str, Any]) -> str:
    told = []
    if other := found["difference"]:
        count = found["chats"] - found["equal"] - len(found["runtime_limits"])
        why = other.get("error") or f"from token {other['token'] + 1} on"
        told.append(f"{count} of {found['chats']} chats become another prompt: {other['chat']}: {why}")
    return "; ".join([*told, *_limits_note(found["runtime_limits"], "chat")])


def _ends_note(found: Mapping[str, Any]) -> str:
    def listed(tokens: Sequence[Mapping[str, Any]]) -> str:
        return ", ".join(f"{one['id']} ({one['text']!r})" for one in tokens[:4])

    told = []
    if missing := found["missing"]:
        told.append(f"goes on after {listed(missing)}")
    if extra := found["extra"]:
        told.append(f"ends at {listed(extra)}, which the checkpoint does not")
    if lost := found["lost"]:
        told.append(f"not counted: no place in the artifact for {listed(lost)}")
    return "; ".join(told)


def _limits_note(limits: Sequence[object], what: str) -> list[str]:
    """What is said of what the runtime itself cannot do."""
    count = len(limits)
    return [
        f"not counted: {count} {what}{'s' * (count != 1)} that the runtime reads otherwise by itself"
    ] * bool(count)


_TEXT_NOTES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "engine_same_tokens": _tokens_note,
    "engine_same_prompts": _prompts_note,
    "engine_same_ends": _ends_note,
}


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


def judge_graph(limit: float, value: float) -> Gate:
    """The gate ``graph_kld``."""
    if not math.isfinite(value):
        return Gate(GRAPH, limit, None, False, "NaN or infinite logits without rounding")
    note = (
        ""
        if value <= limit
        else "metadata or graph are not those of the checkpoint, whatever the weights are"
    )
    return Gate(GRAPH, limit, value, value <= limit, note)


def judge_built(differences: Sequence[Difference]) -> Gate:
    """The gate ``same_as_built``: the number of deciding differences, of which there must be none."""
    deciding = [one for one in differences if one.deciding]
    note = ""
    if deciding:
        first = deciding[0]
        note = f"{first.where}: expected {first.expected}, found {first.found}"
        note += f" (and {len(deciding) - 1} more)" if len(deciding) > 1 else ""
    return Gate(SAME_AS_BUILT, 0, len(deciding), not deciding, note)


def _exactness(limit: float, weights: WeightExactness) -> Gate:
    name, value = "exact_fraction", weights.holdable_fraction
    if value is None:
        return Gate(name, limit, None, True, "no block of this checkpoint can be exact in this artifact")
    return Gate(name, limit, value, value >= limit, _inexactness(weights))


def _inexactness(weights: WeightExactness) -> str:
    """What is to be said of the blocks that are not exact, nothing if all are."""
    told = []
    if wrong := weights.count("wrong"):
        told.append(f"{_blocks(wrong)} not exact; {_largest([one for one in weights.lattice if one.wrong])}")
    if narrow := weights.count("not_representable"):
        told.append(f"{_blocks(narrow)} not counted, whose scale the artifact's type cannot hold")
    if off := weights.count("off_lattice"):
        told.append(f"{_blocks(off)} not counted, which lie on no lattice in the checkpoint")
    return "; ".join(told)


def _largest(wrong: Sequence[TensorExactness]) -> str:
    """The largest errors of tensors with wrong blocks, one of each precision; of values that are no numbers,
    their count."""
    if count := sum(tensor.nan_values for tensor in wrong):
        return "1 value is no number" if count == 1 else f"{count:,} values are no numbers"
    largest = largest_ulps(wrong)
    return f"largest error {', '.join(f'{ulp} {precision} ulp' for precision, ulp in largest.items())}"


def _blocks(count: int) -> str:
    return "1 block is" if count == 1 else f"{count:,} blocks are"


def _values(limit: float, weights: WeightExactness) -> Gate:
    name, value = "exact_values", weights.right_values
    if value is None:
        return Gate(name, limit, None, True, "every weight is stored in blocks")
    wrong = [tensor for tensor in weights.off_lattice if tensor.wrong]
    count = sum(tensor.wrong for tensor in wrong)
    are = "1 value is" if count == 1 else f"{count:,} values are"
    note = f"{are} not what the checkpoint's become; the first in {wrong[0].weight}" if wrong else ""
    return Gate(name, limit, value, value >= limit, note)


def _on_lattice(limit: float, weights: WeightExactness) -> Gate:
    name, value = "on_lattice_fraction", weights.on_lattice_fraction
    if value is None:
        return Gate(name, limit, None, True, "the checkpoint's scheme codes no weight")
    note = ""
    if value < limit:
        off = [
            tensor for tensor in weights.tensors if tensor.coded and tensor.values_on_lattice < tensor.values
        ]
        note = (
            f"{len(off)} of the matrices that QAT trains lie on no lattice or not all of their blocks do; "
            f"the first is {off[0].weight}; is this a QAT checkpoint? --off-lattice TYPE accepts it"
        )
    return Gate(name, limit, value, value >= limit, note)


_WEIGHT_GATES: Mapping[str, Callable[[float, WeightExactness], Gate]] = {
    "exact_fraction": _exactness,
    "exact_values": _values,
    "on_lattice_fraction": _on_lattice,
}


def _logits(name: str, limit: float, logits: LogitMetrics) -> Gate:
    value = float(getattr(logits, name))
    if not math.isfinite(value):
        return Gate(name, limit, None, False, _fault(logits))
    return Gate(name, limit, value, value >= limit if name in AT_LEAST else value <= limit)


def _fault(logits: LogitMetrics) -> str:
    for count, whose in ((logits.faulty, "artifact"), (logits.faulty_reference, "reference")):
        if count:
            return f"NaN or infinite logits of the {whose} at {count} of {logits.positions} positions"
    return "the value is not finite"
