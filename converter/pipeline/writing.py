"""Artifacts written by their targets, before anything of them is measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.parts import TEXT
from converter.errors import ExtensionError
from converter.pipeline import manifest
from converter.pipeline.running import Running
from converter.system.amounts import amount
from converter.system.progress import Progress
from targets.storing import is_matrix
from targets.target import BlockCounts, Plan, Stored, Target

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")


@dataclass(frozen=True, slots=True)
class Written:
    """What a target wrote."""

    target: Target
    #: What it wrote by.
    plan: Plan
    #: The directory below which it wrote.
    scratch: Path
    #: The way to run the artifact by which it was written, ``None`` where nothing is to be chosen.
    choice: Mapping[str, object] | None
    #: Those of the plan and those of writing.
    warnings: Sequence[str]
    #: The paths of all its files.
    files: Sequence[str]
    #: What the recovery verified of the text model's matrices, as the report tells it. ``None`` for a target
    #: that does not count.
    recovery: Mapping[str, int] | None

    @property
    def artifact(self) -> Path:
        """The main (or first) file."""
        return self.scratch / self.plan.artifacts[0]

    @property
    def bytes(self) -> int:
        """Of the artifact's files."""
        return sum((self.scratch / name).stat().st_size for name in self.plan.artifacts)

    @property
    def changing(self) -> set[Path]:
        """The files that a choice may still change or replace."""
        if not self.target.choices(self.plan):
            return set()
        files = self.plan.files if _replaced(self.target, self.plan) else self.plan.files[:1]
        return {self.scratch / file.path for file in files}


def write(
    run: Running, plans: Sequence[Plan], scratch: Path, progress: Progress, *, measured: bool
) -> list[Written]:
    """Write the artifacts of all targets below ``scratch`` and tell their warnings. ``measured`` says that
    measuring is to choose among the ways of a target."""
    done: list[Written] = []
    before: set[Path] = set()
    for target, plan in zip(run.targets, plans, strict=True):
        choice = _first_choice(target, plan, measured)
        made = plan if choice is None else target.written(plan, choice)
        stored = target.write(run.model.checkpoint, made, scratch, progress)
        if not isinstance(stored, Stored):
            kind = type(stored).__name__
            raise ExtensionError(
                f"target {target.name} says by a {kind} what it has written, not by a Stored: it is made for "
                "another version of qatconvert"
            )
        for warning in stored.warnings:
            run.warn(warning)
        found = set(manifest.files_of(scratch))
        files = sorted(path.relative_to(scratch).as_posix() for path in found - before)
        for name in files:
            _LOG.info("%s: written, %s", name, amount((scratch / name).stat().st_size))
        warnings = [*plan.warnings, *stored.warnings]
        recovery = _recovery(run.model.checkpoint, made, stored.blocks)
        done.append(Written(target, plan, scratch, choice, warnings, files, recovery))
        before = found
    return done


def _recovery(checkpoint: Checkpoint, plan: Plan, blocks: BlockCounts | None) -> dict[str, int] | None:
    """Matrices of the text model, those of them that are stored as their own codes, and the blocks of
    these."""
    if blocks is None:
        return None
    text = plan.of_part(TEXT)
    stored = {tensor.weight for tensor in text if tensor.weight is not None}
    coded = {tensor.weight for tensor in text if tensor.scales is not None}
    return {
        "matrices": sum(is_matrix(checkpoint.weights[name]) for name in stored),
        "coded_matrices": len(coded),
        "blocks": blocks.blocks,
        "exact_blocks": blocks.exact,
        "not_representable_blocks": blocks.rounded_scales,
        "off_lattice_blocks": blocks.off_lattice,
    }


def _replaced(target: Target, plan: Plan) -> bool:
    """Whether a choice takes an artifact of its own."""
    return any(target.written(plan, choice) is not plan for choice in target.choices(plan))


def _first_choice(target: Target, plan: Plan, measured: bool) -> Mapping[str, object] | None:
    """The choice by which a target's artifact is written: the most accurate one. It is the first where
    choices are to be measured and each has an artifact of its own. ``None`` where nothing is to be chosen."""
    choices = target.choices(plan)
    if not choices:
        return None
    return choices[0] if measured and _replaced(target, plan) else choices[-1]
