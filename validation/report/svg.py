"""Plots of a report as SVG text: small, deterministic, readable in light and dark, no scripts.

Colours are CSS classes of the page that embeds the plots (``a``: the artifact, ``b``: its baseline). Each
plot has a title and a description for readers who do not see it, and series differ by shape as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 26, 42


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels."""

    #: The values at its ends.
    low: float
    high: float
    #: The pixels at its ends.
    start: float
    end: float
    log: bool
    #: (value, label) of each.
    ticks: tuple[tuple[float, str], ...]

    def __call__(self, value: float) -> float:
        """Pixel of ``value``, kept within the axis."""
        change: Callable[[float], float] = math.log10 if self.log else float
        value = min(max(value, self.low), self.high)
        share = (change(value) - change(self.low)) / (change(self.high) - change(self.low))
        return self.start + share * (self.end - self.start)


def log_axis(values: Iterable[float], start: float, end: float) -> Axis:
    """A logarithmic axis over whole decades that holds all positive ``values`` (at least one decade, at
    most twelve; zeros lie at its lower end)."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    high = math.ceil(math.log10(max(positive))) if positive else 0
    low = max(math.floor(math.log10(min(positive))), high - 12) if positive else -1
    low = min(low, high - 1)
    step = 1 if high - low <= 7 else 2
    ticks = tuple((10.0**power, _power(power)) for power in range(low, high + 1, step))
    return Axis(10.0**low, 10.0**high, start, end, True, ticks)


def linear_axis(high: float, ticks: Sequence[tuple[float, str]], start: float, end: float) -> Axis:
    """A linear axis from 0 to ``high``."""
    return Axis(0.0, max(high, 1e-12), start, end, False, tuple(ticks))


def _power(power: int) -> str:
    return str(10**power) if 0 <= power <= 3 else f"1e{power}"


@dataclass(frozen=True, slots=True)
class Series:
    """Values with a name."""

    name: str
    #: ``a`` or ``b``.
    style: str
    values: Sequence[float | None]


def kld_by_position(series: Sequence[Series], spans: Sequence[tuple[str, int]]) -> str:
    """KLD of every position on a log scale. ``spans`` are (kind, positions) of the sequences in order."""
    total = max(1, sum(length for _, length in spans))
    x = linear_axis(total, [(value, str(value)) for value in _steps(total)], _LEFT, WIDTH - _RIGHT)
    y = log_axis((value for one in series for value in one.values if value), HEIGHT - _BOTTOM, _TOP)
    parts = [_bands(spans, x), _grid(x, y, "position", "KLD (nats)")]
    for one in series:
        dots = [(x(i + 0.5), y(v)) for i, v in enumerate(one.values) if v is not None]
        parts.append(_marks(dots, one.style))
    parts.append(_legend(series))
    return _svg(
        "KL divergence at every position",
        f"{total} positions of {len(spans)} sequences; a logarithmic scale. " + _summary(series),
        parts,
    )


def kld_distribution(series: Sequence[Series]) -> str:
    """Share of positions whose KLD is at most x, on a log scale."""
    x = log_axis((value for one in series for value in one.values if value), _LEFT, WIDTH - _RIGHT)
    ticks = [(share / 4, f"{25 * share} %") for share in range(5)]
    y = linear_axis(1.0, ticks, HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x, y, "KLD (nats)", "positions")]
    for one in series:
        values = sorted(value for value in one.values if value is not None)
        points = [(x(value), y((index + 1) / len(values))) for index, value in enumerate(values)]
        if points:
            parts.append(_line([(points[0][0], y(0.0)), *points], one.style))
    parts.append(_legend(series))
    return _svg(
        "Distribution of the KL divergence",
        "Share of positions at or below a divergence. " + _summary(series),
        parts,
    )


def exactness_by_tensor(series: Sequence[Series], names: Sequence[str]) -> str:
    """Share of exact blocks of each lattice tensor, in the checkpoint's order."""
    count = max(1, len(names))
    x = linear_axis(count, [(value, str(value)) for value in _steps(count)], _LEFT, WIDTH - _RIGHT)
    ticks = [(share / 4, f"{25 * share} %") for share in range(5)]
    y = linear_axis(1.0, ticks, HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x, y, "tensor, in the checkpoint's order", "exact blocks")]
    for one in series:
        dots = [(x(i + 0.5), y(v)) for i, v in enumerate(one.values) if v is not None]
        parts.append(_marks(dots, one.style))
    parts.append(_legend(series))
    lows = [
        f"{one.name}: lowest {min(v for v in one.values if v is not None):.2%}"
        for one in series
        if any(v is not None for v in one.values)
    ]
    return _svg("Exact blocks of every tensor", f"{len(names)} tensors. " + "; ".join(lows), parts)


def _steps(total: int) -> list[int]:
    """About eight round numbers from 0 to ``total``."""
    raw = max(1.0, total / 8)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = int(next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw))
    return list(range(0, total + 1, step))


def _summary(series: Sequence[Series]) -> str:
    found = []
    for one in series:
        values = sorted(value for value in one.values if value is not None)
        if values:
            found.append(f"{one.name}: median {values[len(values) // 2]:.2g}, largest {values[-1]:.2g}")
    return "; ".join(found) + "."


def _svg(title: str, description: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _grid(x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    lines = [f"M{x.start} {y(value):.1f}H{x.end}" for value, _ in y.ticks]
    parts = [f'<path class="grid" d="{"".join(lines)}"/>']
    if x.log:
        uprights = "".join(f"M{x(value):.1f} {y.start}V{y.end}" for value, _ in x.ticks)
        parts.append(f'<path class="grid" d="{uprights}"/>')
    parts.append(f'<path class="axis" d="M{x.start} {y.start}H{x.end}"/>')
    parts += [_text(x.start - 6, y(value) + 4, label, "end") for value, label in y.ticks]
    parts += [_text(x(value), y.start + 16, label) for value, label in x.ticks]
    parts.append(_text((x.start + x.end) / 2, HEIGHT - 8, x_label))
    middle = (y.start + y.end) / 2
    parts.append(_text(13, middle, y_label, extra=f' transform="rotate(-90 13 {middle:.1f})"'))
    return "".join(parts)


def _bands(spans: Sequence[tuple[str, int]], x: Axis) -> str:
    """Every other sequence on a shaded ground, its kind above it where it fits."""
    parts, start = [], 0
    for index, (kind, length) in enumerate(spans):
        left, right = x(start), x(start + length)
        if index % 2:
            parts.append(
                f'<rect class="band" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}"'
                f' height="{HEIGHT - _BOTTOM - _TOP}"/>'
            )
        if right - left > 6.5 * len(kind):
            parts.append(_text((left + right) / 2, HEIGHT - _BOTTOM - 5, kind, extra=' class="kind"'))
        start += length
    return "".join(parts)


def _marks(points: Sequence[tuple[float, float]], style: str) -> str:
    """Dots for the artifact (strokes of no length with round ends), small crosses for the baseline."""
    if style == "a":
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    else:
        path = "".join(f"M{x - 2:.1f} {y - 2:.1f}l4 4m-4 0l4 -4" for x, y in points)
    return f'<path class="marks {style}" d="{path}"/>'


def _line(points: Sequence[tuple[float, float]], style: str) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="line {style}" d="{path}"/>'


def _legend(series: Sequence[Series]) -> str:
    parts, left = [], float(_LEFT)
    for one in sorted(series, key=lambda one: one.style):
        parts.append(_marks([(left + 5, 12)], one.style))
        parts.append(_text(left + 14, 16, one.name, "start"))
        left += 30 + 7 * len(one.name)
    return "".join(parts)
