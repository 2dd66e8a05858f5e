"""A command run on a terminal of a given width, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def on_terminal(
    command: Sequence[str], columns: int, cwd: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit status and standard output, without colours; standard error is dropped."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = {**os.environ, "TERM": "xterm", **(environment or {})}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        variables.pop(name, None)
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, cwd=cwd, env=variables
    ) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # EIO: nobody holds the other end any more
                break
            if not data:
                break
            told += data
    os.close(ours)
    return process.returncode, _STYLE.sub("", told.decode().replace("\r\n", "\n"))
