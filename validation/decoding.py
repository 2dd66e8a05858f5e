"""Decoding token by token, compared with the same positions computed at once, and its speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from validation.metrics import divergence

#: Positions that are decoded one by one and compared.
DECODED: Final = 128
#: Steps whose time does not count: the first ones allocate.
_WARM_UP: Final = 8


def compare_decoding(
    steps: Iterable[tuple[NDArray[np.float32], float]],
    at_once: Callable[[int], NDArray[np.float32]],
    progress: Callable[[int], None],
) -> dict[str, object]:
    """What ``runners.Runner`` calls ``decode``: at least one step against the logits ``at_once(index)``.

    Each of ``steps`` is the logits ``[vocabulary]`` of a token, decoded behind those before it, and the
    seconds that the runtime took. ``progress`` is called with the number of steps done. Speed is one over
    the median time of a step after the first ones; divergences are ``None`` where a logit is not finite.
    """
    klds, largest, seconds = [], [], []
    for index, (logits, time) in enumerate(steps):
        seconds.append(time)
        whole, single = (row.astype(np.float64) for row in (at_once(index), logits))
        finite = bool(np.isfinite(whole).all() and np.isfinite(single).all())
        klds.append(divergence(whole, single) if finite else math.nan)
        largest.append(float(np.abs(whole - single).max()) if finite else math.nan)
        progress(index + 1)
    timed = seconds[min(_WARM_UP, len(seconds) // 2) :]
    sound = not any(map(math.isnan, klds))
    return {
        "positions": len(klds),
        "mean_kld": statistics.fmean(klds) if sound else None,
        "max_kld": max(klds) if sound else None,
        "max_abs": max(largest) if sound else None,
        "tokens_per_second": 1 / statistics.median(timed),
        "fastest_tokens_per_second": 1 / min(timed),
    }
