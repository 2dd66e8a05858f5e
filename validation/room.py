"""What a machine has left for a validation."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converter.system.memory import free_memory

#: Share of the memory that is free which weights may take.
_SHARE: Final = 0.9
#: The most that they may take: a model with more would keep a machine busy for minutes, to tell little more
#: than an excerpt of it. E2B's weights as float32 take 9.1 GB.
_MOST: Final = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Room:
    """What is left, in bytes."""

    #: Temporary files that can be written.
    disk: int
    #: Memory that weights may take.
    memory: int


def room_in(directory: Path) -> Room:
    """The room that a machine has for temporary files in ``directory`` and in its memory, of which a
    validation takes no more than it needs."""
    return Room(shutil.disk_usage(directory).free, min(int(free_memory() * _SHARE), _MOST))
