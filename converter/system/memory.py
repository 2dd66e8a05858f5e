"""Memory that the machine has left, and what needs more of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

from converter.errors import TargetError
from converter.system.amounts import amount


def free_memory() -> int:
    """Bytes this process may still take: what the machine has free, or what its control group leaves."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    group = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError, StopIteration):
        pass  # another system; or no control group, or one without a limit ("max")
    return max(free, 0)


def release_memory() -> None:
    """Give memory that is not used back to the system: models and graphs refer to themselves in circles, and
    malloc keeps what is freed."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def check_memory(target: str, needed: int | None) -> None:
    """Raise ``TargetError`` if a target needs more bytes of memory than are free."""
    if needed is not None and needed > (free := free_memory()):
        raise TargetError(
            f"{target}: the export takes up to {amount(needed)} of memory and {amount(free)} are free; "
            "end other programs or use a larger machine"
        )
