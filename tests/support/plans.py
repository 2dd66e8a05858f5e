"""Plans that tests share: one takes longer to make than what it is made for takes with a small model."""

from __future__ import annotations

from collections.abc import Mapping

from converter.checkpoint.opened import Checkpoint
from targets.target import Plan, Target

#: Checkpoints are kept with their plans, so that no other one gets the same ``id``.
_MADE: dict[tuple[str, int, str], tuple[Checkpoint, Plan]] = {}


def plan_of(target: Target, checkpoint: Checkpoint, options: Mapping[str, object]) -> Plan:
    """The plan of a model called ``model``; equal calls with one checkpoint share it."""
    key = target.name, id(checkpoint), repr(options)
    if key not in _MADE:
        _MADE[key] = checkpoint, target.plan(checkpoint, "model", options)
    return _MADE[key][1]
