"""What conversions to this target were measured to take: docs/performance.md, at E2B's full size and for the
shipped checkpoint."""

from __future__ import annotations

from typing import Final

from targets.estimates import Costs, measured

#: Seconds and gigabytes.
COSTS: Final[Costs] = measured(alone=((53, 0.65), (111, 1.1)), with_proof=((67, 0.88), (384, 11.9)))
