"""Opening a checkpoint: every tensor is either a checked weight or listed as left out."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from checkpoints.variants import VARIANTS
from converter.checkpoint.directory import Directory
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.checkpoint.safetensors import open_shards
from converter.checkpoint.weight import Lattice
from converter.errors import CheckpointError
from support.errors import refusal_of
from support.raw_safetensors import write_raw, write_tensors

Make = Callable[..., Path]
Tensors = dict[str, NDArray[np.generic]]


def tensors_of(directory: Path) -> Tensors:
    tensors = open_shards(Directory(directory)).tensors
    return {name: one.read_rows(0, one.rows).reshape(one.shape) for name, one in tensors.items()}


@pytest.fixture
def altered(checkpoint_factory: Make, tmp_path: Path) -> Callable[..., Path]:
    """``altered(variant, change, config=...)``: a copy whose tensors and ``config.json`` were changed."""

    def make(
        variant: str,
        change: Callable[[Tensors], object] = lambda tensors: None,
        config: Callable[[dict[str, Any]], object] = lambda values: None,
    ) -> Path:
        source = checkpoint_factory(variant)
        target = tmp_path / "altered"
        shutil.copytree(source, target)
        tensors = tensors_of(source)
        change(tensors)
        write_tensors(target / "model.safetensors", tensors)
        values = json.loads((source / "config.json").read_text())
        config(values)
        (target / "config.json").write_text(json.dumps(values))
        return target

    return make


refusal = partial(refusal_of, CheckpointError, open_checkpoint)


def reasons(checkpoint: Checkpoint) -> dict[str, str]:
    return {left_out.name: left_out.reason for left_out in checkpoint.left_out}


@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_is_a_weight_or_left_out(checkpoint_factory: Make, variant: str, layout: str) -> None:
    directory = checkpoint_factory(variant, layout=layout)
    checkpoint = open_checkpoint(directory)
    assert list(checkpoint.weights) == list(checkpoint.architecture.tensors)
    sources = [weight.source for weight in checkpoint.weights.values()]
    sources += [left_out.name for left_out in checkpoint.left_out]
    assert sorted(sources) == sorted(open_shards(Directory(directory)).tensors)
    assert checkpoint.form.name == "bf16-lattice"


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrices_are_on_a_lattice_and_norms_are_not(checkpoint_factory: Make, variant: str) -> None:
    for weight in open_checkpoint(checkpoint_factory(variant)).weights.values():
        expected = Lattice(4, 32) if len(weight.shape) > 1 else None
        assert weight.lattice == expected, weight.name


def test_latent_matrices_are_on_no_lattice(checkpoint_factory: Make) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text", scheme="latent"))
    assert all(weight.lattice is None for weight in checkpoint.weights.values())


@pytest.mark.parametrize("variant", ["e2b", "26b-a4b", "12b", "gemma3", "gemma3-text", "text"])
def test_weights_are_those_that_transformers_loads(checkpoint_factory: Make, variant: str) -> None:
    directory = checkpoint_factory(variant)
    checkpoint = open_checkpoint(directory)
    multimodal = "text_config" in checkpoint.config
    loader = transformers.AutoModelForImageTextToText if multimodal else transformers.AutoModelForCausalLM
    model = loader.from_pretrained(directory, dtype=torch.float32)
    start = "model.language_model." if multimodal else "model."
    loaded = {name.removeprefix(start): value for name, value in model.state_dict().items()}
    for name, weight in checkpoint.weights.items():
        expected = loaded[name].numpy().reshape(weight.rows, weight.columns)
        assert np.array_equal(weight.floats(0, weight.rows), expected), name


def test_shards_make_no_difference(checkpoint_factory: Make) -> None:
    one, many = (open_checkpoint(checkpoint_factory("text", shards=shards)) for shards in (1, 3))
    assert len(many.files) == len(one.files) + 3
    for name, weight in one.weights.items():
        assert np.array_equal(many.weights[name].floats(0, weight.rows), weight.floats(0, weight.rows))


def test_all_files_that_were_read_are_listed(checkpoint_factory: Make) -> None:
    directory = checkpoint_factory("e2b")
    assert {path.name for path in open_checkpoint(directory).files} == {
        path.name for path in directory.iterdir()
    }


def test_parts_for_images_and_sound_are_left_out_with_a_reason(checkpoint_factory: Make) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("e2b"))
    assert set(reasons(checkpoint).values()) == {
        "vision encoder",
        "vision encoder (clip bound)",
        "vision projection",
        "audio encoder",
        "audio encoder (clip bound)",
        "audio projection",
    }
    for left_out in checkpoint.left_out:
        assert left_out.bytes == 2 * math.prod(left_out.shape)
        assert left_out.dtype == "BF16"


def test_keys_of_layers_that_share_them_are_left_out(altered: Callable[..., Path]) -> None:
    names = [f"model.layers.5.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm")]

    def add(tensors: Tensors) -> None:
        tensors.update({name: np.zeros((32, 128), np.uint16) for name in names})

    checkpoint = open_checkpoint(altered("text", add))
    assert checkpoint.architecture.layers[5].kv_source is not None
    assert {reasons(checkpoint)[name] for name in names} == {
        "keys and values of this layer come from an earlier layer"
    }


def renamed(tensors: Tensors, rename: Callable[[str], str]) -> None:
    entries = {rename(name): array for name, array in tensors.items()}
    tensors.clear()
    tensors.update(entries)


@pytest.mark.parametrize(
    ("variant", "present", "other"),
    [
        ("gemma3", "model.language_model.", "language_model.model."),
        ("gemma3", "language_model.model.", "model.language_model."),
        ("e2b", "model.language_model.", "language_model."),
        ("text", "model.", ""),
    ],
)
def test_prefixes_of_other_releases_are_known(
    altered: Callable[..., Path], variant: str, present: str, other: str
) -> None:
    def rename(name: str) -> str:
        return other + name.removeprefix(present) if name.startswith(present) else name

    checkpoint = open_checkpoint(altered(variant, lambda tensors: renamed(tensors, rename)))
    assert list(checkpoint.weights) == list(checkpoint.architecture.tensors)


def test_clippable_linears_of_the_text_model_lose_their_inner_name(altered: Callable[..., Path]) -> None:
    def clip(tensors: Tensors) -> None:
        renamed(
            tensors,
            lambda name: name.replace("layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.linear.weight"),
        )
        tensors["model.layers.0.mlp.up_proj.input_min"] = np.full((), 0xFF80, np.uint16)

    checkpoint = open_checkpoint(altered("text", clip))
    assert (
        checkpoint.weights["layers.0.mlp.up_proj.weight"].source == "model.layers.0.mlp.up_proj.linear.weight"
    )
    assert reasons(checkpoint) == {
        "model.layers.0.mlp.up_proj.input_min": "clip bound, which the text model does not use"
    }


def transformers_ties(directory: Path) -> bool:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    return model.lm_head.weight is model.get_input_embeddings().weight


def test_a_head_that_equals_the_embedding_is_left_out(altered: Callable[..., Path]) -> None:
    directory = altered("text", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    checkpoint = open_checkpoint(directory)
    assert reasons(checkpoint) == {"lm_head.weight": "equal to the embedding it is tied to"}
    assert checkpoint.architecture.tied_head
    assert transformers_ties(directory)


def test_a_head_that_differs_unties_the_model(altered: Callable[..., Path]) -> None:
    def differ(tensors: Tensors) -> None:
        head = tensors["model.embed_tokens.weight"].copy()
        head[-1, -1] += 1
        tensors["lm_head.weight"] = head

    directory = altered("text", differ)
    checkpoint = open_checkpoint(directory)
    assert not checkpoint.architecture.tied_head
    assert list(checkpoint.weights)[-1] == "lm_head.weight"
    assert list(checkpoint.weights) == list(checkpoint.architecture.tensors)
    assert not transformers_ties(directory)


def test_a_head_and_an_embedding_larger_than_any_disk_are_not_compared(altered: Callable[..., Path]) -> None:
    directory, size = altered("text"), 1 << 39
    entry = {"dtype": "BF16", "shape": [1, size // 2]}
    names = ("model.embed_tokens.weight", "lm_head.weight")
    header = {name: {**entry, "data_offsets": [i * size, (i + 1) * size]} for i, name in enumerate(names)}
    path = directory / "model.safetensors"
    write_raw(path, header)
    os.truncate(path, path.stat().st_size + 2 * size)
    assert f"has shape [1, {size // 2}], config.json asks for [1280, 128]" in refusal(directory)


def test_a_head_that_is_stored_alone_is_the_embedding_too(altered: Callable[..., Path]) -> None:
    directory = altered(
        "text",
        lambda t: renamed(t, lambda name: name.replace("model.embed_tokens.weight", "lm_head.weight")),
    )
    checkpoint = open_checkpoint(directory)
    assert checkpoint.weights["embed_tokens.weight"].source == "lm_head.weight"
    assert "lm_head.weight" not in checkpoint.weights
    assert transformers_ties(directory)


def test_an_untied_head_is_a_weight(checkpoint_factory: Make) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("e2b", tied=False))
    assert not checkpoint.architecture.tied_head
    assert checkpoint.weights["lm_head.weight"].lattice is not None


def test_a_missing_tensor_is_named(altered: Callable[..., Path]) -> None:
    told = refusal(altered("text", lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight")))
    assert "model.safetensors: tensor 'layers.2.mlp.up_proj.weight' is missing" in told
    assert "config.json describes a gemma4_text of" in told


def test_missing_tensors_are_counted(altered: Callable[..., Path]) -> None:
    def drop(tensors: Tensors) -> None:
        del tensors["model.norm.weight"], tensors["model.layers.0.layer_scalar"]

    assert "'layers.0.layer_scalar' and 1 more is missing" in refusal(altered("text", drop))


@pytest.mark.parametrize(
    "name", ["model.layers.99.mlp.up_proj.weight", "model.extra.weight", "other", "a\nb"]
)
def test_an_unexpected_tensor_is_named(altered: Callable[..., Path], name: str) -> None:
    told = refusal(altered("text", lambda tensors: tensors.update({name: np.zeros(32, np.uint16)})))
    assert f"model.safetensors: tensor {name!r} is unexpected" in told


def test_a_wrong_shape_is_named(altered: Callable[..., Path]) -> None:
    def cut(tensors: Tensors) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]

    assert "tensor 'model.norm.weight' has shape [127], config.json asks for [128]" in refusal(
        altered("text", cut)
    )


def test_a_config_of_another_size_is_noticed(altered: Callable[..., Path]) -> None:
    told = refusal(altered("text", config=lambda values: values.update(vocab_size=1000)))
    assert (
        "tensor 'model.embed_tokens.weight' has shape [1280, 128], config.json asks for [1000, 128]" in told
    )


def test_two_names_of_one_weight_are_refused(altered: Callable[..., Path]) -> None:
    told = refusal(altered("text", lambda t: t.update({"norm.weight": t["model.norm.weight"]})))
    assert "tensor 'norm.weight' is norm.weight, which 'model.norm.weight' is as well" in told


def test_packed_weights_without_a_word_in_the_config_are_refused(altered: Callable[..., Path]) -> None:
    def pack(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((256, 64), np.uint8)

    assert "has dtype U8, expected one of BF16, F16, F32" in refusal(altered("text", pack))


def test_quantized_checkpoints_are_named(altered: Callable[..., Path]) -> None:
    told = refusal(altered("e2b", config=lambda c: c.update(quantization_config={"quant_method": "awq"})))
    assert "quant_method 'awq', which is not read" in told


def test_an_unknown_model_type_lists_the_known_ones(altered: Callable[..., Path]) -> None:
    told = refusal(altered("text", config=lambda values: values.update(model_type="llama")))
    assert "model_type 'llama' is unknown; the known ones are gemma3, gemma3_text, gemma4" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.json: not valid JSON"),
        ("[]", "config.json: holds a list"),
        ('{"model_type": "a", "model_type": "b"}', "config.json: key 'model_type' appears twice"),
        ("[" * 100_000, "config.json: JSON nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "config.json: not valid JSON"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(
    altered: Callable[..., Path], text: str, message: str
) -> None:
    directory = altered("text")
    (directory / "config.json").write_text(text)
    assert message in refusal(directory)


def test_a_missing_config_is_named(altered: Callable[..., Path]) -> None:
    directory = altered("text")
    (directory / "config.json").unlink()
    assert "config.json: cannot be read: No such file" in refusal(directory)


def test_a_missing_tokenizer_is_named(altered: Callable[..., Path]) -> None:
    directory = altered("text")
    (directory / "tokenizer.json").unlink()
    assert "tokenizer.json: is missing" in refusal(directory)


def test_neither_torch_nor_transformers_is_imported(checkpoint_factory: Make) -> None:
    script = (
        "import sys; from pathlib import Path; from converter.checkpoint.opened import open_checkpoint; "
        "checkpoint = open_checkpoint(Path(sys.argv[1])); "
        "weight = checkpoint.weights['embed_tokens.weight']; weight.codes(0, 4); "
        "sys.exit(bool({'torch', 'transformers', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script, str(checkpoint_factory("text"))], check=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_invented_settings_raise_nothing_but_checkpoint_errors(
    checkpoint_factory: Make, data: st.DataObject
) -> None:
    source = checkpoint_factory(data.draw(st.sampled_from(["e2b", "26b-a4b", "text", "gemma3"])))
    values = json.loads((source / "config.json").read_text())
    place = data.draw(st.sampled_from([values, values.get("text_config", values)]))
    place[data.draw(st.sampled_from([*place, "per_layer_config", "rope_scaling"]))] = data.draw(json_values)
    with TemporaryDirectory() as name:
        directory = Path(name)
        for path in source.iterdir():
            (directory / path.name).symlink_to(path)
        (directory / "config.json").unlink()
        (directory / "config.json").write_text(json.dumps(values))
        try:
            open_checkpoint(directory)
        except CheckpointError:
            assert refusal(directory)
