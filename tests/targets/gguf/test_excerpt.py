"""An excerpt of a GGUF: the tensors of some layers, and metadata that are the artifact's but for them."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from checkpoints.variants import TEN_LAYERS
from converter.checkpoint.excerpt import Excerpt, find_excerpt
from converter.errors import ValidationError
from converter.system.progress import no_progress
from support.tampering import GgufFile
from targets.gguf.metadata import decoded, read_entries
from targets.gguf.widening import widen, widened_bytes
from validation.runtimes.llamacpp import runner

#: Keys that an excerpt of a Gemma 4 has of its own.
CHANGED = {
    "gemma4.block_count",
    "gemma4.attention.shared_kv_layers",
    "gemma4.attention.sliding_window_pattern",
    "gemma4.feed_forward_length",
}


@pytest.fixture(scope="module")
def e2b(checkpoint_factory, convert):
    return convert(checkpoint_factory("e2b", text=TEN_LAYERS))


@pytest.fixture(scope="module")
def excerpt(e2b):
    return find_excerpt(e2b.checkpoint.architecture)


@pytest.fixture(scope="module")
def cut(e2b, excerpt, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    widen(e2b.artifact, path, no_progress, excerpt)
    return path


def edited(made, path, key, value):
    """A copy of an artifact with another value of a key; ``None`` removes the key."""
    whole = GgufFile.read(made.artifact)
    whole.keys = [(name, value if name == key else old) for name, old in whole.keys]
    whole.keys = [(name, old) for name, old in whole.keys if old is not None]
    whole.write(path)
    return path


def test_keys_are_the_artifacts_but_for_the_layers(e2b, cut):
    before, after = (dict(read_entries(path).entries) for path in (e2b.artifact, cut))
    assert list(before) == list(after)
    assert {key for key in before if before[key] != after[key]} == CHANGED
    assert decoded(after["gemma4.block_count"]) == 7
    assert decoded(after["gemma4.attention.shared_kv_layers"]) == 2
    pattern = [decoded(after["gemma4.attention.sliding_window_pattern"], place) for place in range(8)]
    assert pattern == [True, True, True, True, False, True, False, "nothing"]
    lengths = [decoded(after["gemma4.feed_forward_length"], place) for place in range(7)]
    assert lengths == [256] * 5 + [512] * 2


def test_tensors_are_those_of_the_kept_layers(e2b, excerpt, cut):
    before, after = (
        {one.name: gguf.quants.dequantize(one.data, one.tensor_type) for one in gguf.GGUFReader(path).tensors}
        for path in (e2b.artifact, cut)
    )
    layers = {f"blk.{layer}.": f"blk.{place}." for place, layer in enumerate(excerpt.layers)}
    expected = {}
    for name, values in before.items():
        start = ".".join(name.split(".")[:2]) + "."
        if name == "per_layer_token_embd.weight":
            values = values.reshape(-1, 10, 32)[:, list(excerpt.layers)].reshape(-1, 7 * 32)
        if name == "per_layer_model_proj.weight":
            values = values.reshape(10, 32, -1)[list(excerpt.layers)].reshape(7 * 32, -1)
        if not name.startswith("blk."):
            expected[name] = values
        elif start in layers:
            expected[name.replace(start, layers[start])] = values
    assert list(after) == list(expected)
    for name, values in expected.items():
        assert np.array_equal(after[name], values), name


def test_its_size_is_known_before(e2b, excerpt, cut):
    size = cut.stat().st_size
    assert widened_bytes(e2b.artifact, excerpt) == runner.unrounded_bytes(e2b.artifact, excerpt) == size
    assert size < widened_bytes(e2b.artifact)


@pytest.mark.parametrize("shared", [0, 4, 6])
def test_a_wrong_number_of_sharing_layers_stays_as_wrong(shared, e2b, excerpt, tmp_path):
    key = "gemma4.attention.shared_kv_layers"
    wrong = edited(e2b, tmp_path / "wrong.gguf", key, struct.pack("<II", 4, shared))
    widen(wrong, tmp_path / "cut.gguf", no_progress, excerpt)
    found = decoded(dict(read_entries(tmp_path / "cut.gguf").entries)[key])
    assert found == max(2 + shared - 5, 0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gemma4.block_count", struct.pack("<II", 4, 9), "block_count is not 10, so it cannot be cut"),
        ("gemma4.block_count", None, "block_count is not 10, so it cannot be cut"),
        ("gemma4.attention.sliding_window_pattern", struct.pack("<II", 4, 5), "has no item for every layer"),
    ],
)
def test_numbers_that_say_nothing_of_single_layers_are_refused(key, value, message, e2b, excerpt, tmp_path):
    wrong = edited(e2b, tmp_path / "wrong.gguf", key, value)
    for ask in (
        lambda: runner.unrounded_bytes(wrong, excerpt),
        lambda: runner.unrounded(wrong, tmp_path, no_progress, excerpt),
    ):
        with pytest.raises(ValidationError, match=rf"^wrong\.gguf: .*{message}") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_model_that_llama_cpp_knows_by_its_number_of_layers_is_refused(
    checkpoint_factory, convert, tmp_path
):
    kinds = [*["sliding_attention"] * 5, "full_attention"]
    text = {"num_hidden_layers": 62, "layer_types": [*kinds * 10, *kinds[:2]], "num_attention_heads": 4}
    made = convert(checkpoint_factory("gemma3", text=text))
    found = find_excerpt(made.checkpoint.architecture)
    with pytest.raises(ValidationError, match="scales a model of 62 layers by a rule of its own"):
        runner.unrounded_bytes(made.artifact, found)


def test_a_table_whose_blocks_hold_values_of_two_layers_is_refused(checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory("e2b", text={"hidden_size_per_layer_input": 48}))
    found = find_excerpt(made.checkpoint.architecture)
    with pytest.raises(ValidationError, match=r"per_layer_token_embd\.weight of type Q4_0 cannot be cut"):
        runner.unrounded_bytes(made.artifact, found)


def test_an_excerpt_of_a_split_model_is_that_of_the_whole(
    checkpoint_factory, convert, excerpt, cut, tmp_path
):
    split = convert(checkpoint_factory("e2b", text=TEN_LAYERS), split_max_size="500K")
    widen(split.artifact, tmp_path / "cut.gguf", no_progress, excerpt)
    first, second = (read_entries(path) for path in (cut, tmp_path / "cut.gguf"))
    assert first.tensors == second.tensors
    assert first.data == second.data
    assert cut.read_bytes()[first.data :] == (tmp_path / "cut.gguf").read_bytes()[second.data :]


def test_llama_cpp_runs_it(cut, tmp_path):
    runner.logits(cut, [[2, 5, 7, 9]], 1280, tmp_path / "logits.npy", no_progress)
    assert np.isfinite(np.load(tmp_path / "logits.npy")).all()


def test_layers_are_counted_up_to_the_last(e2b):
    assert Excerpt((0, 1, 3), 4, 4, ("sliding",) * 4).sharing == 0
    assert find_excerpt(e2b.checkpoint.architecture).sharing == 2
