"""What conversions to this target were measured to take: docs/performance.md, at E2B's full size and for the
shipped checkpoint."""

from __future__ import annotations

from typing import Final

from targets.estimates import Costs, measured

#: Seconds and gigabytes.
COSTS: Final[Costs] = measured(alone=((4.8, 0.33), (17, 0.5)), with_proof=((16, 0.77), (191, 10.8)))
