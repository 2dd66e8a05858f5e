"""Fixtures of the targets' tests: checkpoints converted once, and llama.cpp in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from targets.target import Plan, find_target


@dataclass(frozen=True)
class Converted:
    """A checkpoint, its plan, and the artifact (the first of a split model)."""

    checkpoint: Checkpoint
    plan: Plan
    artifact: Path


Convert = Callable[..., Converted]


@pytest.fixture(scope="session")
def demo(demo_checkpoint: Path) -> Checkpoint:
    """The shipped checkpoint."""
    return open_checkpoint(demo_checkpoint)


@pytest.fixture(scope="session")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """``convert(directory, target="gguf", **options)`` writes the artifact of a checkpoint; equal calls
    share it."""
    made: dict[str, Converted] = {}

    def run(directory: Path, target: str = "gguf", **options: object) -> Converted:
        key = repr((directory, target, sorted(options.items())))
        if key not in made:
            checkpoint = open_checkpoint(directory)
            format = find_target(target)
            plan = format.plan(checkpoint, "model", options)
            output = tmp_path_factory.mktemp(target)
            format.write(checkpoint, plan, output)
            made[key] = Converted(checkpoint, plan, output / plan.artifacts[0])
        return made[key]

    return run


class LlamaFailedError(Exception):
    """llama.cpp did not survive the request; the message is the end of its log."""


@pytest.fixture(scope="session")
def llama() -> Callable[..., Any]:
    """``llama(path, texts=[...], run=True)`` loads a file; see ``support/llama_process.py``."""
    script = Path(__file__).parents[1] / "support" / "llama_process.py"

    def ask(path: Path, texts: list[str] | None = None, run: bool = True) -> Any:
        request = json.dumps({"path": str(path), "texts": texts or [], "run": run})
        done = subprocess.run(
            [sys.executable, str(script)], input=request, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LlamaFailedError(done.stderr[-2000:])
        return json.loads(done.stdout)

    return ask
