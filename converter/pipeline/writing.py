"""Artifacts written by their targets, before anything of them is measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converter.pipeline import manifest
from converter.pipeline.running import Running
from converter.system.amounts import amount
from converter.system.progress import Progress
from targets.target import Plan, Target

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
        warnings = target.write(run.model.checkpoint, made, scratch, progress)
        for warning in warnings:
            run.warn(warning)
        found = set(manifest.files_of(scratch))
        files = sorted(path.relative_to(scratch).as_posix() for path in found - before)
        for name in files:
            _LOG.info("%s: written, %s", name, amount((scratch / name).stat().st_size))
        done.append(Written(target, plan, scratch, choice, [*plan.warnings, *warnings], files))
        before = found
    return done


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
