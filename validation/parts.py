"""Parts of an artifact beside the text model, such as a vision encoder: their weights, read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from converter.errors import ValidationError
from validation.exactness import WeightExactness, measure
from validation.gates import Gate, judge_weights, verdict
from validation.judging import limits_of
from validation.report.entries import weights_entry
from validation.running import Bench
from validation.subject import Subject


@dataclass(frozen=True, slots=True)
class MeasuredPart:
    """A part of an artifact."""

    name: str
    #: How exact its weights are.
    weights: WeightExactness
    #: What the gates say.
    gates: tuple[Gate, ...]

    def entry(self) -> Mapping[str, Any]:
        """The part under ``parts`` in the target's entry of the report, without files and bytes."""
        return {
            "passed": verdict(self.gates),
            "weights": weights_entry(self.weights),
            "gates": [gate.entry() for gate in self.gates],
        }


def measure_parts(bench: Bench, subject: Subject) -> tuple[MeasuredPart, ...]:
    """Every part beside the text model for which the artifact's plan has a place, by the gates of weights.

    A part is compared with the checkpoint tensor by tensor, as far as the plan names its tensors. Raises
    ``ValidationError`` when the artifact lacks one of them, or the checkpoint has no such weight.
    """
    return tuple(_measure(bench, subject, part) for part in subject.plan.parts)


def _measure(bench: Bench, subject: Subject, part: str) -> MeasuredPart:
    held = bench.checkpoint.parts.get(part, {})
    planned = {tensor.weight for tensor in subject.plan.of_part(part) if tensor.weight is not None}
    if unread := sorted(planned - held.keys()):
        raise ValidationError(f"{part}: the checkpoint has no numbers to compare {unread[0]} with")
    weights = {name: weight for name, weight in held.items() if name in planned}
    one = replace(bench.checkpoint, weights=weights)
    found = measure(one, subject.stored, bench.stage(f"checking weights ({part}, {bench.target.name})"))
    return MeasuredPart(part, found, judge_weights(limits_of(bench).values, found))
