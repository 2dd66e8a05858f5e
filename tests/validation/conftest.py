"""Artifacts to validate, and what tests share of the reference: its process and its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.system.child import Worker
from targets.target import StoredTensor, find_target
from validation.reference.process import reference_worker


@dataclass(frozen=True)
class Artifact:
    """What a target wrote from a checkpoint; ``path`` is its first file."""

    checkpoint: Checkpoint
    path: Path

    target: str = "gguf"

    def stored(self) -> dict[str, StoredTensor]:
        return dict(find_target(self.target).describe(self.path, self.checkpoint))


def _write(name: str, directory: Path, destination: Path, **options: object) -> Artifact:
    checkpoint = open_checkpoint(directory)
    target = find_target(name)
    plan = target.plan(checkpoint, "model", options)
    target.write(checkpoint, plan, destination)
    return Artifact(checkpoint, destination / plan.artifacts[0], name)


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Artifact]:
    """``write_gguf(checkpoint directory, destination, **options)``."""
    return partial(_write, "gguf")


@pytest.fixture(scope="session")
def write_onnx() -> Callable[..., Artifact]:
    """``write_onnx(checkpoint directory, destination, **options)``."""
    return partial(_write, "onnx")


@pytest.fixture(scope="session")
def e2b(
    checkpoint_factory: Callable[..., Path],
    write_gguf: Callable[..., Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    """The GGUF of a random E2B-like checkpoint; nobody may change it."""
    return write_gguf(checkpoint_factory("e2b"), tmp_path_factory.mktemp("e2b-gguf"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of reference logits of a module's tests."""
    return tmp_path_factory.mktemp("reference-cache")


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """One process with transformers for all tests."""
    with reference_worker() as shared:
        yield shared
