"""The lines in which a command without a terminal tells its stages."""

from __future__ import annotations

import re

_LINE = re.compile(r"^\[ *\d+ s\] (.+)\n", re.MULTILINE)


def stages_of(told: str) -> list[str]:
    """Names of the stages, in the order in which they began."""
    return _LINE.findall(told)


def without_stages(told: str) -> str:
    """Everything else."""
    return _LINE.sub("", told)
