"""An artifact that is measured, and the ones that other choices take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.opened import Checkpoint
from converter.system.progress import Progress, stage_of
from targets.target import Plan, StoredTensor, Target
from validation.exactness import WeightExactness, measure


@dataclass(frozen=True, slots=True)
class Subject:
    """An artifact that is measured."""

    artifact: Path
    #: How it is to be.
    plan: Plan
    #: Its tensors as they are stored.
    stored: Mapping[str, StoredTensor]
    #: How exact its weights are.
    weights: WeightExactness


def read_subject(
    target: Target, checkpoint: Checkpoint, artifact: Path, plan: Plan, progress: Progress
) -> Subject:
    """The artifact in the file ``artifact``, read back. Raises ``CheckpointError`` for a damaged one."""
    stage = stage_of(progress, f"checking weights ({target.name})")
    stored = target.describe(artifact, checkpoint)
    return Subject(artifact, plan, stored, measure(checkpoint, stored, stage))


def subject_of(
    target: Target,
    checkpoint: Checkpoint,
    choice: Mapping[str, object],
    first: Subject,
    directory: Path,
    progress: Progress,
) -> Subject:
    """What runs as ``choice``, one of the target's: ``first``, or an artifact of its own, which is written
    below ``directory``. Raises what ``target.write`` raises."""
    plan = target.written(first.plan, choice)
    if plan == first.plan:
        return first
    target.write(checkpoint, plan, directory, progress)
    return read_subject(target, checkpoint, directory / plan.artifacts[0], plan, progress)
