"""Plots of a report as SVG text: small, deterministic, readable in light and dark, no scripts.

A plot has a panel for each target, below each other on one axis. It is as wide as a telephone, so that its
text is never smaller than 12 pixels there. Colours are CSS classes of the page that embeds it (``a``: the
artifact, ``b``: its baseline). Both differ by shape as well: dots and crosses, whole and broken lines.
Limits of gates are labelled lines. Each plot has a title and a description for readers who do not see it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Final

from validation.report.figures import divergence, share

WIDTH: Final = 360
_LEFT, _RIGHT, _HEAD, _FOOT = 52, 8, 58, 40
#: Heights of a panel's plot, and of its title above.
_PANEL, _TITLE = 104, 26
#: Pixels that a character takes, at most on average.
_CHARACTER: Final = 6.6


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

    def at(self, start: float, end: float) -> Axis:
        """The same axis between other pixels."""
        return Axis(self.low, self.high, start, end, self.log, self.ticks)


def log_axis(values: Iterable[float], start: float, end: float) -> Axis:
    """A logarithmic axis over whole decades that holds all positive ``values`` (at least one decade, at
    most twelve; zeros lie at its lower end)."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    high = math.ceil(math.log10(max(positive))) if positive else 0
    low = max(math.floor(math.log10(min(positive))), high - 12) if positive else -1
    low = min(low, high - 1)
    step = math.ceil((high - low) / 6)
    ticks = tuple((10.0**power, _power(power)) for power in range(low, high + 1, step))
    return Axis(10.0**low, 10.0**high, start, end, True, ticks)


def linear_axis(high: float, ticks: Sequence[tuple[float, str]], start: float, end: float) -> Axis:
    """A linear axis from 0 to ``high``."""
    return Axis(0.0, max(high, 1e-12), start, end, False, tuple(ticks))


def _power(power: int) -> str:
    return str(10**power) if 0 <= power <= 3 else f"1e{power}"


@dataclass(frozen=True, slots=True)
class Series:
    """Values with a name; ``None`` for one that is not finite."""

    name: str
    values: Sequence[float | None]

    @property
    def finite(self) -> list[float]:
        """Those that are."""
        return [value for value in self.values if value is not None]


@dataclass(frozen=True, slots=True)
class Panel:
    """A target in a plot."""

    name: str
    artifact: Series
    baseline: Series | None = None
    #: Limits of gates: what each is for, and its value.
    limits: tuple[tuple[str, float], ...] = ()
    #: (kind, positions) of the sequences in order.
    spans: tuple[tuple[str, int], ...] = ()

    @property
    def drawn(self) -> list[tuple[Series, str]]:
        """Series with their styles, the artifact above the baseline."""
        behind = [] if self.baseline is None else [(self.baseline, "b")]
        return [*behind, (self.artifact, "a")]


def kld_by_position(panels: Sequence[Panel]) -> str:
    """KLD of every position on a logarithmic scale, sequences shaded in turn."""
    total = max([1, *(sum(length for _, length in panel.spans) for panel in panels)])
    x = linear_axis(total, [(value, str(value)) for value in _steps(total)], _LEFT, WIDTH - _RIGHT)
    y = log_axis(_klds(panels), 0, 1)

    def draw(panel: Panel, y: Axis) -> list[str]:
        parts = [_bands(panel.spans, x, y), _grid(x, y)]
        for one, style in panel.drawn:
            parts.append(
                _marks([(x(i + 0.5), y(v)) for i, v in enumerate(one.values) if v is not None], style)
            )
        return [*parts, *(_limit_across(x, y, what, limit) for what, limit in panel.limits)]

    title = "KL divergence at every position"
    told = f"{total} positions; a logarithmic scale. {_summary(panels)}"
    return _plot(title, told, "KLD in nats", "position", panels, x, y, draw)


def kld_distribution(panels: Sequence[Panel]) -> str:
    """Share of positions whose KLD is at most x, on a logarithmic scale, with a mark at the mean."""
    x = log_axis(_klds(panels), _LEFT, WIDTH - _RIGHT)
    y = linear_axis(1.0, [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")], 0, 1)

    def draw(panel: Panel, y: Axis) -> list[str]:
        parts = [_grid(x, y)]
        for one, style in panel.drawn:
            values = sorted(one.finite)
            points = [(x(value), y((index + 1) / len(values))) for index, value in enumerate(values)]
            if points:
                mean = math.fsum(values) / len(values)
                below = bisect_right(values, mean) / len(values)
                parts.append(_line([(points[0][0], y(0.0)), *points], style))
                parts.append(_marks([(x(mean), y(below))], f"{style} mean"))
        return [*parts, *(_limit_upright(x, y, what, limit) for what, limit in panel.limits)]

    title = "Distribution of the KL divergence"
    told = f"Share of positions at or below a divergence, and the mean. {_summary(panels)}"
    return _plot(title, told, "positions", "KLD in nats", panels, x, y, draw)


def exactness_by_tensor(panels: Sequence[Panel]) -> str:
    """Share of exact blocks of each lattice tensor, in the checkpoint's order."""
    count = max([1, *(len(panel.artifact.values) for panel in panels)])
    x = linear_axis(count, [(value, str(value)) for value in _steps(count)], _LEFT, WIDTH - _RIGHT)
    y = linear_axis(1.0, [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")], 0, 1)

    def draw(panel: Panel, y: Axis) -> list[str]:
        parts = [_grid(x, y)]
        for one, style in panel.drawn:
            parts.append(
                _marks([(x(i + 0.5), y(v)) for i, v in enumerate(one.values) if v is not None], style)
            )
        return parts

    lows = [
        f"{panel.name}, {one.name}: lowest {share(min(one.finite))}"
        for panel in panels
        for one, _ in panel.drawn[::-1]
        if one.finite
    ]
    told = f"{count} tensors. {'; '.join(lows)}."
    label = "tensor, in the checkpoint's order"
    return _plot("Exact blocks of every tensor", told, "exact blocks", label, panels, x, y, draw)


def _klds(panels: Iterable[Panel]) -> list[float]:
    """What an axis of divergences has to hold."""
    values = [value for panel in panels for one, _ in panel.drawn for value in one.finite]
    return [*values, *(limit for panel in panels for _, limit in panel.limits)]


def _steps(total: int) -> list[int]:
    """About six round numbers from 0 to ``total``."""
    raw = max(1.0, total / 6)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = int(next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw))
    return list(range(0, total + 1, step))


def _summary(panels: Iterable[Panel]) -> str:
    found = []
    for panel in panels:
        for one, _ in panel.drawn[::-1]:
            if values := sorted(one.finite):
                median, largest = divergence(values[len(values) // 2]), divergence(values[-1])
                found.append(f"{panel.name}, {one.name}: median {median}, largest {largest}")
        found += [f"{panel.name}: limit of the {what} {divergence(limit)}" for what, limit in panel.limits]
    return "; ".join(found) + "."


def _plot(
    title: str,
    description: str,
    y_label: str,
    x_label: str,
    panels: Sequence[Panel],
    x: Axis,
    y: Axis,
    draw: Callable[[Panel, Axis], list[str]],
) -> str:
    """Panels below each other, with the legend above and the labels of the common axis below."""
    parts = [_text(4, 14, title, "start", ' class="title"'), *_legend(panels)]
    top = float(_HEAD)
    for panel in panels:
        own = y.at(top + _TITLE + _PANEL, top + _TITLE)
        parts.append(_text(_LEFT, top + 16, f"{panel.name}: {y_label}", "start", ' class="title"'))
        parts += draw(panel, own)
        top = own.start
    parts += [_text(x(value), top + 16, label) for value, label in x.ticks]
    parts.append(_text((x.start + x.end) / 2, top + 34, x_label))
    return (
        f'<svg viewBox="0 0 {WIDTH} {top + _FOOT:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _grid(x: Axis, y: Axis) -> str:
    lines = [f"M{x.start} {y(value):.1f}H{x.end}" for value, _ in y.ticks]
    if x.log:
        lines += [f"M{x(value):.1f} {y.start:.1f}V{y.end:.1f}" for value, _ in x.ticks]
    labels = "".join(_text(x.start - 6, y(value) + 4, label, "end") for value, label in y.ticks)
    axis = f'<path class="axis" d="M{x.start} {y.start:.1f}H{x.end}"/>'
    return f'<path class="grid" d="{"".join(lines)}"/>{axis}{labels}'


def _bands(spans: Sequence[tuple[str, int]], x: Axis, y: Axis) -> str:
    """Every other sequence on a shaded ground, and each kind over its sequences where it fits."""
    parts, start = [], 0
    for index, (_, length) in enumerate(spans):
        if index % 2:
            left, right = x(start), x(start + length)
            parts.append(
                f'<rect class="band" x="{left:.1f}" y="{y.end:.1f}" width="{right - left:.1f}"'
                f' height="{y.start - y.end:.1f}"/>'
            )
        start += length
    start = 0
    for kind, group in groupby(spans, key=lambda span: span[0]):
        end = start + sum(length for _, length in group)
        if x(end) - x(start) > _CHARACTER * len(kind):
            parts.append(_text((x(start) + x(end)) / 2, y.start - 5, kind, extra=' class="kind"'))
        start = end
    return "".join(parts)


def _marks(points: Iterable[tuple[float, float]], style: str) -> str:
    """Dots for the artifact (strokes of no length with round ends), small crosses for the baseline; those in
    the same place once."""
    places = dict.fromkeys((f"{x:.1f}", f"{y:.1f}") for x, y in points)
    if style.startswith("a"):
        path = "".join(f"M{x} {y}h0" for x, y in places)
    else:
        arm = 4 if style.endswith("mean") else 2
        cross = f"m-{arm} -{arm}l{2 * arm} {2 * arm}m-{2 * arm} 0l{2 * arm} -{2 * arm}"
        path = "".join(f"M{x} {y}{cross}" for x, y in places)
    return f'<path class="marks {style}" d="{path}"/>'


def _line(points: Sequence[tuple[float, float]], style: str) -> str:
    path = "L".join(dict.fromkeys(f"{x:.1f} {y:.1f}" for x, y in points))
    return f'<path class="line {style}" d="M{path}"/>'


def _limit_across(x: Axis, y: Axis, what: str, limit: float) -> str:
    """A limit as a line from left to right, with its label where there is room."""
    place = y(limit)
    baseline = place - 5 if place - y.end > 16 else place + 14
    label = _text(x.end - 2, baseline, _limit_told(what, limit), "end", ' class="limit"')
    return f'<path class="limit" d="M{x.start} {place:.1f}H{x.end}"/>{label}'


def _limit_upright(x: Axis, y: Axis, what: str, limit: float) -> str:
    """A limit as a line from bottom to top, with its label on the side that has room."""
    place, told = x(limit), _limit_told(what, limit)
    right = place + 5 + _CHARACTER * len(told) < x.end
    label = _text(
        place + 5 if right else place - 5, y.start - 8, told, "start" if right else "end", ' class="limit"'
    )
    return f'<path class="limit" d="M{place:.1f} {y.start:.1f}V{y.end:.1f}"/>{label}'


def _limit_told(what: str, limit: float) -> str:
    return f"{what} ≤ {divergence(limit)}"


def _legend(panels: Sequence[Panel]) -> list[str]:
    """The series by their marks, each name once."""
    named = {("artifact", "a")}
    named |= {(panel.baseline.name, "b") for panel in panels if panel.baseline is not None}
    parts, left = [], 8.0
    for name, style in sorted(named, key=lambda one: (one[1], one[0])):
        parts.append(_marks([(left + 4, 36)], f"{style} mean"))
        parts.append(_text(left + 14, 40, name, "start"))
        left += 34 + _CHARACTER * len(name)
    if any(panel.limits for panel in panels):
        parts.append(f'<path class="limit" d="M{left:.1f} 36h20"/>')
        parts.append(_text(left + 26, 40, "limit of a gate", "start"))
    return parts
