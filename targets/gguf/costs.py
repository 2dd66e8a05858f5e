"""What conversions to this target were measured to take: docs/performance.md, at E2B's full size and for the
shipped checkpoint."""

from __future__ import annotations

from typing import Final

from targets.estimates import Costs, measured

#: Seconds and gigabytes.
COSTS: Final[Costs] = measured(alone=((1.4, 0.11), (12, 0.3)), with_proof=((12, 0.52), (196, 10.7)))
