"""Checkpoints that omit or hold keys and values of layers that share them: read alike, proven alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.generate import SHARED
from converter.checkpoint.directory import Directory
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.safetensors import open_shards
from converter.errors import CheckpointError, ValidationError
from converter.system.child import Worker
from support.raw_safetensors import write_tensors
from targets.target import find_target
from validation.proof import validate
from validation.reference.logits import Computation, Model, reference_logits
from validation.text import Tokens

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
TOKENS = Tokens.of([[2, *range(40, 80)], [2, *range(300, 400)]])
SHARING = ("e2b", "e4b", "text")
#: What real exports hold of each sharing layer.
HELD = {"none": set(), "projections": {"k_proj", "v_proj"}, "all": {"k_proj", "v_proj", "k_norm"}}


def logits(
    directory: Path, worker: Worker, scratch: Path, max_memory: int | None = None
) -> NDArray[np.float32]:
    checkpoint = open_checkpoint(directory)
    left_out = tuple(left.name for left in checkpoint.left_out)
    model = Model(directory, left_out, checkpoint.architecture.vocabulary)
    return reference_logits(model, TOKENS, Computation(worker, max_memory=max_memory), scratch)


@pytest.mark.parametrize("shared", SHARED)
def test_what_sharing_layers_hold_is_left_out_and_said(shared: str, checkpoint_factory: Make) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text", shared=shared))
    sharing = [layer.index for layer in checkpoint.architecture.layers if layer.kv_source is not None]
    assert {one.name for one in checkpoint.left_out} == {
        f"model.layers.{index}.self_attn.{kind}.weight" for index in sharing for kind in HELD[shared]
    }
    whole = open_checkpoint(checkpoint_factory("text")).weights
    assert checkpoint.weights.keys() == whole.keys()
    for name, weight in checkpoint.weights.items():
        assert np.array_equal(weight.floats(0, weight.rows), whole[name].floats(0, weight.rows)), name


@pytest.mark.parametrize("variant", ["text", "e2b"])
def test_reference_logits_are_equal_whatever_sharing_layers_hold(
    variant: str, checkpoint_factory: Make, worker: Worker, tmp_path: Path
) -> None:
    found = [logits(checkpoint_factory(variant, shared=one), worker, tmp_path) for one in SHARED]
    assert np.isfinite(found[0]).all()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_reference_logits_from_disk_are_equal_whatever_sharing_layers_hold(
    checkpoint_factory: Make, worker: Worker, tmp_path: Path
) -> None:
    found = [
        logits(checkpoint_factory("e2b", shared=one), worker, tmp_path, max_memory=2_000_000)
        for one in ("none", "all")
    ]
    assert np.array_equal(*found)


@pytest.mark.parametrize("variant", SHARING)
def test_the_reference_has_no_place_for_what_is_unused(variant: str, checkpoint_factory: Make) -> None:
    """Fails once transformers makes parameters for them, which it would fill at random."""
    directory = checkpoint_factory(variant)
    config = AutoConfig.from_pretrained(directory).get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = {name.removeprefix("model.") for name, _ in model.named_parameters()}
    unused = open_checkpoint(directory).architecture.unused
    assert any(name.endswith("k_norm.weight") for name in unused)
    assert not names & unused.keys()


@pytest.mark.parametrize("kind", ["k_norm", "k_proj", "v_proj"])
def test_a_missing_tensor_that_is_used_is_refused(
    kind: str, checkpoint_factory: Make, worker: Worker, tmp_path: Path
) -> None:
    source = checkpoint_factory("text")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = open_shards(Directory(source)).tensors
    tensors = {name: one.read_rows(0, one.rows).reshape(one.shape) for name, one in found.items()}
    del tensors[f"model.layers.2.self_attn.{kind}.weight"]  # the layer whose keys and values others use
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=rf"'layers.2.self_attn.{kind}.weight' is missing"):
        open_checkpoint(tmp_path)
    model = Model(tmp_path, (), open_checkpoint(source).architecture.vocabulary)
    with pytest.raises(ValidationError, match=f"has no model.layers.2.self_attn.{kind}.weight"):
        reference_logits(model, TOKENS, Computation(worker), tmp_path)


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_a_conversion_is_proven_whatever_sharing_layers_hold(
    target: str, shared: str, checkpoint_factory: Make, tmp_path: Path
) -> None:
    checkpoint, format = open_checkpoint(checkpoint_factory("text", shared=shared)), find_target(target)
    plan = format.plan(checkpoint, "model", {})
    format.write(checkpoint, plan, tmp_path)
    proof = validate(checkpoint, target, tmp_path / plan.artifacts[0], cache=tmp_path, scratch=tmp_path)
    assert proof["entry"]["passed"]
    assert proof["entry"]["weights"]["exact_fraction"] == 1.0
    assert proof["entry"]["runtime"]["mean_kld_same_weights"] < 0.01


def test_artifacts_are_equal_whatever_sharing_layers_hold(checkpoint_factory: Make, tmp_path: Path) -> None:
    for target in ("gguf", "onnx"):
        made = []
        for shared in SHARED:
            checkpoint, format = (
                open_checkpoint(checkpoint_factory("text", shared=shared)),
                find_target(target),
            )
            plan = format.plan(checkpoint, "model", {})
            format.write(checkpoint, plan, tmp_path / shared)
            made.append([(tmp_path / shared / name).read_bytes() for name in plan.artifacts])
        assert made[0] == made[1] == made[2]
