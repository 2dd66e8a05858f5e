"""Numbers of bytes in messages."""

from __future__ import annotations


def amount(size: int) -> str:
    """``size`` in bytes, as people say it (decimal units)."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
