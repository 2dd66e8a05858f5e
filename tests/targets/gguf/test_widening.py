"""A GGUF's own weights as float32, under its own metadata: llama.cpp then rounds nothing."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import ValidationError
from converter.system.progress import no_progress
from support.divergence import divergence_from_transformers
from targets.gguf.metadata import read_entries
from targets.gguf.reading import describe, split_files
from targets.gguf.widening import widen, widened_bytes
from validation.logits import map_logits
from validation.own_weights import write_checkpoint
from validation.runtimes.llamacpp import runner

pytestmark = pytest.mark.slow

LIMIT = 1e-4
LIMIT_WITH_EXPERTS = 1e-2


class OwnWeights:
    """What ``divergence_from_transformers`` asks of a runner: ``unrounded`` runs of an artifact."""

    def __init__(self, directory):
        self._directory = directory

    def logits(self, artifact, *args):
        path, choice = runner.unrounded(artifact, self._directory, no_progress)
        return runner.logits(path, *args, choice=choice)


def own_divergence(made, scratch):
    """Mean KLD of the unrounded artifact from transformers on the artifact's own weights."""
    own = scratch / "own"
    own.mkdir()
    write_checkpoint(made.checkpoint, describe(made.artifact, made.checkpoint), own)
    return divergence_from_transformers(
        open_checkpoint_of(own, made), made.artifact, OwnWeights(scratch), scratch
    )


def open_checkpoint_of(own, made):
    """``made``'s checkpoint with the weights that lie in ``own``."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (made.checkpoint.source.directory() / name).exists():
            (own / name).write_bytes((made.checkpoint.source.directory() / name).read_bytes())
    return open_checkpoint(own)


@pytest.mark.parametrize("variant", ["e2b", "31b", "gemma3", "26b-a4b"])
def test_the_graph_computes_what_transformers_computes(variant, checkpoint_factory, convert, tmp_path):
    limit = LIMIT_WITH_EXPERTS if variant == "26b-a4b" else LIMIT
    assert own_divergence(convert(checkpoint_factory(variant)), tmp_path) < limit


def test_a_wrong_graph_shows_where_rounding_hides_it(checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory("e2b"))
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(made.artifact.read_bytes())
    field = gguf.GGUFReader(wrong, "r+").fields["gemma4.rope.freq_base_swa"]
    field.parts[field.data[0]][0] *= 1.1
    changed = type(made)(made.checkpoint, made.plan, wrong)
    assert own_divergence(changed, tmp_path) > LIMIT


@pytest.mark.parametrize("stored", ["q8_0", "bf16", "f16", "q4_0"])
def test_every_type_that_is_multiplied_with_becomes_float32(stored, checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory("e2b", "latent"), off_lattice=stored)
    widen(made.artifact, tmp_path / "wide.gguf", no_progress)
    for before, after in zip(
        gguf.GGUFReader(made.artifact).tensors, gguf.GGUFReader(tmp_path / "wide.gguf").tensors, strict=True
    ):
        assert before.name == after.name
        looked_up = before.name == "per_layer_token_embd.weight"
        assert after.tensor_type == (before.tensor_type if looked_up else gguf.GGMLQuantizationType.F32)
        expected = gguf.quants.dequantize(before.data, before.tensor_type)
        assert np.array_equal(expected, gguf.quants.dequantize(after.data, after.tensor_type))


def test_an_embedding_beside_a_head_of_its_own_is_only_looked_up(checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory("31b", tied=False))
    widen(made.artifact, tmp_path / "wide.gguf", no_progress)
    types = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "wide.gguf").tensors}
    assert types["token_embd.weight"] == "Q4_0"
    assert types["output.weight"] == "F32"


def test_metadata_are_the_artifacts_byte_for_byte(checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory("e2b"))
    seen = []
    widen(made.artifact, tmp_path / "wide.gguf", lambda done, total: seen.append((done, total)))
    assert read_entries(tmp_path / "wide.gguf").entries == read_entries(made.artifact).entries
    size = (tmp_path / "wide.gguf").stat().st_size
    assert widened_bytes(made.artifact) == runner.unrounded_bytes(made.artifact) == size
    assert seen == sorted(seen)
    assert seen[-1][1] == size


def test_a_split_model_becomes_one_file_that_computes_the_same(checkpoint_factory, convert, tmp_path):
    whole = convert(checkpoint_factory("e2b"))
    split = convert(checkpoint_factory("e2b"), split_max_size="500K")
    assert len(split_files(split.artifact)) > 1
    logits = []
    for number, made in enumerate((whole, split)):
        (tmp_path / str(number)).mkdir()
        path, _ = runner.unrounded(made.artifact, tmp_path / str(number), no_progress)
        runner.logits(path, [[2, 5, 7, 9]], 1280, tmp_path / f"{number}.npy", no_progress)
        logits.append(map_logits(tmp_path / f"{number}.npy", 4))
    assert np.array_equal(*logits)


def test_a_damaged_artifact_is_one_line(checkpoint_factory, convert, tmp_path):
    half = tmp_path / "half.gguf"
    data = convert(checkpoint_factory("e2b")).artifact.read_bytes()
    half.write_bytes(data[: len(data) // 2])
    for ask in (runner.unrounded_bytes, lambda path: runner.unrounded(path, tmp_path, no_progress)):
        with pytest.raises(ValidationError, match=r"half\.gguf: not a whole GGUF file") as caught:
            ask(half)
        assert "\n" not in str(caught.value)
