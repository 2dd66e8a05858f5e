"""The command as a user runs it: a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.forked import run_command
from support.hub_server import HubServer
from support.hub_writing import READER, WRITER
from support.schemas import check, check_output
from support.stages import without_stages

Run = Callable[..., subprocess.CompletedProcess[str]]
ErrorOf = Callable[..., str]
Refused = Callable[..., str]


@pytest.fixture
def qatconvert(tmp_path: Path) -> Run:
    """``qatconvert(*words, environment={...}, seconds=600)`` in an empty working directory, with a home of
    its own. What it prints is decoded as file names are, so that any byte of a name survives. Lines that
    tell of a stage are left out of ``stderr``."""

    def run(
        *words: object, environment: dict[str, str] | None = None, seconds: float = 600
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "QATCONVERT_HOME": str(tmp_path / "home"), **(environment or {})}
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        done = run_command(list(map(str, words)), variables, work, seconds)
        _check_documents(list(map(str, words)), done, work)
        done.stderr = without_stages(done.stderr)
        return done

    return run


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub on this machine that can be written to, with nothing in it."""
    (tmp_path / "hub").mkdir()
    with HubServer({}, writing=tmp_path / "hub") as server:
        server.writers.add(WRITER)
        server.members.add(READER)
        yield server


@pytest.fixture
def as_writer(hub: HubServer, qatconvert: Run, tmp_path: Path) -> Run:
    """``as_writer(*words, token=WRITER, environment={...})``: a command that asks ``hub``, over LFS."""

    def call(
        *words: object, token: str | None = WRITER, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        variables = hub.environment(tmp_path / "home", token) | {"HF_HUB_DISABLE_XET": "1"}
        return qatconvert(*words, environment={"HF_TOKEN": "", **variables, **(environment or {})})

    return call


@pytest.fixture(scope="session")
def reference(checkpoint_factory: Callable[..., Path]) -> Path:
    """A small checkpoint that nobody may change."""
    return checkpoint_factory("text")


def _check_documents(words: list[str], done: subprocess.CompletedProcess[str], work: Path) -> None:
    """Hold what a command wrote and printed as JSON to the published schemas."""
    if done.returncode not in (0, 3):
        return
    if "--json" in words and words[0] in ("inspect", "validate", "convert"):
        name = "preview" if "--dry-run" in words else "inspect" if words[0] == "inspect" else "report"
        check(name, json.loads(done.stdout))
    for flag, value in itertools.pairwise(words):
        if flag in ("-o", "--output"):
            check_output(work / value)


@pytest.fixture
def model(checkpoint_factory: Callable[..., Path], tmp_path: Path) -> Path:
    """A small checkpoint in one file that the test may damage."""
    return shutil.copytree(checkpoint_factory("text"), tmp_path / "model")


@pytest.fixture(scope="session")
def error_of() -> ErrorOf:
    """``error_of(done, status=1)``: the one printable line of the tool's own that a command ended with."""

    def line(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
        assert done.returncode == status, (done.stdout, done.stderr)
        assert done.stdout == ""
        assert done.stderr.endswith("\n")
        told = done.stderr[:-1]
        assert told.isprintable(), done.stderr
        assert told.startswith("qatconvert: ")
        assert not told.startswith("qatconvert: unexpected "), told  # an exception that nobody thought of
        assert len(told) <= 1012
        return told

    return line


@pytest.fixture
def refused(qatconvert: Run, error_of: ErrorOf, tmp_path: Path) -> Refused:
    """``refused(model, *options, status=1)``: the line that a conversion ends with.

    It is given 60 seconds, and leaves neither the output directory nor a temporary one.
    """

    def convert(model: object, *options: object, status: int = 1) -> str:
        out = tmp_path / "out"
        done = qatconvert(model, "--no-validate", "-o", out, *options, seconds=60)
        assert not os.path.lexists(out)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        assert list((tmp_path / "work").iterdir()) == []
        return error_of(done, status)

    return convert


@pytest.fixture(scope="session")
def without() -> Run:
    """``without(packages, *words)``: the command where ``packages`` are not installed."""

    def run(packages: tuple[str, ...], *words: object) -> subprocess.CompletedProcess[str]:
        script = (
            f"import sys; sys.modules.update(dict.fromkeys({packages!r}));"
            "from converter.cli import main; main(sys.argv[1:])"
        )
        command = [sys.executable, "-c", script, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        done.stderr = without_stages(done.stderr)
        return done

    return run
