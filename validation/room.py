"""What a machine has left for a validation."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converter.memory import free_memory

#: Share of the memory that is free which weights may take.
_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of temporary files that can be written, and bytes of memory that weights may take."""

    disk: int
    memory: int


def room_in(directory: Path) -> Room:
    """The room that a machine has for temporary files in ``directory`` and in its memory."""
    return Room(shutil.disk_usage(directory).free, int(free_memory() * _SHARE))
