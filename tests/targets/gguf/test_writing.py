"""The parallel writer: failures, interruption, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError, DestinationError
from targets.gguf import target
from targets.writing import reserved


def test_a_full_disk_is_noticed_before_the_data_is_written(tmp_path):
    memory = Path("/dev/shm")
    directory = memory if memory.is_dir() else tmp_path
    status = os.statvfs(directory)
    path = directory / f"qatconvert-{os.getpid()}"
    path.touch()
    try:
        with (
            pytest.raises(DestinationError, match=r"disk is full.*bytes are needed"),
            reserved([path], [(status.f_blocks + 1) * status.f_frsize]),
        ):
            pass
    finally:
        path.unlink()


def test_a_destination_that_cannot_be_written_is_one_line(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    (tmp_path / "gguf").write_text("in the way")
    with pytest.raises(DestinationError, match="cannot be written") as error:
        target.write(checkpoint, target.plan(checkpoint, "m", {}), tmp_path)
    assert "\n" not in str(error.value)


def test_a_failure_while_reading_stops_every_thread_and_is_the_one_raised(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    plan = target.plan(checkpoint, "m", {})

    def broken(start: int, stop: int) -> np.ndarray:
        raise CheckpointError("shard: tensor x is cut off")

    weights = dict(checkpoint.weights)
    weights["norm.weight"] = replace(weights["norm.weight"], floats=broken)
    before = threading.active_count()
    with pytest.raises(CheckpointError, match="tensor x is cut off"):
        target.write(replace(checkpoint, weights=weights), plan, tmp_path)
    assert threading.active_count() == before


def test_an_interrupt_ends_the_write(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.write(checkpoint, target.plan(checkpoint, "m", {}), tmp_path, interrupt)


def test_memory_does_not_grow_with_the_model(checkpoint_factory, tmp_path):
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from converter.checkpoint.opened import open_checkpoint\n"
        "from targets.gguf import target; c = open_checkpoint(Path(sys.argv[1]))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "target.write(c, target.plan(c, 'm', {}), Path(sys.argv[2]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    directory = checkpoint_factory("e2b", scale=0.15)
    size = (directory / "model.safetensors").stat().st_size
    arguments = [sys.executable, "-c", script, str(directory), str(tmp_path)]
    grown = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout) * 1024
    assert grown < 40e6 < size / 3, grown
