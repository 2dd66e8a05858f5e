"""The naive requantisation: the same artifact but for the lattice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError, ValidationError
from targets.target import find_target
from validation.baseline import check_baseline, write_naive_q4_0
from validation.exactness import measure


def test_every_lattice_tensor_is_gguf_pys_q4_0_and_all_else_is_unchanged(e2b: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    naive = write_naive_q4_0(
        "gguf", e2b.checkpoint, tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    ours, theirs = gguf.GGUFReader(e2b.path), gguf.GGUFReader(naive)
    names = {tensor.stored_as: name for name, tensor in e2b.stored().items()}
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert (a.name, a.tensor_type) == (b.name, b.tensor_type)
        if a.tensor_type != gguf.GGMLQuantizationType.Q4_0:
            assert np.array_equal(a.data, b.data)
            continue
        weight = e2b.checkpoint.weights[names[a.name]]
        expected = gguf.quants.quantize(weight.floats(0, weight.rows), gguf.GGMLQuantizationType.Q4_0)
        floats = gguf.quants.dequantize(expected, gguf.GGMLQuantizationType.Q4_0)
        found = gguf.quants.dequantize(b.data.reshape(expected.shape), gguf.GGMLQuantizationType.Q4_0)
        assert np.array_equal(found, floats)
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_the_baseline_of_a_max_7_lattice_is_not_exact(
    target: str, checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("e2b"))
    naive = write_naive_q4_0(target, checkpoint, tmp_path)
    found = measure(checkpoint, find_target(target).describe(naive, checkpoint))
    assert found.exact_fraction is not None
    assert found.exact_fraction < 0.1
    assert all(tensor.rms_error > 0.03 for tensor in found.lattice)


def test_both_targets_have_the_same_baseline(checkpoint_factory: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    one, other = (
        find_target(target).describe(write_naive_q4_0(target, checkpoint, tmp_path / target), checkpoint)
        for target in ("gguf", "onnx")
    )
    for name, weight in checkpoint.weights.items():
        assert np.array_equal(one[name].floats(0, weight.rows), other[name].floats(0, weight.rows)), name


def test_a_checkpoint_on_no_lattice_has_no_such_baseline(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent"))
    with pytest.raises(ValidationError, match="no weight lies on a lattice"):
        write_naive_q4_0("gguf", checkpoint, tmp_path)


def test_baselines_have_names() -> None:
    check_baseline(None)
    check_baseline("naive-q4_0")
    with pytest.raises(UsageError, match="'q2'; known: naive-q4_0"):
        check_baseline("q2")


def test_the_baseline_takes_the_artifacts_own_options(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    target, sizes = find_target("onnx"), {}
    for scales in ("f32", "f16"):
        plan = target.plan(checkpoint, "model", {"onnx_scales": scales})
        naive = write_naive_q4_0("onnx", checkpoint, tmp_path / scales, plan.options)
        sizes[scales] = sum(file.stat().st_size for file in target.files(naive))
    assert sizes["f16"] < sizes["f32"]
