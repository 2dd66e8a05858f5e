"""The command as a user runs it: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def qatconvert(tmp_path: Path) -> Run:
    """``qatconvert(*words, environment={...})`` in an empty working directory, with a home of its own."""

    def run(*words: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("qatconvert")), *map(str, words)]
        variables = {**os.environ, "QATCONVERT_HOME": str(tmp_path / "home"), **(environment or {})}
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=work, timeout=600)

    return run


def one_line(text: str) -> str:
    """What an error printed, which must be a single line of the tool's own."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]
