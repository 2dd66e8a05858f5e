"""Bounds on what files of a checkpoint may make a library do: how long it takes and how much memory.

For use in the child processes only: what is beyond the limits ends the process at worst.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

#: What reading a tokenizer or a configuration may take, in seconds and bytes: Gemma's tokenizer takes 5 s and
#: 1 GB. One number in a configuration can make transformers fill all memory (``num_labels``).
LOADING_SECONDS: Final = 180
LOADING_MEMORY: Final = 2 << 30
#: What a chat template may take in a runtime's own engine, which cannot be interrupted: the system ends the
#: process after twice as many seconds of work.
TEMPLATE_SECONDS: Final = 5
TEMPLATE_MEMORY: Final = 1 << 30
_STATM: Final = Path("/proc/self/statm")
_DATA: Final = 5  # the field of statm that counts pages of private memory, which is what RLIMIT_DATA limits


@contextmanager
def bounded(seconds: int, memory: int) -> Iterator[None]:
    """Let the block take at most ``seconds`` and ``memory`` more bytes (where the system can tell).

    Raises ``TimeoutError`` and ``MemoryError``. Native code cannot be interrupted: if it goes on for twice
    the processor time, the system ends the process. Main thread only.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"it takes longer than {seconds} seconds")

    limits = {resource.RLIMIT_CPU: _cpu_seconds() + 2 * seconds}
    if _STATM.exists():
        limits[resource.RLIMIT_DATA] = (
            int(_STATM.read_text().split()[_DATA]) * resource.getpagesize() + memory
        )
    before = {kind: resource.getrlimit(kind) for kind in limits}
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for kind, limit in limits.items():
            finite = [one for one in before[kind] if one != resource.RLIM_INFINITY]
            resource.setrlimit(kind, (min([limit, *finite]), before[kind][1]))
        yield
    except MemoryError as error:
        raise MemoryError(f"it needs more than {memory >> 20} MB of memory") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        for kind, old in before.items():
            resource.setrlimit(kind, old)


def _cpu_seconds() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int(used.ru_utime + used.ru_stime)
