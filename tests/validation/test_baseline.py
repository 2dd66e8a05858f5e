"""The naive requantisation: the same file but for the lattice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from converter.errors import UsageError, ValidationError
from validation.baseline import applies, check_baseline, write_naive_q4_0
from validation.weights import measure


def test_every_lattice_tensor_is_gguf_pys_q4_0_and_all_else_is_unchanged(e2b: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    naive = write_naive_q4_0(
        e2b.path, e2b.checkpoint, e2b.stored(), tmp_path, lambda done, total: seen.append((done, total))
    )
    ours, theirs = gguf.GGUFReader(e2b.path), gguf.GGUFReader(naive)
    names = {tensor.stored_as: name for name, tensor in e2b.stored().items()}
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert (a.name, a.tensor_type, a.data_offset) == (b.name, b.tensor_type, b.data_offset)
        if a.tensor_type != gguf.GGMLQuantizationType.Q4_0:
            assert np.array_equal(a.data, b.data)
            continue
        weight = e2b.checkpoint.weights[names[a.name]]
        expected = gguf.quants.quantize(weight.floats(0, weight.rows), gguf.GGMLQuantizationType.Q4_0)
        assert np.array_equal(b.data.reshape(expected.shape), expected)
    start = int(min(tensor.data_offset for tensor in ours.tensors))
    assert naive.stat().st_size == e2b.path.stat().st_size
    assert naive.read_bytes()[:start] == e2b.path.read_bytes()[:start]
    assert seen[-1][0] == seen[-1][1] > 0


def test_the_baseline_of_a_max_7_lattice_is_not_exact(e2b: Any, tmp_path: Path) -> None:
    naive = write_naive_q4_0(e2b.path, e2b.checkpoint, e2b.stored(), tmp_path)
    found = measure(e2b.checkpoint, replace(e2b, path=naive).stored())
    assert found.exact_fraction is not None
    assert found.exact_fraction < 0.1
    assert all(tensor.rms_error > 0.03 for tensor in found.lattice)


def test_every_file_of_a_split_model_is_requantised(
    checkpoint_factory: Callable[..., Path], write_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "naive").mkdir()
    artifact = write_gguf(checkpoint_factory("e2b"), tmp_path, split_max_size="1M")
    naive = write_naive_q4_0(artifact.path, artifact.checkpoint, artifact.stored(), tmp_path / "naive")
    found = measure(artifact.checkpoint, replace(artifact, path=naive).stored())
    assert all(tensor.exact_blocks < tensor.blocks for tensor in found.lattice)


def test_a_file_without_q4_0_has_no_such_baseline(
    checkpoint_factory: Callable[..., Path], write_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    artifact = write_gguf(checkpoint_factory("text", "latent"), tmp_path)
    with pytest.raises(ValidationError, match="has no Q4_0 tensor"):
        write_naive_q4_0(artifact.path, artifact.checkpoint, artifact.stored(), tmp_path)


def test_baselines_have_names() -> None:
    check_baseline(None)
    check_baseline("naive-q4_0")
    assert applies("gguf")
    assert not applies("onnx")
    with pytest.raises(UsageError, match="'q2'; known: naive-q4_0"):
        check_baseline("q2")
