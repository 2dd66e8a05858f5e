"""Figures for people: one form for each, in the terminal, in report.md and in report.html."""

from __future__ import annotations

import math
from typing import Any

#: Divergences below this are told with a power of ten, and from the other one on by significant digits.
_SMALL, _LARGE = 1e-5, 0.1


def number(value: Any) -> str:
    """A figure with four significant digits; what is not finite is said so."""
    return "not finite" if value is None else f"{value:.4g}"


def share(value: Any, digits: int = 4) -> str:
    """A fraction in percent, rounded towards zero: only what is whole reads as 100 %. ``-`` for ``None``."""
    if value is None:
        return "-"
    if value == 1:
        return "100 %"
    scale = 10 ** (digits + 2)
    return f"{math.floor(value * scale + 1e-9) / 10**digits:.{digits}f} %"


def rate(value: Any) -> str:
    """A measured fraction in percent with two digits, rounded towards zero; ``-`` for ``None``."""
    return share(value, 2)


def divergence(value: Any) -> str:
    """A KL divergence in nats: ``0.000061``, ``0.5312``, ``6.5e-10``."""
    if value is None:
        return "not finite"
    if not value:
        return "0"
    if abs(value) < _SMALL:
        return f"{value:.1e}"
    return f"{value:.6f}" if abs(value) < _LARGE else f"{value:.4g}"


def perplexity(value: Any) -> str:
    """A perplexity as it is: ``7.604``."""
    return "not finite" if value is None else f"{value:.3f}" if value < 1000 else f"{value:,.0f}"


def distance(value: Any, reference: Any) -> str:
    """How far a perplexity is from its reference's, in percent of that: ``+0.08 %``."""
    if value is None or not reference:
        return "not finite"
    change = 100 * (value / reference - 1)
    digits = 2 if abs(change) < 100 else 0
    return f"{change:+.{digits}f} %" if round(change, digits) else "0.00 %"


def bits(value: Any) -> str:
    """Bits per weight; ``-`` for ``None``."""
    return "-" if value is None else f"{value:.2f}"
