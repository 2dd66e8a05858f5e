"""Whether a conversion can be written where it is to lie: nothing in its way, and room for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converter.filenames import MANIFEST
from converter.pipeline.earlier import Earlier, check_targets, read_earlier
from converter.pipeline.running import Running
from converter.system import output
from converter.system.memory import check_memory
from targets.target import Plan


def check_destination(destination: Path, names: Sequence[str], force: bool) -> Earlier | None:
    """The earlier conversion to which the targets ``names`` can be added, if there is one; raises
    ``DestinationError``."""
    earlier = read_earlier(destination)
    output.check_destination(destination, force or earlier is not None)
    if earlier is not None and not force:
        check_targets(earlier, names)
    return earlier


def check_room(run: Running, plans: Sequence[Plan]) -> None:
    """Raise ``DestinationError`` where the files of ``plans`` have no place or would replace the source's,
    and ``TargetError`` where there is no memory to write them."""
    output.check_source(run.destination, run.model.checkpoint.files)
    made = [Path(file.path) for plan in plans for file in plan.files]
    output.check_places(run.destination, [*made, Path(MANIFEST)])
    output.check_space(run.destination, sum(plan.size for plan in plans))
    for plan in plans:
        if plan.elsewhere is not None:
            output.check_elsewhere(plan.elsewhere, run.destination)
        check_memory(plan.target, plan.memory)
