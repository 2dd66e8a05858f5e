"""What keeps an export small: one graph of torch at a time, and a checkpoint without its lattice."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("litert_torch")
import torch
from litert_torch._convert.signature import Signature

from converter.checkpoint.opened import open_checkpoint
from targets.litert.export.programs import Programs
from targets.litert.export.skeleton import read_skeleton, write_skeleton


def test_a_program_is_empty_when_the_next_is_made():
    sample = {"input": torch.ones(1, 4)}
    signatures = [Signature(name, torch.nn.Linear(4, 4).eval(), None, sample) for name in ("one", "two")]
    seen = []
    for program in Programs(signatures):
        assert all(not vars(earlier) for earlier in seen)
        assert program.graph_module is not None
        seen.append(program)
    assert len(seen) == len(Programs(signatures)) == 2
    assert not vars(seen[-1])


@pytest.mark.parametrize("variant", ["e2b", "26b-a4b", "gemma3"])
def test_a_skeleton_has_the_shapes_of_all_weights_and_the_numbers_of_vectors(
    variant, checkpoint_factory, tmp_path
):
    checkpoint = open_checkpoint(checkpoint_factory(variant))
    skeleton = read_skeleton(write_skeleton(checkpoint, tmp_path / "vectors"))
    assert skeleton.architecture == checkpoint.architecture
    assert {name: one.shape for name, one in skeleton.weights.items()} == {
        name: one.shape for name, one in checkpoint.weights.items()
    }
    vectors = [name for name, one in checkpoint.weights.items() if len(one.shape) < 2]
    assert vectors
    for name in vectors:
        one, other = skeleton.weights[name], checkpoint.weights[name]
        np.testing.assert_array_equal(one.floats(0, one.rows), other.floats(0, other.rows))


def test_the_process_that_exports_loads_no_compiler_of_lattices():
    script = "import sys, targets.litert.export.process; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
