"""The artifact's own weights as a checkpoint: the same model, whatever the original's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from converter.checkpoint.directory import Directory
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.checkpoint.safetensors import open_shards
from converter.errors import ValidationError
from converter.system.child import Worker
from targets.target import StoredTensor
from validation.metrics import compare
from validation.own_weights import disk_shortage, needed_disk, write_checkpoint
from validation.reference.logits import Computation, Model, own_logits, reference_logits
from validation.text import Tokens

pytestmark = pytest.mark.slow

SEQUENCES = [[2, *range(40, 80)], [2, 900, 5, 7, 11], [2, *range(300, 320)]]
TOKENS = Tokens.of(SEQUENCES)


def unchanged(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """An artifact that stores every weight exactly."""
    return {
        name: StoredTensor(name, name, "F32", weight.shape, 4 * weight.size, weight.floats)
        for name, weight in checkpoint.weights.items()
    }


@pytest.mark.parametrize(
    ("variant", "layout"),
    [
        ("e2b", "hub"),
        ("12b", "hub"),
        ("26b-a4b", "transformers"),
        ("31b", "hub"),
        ("31b", "transformers"),
        ("gemma3", "hub"),
    ],
)
def test_unchanged_weights_give_the_logits_of_the_whole_original(
    variant: str, layout: str, checkpoint_factory: Callable[..., Path], worker: Worker, tmp_path: Path
) -> None:
    original = checkpoint_factory(variant, layout=layout)
    checkpoint = open_checkpoint(original)
    (tmp_path / "own").mkdir()
    write_checkpoint(checkpoint, unchanged(checkpoint), tmp_path / "own", shard=1 << 20)
    model = Model(tmp_path / "own", (), checkpoint.architecture.vocabulary)
    own = reference_logits(model, TOKENS, Computation(worker), tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(
        original, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.inference_mode():
        expected = [whole(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in SEQUENCES]
    np.testing.assert_allclose(own, np.concatenate(expected), atol=2e-5)


def test_the_checkpoint_is_sharded_float32_of_the_artifacts_values(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("e2b"))
    stored = unchanged(checkpoint)
    changed = "layers.1.mlp.up_proj.weight"
    floats = stored[changed].floats
    stored[changed] = StoredTensor(
        changed, "x", "Q4_0", stored[changed].shape, 0, lambda start, stop: 2 * floats(start, stop)
    )
    seen: list[tuple[int, int]] = []
    write_checkpoint(
        checkpoint, stored, tmp_path, lambda done, total: seen.append((done, total)), shard=1 << 20
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 5
    written = open_shards(Directory(tmp_path)).tensors
    assert set(written) == {f"model.{name}" for name in checkpoint.weights}
    for name, weight in checkpoint.weights.items():
        tensor = written[f"model.{name}"]
        factor = 2 if name == changed else 1
        assert tensor.shape == weight.shape
        values = tensor.read_rows(0, tensor.rows)
        assert np.array_equal(values.ravel(), factor * weight.floats(0, weight.rows).ravel())
    assert seen[-1][0] == seen[-1][1] == checkpoint.parameters
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "gemma4_text"
    assert config["dtype"] == "float32"


@pytest.mark.parametrize("tied", [True, False])
def test_tables_have_the_rows_that_are_looked_up_and_give_the_same_logits(
    tied: bool, checkpoint_factory: Callable[..., Path], worker: Worker, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("e2b", tied=tied))
    found, sizes = [], []
    for number, given in enumerate((None, TOKENS.ids)):
        own = tmp_path / str(number)
        own.mkdir()
        write_checkpoint(checkpoint, unchanged(checkpoint), own, shard=1 << 20, tokens=given)
        model = Model(own, (), checkpoint.architecture.vocabulary)
        output = tmp_path / f"{number}.npy"
        found.append(own_logits(model, TOKENS, Computation(worker), output).logits)
        sizes.append(needed_disk(checkpoint, given))
        for name in ("embed_tokens_per_layer.weight", "embed_tokens.weight"):
            tensor = open_shards(Directory(own)).tensors[f"model.{name}"]
            written = set(np.flatnonzero(tensor.read_rows(0, tensor.rows).any(axis=1)))
            whole = given is None or (tied and name == "embed_tokens.weight")
            assert written == (set(range(tensor.rows)) if whole else {0, *TOKENS.ids})
    np.testing.assert_array_equal(*found)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("model", ["e2b", "gemma3"])
def test_gelu_through_float16_costs_what_is_told(
    model: str, checkpoint_factory: Callable[..., Path], worker: Worker, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory(model))
    (tmp_path / "own").mkdir()
    write_checkpoint(checkpoint, unchanged(checkpoint), tmp_path / "own")
    own = Model(tmp_path / "own", (), checkpoint.architecture.vocabulary)
    tokens = Tokens.of(SEQUENCES, [10, 0, 0])
    made = [
        own_logits(
            own,
            tokens,
            Computation(worker, float16_gelu=rounded),
            tmp_path / f"{rounded}.npy",
        )
        for rounded in (False, True)
    ]
    rows = slice(len(SEQUENCES[0]) - 10)  # of the first
    plain, rounded = (one.logits[rows] for one in made)
    assert made[0].noise == 0
    assert 1e-9 < made[1].noise < 1e-4
    assert made[1].noise == pytest.approx(compare(plain, rounded, np.full(len(plain), -1)).mean_kld, rel=1e-3)


def test_a_tensor_that_the_artifact_lacks_is_an_error(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    stored = unchanged(checkpoint)
    del stored["norm.weight"]
    with pytest.raises(ValidationError, match=r"no tensor for norm\.weight"):
        write_checkpoint(checkpoint, stored, tmp_path)


def test_what_a_disk_lacks_is_said(checkpoint_factory: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    assert disk_shortage(checkpoint, 1 << 30) is None
    assert disk_shortage(checkpoint, 50_000_000) == (
        "logits of the artifact's own weights need 73.8 MB of temporary files, 50 MB are free"
    )
