"""An artifact beside what the converter makes of its checkpoint: the gate ``same_as_built`` and the report's
list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from targets.target import Difference
from validation.gates import Gate, judge_built

#: Differences that a report lists, deciding ones first.
LISTED = 200


@dataclass(frozen=True, slots=True)
class Built:
    """The gate, none for another tool's artifact, and what stands in the target's entry of the report."""

    gates: tuple[Gate, ...]
    entry: Mapping[str, object]


def built(differences: Sequence[Difference], *, foreign: bool = False) -> Built:
    """Judge ``differences``; of a ``foreign`` artifact, which another tool wrote, they are listed alone."""
    deciding = sum(one.deciding for one in differences)
    entry: dict[str, object] = {
        "differences": {
            "deciding": deciding,
            "descriptive": len(differences) - deciding,
            "listed": [asdict(one) for one in sorted(differences, key=lambda one: not one.deciding)[:LISTED]],
        }
    }
    if foreign:
        return Built((), {**entry, "foreign": True})
    return Built((judge_built(differences),), entry)
