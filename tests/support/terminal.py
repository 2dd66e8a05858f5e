"""A command run on a terminal of a given width, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STYLE: Final = re.compile(r"\x1b\[[0-9;]*m")
#: Where a picture on a terminal is drawn over.
_REDRAWN: Final = re.compile(r"\r|\n|\x1b\[\d*[AK]|\x1b\[\?25[hl]")


@dataclass(frozen=True, slots=True)
class Screen:
    """What a command wrote on a terminal."""

    status: int
    #: Everything, controls included.
    written: str
    #: The longest time without anything new, from the start to the end of the command, in seconds.
    stillness: float

    @property
    def lines(self) -> list[str]:
        """Every line that could be seen, without colours."""
        return [line for line in _REDRAWN.split(_STYLE.sub("", self.written)) if line.strip()]


def on_terminal(
    command: Sequence[str], columns: int, cwd: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit status and standard output, without colours; standard error is dropped."""
    screen = _run(command, columns, cwd, environment or {}, results=True)
    return screen.status, _STYLE.sub("", screen.written.replace("\r\n", "\n"))


def watched(
    command: Sequence[str],
    columns: int,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[subprocess.Popen[bytes], str], None] = lambda process, written: None,
) -> Screen:
    """Standard error as it was written on the terminal; standard output is dropped. ``meanwhile`` gets the
    process and all that was written so far, each time that there is something new."""
    return _run(command, columns, cwd, environment or {}, results=False, meanwhile=meanwhile)


def _run(
    command: Sequence[str],
    columns: int,
    cwd: Path,
    environment: Mapping[str, str],
    *,
    results: bool,
    meanwhile: Callable[[subprocess.Popen[bytes], str], None] = lambda process, written: None,
) -> Screen:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = {**os.environ, "TERM": "xterm"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        variables.pop(name, None)
    last, still, told = time.monotonic(), 0.0, b""
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs if results else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if results else theirs,
        cwd=cwd,
        env={**variables, **environment},
        # ignored where the tests are run in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(theirs)
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # EIO: nobody holds the other end any more
                data = b""
            still, last = max(still, time.monotonic() - last), time.monotonic()
            if not data:
                break
            told += data
            meanwhile(process, told.decode(errors="replace"))
    os.close(ours)
    return Screen(process.returncode, told.decode(errors="replace"), still)
