"""What a conversion takes, told before it is begun: sizes of files, time and memory.

A target that is ``Estimated`` brings a small table of measured costs. Of any other one nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from converter.checkpoint.canonical_names import EMBEDDING, PER_LAYER_EMBEDDING
from converter.checkpoint.opened import Checkpoint
from targets.target import Plan, Target

#: Where all costs were measured, which stand in docs/performance.md.
MACHINE: Final = "two cores of a shared EPYC machine, files in the page cache"


@dataclass(frozen=True, slots=True)
class Linear:
    """A cost that grows evenly: ``fixed + each * count``."""

    fixed: float
    each: float

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> Linear:
        """The line through two measurements, each a count and a cost."""
        each = (large[1] - small[1]) / (large[0] - small[0])
        return cls(small[1] - each * small[0], each)

    def of(self, count: float) -> float:
        """The cost of so many."""
        return self.fixed + self.each * count


@dataclass(frozen=True, slots=True)
class Costs:
    """What a target's conversion was measured to take; memory is that of all processes, in bytes."""

    #: Without a proof, by bytes of the checkpoint.
    seconds: Linear
    #: Without a proof, by tokens of the vocabulary.
    memory: Linear
    #: With a proof, by weights that are multiplied.
    proof_seconds: Linear
    #: With a proof, likewise.
    proof_memory: Linear


@dataclass(frozen=True, slots=True)
class Takes:
    """What a conversion is expected to take."""

    seconds: float
    #: Bytes of all processes at once.
    memory: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a target's conversion is expected to take, alone and with its proof."""

    alone: Takes
    with_proof: Takes


@runtime_checkable
class Estimated(Protocol):
    """What a target may have beside the rest."""

    #: What its conversions were measured to take.
    costs: Costs

    def file_sizes(self, checkpoint: Checkpoint, plan: Plan) -> Mapping[str, int]:
        """Bytes of the files of ``plan`` by path, as far as they are known exactly before they are
        written. ``checkpoint`` may be without its weights."""


#: What the figures of ``measured`` belong to: the shipped checkpoint and E2B's text part, both in bfloat16.
#: Bytes, tokens of the vocabulary, weights that are multiplied (those that ``multiplied`` counts).
DEMO: Final = (5_165_906, 1280, 2_207_744)
E2B: Final = (9_260_000_000, 262_144, 2_280_000_000)
Measured = tuple[float, float]


def measured(alone: tuple[Measured, Measured], with_proof: tuple[Measured, Measured]) -> Costs:
    """The costs of a target by seconds and gigabytes that were measured for the shipped checkpoint and for
    E2B's text part."""

    def line(what: int, costs: tuple[Measured, Measured], figure: int, unit: float) -> Linear:
        small, large = costs
        return Linear.through((DEMO[what], small[figure] * unit), (E2B[what], large[figure] * unit))

    return Costs(
        seconds=line(0, alone, 0, 1),
        memory=line(1, alone, 1, 1e9),
        proof_seconds=line(2, with_proof, 0, 1),
        proof_memory=line(2, with_proof, 1, 1e9),
    )


def estimate(target: Target, checkpoint: Checkpoint, most_memory: int) -> Estimate | None:
    """What a conversion of ``checkpoint`` is expected to take, ``None`` for a target that has no costs. The
    reference's weights take at most ``most_memory`` bytes: beyond it they are read from disk."""
    if not isinstance(target, Estimated):
        return None
    costs = target.costs
    multiplied = multiplied_weights(checkpoint)
    alone = Takes(
        costs.seconds.of(checkpoint.stored_bytes),
        math.ceil(costs.memory.of(checkpoint.architecture.vocabulary)),
    )
    held = min(costs.proof_memory.each * multiplied, max(most_memory, 0))
    proof = Takes(
        max(costs.proof_seconds.of(multiplied), alone.seconds),
        max(math.ceil(costs.proof_memory.fixed + held), alone.memory),
    )
    return Estimate(alone, proof)


def multiplied_weights(checkpoint: Checkpoint) -> int:
    """Values of the matrices that a reference multiplies by, and so holds as float32. Rows of other tables
    are looked up."""
    tied = checkpoint.architecture.tied_head
    looked_up = {PER_LAYER_EMBEDDING, *(() if tied else (EMBEDDING,))}
    return sum(
        weight.size
        for name, weight in checkpoint.weights.items()
        if len(weight.shape) > 1 and name not in looked_up
    )


def file_sizes(target: Target, checkpoint: Checkpoint, plan: Plan) -> Mapping[str, tuple[int, bool]]:
    """Bytes of each file of a plan by path, and whether they are exact; else they are what its tensors
    take."""
    exact = target.file_sizes(checkpoint, plan) if isinstance(target, Estimated) else {}
    return {file.path: _size(file.path, file.bytes, exact) for file in plan.files}


def _size(path: str, planned: int, exact: Mapping[str, int]) -> tuple[int, bool]:
    return (exact[path], True) if path in exact else (planned, False)
