"""Processors beside the CPU that may run a part of an artifact, as far as their makers' compilers tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from targets.target import Plan, Target


@dataclass(frozen=True, slots=True)
class Cell:
    """Operators of a plan that read weights of one type and take activations in one way."""

    operator: str
    #: The weights'.
    type: str
    #: How activations are taken, in words; empty where the operator takes none.
    input: str
    #: Whether the processor takes them; what it does not take falls back to the CPU. ``None`` where its
    #: compiler could not be asked.
    taken: bool | None = None


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What a processor's compiler says of a plan."""

    #: The vendor, as options name it.
    vendor: str
    #: The processor that was asked for; ``None`` where none is known.
    processor: str | None
    cells: Sequence[Cell]
    #: In a line why the compiler could not be asked; ``None`` where it was.
    untried: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as ``inspect --json`` prints it."""
        return {**asdict(self), "cells": [asdict(cell) for cell in self.cells]}


@runtime_checkable
class Accelerated(Protocol):
    """What a target may have beside the rest: it asks compilers of other processors."""

    def accelerators(self, plan: Plan) -> Sequence[Accelerator]:
        """What each vendor's compiler says of ``plan``, sorted by vendor. Nothing is compiled for good."""


def accelerators(target: Target, plan: Plan) -> list[dict[str, Any]] | None:
    """What compilers say of a plan, as ``inspect --json`` prints it; ``None`` for a target that asks none."""
    if not isinstance(target, Accelerated):
        return None
    return [one.as_dict() for one in target.accelerators(plan)]
