"""How a user tries an artifact: commands that work when they are pasted into a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from targets.target import Plan, Target


@runtime_checkable
class Tryable(Protocol):
    """What a target may have beside the rest: it tells how its artifacts are tried."""

    def try_it(self, plan: Plan, output: Path) -> Sequence[str]:
        """A command of one line for each way to try what was written by ``plan`` below ``output``."""


def try_lines(target: Target, plan: Plan, output: Path) -> Sequence[str]:
    """The commands of a target, none of one that tells none."""
    return target.try_it(plan, output) if isinstance(target, Tryable) else ()


def quoted(path: Path) -> str:
    """``path`` as a word for a shell. What no terminal should be sent is spelled out for bash and zsh."""
    text = os.fspath(path)
    if text.startswith("-"):  # it is no option
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    spelled = (chr(byte) if _plain(byte) else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(spelled)}'"


def _plain(byte: int) -> bool:
    return 0x20 <= byte < 0x7F and chr(byte) not in "'\\"
