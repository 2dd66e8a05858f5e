"""An artifact beside what the converter makes of its checkpoint: the gate ``same_as_built`` and the report's
list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from converter.errors import UsageError
from targets.target import Difference, Plan, check_installed
from validation.gates import SAME_AS_BUILT, Gate, judge_built, not_run
from validation.running import Bench

#: Differences that a report lists, deciding ones first.
LISTED = 200


@dataclass(frozen=True, slots=True)
class Built:
    """How an artifact was judged beside what is built."""

    #: The gate, none for another tool's artifact.
    gates: tuple[Gate, ...]
    #: What stands in the target's entry of the report.
    entry: Mapping[str, object]


def compare_as_built(bench: Bench, artifact: Path, plan: Plan) -> Built:
    """What differs in ``artifact`` from what the converter makes by ``plan``. It is judged by a gate unless
    the artifact is another tool's. Raises ``CheckpointError`` for a damaged file."""
    settings = bench.settings
    try:
        check_installed([bench.target])
    except UsageError as error:  # it takes the target's own libraries to build anything
        missing = not_run(SAME_AS_BUILT, 0, str(error), settings.allow_unrun)
        return Built(() if settings.foreign else (missing,), {"foreign": settings.foreign})
    differences = bench.target.differences(artifact, bench.checkpoint, plan, bench.progress)
    return built(differences, foreign=settings.foreign)


def built(differences: Sequence[Difference], *, foreign: bool = False) -> Built:
    """Judge ``differences``. Those of a ``foreign`` artifact, which another tool wrote, are listed alone."""
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
